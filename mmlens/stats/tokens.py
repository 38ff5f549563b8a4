"""Statistics in which every position counts once: how often, how much and how strongly a neuron is active."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from mmlens.hooks import Hook, Site
from mmlens.results import Provenance
from mmlens.stats.accumulator import EVERYTHING, Batch, Hooked, OfNeurons, finite, members
from mmlens.stats.result import Statistics

Statistic = Literal["count", "sum", "max"]
COUNTED = ("tokens", "samples", "short")
CHUNK = {"cpu": 1 << 17}  # activations that are looked at together, so that they stay in a processor's cache
MOST = 1 << 25  # elsewhere


class TokenStats(OfNeurons):
    """Counts, sums and maxima of every neuron's activation over all positions, by label and group of positions.

    `count` is the number of positions where the neuron is above 0, `sum` (float64) and `max` are of its values at `site`;
    the result also has `probability` = count / positions and `mean` = sum / positions. Every position counts once, so an
    example with more of them weighs more (`SampleStats` weighs examples alike). Source: Huo et al. 2024 (methods C2), who
    count at `gate_act` over all positions.

    `groups` are as in `Inputs.mask`, or several joined by `+`; `labels` those of the examples that are kept apart (left
    out, all count as one). `budget` makes token counts equal: each example gives exactly so many positions of each group
    (one number, or one by label), drawn by its place in the data set, the same in every run and on any number of
    processes; an example with fewer gives none, and is counted in `short`. As many examples of each label then make as many
    tokens of each.
    """

    def __init__(
        self,
        widths: Mapping[str, tuple[int, ...]],
        *,
        labels: Sequence[str] = (EVERYTHING,),
        groups: Sequence[str] = (EVERYTHING,),
        modules: Sequence[str] = ("language",),
        site: Site = "post",
        statistics: Sequence[Statistic] = ("count", "sum", "max"),
        budget: int | Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(widths, labels=labels, groups=groups, modules=modules, site=site)
        self.statistics, self.budget = tuple(statistics), _budget(budget, self.labels)
        if not statistics or not set(statistics) <= {"count", "sum", "max"}:
            raise ValueError(f"statistics are count, sum and max, got {list(statistics)}: name at least one of these")
        by = len(self.labels), len(self.groups)
        for module in self.layers.widths:
            for name in COUNTED:
                self._state(f"{module}_{name}", by, torch.int64)
            for name in self.statistics:
                dtype = torch.int64 if name == "count" else torch.float64
                kept: dict[str, Any] = dict(empty=-torch.inf, keep="max") if name == "max" else {}
                self._state(f"{module}_{name}", (*by, *self.layers.shape(module)), dtype, **kept)

    def recipe(self) -> dict[str, Any]:
        """Return the parameters, as a checkpoint compares them."""
        return {**super().recipe(), "statistics": list(self.statistics), "budget": self.budget}

    def hooks(self, model: Hooked, batch: Batch) -> list[Hook]:
        """Return the hooks that read every layer once."""
        super().hooks(model, batch)
        chosen: dict[str, _Chosen] = {}

        def hook(module: str, layer: int) -> Hook:
            def read(values: Tensor) -> None:
                if module not in chosen:  # a module's first layer shows how its positions are laid out
                    chosen[module] = self._choose(batch, module, values.shape[:-1])
                flat = values.reshape(-1, values.shape[-1])
                flat = finite(flat, batch, chosen[module].rows, f"layer {layer} of {module}")
                found = chosen[module].reduce(flat, self.statistics)
                self._gathered.append(lambda: self._add(module, layer, chosen[module].labels, found))

            return self.layers.hook(model, module, layer, read, sign_only=self.statistics == ("count",))

        return [hook(module, layer) for module, layer in self.layers]

    def result(self, model: Hooked) -> Statistics:
        """Return the statistics so far. Raises ValueError where no example was counted."""
        return Statistics(
            weighting="tokens",
            site=self.layers.site,
            labels=self.labels,
            groups=self.groups,
            widths=self.layers.widths,
            live={module: model.live_layers[module] for module in self.layers.widths},
            totals={name: self.by_module(name) for name in self.statistics},
            tokens=self.by_module("tokens"),
            samples=self.by_module("samples"),
            short=self.by_module("short"),
            provenance=Provenance.record(model, self.inputs, analysis="TokenStats", budget=str(self.budget)),
        )

    def _choose(self, batch: Batch, module: str, shape: Sequence[int]) -> "_Chosen":
        """Return which positions count for which label and group, and gather how many there are."""
        rows, kinds = batch.held(module, shape)
        by_row = {row: self._label(batch, row) for row in rows[rows >= 0].unique().tolist()}
        labels = sorted(set(by_row.values()))
        masks = torch.zeros(len(labels), len(self.groups), len(rows), dtype=torch.bool, device=rows.device)
        counted = torch.zeros(3, len(labels), len(self.groups), dtype=torch.int64)
        for column, group in enumerate(self.groups):
            of_group = members(batch, module, kinds, rows, group)
            for row, label in by_row.items():
                there = of_group & (rows == row)
                own = there if self.budget is None else _drawn(there, self.budget[self.labels[label]], batch.places[row])
                positions, place = int(own.sum()), labels.index(label)
                masks[place, column] |= own
                counted[:, place, column] += torch.tensor([positions, positions > 0, not positions and bool(there.any())])
        self._gathered.append(lambda: self._count(module, labels, counted))
        return _Chosen(rows, labels, masks)

    def _count(self, module: str, labels: list[int], counted: Tensor) -> None:
        for name, number in zip(COUNTED, counted, strict=True):
            getattr(self, f"{module}_{name}")[labels] += number

    def _add(self, module: str, layer: int, labels: list[int], found: dict[Statistic, Tensor]) -> None:
        for name, number in found.items():
            state = getattr(self, f"{module}_{name}")
            here = state[labels, :, layer, : number.shape[-1]]
            number = number.to(state.device)
            state[labels, :, layer, : number.shape[-1]] = torch.maximum(here, number) if name == "max" else here + number


@dataclass(frozen=True)
class _Chosen:
    """Which row each position of an activation belongs to, and which count: masks [label, group, position]."""

    rows: Tensor
    labels: list[int]
    masks: Bool[Tensor, "label group position"]

    def reduce(
        self, values: Float[Tensor, "position unit"], statistics: Sequence[Statistic]
    ) -> dict[Statistic, Num[Tensor, "label group unit"]]:
        """Return each statistic over the positions that count, piece by piece: nothing of their size is kept."""
        masks = self.masks.flatten(0, 1).to(values.device)
        size, width = len(masks), values.shape[-1]
        found: dict[Statistic, Tensor] = {}
        for name in statistics:
            empty = -torch.inf if name == "max" else 0
            found[name] = torch.full((size, width), empty, dtype=torch.float64, device=values.device)
        step = step_of(values)
        active = torch.empty(step, width, device=values.device)
        for start in range(0, len(values), step):
            part, mask = values[start : start + step], masks[:, start : start + step]
            if not mask.any():
                continue
            if "count" in found:  # whole numbers below 2^24: exact in float32
                found["count"] += mask.float() @ torch.gt(part, 0, out=active[: len(part)])
            if "sum" in found:
                found["sum"] += mask.double() @ part.double()
            if "max" in found:
                for row, own in zip(found["max"], mask, strict=True):
                    if own.any():
                        torch.maximum(row, (part if own.all() else part[own]).amax(0).double(), out=row)
        return {
            name: (value.long() if name == "count" else value).unflatten(0, self.masks.shape[:2])
            for name, value in found.items()
        }


def step_of(values: Float[Tensor, "position unit"]) -> int:
    """Return how many positions are looked at together."""
    return min(len(values), max(1, CHUNK.get(values.device.type, MOST) // values.shape[-1]))


def _drawn(own: Bool[Tensor, " position"], budget: int, place: int) -> Bool[Tensor, " position"]:
    """Return `budget` of the positions, drawn by the example's place in the data set; none, where there are fewer."""
    positions = own.nonzero()[:, 0]
    drawn = torch.zeros_like(own)
    if len(positions) >= budget:
        order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(place))[:budget]
        drawn[positions[order.to(positions.device)]] = True
    return drawn


def _budget(budget: int | Mapping[str, int] | None, labels: tuple[str, ...]) -> dict[str, int] | None:
    if budget is None:
        return None
    numbers = dict.fromkeys(labels, budget) if isinstance(budget, int) else dict(budget)
    if set(numbers) != set(labels) or min(numbers.values()) < 1:
        raise ValueError(
            f"a budget is the number of positions that each example gives, 1 or more, for each of {', '.join(labels)}; got "
            f"{budget}"
        )
    return numbers
