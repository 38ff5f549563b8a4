"""Whether a circuit does it: how much of the answer it carries alone, and how much is left without it, edge by edge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mmlens.analysis.circuit.circuit import Circuit
from mmlens.analysis.circuit.graph import graph_of
from mmlens.analysis.circuit.running import Base, run_edges
from mmlens.analysis.circuit.sources import written
from mmlens.analysis.nodes import lined_up
from mmlens.analysis.patching import Metric
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance, Result

Control = Literal["random", "matched"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Faithfulness(Result):
    """The metric along a circuit's largest edges alone, and without them, scaled: 0 no edge, 1 the whole clean run.

    `sizes` are numbers of edges. `alone` has only these live, and all others as in the ablated run; `without` has all but
    these (1: nothing is lost without the circuit; 0: it is complete). `control[name]` is `alone` for other edges, `draw` by
    draw: "random" ones that also lead from what enters to the logits, or "matched", whose scores are as large; NaN where
    there are not as many.
    """

    ablation: str
    sizes: Int[Tensor, " size"]
    alone: Float[Tensor, "size batch"]
    without: Float[Tensor, "size batch"]
    controls: dict[str, Float[Tensor, "draw size batch"]]

    def size_for(self, share: float = 0.8) -> int | None:
        """Return the smallest size from which on the mean of `alone` stays at `share` or above; None where it never does."""
        enough = (self.alone.nanmean(1) >= share).tolist()
        for place in range(len(enough)):
            if all(enough[place:]):
                return int(self.sizes[place])
        return None


@torch.no_grad()
def faithfulness(
    model: HookedMLLM,
    found: Circuit,
    *,
    clean: Inputs,
    corrupted: Inputs,
    metric: Metric,
    sites: Mapping[str, Bool[Tensor, "batch pos"]] | None = None,
    sizes: Sequence[int] | None = None,
    ablation: Literal["resample", "mean"] = "resample",
    controls: Sequence[Control] = ("random", "matched"),
    draws: int = 3,
    seed: int = 0,
    progress: bool = False,
) -> Faithfulness:
    """Return how faithful and how complete a circuit's largest edges are, by how many there are, beside as many others.

    Give it other pairs than those that the circuit was found on, and their `sites`, named as there. `sizes` are asked of
    `found.top(size)`, which takes dead ends out: what is left is counted. Edges that are not live carry what their source
    wrote in the corrupted run ("resample"), or on average over the rows of the corrupted batch, position by position
    ("mean").

    Every size costs 2 + `draws` x controls runs, each of a block once for every different thing that its heads and its MLP
    read. Raises ValueError where sites are named otherwise. Sources: Wang et al. 2022 (faithfulness, completeness); controls
    are ours.
    """
    lined_up(clean, corrupted)
    graph, masks = graph_of(model, corrupted, sites=sites, neurons=found.graph.sets)
    if not graph.same(found.graph):
        raise ValueError(
            f"the circuit is of the sites {', '.join(found.graph.sites)}, these inputs have {', '.join(graph.sites)}: give "
            "sites of the same names"
        )
    values: list[Tensor] = []
    start, here = (
        written(model, inputs, graph, masks, lambda logits: values.append(metric(logits).cpu()))
        for inputs in (clean, corrupted)
    )
    base = Base.of(model, corrupted, here, mean=ablation == "mean")
    best, none = values[0], torch.zeros_like(graph.possible)

    def measured(live: Bool[Tensor, "source destination"]) -> Float[Tensor, " batch"]:
        return metric(run_edges(graph, base, live, start, masks)).cpu()

    worst = measured(none)
    asked = _sizes(len(found)) if sizes is None else list(sizes)
    circuits = [found.top(size) for size in asked]
    drawn: dict[str, Callable[[Circuit, int], Circuit]] = {
        "random": lambda one, draw: one.random_like(seed=seed * 1000 + draw, whole=True),
        "matched": lambda one, draw: one.matched_like(seed=seed * 1000 + draw),
    }
    alone, without, others = [], [], {name: [[] for _ in range(draws)] for name in controls}
    for one in tqdm(circuits, "circuits", disable=not progress):
        alone.append(measured(one.kept))
        without.append(measured(graph.possible & ~one.kept))
        for name, own in others.items():
            for draw in range(draws):
                try:
                    own[draw].append(measured(drawn[name](one, draw).kept))
                except ValueError:  # there are not as many other edges
                    own[draw].append(torch.full_like(best, torch.nan))

    def scaled(values: Sequence[Tensor]) -> Float[Tensor, "size batch"]:
        return ((torch.stack(list(values)) - worst) / (best - worst)).masked_fill(best == worst, torch.nan)

    return Faithfulness(
        ablation=ablation,
        sizes=torch.tensor([len(one) for one in circuits]),
        alone=scaled(alone),
        without=scaled(without),
        controls={name: torch.stack([scaled(one) for one in own]) for name, own in others.items()} if draws else {},
        provenance=Provenance.record(
            model, (clean.digest(), corrupted.digest()), seed=seed, analysis="faithfulness", ablation=ablation, draws=draws
        ),
    )


def _sizes(most: int) -> list[int]:
    """Return sizes from 5 edges on, each half as large again as the one before, and all of them."""
    found, size = [], 5.0
    while size < most:
        found.append(int(size))
        size *= 1.6
    return [*found, most]
