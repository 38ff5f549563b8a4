"""What neurons do over a reference data set: their means, and rows of their values to draw from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmlens.data.places import Indexed
from mmlens.evaluation.ablation import Ablation, digest
from mmlens.hooks import Hook, Site
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.results import Provenance, Result, with_suffix
from mmlens.stats import Accumulator, Batch, Statistics, TokenStats
from mmlens.stats.accumulator import Hooked, Layers, check_groups, finite, members
from mmlens.sweeps import sweep

ROWS = 256  # so many positions of the reference are drawn from


@dataclass(frozen=True, kw_only=True, repr=False)
class PositionSample(Result):
    """What `neurons` did at positions of a data set that were drawn at random, at `site`: a row per position."""

    neurons: Neurons
    site: str
    group: str
    values: Float[Tensor, "row neuron"]

    def at(self, neurons: Neurons) -> Float[Tensor, "row neuron"]:
        """Return the columns of some of the neurons."""
        column = {neuron: index for index, neuron in enumerate(self.neurons)}
        return self.values[:, [column[neuron] for neuron in neurons]]


class SamplePositions(Accumulator):
    """The values of `neurons` at up to `rows` positions of a group, drawn from all of a data set's with equal chances.

    Every position gets a random number, by `seed` and its example's place, and the positions with the lowest are kept, so
    that neither the order of the examples nor the number of processes matters. Neurons of one module are read at the same
    positions.
    """

    def __init__(
        self, neurons: Neurons, *, site: Site = "post", group: str = "all", rows: int = ROWS, seed: int = 0
    ) -> None:
        super().__init__()
        self.neurons, self.group, self.rows, self.seed = neurons, check_groups([group])[0], rows, seed
        self.layers = Layers.of(neurons.widths, list(dict.fromkeys(neurons.module)), site)
        for module in self.layers.widths:
            self._state(f"{module}_number", (rows,), torch.float64, empty=torch.inf)
            self._state(f"{module}_values", (rows, neurons.module.count(module)), torch.float32)

    def recipe(self) -> dict[str, Any]:
        """Return the parameters, as a checkpoint compares them."""
        return {
            "is": type(self).__name__,
            "neurons": digest(*self.neurons.labels()),
            "site": self.layers.site,
            "group": self.group,
            "rows": self.rows,
            "seed": self.seed,
        }

    def hooks(self, model: Hooked, batch: Batch) -> list[Hook]:
        """Return the hooks that read the layers in which there are neurons."""
        super().hooks(model, batch)
        drawn: dict[str, tuple[Tensor, Tensor]] = {}
        found: dict[str, Tensor] = {}

        def hook(module: str, layer: int, units: Tensor, columns: Sequence[int]) -> Hook:
            def read(values: Tensor) -> None:
                rows, kinds = batch.held(module, values.shape[:-1])
                if module not in drawn:
                    drawn[module] = self._draw(batch, module, rows, kinds)
                    found[module] = torch.zeros(len(drawn[module][0]), self.neurons.module.count(module))
                    self._gathered.append(lambda: self._keep(module, drawn[module][1], found[module]))
                flat = finite(values.reshape(-1, values.shape[-1]), batch, rows, f"layer {layer} of {module}")
                chosen = flat[drawn[module][0].to(flat.device)][:, units.to(flat.device)]
                found[module][:, columns] = chosen.float().cpu()

            return self.layers.hook(model, module, layer, read)

        hooks: list[Hook] = []
        for (module, layer), indices in self.neurons.indices_by_layer().items():
            first = {index: column for column, index in enumerate(self._of(module))}
            hooks.append(hook(module, layer, self.neurons.unit[indices], [first[index] for index in indices]))
        return hooks

    def merge_state(self, incoming_state: Any) -> None:
        """Keep the lowest numbers of both. Raises ValueError where the other was made with other parameters."""
        if not isinstance(incoming_state, SamplePositions) or incoming_state.recipe() != self.recipe():
            raise ValueError("samples add up with those of equal parameters: make both alike")
        self._merge(incoming_state.states)

    def reduce(self, group: Any = None) -> None:
        """Keep the lowest numbers of all processes, in every one of them: one process after the other shows what it has."""
        for theirs in self.others(group):
            self._merge(theirs)

    def result(self, model: Hooked) -> PositionSample:
        """Return the sample so far: of every module as many rows. Raises ValueError where there was no such position."""
        rows = min(int(getattr(self, f"{module}_number").isfinite().sum()) for module in self.layers.widths)
        if not rows:
            raise ValueError(f"values are drawn from positions of {self.group!r}, and the reference has none: give another")
        values = torch.zeros(rows, len(self.neurons))
        for module in self.layers.widths:
            values[:, self._of(module)] = getattr(self, f"{module}_values")[:rows]
        return PositionSample(
            neurons=self.neurons,
            site=self.layers.site,
            group=self.group,
            values=values,
            provenance=Provenance.record(model, self.inputs, seed=self.seed, analysis="SamplePositions"),
        )

    def _of(self, module: str) -> list[int]:
        return [index for index, own in enumerate(self.neurons.module) if own == module]

    def _draw(self, batch: Batch, module: str, rows: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions of a batch that may be kept, and their numbers, lowest first."""
        numbers = torch.full(rows.shape, torch.inf, dtype=torch.float64)
        for row, place in enumerate(batch.places):
            own = (rows == row).cpu()
            numbers[own] = torch.from_numpy(np.random.default_rng((self.seed, place)).random(int(own.sum())))
        numbers[~members(batch, module, kinds, rows, self.group).cpu()] = torch.inf
        order = numbers.argsort(stable=True)[: min(self.rows, int(numbers.isfinite().sum()))]
        return order, numbers[order]

    def _keep(self, module: str, numbers: Tensor, values: Tensor) -> None:
        both = torch.cat([getattr(self, f"{module}_number"), numbers])
        lowest = both.argsort(stable=True)[: self.rows]
        setattr(self, f"{module}_values", torch.cat([getattr(self, f"{module}_values"), values])[lowest])
        setattr(self, f"{module}_number", both[lowest])

    def _merge(self, theirs: Mapping[str, Any]) -> None:
        self.shown += theirs["shown"]
        for module in self.layers.widths:
            self._keep(module, theirs[f"{module}_number"], theirs[f"{module}_values"])


