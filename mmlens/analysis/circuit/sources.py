"""What every source writes at every position, in a run."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmlens.analysis.circuit.graph import Graph
from mmlens.analysis.components import Components, Reader
from mmlens.hooks import Hook
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM

Written = Float[Tensor, "source batch pos d_model"]


def reading(
    model: HookedMLLM, inputs: Inputs, graph: Graph, sites: Bool[Tensor, "site batch pos"]
) -> tuple[list[Hook], Callable[[], Written]]:
    """Return hooks that read a run, and what then tells what each source wrote in it: see `written`."""
    reader = Reader(model, inputs, torch.ones_like(inputs.tokens, dtype=torch.bool), True, units_of(graph), None)

    def read() -> Written:
        values = torch.zeros(len(graph.sources), *inputs.tokens.shape, model.cfg.d_model)
        components = reader.components()
        each = (part.view(values.shape[1:]) for parts in reader.parts() for part in parts)
        placed(values, components, each, graph, sites.cpu())
        return values

    return reader.through(model.cfg.n_layers), read


@torch.no_grad()
def written(
    model: HookedMLLM,
    inputs: Inputs,
    graph: Graph,
    sites: Bool[Tensor, "site batch pos"],
    output: Callable[[Float[Tensor, "batch pos d_vocab"]], None] | None = None,
) -> Written:
    """Return what each source writes at each position (padding too), in float32 on the CPU; `output` gets the logits."""
    hooks, read = reading(model, inputs, graph, sites)
    logits = model.run_with_hooks(inputs, fwd_hooks=hooks)
    if output is not None:
        output(logits)
    return read()


def units_of(graph: Graph) -> dict[int, Tensor]:
    """Return the units of all sets of neurons, by layer, set after set."""
    found: dict[int, list[Tensor]] = {}
    for own in graph.sets.values():
        for (_, layer), units in own.by_layer().items():
            found.setdefault(layer, []).append(units)
    return {layer: torch.cat(units) for layer, units in found.items()}


def placed(
    values: Written,
    components: Components,
    parts: Iterable[Float[Tensor, "batch pos d_model"]],
    graph: Graph,
    sites: Bool[Tensor, "site batch pos"],
) -> None:
    """Add components to the sources that they belong to, in place; biases, which are the same in every run, to none."""
    number = {name: place for place, name in enumerate(graph.sources)}
    member = {one: name for name, own in graph.sets.items() for one in own}
    each = zip(components.kind, components.layer.tolist(), components.index.tolist(), parts, strict=True)
    for kind, layer, index, part in each:
        if kind in ("embed", "pos_embed"):
            for place, mask in enumerate(sites):
                values[place] += part * mask[..., None]
            continue
        own = {
            "head": f"L{layer}H{index}",
            "mlp": f"L{layer}.mlp",
            "mlp_rest": f"L{layer}.mlp",
            "neuron": f"L{layer}.{member.get(('language', layer, index))}",
            "deepstack": f"L{layer}.deepstack",
        }.get(kind)
        if own is not None:
            values[number[own]] += part
