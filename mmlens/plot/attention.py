"""Where a position looks: its attention on the picture, layer by layer, and how much of it each modality gets."""

import math
from typing import Any

from jaxtyping import Bool
from matplotlib.figure import Figure
from torch import Tensor

from mmlens.analysis import AttentionRows
from mmlens.grid import finest
from mmlens.inputs import Inputs
from mmlens.plot.canvas import canvas, focus, grid_lines, height, middle, picture, pictures
from mmlens.plot.curves import GROUPS

MOST = 4  # layers that are drawn on the picture


def attention_rows(
    result: AttentionRows,
    inputs: Inputs,
    *,
    row: int = 0,
    query: int = 0,
    image: int = 0,
    head: int | None = None,
    sinks: Bool[Tensor, "layer batch key"] | None = None,
) -> Figure:
    """Return the picture under the attention of one query (the `query`-th of `result`), and how much goes to what.

    At most four of the result's layers are drawn, first to last; each has a scale of its own, which ends at its largest
    share. Curves are over all its layers. Numbers are the mean over heads, or those of the `head`-th. `sinks`
    (`attention_sinks(...).where()`, of the same layers) are marked with a cross on the picture, and what lies on them is a
    curve of its own; nothing is taken out. Raises ValueError for a row without such a picture.
    """
    drawn = pictures(inputs, row)
    if not 0 <= image < len(drawn):
        raise ValueError(f"row {row} has {len(drawn)} picture(s), there is no image {image}")
    picked, grid = drawn[image]
    pattern = result.pattern[:, row, :, query].mean(1) if head is None else result.pattern[:, row, head, query]
    here = inputs.mask(f"image:{image}")[row].cpu()
    depth = len(result.layers)
    chosen = sorted({round(index * (depth - 1) / (MOST - 1)) for index in range(MOST)})
    lines, tall = math.ceil(len(chosen) / 2), height(grid, 4.7) + 0.4
    figure = canvas(10.6, tall * lines + 3.0)
    parts: Any = figure.subfigures(2, 1, height_ratios=[tall * lines, 3.0])
    upper, lower = parts
    cells = upper.subplots(lines, min(2, len(chosen)), squeeze=False).flatten()
    for axes, layer in zip(cells, chosen, strict=False):
        picture(axes, picked, faded=0.35)
        top = float(pattern[layer, here].max())
        for tile, shares in grid.painted(pattern[layer, here]):
            left, above, right, below = tile.region
            axes.imshow(
                shares,
                extent=(left, right, below, above),
                cmap="Reds",
                vmin=0,
                vmax=max(top, 1e-9),
                alpha=0.65 if tile in finest(grid) else 0.0,
                interpolation="nearest",
            )
        grid_lines(axes, grid, width=0.4)
        if sinks is not None:
            for tile, marked in grid.painted(sinks[layer, row, here.to(sinks.device)].cpu()):
                for line, place in marked.nonzero().tolist() if tile in finest(grid) else ():
                    axes.plot(*middle(tile, line, place), marker="x", color="black", markersize=9, markeredgewidth=2)
        share = float(pattern[layer, here].sum())
        axes.set_title(f"layer {result.layers[layer]}: {share:.0%} on this picture, at most {top:.1%}", fontsize=11)
        focus(axes, grid)
    for axes in cells[len(chosen) :]:
        axes.set_axis_off()
    axes = lower.subplots()
    curves = {kind: (result.mass(kind), color) for kind, color in GROUPS.items() if inputs.mask(kind)[row].any()}
    if sinks is not None:
        curves["sinks"] = result.mass(sinks), "black"
    for name, (mass, color) in curves.items():
        own = mass[:, row, :, query].mean(1) if head is None else mass[:, row, head, query]
        where = sinks[:, row] if name == "sinks" and sinks is not None else inputs.mask(name)[row][None]
        count = int(where.any(0).sum())
        style = "dashed" if name == "sinks" else "solid"
        label = f"{name} ({count} position{'' if count == 1 else 's'})"
        axes.plot(result.layers, own, marker="o", color=color, linestyle=style, label=label)
    axes.set_xticks(result.layers[:: max(1, depth // 12)])
    axes.set_ylim(0, 1)
    axes.set_xlabel("layer")
    axes.set_ylabel("share of the attention" + (", mean of heads" if head is None else f", head {result.heads[head]}"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
