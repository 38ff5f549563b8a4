"""What is patched: an activation, at named places, head by head or unit by unit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlens.hooks import feed, neuron_hook
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons

Activation = Literal[
    "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "pattern", "pre", "post"
]
HEADED = ("q", "k", "v", "z", "pattern")
Part = Int[Tensor, " index"] | None


@dataclass(frozen=True)
class Nodes:
    """An `activation` of every layer at each of `masks` (named `sites`), whole or one of `parts` (heads or units) by itself.

    `neurons`: of each layer, those units only, together.
    """

    activation: Activation
    sites: tuple[str, ...]
    masks: list[Bool[Tensor, "batch pos"]]
    parts: tuple[int, ...]
    neurons: dict[int, Int[Tensor, " unit"]] | None

    @property
    def axis(self) -> int:
        """Where positions lie in the activation: the queries of a pattern are its third axis."""
        return 2 if self.activation == "pattern" else 1

    @property
    def spreads(self) -> bool:
        """Whether a change at some positions changes what the same block adds to other positions."""
        return self.activation in ("resid_pre", "k", "v")

    def everywhere(self, inputs: Inputs) -> Bool[Tensor, "batch pos"]:
        """Return the positions of all sites together."""
        return torch.stack([torch.zeros_like(inputs.tokens, dtype=torch.bool), *self.masks]).any(0)

    def name(self, layer: int) -> str:
        """Return the hook point that holds the activation of a layer."""
        if self.activation in ("pre", "post"):
            return neuron_hook("language", layer, self.activation)
        return f"blocks.{layer}.{'attn.' if self.activation in HEADED else ''}hook_{self.activation}"

    def part(self, layer: int, number: int | None) -> Part:
        """Return which heads or units are meant in a layer, None for all: one of `parts`, or the layer's neurons."""
        if self.neurons is not None:
            return self.neurons.get(layer, torch.tensor([], dtype=torch.long))
        return None if number is None else torch.tensor([number])

    def together(self, layer: int) -> Part:
        """Return all heads or units that are meant in a layer, None for all there are."""
        return torch.tensor(self.parts) if self.parts else self.part(layer, None)

    def choose(self, values: Float[Tensor, "place ..."], part: Part) -> Float[Tensor, "place ..."]:
        """Return the heads (the axis behind places) or units (the last axis) of `part`."""
        if part is None:
            return values
        return values.index_select(1 if self.activation in HEADED else -1, part.to(values.device))

    def at(self, activation: Float[Tensor, "..."], where: Bool[Tensor, "batch pos"]) -> Float[Tensor, "place ..."]:
        """Return an activation's values at some positions, row by row: [place, ...]."""
        return activation.movedim(self.axis, 1)[where.to(activation.device)]

    def put(
        self,
        activation: Float[Tensor, "..."],
        where: Bool[Tensor, "batch pos"],
        values: Float[Tensor, "place ..."],
        part: Part,
    ) -> None:
        """Set an activation's values at some positions, of all or of some heads or units, in place."""
        rows, here = activation.movedim(self.axis, 1), where.to(activation.device)
        if part is not None:
            axis, part = (1 if self.activation in HEADED else -1), part.to(activation.device)
            values = rows[here].index_copy(axis, part, values.to(activation.device).index_select(axis, part))
        rows[here] = values.to(activation.device)


def nodes(
    model: HookedMLLM,
    inputs: Inputs,
    activation: Activation,
    *,
    sites: Mapping[str, Bool[Tensor, "batch pos"]] | None,
    positions: Sequence[int] | None,
    heads: Sequence[int] | None,
    units: Sequence[int] | Neurons | None,
) -> Nodes:
    """Return the nodes that these arguments of `activation_patching` describe.

    Raises ValueError for arguments that do not go together or masks that are not of these inputs, IndexError for a position,
    head or unit that is not there, UnknownHook for an activation that this model has not.
    """
    if activation not in get_args(Activation):
        raise ValueError(f"an activation is one of {', '.join(get_args(Activation))}, got {activation!r}")
    if heads is not None and (activation not in HEADED or units is not None):
        raise ValueError(f"heads are parts of {', '.join(HEADED)}; got heads for {activation}: leave them out")
    if units is not None and activation in HEADED:
        raise ValueError(f"units are parts of a stream or of neurons, {activation} has heads: give `heads`")
    neurons = None
    if isinstance(units, Neurons):
        if activation not in ("pre", "post") or set(units.module) - {"language"}:
            raise ValueError(f"neurons of the language model are patched at `pre` or `post`, got {activation} of {units}")
        neurons, units = {layer: found for (_, layer), found in units.by_layer().items()}, None
    labels, masks = _places(inputs, sites, positions)
    parts = tuple(map(int, (heads if heads is not None else units) or ()))
    found = Nodes(activation=activation, sites=labels, masks=masks, parts=parts, neurons=neurons)
    model.points.resolve(found.name(0))
    if parts and not 0 <= min(parts) <= max(parts) < (count := _count(model, activation)):
        raise IndexError(f"{activation} has {'heads' if heads is not None else 'units'} 0 to {count - 1}, got {list(parts)}")
    return found


