"""How far scores agree on neurons: the share of the highest that they have in common, and their ranks layer by layer."""

from itertools import combinations
from typing import Any

from matplotlib.figure import Figure

from mmlens.analysis import Agreement
from mmlens.plot.canvas import RANDOM, canvas, plain
from mmlens.plot.curves import colors_of, layer_axis


def agreement(result: Agreement) -> Figure:
    """Return the overlap of the highest neurons of each two scores, and by layer the correlation of their ranks.

    Below each overlap stands what shuffles of units within their layers come to (mean and 95 % quantile). Grey curves are
    the shuffles' 95 % quantile of the absolute correlation, one for each pair, on both sides of 0. Of one score alone there
    is no curve.
    """
    names = [plain(name) for name in result.scores]
    pairs = list(combinations(range(len(names)), 2))
    side = 1.5 * len(names) + 1.8
    figure = canvas(side + 5.8, max(side - 1.2, 3.8))
    cells: Any = figure.subplots(1, 2, width_ratios=[side, 5.8])
    table, curves = cells
    shown = table.imshow(result.overlap, cmap="Reds", vmin=0, vmax=1)
    for row, column in ((a, b) for a in range(len(names)) for b in range(len(names))):
        own, null, bar = (float(part[row, column]) for part in (result.overlap, result.overlap_null, result.overlap_bar))
        color = "white" if own > 0.6 else "black"
        table.text(column, row, f"{own:.2f}", ha="center", va="bottom", color=color)
        below = f"shuffled {null:.2f}\n95 % {bar:.2f}"
        table.text(column, row + 0.06, below, ha="center", va="top", color=color, fontsize=7)
    table.set_xticks(range(len(names)), names, rotation=30, ha="right")
    table.set_yticks(range(len(names)), names)
    table.set_title(f"share of the {result.k} highest neurons in common", fontsize=11)
    figure.colorbar(shown, ax=table, shrink=0.7)
    labels = [f"{names[a]} and {names[b]}" for a, b in pairs]
    layers = range(result.spearman.shape[-1])
    for index, (a, b) in enumerate(pairs):
        for side_of_zero in (1, -1):
            label = "95 % of shuffles lie between" if index == 0 and side_of_zero == 1 else None
            curves.plot(layers, side_of_zero * result.spearman_bar[a, b], color=RANDOM, linewidth=0.7, label=label)
    for (a, b), label, color in zip(pairs, labels, colors_of(labels), strict=True):
        curves.plot(layers, result.spearman[a, b], color=color, marker="o", label=label)
    curves.axhline(0, color="black", linewidth=0.6)
    curves.set_ylim(-1.03, 1.03)
    curves.set_ylabel("rank correlation of a layer's neurons")
    layer_axis(curves, len(layers), label="layer")
    if pairs:
        curves.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    return figure
