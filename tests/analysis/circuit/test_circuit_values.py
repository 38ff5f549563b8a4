"""Circuits as values: pruned, combined, compared with random ones, drawn and written; sets of neurons as nodes."""

import json
import re
from dataclasses import replace
from functools import partial

import networkx
import pytest
import raw
import torch
from support import ask, load

from mmlens import Neurons, metrics
from mmlens.analysis.circuit import Circuit, circuit
from mmlens.testing import tiny

SITE = 'a"b\n<c> \\ é'  # what must not break a drawing


def runs_of(model):
    clean, corrupted = (ask(model, "padded", first=first) for first in (0, 5))
    metric = partial(metrics.logit_diff, correct=torch.tensor([3, 4]), wrong=torch.tensor([9, 11]))
    return dict(clean=clean, corrupted=corrupted, metric=metric)


@pytest.fixture(scope="module")
def runs(llava):
    return runs_of(llava)


@pytest.fixture(scope="module")
def found(llava, runs):
    return circuit(llava, **runs, sites={SITE: runs["clean"].mask("image")})


def named(some):
    return {(row.source, row.destination) for row in some.edges().itertuples()}


def way(found):
    """Return a plain graph: sources and destinations, joined by kept edges and by what happens inside of each node."""
    graph = networkx.DiGraph()
    for source, destination in named(found):
        graph.add_edge(("source", source), ("destination", destination))
    for number, name in enumerate(found.graph.destinations):
        for node in found.graph.nodes_of(number):
            graph.add_edge(("destination", name), ("source", found.graph.sources[node]))
    graph.add_nodes_from([("destination", "logits"), *(("source", name) for name in found.graph.sources)])
    return graph


def leading(found):
    """Return the edges on a way from what enters to the logits, by searching the plain graph from both ends."""
    graph = way(found)
    entering = [
        name
        for name, kind in zip(found.graph.sources, found.graph.source_kind, strict=True)
        if kind in ("embed", "deepstack")
    ]
    reached = {("source", one) for one in entering}
    for one in entering:
        reached |= networkx.descendants(graph, ("source", one))
    needed = networkx.ancestors(graph, ("destination", "logits")) | {("destination", "logits")}
    return {(s, d) for s, d in named(found) if ("source", s) in reached and ("destination", d) in needed}


@pytest.mark.parametrize("k", [0, 1, 5, 12, 30, 80])
def test_whole_circuits_are_the_edges_that_a_search_finds_on_a_way_from_what_enters_to_the_logits(found, k):
    largest = found.top(k, whole=False)
    assert len(largest) == k
    assert named(found.top(k)) == leading(largest)
    threshold = float(largest.score.abs()[largest.kept].min()) if k else 1e9
    assert named(found.above(threshold, whole=False)) == named(largest)
    assert named(found.above(threshold)) == named(found.top(k))


def test_random_edges_are_pruned_as_a_search_does_it_too(found):
    for seed in range(5):
        some = found.random_like(seed=seed).top(60, whole=False)
        assert named(some.top(60)) == leading(some)
        assert named(some.top(60).top(len(some.top(60)))) == named(some.top(60))


def test_the_largest_edges_are_taken_by_absolute_score(found):
    table = found.edges()
    assert len(table) == len(found) == int(found.graph.possible.sum())
    size = table.score.abs()
    assert (size.diff().dropna() <= 0).all() and table.score.min() < 0 < table.score.max()
    taken = found.top(7, whole=False)
    assert named(taken) == set(table[["source", "destination"]].head(7).itertuples(index=False, name=None))
    row = table.iloc[0]
    where = found.graph.sources.index(row.source), found.graph.destinations.index(row.destination)
    assert row.score == float(found.score[where]) == float(found.scores[where].mean())
    assert named(found.top(20, whole=False).top(7, whole=False)) == named(taken)
    with pytest.raises(ValueError, match="take from 0 to all"):
        taken.top(8)


