"""Statistics in which every example counts once: the mean over examples of what each example's positions say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlens.hooks import Hook, Site
from mmlens.results import Provenance
from mmlens.stats.accumulator import EVERYTHING, Accumulator, Batch, Hooked, Layers, check_groups, finite, members
from mmlens.stats.result import Statistics
from mmlens.stats.tokens import CHUNK

SampleStatistic = Literal["probability", "mean", "max", "attn_k", "attn_q"]
EQUAL = 1e-12  # float64 sums that are equal but for rounding
ALL: tuple[SampleStatistic, ...] = ("probability", "mean", "max", "attn_k", "attn_q")


class SampleStats(Accumulator):
    """The mean over examples of each example's own statistics of every neuron, by label and group of positions.

    Of the T positions of a group in one example, with activations A [T, unit] and S [T, T] the head-averaged attention
    among them: `probability` = mean of [A > 0], `mean`, `max`; `attn_k` = w A with w[j] = sum_i norm(S over queries)[j, i],
    `attn_q` = w A with w[j] = sum_i norm(S over keys)[i, j], both weights summing to T. With `normalise="minmax"` each is
    scaled to 0..1 over the units of its layer, example by example (all 0 where they are equal), before examples are added.
    An example without the group does not count. Source: Huang et al. 2024 (methods 4.c, 4.d).

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
        super().__init__()
        self.layers = Layers.of(widths, modules, site)
        self.labels, self.groups, self.statistics = tuple(labels), check_groups(groups), tuple(statistics)
        self.normalise, self.renorm, self.causal = normalise, renorm, causal
        if not statistics or not set(statistics) <= set(ALL):
            raise ValueError(f"statistics are {', '.join(ALL)}, got {list(statistics)}: name at least one of these")
        self.attends = any(name.startswith("attn") for name in statistics)
        if self.attends and set(modules) != {"language"}:
            raise ValueError(
                f"attention-weighted statistics are of the language model, got the modules {list(modules)}: give the others "
                "an accumulator of their own"
            )
        by = len(self.labels), len(self.groups)
        for module in self.layers.widths:
            self._state(f"{module}_tokens", by, torch.int64)
            self._state(f"{module}_samples", by, torch.int64)
            for name in self.statistics:
                self._state(f"{module}_{name}", (*by, *self.layers.shape(module)), torch.float64)

    def recipe(self) -> dict[str, Any]:
        """Return the parameters, as a checkpoint compares them."""
        return {
            "is": type(self).__name__,
            "widths": {module: list(widths) for module, widths in self.layers.widths.items()},
            "site": self.layers.site,
            "labels": list(self.labels),
            "groups": list(self.groups),
            "statistics": list(self.statistics),
            "normalise": self.normalise,
            "renorm": self.renorm,
            "causal": self.causal,
        }

    def hooks(self, model: Hooked, batch: Batch) -> list[Hook]:
        """Return the hooks that read every layer's neurons, and its attention where a statistic is weighted by it."""
        super().hooks(model, batch)
        sections: dict[str, list[_Section]] = {}
        weights: dict[int, list[dict[SampleStatistic, Tensor]]] = {}
        hooks: list[Hook] = []

        def attention(layer: int) -> Hook:
            def read(pattern: Tensor, hook: Any) -> None:
                if "language" not in sections:
                    sections["language"] = self._sections(batch, "language", pattern.shape[:2])
                length = pattern.shape[-1]
                weights[layer] = [
                    _weights(pattern.detach(), section, length, self.renorm) for section in sections["language"]
                ]

            point = "hook_pattern_mean" if self.causal else "hook_pattern_mean_unmasked"
            return f"blocks.{layer}.attn.{point}", read

        def neurons(module: str, layer: int) -> Hook:
            def read(values: Tensor) -> None:
                if module not in sections:
                    sections[module] = self._sections(batch, module, values.shape[:-1])
                flat = values.reshape(-1, values.shape[-1])
                flat = finite(flat, batch, batch.held(module, values.shape[:-1])[0], f"layer {layer} of {module}")
                own = weights.pop(layer, [{}] * len(sections[module]))
                for section, weight in zip(sections[module], own, strict=True):
                    found = _reduce(flat, section.positions, self.statistics, weight)
                    if self.normalise is not None:
                        found = {name: _minmax(value) for name, value in found.items()}
                    self._gathered.append(lambda section=section, found=found: self._add(module, layer, section, found))

            return self.layers.hook(model, module, layer, read)

        for module, layer in self.layers:
            if self.attends:
                hooks.append(attention(layer))
            hooks.append(neurons(module, layer))
        return hooks

    def result(self, model: Hooked) -> Statistics:
        """Return the statistics so far. Raises ValueError where no example was counted."""
        of = {
            name: {module: getattr(self, f"{module}_{name}").clone() for module in self.layers.widths}
            for name in ("tokens", "samples", *self.statistics)
        }
        parameters = {name: value for name, value in self.recipe().items() if name in ("normalise", "renorm", "causal")}
        return Statistics(
            weighting="samples",
            site=self.layers.site,
            labels=self.labels,
            groups=self.groups,
            widths=self.layers.widths,
            totals={name: of[name] for name in self.statistics},
            tokens=of["tokens"],
            samples=of["samples"],
            short={module: torch.zeros_like(count) for module, count in of["samples"].items()},
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
                    found.append(_Section(label, column, positions))
        self._gathered.append(lambda: self._count(module, found))
        return found

    def _count(self, module: str, sections: "list[_Section]") -> None:
        for section in sections:
            getattr(self, f"{module}_tokens")[section.label, section.group] += len(section.positions)
            getattr(self, f"{module}_samples")[section.label, section.group] += 1

    def _add(self, module: str, layer: int, section: "_Section", found: dict[SampleStatistic, Tensor]) -> None:
        for name, value in found.items():
            state = getattr(self, f"{module}_{name}")
            state[section.label, section.group, layer, : len(value)] += value.to(state.device)


@dataclass(frozen=True)
class _Section:
    """Where in an activation, laid out flat, one example has the positions of a group."""

    label: int
    group: int
    positions: Tensor


def _reduce(
    values: Float[Tensor, "any unit"],
    positions: Int[Tensor, " position"],
    statistics: Sequence[SampleStatistic],
    weights: Mapping[SampleStatistic, Float[Tensor, " position"]],
) -> dict[SampleStatistic, Float[Tensor, " unit"]]:
    """Return each statistic over the `positions`, piece by piece: nothing of their size is kept."""
    count, width = len(positions), values.shape[-1]
    positions = positions.to(values.device)
    summed = {"mean": values.new_full((count,), 1 / count, dtype=torch.float64), **weights}
    names = [name for name in statistics if name in summed]
    table = torch.stack([summed[name] for name in names]) if names else values.new_zeros(0, count, dtype=torch.float64)
    sums = table.new_zeros(len(names), width)
    active = values.new_zeros(width, dtype=torch.int64)
    largest = values.new_full((width,), -torch.inf)
    step = max(1, CHUNK // width)
    for start in range(0, count, step):
        part = values[positions[start : start + step]]
        if names:
            sums += table[:, start : start + step] @ part.double()
        if "probability" in statistics:
            active += (part > 0).sum(0)
        if "max" in statistics:
            torch.maximum(largest, part.amax(0), out=largest)
    found: dict[SampleStatistic, Tensor] = dict(zip(names, sums, strict=True))
    if "probability" in statistics:
        found["probability"] = active.double() / count
    if "max" in statistics:
        found["max"] = largest.double()
    return found


def _weights(
    pattern: Float[Tensor, "batch query key"], section: _Section, length: int, renorm: Literal["l1", "softmax"]
) -> dict[SampleStatistic, Float[Tensor, " position"]]:
    """Return by how much each of a section's positions counts: as one that asks (attn_k), as one that is asked (attn_q)."""
    row, positions = int(section.positions[0]) // length, (section.positions % length).to(pattern.device)
    block = pattern[row][positions][:, positions]
    block = block.exp() if renorm == "softmax" else block
    by_key, by_query = block.sum(0), block.sum(1)
    asks = block @ torch.where(by_key > 0, 1 / by_key, 0)
    asked = torch.where(by_query > 0, 1 / by_query, 0) @ block
    return {"attn_k": asks.double(), "attn_q": asked.double()}


def _minmax(value: Float[Tensor, " unit"]) -> Float[Tensor, " unit"]:
    """Return the value scaled to 0..1; all 0 where its entries differ by no more than rounding."""
    low, high = value.aminmax()
    equal = high - low <= EQUAL * torch.maximum(high.abs(), low.abs())
    return torch.zeros_like(value) if equal else (value - low) / (high - low)
