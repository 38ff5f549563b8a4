"""The circuits of a planted model as edges, read off its answer key, and pairs of runs that differ in one of them."""

import itertools
from dataclasses import dataclass
from functools import partial

import torch

from mmlens import HookedMLLM, Neurons, metrics
from mmlens.analysis.circuit import Circuit, Graph, circuit
from mmlens.analysis.circuit.graph import graph_of
from mmlens.analysis.circuit.running import Base, run_edges
from mmlens.analysis.circuit.sources import written
from mmlens.testing import planted
from mmlens.testing.plants.circuits import HEADS, KV_HEADS

PLACES = ((3, "noon", 5), (20, "dusk", 6))  # of each row: where something is shown, the domain, the seed
SEEN = 0.05  # an edge counts where it carries a twentieth of the whole difference


@dataclass(frozen=True)
class Story:
    """What a clean and a corrupted run show (at the place, and beside it), and two words whose logits are compared."""

    clean: tuple
    corrupted: tuple
    correct: str
    wrong: str
    differs: int = 0  # which of what is shown differs

    def reversed(self):
        return Story(self.corrupted, self.clean, self.correct, self.wrong, self.differs)


STORIES = {
    "two hops": Story(("bell",), ("drum",), "bell", "drum"),
    "concepts": Story(("car",), ("boat",), "car", "boat"),
    "pair": Story(("lamp",), ("car",), "lamp", "nothing"),
    "inhibitor": Story(("sun", "veil"), ("sun", None), "sun", "nothing", differs=1),
}


class Planted:
    """A planted model and its twin, its key's sets of neurons as nodes, and the true edges of each story."""

    def __init__(self, folder, modality):
        self.made = planted(folder, modality=modality, seed=0)
        self.key, self.modality = self.made.key, modality
        self.model, self.twin = (HookedMLLM.from_pretrained(one, device="cpu") for one in (self.made.folder, self.made.twin))
        key, widths = self.key, self.model.widths
        first, second = (Neurons.of([(layer, unit)], widths) for _, layer, unit in key.pair)
        self.sets = {**key.concepts, **key.carried, "first": first, "second": second}
        self.sets |= {"clamp": key.clamp, "inhibitor": key.inhibitor}

    def with_decoys(self, count=3):
        """Return the sets, and as many random ones beside the concepts' and the carried ones'."""
        sets, taken, seeds = dict(self.sets), self.key.neurons(), itertools.count()
        for like, name in ((self.key.concepts["car"], "one"), (self.key.carried["bell"], "late")):
            found = 0
            while found < count:
                decoy = like.random_like(seed=next(seeds))
                if not set(decoy) & set(taken):
                    sets[f"{name} {found}"], taken, found = decoy, taken | decoy, found + 1
        return sets

    def runs(self, story, rows=2):
        """Return the two runs and the metric, and the one site at which they differ."""
        clean, corrupted = (
            self.model.to_inputs(
                **self.made.arguments(
                    [
                        self.made.stimulus(
                            {(at + n) % 25: what for n, what in enumerate(shown) if what}, domain=domain, seed=seed
                        )
                        for at, domain, seed in PLACES[:rows]
                    ]
                )
            )
            for shown in (story.clean, story.corrupted)
        )
        media = clean.mask(self.modality)[0].nonzero()[:, 0]
        here = torch.zeros_like(clean.mask("all"))
        here[range(rows), media[[(at + story.differs) % 25 for at, _, _ in PLACES[:rows]]]] = True
        correct, wrong = (torch.tensor([self.model.to_token(word)] * rows) for word in (story.correct, story.wrong))
        metric = partial(metrics.logit_diff, correct=correct, wrong=wrong)
        return dict(clean=clean, corrupted=corrupted, metric=metric, sites={"shown": here})

    def find(self, story, *, rows=2, model=None, **options):
        return circuit(model or self.model, **self.runs(story, rows), **{"neurons": self.sets, **options})

    def head(self, name):
        layer, head = self.key.heads[name]
        return f"L{layer}H{head}"

    def reads(self, name, kind="v"):
        """Return the keys or values of a planted head, which it shares with a neighbour."""
        (layer, head), each = self.key.heads[name], HEADS // KV_HEADS
        first = head // each * each
        return f"L{layer}H{first}-{first + each - 1}.{kind}"

    def edges(self, name):
        """Return the edges that carry what differs in a story."""
        carry, speak, veil = (self.head(one) for one in ("carry", "speak", "veil"))
        if name == "two hops":  # the place's values reach the asking position, where units say what was carried
            ends = [(f"L2.{noun}", "logits") for noun in ("bell", "drum")]
            return [("shown", self.reads("carry")), *((carry, unit) for unit, _ in ends), *ends]
        if name == "concepts":  # units at the place say what it shows, and a head brings it
            units = [f"L{layer}.{noun}" for layer in (0, 1) for noun in ("car", "boat")]
            both = [[("shown", unit), (unit, self.reads("speak"))] for unit in units]
            return [*itertools.chain(*both), (speak, "logits")]
        if name == "pair":  # two units at the place, each enough for the clamp behind them
            both = [[("shown", unit), (unit, "L1.clamp")] for unit in ("L0.first", "L0.second")]
            return [*itertools.chain(*both), ("L1.clamp", self.reads("speak")), (speak, "logits")]
        ways = [("shown", self.reads("veil", kind)) for kind in "kv"]  # nothing else is sought: it looks there, and copies
        return [*ways, (veil, "L3.inhibitor"), ("L3.inhibitor", "logits")]


