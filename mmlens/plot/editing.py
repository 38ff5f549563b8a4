"""How an edit was fitted: which word is how likely after each step, and what each term of the loss was."""

from math import log
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmlens.analysis import Edit
from mmlens.plot.canvas import OURS, RANDOM, canvas, plain
from mmlens.plot.curves import OTHERS

SOURCE = "#2c3e50"


def edit(result: Edit, *, control: Edit | None = None) -> Figure:
    """Return the negative log-likelihoods of both words by step (nats), and the loss with its terms, times their weights.

    On the left a thin curve is a row of the inputs, a thick one their mean; the dotted line is where the fit stops, if it
    does. On the right terms add up to the loss. `control` is the edit of other neurons, random ones for instance, whose mean
    curves are grey; it is drawn as far as it was fitted.
    """
    figure = canvas(10.6, 4.9)
    cells: Any = figure.subplots(1, 2)
    words, loss = cells
    steps = range(result.steps + 1)
    source, target = (plain(word) for word in result.words)
    if control is not None:
        of = f"{len(control.neurons)} other neurons (norm {control.norm:.1f})"
        grey: dict[str, Any] = dict(color=RANDOM, linewidth=2.6)
        words.plot(range(control.steps + 1), control.nll.mean(1), label=f"{target}: {of}", **grey)
        style = "dashed"
        words.plot(range(control.steps + 1), control.source_nll.mean(1), linestyle=style, label=f"{source}: {of}", **grey)
        loss.plot(range(control.steps + 1), control.loss, label=f"loss: {of}", **grey)
    for name, values, color in ((target, result.nll, OURS), (source, result.source_nll, SOURCE)):
        words.plot(steps, values, color=color, linewidth=0.6, alpha=0.7)
        words.plot(steps, values.mean(1), color=color, linewidth=2.6, label=f"{name}: mean of {values.shape[1]} rows")
    parameters = result.provenance.parameters
    if parameters["stop"] is not None:
        bar = f"P({target}) = {parameters['stop']:g} in every row"
        words.axhline(-log(parameters["stop"]), color="black", linestyle="dotted", linewidth=1, label=f"stops below: {bar}")
    for index, (name, values) in enumerate(_terms(result).items()):
        loss.plot(steps, values, color=OTHERS[index], label=name)
    loss.plot(steps, result.loss, color=OURS, linewidth=2.6, label="loss")
    words.set_ylabel("-log P (nats)")
    words.set_title(f"{source} becomes {target}", fontsize=11)
    loss.set_ylabel("loss and its terms")
    loss.set_title(f"{len(result.neurons)} neurons, norm of the change {result.norm:.1f}", fontsize=11)
    for axes in cells:
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return figure


def _terms(result: Edit) -> dict[str, Any]:
    """Return the terms of the loss times their weights, by name; without locality where none was asked for."""
    gamma, alpha, beta = (float(result.provenance.parameters[name]) for name in ("gamma", "alpha", "beta"))
    terms = {
        "target, mean of rows": result.nll.mean(1),
        f"{gamma:g} x norm of the change": gamma * result.size,
        f"{alpha:g} x KL before the word": alpha * result.kl,
        f"{beta:g} x repetition": beta * result.repetition,
        f"{alpha:g} x KL on other inputs": alpha * result.locality,
    }
    return dict(list(terms.items())[: 5 if bool(result.locality.any()) else 4])
