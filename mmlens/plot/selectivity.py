"""Sets of neurons by label: how many each layer has, what they share, and how many examples they take."""

from itertools import combinations, cycle
from typing import Any

import torch
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from mmlens.analysis import Selection, Stability, turning_points
from mmlens.plot.canvas import RANDOM, canvas, plain
from mmlens.plot.curves import colors_of, layer_axis

MARKERS = "osD^vPX"  # beside the colours, of which some are close
LEAST = 5  # layers that two turning points take
PALE = 0.25  # of a set shared: below, the darkest colour would say too much
NUMBERED = 14  # labels of which a number can still be read


def selection(found: Selection, *, turning: bool = True) -> Figure:
    """Return how many neurons each label has in each layer, and beside it how many are in exactly 1, 2, ... of the sets.

    With `turning`, dashed lines of a curve's colour stand at its two turning points (as in `stages`, whose rule is ours),
    where it has five layers or more. Last layers in which no label has a neuron, such as those of a tower that the model
    does not read, do not count for these.
    """
    names, counts = list(found.sets), found.counts()
    colors = [RANDOM if name == "random" else color for name, color in zip(names, colors_of(names), strict=True)]
    figure = canvas(11.0, max(4.2, 1.4 + 0.25 * len(names)))
    cells: Any = figure.subplots(1, 2, width_ratios=[3, 1.3])
    curves, sharing = cells
    depth = int(counts.any(0).nonzero().max()) + 1 if counts.any() else 0
    turns = [
        turning_points(curve[:depth].float()) if turning and depth >= LEAST and curve.any() else None for curve in counts
    ]
    dash, gap = 5.0, 5.0 * (len(names) - 1)  # so that lines at the same layer show by turns
    for index, (name, curve, color, turn, marker) in enumerate(zip(names, counts, colors, turns, cycle(MARKERS))):
        total = f"{plain(name)}: {int(curve.sum())}" + ("" if turn is None else f", turns at {turn[0]} and {turn[1]}")
        curves.plot(range(len(curve)), curve, marker=marker, color=color, label=total)
        for layer in turn or ():
            curves.axvline(layer, color=color, linewidth=1.5, linestyle=(index * dash, (dash, gap)) if gap else "solid")
    curves.set_ylim(bottom=-0.03 * max(1, int(counts.max())))
    curves.set_ylabel("neurons")
    curves.set_title(f"{len(found.union())} different neurons of {plain(found.module)}", fontsize=11)
    layer_axis(curves, counts.shape[1], label="layer")
    shared = found.memberships()
    bars = sharing.bar(range(1, len(shared) + 1), shared, color=RANDOM)
    sharing.bar_label(bars, fontsize=9)
    sharing.set_xticks(range(1, len(shared) + 1, max(1, len(shared) // 8)))
    sharing.set_xlim(0.3, max(len(shared), 3) + 0.7)
    sharing.margins(y=0.1)
    sharing.set_xlabel("in exactly so many sets")
    sharing.set_ylabel("neurons")
    sharing.spines[["top", "right"]].set_visible(False)
    drawn = any(turn is not None for turn in turns)
    title = "vertical lines: turning points\n(our rule, not the paper's)" if drawn else "neurons in all"
    figure.legend(*curves.get_legend_handles_labels(), loc="outside right upper", frameon=False, title=title)
    return figure


def overlaps(found: Selection) -> Figure:
    """Return what every two labels' sets share (the intersection over the union, Jaccard), and its mean by layer.

    Sizes stand beside the labels; a set and itself are grey. In a layer, pairs with no neuron there do not count. The grey
    curve is what random sets with as many neurons in each layer would share. Of one set alone there is no curve.
    """
    labels = [f"{plain(name)} ({len(own)})" for name, own in found.sets.items()]
    count, shared = len(labels), found.jaccard()
    largest = max(float(shared.clone().fill_diagonal_(0).max()), PALE)
    side = 0.62 * count + 2.8
    figure = canvas(side + 6.0, max(side - 0.4, 4.0))
    cells: Any = figure.subplots(1, 2, width_ratios=[side, 5.0])
    table, curves = cells
    shown = table.imshow(shared, cmap=colormaps["Reds"].with_extremes(over="#d0d0d0"), vmin=0, vmax=largest)
    for row, column in ((a, b) for a in range(count) for b in range(count) if count <= NUMBERED):
        value = float(shared[row, column])
        color = "white" if 0.6 * largest < value <= largest else "black"
        table.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
    table.set_xticks(range(count), labels, rotation=45, ha="right", rotation_mode="anchor")
    table.set_yticks(range(count), labels)
    table.set_title("shared by two sets (Jaccard)", fontsize=11)
    figure.colorbar(shown, ax=table, shrink=0.7)
    pairs = list(combinations(range(count), 2))
    if pairs:
        by_layer = found.jaccard_by_layer()
        own = torch.stack([by_layer[:, a, b] for a, b in pairs])
        drawn = torch.stack([_by_chance(found, a, b) for a, b in pairs])
        layers = range(len(by_layer))
        curves.plot(
            layers,
            own.nanmean(0),
            color="black",
            marker="o",
            label=f"mean of {len(pairs)} pairs" if len(pairs) > 1 else "the pair",
        )
        curves.plot(layers, drawn.nanmean(0), color=RANDOM, marker="o", label="random sets of these sizes")
        curves.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    else:
        curves.set_ylim(0, 1)
    curves.margins(y=0.1)
    curves.set_ylabel("mean Jaccard of two sets")
    layer_axis(curves, found.counts().shape[1], label="layer")
    return figure


def stability(found: Stability) -> Figure:
    """Return how similar (Jaccard) each label's set is, by the number of examples, to others of its kind.

    Thin: to that of all examples, of which these are a part; thick: to that of as many others, which is what a repetition
    would find; grey: what random sets of as many neurons by layer would share with those.
    """
    figure = canvas(9.4, 4.2)
    axes = figure.add_subplot()
    for name, color, column in zip(found.labels, colors_of(found.labels), range(len(found.labels)), strict=True):
        axes.plot(found.examples, found.chance[:, column], color=RANDOM, linewidth=1, marker=".")
        axes.plot(found.examples, found.to_all[:, column], color=color, linewidth=0.9)
        axes.plot(found.examples, found.to_others[:, column], color=color, linewidth=2.6, marker="o", label=plain(name))
    _explain(
        axes, f"to those of all {found.examples[-1]} examples", "to those of as many others", "random sets of these sizes"
    )
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(left=0)
    axes.set_xlabel("examples")
    axes.set_ylabel("neurons shared (Jaccard)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def _explain(axes: Axes, thin: str, thick: str, grey: str) -> None:
    """Add to the legend what thin, thick and grey curves are."""
    for label, color, width in ((thin, "black", 0.9), (thick, "black", 2.6), (grey, RANDOM, 1.0)):
        axes.add_line(Line2D([], [], color=color, linewidth=width, label=label))


def _by_chance(found: Selection, a: int, b: int) -> Float[Tensor, " layer"]:
    """Return, for each layer, the expected intersection of random sets of two labels' sizes, over the union it leaves."""
    widths = torch.tensor(next(iter(found.sets.values())).widths[found.module])
    counts = found.counts()
    both = counts[a] * counts[b] / widths
    return both / (counts[a] + counts[b] - both)
