"""How much of an answer a circuit carries alone, and how much is left without it, by the number of its edges."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from mmlens.analysis.circuit import Faithfulness
from mmlens.plot.canvas import OURS, RANDOM, canvas, plain
from mmlens.plot.curves import mean_curve

WITHOUT, SHARE = "#2166ac", 0.8


def faithfulness(found: Faithfulness, *, share: float = SHARE) -> Figure:
    """Return how much of the answer a circuit's largest edges carry alone, and how much is left without them, by number.

    0 is the run with no edge live, 1 the clean one. Curves are means over rows with their 95 % interval; controls, as many
    other edges alone, are grey: the mean of all draws thick, each draw thin. A line marks `share`, and where `alone` stays
    above it.
    """
    order = [place for place in found.sizes.argsort().tolist() if int(found.sizes[place]) > 0]
    sizes = found.sizes[order].tolist()
    figure = canvas(8.0, 4.4)
    axes = figure.add_subplot()
    for (name, draws), style in zip(found.controls.items(), ("solid", "dashed", "dotted"), strict=False):
        means = draws[:, order].nanmean(-1)
        label = f"alone, {plain(name)} edges ({len(means)} draw{'' if len(means) == 1 else 's'})"
        axes.plot(sizes, means.nanmean(0), color=RANDOM, linewidth=2.2, linestyle=style, label=label)
        for mean in means if len(means) > 1 else ():
            axes.plot(sizes, mean, color=RANDOM, linewidth=0.6, linestyle=style)
    mean_curve(axes, found.alone[order], color=OURS, at=sizes, label="these edges alone")
    mean_curve(axes, found.without[order], color=WITHOUT, at=sizes, label="all edges without these")
    number = found.size_for(share)
    reached = f"from {number:,} edges on" if number else "reached at no size"
    axes.axhline(share, color="black", linewidth=0.9, linestyle="dotted", label=f"{share:g}: {reached}")
    if number:
        axes.axvline(number, color="black", linewidth=0.9, linestyle="dotted")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_apart(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel("edges (number)")
    axes.set_ylabel(f"share of the clean run's metric\n(mean of {found.alone.shape[1]}, ablation: {found.ablation})")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return figure


def _apart(sizes: Sequence[int]) -> list[int]:
    """Return those of `sizes` that can be written beside each other on a logarithmic axis."""
    found: list[int] = []
    for size in sizes:
        if not found or math.log(size / found[-1]) > math.log(sizes[-1] / sizes[0]) / 14:
            found.append(size)
    return found
