"""Exercises of 12_data_sets and 05_domains: what is averaged over what, and what chance does."""

import math
from functools import cache

import torch

from mmlens.analysis import decode
from mmlens.data import Example
from mmlens.evaluation import evaluate
from mmlens.hooks import knock_out
from mmlens.neurons import Neurons
from mmlens.organisms import pictoworld
from mmlens.teaching.exercise import compared, exercise, told_apart
from mmlens.teaching.reading import number, whole, word
from mmlens.teaching.shared import organism


@exercise("12/two-means", number)
def two_means(given: float) -> str | None:
    """In one example a neuron is above 0 at 10 of 64 image positions, in another at 6 of 8. Which `probability` does
    `SampleStats` give it, which weighs examples alike?
    """
    first, second = 10 / 64, 6 / 8
    mistakes = {
        "that weighs positions alike, as TokenStats does: the example with more of them counts more": (10 + 6) / (64 + 8),
        "that is the sum over examples: take their mean": first + second,
        "in per cent; a probability lies between 0 and 1": 50 * (first + second),
    }
    return compared(given, (first + second) / 2, mistakes, "a probability for each example first, then the mean of both")


@exercise("12/how-many-draws", whole)
def how_many_draws(given: int) -> str | None:
    """A permutation test counts the chosen neurons among the random sets: if none of n random sets does as much, p is 1 /
    (n + 1). How many random sets does p = 0.05 need at least?
    """
    right = math.ceil(1 / 0.05) - 1
    mistakes = {
        "nearly: the chosen neurons are one of those that are counted": [right + 1],
        "that many give a p just above it": [right - 1],
        "that is what the notebook draws; what p do they come to at best?": [10],
    }
    return told_apart(given, right, mistakes, "solve 1 / (n + 1) = 0.05")


@cache
def blinded() -> dict[str, float]:
    """Return what it costs "bridge" that some positions may not look at the picture: text, the last one, or in layer 0."""
    model, rows = organism("pictoworld-frozen"), []
    for scene in pictoworld.scenes("held_out", n=218):
        rows += [(scene, q) for q in scene.questions if q.kind == "color" and q.answer == "the bridge"]
    tasks = [Example(q.text, images=scene.image, answers=(q.answer,), label="bridge") for scene, q in rows[:16]]
    arms = {
        "text": lambda inputs: knock_out(inputs.mask("text"), inputs.mask("image")),
        "first": lambda inputs: knock_out(inputs.mask("text"), inputs.mask("image"), layers=[0]),
        "last": lambda inputs: knock_out(inputs.last(), inputs.mask("image")),
    }
    found = evaluate(model, tasks, "log_prob", arms, draws=0, progress=False).matrix("difference")
    return found["bridge"].to_dict()


@exercise("12/blind", number)
def blind(given: float) -> str | None:
    """The row `last position blind` of `more` is next to nothing. No wonder: an answer is part of the inputs that are
    scored, so `inputs.last()` is its last word, after which nothing is asked for. What does it cost the log-probability of
    "bridge" (the mean, as in `more.matrix("difference")`) if no *text* position may look at the picture, in any layer?
    """
    costs = blinded()
    mistakes = {
        "that is with the last position blind: it stands behind the word that is asked for": costs["last"],
        "that is in layer 0 alone: without layers= it is in all of them": costs["first"],
    }
    return compared(
        given, costs["text"], mistakes, 'hooks.knock_out(inputs.mask("text"), inputs.mask("image")), column bridge'
    )


@exercise("05/entropy", number)
def entropy(given: float) -> str | None:
    """A neuron is above 0 at 90 % of the positions in one domain, at 45 % in each of two others, and never in the last two.
    How large is its entropy over domains, in nats, as `domain_neurons` counts it (rates are scaled to sum 1)?
    """
    rates = torch.tensor([0.9, 0.45, 0.45], dtype=torch.float64)
    shares = rates / rates.sum()
    right = torch.special.entr(shares).sum().item()
    mistakes = {
        "in bits; nats take the natural logarithm": right / math.log(2),
        "these rates sum to 1.8: scale them to sum 1 first": torch.special.entr(rates).sum().item(),
        "as a share of ln 5; the entropy itself is asked for": right / math.log(5),
    }
    return compared(given, right, mistakes, "- sum of p ln p over the domains; 0 ln 0 is 0")


@exercise("05/other-side", word)
def other_side(given: str) -> str | None:
    """The neuron `costly` writes "satellite" where its activation is positive. Gated activations may be negative: what is
    the first word that it writes then?
    """
    model = organism("pictoworld")
    one = Neurons.of([(4, 272)], model.widths)
    plus, minus = (decode(model, one, k=10, sign=torch.tensor([sign])).words[0] for sign in (1.0, -1.0))
    mistakes = {
        "that is what it writes by its positive side: decode takes sign=": [said.strip() for said in plus],
        "it is among the ten words, but not the first": [said.strip() for said in minus[1:]],
    }
    return told_apart(given, minus[0].strip(), mistakes, "decode(model, neurons, sign=torch.tensor([-1.0]))")


@exercise("05/by-chance", number)
def by_chance(given: float) -> str | None:
    """Two random sets of 128 of the 2,560 neurons: what is their Jaccard index (shared neurons by neurons in either), if
    they share as many as are to be expected? (Random draws of your own come near enough if there are many.)
    """
    shared = 128 * 128 / 2560
    mistakes = {
        "that is how many they share: divide by how many are in either": shared,
        "that is the share of one set; the Jaccard index divides by the union": shared / 128,
    }
    if abs(given - shared / 256) < 1e-6:  # within what random draws may come to, unless it is exactly this
        return "neurons in both are counted twice in 128 + 128"
    return compared(given, shared / (256 - shared), mistakes, "each of the 128 is in the other set with 5 %", within=0.1)