def kept(graph: Graph, edges):
    """Return a mask of these edges."""
    mask = torch.zeros_like(graph.possible)
    for source, destination in edges:
        mask[graph.sources.index(source), graph.destinations.index(destination)] = True
    assert not (mask & ~graph.possible).any()
    return mask


def f1(found: Circuit, edges):
    """Return how well the edges that carry a twentieth of the difference or more agree with the true ones."""
    gap = (found.clean_metric - found.corrupted_metric).mean().abs()
    ours, truth = found.above(SEEN * float(gap), whole=False).kept, kept(found.graph, edges)
    return float(2 * (ours & truth).sum() / (ours.sum() + truth.sum()))


def scores(found: Circuit, edges):
    """Return each of these edges' scores, as a share of the whole difference."""
    gap = (found.clean_metric - found.corrupted_metric).mean()
    return {edge: float(found.score[kept(found.graph, [edge])] / gap) for edge in edges}


class Together:
    """Runs of a story in which some edges together are as in the other run: how much each changes the metric."""

    @torch.no_grad()
    def __init__(self, case: Planted, story):
        runs = case.runs(story, rows=1)
        self.metric = runs["metric"]
        self.graph, self.masks = graph_of(case.model, runs["corrupted"], sites=runs["sites"], neurons=case.sets)
        self.there, self.here = (written(case.model, runs[one], self.graph, self.masks) for one in ("clean", "corrupted"))
        self.base = Base.of(case.model, runs["corrupted"], self.here)
        self.best, self.worst = (float(self.metric(case.model(runs[one]))) for one in ("clean", "corrupted"))

    def _run(self, live, start, **carried):
        return float(self.metric(run_edges(self.graph, self.base, live, start, self.masks, **carried)))

    def restored(self, *edges):
        """Return the change of the corrupted run where these edges carry what they do in the clean one, as a share."""
        some = kept(self.graph, edges)
        metric = self._run(~some, self.here, carried=(some, self.there - self.here))
        return (metric - self.worst) / (self.best - self.worst)

    def taken(self, *edges):
        """Return the change of the clean run where these edges carry what they do in the corrupted one, as a share."""
        metric = self._run(self.graph.possible & ~kept(self.graph, edges), self.there)
        return (metric - self.best) / (self.best - self.worst)
