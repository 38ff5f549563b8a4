"""How modalities lie to each other in the stream: the plane and its curves, and the scores beside their random control."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mmlens.analysis import GroupGeometry, ProbingScore, TelomereScore
from mmlens.plot.canvas import OURS, canvas, plain
from mmlens.plot.curves import OTHERS, PROJECTIONS, STREAM, colors_of, layer_axis, mean_curve, random_curves

MOST = 4  # layers whose plane is drawn


def group_geometry(result: GroupGeometry, *, layers: Sequence[int] | None = None) -> Figure:
    """Return the plane at some `layers` (default: four, first to last), a point for each position in its group's colour,
    above the curves of the cosine between centroids, for each pair of groups, and of the silhouette.

    All rows are in the planes; curves are means over rows, bands their 95 % interval where there are several. Each layer has
    axes of its own: that a cloud is at the left in two layers says nothing. Raises IndexError for a layer that is not there.
    """
    depth = len(result.plane)
    chosen = sorted({round(index * (depth - 1) / (MOST - 1)) for index in range(MOST)}) if layers is None else list(layers)
    if beyond := [layer for layer in chosen if not 0 <= layer < depth]:
        raise IndexError(f"the plane is that of the layers 0 to {depth - 1}, got {beyond[0]}: choose among those")
    lines = math.ceil(len(chosen) / MOST)
    figure = canvas(10.6, 2.9 * lines + 3.4)
    parts: Any = figure.subfigures(2, 1, height_ratios=[2.9 * lines + 0.3, 3.1])
    cells = parts[0].subplots(lines, min(MOST, len(chosen)), squeeze=False).flatten()
    for axes, layer in zip(cells, chosen, strict=False):
        _plane(axes, result, layer)
    for axes in cells[len(chosen) :]:
        axes.set_axis_off()
    legend = parts[0].legend(*cells[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False)
    for handle in legend.legend_handles:
        handle.set(sizes=[30], alpha=1)
    left, right = parts[1].subplots(1, 2)
    pairs = list(combinations(range(len(result.groups)), 2))
    for (one, two), color in zip(pairs, OTHERS * len(pairs), strict=False):
        name = f"{plain(result.groups[one])} and {plain(result.groups[two])}"
        mean_curve(left, result.cosine[:, :, one, two], color="black" if len(pairs) == 1 else color, label=name)
    left.set_ylabel("cosine of the centroids")
    left.legend(frameon=False)
    mean_curve(right, result.silhouette, color="black")
    right.axhline(0, color="black", linewidth=0.6)
    right.set_ylabel("silhouette\n(0: they overlap, 1: apart)")
    for axes in (left, right):
        layer_axis(axes, depth, label=STREAM + _mean_of(result.silhouette))
    return figure


def _plane(axes: Axes, result: GroupGeometry, layer: int) -> None:
    """Draw the positions of every group on the two axes of a layer: few points lie on many, and are larger."""
    colors, sizes = colors_of(result.groups), result.group.bincount(minlength=len(result.groups))
    for group in sizes.argsort(descending=True, stable=True).tolist():
        here, n = result.plane[layer, result.group == group], int(sizes[group])
        label = f"{plain(result.groups[group])} ({n} position{'' if n == 1 else 's'})"
        size = min(24.0, max(4.0, 3000 / max(n, 1)))
        axes.scatter(here[:, 0], here[:, 1], color=colors[group], s=size, alpha=0.7, linewidth=0, label=label)
    axes.set_title(f"layer {layer}" + (" (the output)" if layer == len(result.plane) - 1 else ""), fontsize=11)
    for write, axis in ((axes.set_xlabel, 0), (axes.set_ylabel, 1)):
        share, name = float(result.explained[layer, axis]), PROJECTIONS.get(result.provenance.parameters["projection"])
        write(f"{name} {axis + 1} (no unit)" if name else f"component {axis + 1} ({share:.0%})", fontsize=9)
    axes.set_aspect("equal", adjustable="datalim")
    axes.tick_params(labelsize=8)


def probing_score(result: ProbingScore) -> Figure:
    """Return, by layer, the share of source positions nearer to the target and how long their tail is, beside every draw
    with shuffled labels and the mean of these.

    Curves are means over rows, the band their 95 % interval where there are several.
    """
    source, target = plain(result.source), plain(result.target)
    panels = {
        f"share of {source} positions\nnearer to {target}": (result.share, result.random_share),
        "reach of the farthest 5 %\n(interquartile ranges)": (result.tail, result.random_tail),
    }
    return _beside(panels, f"these labels: from {source} to {target}", "draws of shuffled labels")


def telomere_score(result: TelomereScore) -> Figure:
    """Return, by layer, the share of the ends whose nearest positions are all of the body, for each k, and the share that is
    further out than 90 % of it, beside every draw of as many positions of the body and the mean of these.

    Curves are means over rows, the band their 95 % interval where there are several.
    """
    ends, of = plain(result.ends), plain(result.of)
    panels = {}
    for index, k in enumerate(result.ks):
        nearest = f"nearest position is {of}" if k == 1 else f"nearest {k} positions are {of}"
        panels[f"share of ends whose\n{nearest}"] = result.within[index], result.random_within[:, index]
    panels[f"share of ends further out\nthan 90 % of {of}"] = result.outer, result.random_outer
    return _beside(panels, f"ends: {ends} positions", f"draws of {of} positions as ends")


def _beside(
    panels: dict[str, tuple[Float[Tensor, "layer batch"], Float[Tensor, "draw layer batch"]]], label: str, random: str
) -> Figure:
    """Return a panel for each score: ours in red, random draws in grey. Shares (all but those in ranges) are from 0 to 1."""
    figure = canvas(3.9 * len(panels), 3.7)
    cells = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, (own, draws)) in zip(cells, panels.items(), strict=True):
        random_curves(axes, draws, label=random)
        mean_curve(axes, own, color=OURS, label=label)
        axes.set_ylabel(name)
        layer_axis(axes, len(own), label="layer" + _mean_of(own))
        if name.startswith("share"):
            axes.set_ylim(-0.03, 1.03)
    figure.supxlabel("Layer l is the stream that enters block l; the last is the output", fontsize=9)
    figure.legend(*cells[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def _mean_of(values: Float[Tensor, "layer batch"]) -> str:
    rows = values.shape[1]
    return f"\nmean of {rows} rows, 95 % band" if rows > 1 else ""
