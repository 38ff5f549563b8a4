"""Which neurons belong to a modality: a fixed number of the most important ones, shared out over layers and modalities."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mmlens.analysis.selectivity.entropy import neurons_of
from mmlens.neurons import Neurons

Strategy = Literal["adaptive", "adaptive_joint", "LA_MU", "LU_MA", "uniform", "random"]


def by_quota(
    importance: Float[Tensor, "group layer unit"],
    groups: Sequence[str],
    *,
    widths: Mapping[str, tuple[int, ...]],
    module: str = "language",
    ratio: float = 0.02,
    strategy: Strategy = "LA_MU",
    exact: bool = True,
    replacement: bool = False,
    layers: int | None = None,
    seed: int = 0,
) -> dict[str, Neurons]:
    """Return each group's neurons: K = int(ratio x neurons) picks, shared out by `strategy` (L layers, M groups).

    - "adaptive": the K neurons with the largest sum over groups, each given to the group that it is most important to;
    - "adaptive_joint": the K largest of all (group, layer, unit);
    - "LA_MU" (layer adaptive, modality uniform): for each group its K // M largest;
    - "LU_MA": for each layer its K // L largest of all (group, unit);
    - "uniform": for each layer and group the K // (L M) largest;
    - "random": K neurons drawn by `seed`, in one set "random", with `replacement` as the authors' code does, or without.

    But for "adaptive" and "random", a neuron may be picked for several groups: unions can be smaller than K. The divisions
    leave a rest, which the authors' code drops; with `exact=True` it goes, one each, to the shares whose next neuron is the
    most important, so that picks are K. Ties go by (group, layer, unit). Sets are ordered by importance, their score. Only
    the first `layers` count, where the rest is not read by the model. A random set that matches another layer by layer is
    `Neurons.random_like`.

    Raises ValueError for importances that are not the module's, a ratio outside of 0 to 1, another strategy, and shares that
    are larger than what they are taken from. Source: Huang et al. 2024 (methods 4.e); "adaptive_joint" and the rest's use
    were in their code for a day.
    """
    if strategy not in get_args(Strategy):
        raise ValueError(f"a strategy is one of {', '.join(get_args(Strategy))}, got {strategy!r}")
    if not 0 <= ratio <= 1:
        raise ValueError(f"the ratio is from 0 to 1, got {ratio}")
    exists = neurons_of(importance, groups, widths, module, layers)
    units, k = importance.shape[2], int(ratio * int(exists.sum()))
    if strategy == "random":
        generator, everyone = torch.Generator().manual_seed(seed), exists.flatten().nonzero()[:, 0]
        if replacement:
            drawn = everyone[torch.randint(len(everyone), (k,), generator=generator)].unique()
        else:
            drawn = everyone[torch.randperm(len(everyone), generator=generator)[:k]]
        return {"random": _neurons(drawn, None, units, widths, module)}
    scores = importance.double().masked_fill(~exists, -torch.inf)
    if strategy == "adaptive":
        best = _ranked(scores.sum(0).flatten())[:k]
        owner = scores.flatten(1)[:, best].argmax(0)
        picked = [best[owner == group] for group in range(len(groups))]
    else:
        group, place = _shared_out(scores, strategy, k, exact)
        picked = [place[group == own] for own in range(len(groups))]
    return {
        name: _neurons(_ranked(flat, own), flat, units, widths, module)
        for name, own, flat in zip(groups, picked, scores.flatten(1), strict=True)
    }


def _shared_out(scores: Float[Tensor, "group layer unit"], strategy: Strategy, k: int, exact: bool) -> tuple[Tensor, Tensor]:
    """Return the group and the place (layer x units + unit) of each pick: every share's largest, and what is left over."""
    m, l, n = scores.shape
    index = torch.arange(m * l * n).view(m, l, n)
    live = l if strategy == "adaptive_joint" else int((scores[0] > -torch.inf).any(1).sum())
    cut = {
        "adaptive_joint": index.reshape(1, -1),
        "LA_MU": index.reshape(m, -1),
        "LU_MA": index[:, :live].transpose(0, 1).reshape(live, -1),
        "uniform": index[:, :live].reshape(m * live, n),
    }[strategy]
    flat, (share, rest) = scores.flatten(), divmod(k, len(cut))
    rest = rest if exact else 0
    smallest = int((flat[cut] > -torch.inf).sum(1).min())
    if share + bool(rest) > smallest:
        raise ValueError(
            f"{strategy} takes {share + bool(rest)} neurons of each share, and one has {smallest}: lower the ratio"
        )
    ranked = torch.stack([_ranked(flat, row) for row in cut])
    further = _ranked(flat, ranked[:, share])[:rest] if rest else ranked.new_empty(0)
    picked = torch.cat([ranked[:, :share].flatten(), further])
    return picked // (l * n), picked % (l * n)


def _ranked(values: Tensor, places: Tensor | None = None) -> Tensor:
    """Return `places` (None: all), the one of the largest value first; equal ones by place."""
    places = torch.arange(len(values)) if places is None else places.sort().values
    return places[torch.argsort(values[places], descending=True, stable=True)]


def _neurons(
    places: Tensor, scores: Tensor | None, units: int, widths: Mapping[str, tuple[int, ...]], module: str
) -> Neurons:
    return Neurons(
        module=(module,) * len(places),
        layer=places // units,
        unit=places % units,
        widths=dict(widths),
        score=None if scores is None else scores[places].float(),
    )
