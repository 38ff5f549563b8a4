"""Statistics in which every example counts once: the mean over examples of what each example's positions say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlens.hooks import Hook, Site
from mmlens.results import Provenance
from mmlens.stats.accumulator import EVERYTHING, Batch, Hooked, OfNeurons, finite, members
from mmlens.stats.result import Statistics
from mmlens.stats.tokens import step_of

SampleStatistic = Literal["probability", "mean", "max", "attn_k", "attn_q"]
ATTENDING = {"language", "vision", "audio"}
EQUAL = 1e-12  # float64 sums that are equal but for rounding
ALL: tuple[SampleStatistic, ...] = ("probability", "mean", "max", "attn_k", "attn_q")


class SampleStats(OfNeurons):
    """The mean over examples of each example's own statistics of every neuron, by label and group of positions.

    Of the T positions of a group in one example, with activations A [T, unit] and S [T, T] the head-averaged attention
    among them: `probability` = mean of [A > 0], `mean`, `max`; `attn_k` = w A with w[j] = sum_i norm(S over queries)[j, i],
    `attn_q` = w A with w[j] = sum_i norm(S over keys)[i, j], both weights summing to T. With `normalise="minmax"` each is
    scaled to 0..1 over the units of its layer, example by example (all 0 where they are equal), before examples are added.
    An example without the group does not count. In towers, positions of different media or tiles do not attend to each
    other: their weights are made apart. Source: Huang et al. 2024 (methods 4.c, 4.d).

    `renorm` is norm: "l1" (the block's rows or columns to sum 1), or "softmax", which is what the authors' code does though
    S holds probabilities already: it leaves all weights near 1, and the scores next to `mean`. `causal=False` takes S
    without the causal mask, as their code does. The other arguments are those of `TokenStats`, which weighs positions
    alike.
    """

    def __init__(
        self,
        widths: Mapping[str, tuple[int, ...]],
        *,
        labels: Sequence[str] = (EVERYTHING,),
        groups: Sequence[str] = (EVERYTHING,),
        modules: Sequence[str] = ("language",),
        site: Site = "post",
        statistics: Sequence[SampleStatistic] = ("probability", "mean", "max"),
        normalise: Literal["minmax"] | None = None,
        renorm: Literal["l1", "softmax"] = "l1",
        causal: bool = True,
    ) -> None:
        super().__init__(widths, labels=labels, groups=groups, modules=modules, site=site)
        self.statistics, self.normalise, self.causal = tuple(statistics), normalise, causal
        self.renorm: Literal["l1", "softmax"] = renorm
        if not statistics or not set(statistics) <= set(ALL):
            raise ValueError(f"statistics are {', '.join(ALL)}, got {list(statistics)}: name at least one of these")
        self.attends = any(name.startswith("attn") for name in statistics)
        if self.attends and (others := sorted(set(modules) - ATTENDING)):
            raise ValueError(
                f"attention-weighted statistics are of positions that attend to each other, those of "
                f"{', '.join(sorted(ATTENDING))}; got the modules {others}: give those an accumulator of their own"
            )
        by = len(self.labels), len(self.groups)
        for module in self.layers.widths:
            self._state(f"{module}_tokens", by, torch.int64)
            self._state(f"{module}_samples", by, torch.int64)
            self._state(f"{module}_total", (len(self.statistics), *by, *self.layers.shape(module)), torch.float64)

    def recipe(self) -> dict[str, Any]:
        """Return the parameters, as a checkpoint compares them."""
        own = {"normalise": self.normalise, "renorm": self.renorm, "causal": self.causal}
        return {**super().recipe(), "statistics": list(self.statistics), **own}

    def hooks(self, model: Hooked, batch: Batch) -> list[Hook]:
        """Return the hooks that read every layer's neurons, and its attention where a statistic is weighted by it."""
        super().hooks(model, batch)
        sections: dict[str, list[_Section]] = {}
        patterns: dict[tuple[str, int], Tensor] = {}
        hooks: list[Hook] = []

        def attention(module: str, layer: int) -> Hook:
            def read(pattern: Tensor, hook: Any) -> None:
                patterns[module, layer] = pattern.detach()  # until the same layer's neurons come by

            point = "hook_pattern_mean" if self.causal else "hook_pattern_mean_unmasked"
            return f"{'' if module == 'language' else module + '.'}blocks.{layer}.attn.{point}", read

        def neurons(module: str, layer: int) -> Hook:
            def read(values: Tensor) -> None:
                if module not in sections:
                    sections[module] = self._sections(batch, module, values.shape[:-1])
                flat = values.reshape(-1, values.shape[-1])
                flat = finite(flat, batch, batch.held(module, values.shape[:-1])[0], f"layer {layer} of {module}")
                pattern = patterns.pop((module, layer), None)
                for section in sections[module]:
                    weights = {} if pattern is None else _weights(pattern, section, self.renorm)
                    found = _reduce(flat[section.where], self.statistics, weights)
                    found = found if self.normalise is None else _minmax(found)
                    self._gathered.append(lambda section=section, found=found: self._add(module, layer, section, found))

            return self.layers.hook(model, module, layer, read)

        for module, layer in self.layers:
            if self.attends:
                hooks.append(attention(module, layer))
            hooks.append(neurons(module, layer))
        return hooks

    def result(self, model: Hooked) -> Statistics:
        """Return the statistics so far. Raises ValueError where no example was counted."""
        samples, totals = self.by_module("samples"), self.by_module("total")
        parameters = {name: value for name, value in self.recipe().items() if name in ("normalise", "renorm", "causal")}
        return Statistics(
            weighting="samples",
            site=self.layers.site,
            labels=self.labels,
            groups=self.groups,
            widths=self.layers.widths,
            live={module: model.live_layers[module] for module in self.layers.widths},
            totals={
                name: {module: total[place] for module, total in totals.items()}
                for place, name in enumerate(self.statistics)
            },
            tokens=self.by_module("tokens"),
            samples=samples,
            short={module: torch.zeros_like(count) for module, count in samples.items()},
            provenance=Provenance.record(model, self.inputs, analysis="SampleStats", **parameters),
        )

    def _sections(self, batch: Batch, module: str, shape: Sequence[int]) -> "list[_Section]":
        """Return the positions of each example's groups, those that it has, and gather how many there are."""
        rows, kinds = batch.held(module, shape)
        by_row = {row: self._label(batch, row) for row in rows[rows >= 0].unique().tolist()}
        found: list[_Section] = []
        for column, group in enumerate(self.groups):
            of_group = members(batch, module, kinds, rows, group)
            for row, label in by_row.items():
                if len(positions := (of_group & (rows == row)).nonzero()[:, 0]):
                    found.append(_Section.of(label, column, positions))
        self._gathered.append(lambda: self._count(module, found))
        return found

    def _count(self, module: str, sections: "list[_Section]") -> None:
        for section in sections:
            getattr(self, f"{module}_tokens")[section.label, section.group] += section.count
            getattr(self, f"{module}_samples")[section.label, section.group] += 1

    def _add(self, module: str, layer: int, section: "_Section", found: Tensor) -> None:
        state = getattr(self, f"{module}_total")
        state[:, section.label, section.group, layer, : found.shape[-1]] += found.to(state.device)


@dataclass(frozen=True)
class _Section:
    """Where in an activation, laid out flat, one example has the positions of a group: a slice, if they are neighbours."""

    label: int
    group: int
    where: slice | Tensor
    count: int

    @classmethod
    def of(cls, label: int, group: int, positions: Int[Tensor, " position"]) -> "_Section":
        return cls(label, group, _neighbours(positions), len(positions))

    def by_entry(self, length: int) -> list[tuple[int, slice | Tensor]]:
        """Return the positions in each row, medium or tile that has any, where each of them is of `length` positions."""
        if isinstance(self.where, slice) and self.where.start // length == (self.where.stop - 1) // length:
            entry = self.where.start // length
            return [(entry, slice(self.where.start - entry * length, self.where.stop - entry * length))]
        positions = torch.arange(self.where.start, self.where.stop) if isinstance(self.where, slice) else self.where
        entries = (positions // length).unique().tolist()
        return [(entry, _neighbours(positions[positions // length == entry] - entry * length)) for entry in entries]


def _neighbours(positions: Int[Tensor, " position"]) -> slice | Tensor:
    first, last = int(positions[0]), int(positions[-1])
    return slice(first, last + 1) if last - first == len(positions) - 1 else positions


def _reduce(
    values: Float[Tensor, "position unit"],
    statistics: Sequence[SampleStatistic],
    weights: Mapping[SampleStatistic, Float[Tensor, " position"]],
) -> Float[Tensor, "statistic unit"]:
    """Return each statistic over the positions, in float64 and piece by piece: nothing of their size is kept."""
    count, width = values.shape
    step = step_of(values)
    wide = torch.empty(step, width, dtype=torch.float64, device=values.device)
    above = torch.empty(step, width, device=values.device)
    equal = torch.full((count,), 1 / count, dtype=torch.float64, device=values.device)
    summed: dict[SampleStatistic, Tensor] = {"mean": equal, **weights}
    names: list[SampleStatistic] = [name for name in statistics if name in summed]
    table = torch.stack([summed[name] for name in names]) if names else equal.new_empty(0, count)
    sums, active, largest = wide.new_zeros(len(names), width), wide.new_zeros(width), wide.new_full((width,), -torch.inf)
    for start in range(0, count, step):
        part = values[start : start + step]
        if names:
            sums += table[:, start : start + step] @ wide[: len(part)].copy_(part)
        if "probability" in statistics:  # whole numbers below 2^24: exact in float32
            active += torch.gt(part, 0, out=above[: len(part)]).sum(0)
        if "max" in statistics:
            torch.maximum(largest, part.amax(0).double(), out=largest)
    found = {"probability": active / count, "max": largest, **dict(zip(names, sums, strict=True))}
    return torch.stack([found[name] for name in statistics])


def _weights(
    pattern: Float[Tensor, "entry query key"], section: _Section, renorm: Literal["l1", "softmax"]
) -> dict[SampleStatistic, Float[Tensor, " position"]]:
    """Return by how much each of a section's positions counts: as one that asks (attn_k), as one that is asked (attn_q).

    Positions of different media or tiles do not attend to each other: of those, each has weights of its own.
    """
    asks, asked = [], []
    for entry, where in section.by_entry(pattern.shape[-1]):
        block = pattern[entry][where][:, where]
        block = block.exp() if renorm == "softmax" else block
        by_key, by_query = block.sum(0), block.sum(1)
        asks.append(block @ torch.where(by_key > 0, 1 / by_key, 0))
        asked.append(torch.where(by_query > 0, 1 / by_query, 0) @ block)
    return {"attn_k": torch.cat(asks).double(), "attn_q": torch.cat(asked).double()}


def _minmax(found: Float[Tensor, "statistic unit"]) -> Float[Tensor, "statistic unit"]:
    """Return each statistic scaled to 0..1 over units; all 0 where they differ by no more than rounding."""
    low, high = found.amin(-1, keepdim=True), found.amax(-1, keepdim=True)
    equal = high - low <= EQUAL * torch.maximum(high.abs(), low.abs())
    return torch.where(equal, 0, (found - low) / torch.where(equal, 1, high - low))
