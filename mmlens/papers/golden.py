"""Units of GPT-J whose words Schwettmann et al. 2023 print: the cheapest test of a real checkpoint, from weights alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmlens.analysis import decode
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons, label
from mmlens.results import Provenance, Result

Unit = tuple[int, int]
GOLDEN: Mapping[Unit, tuple[str, ...]] = {
    (14, 2019): ("horses", "racing", "ponies", "ridden"),
    (7, 15772): ("animals", "embryos", "kittens"),
    (7, 12134): ("aircraft", "flight", "airplanes"),
    (8, 2012): ("whales", "turtles", "birds"),
    (5, 9667): ("workouts", "Training", "trainer"),
    (8, 15435): ("tennis", "tournaments", "golf"),
    (8, 14504): ("upstairs", "homeowners", "apartments"),
    (13, 15107): ("meals", "dinner", "dishes"),
    (9, 8687): ("eaten", "foods", "diet"),
    (11, 9566): ("traffic", "network"),
    (8, 562): ("vehicles", "vehicle", "cars"),
    (13, 107): ("trucks", "trailer", "parked"),
    (17, 10507): ("rivers", "lake", "lakes"),
    (9, 4379): ("river", "stream", "Valley"),
    (12, 9058): ("swimming", "Swim", "swim", "fishes", "water"),
    (5, 4923): ("birds", "cages", "species"),
    (5, 4888): ("Boat", "sails", "boats"),
    (7, 3030): ("Island", "islands", "shore"),
    (9, 9766): ("soccer", "football", "player"),
    (6, 14388): ("march", "treadmill", "marathon"),
    (9, 4691): ("houses", "buildings", "dwellings"),
    (8, 13681): ("sandwiches", "foods", "salad"),
    (5, 13680): ("driver", "drivers", "cars"),
    (7, 6109): ("automobile", "engine", "cars"),
    (13, 5734): ("Chevrolet", "Motorsport", "cars"),
    (7, 3273): ("ride", "riders", "ridden"),
    (6, 5868): ("water", "waters", "river"),
    (7, 7669): ("weather", "season", "forecast"),
}
"""(layer, unit) of GPT-J-6B and words among its top five: figure 1 and table S.1 of the paper (arXiv 2308.01544)."""
DEPTH = 28


@dataclass(frozen=True, kw_only=True, repr=False)
class GoldenUnits(Result):
    """Which of a unit's printed words are among the `k` that its output weights raise most.

    `hits[unit]` is their share, with layers counted from 0, as we read the paper, and, in `earlier`, that of the unit one
    layer before: if those are higher, the paper counts from 1. `words` is what was read.
    """

    neurons: Neurons
    k: int
    hits: Float[Tensor, " unit"]
    earlier: Float[Tensor, " unit"]
    words: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        found = zip(self.neurons, self.hits.tolist(), self.words, strict=True)
        return "\n".join(f"{label(neuron):>12} {hit:.2f}  {', '.join(words)}" for neuron, hit, words in found)


def golden_units(model: HookedMLLM, *, units: Mapping[Unit, tuple[str, ...]] = GOLDEN, k: int = 5) -> GoldenUnits:
    """Return how many of the printed words each of `units` (default: the paper's, of GPT-J-6B) writes.

    No picture is needed: a share near 1 says that layers and units are counted, and weights oriented, as in the paper.
    Raises ValueError for a model that is not as deep or wide as the units ask for.
    """
    widths = model.widths["language"]
    beyond = [unit for unit in units if not (unit[0] < len(widths) and unit[1] < widths[unit[0]])]
    if beyond or (units is GOLDEN and len(widths) != DEPTH):
        raise ValueError(
            f"the paper's units are GPT-J-6B's ({DEPTH} layers of 16384); {model.name} has {len(widths)} of {max(widths)}: "
            "give that model, or `units` of your own"
        )
    neurons = Neurons.of(units, model.widths)
    before = Neurons.of([(max(layer - 1, 0), unit) for layer, unit in units], model.widths)
    read = decode(model, neurons, k=k).words
    return GoldenUnits(
        neurons=neurons,
        k=k,
        hits=_shares(read, units),
        earlier=_shares(decode(model, before, k=k).words, units),
        words=read,
        provenance=Provenance.record(model, (), analysis="golden_units", k=k),
    )


def _shares(read: tuple[tuple[str, ...], ...], units: Mapping[Unit, tuple[str, ...]]) -> Float[Tensor, " unit"]:
    """Return the share of each unit's printed words that were read, spaces aside."""
    pairs = zip(read, units.values(), strict=True)
    return torch.tensor(
        [sum(word in {r.strip() for r in words} for word in printed) / len(printed) for words, printed in pairs]
    )
