"""A circuit as a drawing: layers upwards, edges as wide as they carry, and the picture with its regions below."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Bool
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch, PathPatch
from matplotlib.path import Path
from PIL import Image
from torch import Tensor

from mmlens.analysis.circuit import Circuit
from mmlens.grid import Grid, Tiles
from mmlens.inputs import Inputs
from mmlens.plot.canvas import canvas, focus, height, picture, plain
from mmlens.plot.circuit_layout import HIGH, PORT, WIDE, Layout, Node, boundary, layout, lines, site_masks, told

POSITIVE, NEGATIVE = "#b2182b", "#2166ac"
KINDS = {"head": "#e3e9f0", "mlp": "#f4e6c8", "neurons": "#d5ecd8", "deepstack": "#e9dcf2", "logits": "#ffffff"}
NAMES = {"head": "head", "mlp": "MLP", "neurons": "set of neurons", "deepstack": "DeepStack", "logits": "logits"}
STYLES = {"q": (0, (4, 1.6)), "k": (0, (1.2, 1.2))}  # values and all else are solid
WIDEST, THINNEST, RING = 6.0, 0.4, 4.0  # points
READABLE = 150  # edges


def circuit(
    found: Circuit,
    *,
    inputs: Inputs | None = None,
    row: int = 0,
    sites: Mapping[str, Bool[Tensor, "batch pos"]] | None = None,
    most: int = READABLE,
) -> Figure:
    """Return the kept edges (the `most` largest) between nodes, layers upwards: red where the clean edge raises the
    metric, blue where it lowers it, as wide as its absolute score; dashed into queries, dotted into keys.

    A node's ring is the sum of all its edges' scores, kept or not, in the same colours. With `inputs` (those the circuit was
    found on) and the `sites` given there, `row`'s pictures stand below, with each site's region in its node's colour.
    Raises ValueError for a circuit without edges, and for sites that are not the circuit's.
    """
    drawn = layout(found, most=most)
    shown = [] if inputs is None else placed_pictures(inputs, row)
    wide = max(7.6, min(0.92 * drawn.columns + 1.4, 22.0))
    tall = 0.8 * (drawn.rows + 0.9)
    below = max((height(grid, 2.6, most=3.2) for *_, grid in shown), default=1.0) + 0.5
    figure = canvas(wide, tall + below + 0.7)
    subfigures: Any = figure.subfigures(2, 1, height_ratios=[tall, below])
    upper, lower = subfigures
    axes = upper.add_subplot()
    _edges(axes, drawn)
    _nodes(axes, drawn, size=min(9.0, 9.0 * (wide - 1.4) / (0.92 * drawn.columns)))
    _frame(axes, drawn)
    figure.suptitle("\n".join(told(found, drawn)), fontsize=10)
    across = [min(2.6 * (g.region[2] - g.region[0]) / (g.region[3] - g.region[1]), 2.6) for *_, g in shown]
    parts = lower.subplots(1, len(shown) + 1, squeeze=False, width_ratios=[*across, max(wide - sum(across), 3.4)])[0]
    if inputs is not None and shown:
        masks = site_masks(found.graph, inputs, sites)
        for cell, (medium, image, grid) in zip(parts, shown, strict=False):
            picture(cell, image)
            for site, mask in masks.items():
                if site != "rest" and (around := boundary(grid, mask[row, inputs.medium[row].cpu() == medium])):
                    cell.add_collection(
                        LineCollection(around, colors=drawn.colors[site], linewidths=2.4, capstyle="round", label=site)
                    )
            focus(cell, grid)
    _legend(parts[-1], drawn)
    return figure


def placed_pictures(inputs: Inputs, row: int) -> list[tuple[int, Image.Image, Grid | Tiles]]:
    """Return the row's pictures that have a grid: which medium it is, the picture, the grid."""
    both = zip(inputs.media[row], inputs.grids[row], strict=True)
    return [
        (medium, image, grid)
        for medium, (image, grid) in enumerate(both)
        if isinstance(image, Image.Image) and isinstance(grid, (Grid, Tiles))
    ]


def on(color: str) -> str:
    """Return black or white, whichever is read better on a colour."""
    red, green, blue = to_rgb(color)
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.55 else "white"


def _edges(axes: Axes, drawn: Layout) -> None:
    """Draw the edges, the largest last."""
    for place, edge in reversed(list(enumerate(drawn.edges))):
        for points in edge.paths:
            path = Path(list(points), [Path.MOVETO, *[Path.CURVE4] * (len(points) - 1)])
            axes.add_patch(
                PathPatch(
                    path,
                    facecolor="none",
                    edgecolor=POSITIVE if edge.score > 0 else NEGATIVE,
                    linewidth=max(WIDEST * drawn.share(edge.score), THINNEST),
                    linestyle=STYLES.get(edge.way, "solid"),
                    alpha=0.45 + 0.4 * drawn.share(edge.score),
                    capstyle="butt",
                    zorder=1,
                    gid=f"edge-{place}",
                )
            )