def windows_of(depth: int, layers: Sequence[int] | None, window: int) -> tuple[tuple[int, int], ...]:
    """Return the first layer, and the one behind the last, of each window: those that start at `layers`, or all that fit.

    Raises ValueError for a window of no layer or too many, IndexError for one that starts where it does not fit.
    """
    if not 1 <= window <= depth:
        raise ValueError(f"a window has 1 to {depth} layers, got {window}: choose among those")
    starts = range(depth - window + 1) if layers is None else [int(layer) for layer in layers]
    if outside := [start for start in starts if not 0 <= start <= depth - window]:
        raise IndexError(f"windows of {window} start at the layers 0 to {depth - window}, got {outside[0]}")
    return tuple((start, start + window) for start in starts)


def values_at(
    model: HookedMLLM, inputs: Inputs, nodes: Nodes, layers: Sequence[int], where: Bool[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "batch pos d_vocab"], dict[int, Float[Tensor, "place ..."]]]:
    """Return the logits of a run, and the activation of each layer at the `where` positions only."""
    kept: dict[int, Tensor] = {}
    hooks = [
        (nodes.name(layer), feed(lambda activation, hook, l=layer: kept.__setitem__(l, nodes.at(activation, where))))
        for layer in layers
    ]
    with torch.no_grad():
        return model.run_with_hooks(inputs, fwd_hooks=hooks), kept


def lined_up(clean: Inputs, corrupted: Inputs) -> None:
    """Raise ValueError where the positions of two inputs do not hold the same kinds of things."""
    if clean.tokens.shape != corrupted.tokens.shape or not clean.modality.equal(corrupted.modality):
        raise ValueError(
            f"clean and corrupted must line up position by position; got {list(clean.tokens.shape)} and "
            f"{list(corrupted.tokens.shape)} positions"
            + (" of differing kinds" if clean.tokens.shape == corrupted.tokens.shape else "")
            + ": word the corrupted question with as many tokens, or change the picture by model.with_images"
        )


def _places(
    inputs: Inputs, sites: Mapping[str, Bool[Tensor, "batch pos"]] | None, positions: Sequence[int] | None
) -> tuple[tuple[str, ...], list[Tensor]]:
    shape, length = inputs.tokens.shape, inputs.tokens.shape[1]
    if sites is not None:
        if positions is not None:
            raise ValueError("what is patched is `sites` (named masks) or `positions` (one by one), got both: give one")
        for name, mask in sites.items():
            if mask.shape != shape or mask.dtype != torch.bool:
                raise ValueError(
                    f"site {name!r} is a mask {list(shape)} of booleans, got {mask.dtype} {list(mask.shape)}: make it from "
                    "these inputs, for instance inputs.mask('image')"
                )
        return tuple(sites), list(sites.values())
    chosen = range(length) if positions is None else [int(position) for position in positions]
    if outside := [position for position in chosen if not -length <= position < length]:
        raise IndexError(f"these inputs have the positions 0 to {length - 1}, got {outside[0]}")
    every = torch.arange(length, device=inputs.tokens.device)
    return tuple(str(position % length) for position in chosen), [
        (every == position % length).expand(shape) for position in chosen
    ]


def _count(model: HookedMLLM, activation: Activation) -> int:
    """Return how many heads or units an activation has."""
    if activation in ("k", "v"):
        return getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads
    if activation in HEADED:
        return model.cfg.n_heads
    return min(model.widths["language"]) if activation in ("pre", "post") else model.cfg.d_model
