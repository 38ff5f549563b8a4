"""How the last position becomes the answer, layer by layer, with and without the neurons that were switched off."""

from jaxtyping import Bool
from torch import Tensor

from mmlens import plot
from mmlens.analysis import Convergence, last_token_convergence
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.tour.found import Found
from mmlens.tour.page import Section


def section(model: HookedMLLM, found: Found, neurons: Neurons) -> Section:
    """Return the section on the last position, in the whole model and without `neurons` at the image positions."""
    where = found.inputs.mask("image")
    result = last_token_convergence(model, found.inputs, neurons=neurons, where=where, draws=found.draws, seed=found.seed)
    found.save("convergence", result)
    return Section(
        f'When does the last position become "{found.word}"?',
        sentence(result, found.word, len(neurons)),
        plot.convergence(result),
        "Curves by layer: the last position's cosine and divergence, and how similar it is to groups and looks at them",
        "The word is said at the last position. Cosine: how similar its stream is to what it ends as, and to the mean "
        "direction of the image, text and special positions. KL: how far what it reads as (logit lens) is from the output. "
        "Share of attention: averaged over heads. Each run is compared with its own end.",
    )


def sentence(result: Convergence, word: str, number: int) -> str:
    """Return where in depth the position turns to its end, where it looks at the picture, and what the neurons change."""
    cosine, kl = result.cosine[:, 0], result.clean.kl[:, 0]
    last, near, read = len(cosine) - 1, _from(cosine >= 0.5), _from(kl <= kl[0] / 10)
    looks = result.clean.mass[result.groups.index("image"), :, 0]
    most = int(looks.argmax())
    ours, random = result.difference("cosine")[:, 0], result.random_difference("cosine")[:, :, 0]
    at = int(ours.abs().argmax())
    low, high = (_signed(float(one)) for one in (random[:, at].min(), random[:, at].max()))
    these = "the neuron" if number == 1 else f"the {number} neurons"
    return (
        f'The last position, where "{word}" is said, is more like its end than not {_since(near, last)} (cosine '
        f"{cosine[near]:.2f}; {cosine[0]:.2f} at the start of layer 0). What it reads as is at most a tenth as far from the "
        f"output as at first {_since(read, last)} ({kl[read]:.2f} nats; {kl[0]:.2f} at first). It looks most at the picture "
        f"in layer {most}: {looks[most]:.0%} of its attention. Without {these} switched off above, its cosine changes most "
        f"at the start of layer {at}, by {_signed(float(ours[at]))}; without as many random ones, there, by {low} to {high} "
        f"({len(random)} draws)."
    )


def _from(enough: Bool[Tensor, " layer"]) -> int:
    """Return the first layer from which on it is so to the end, where it always is."""
    return len(enough) - int(enough.flip(0).int().cumprod(0).sum())


def _since(layer: int, last: int) -> str:
    return "at the output only" if layer == last else f"from the start of layer {layer} on"


def _signed(number: float) -> str:
    return f"{round(number, 2) + 0.0:+.2f}"