def test_circuits_are_sets_of_edges(found):
    one, other = found.top(30, whole=False), found.random_like(seed=1).top(50, whole=False)
    assert named(one & other) == named(one) & named(other)
    assert named(one | other) == named(one) | named(other)
    assert named(one - other) == named(one) - named(other)
    assert named(one & one) == named(one | one) == named(one) and len(one - one) == 0
    assert one.nodes() == [name for name in found.graph.sources if name in {source for source, _ in named(one)}]
    assert repr(one).startswith("Circuit(30 of ")
    assert f"{int(found.graph.possible.sum())} edges" in repr(found.graph)


def test_circuits_of_other_nodes_are_not_compared(llava, runs, found):
    other = circuit(llava, **runs)
    with pytest.raises(ValueError, match="over the same nodes"):
        found & other
    with pytest.raises(ValueError, match="over the same nodes"):
        Circuit.joined(found, other)
    with pytest.raises(ValueError, match="one method"):
        Circuit.joined(found, replace(found, method="exact"))
    both = Circuit.joined(found, found)
    torch.testing.assert_close(both.score, found.score)
    assert both.scores.shape[-1] == 4 and len(both.clean_metric) == 4


def test_random_circuits_have_as_many_edges_and_whole_ones_lead_through(found):
    own = found.top(25)
    random = [own.random_like(seed=seed) for seed in range(3)]
    assert [len(one) for one in random] == [len(own)] * 3
    assert named(own.random_like(seed=1)) == named(random[1]) != named(random[2])
    assert not (random[0].kept & ~found.graph.possible).any()
    for seed in range(3):
        whole = own.random_like(seed=seed, whole=True)
        assert len(whole) <= len(own)
        assert named(whole) == leading(whole)
    large = found.top(150).random_like(seed=0, whole=True)
    assert 100 < len(large) <= len(found.top(150)) and named(large) == leading(large)


def test_random_edges_are_drawn_evenly(found):
    own, counts = found.top(60, whole=False), torch.zeros_like(found.kept, dtype=torch.float)
    for seed in range(300):
        counts += own.random_like(seed=seed).kept
    drawn = counts[found.graph.possible]
    share = 60 / len(drawn)
    assert (drawn / 300 - share).abs().max() < 5 * (share * (1 - share) / 300) ** 0.5


def test_matched_circuits_are_other_edges_with_scores_near(found):
    own = found.top(20, whole=False)
    matched = own.matched_like(seed=0)
    assert len(matched) == 20 and not named(matched) & named(own) and not (matched.kept & ~found.graph.possible).any()
    assert named(own.matched_like(seed=0)) == named(matched) != named(own.matched_like(seed=1))
    order = torch.argsort(found.score.abs().flatten(), descending=True)
    every_fourth = torch.zeros_like(found.kept).flatten()
    every_fourth[order[40:160:4]] = True
    middle = replace(found, kept=every_fourth.view_as(found.kept))
    near = middle.matched_like(seed=0)
    ours, theirs = (one.score[one.kept].abs().sort().values for one in (middle, near))
    assert (ours - theirs).abs().max() < 0.2 * ours.max()
    random = middle.random_like(seed=0).score[middle.random_like(seed=0).kept].abs().sort().values
    assert (ours - theirs).abs().mean() < 0.2 * (ours - random).abs().mean()
    with pytest.raises(ValueError, match="take a smaller circuit"):
        found.matched_like(seed=0)


# ---------------------------------------------------------------- drawn and written


def test_a_graph_of_networkx_has_each_edge_and_shared_keys_enter_each_of_their_heads(found):
    own = found.top(60, whole=False)
    graph = own.to_networkx()
    expected = set()
    for source, destination in named(own):
        number = found.graph.destinations.index(destination)
        nodes = [found.graph.sources[one] for one in found.graph.nodes_of(number)] or ["logits"]
        expected |= {(source, node, destination) for node in nodes}
    assert set(graph.edges(keys=True)) == expected
    shared = [key for *_, key in graph.edges(keys=True) if key.endswith((".k", ".v"))]
    assert shared and len(shared) == 2 * len({one for one in named(own) if one[1].endswith((".k", ".v"))})
    assert networkx.is_directed_acyclic_graph(graph)
    for source, _, key, data in graph.edges(keys=True, data=True):
        where = found.graph.sources.index(source), found.graph.destinations.index(key)
        assert data["score"] == float(found.score[where]) and data["way"] == found.graph.kind[where[1]]
    assert graph.nodes[SITE] == {"kind": "embed", "layer": -1}


