"""How far scores of the same neurons agree, beside what they would if neither knew anything of the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.stats import rankdata
from torch import Tensor

from mmlens.neurons import top_k
from mmlens.results import Storable

QUANTILE = 0.95


@dataclass(frozen=True, eq=False)
class Agreement(Storable):
    """How far each two of `scores` (their names) agree on the order of neurons.

    `overlap`: the share of the `k` highest of one that are among the `k` highest of the other. `spearman`: the rank
    correlation over the units of each layer, NaN where a score is the same for all of them. `*_null` and `*_bar` are the
    mean and the 95 % quantile of the overlap, and of the correlation's absolute value, over `draws` shuffles of units within
    their layers: two scores that agree on layers alone overlap as far as that. On a diagonal a score meets its own shuffles.
    """

    scores: tuple[str, ...]
    k: int
    draws: int
    seed: int
    overlap: Float[Tensor, "score score"]
    overlap_null: Float[Tensor, "score score"]
    overlap_bar: Float[Tensor, "score score"]
    spearman: Float[Tensor, "score score layer"]
    spearman_null: Float[Tensor, "score score layer"]
    spearman_bar: Float[Tensor, "score score layer"]

    def __repr__(self) -> str:
        return f"Agreement({', '.join(self.scores)}: top {self.k} overlap and rank correlation, {self.draws} shuffles)"


def agreement(
    scores: Mapping[str, Float[Tensor, "layer unit"]],
    *,
    k: int,
    widths: Sequence[int] | None = None,
    draws: int = 100,
    seed: int = 0,
) -> Agreement:
    """Return how far scores of the same neurons agree: overlap of the `k` highest, rank correlation layer by layer.

    `widths`: the units of each layer (`model.widths["language"]`), where they are not all the same. Beside both stands what
    shuffling the units within their layers leaves, `draws` times: layers keep the numbers of units that they have among the
    highest. Ties rank alike, and are broken in (layer, unit) order among the highest. Raises ValueError for scores of
    differing shapes, that are not finite, or have not `k` units. Source: Spearman 1904; the null is ours.
    """
    names = tuple(scores)
    if not names or len({one.shape for one in scores.values()}) > 1:
        raise ValueError(
            "scores that are compared are of the same neurons, [layer, unit]; got "
            + (", ".join(f"{name} {list(one.shape)}" for name, one in scores.items()) or "none")
        )
    depth, width = scores[names[0]].shape
    own = (width,) * depth if widths is None else tuple(widths)
    if draws < 1:
        raise ValueError(f"a null is of 1 draw or more, got {draws}")
    for name, one in scores.items():
        finite = all(bool(values[:units].isfinite().all()) for values, units in zip(one, own, strict=True))
        if not finite:
            raise ValueError(f"scores are finite numbers, {name} has others: take neurons that both scores know")
    top, ranks = _highest(scores, k, own), [_ranks(scores, layer, units) for layer, units in enumerate(own)]
    rng = np.random.default_rng(seed)
    overlaps = np.zeros((draws, len(names), len(names)))
    correlations = np.zeros((draws, len(names), len(names), depth))
    for draw in range(draws):
        for layer, units in enumerate(own):
            order = rng.permuted(np.tile(np.arange(units), (len(names), 1)), axis=1)  # each score by its own
            shuffled = np.take_along_axis(ranks[layer], order, 1)
            correlations[draw, ..., layer] = np.abs(ranks[layer] @ shuffled.T)
            overlaps[draw] += top[layer] @ np.take_along_axis(top[layer], order, 1).T / k
    return Agreement(
        scores=names,
        k=k,
        draws=draws,
        seed=seed,
        overlap=torch.from_numpy(np.sum([layer @ layer.T for layer in top], axis=0) / k),
        overlap_null=_mirrored(overlaps.mean(0)),
        overlap_bar=_mirrored(np.quantile(overlaps, QUANTILE, axis=0)),
        spearman=torch.from_numpy(np.stack([layer @ layer.T for layer in ranks], axis=-1)),
        spearman_null=_mirrored(correlations.mean(0)),
        spearman_bar=_mirrored(np.quantile(correlations, QUANTILE, axis=0)),
    )


def _highest(scores: Mapping[str, Tensor], k: int, widths: tuple[int, ...]) -> list[ndarray]:
    """Return, for each layer, which of its units are among each score's `k` highest, [score, unit] of 0 and 1."""
    found = [np.zeros((len(scores), width)) for width in widths]
    for number, one in enumerate(scores.values()):
        for _, layer, unit in top_k(one, k, widths={"language": widths}):
            found[layer][number, unit] = 1
    return found


def _ranks(scores: Mapping[str, Tensor], layer: int, width: int) -> Float[ndarray, "score unit"]:
    """Return the ranks of a layer's units, centred and of length 1, so that products are correlations; NaN if all tie."""
    values = np.stack([one[layer, :width].detach().cpu().double().numpy() for one in scores.values()])
    ranks = rankdata(values, axis=1)
    ranks = ranks - ranks.mean(1, keepdims=True)
    length = np.linalg.norm(ranks, axis=1, keepdims=True)
    return np.divide(ranks, length, out=np.full_like(ranks, np.nan), where=length > 0)


def _mirrored(null: Float[ndarray, "score score *layer"]) -> Float[Tensor, "score score *layer"]:
    """Return a table in which the two shuffles of a pair, of one against the other and the reverse, are meaned."""
    return torch.from_numpy((null + null.swapaxes(0, 1)) / 2)
