"""Which examples of a data set each neuron answers to most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlens.hooks import Hook, Site
from mmlens.results import Provenance, Result
from mmlens.stats.accumulator import EVERYTHING, Batch, Hooked, OfNeurons, finite, members

PARTS = ("value", "place", "position")
NOBODY = torch.iinfo(torch.int64).max


@dataclass(frozen=True, kw_only=True, repr=False)
class StrongestExamples(Result):
    """The examples in which each neuron reaches its highest activations, strongest first, by module.

    `value` [label, group, layer, unit, k] is the highest activation in the example, `place` the example's place in the data
    set (from 0), `position` where in the example: counted from its first real position in that module. Where there were
    fewer examples than k, value is -inf and place and position are -1.
    """

    site: str
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    value: dict[str, Float[Tensor, "label group layer unit k"]]
    place: dict[str, Int[Tensor, "label group layer unit k"]]
    position: dict[str, Int[Tensor, "label group layer unit k"]]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{module} {list(value.shape)}" for module, value in self.value.items())
        return (
            f"StrongestExamples at {self.site}: {shapes}; labels {', '.join(self.labels)}; groups {', '.join(self.groups)}"
        )


class TopExamples(OfNeurons):
    """The `k` examples in which each neuron reaches its highest activations, by label and group of positions.

    An example counts once, by its highest activation in the group; of equal ones the earlier example comes first, so that
    neither the order of the examples nor the number of processes matters. The other arguments are those of `TokenStats`.
    """

    def __init__(
        self,
        widths: Mapping[str, tuple[int, ...]],
        *,
        k: int = 10,
        labels: Sequence[str] = (EVERYTHING,),
        groups: Sequence[str] = (EVERYTHING,),
        modules: Sequence[str] = ("language",),
        site: Site = "post",
    ) -> None:
        super().__init__(widths, labels=labels, groups=groups, modules=modules, site=site)
        if k < 1:
            raise ValueError(f"k is a number of examples, 1 or more, got {k}")
        self.k = k
        for module in self.layers.widths:
            shape = (len(self.labels), len(self.groups), *self.layers.shape(module), k)
            self._state(f"{module}_value", shape, torch.float64, empty=-torch.inf, keep="max")
            self._state(f"{module}_place", shape, torch.int64, empty=NOBODY)
            self._state(f"{module}_position", shape, torch.int64, empty=NOBODY)

    def recipe(self) -> dict[str, Any]:
        """Return the parameters, as a checkpoint compares them."""
        return {**super().recipe(), "k": self.k}

    def hooks(self, model: Hooked, batch: Batch) -> list[Hook]:
        """Return the hooks that read every layer once."""
        super().hooks(model, batch)

        def hook(module: str, layer: int) -> Hook:
            def read(values: Tensor) -> None:
                rows, kinds = batch.held(module, values.shape[:-1])
                flat = finite(values.reshape(-1, values.shape[-1]), batch, rows, f"layer {layer} of {module}")
                for row in rows[rows >= 0].unique().tolist():
                    own = (rows == row).nonzero()[:, 0]
                    for column, group in enumerate(self.groups):
                        within = members(batch, module, kinds, rows, group)[own].nonzero()[:, 0]
                        if len(within):
                            highest, at = flat[own[within].to(flat.device)].max(0)
                            found = highest.double().cpu(), within[at.cpu()]
                            where = (self._label(batch, row), column, layer, slice(0, flat.shape[-1]))
                            self._gathered.append(
                                lambda where=where, found=found, place=batch.places[row]: self._add(
                                    module, where, *found, place
                                )
                            )

            return self.layers.hook(model, module, layer, read)

        return [hook(module, layer) for module, layer in self.layers]

    def merge_state(self, incoming_state: Any) -> None:
        """Keep the strongest of both. Raises ValueError where the other was made with other parameters."""
        if not isinstance(incoming_state, TopExamples) or incoming_state.recipe() != self.recipe():
            raise ValueError("strongest examples add up with those of equal parameters: make both alike")
        self._merge(incoming_state.states)

    def reduce(self, group: Any = None) -> None:
        """Keep the strongest of all processes, in every one of them: one process after the other shows what it has."""
        for theirs in self.others(group):
            self._merge(theirs)

    def result(self, model: Hooked) -> StrongestExamples:
        """Return the strongest examples so far. Raises ValueError where no example was counted."""
        place, position = self.by_module("place"), self.by_module("position")
        for state in (*place.values(), *position.values()):
            state[state == NOBODY] = -1
        return StrongestExamples(
            site=self.layers.site,
            labels=self.labels,
            groups=self.groups,
            value=self.by_module("value"),
            place=place,
            position=position,
            provenance=Provenance.record(model, self.inputs, analysis="TopExamples", k=self.k),
        )

    def _add(self, module: str, where: tuple[Any, ...], value: Tensor, position: Tensor, place: int) -> None:
        """Let one example's activations [unit] take their places among those kept [unit, k]."""
        kept = [getattr(self, f"{module}_{name}")[where] for name in PARTS]
        worst, last = kept[0][:, -1], kept[1][:, -1]
        better = (value > worst) | ((value == worst) & (place < last))
        if better.any():
            new = [value[better, None], torch.full((int(better.sum()), 1), place), position[better, None]]
            both = [torch.cat([part[better], own], -1) for part, own in zip(kept, new, strict=True)]
            for part, best in zip(kept, _strongest(both, self.k), strict=True):
                part[better] = best

    def _merge(self, theirs: Mapping[str, Tensor]) -> None:
        self.shown += theirs["shown"]
        for module in self.layers.widths:
            names = [f"{module}_{name}" for name in PARTS]
            both = [torch.cat([getattr(self, name), theirs[name]], -1) for name in names]
            for name, best in zip(names, _strongest(both, self.k), strict=True):
                setattr(self, name, best)


def _strongest(parts: Sequence[Tensor], k: int) -> list[Tensor]:
    """Return of value, place and position the `k` highest values' along the last axis; of equal ones the earlier place's."""
    value, place, _ = parts
    by_place = place.argsort(dim=-1, stable=True)
    order = by_place.gather(-1, value.gather(-1, by_place).argsort(dim=-1, descending=True, stable=True))[..., :k]
    return [part.gather(-1, order) for part in parts]
