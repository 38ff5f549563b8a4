"""What sets of neurons have in common: under a shuffled picture, across pictures, across nouns, and layer by layer."""

from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from mmlens.hooks import Hook, permute
from mmlens.inputs import Inputs
from mmlens.neurons import Neuron, Neurons
from mmlens.results import Storable


@dataclass(frozen=True, eq=False)
class Ranked(Storable):
    """The neurons of a noun in a picture, best first, by any score."""

    image: str
    noun: str
    neurons: Neurons


@dataclass(frozen=True, eq=False)
class Overlaps(Storable):
    """How much each of some pairs of rankings share of their first k neurons, from 0 to 1, and how much chance alone would.

    `images` and `nouns` are those of both; `chance` is what random sets with as many neurons in each layer share on average.
    """

    k: int
    images: tuple[tuple[str, str], ...]
    nouns: tuple[tuple[str, str], ...]
    overlap: Float[Tensor, " pair"]
    chance: Float[Tensor, " pair"]

    def __len__(self) -> int:
        return len(self.nouns)

    def __repr__(self) -> str:
        shown = f"{float(self.overlap.mean()):.3f} of the first {self.k}, {float(self.chance.mean()):.3f} by chance"
        return f"Overlaps({len(self)} pairs: {shown})"

    def within(self, *, same_image: bool) -> Bool[Tensor, " pair"]:
        """Return which pairs are of one image, or of two."""
        return torch.tensor([(a == b) == same_image for a, b in self.images], dtype=torch.bool)


@dataclass(frozen=True, eq=False)
class Shared(Storable):
    """The fraction of the first k neurons that all rankings of a noun have, beside the mean of its pairs of rankings."""

    noun: str
    rankings: int
    pairwise: float
    intersection: float
    chance: float


def overlap(a: Neurons, b: Neurons, k: int) -> float:
    """Return the fraction of the first `k` neurons that two rankings share. Raises ValueError where one has fewer."""
    return len(_first(a, k) & _first(b, k)) / k


def region_invariance(original: Sequence[Ranked], shuffled: Sequence[Ranked], k: int) -> Overlaps:
    """Return RI_k: what each noun's ranking shares with that of the same noun and image after the image was shuffled.

    Nouns that are in one of the two only (no longer written, or only then) are left out: compare the lengths. Raises
    ValueError for two rankings of one noun in one image. See `shuffle_image` for the second run.

    Pan et al. 2024 have the measure (methods B6, B8); its formula is from memory there, and ours: |S_k & S_k'| / k.
    """
    after = _by_key(shuffled)
    pairs = [(one, after[key]) for key, one in _by_key(original).items() if key in after]
    return _paired(pairs, k)


def cross_image_invariance(rankings: Sequence[Ranked], k: int) -> dict[str, Shared]:
    """Return CII_k of each noun that has rankings in two images or more: their pairwise overlap, and what all of them share.

    The first is well defined for any number of images; the second falls with each image more. Pan et al. 2024 have the
    measure (methods B8), whose formula is not known to us: both are ours.
    """
    by_noun: defaultdict[str, list[Ranked]] = defaultdict(list)
    for one in _by_key(rankings).values():
        by_noun[one.noun].append(one)
    found: dict[str, Shared] = {}
    for noun, ours in by_noun.items():
        if len(ours) > 1:
            pairs = _paired(list(combinations(ours, 2)), k)
            everywhere = set.intersection(*(_first(one.neurons, k) for one in ours))
            mean, chance = float(pairs.overlap.mean()), float(pairs.chance.mean())
            found[noun] = Shared(noun, len(ours), mean, len(everywhere) / k, chance)
    return found


