"""How sure a mean is when examples come in clusters: an interval by bootstrap, a p-value by flipping signs."""

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import bootstrap, permutation_test

LEVEL = 0.95
AT_ONCE = 1 << 22  # numbers that are drawn together


def interval(
    values: Float[np.ndarray, " example"], clusters: Int[np.ndarray, " example"], *, resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `values`: percentiles of the means of clusters drawn with replacement.

    It is NaN where there is one cluster, of which nothing can be drawn.
    """
    sums, sizes = _by_cluster(values, clusters)
    if len(sums) < 2:
        return float("nan"), float("nan")
    if np.ptp(sums / sizes) == 0:  # all draws are equal, but for rounding
        return float(values.mean()), float(values.mean())
    found = bootstrap(
        (sums, sizes),
        lambda total, size, axis: total.sum(axis) / size.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, AT_ONCE // len(sums)),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def sign_flip(
    differences: Float[np.ndarray, " example"],
    clusters: Int[np.ndarray, " example"],
    *,
    resamples: int = 9999,
    seed: int = 0,
) -> float:
    """Return how likely a mean as far from 0 is where each cluster's differences could as well have the other sign.

    Two-sided; all signs are tried where that is no more than `resamples`, else so many are drawn. It is 1 where no example
    differs.
    """
    sums, _ = _by_cluster(differences, clusters)
    sums = sums[sums != 0]  # of these, either sign is the same
    if len(sums) < 2:  # the other sign of one is as far from 0
        return 1.0
    found = permutation_test(
        (sums,),
        lambda signed, axis: signed.sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, AT_ONCE // len(sums)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _by_cluster(
    values: Float[np.ndarray, " example"], clusters: Int[np.ndarray, " example"]
) -> tuple[Float[np.ndarray, " cluster"], Float[np.ndarray, " cluster"]]:
    """Return each cluster's sum and its number of examples."""
    _, own = np.unique(clusters, return_inverse=True)
    return np.bincount(own, weights=values), np.bincount(own).astype(np.float64)
