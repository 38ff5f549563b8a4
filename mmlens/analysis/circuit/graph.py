"""What a circuit is drawn in: what writes into the stream, what reads from it, and which can reach which."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.results import Storable

ENTERING = ("embed", "deepstack")  # what the language model gets from outside


@dataclass(frozen=True, eq=False)
class Graph(Storable):
    """The nodes of a model for some sites: sources write into the stream, destinations read from it.

    Sources are what enters at each of `sites`' positions (`image`, `text`, ... as they were named; `L2.deepstack` what
    DeepStack adds behind block 2), heads (`L2H1`), MLPs (`L2.mlp`) and sets of neurons taken out of them (`L2.name`).
    Destinations are the queries, keys and values of heads (`L2H1.q`; where heads share keys and values, `L2H0-1.k`), the
    inputs of MLPs and sets (`L2.mlp`, `L2.name`), and `logits`.

    `kind`s are embed, deepstack, head, mlp, neurons of sources, and q, k, v, mlp, neurons, logits of destinations; `layer`
    is -1 for what enters at block 0, and the depth for `logits`; `index` is a head, or a site's or a set's number.
    """

    sites: tuple[str, ...]
    sets: dict[str, Neurons]
    sources: tuple[str, ...]
    source_kind: tuple[str, ...]
    source_layer: Int[Tensor, " source"]
    source_index: Int[Tensor, " source"]
    destinations: tuple[str, ...]
    kind: tuple[str, ...]
    layer: Int[Tensor, " destination"]
    index: Int[Tensor, " destination"]
    possible: Bool[Tensor, "source destination"]
    heads_for_each: int

    def __repr__(self) -> str:
        return f"Graph({len(self.sources)} sources, {len(self.destinations)} destinations, {int(self.possible.sum())} edges)"

    def nodes_of(self, destination: int) -> list[int]:
        """Return the sources that a destination is the input of: none of `logits`, all heads that share keys."""
        kind, layer, index = self.kind[destination], int(self.layer[destination]), int(self.index[destination])
        if kind == "logits":
            return []
        if kind in ("mlp", "neurons"):
            return self._sources.get((kind, layer, index), [])
        heads = [index] if kind == "q" else range(index * self.heads_for_each, (index + 1) * self.heads_for_each)
        return [one for head in heads for one in self._sources.get(("head", layer, head), [])]

    @cached_property
    def _sources(self) -> dict[tuple[str, int, int], list[int]]:
        found: dict[tuple[str, int, int], list[int]] = {}
        each = zip(self.source_kind, self.source_layer.tolist(), self.source_index.tolist(), strict=True)
        for number, key in enumerate(each):
            found.setdefault(key, []).append(number)
        return found

    def same(self, other: "Graph") -> bool:
        """Return whether another graph has the same nodes."""
        return (self.sources, self.destinations) == (other.sources, other.destinations)


def graph_of(
    model: HookedMLLM,
    inputs: Inputs,
    *,
    sites: Mapping[str, Bool[Tensor, "batch pos"]] | None = None,
    neurons: Mapping[str, Neurons] | None = None,
) -> tuple[Graph, Bool[Tensor, "site batch pos"]]:
    """Return the nodes of a model, and the positions of each site: those given, and a site "rest" for all others.

    Without `sites` they are the modalities. Raises ValueError for sites that share a position or are not masks of these
    inputs, for names that nodes of the model have, for neurons of a tower, and for sets that share a neuron.
    """
    named, masks = _sites(inputs, sites)
    sets = dict(neurons or {})
    _check(sets, named)
    depth, heads = model.cfg.n_layers, model.cfg.n_heads
    groups = getattr(model.cfg, "n_key_value_heads", None) or heads
    each = heads // groups
    parallel = bool(getattr(model.cfg, "parallel_attn_mlp", False))
    sources: list[tuple[str, str, int, int, int]] = [(name, "embed", -1, place, -1) for place, name in enumerate(named)]
    readers: list[tuple[str, str, int, int, int]] = []
    for layer in range(depth):
        stage, own = 3 * layer, [place for place, one in enumerate(sets.values()) if ("language", layer) in one.by_layer()]
        inner = [*((f"L{layer}.{list(sets)[place]}", "neurons", place) for place in own), (f"L{layer}.mlp", "mlp", -1)]
        sources += [(f"L{layer}H{head}", "head", layer, head, stage) for head in range(heads)]
        sources += [(name, kind, layer, place, stage + 1) for name, kind, place in inner]
        readers += [(f"L{layer}H{head}.q", "q", layer, head, stage) for head in range(heads)]
        for group in range(groups):
            shared = f"L{layer}H{group * each}{f'-{group * each + each - 1}' if each > 1 else ''}"
            readers += [(f"{shared}.{kind}", kind, layer, group, stage) for kind in ("k", "v")]
        readers += [(name, kind, layer, place, stage + (not parallel)) for name, kind, place in inner]
        if f"deepstack.{layer}.hook_out" in model.hook_names and bool(inputs.mask("image", "video").any()):
            sources.append((f"L{layer}.deepstack", "deepstack", layer, -1, stage + 2))
    readers.append(("logits", "logits", depth, -1, 3 * depth))
    taken = {one[0] for one in (*sources[len(named) :], *readers)}
    if clash := [name for name in named if name in taken]:
        raise ValueError(f"a site has a name of its own, {clash[0]!r} is a node of the model: name it otherwise")
    written, read = (torch.tensor([one[4] for one in part]) for part in (sources, readers))
    graph = Graph(
        sites=named,
        sets=sets,
        sources=tuple(one[0] for one in sources),
        source_kind=tuple(one[1] for one in sources),
        source_layer=torch.tensor([one[2] for one in sources]),
        source_index=torch.tensor([one[3] for one in sources]),
        destinations=tuple(one[0] for one in readers),
        kind=tuple(one[1] for one in readers),
        layer=torch.tensor([one[2] for one in readers]),
        index=torch.tensor([one[3] for one in readers]),
        possible=written[:, None] < read[None],
        heads_for_each=each,
    )
    return graph, masks


def _sites(inputs: Inputs, sites: Mapping[str, Tensor] | None) -> tuple[tuple[str, ...], Bool[Tensor, "site batch pos"]]:
    if sites is None:
        groups = ("image", "video", "audio", "text", "special")
        sites = {group: mask for group in groups if bool((mask := inputs.mask(group)).any())}
    for name, mask in sites.items():
        if mask.shape != inputs.tokens.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"site {name!r} is a mask {list(inputs.tokens.shape)} of booleans, got {mask.dtype} {list(mask.shape)}: "
                "make it from these inputs, for instance inputs.overlap(box) > 0"
            )
    device = inputs.tokens.device
    masks = torch.stack([mask.to(device) for mask in sites.values()]) if sites else inputs.tokens.new_zeros(0).bool()
    if len(sites) and (masks.sum(0) > 1).any():
        raise ValueError(f"sites share no position, got {', '.join(sites)}, of which some do: take one out of the other")
    rest = ~masks.any(0) if len(sites) else torch.ones_like(inputs.tokens, dtype=torch.bool)
    if "rest" in sites:
        raise ValueError("a site called 'rest' is made of all positions that are in none: name yours otherwise")
    return (*sites, "rest"), torch.cat([masks.view(-1, *rest.shape), rest[None]])


def _check(sets: Mapping[str, Neurons], sites: tuple[str, ...]) -> None:
    seen: set[tuple[str, int, int]] = set()
    for name, own in sets.items():
        if set(own.module) - {"language"}:
            raise ValueError(f"nodes are neurons of the language model, {name!r} has some of {sorted(set(own.module))}")
        if name in ("mlp", "deepstack", "logits") or "." in name or name in sites:
            raise ValueError(f"a set of neurons has a name of its own without a full stop, got {name!r}")
        if shared := seen & set(own):
            raise ValueError(f"a neuron is in one set, {sorted(shared)[0]} is in two: take it out of one")
        seen |= set(own)
