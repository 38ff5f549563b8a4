"""How important each neuron is to each modality: what its activations at that modality's positions come to."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mmlens.stats import Statistics

WEIGHTINGS: dict[str, dict[str, float]] = {
    "probability": {"probability": 1.0},
    "mean": {"mean": 1.0},
    "max": {"max": 1.0},
    "attn_k": {"attn_k": 1.0},
    "attn_q": {"attn_q": 1.0},
    "mean_max": {"mean": 0.5, "max": 0.5},
    "attn": {"attn_k": 0.5, "attn_q": 0.5},
    "mean_max_attn_k": {"mean": 0.25, "max": 0.25, "attn_k": 0.5},
    "mean_max_attn_q": {"mean": 0.25, "max": 0.25, "attn_q": 0.5},
    "equal": {"probability": 0.2, "mean": 0.2, "max": 0.2, "attn_k": 0.2, "attn_q": 0.2},
}
"""The ten of Huang et al. 2024 (methods 4.d), under names of ours; theirs by default is `mean_max_attn_k`."""


def importance(
    statistics: Statistics,
    weights: str | Mapping[str, float] = "mean_max_attn_k",
    *,
    groups: Sequence[str] | None = None,
    module: str = "language",
    absent_as_zero: bool = False,
) -> Float[Tensor, "group layer unit"]:
    """Return the weighted sum of each neuron's statistics by group of positions, averaged over data sets: MINER's scores.

    `statistics` are of a `SampleStats` that scaled each example's layer to 0..1 (`normalise="minmax"`); its labels are the
    data sets, each of which counts once for the groups that it has. `weights` is one of `WEIGHTINGS`, or a weight for each
    statistic. `groups` are those wanted (None: all that any example has). `absent_as_zero` counts examples without a group
    as zeros, as the authors' code does, which makes groups small that are rare; a data set's examples are then as many as
    have its most frequent group, so gather "all" too where no other group is in every example.

    Raises ValueError for statistics by tokens, weights and groups that are none, and groups that no example has. Source:
    Huang et al. 2024 (methods 4.c, 4.d).
    """
    if statistics.weighting != "samples":
        raise ValueError("importance is a mean over examples, got statistics by tokens: gather them with SampleStats")
    if not weights or (isinstance(weights, str) and weights not in WEIGHTINGS):
        raise ValueError(f"weights are one of {', '.join(WEIGHTINGS)}, or a number for each statistic; got {weights!r}")
    chosen = WEIGHTINGS[weights] if isinstance(weights, str) else weights
    if missing := [name for name in chosen if name not in statistics.totals]:
        raise ValueError(
            f"these statistics are {', '.join(statistics.totals)}, and weights are of {', '.join(missing)} too: gather "
            'with SampleStats(..., statistics=("probability", "mean", "max", "attn_k", "attn_q"))'
        )
    places = [statistics.groups.index(group) for group in present(statistics, groups, module)]
    counts = statistics.samples[module][:, places].double()
    total = sum(weight * statistics.totals[name][module][:, places].double() for name, weight in chosen.items())
    assert isinstance(total, Tensor)
    shown = statistics.samples[module].amax(1, keepdim=True).expand_as(counts) if absent_as_zero else counts
    by_data_set = torch.where(counts[..., None, None] > 0, total / shown[..., None, None], torch.nan)
    return by_data_set.nanmean(0)


def present(statistics: Statistics, groups: Sequence[str] | None, module: str) -> tuple[str, ...]:
    """Return `groups`, or all that any example has. Raises ValueError for one that is not there, or that none has."""
    if module not in statistics.samples:
        raise ValueError(f"these statistics are of {', '.join(statistics.samples)}, got {module!r}")
    there = statistics.samples[module].sum(0).tolist()
    known = tuple(group for group, count in zip(statistics.groups, there, strict=True) if count)
    if groups is None:
        return known
    if wrong := [group for group in groups if group not in known]:
        raise ValueError(f"examples here have the groups {', '.join(known)}, got {wrong[0]!r}: choose among those")
    return tuple(groups)
