"""Which neurons belong to a domain: those whose probability to be active differs most between domains."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmlens.neurons import Neurons


def activation_entropy(probability: Float[Tensor, "label layer unit"]) -> Float[Tensor, "layer unit"]:
    """Return the entropy (nats) of each neuron's probabilities to be active, scaled to sum 1 over labels: DAPE.

    It is 0 for a neuron that is active under one label only, ln(labels) for one that is as active under all, and NaN for one
    that never is: that says nothing about domains (the authors' code gives those 0, the most specific value there is).
    Raises ValueError for numbers that are no probabilities. Source: Huo et al. 2024 (methods C3).
    """
    if probability.ndim != 3 or not bool(((probability >= 0) & (probability <= 1)).all()):
        raise ValueError(
            "probabilities are [label, layer, unit], each from 0 to 1, got "
            f"{list(probability.shape)}{' with NaN' if bool(probability.isnan().any()) else ''}: take "
            'statistics.table("probability")[:, group], of labels that all have examples'
        )
    total = probability.double().sum(0)
    share = probability.double() / total
    return torch.where(total > 0, -torch.special.xlogy(share, share).sum(0), torch.nan)


def low_entropy(
    probability: Float[Tensor, "label layer unit"],
    labels: Sequence[str],
    *,
    widths: Mapping[str, tuple[int, ...]],
    module: str = "language",
    rate: float = 0.01,
    filter_quantile: float = 0.95,
    bar_quantile: float = 0.95,
    layers: int | None = None,
) -> dict[str, Neurons]:
    """Return each label's neurons: of the `rate` of lowest entropy, those more often active under it than the bar.

    Bar and filter are quantiles of all probabilities of the module (of label, layer, unit): a neuron that is under none
    above the filter is left out, and one above the bar under several labels is in several sets. With both at one quantile,
    every chosen neuron is in a set. `rate` is of all of the module's neurons; ties go by (layer, unit). Only the first
    `layers` count, where the rest is not read by the model. Sets are ordered by entropy, which is their score, the lowest
    first.

    Raises ValueError for probabilities that are none or not the module's, and for rates and quantiles outside of 0 to 1.
    Source: Huo et al. 2024 (methods C4 to C6).
    """
    exists = neurons_of(probability, labels, widths, module, layers)
    for name, value in dict(rate=rate, filter_quantile=filter_quantile, bar_quantile=bar_quantile).items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is from 0 to 1, got {value}")
    entropy = activation_entropy(probability.where(exists, torch.zeros(())))
    values = probability[:, exists].flatten()

    def quantile(q: float) -> float:
        return float(values.kthvalue(min(max(round(q * len(values)), 1), len(values))).values)

    kept = exists & (probability.amax(0) > quantile(filter_quantile)) & ~entropy.isnan()
    order = torch.argsort(entropy.where(kept, torch.inf).flatten(), stable=True)
    order = order[: min(round(rate * int(exists.sum())), int(kept.sum()))]
    chosen = Neurons(
        module=(module,) * len(order),
        layer=order // entropy.shape[1],
        unit=order % entropy.shape[1],
        widths=dict(widths),
        score=entropy.flatten()[order].float(),
    )
    above = probability.flatten(1)[:, order] > quantile(bar_quantile)
    return {label: chosen[own.nonzero()[:, 0].tolist()] for label, own in zip(labels, above, strict=True)}


def neurons_of(
    scores: Float[Tensor, "label layer unit"],
    labels: Sequence[str],
    widths: Mapping[str, tuple[int, ...]],
    module: str,
    layers: int | None,
) -> Bool[Tensor, "layer unit"]:
    """Return which entries are neurons that may be chosen. Raises ValueError for scores that are not the module's."""
    if module not in widths:
        raise ValueError(f"this model has the modules {sorted(widths)}, got {module!r}: choose among those")
    own = widths[module]
    expected = [len(labels), len(own), max(own)]
    if list(scores.shape) != expected or len(set(labels)) < len(labels) or not labels:
        raise ValueError(
            f"scores of {module} are [label, layer, unit] {expected} for the different labels {', '.join(labels)}; got "
            f"{list(scores.shape)}"
        )
    if layers is not None and not 1 <= layers <= len(own):
        raise ValueError(f"{module} has {len(own)} layers, got layers={layers}: take from 1 to all of them")
    exists = torch.arange(max(own)) < torch.tensor(own)[:, None]
    exists[len(own) if layers is None else layers :] = False
    if scores[:, exists].isnan().any():
        empty = [label for label, one in zip(labels, scores, strict=True) if one[exists].isnan().any()]
        raise ValueError(f"every label has examples with that group, {empty[0]!r} has none: leave it out")
    return exists
