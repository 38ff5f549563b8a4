"""How the last position converges: where it points, where it looks and what it would say, layer by layer."""

from typing import Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmlens.analysis import Convergence
from mmlens.analysis.convergence import Curve
from mmlens.plot.canvas import OURS, canvas, plain
from mmlens.plot.curves import layer_axis, mean_curve, random_curves

CLEAN = "black"
TITLES: dict[Curve, str] = {
    "cosine": "cosine\nto its final state",
    "kl": "KL divergence\nfrom its output (nats)",
    "centroids": "cosine to the centroid\nof {group} positions",
    "mass": "share of attention\non {group} positions",
}


def convergence(result: Convergence, *, show: Literal["runs", "difference"] = "runs") -> Figure:
    """Return the last position's curves by layer: cosine to its final state and to each group's centroid above, KL from its
    output and attention on each group below (what is left of it is on the last position itself).

    Curves are means over rows, bands their 95 % interval where there are several. Neurons that were ablated add their curve
    (red), every random set's and their mean (grey); each run is compared to its own final state and output, so that all
    cosines end at 1. `show="difference"` draws what that changes instead, row by row, less the clean run. Groups that no row
    has are left out. Raises ValueError for a difference where no neurons were ablated.
    """
    held = [index for index in range(len(result.groups)) if not result.clean.centroids[index].isnan().all()]
    figure = canvas(max(2.75 * (1 + len(held)) + 0.4, 8.0), 6.0)
    cells = figure.subplots(2, 1 + len(held), squeeze=False)
    lines: tuple[tuple[Curve, Curve], ...] = (("cosine", "centroids"), ("kl", "mass"))
    for (first, *others), (curve, by_group) in zip(cells, lines, strict=True):
        _panel(first, result, curve, None, show)
        for axes, group in zip(others, held, strict=True):
            if axes is not others[0]:
                axes.sharey(others[0])
                axes.tick_params(labelleft=False)
            _panel(axes, result, by_group, group, show)
    rows = result.cosine.shape[1]
    figure.supxlabel(
        "Layer l of a cosine or KL: the stream that enters block l (the last is the output); of attention: block l"
        + (f"\nmean of {rows} rows, 95 % band" if rows > 1 else ""),
        fontsize=9,
    )
    if result.ablated is not None:
        figure.legend(*cells[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _panel(axes: Axes, result: Convergence, curve: Curve, group: int | None, show: str) -> None:
    """Draw one curve of every run, or its differences from the clean run: random sets behind, then clean, then ablated."""
    whole = slice(None) if group is None else group
    label = f"random set{'' if len(result.random) == 1 else 's'} of as many"
    clean = getattr(result.clean, curve)[whole]
    if show == "difference":
        axes.axhline(0, color=CLEAN, linewidth=1)
        ablated = result.difference(curve)[whole]
        if result.random:
            random_curves(axes, result.random_difference(curve)[:, whole], label=label)
    else:
        ablated = None if result.ablated is None else getattr(result.ablated, curve)[whole]
        if result.random:
            random_curves(axes, torch.stack([getattr(one, curve)[whole] for one in result.random]), label=label)
        mean_curve(axes, clean, color=CLEAN, label="clean run")
    if ablated is not None:
        mean_curve(axes, ablated, color=OURS, label="neurons ablated")
    title = TITLES[curve].format(group="" if group is None else plain(result.groups[group]))
    axes.set_title(title if show == "runs" else f"change of the\n{title}", fontsize=10)
    layer_axis(axes, len(clean), label="layer")
