"""Neurons held at a value that may be of the data: a mean, another example's, or the layer's lowest."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlens import hooks
from mmlens.hooks import STEP, Hook, Site, ablate, feed, neuron_hook
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.results import Storable
from mmlens.stats.accumulator import check_groups

FromData = Literal["mean", "resample", "layer_min"]
Value = float | int | Float[Tensor, "*row neuron"] | FromData


@dataclass(frozen=True, eq=False)
class Ablation(Storable):
    """Hold `neurons` at `value` at `site`: everywhere and at every step, or, by `where`, at groups of a prompt's positions.

    `value` is a number, or one per neuron [neuron], or [row, neuron]: of these rows one is drawn at each position, the same
    for all neurons, by `seed` and the example's place in the data set. `evaluate` makes such tensors of "mean" and
    "resample", from what the neurons do at the same positions (`where`) of its reference. "layer_min" is the lowest
    activation of the neurons' layer at `site` in the same run, over all of its units and the example's real positions (when
    an answer is being written, its one position). Huang et al. 2024 (methods 4.f) take that at `gate_act`: what then enters
    W_out is this minimum times the linear branch.

    `site` is as in `hooks.ablate`; `gate_act` of an MLP without a gate is its `post`. `where` are names of groups as
    `Inputs.mask` has them, ("image",); neurons of a tower have no such positions, so for those it can't be given.
    `complement=True` holds all neurons but these, of the modules that they are in (in layers that the model does not read,
    nothing). Raises ValueError for a value, a site or a group that is none.
    """

    neurons: Neurons
    _: KW_ONLY
    value: Value = 0.0
    site: Site = "post"
    where: tuple[str, ...] | None = None
    complement: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.site not in get_args(Site):
            raise ValueError(f"neurons are held at one of {', '.join(get_args(Site))}, got {self.site!r}")
        if isinstance(self.value, str) and self.value not in get_args(FromData):
            raise ValueError(
                f"neurons are held at a number, one per neuron, or at {', '.join(get_args(FromData))}; got {self.value!r}"
            )
        if isinstance(self.value, Tensor) and (self.value.ndim not in (1, 2) or self.value.shape[-1] != len(self.held)):
            raise ValueError(
                f"values are [neuron], or rows [row, neuron] to draw from, for {len(self.held)} neurons; got "
                f"{list(self.value.shape)}"
            )
        if self.where is not None:
            check_groups(self.where)
            if others := set(self.neurons.module) - {"language"}:
                raise ValueError(
                    f"`where` is about the language model's positions, and neurons are also in {', '.join(sorted(others))}: "
                    "hold those in an ablation of their own, without `where`"
                )

    @cached_property
    def held(self) -> Neurons:
        """The neurons that are held: `neurons`, or all others of their modules."""
        return self.neurons.complement() if self.complement else self.neurons

    @cached_property
    def _layers(self) -> dict[tuple[str, int], tuple[list[int], Neurons]]:
        """Where in `held` the neurons of each layer stand, and those neurons."""
        return {layer: (indices, self.held[indices]) for layer, indices in self.held.indices_by_layer().items()}

    @property
    def of_reference(self) -> bool:
        """Whether the value is one that is taken from a reference data set."""
        return isinstance(self.value, str) and self.value != "layer_min"

    @property
    def group(self) -> str:
        """The name of all positions at which the neurons are held."""
        return "all" if self.where is None else "+".join(self.where)

    def random(self, seed: int) -> "Ablation":
        """Return the control: as many other neurons of the same layers, held likewise, drawn by `seed`.

        Of a complement, they are the ones that are left alone. One value per neuron goes to a neuron of the same layer.
        Raises ValueError where a layer has too few other neurons.
        """
        drawn = self.neurons.random_like(seed=seed)
        if not isinstance(self.value, Tensor):
            return replace(self, neurons=drawn)
        if self.complement:
            raise ValueError("values of all but these neurons are not those of other ones: give one number, or draws=0")
        order = [index for indices in self.neurons.indices_by_layer().values() for index in indices]
        return replace(self, neurons=drawn, value=self.value[..., order])

    def recipe(self) -> dict[str, Any]:
        """Return what it does, in numbers and text: neurons and tensors by their hash."""
        return {
            "neurons": f"{len(self.neurons)} {digest(*self.neurons.labels())}",
            "value": f"values {digest(self.value)}" if isinstance(self.value, Tensor) else self.value,
            "site": self.site,
            "where": self.group if self.where else None,
            "complement": self.complement,
            "seed": self.seed,
        }

    def hooks(self, model: HookedMLLM, inputs: Inputs, *, places: Sequence[int] | None = None) -> list[Hook]:
        """Return the hooks that hold the neurons when `model` reads `inputs`, and at every step as it writes an answer.

        `places` number the rows in their data set (0 to batch - 1 unless said), for rows to be drawn by. Raises ValueError
        for "mean" and "resample": what they are of is known to `evaluate`, and to a tensor.
        """
        if self.of_reference:
            raise ValueError(
                f'"{self.value}" is taken from a data set by `evaluate`; for hooks of your own, give the values: '
                "Ablation(neurons, value=statistics.at(neurons))"
            )
        where = None if self.where is None else inputs.mask(*self.group.split("+"))
        rows = _Rows(inputs, tuple(range(len(inputs)) if places is None else places), self.seed)
        live = model.live_layers if self.complement else {}
        found: list[Hook] = []
        for (module, layer), (indices, neurons) in self._layers.items():
            if layer >= live.get(module, layer + 1):
                continue
            site: Site = "post" if self.site == "gate_act" and not model.is_gated(layer, module) else self.site
            if isinstance(self.value, str) or (isinstance(self.value, Tensor) and self.value.ndim == 2):
                value = rows.lowest(module) if isinstance(self.value, str) else rows.drawn(module, self.value[:, indices])
                found += _hold(model, module, layer, neurons.unit, site, value, where)
            else:
                value = self.value[indices] if isinstance(self.value, Tensor) else float(self.value)
                found += ablate(neurons, value=value, site=site, where=where)
        return found


def digest(*values: Any) -> str:
    """Return a hash (16 hex digits) of tensors, numbers and text, in order."""
    sha = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            sha.update(f"{list(value.shape)}".encode())
            sha.update(value.detach().cpu().float().contiguous().numpy().tobytes())
        else:
            sha.update(json.dumps(value).encode())
    return sha.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class _Rows:
    """Which example each position of an activation belongs to, and what is held there."""

    inputs: Inputs
    places: tuple[int, ...]
    seed: int

    def positions(self, module: str, shape: Sequence[int]) -> tuple[Int[Tensor, "..."], Int[Tensor, "..."]]:
        """Return the row (-1: padding) of every position, and its number in that row, from 0 at the first real one."""
        if STEP.get() and module == "language":
            numbers = self.inputs.attention_mask.sum(1, keepdim=True) + STEP.get() - 1
            return torch.arange(len(self.inputs), device=numbers.device)[:, None], numbers
        rows, _ = self.inputs.held(module, shape)
        numbers = torch.zeros_like(rows)
        for row in range(len(self.inputs)):
            own = rows == row
            numbers[own] = torch.arange(int(own.sum()), device=rows.device)
        return rows, numbers

    def lowest(self, module: str) -> Callable[[Tensor], Tensor]:
        """Return a function of an activation [..., unit] that returns the minimum in each position's example [..., 1]."""

        def value(activation: Tensor) -> Tensor:
            rows, _ = self.positions(module, activation.shape[:-1])
            lowest = activation.amin(-1)
            for row in range(len(self.inputs)):
                if (own := (rows == row).to(lowest.device)).any():
                    lowest = torch.where(own, lowest[own].min(), lowest)
            return lowest[..., None]

        return value

    def drawn(self, module: str, pool: Float[Tensor, "row neuron"]) -> Callable[[Tensor], Tensor]:
        """Return a function of an activation [..., unit] that returns one row of `pool` for every position [..., neuron]."""

        def value(activation: Tensor) -> Tensor:
            rows, numbers = self.positions(module, activation.shape[:-1])
            chosen = torch.zeros_like(rows)
            for row, place in enumerate(self.places):
                if len(own := numbers[rows == row]):
                    draws = np.random.default_rng((self.seed, place)).integers(len(pool), size=int(own.max()) + 1)
                    chosen[rows == row] = torch.from_numpy(draws).to(own.device)[own]
            return pool.to(activation.device)[chosen.to(activation.device)]

        return value


def _hold(
    model: HookedMLLM,
    module: str,
    layer: int,
    units: Int[Tensor, " unit"],
    site: Site,
    value: Callable[[Tensor], Tensor],
    where: Tensor | None,
) -> list[Hook]:
    """Return the hooks that hold units at what `value` makes of the activation of their layer at `site`."""
    if site != "gate_act":

        def hold(activation: Tensor, hook: Any) -> Tensor | None:
            return hooks.replace(value(activation), where=where, units=units)(activation, hook=hook)

        return [(neuron_hook(module, layer, site), hold)]
    act, seen = model.act(layer, module), dict[str, Tensor]()

    def keep(name: Literal["pre", "pre_linear"]) -> Hook:
        return neuron_hook(module, layer, name), feed(lambda activation, hook: seen.update({name: activation}))

    def hold_gate(post: Tensor, hook: Any) -> Tensor | None:
        linear, gate = seen.pop("pre_linear")[..., units.to(post.device)], act(seen.pop("pre"))
        return hooks.replace(value(gate).to(linear) * linear, where=where, units=units)(post, hook=hook)

    return [keep("pre"), keep("pre_linear"), (neuron_hook(module, layer, "post"), hold_gate)]
