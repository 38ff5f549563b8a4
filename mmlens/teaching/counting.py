"""Exercises of 12_data_sets, 05_domains and 06_modalities: what is averaged over what, and what chance does."""

import math
from dataclasses import replace
from functools import cache

import torch

from mmlens.analysis import Selection, decode, modality_neurons
from mmlens.data import Example, question_examples
from mmlens.evaluation import Ablation, evaluate
from mmlens.hooks import knock_out
from mmlens.neurons import Neurons
from mmlens.organisms import pictoworld
from mmlens.papers import huang2024
from mmlens.stats import SampleStats
from mmlens.sweeps import sweep
from mmlens.teaching.exercise import compared, exercise, told_apart
from mmlens.teaching.reading import neuron, number, whole, word
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


def by_turns(n: int, seed: int) -> list[Example]:
    """Return `n` questions for a noun about a picture and as many about notes, by turns, up to the noun."""
    scenes = [s for s in pictoworld.scenes("held_out", n=2 * n, seed=seed) if any(q.kind == "color" for q in s.questions)]
    turns: list[Example] = []
    for scene in scenes[:n]:
        for label, notes in (("seen", False), ("read", True)):
            one = question_examples([scene], "color", notes=notes)[0]
            head, _, noun = one.answers[0].rpartition(" ")
            turns.append(replace(one, text=f"{one.text} {head}", answers=(noun,), label=label))
    return turns


@exercise("06/picks", whole)
def picks(given: int) -> str | None:
    """The paper's own partition has three groups, text, special and image. With `strategy="uniform"` and 2 % of 2,560
    neurons in five layers, how many picks does its code make, which drops the rests of divisions (`exact=False`)?
    """
    wanted = int(0.02 * 2560)
    each = wanted // (5 * 3)
    mistakes = {
        "that is how many are wanted; they are shared out evenly, and a rest is dropped": [wanted, wanted + 1],
        "that is with two groups, as in this notebook": [wanted // (5 * 2) * 5 * 2],
        "that is of each layer and each group": [each],
        "that is of each group, in all layers; there are three": [each * 5],
        "that is in each layer, of all groups; there are five": [each * 3],
    }
    return told_apart(given, each * 5 * 3, mistakes, "each of the five layers gives each of the three groups as many")


@cache
def of_modalities() -> Selection:
    """Return the sets of image and text."""
    model = organism("pictoworld")
    counts = SampleStats(model.widths, groups=("image", "text"), **huang2024.STATISTICS)
    return modality_neurons(sweep(model, by_turns(60, 53), {"counts": counts}, batch_size=30, progress=False)["counts"])


@exercise("06/in-both", neuron)
def in_both(given: tuple[int, int]) -> str | None:
    """Two neurons are in both sets, of `modalities["image"]` and of `modalities["text"]`. Which of the two is more important
    to image?
    """
    image, text = ([own[1:] for own in neurons] for neurons in of_modalities().sets.values())
    first, *others = [own for own in image if own in text]  # a set is ordered by importance
    mistakes = {
        "it is in both, but the other one is more important to image": others,
        "that one is in the set of image only": image,
        "that one is in the set of text only": text,
    }
    return told_apart(
        given, first, mistakes, 'it is in neither set; see (modalities["image"] & modalities["text"]).labels()'
    )


@cache
def without_street() -> dict[str, dict[str, float]]:
    """Return what cables and wheels lose with L0.u176 held at 0 or at its mean, by noun and whether it is seen or read."""
    model, nouns = organism("pictoworld"), ("cable", "wheel")
    tasks = [replace(e, label=f"{e.answers[0]}, {e.label}") for e in by_turns(150, 55) if e.answers[0] in nouns]
    one = Neurons.of([(0, 176)], model.widths)
    arms = {"zero": one, "mean": Ablation(one, value="mean")}
    found = evaluate(model, tasks, "margin", arms, draws=0, progress=False).matrix("difference")
    return {arm: found.loc[arm].to_dict() for arm in arms}


@exercise("06/at-its-mean", number)
def at_its_mean(given: float) -> str | None:
    """Zero may be far from what a neuron usually does. What does it cost "cable, seen" (the mean change of the margin, with
    `fresh` evaluated and nothing else) to hold `strong` at its mean, by `Ablation(strong, value="mean")`?
    """
    costs = without_street()
    mistakes = {
        'that is held at 0: Ablation(strong, value="mean")': costs["zero"]["cable, seen"],
        "that is of wheels": costs["mean"]["wheel, seen"],
        "that is of cables that are read": costs["mean"]["cable, read"],
    }
    return compared(
        given, costs["mean"]["cable, seen"], mistakes, "evaluate(model, fresh, ...): the mean is of what is evaluated"
    )
