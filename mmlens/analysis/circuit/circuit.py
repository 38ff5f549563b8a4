"""The edges along which a difference reaches the answer: from image regions and words through heads and MLPs to logits."""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmlens.analysis.circuit.attribution import attributed, integrated
from mmlens.analysis.circuit.graph import Graph, graph_of
from mmlens.analysis.circuit.running import Base, run_edges
from mmlens.analysis.circuit.sources import Written, written
from mmlens.analysis.nodes import lined_up
from mmlens.analysis.patching import Metric
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.results import Provenance, Result

if TYPE_CHECKING:
    import networkx

Method = Literal["eap", "eap-ig", "exact"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Circuit(Result):
    """Edges of a `graph`: how much of a metric each carries, row by row, and which are `kept`.

    `scores` are in the metric's units: what the metric of the corrupted run would change by if the destination read the
    clean source; 0 where no edge can be. `clean_metric` and `corrupted_metric` are those of the two runs.
    """

    graph: Graph
    method: str
    scores: Float[Tensor, "source destination batch"]
    kept: Bool[Tensor, "source destination"]
    clean_metric: Float[Tensor, " batch"]
    corrupted_metric: Float[Tensor, " batch"]

    @classmethod
    def joined(cls, *parts: "Circuit") -> "Circuit":
        """Return the circuit of the pairs of several, all its edges kept. Raises ValueError for other nodes or methods."""
        if not parts or any(part.method != parts[0].method for part in parts):
            raise ValueError(f"circuits are joined that one method found, got {', '.join(part.method for part in parts)}")
        return replace(
            parts[0],
            scores=torch.cat([parts[0]._like(part).scores for part in parts], dim=-1),
            kept=parts[0].graph.possible.clone(),
            clean_metric=torch.cat([part.clean_metric for part in parts]),
            corrupted_metric=torch.cat([part.corrupted_metric for part in parts]),
            provenance=replace(parts[0].provenance, inputs=tuple(one for part in parts for one in part.provenance.inputs)),
        )

    @property
    def score(self) -> Float[Tensor, "source destination"]:
        """The mean over rows of each edge's score."""
        return self.scores.mean(-1)

    def __len__(self) -> int:
        return int(self.kept.sum())

    def __repr__(self) -> str:
        return (
            f"Circuit({len(self)} of {int(self.graph.possible.sum())} edges by {self.method}, {self.scores.shape[-1]} pairs)"
        )

    def top(self, k: int, *, whole: bool = True) -> "Circuit":
        """Return the circuit of the `k` kept edges with the largest absolute score, ties by source and destination.

        With `whole`, edges that nothing reaches from what enters, or that do not reach the logits, are then taken out.
        """
        ranked = torch.argsort(self.score.abs().masked_fill(~self.kept, -1).flatten(), descending=True, stable=True)
        if not 0 <= k <= len(self):
            raise ValueError(f"this circuit has {len(self)} edges, got k = {k}: take from 0 to all of them")
        chosen = torch.zeros_like(self.kept).flatten()
        chosen[ranked[:k]] = True
        return self._with(chosen.view_as(self.kept), whole=whole)

    def above(self, threshold: float, *, whole: bool = True) -> "Circuit":
        """Return the circuit of the kept edges whose absolute score is at least `threshold`; `whole` as in `top`."""
        return self._with(self.kept & (self.score.abs() >= threshold), whole=whole)

    def __and__(self, other: "Circuit") -> "Circuit":
        """Return this circuit with only those of its edges that another has too."""
        return self._with(self.kept & self._like(other).kept, whole=False)

    def __or__(self, other: "Circuit") -> "Circuit":
        """Return this circuit with the edges that either has."""
        return self._with(self.kept | self._like(other).kept, whole=False)

    def __sub__(self, other: "Circuit") -> "Circuit":
        """Return this circuit without the edges that another has."""
        return self._with(self.kept & ~self._like(other).kept, whole=False)

    def edges(self) -> pd.DataFrame:
        """Return the kept edges, the largest absolute score first: source, destination, score."""
        where = self.kept.nonzero()
        score = self.score[self.kept]
        order = torch.argsort(score.abs(), descending=True, stable=True)
        rows = [(*self._named(int(s), int(d)), float(score[n])) for n, (s, d) in zip(order, where[order], strict=True)]
        return pd.DataFrame(rows, columns=["source", "destination", "score"])

    def nodes(self) -> list[str]:
        """Return the sources that have a kept edge, in the order of the stream."""
        return [name for name, any_kept in zip(self.graph.sources, self.kept.any(1), strict=True) if any_kept]

    def outgoing(self) -> Float[Tensor, "source batch"]:
        """Return each source's attribution: the sum of all its edges' scores, kept or not."""
        return self.scores.sum(1)

    def incoming(self) -> Float[Tensor, "destination batch"]:
        """Return each destination's: the sum of the scores of all edges into it."""
        return self.scores.sum(0)

    def random_like(self, *, seed: int, whole: bool = False) -> "Circuit":
        """Return as many random edges of the graph; with `whole`, up to as many that lead from what enters to the logits."""
        ranks = torch.rand(self.kept.shape, generator=torch.Generator().manual_seed(seed))
        order = torch.argsort(ranks.masked_fill(~self.graph.possible, 2).flatten())[: int(self.graph.possible.sum())]

        def first(count: int) -> "Circuit":
            chosen = torch.zeros_like(self.kept).flatten()
            chosen[order[:count]] = True
            return self._with(chosen.view_as(self.kept), whole=whole)

        if not whole:
            return first(len(self))
        return first(bisect_right(range(len(order) + 1), len(self), key=lambda count: len(first(count))) - 1)

    def matched_like(self, *, seed: int) -> "Circuit":
        """Return, for each edge, another one that is not in the circuit, with an absolute score near its own.

        From the largest edge on, one of the ten nearest that are left is drawn. Raises ValueError where there are too few.
        """
        generator, size = np.random.default_rng(seed), self.score.abs().flatten()
        free = (self.graph.possible & ~self.kept).flatten().nonzero()[:, 0]
        if len(free) < len(self):
            raise ValueError(f"a matched set has {len(self)} other edges, there are {len(free)}: take a smaller circuit")
        left = free[torch.argsort(size[free], stable=True)].tolist()
        values = size[left].tolist()
        chosen = torch.zeros_like(size, dtype=torch.bool)
        for own in size[self.kept.flatten()].sort(descending=True).values.tolist():
            low = max(0, min(bisect_right(values, own) - 5, len(left) - 10))
            at = int(generator.integers(low, min(low + 10, len(left))))
            chosen[left.pop(at)] = True
            values.pop(at)
        return self._with(chosen.view_as(self.kept), whole=False)

    def to_networkx(self) -> "networkx.MultiDiGraph":
        """Return the kept edges as a graph of networkx, whose nodes are sources and `logits`.

        An edge has its `score` and the `way` it enters (q, k, v, mlp, logits); keys and values that heads share enter each.
        """
        import networkx  # a tenth of a second for what few ask

        found = networkx.MultiDiGraph()
        for s, d, score in self._entries():
            ends = [self.graph.sources[n] for n in self.graph.nodes_of(d)] or ["logits"]
            for end in ends:
                found.add_edge(
                    self.graph.sources[s], end, key=self.graph.destinations[d], score=score, way=self.graph.kind[d]
                )
        for name, kind, layer in zip(
            self.graph.sources, self.graph.source_kind, self.graph.source_layer.tolist(), strict=True
        ):
            if name in found:
                found.nodes[name].update(kind=kind, layer=layer)
        return found

    def to_dot(self) -> str:
        """Return the kept edges in Graphviz' language, layers upwards, red where they speak for the clean answer."""
        graph = self.to_networkx()
        largest = max((abs(data["score"]) for *_, data in graph.edges(data=True)), default=1.0) or 1.0
        lines = ["digraph circuit {", "  rankdir=BT;"]
        for source, end, data in graph.edges(data=True):
            color, width = ("#b2182b" if data["score"] > 0 else "#2166ac"), 0.5 + 4 * abs(data["score"]) / largest
            label = f"{data['way']} {data['score']:.3g}"
            style = f'label="{label}", color="{color}", penwidth={width:.2f}'
            ends = (json.dumps(name, ensure_ascii=False) for name in (source, end))
            lines.append(f"  {' -> '.join(ends)} [{style}];")
        return "\n".join([*lines, "}"])

    def to_json(self) -> str:
        """Return nodes and kept edges as JSON: {"nodes": [...], "edges": [{"source", "destination", "score"}]}."""
        edges = [
            dict(zip(("source", "destination", "score"), (*self._named(s, d), score), strict=True))
            for s, d, score in self._entries()
        ]
        return json.dumps({"method": self.method, "nodes": [*self.nodes(), "logits"], "edges": edges}, indent=1)

    def _entries(self) -> list[tuple[int, int, float]]:
        score = self.score
        return [(s, d, float(score[s, d])) for s, d in self.kept.nonzero().tolist()]

    def _named(self, source: int, destination: int) -> tuple[str, str]:
        return self.graph.sources[source], self.graph.destinations[destination]

    def _like(self, other: "Circuit") -> "Circuit":
        if not self.graph.same(other.graph):
            raise ValueError("circuits are compared over the same nodes; these have other sites, sets or layers")
        return other

    def _with(self, kept: Bool[Tensor, "source destination"], *, whole: bool) -> "Circuit":
        return replace(self, kept=_whole(self.graph, kept) if whole else kept)


def circuit(
    model: HookedMLLM,
    *,
    clean: Inputs,
    corrupted: Inputs,
    metric: Metric,
    sites: Mapping[str, Bool[Tensor, "batch pos"]] | None = None,
    neurons: Mapping[str, Neurons] | None = None,
    method: Method = "eap",
    steps: int = 5,
    edges: Sequence[tuple[str, str]] | None = None,
    progress: bool = False,
) -> Circuit:
    """Return what every edge carries of the difference between two runs; all are kept until `top` or `above` prunes them.

    Nodes are what enters at `sites` (masks of positions that do not overlap: regions of a picture by
    `inputs.overlap(mask_or_box) > 0`, cells, stretches of sound, words; without them, the modalities; "rest" is all else),
    every head and MLP, sets of `neurons` taken out of their MLPs, and the logits. An edge's score is what `metric` of the
    corrupted run changes by where the destination reads the clean source instead:

    - "eap": to first order, (clean - corrupted source) x the gradient where it is read, in the corrupted run;
    - "eap-ig": with that gradient integrated over `steps` runs whose inputs lie between the corrupted and the clean one;
    - "exact": each of `edges` (source, destination; default: all) is patched by itself, and all behind it runs again.

    To first order, a source's edges add up to what attribution patching gives it, and the edges into a destination to what
    its input is worth. One gradient does not see what would switch a silent unit on. "exact" does not see two edges either
    of which is enough, in the direction in which one stays in place: restored into the corrupted run each is seen; the other
    way round neither is, unless both are patched together (`faithfulness`). Nor, restored, two of which both are needed, as
    a head's keys and values: swap the runs. "eap-ig" sees both kinds, either way, where its `steps` do not jump over the
    stretch in which something saturates (five over a clamp: take 20).

    Costs two forwards and one backward ("eap"; of the backward, each head's last step again), two forwards and `steps` of
    both ("eap-ig"), or one forward of an edge's later layers each ("exact"). Raises ValueError where inputs do not line up.
    Sources: Syed et al. 2023 (EAP), Hanna et al. 2024 (EAP-IG); sites, grouped heads and neuron sets are ours.
    """
    lined_up(clean, corrupted)
    if steps < 1:
        raise ValueError(f"gradients are integrated over 1 step or more, got {steps}")
    if edges is not None and method != "exact":
        raise ValueError(f'edges are chosen for method="exact", which runs once for each; {method} has all at once')
    graph, masks = graph_of(model, corrupted, sites=sites, neurons=neurons)
    values: list[Tensor] = []

    def sources(inputs: Inputs) -> Written:
        return written(model, inputs, graph, masks, lambda logits: values.append(metric(logits).cpu()))

    moved = sources(clean)
    if method == "eap":  # the corrupted run is read while it runs with a gradient
        scores, worst = attributed(model, corrupted, metric, graph, masks, moved)
        values.append(worst)
    else:
        moved -= (here := sources(corrupted))
        if method == "exact":
            base = Base.of(model, corrupted, here)
            scores = _exact(graph, base, moved, masks, metric, values[1], edges, progress=progress)
        else:
            del here  # as large as all sources at all positions
            scores = integrated(model, clean, corrupted, metric, graph, moved, steps=steps, progress=progress)
    best, worst = values
    return Circuit(
        graph=graph,
        method=method,
        scores=scores * graph.possible[..., None],
        kept=graph.possible.clone(),
        clean_metric=best,
        corrupted_metric=worst,
        provenance=Provenance.record(
            model,
            (clean.digest(), corrupted.digest()),
            analysis="circuit",
            method=method,
            steps=steps if method == "eap-ig" else None,
            sites=list(graph.sites),
            neurons=list(graph.sets),
        ),
    )


def _exact(
    graph: Graph,
    base: Base,
    moved: Written,
    sites: Bool[Tensor, "site batch pos"],
    metric: Metric,
    worst: Float[Tensor, " batch"],
    edges: Sequence[tuple[str, str]] | None,
    *,
    progress: bool,
) -> Float[Tensor, "source destination batch"]:
    """Return each edge's effect on the metric: the corrupted run, but that one destination reads one source as it was."""
    from tqdm.auto import tqdm

    wanted = graph.possible.nonzero().tolist() if edges is None else [list(_edge(graph, *edge)) for edge in edges]
    scores = torch.zeros(*graph.possible.shape, len(worst), dtype=worst.dtype)
    for source, destination in tqdm(wanted, "edges", disable=not progress):
        if not bool(moved[source].any()):
            continue  # it writes the same in both runs
        one = torch.zeros_like(graph.possible)
        one[source, destination] = True
        first = int(graph.layer[destination])
        logits = run_edges(graph, base, ~one, base.sources, sites, carried=(one, moved), first=first)
        scores[source, destination] = metric(logits).cpu() - worst
    return scores


def _edge(graph: Graph, source: str, destination: str) -> tuple[int, int]:
    if source not in graph.sources or destination not in graph.destinations:
        raise ValueError(
            f"edges lead from {', '.join(graph.sources[:6])}, ... to {', '.join(graph.destinations[:6])}, ...; got "
            f"{source!r} to {destination!r}"
        )
    found = graph.sources.index(source), graph.destinations.index(destination)
    if not graph.possible[found]:
        raise ValueError(f"{destination!r} reads the stream before {source!r} has written: there is no such edge")
    return found


def _whole(graph: Graph, kept: Bool[Tensor, "source destination"]) -> Bool[Tensor, "source destination"]:
    """Return the edges that lie on a way from what enters to the logits."""
    entering = torch.tensor([kind in ("embed", "deepstack") for kind in graph.source_kind])
    nodes = [graph.nodes_of(d) for d in range(len(graph.destinations))]
    reached = entering.clone()
    for d, own in enumerate(nodes):  # destinations stand in the order of the stream
        if own and bool((kept[:, d] & reached).any()):
            reached[own] = True
    needed = torch.zeros(len(graph.destinations), dtype=torch.bool)
    reaches = torch.zeros(len(graph.sources), dtype=torch.bool)
    for d in reversed(range(len(nodes))):
        needed[d] = not nodes[d] or bool(reaches[nodes[d]].any())
        if needed[d]:
            reaches |= kept[:, d]
    return kept & reached[:, None] & needed[None]