def _nodes(axes: Axes, drawn: Layout, *, size: float) -> None:
    for number, node in enumerate(drawn.nodes):
        fill = drawn.colors[node.name] if node.kind == "embed" else KINDS[node.kind]
        if node.effect is not None and (ring := RING * abs(node.effect) / drawn.largest_effect) > 0.1:
            color = POSITIVE if node.effect > 0 else NEGATIVE
            axes.add_patch(_box(node, "none", color, width=1.0 + 2 * ring, gid=f"ring-{number}"))
        axes.add_patch(_box(node, fill, "white" if node.kind != "logits" else "#777777", width=0.8, gid=f"node-{number}"))
        word = "\n".join(map(plain, lines(node, 11)))
        axes.text(
            node.x,
            node.y,
            word,
            ha="center",
            va="center",
            fontsize=size * min(1.0, 8 / max(map(len, word.split("\n")))),
            linespacing=1.0,
            color=on(fill),
            zorder=3,
        )
        _letters(axes, drawn, number, node, size)


def _box(node: Node, fill: str, edge: str, *, width: float, gid: str) -> FancyBboxPatch:
    corner, style = (node.x - node.wide / 2, node.y - HIGH / 2), "round,pad=0,rounding_size=0.1"
    return FancyBboxPatch(
        corner, node.wide, HIGH, boxstyle=style, facecolor=fill, edgecolor=edge, linewidth=width, gid=gid, zorder=2
    )


def _letters(axes: Axes, drawn: Layout, number: int, node: Node, size: float) -> None:
    """Write q, k and v where edges enter as these."""
    for way in sorted({edge.way for edge in drawn.edges if number in edge.ends} & {"q", "k", "v"}):
        axes.text(
            node.x + PORT[way] + 0.03,
            node.y - HIGH / 2 - 0.02,
            way,
            ha="left",
            va="top",
            fontsize=0.7 * size,
            color="#333333",
            zorder=3,
        )


def _frame(axes: Axes, drawn: Layout) -> None:
    """Name the layers at the left, and shade them."""
    left, right = -WIDE / 2 - 0.45, drawn.columns - 1 + WIDE / 2 + 0.45
    for layer, low, high in drawn.layers:
        if layer >= 0:
            axes.axhspan(low - 0.42, high + 0.36, color="#f6f5f2", linewidth=0, zorder=0)
        name = f"layer {layer}" if layer >= 0 else "enters"
        axes.text(left - 0.08, (low + high) / 2, name, ha="right", va="center", fontsize=9, color="#555555")
    axes.set_xlim(left, right)
    axes.set_ylim(-0.45, drawn.rows + 0.35)
    axes.set_axis_off()


def _legend(axes: Axes, drawn: Layout) -> None:
    """Say what colours, widths and styles are."""
    axes.set_axis_off()
    present = {node.kind for node in drawn.nodes}
    touched = {node.name for node in drawn.nodes}
    sites = [
        Patch(facecolor=color, label=plain(site, 24) + ("" if site in touched else " (no edge)"))
        for site, color in drawn.colors.items()
        if site != "rest" or site in touched
    ]
    kinds = [Patch(facecolor=KINDS[k], edgecolor="#999999", label=NAMES[k]) for k in KINDS if k in present]
    half = float(f"{abs(drawn.edges[0].score) / 2:.1g}")
    edges = [
        Line2D([], [], color=POSITIVE, linewidth=WIDEST * drawn.share(half), label=f"+{half:g}: raises the metric"),
        Line2D([], [], color=NEGATIVE, linewidth=WIDEST * drawn.share(half), label=f"−{half:g}: lowers it"),
    ]
    words = {"q": "into queries", "k": "into keys", "v": "into values"}
    ways = [
        Line2D([], [], color="#333333", linewidth=1.5, linestyle=STYLES.get(way, "solid"), label=word)
        for way, word in words.items()
        if any(edge.way == way for edge in drawn.edges)
    ]
    ring = [
        Patch(
            facecolor="white",
            edgecolor=POSITIVE,
            linewidth=2.5,
            label=f"ring: all edges of a node (at most {drawn.largest_effect:.3g})",
        )
    ]
    first = axes.legend(handles=[*sites, *kinds], loc="upper left", frameon=False, fontsize=8, bbox_to_anchor=(0.0, 1.0))
    axes.add_artist(first)
    axes.legend(handles=[*edges, *ways, *ring], loc="upper left", frameon=False, fontsize=8, bbox_to_anchor=(0.42, 1.0))
