"""A run in which every destination gets what its edges carry: live along some, as in another run along the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlens.analysis.circuit.graph import ENTERING, Graph
from mmlens.analysis.circuit.sources import Written, placed, units_of
from mmlens.analysis.components import Reader
from mmlens.analysis.replay import Replay, record
from mmlens.hooks import Hook, neuron_hook
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM

Edges = Bool[Tensor, "source destination"]


@dataclass(frozen=True, eq=False)
class Base:
    """The run that an edge carries where it is not live: every source, and the streams that they add up to.

    `entering[l]` is the stream before block l (the last one leaves the last block), `between[l]` that before its MLP.
    """

    replay: Replay
    inputs: Inputs
    sources: Written
    entering: list[Float[Tensor, "batch pos d_model"]]
    between: list[Float[Tensor, "batch pos d_model"]]

    @classmethod
    def of(cls, model: HookedMLLM, inputs: Inputs, sources: Written, *, mean: bool = False) -> "Base":
        """Return the run on `inputs`; with `mean`, every source is its mean over rows, position by position."""
        replay = record(model, inputs)
        parallel = bool(getattr(model.cfg, "parallel_attn_mlp", False))
        names = [] if parallel else [f"blocks.{layer}.hook_resid_mid" for layer in range(model.cfg.n_layers)]
        cache = model.run_with_cache(inputs, names)[1] if names else {}
        entering = [stream.float().cpu() for stream in replay.streams]
        entering[-1] = entering[-1] + (0 if replay.between[-1] is None else replay.between[-1].float().cpu())
        between = [cache[name].float().cpu() for name in names]
        if mean:
            sources = sources.mean(1, keepdim=True).expand_as(sources)
            entering, between = ([s.mean(0, keepdim=True).expand_as(s) for s in part] for part in (entering, between))
        return cls(replay, inputs, sources, entering, between)


@torch.no_grad()
def run_edges(
    graph: Graph,
    base: Base,
    live: Edges,
    start: Written,
    sites: Bool[Tensor, "site batch pos"],
    *,
    carried: tuple[Edges, Written] | None = None,
    first: int = 0,
) -> Float[Tensor, "batch pos d_vocab"]:
    """Return the logits of a run that begins with what enters in `start`.

    A destination reads the `base` run, changed by what its `live` sources write in this run less what they wrote in that
    one, and by `carried`: edges along which a given change is added instead. Blocks before `first` are as in `base`.
    """
    run = _Run(graph, base, live, sites, start, carried)
    for layer in range(first, len(base.replay.calls)):
        run.block(layer)
    model = base.replay.model
    final = run.stream(base.entering[-1], run.rows([len(graph.destinations) - 1])[0])
    return model.unembed(final.to(base.replay.logits))


class _Run:
    """`away` is how far each source is from the base run, for those that have written."""

    def __init__(
        self,
        graph: Graph,
        base: Base,
        live: Edges,
        sites: Tensor,
        start: Written,
        carried: tuple[Edges, Written] | None,
    ) -> None:
        self.graph, self.base, self.live, self.sites, self.carried = graph, base, live & graph.possible, sites.cpu(), carried
        self.away = torch.zeros_like(base.sources)
        outside = [number for number, kind in enumerate(graph.source_kind) if kind in ENTERING]
        self.away[outside] = start[outside] - base.sources[outside]
        self.parallel = not base.between
        self.units = units_of(graph)

    def rows(self, destinations: Sequence[int]) -> list[tuple[Tensor, Tensor | None]]:
        """Return which sources are live for each destination, and which carry a change."""
        carried = None if self.carried is None else self.carried[0] & self.graph.possible
        return [(self.live[:, n], None if carried is None else carried[:, n]) for n in destinations]

    def stream(self, base: Tensor, row: tuple[Tensor, Tensor | None]) -> Float[Tensor, "batch pos d_model"]:
        """Return what a destination reads."""
        live, carries = row
        found = base + self.away[live].sum(0)
        if carries is not None and self.carried is not None and bool(carries.any()):
            found = found + self.carried[1][carries].sum(0)
        return found

    def grouped(self, destinations: Sequence[int]) -> tuple[list[tuple[Tensor, Tensor | None]], Int[Tensor, " place"]]:
        """Return the different things that destinations read, and which of them each does."""
        rows = self.rows(destinations)
        keys = [tuple(torch.cat([part for part in row if part is not None]).tolist()) for row in rows]
        order = list(dict.fromkeys(keys))
        return [rows[keys.index(key)] for key in order], torch.tensor([order.index(key) for key in keys], dtype=torch.long)

    def block(self, layer: int) -> None:
        """Run a block, once for each different thing that its destinations read, and note what its sources write."""
        graph, base, model = self.graph, self.base, self.base.replay.model
        own = [n for n, at in enumerate(graph.layer.tolist()) if at == layer and graph.kind[n] != "logits"]
        attention = [n for n in own if graph.kind[n] in ("q", "k", "v")]
        inner = [n for n in own if n not in attention]
        first, of_attention = self.grouped(attention + (inner if self.parallel else []))
        streams = [self.stream(base.entering[layer], row) for row in first]
        later, of_inner = ([], of_attention[len(attention) :]) if self.parallel else self.grouped(inner)
        runs = max(len(first), len(later))
        streams += streams[:1] * (runs - len(streams))
        batch = len(streams[0])
        reader = self._reader(layer, runs, batch, int(of_inner[inner.index(self._mlp(layer))]))
        hooks: list[Hook] = []
        for kind in ("q", "k", "v"):
            which = [place for place, n in enumerate(attention) if graph.kind[n] == kind]
            hooks.append((f"blocks.{layer}.attn.hook_{kind}", _assembled(runs, of_attention[which], axis=2)))
        hooks += reader.attention(layer)
        if not self.parallel:

            def mid(stream: Tensor, hook: Any) -> Tensor:
                self._note(reader, layer, batch)
                read = [self.stream(base.between[layer], row) for row in later]
                return torch.cat(read + read[:1] * (runs - len(read))).to(stream)

            hooks.append((f"blocks.{layer}.hook_resid_mid", mid))
        if layer in self.units:
            width = model.widths["language"][layer]
            of_unit = torch.full((width,), int(of_inner[inner.index(self._mlp(layer))]))
            for place, n in enumerate(inner):
                if graph.kind[n] == "neurons":
                    set_units = list(graph.sets.values())[int(graph.index[n])].by_layer()["language", layer]
                    of_unit[set_units] = of_inner[place]
            hooks.append((neuron_hook("language", layer, "post"), _assembled(runs, of_unit, axis=-1)))
            hooks += [reader.keep(neuron_hook("language", layer, "post")), *reader.scale(layer, "ln2_post")]
        hooks.append(reader.keep(f"blocks.{layer}.hook_mlp_out"))
        base.replay.block(layer, torch.cat(streams), hooks)
        if self.parallel:
            self._note(reader, layer, batch)
        reader.compute(layer)
        self._note(reader, layer, batch, attend=False)

    def _mlp(self, layer: int) -> int:
        return self.graph.destinations.index(f"L{layer}.mlp")

    def _reader(self, layer: int, runs: int, batch: int, which: int) -> Reader:
        """Return what reads the sources of a block, in the run whose MLP reads what the MLP node does."""
        where = torch.zeros(runs, batch, self.away.shape[2], dtype=torch.bool)
        where[which] = True
        return Reader(self.base.replay.model, self.base.inputs, where.flatten(0, 1), True, self.units, None)

    def _note(self, reader: Reader, layer: int, batch: int, *, attend: bool = True) -> None:
        """Set how far what a block's heads, or MLP, wrote is from the base run."""
        if attend:
            reader.attend(layer)
        kinds = ("head",) if attend else ("mlp", "neurons")
        own = [
            n
            for n, (kind, at) in enumerate(zip(self.graph.source_kind, self.graph.source_layer.tolist(), strict=True))
            if at == layer and kind in kinds
        ]
        self.away[own] = -self.base.sources[own]
        components = reader.components()
        each = (part.view(batch, -1, part.shape[-1]) for parts in reader.parts() for part in parts)
        placed(self.away, components, each, self.graph, self.sites)


def _assembled(runs: int, of: Int[Tensor, " part"], *, axis: int) -> Any:
    """Return a hook that takes each head (or unit) from its own run, and puts the whole into all runs."""

    def assemble(activation: Tensor, hook: Any) -> Tensor | None:
        if runs == 1:
            return None
        by_run = activation.unflatten(0, (runs, -1)).movedim(axis if axis < 0 else axis + 1, 0)  # [part, run, batch, ...]
        chosen = by_run[torch.arange(len(of), device=activation.device), of.to(activation.device)]
        whole = chosen.movedim(0, axis)
        return whole.repeat(runs, *[1] * (whole.ndim - 1))

    return assemble