def parsed(dot):
    """Return the edges of a drawing in Graphviz' language, whose strings end at a quote that no backslash is before."""
    string = r'"((?:[^"\\]|\\.)*)"'
    edges = re.findall(rf"^  {string} -> {string} \[label={string}, color={string}, penwidth=([\d.]+)\];$", dot, re.M)
    rest = re.sub(rf"^  {string} -> {string} \[.*\];\n", "", dot, flags=re.M)
    assert rest == "digraph circuit {\n  rankdir=BT;\n}"
    return edges


def test_a_drawing_has_every_edge_whatever_sites_are_called(found):
    own = found.top(60, whole=False)
    edges = parsed(own.to_dot())
    assert len(edges) == own.to_networkx().number_of_edges()
    names = {json.loads(f'"{end}"') for edge in edges for end in edge[:2]}
    assert names == set(own.to_networkx().nodes) and SITE in names
    assert "é" in own.to_dot()  # \u00e9 would be read as it stands
    assert {edge[3] for edge in edges} == {"#b2182b", "#2166ac"}
    for *_, label, color, width in edges:
        assert (float(label.split()[1]) > 0) == (color == "#b2182b")
        assert 0.5 <= float(width) <= 4.5
    assert max(float(edge[-1]) for edge in edges) == 4.5
    assert parsed(found.top(0).to_dot()) == []


def test_json_has_nodes_and_edges(found):
    own = found.top(30)
    read = json.loads(own.to_json())
    assert {(one["source"], one["destination"]) for one in read["edges"]} == named(own)
    assert read["nodes"] == [*own.nodes(), "logits"] and read["method"] == "eap"
    scores = {(row.source, row.destination): row.score for row in own.edges().itertuples()}
    assert all(one["score"] == scores[one["source"], one["destination"]] for one in read["edges"])


def test_a_circuit_loads_as_it_was_saved(llava, runs, tmp_path):
    neurons = {"some": Neurons.of([(0, 3), (1, 5)], llava.widths)}
    own = circuit(llava, **runs, neurons=neurons).top(40)
    loaded = Circuit.load(own.save(tmp_path / "circuit"), model=llava)
    assert loaded.graph.same(own.graph) and named(loaded) == named(own) and loaded.method == "eap"
    assert loaded.graph.sets["some"] == neurons["some"]
    torch.testing.assert_close(loaded.scores, own.scores, rtol=0, atol=0)
    assert loaded.to_dot() == own.to_dot() and loaded.provenance == own.provenance
    assert named(loaded.top(5)) == named(own.top(5))


def test_what_no_circuit_can_be_drawn_in_is_refused_in_words(llava, runs):
    draw, widths = partial(circuit, llava, **runs), llava.widths
    image, one = runs["clean"].mask("image"), Neurons.of([(0, 3)], llava.widths)
    with pytest.raises(ValueError, match="line up"):
        circuit(llava, **(runs | {"clean": ask(llava, "one")}))
    with pytest.raises(ValueError, match="1 step or more"):
        draw(method="eap-ig", steps=0)
    with pytest.raises(ValueError, match="edges are chosen for"):
        draw(edges=[("image", "logits")])
    with pytest.raises(ValueError, match="edges lead from image, text"):
        draw(method="exact", edges=[("picture", "logits")])
    with pytest.raises(ValueError, match="there is no such edge"):
        draw(method="exact", edges=[("L1H0", "L0.mlp")])
    with pytest.raises(ValueError, match="share no position"):
        draw(sites={"image": image, "last": image})
    with pytest.raises(ValueError, match="is a mask"):
        draw(sites={"image": image[:, 1:]})
    with pytest.raises(ValueError, match="called 'rest'"):
        draw(sites={"rest": image})
    for name in ("L0H1", "L1.mlp", "logits", "L0H0-1.k"):
        with pytest.raises(ValueError, match="a node of the model"):
            draw(sites={name: image})
    for name in ("mlp", "deepstack", "logits", "a.b", "image"):
        with pytest.raises(ValueError, match="without a full stop"):
            draw(neurons={name: one})
    with pytest.raises(ValueError, match="in one set"):
        draw(neurons={"a": one, "b": one})
    with pytest.raises(ValueError, match="neurons of the language model"):
        draw(neurons={"seeing": Neurons.of([("vision", 0, 3)], widths)})
    with pytest.raises(ValueError, match="a metric with a gradient"):
        draw(metric=lambda logits: logits[:, -1].argmax(-1).float())


