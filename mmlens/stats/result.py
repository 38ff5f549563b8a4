"""What statistics of neurons over a data set come to."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlens.neurons import Neurons
from mmlens.results import Result

POOLED = {"probability": "count", "mean": "sum"}


@dataclass(frozen=True, kw_only=True, repr=False)
class Statistics(Result):
    """Statistics of every neuron of some modules, by label of the example and group of positions.

    `weighting` says what counts once: "tokens" (every position; a long example weighs more) or "samples" (every example
    that has the group). `table` and `scores` give them; `totals[statistic][module]` [label, group, layer, unit] is what was
    added up (of "max" by tokens: the largest), in the units of the site. `tokens` and `samples` count, by module [label,
    group], the positions and the examples; `short` the examples that had fewer positions than the budget, and gave none.
    `live` is how many layers of a module, from the first, reach the model's output.
    """

    weighting: Literal["tokens", "samples"]
    site: str
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    widths: dict[str, tuple[int, ...]]
    live: dict[str, int]
    totals: dict[str, dict[str, Tensor]]
    tokens: dict[str, Int[Tensor, "label group"]]
    samples: dict[str, Int[Tensor, "label group"]]
    short: dict[str, Int[Tensor, "label group"]]

    def __repr__(self) -> str:
        counted = {module: int(count.sum(0).max()) for module, count in self.tokens.items()}
        positions = ", ".join(f"{module} ({count:,} positions)" for module, count in counted.items())
        return (
            f"Statistics by {self.weighting} at {self.site}: {', '.join(self.totals)} of {positions}; "
            f"labels {', '.join(self.labels)}; groups {', '.join(self.groups)}"
        )

    def table(self, statistic: str, module: str = "language") -> Float[Tensor, "label group layer unit"]:
        """Return a statistic of every neuron of a module, NaN where nothing was counted (and 0 beyond a layer's width).

        By tokens: "probability" that a position is active (above 0), "mean", "max". By samples, the mean over examples of
        each example's own "probability", "mean", "max", "attn_k", "attn_q". Raises KeyError for one that was not gathered.
        """
        return self._over(statistic, *self._parts(statistic, module))

    def scores(
        self, statistic: str, *, module: str = "language", label: str | None = None, group: str | None = None
    ) -> Float[Tensor, "layer unit"]:
        """Return one label's and group's statistic, as `top_k` takes it; `label=None` is all labels pooled.

        `group` may be left out where there is one. Raises KeyError for a name that is not there.
        """
        total, count = self._parts(statistic, module)
        if group is None and len(self.groups) > 1:
            raise KeyError(f"these statistics are of the groups {', '.join(self.groups)}: say which, by group=")
        column = 0 if group is None else _place(group, self.groups, "group")
        total, count = total[:, column], count[:, column]
        if label is not None:
            row = _place(label, self.labels, "label")
            total, count = total[row : row + 1], count[row : row + 1]
        pooled = total.amax(0) if self._is_largest(statistic) else total.sum(0)
        return self._over(statistic, pooled, count.sum(0))

    @classmethod
    def joined(cls, *parts: "Statistics") -> "Statistics":
        """Return the statistics of several sets of examples together: equal labels added up, others side by side.

        Raises ValueError for parts of other weights, sites, groups, modules or statistics, or otherwise scaled.
        """
        if not parts:
            raise ValueError("statistics are joined of one part or more, got none")
        first, labels = parts[0], tuple(dict.fromkeys(label for part in parts for label in part.labels))
        for part in parts[1:]:
            for name, value in first._kind().items():
                if (other := part._kind()[name]) != value:
                    raise ValueError(f"statistics are joined where they are of one kind, got the {name} {value} and {other}")

        def gather(of: Callable[["Statistics"], dict[str, Tensor]], *, largest: bool = False) -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            for part in parts:
                rows = [labels.index(label) for label in part.labels]
                for module, own in of(part).items():
                    if module not in found:
                        found[module] = own.new_full((len(labels), *own.shape[1:]), -torch.inf if largest else 0)
                    before = found[module][rows]
                    found[module][rows] = before.maximum(own) if largest else before + own
            return found

        totals = {
            name: gather(lambda part: part.totals[name], largest=first._is_largest(name))  # noqa: B023
            for name in first.totals
        }
        return replace(
            first,
            labels=labels,
            totals=totals,
            tokens=gather(lambda part: part.tokens),
            samples=gather(lambda part: part.samples),
            short=gather(lambda part: part.short),
            provenance=replace(first.provenance, inputs=tuple(one for part in parts for one in part.provenance.inputs)),
        )

    def _kind(self) -> dict[str, Any]:
        return {
            "weights": self.provenance.weights,
            "weighting": self.weighting,
            "site": self.site,
            "groups": self.groups,
            "modules": self.widths,
            "statistics": tuple(self.totals),
            "parameters": self.provenance.parameters,
        }

    def at(
        self, neurons: Neurons, statistic: str = "mean", *, label: str | None = None, group: str | None = None
    ) -> Float[Tensor, " neuron"]:
        """Return a statistic of each of `neurons`: what `ablate(neurons, value=...)` takes, for mean ablation."""
        by_module = {
            module: self.scores(statistic, module=module, label=label, group=group) for module in set(neurons.module)
        }
        return torch.stack([by_module[module][layer, unit] for module, layer, unit in neurons]).float()

    def _parts(self, statistic: str, module: str) -> tuple[Tensor, Tensor]:
        name = POOLED.get(statistic, statistic) if self.weighting == "tokens" else statistic
        if name not in self.totals:
            raise KeyError(f"these statistics are {', '.join(self.totals)} by {self.weighting}, got {statistic!r}")
        if module not in self.totals[name]:
            raise KeyError(f"these statistics are of {', '.join(self.widths)}, got {module!r}")
        counts = self.tokens if self.weighting == "tokens" else self.samples
        return self.totals[name][module], counts[module]

    def _is_largest(self, statistic: str) -> bool:
        return self.weighting == "tokens" and statistic == "max"

    def _over(self, statistic: str, total: Tensor, count: Tensor) -> Tensor:
        count = count[..., None, None]
        largest = self._is_largest(statistic)
        value = total.double().nan_to_num(neginf=0) if largest else total.double() / count  # beyond a layer's width: 0
        return torch.where(count > 0, value, torch.nan)


def _place(name: str, names: tuple[str, ...], what: str) -> int:
    if name not in names:
        raise KeyError(f"these statistics are of the {what}s {', '.join(names)}, got {name!r}")
    return names.index(name)
