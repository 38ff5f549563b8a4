"""P(target) against the number of neurons switched off, beside random draws."""

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from mmlens.analysis import AblationCurve
from mmlens.plot.canvas import OURS, RANDOM, canvas


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
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    axes.xaxis.set_major_locator(FixedLocator(list(result.ks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("neurons switched off (number)")
    axes.set_ylabel(f"P({target}), from 0 to 1")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    return figure