def checkpoint_beside(checkpoint: str | Path) -> Path:
    """Return the file in which the state of the sweep over the reference is kept, beside the evaluation's own."""
    return with_suffix(checkpoint).with_suffix(".reference.safetensors")


def settled(
    model: HookedMLLM, ablations: Mapping[str, Ablation], reference: Iterable[Any] | Indexed, **options: Any
) -> dict[str, Ablation]:
    """Return `ablations` with "mean" and "resample" as values, gathered in one sweep over `reference` if there are any.

    `options` are those of `sweep`. Raises ValueError where the reference has no position of a group.
    """
    asked = {name: one for name, one in ablations.items() if one.of_reference}
    if not asked:
        return dict(ablations)
    if isinstance(reference, Iterator):
        raise ValueError(
            "means and resampled values are of data that is read before the evaluation, and what was given can be read only "
            "once: give a list, or a `reference` of its own"
        )
    wanted: dict[str, list[Ablation]] = {}
    for one in asked.values():
        wanted.setdefault(_what(one), []).append(one)
    found = sweep(model, reference, {name: _accumulator(model, ones) for name, ones in wanted.items()}, **options)

    def values(one: Ablation) -> Tensor:
        of = found[_what(one)]
        value = of.at(one.held, "mean") if isinstance(of, Statistics) else of.at(one.held)
        if not value.isfinite().all():
            raise ValueError(f"a mean is over positions of {one.group!r}, and the reference has none: give another")
        return value

    return {name: replace(one, value=values(one)) if name in asked else one for name, one in ablations.items()}


def _what(one: Ablation) -> str:
    return f"{one.value} {one.site} {one.group} {one.seed}"


def _accumulator(model: HookedMLLM, ablations: Sequence[Ablation]) -> Accumulator:
    first = ablations[0]
    neurons = Neurons.of(sorted({neuron for one in ablations for neuron in one.held}), model.widths)
    if first.value == "resample":
        return SamplePositions(neurons, site=first.site, group=first.group, seed=first.seed)
    modules = list(dict.fromkeys(neurons.module))
    return TokenStats(model.widths, modules=modules, groups=[first.group], site=first.site, statistics=["sum"])
