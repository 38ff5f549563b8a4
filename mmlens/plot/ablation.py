"""What is left of the target against the number of neurons switched off, beside random draws."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from mmlens.analysis import AblationConditions, AblationCurve
from mmlens.plot.canvas import OURS, RANDOM, canvas, plain

WORDS = "#2980b9"


def ablation_curve(result: AblationCurve, *, target: str = "target") -> Figure:
    """Return P(target), mean over rows, against how many neurons are off: ours thick, every random draw thin, their mean.

    The axis is logarithmic beyond 1, so that no neurons and one neuron both have a place.
    """
    own = result.log_prob.exp().mean(-1)
    draws = result.random_log_prob.exp().mean(-1)
    figure = canvas(8.0, 4.2)
    axes = figure.add_subplot()
    if len(draws):
        axes.plot(result.ks, draws.mean(0), color=RANDOM, linewidth=2.6, marker="o", label="mean of the random draws")
    for index, draw in enumerate(draws):
        axes.plot(result.ks, draw, color="black", linewidth=0.6, alpha=0.7, label=None if index else "one random draw each")
    axes.plot(result.ks, own, color=OURS, linewidth=2.6, marker="o", label="these neurons, best first")
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel(f"P({target}), from 0 to 1")
    _numbers(axes, result.ks)
    return figure


def ablation_conditions(result: AblationConditions, *, target: str = "the targets") -> Figure:
    """Return the relative change of P(target), mean over targets, under three conditions: all neurons, the interpretable
    ones among them, random ones.

    0 is the model as it is, -1 that nothing is left. Grey is the mean of the random draws with the range from the lowest to
    the highest: solid for as many as all neurons in their layers, dashed for as many as the interpretable ones in theirs.
    """
    figure = canvas(8.0, 4.2)
    axes = figure.add_subplot()
    axes.axhline(0, color="black", linewidth=0.6)
    for curve, whose, style in ((result.all, "all", "solid"), (result.interpretable, "interpretable", "dashed")):
        draws = curve.random_change().mean(-1)
        if len(draws):
            axes.fill_between(curve.ks, draws.amin(0), draws.amax(0), color=RANDOM, alpha=0.25, linewidth=0)
            label = f"random, in the layers of {whose} ({len(draws)} draws)"
            axes.plot(curve.ks, draws.mean(0), color=RANDOM, linewidth=2.0, linestyle=style, label=label)
    for curve, label, color in ((result.all, "all", OURS), (result.interpretable, "interpretable", WORDS)):
        axes.plot(curve.ks, curve.change().mean(-1), color=color, linewidth=2.6, marker="o", label=label)
    axes.set_ylabel(f"relative change of P({plain(target)})\n(mean of {result.all.log_prob.shape[-1]})")
    _numbers(axes, result.all.ks)
    return figure


def _numbers(axes: Axes, ks: Sequence[int]) -> None:
    """Make the horizontal axis that of numbers of neurons, logarithmic beyond 1, with a legend beside the curves."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    axes.set_xlim(-0.2, 1.15 * max(1, *ks))
    axes.xaxis.set_major_locator(FixedLocator(list(ks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel("neurons switched off (number)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
