"""The output rows of neurons, read and written in the model's own weights; and noise on them for the length of a `with`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.weights import is_offloaded, is_packed

Rows = dict[tuple[str, int], Tensor]
"""The output rows of a set's neurons [neuron, d_out], by module and layer, in the set's order."""


def check_neurons(model: HookedMLLM, neurons: Neurons) -> None:
    """Raise ValueError for no neurons, and for those of a model whose layers are of other widths."""
    if not len(neurons):
        raise ValueError("rows are those of at least one neuron, got an empty set: choose some, with top_k for instance")
    for module in dict.fromkeys(neurons.module):
        if neurons.widths[module] != model.widths.get(module):
            raise ValueError(
                f"neurons are of the model that is edited: these have {neurons.widths[module]} units in the layers of "
                f"{module}, {model.name} has {model.widths.get(module)}"
            )


def check_writable(model: HookedMLLM) -> None:
    """Raise ValueError for a model whose weights are not plain numbers in memory."""
    if is_offloaded(model.hf_model) or is_packed(model.hf_model):
        raise ValueError(
            f"rows are written in plain weights in memory, {model.name} has packed or offloaded ones: put an edit on as "
            "hooks, by edit.hooks(model), or load the model whole"
        )


@torch.no_grad()
def read_rows(model: HookedMLLM, neurons: Neurons) -> Rows:
    """Return a copy of the neurons' output rows."""
    return {key: model.W_out(key[1], key[0])[units].clone() for key, units in _by_layer(model, neurons)}


@torch.no_grad()
def write_rows(model: HookedMLLM, neurons: Neurons, rows: Mapping[tuple[str, int], Tensor]) -> None:
    """Put `rows` in the place of the neurons' output rows, in the model's own weights. Every other row stays."""
    for key, units in _by_layer(model, neurons):
        weight = model.W_out(key[1], key[0])  # a view: torch counts what is set in it as an edit of the weight
        weight[units] = rows[key].to(weight)


def by_layer(neurons: Neurons, values: Float[Tensor, "neuron d_out"]) -> Rows:
    """Return the values of the neurons of each module and layer."""
    return {key: values[indices] for key, indices in neurons.indices_by_layer().items()}


@contextmanager
def perturb(model: HookedMLLM, neurons: Neurons, sigma: float, seed: int) -> Iterator[HookedMLLM]:
    """Yield the model with N(0, `sigma`^2) noise on the output rows of `neurons`, for the length of a `with`.

    Noise is drawn in float32 by `seed`, in the neurons' order, in the weights' own units; neurons may be of any module.
    Afterwards, also when something raises, the weights are bit by bit what they were. Raises ValueError for packed or
    offloaded weights, neurons of another model, and a negative `sigma`. Source: Pan et al. 2024 (methods B7), who draw
    uniformly random neurons as their control: `neurons.random_like(seed=...)` is matched by layer.
    """
    check_neurons(model, neurons)
    check_writable(model)
    if sigma < 0:
        raise ValueError(f"sigma is a standard deviation, 0 or more, got {sigma}")
    generator = torch.Generator().manual_seed(seed)
    kept = read_rows(model, neurons)
    noise = {key: sigma * torch.randn(rows.shape, generator=generator) for key, rows in kept.items()}
    try:
        write_rows(model, neurons, added(kept, noise))
        yield model
    finally:
        write_rows(model, neurons, kept)


def added(rows: Mapping[tuple[str, int], Tensor], change: Mapping[tuple[str, int], Tensor]) -> Rows:
    """Return rows plus a change to each, summed in float32 or better and rounded once."""
    wide = {key: torch.promote_types(own.dtype, torch.float32) for key, own in rows.items()}
    return {key: (own.to(wide[key]) + change[key].to(own.device, wide[key])).to(own.dtype) for key, own in rows.items()}


def _by_layer(model: HookedMLLM, neurons: Neurons) -> Iterator[tuple[tuple[str, int], Tensor]]:
    for (module, layer), units in neurons.by_layer().items():
        yield (module, layer), units.to(model.W_out(layer, module).device)
