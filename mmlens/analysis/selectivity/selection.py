"""Sets of neurons by domain or modality: how many there are in each layer, and which of them they share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations
from operator import or_
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlens.analysis.selectivity.entropy import activation_entropy, low_entropy
from mmlens.analysis.selectivity.importance import importance, present
from mmlens.analysis.selectivity.quota import Strategy, by_quota
from mmlens.neurons import Neurons
from mmlens.results import Result
from mmlens.stats import Statistics

MOST = 10  # sets of which all combinations can still be read


@dataclass(frozen=True, kw_only=True, repr=False)
class Selection(Result):
    """The neurons of one module that were chosen for each label (a domain, a modality): `selection["dawn"]`.

    A neuron may be in several sets. `score` is what they were chosen by: the entropy [layer, unit] of `domain_neurons`
    (nats; NaN where never active), the importance [group, layer, unit] of `modality_neurons`.
    """

    module: str
    sets: dict[str, Neurons]
    score: Float[Tensor, "*group layer unit"]

    def __getitem__(self, label: str) -> Neurons:
        """Return the neurons of a label. Raises KeyError for one that is not there."""
        if label not in self.sets:
            raise KeyError(f"these are the neurons of {', '.join(self.sets)}, got {label!r}")
        return self.sets[label]

    def __repr__(self) -> str:
        return f"Selection of {self.module}: {', '.join(f'{len(own)} of {label}' for label, own in self.sets.items())}"

    def union(self, *labels: str) -> Neurons:
        """Return the neurons of any of `labels` (of all, where none is named), in the order of the sets."""
        return reduce(or_, [self[label] for label in labels or self.sets])

    def only(self, label: str) -> Neurons:
        """Return the neurons of a label that no other label has."""
        return reduce(lambda own, other: own - other, [own for name, own in self.sets.items() if name != label], self[label])

    def counts(self) -> Int[Tensor, "label layer"]:
        """Return how many neurons each label has in each layer."""
        depth = len(next(iter(self.sets.values())).widths[self.module])
        return torch.stack([torch.bincount(own.layer, minlength=depth) for own in self.sets.values()])

    def memberships(self) -> Int[Tensor, " sets"]:
        """Return how many neurons are in exactly 1, 2, ... of the sets."""
        return torch.bincount(torch.tensor(self.table().sum(1).tolist(), dtype=torch.long), minlength=len(self.sets) + 1)[1:]

    def table(self) -> pd.DataFrame:
        """Return which neuron is in which set: a row for each neuron of any, a column of booleans for each label."""
        own, everyone = {name: set(neurons) for name, neurons in self.sets.items()}, self.union()
        rows = [[one in neurons for neurons in own.values()] for one in everyone]
        return pd.DataFrame(rows, index=pd.Index(everyone.labels(), name="neuron"), columns=list(own), dtype=bool)

    def overlaps(self) -> pd.DataFrame:
        """Return, for each layer and for "all", how many neurons every label has, and every combination has in common.

        A column is named by its labels, joined by " & ". Raises ValueError for more than 10 labels. Source: the analysis
        table of Huang et al. 2024 (methods 4.e).
        """
        if len(self.sets) > MOST:
            raise ValueError(f"all combinations are counted of up to {MOST} sets, got {len(self.sets)}: use jaccard()")
        own, depth = {name: set(neurons) for name, neurons in self.sets.items()}, self.counts().shape[1]
        found: dict[str, list[int]] = {}
        for size in range(1, len(own) + 1):
            for names in combinations(own, size):
                layers = [layer for _, layer, _ in set.intersection(*(own[name] for name in names))]
                found[" & ".join(names)] = [*(layers.count(layer) for layer in range(depth)), len(layers)]
        return pd.DataFrame(found, index=pd.Index([*map(str, range(depth)), "all"], name="layer"))

    def jaccard(self) -> Float[Tensor, "label label"]:
        """Return the intersection over the union of every two sets."""
        return torch.tensor([[a.jaccard(b) for b in self.sets.values()] for a in self.sets.values()])

    def jaccard_by_layer(self) -> Float[Tensor, "layer label label"]:
        """Return the same in each layer by itself; NaN for two sets with no neuron there."""
        own = [{layer: set(units.tolist()) for (_, layer), units in one.by_layer().items()} for one in self.sets.values()]

        def at(layer: int, a: dict[int, set[int]], b: dict[int, set[int]]) -> float:
            ours, theirs = a.get(layer, set()), b.get(layer, set())
            return len(ours & theirs) / len(ours | theirs) if ours | theirs else torch.nan

        depth = self.counts().shape[1]
        return torch.tensor([[[at(layer, a, b) for b in own] for a in own] for layer in range(depth)])


def domain_neurons(
    statistics: Statistics,
    *,
    group: str | None = None,
    module: str = "language",
    rate: float = 0.01,
    filter_quantile: float = 0.95,
    bar_quantile: float = 0.95,
    unread: bool = False,
) -> Selection:
    """Return the neurons of each label of `statistics` (of a `TokenStats`), by the entropy of their activation: DAPE.

    See `low_entropy`. `group` chooses the positions (it may be left out where there is one): "image" asks what a domain's
    pictures do, "all" mixes that with how its questions are worded. Layers of a tower that the model does not read are left
    out unless `unread`. Equal token counts by label (`TokenStats(budget=...)`) make probabilities equally certain.

    Source: Huo et al. 2024 (methods 3), whose code takes all positions and counts unread layers, and has one rate for filter
    and bar.
    """
    if group is None and len(statistics.groups) > 1:
        raise ValueError(f"these statistics are of the groups {', '.join(statistics.groups)}: say which, by group=")
    if statistics.provenance.parameters.get("normalise"):
        raise ValueError("domains are told apart by probabilities, and these are scaled: gather them without `normalise`")
    place = 0 if group is None else statistics.groups.index(present(statistics, [group], module)[0])
    probability = statistics.table("probability", module)[:, place]
    options: dict[str, Any] = dict(rate=rate, filter_quantile=filter_quantile, bar_quantile=bar_quantile)
    layers = None if unread else statistics.live[module]
    sets = low_entropy(probability, statistics.labels, widths=statistics.widths, module=module, layers=layers, **options)
    return Selection(
        module=module,
        sets=sets,
        score=activation_entropy(probability),
        provenance=_chosen(statistics, analysis="domain_neurons", group=group, module=module, unread=unread, **options),
    )


def modality_neurons(
    statistics: Statistics,
    *,
    weights: str | Mapping[str, float] = "mean_max_attn_k",
    groups: Sequence[str] | None = None,
    module: str = "language",
    ratio: float = 0.02,
    strategy: Strategy = "LA_MU",
    exact: bool = True,
    replacement: bool = False,
    absent_as_zero: bool = False,
    unread: bool = False,
    seed: int = 0,
) -> Selection:
    """Return the neurons of each group of positions in `statistics` (of a `SampleStats`): MINER's selection.

    See `importance` for `weights`, `groups` and `absent_as_zero`, and `by_quota` for the rest. Layers of a tower that the
    model does not read are left out unless `unread`.

    Being important to a modality is not being specific to it: sets overlap (`overlaps()`), and what switching one off does
    to other tasks is for `evaluate` to say. Source: Huang et al. 2024 (methods 4).
    """
    names = present(statistics, groups, module)
    scores = importance(statistics, weights, groups=names, module=module, absent_as_zero=absent_as_zero)
    options: dict[str, Any] = dict(ratio=ratio, strategy=strategy, exact=exact, replacement=replacement)
    sets = by_quota(
        scores,
        names,
        widths=statistics.widths,
        module=module,
        layers=None if unread else statistics.live[module],
        seed=seed,
        **options,
    )
    chosen = _chosen(
        statistics,
        analysis="modality_neurons",
        weights=weights if isinstance(weights, str) else str(dict(weights)),
        groups=list(names),
        module=module,
        absent_as_zero=absent_as_zero,
        unread=unread,
        seed=seed,
        **options,
    )
    return Selection(module=module, sets=sets, score=scores, provenance=chosen)


def _chosen(statistics: Statistics, **parameters: Any) -> Any:
    """Return the provenance of statistics, with what was chosen from them and how."""
    gathered = {**statistics.provenance.parameters, "site": statistics.site}
    return replace(statistics.provenance, parameters={**gathered, **parameters})