def specificity(rankings: Sequence[Ranked], k: int) -> Overlaps:
    """Return what rankings of different nouns share, for all pairs: specificity is 1 - `found.overlap.mean()`.

    Two nouns of one image share what is about the image: `found.overlap[found.within(same_image=True)]` is theirs. Pan et
    al. 2024 have the measure (methods B8), whose formula is from memory there: this one is ours, and so is the split.
    """
    return _paired([(a, b) for a, b in combinations(rankings, 2) if a.noun != b.noun], k)


def layer_histogram(
    rankings: Iterable[Neurons],
    k: int | None = None,
    *,
    keep: Container[Neuron] | None = None,
    module: str = "language",
) -> Int[Tensor, " layer"]:
    """Return how many different neurons of each layer are among the first `k` of any ranking (all of each: None).

    `keep` counts only neurons in it, the interpretable ones for instance. Raises ValueError where there is no ranking.
    Source: Schwettmann et al. 2023, S.6 (methods A12): k = 100, all and interpretable.
    """
    rankings = list(rankings)
    if not rankings:
        raise ValueError("layers are counted over one ranking or more, got none")
    unique = set[Neuron]().union(*(set(one if k is None else _first(one, k)) for one in rankings))
    layers = [layer for own, layer, unit in unique if own == module and (keep is None or (own, layer, unit) in keep)]
    return torch.bincount(torch.tensor(layers, dtype=torch.long), minlength=len(rankings[0].widths[module]))


def shuffle_image(inputs: Inputs, *, seed: int) -> list[Hook]:
    """Return the hooks that shuffle the positions of a row's images among each other, where the first block reads them.

    Positions and rotary angles stay. For `model.generate(inputs, fwd_hooks=...)`, and with the same order for every run of
    inputs that go on from these (`with model.hooks(fwd_hooks=...): ...`). What DeepStack adds in later layers is not
    shuffled. Raises ValueError for several rows, whose images would not stay at their positions as the rows grow.

    Source: Pan et al. 2024 (methods B6).
    """
    if len(inputs) != 1:
        raise ValueError(f"images are shuffled in one row, which others go on from, got {len(inputs)} rows")
    where = inputs.mask("image")

    def shuffle(activation: Tensor, hook: Any) -> Tensor | None:
        longer = max(activation.shape[1] - where.shape[1], 0)
        return permute(pad(where, (0, longer)), seed=seed)(activation, hook=hook)

    return [("blocks.0.hook_resid_pre", shuffle)]


def _first(ranking: Neurons, k: int) -> set[Neuron]:
    if not 1 <= k <= len(ranking):
        raise ValueError(f"the first k of a ranking of {len(ranking)} neurons are 1 to {len(ranking)}, got k = {k}")
    return set(ranking[:k])


def _by_key(rankings: Sequence[Ranked]) -> dict[tuple[str, str], Ranked]:
    found = {(one.image, one.noun): one for one in rankings}
    if len(found) < len(rankings):
        raise ValueError(
            "a noun has one ranking in an image, and some have several: take one of them, or their mean score's"
        )
    return found


def _paired(pairs: Sequence[tuple[Ranked, Ranked]], k: int) -> Overlaps:
    """Return what each pair shares; of every ranking, its set is made once."""
    members = {id(one): (one, _first(one.neurons, k)) for pair in pairs for one in pair}
    layers = {key: one.neurons[:k].by_layer() for key, (one, _) in members.items()}

    def chance(a: Ranked, b: Ranked) -> float:
        ours, theirs = layers[id(a)], layers[id(b)]
        both = [
            (len(units), len(theirs[key]), a.neurons.widths[key[0]][key[1]]) for key, units in ours.items() if key in theirs
        ]
        return sum(own * other / width for own, other, width in both) / k

    return Overlaps(
        k=k,
        images=tuple((a.image, b.image) for a, b in pairs),
        nouns=tuple((a.noun, b.noun) for a, b in pairs),
        overlap=torch.tensor([len(members[id(a)][1] & members[id(b)][1]) / k for a, b in pairs]),
        chance=torch.tensor([chance(a, b) for a, b in pairs]),
    )