# ---------------------------------------------------------------- sets of neurons


@pytest.mark.parametrize("family", ["llava-clip-llama", "paligemma2", "prefix-gptj"])
def test_sets_of_neurons_and_the_rest_of_their_mlps_carry_together_what_the_mlp_does(family, tmp_path):
    """Sources split into what they add; destinations, to first order, into the gradients of what they read."""
    model = load(tiny(family, tmp_path))
    runs, generator = runs_of(model), torch.Generator().manual_seed(0)
    units = torch.randperm(48, generator=generator).tolist()
    sets = {
        "wide": Neurons.of([(0, u) for u in units[:20]] + [(1, u) for u in units[:7]], model.widths),
        "lone": Neurons.of([(1, units[9])], model.widths),
    }
    whole, split = circuit(model, **runs), circuit(model, **runs, neurons=sets)
    parts = {"L0.mlp": ["L0.wide", "L0.mlp"], "L1.mlp": ["L1.wide", "L1.lone", "L1.mlp"]}

    def summed(names, where):
        return [[where.index(one) for one in parts.get(name, [name])] for name in names]

    sources, destinations = (
        summed(whole.graph.sources, split.graph.sources),
        summed(whole.graph.destinations, split.graph.destinations),
    )
    scores = torch.stack([split.scores[own].sum(0) for own in sources])
    scores = torch.stack([scores[:, own].sum(1) for own in destinations], dim=1)
    raw.same(scores, whole.scores)
    assert split.scores[split.graph.sources.index("L1.lone")].abs().max() > 0
    values = next(name for name in split.graph.destinations if name.startswith("L2H0") and name.endswith(".v"))
    edges = [("image", "L1.lone"), ("image", "L1.wide"), ("L0.wide", values)]
    exact = circuit(model, **runs, neurons=sets, method="exact", edges=edges)
    assert (exact.scores != 0).any(-1).sum() == 3


def test_a_set_of_all_neurons_is_its_mlp(llava, runs):
    everything = {"every": Neurons.of([(1, unit) for unit in range(llava.widths["language"][1])], llava.widths)}
    edges = [("image", "L1.every"), ("L1.every", "L2H0.q"), ("L1.every", "logits")]
    plain = [tuple(end.replace("every", "mlp") for end in edge) for edge in edges]
    whole = circuit(llava, **runs, method="exact", edges=plain)
    found = circuit(llava, **runs, method="exact", edges=edges, neurons=everything)

    def values(some, names):
        return torch.stack([some.scores[some.graph.sources.index(s), some.graph.destinations.index(d)] for s, d in names])

    raw.same(values(found, edges), values(whole, plain), relative=1e-3)
    first = circuit(llava, **runs, neurons=everything)
    assert first.scores[first.graph.sources.index("L1.mlp")].abs().max() < 1e-5  # a bias, the same in both runs


def test_edges_are_attributed_where_gradients_are_switched_off(llava, runs, found):
    with torch.no_grad():
        again = circuit(llava, **runs, sites={SITE: runs["clean"].mask("image")})
    torch.testing.assert_close(again.scores, found.scores)


def test_circuits_of_batches_are_joined_pair_by_pair(llava, runs, found):
    def rows(part):
        parts = dict(scores=found.scores[..., part], clean_metric=found.clean_metric[part])
        return replace(found, **parts, corrupted_metric=found.corrupted_metric[part])

    halves = [rows(slice(0, 1)), rows(slice(1, 2))]
    whole = Circuit.joined(*halves)
    assert torch.equal(whole.scores, found.scores) and whole.kept.equal(found.graph.possible)
    assert len(whole.provenance.inputs) == 2 * len(found.provenance.inputs)
    with pytest.raises(ValueError, match="that one method found"):
        Circuit.joined(found, replace(found, method="exact"))
