"""Planted circuits are found edge by edge, by each method where it can see them; twins have nothing to find."""

import pytest
import torch
from scipy.stats import binom
from stories import STORIES, Together, f1, kept, scores

from mmlens.analysis.circuit.graph import graph_of

COARSE = dict(method="eap-ig", steps=5)
FINE = dict(method="eap-ig", steps=16)  # a clamp is passed in a short stretch of the way: five steps jump over it


@pytest.fixture
def case(request):
    return request.getfixturevalue(request.param)


CASES = ["picture_case", "sound_case"]
WHERE = [  # of sounds, what takes other ways is for the test command's slow part
    pytest.param(case, name, marks=pytest.mark.slow if case == "sound_case" and name in ("pair", "inhibitor") else ())
    for case in CASES
    for name in STORIES
]


@pytest.mark.parametrize(("case", "name"), WHERE, indirect=["case"])
def test_integrated_gradients_find_each_circuit_and_no_other_edge(case, name):
    found = case.find(STORIES[name], rows=1 if name == "pair" else 2, **(FINE if name == "pair" else COARSE))
    assert f1(found, case.edges(name)) >= 0.95
    assert min(scores(found, case.edges(name)).values()) > 0.1
    assert (found.clean_metric - found.corrupted_metric).abs().min() > 10


def test_five_steps_jump_over_a_clamp(picture_case):
    found = picture_case.find(STORIES["pair"], **COARSE)
    missed = [edge for edge, score in scores(found, picture_case.edges("pair")).items() if abs(score) < 0.05]
    assert missed == picture_case.edges("pair")[:4]  # all four that lie before the clamp's output


@pytest.mark.parametrize("name", STORIES)
def test_one_gradient_misses_the_units_that_are_silent_where_it_is_taken(picture_case, name):
    """A silent unit has no slope: what would switch it on is not seen. One that fires has, and is."""
    found = picture_case.find(STORIES[name], method="eap")
    silent = {
        "two hops": [(picture_case.head("carry"), "L2.bell")],
        "concepts": [("shown", "L0.car"), ("shown", "L1.car")],
        "pair": picture_case.edges("pair")[:4],
        "inhibitor": picture_case.edges("inhibitor")[:3],
    }[name]
    share = scores(found, picture_case.edges(name))
    assert [edge for edge, score in share.items() if abs(score) < 0.05] == silent
    assert f1(found, picture_case.edges(name)) < 0.95


def exactly(case, name, story, others=30):
    """Return exact scores of the true edges and of some random others, of one row."""
    runs = case.runs(story, rows=1)
    graph, _ = graph_of(case.model, runs["corrupted"], sites=runs["sites"], neurons=case.sets)
    every = graph.possible.nonzero()
    chosen = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:others]]
    names = [(graph.sources[s], graph.destinations[d]) for s, d in chosen.tolist()]
    return case.find(story, rows=1, method="exact", edges=list(dict.fromkeys([*case.edges(name), *names])))


DIRECTIONS = {name: story.reversed() if name == "inhibitor" else story for name, story in STORIES.items()}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_exact_patching_finds_each_circuit_in_the_direction_in_which_one_edge_is_enough(picture_case, name):
    found = exactly(picture_case, name, DIRECTIONS[name])
    assert f1(found, picture_case.edges(name)) >= 0.95
    share = scores(found, picture_case.edges(name))
    if name in ("pair", "inhibitor"):  # each does all of it
        assert min(share.values()) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("case", CASES, indirect=True)
def test_exact_patching_of_every_edge_finds_each_circuit(case, name):
    assert f1(case.find(DIRECTIONS[name], method="exact", rows=1), case.edges(name)) >= 0.95


@pytest.mark.slow
def test_taken_away_one_by_one_neither_of_the_pair_shows_and_together_both_do(picture_case):
    case, story = picture_case, STORIES["pair"]
    share = scores(exactly(case, "pair", story.reversed(), others=0), case.edges("pair"))
    assert max(abs(share[edge]) for edge in case.edges("pair")[:4]) < 0.02
    assert min(share[edge] for edge in case.edges("pair")[4:]) > 0.9
    forth, back = Together(case, story), Together(case, story.reversed())
    for both in (case.edges("pair")[:4:2], case.edges("pair")[1:4:2]):  # into the two, and out of them
        assert back.restored(*both) > 0.9
        assert forth.taken(*both) < -0.9
        for one in both:
            assert abs(forth.taken(one)) < 0.05
            assert forth.restored(one) > 0.9  # restored, each brings all of it
    assert f1(case.find(story.reversed(), rows=1, **FINE), case.edges("pair")) >= 0.95  # the same way, from its other end


def test_the_inhibitor_speaks_against_and_its_head_needs_both_where_to_look_and_what_to_copy(picture_case):
    case, story = picture_case, STORIES["inhibitor"]
    keys, values, brought, said = case.edges("inhibitor")
    found = exactly(case, "inhibitor", story, others=0)
    share = scores(found, case.edges("inhibitor"))
    assert found.clean_metric[0] - found.corrupted_metric[0] < -20
    assert min(share[brought], share[said]) > 0.9
    assert abs(share[keys]) < 0.02 and abs(share[values]) < 0.02  # of a conjunction, neither alone restores anything
    assert Together(case, story).restored(keys, values) > 0.9
    along = case.find(story, **COARSE)
    assert along.score[kept(along.graph, case.edges("inhibitor"))].max() < -5


# ---------------------------------------------------------------- twins


def first_of_their_kind(found, edges):
    """Return how many edges carry most of all of their kind, and how often chance alone would have that, in the mean.

    Of a kind are edges from nodes of one kind and layer to readers of one kind and layer. Where nothing distinguishes the
    named ones, as in the twin, each of a kind is as likely as any other to be its first.
    """
    graph, size = found.graph, found.score.abs()
    first, chances = 0, []
    for source, destination in edges:
        s, d = graph.sources.index(source), graph.destinations.index(destination)
        own = [
            n == s if graph.source_kind[s] == "embed" else (kind, layer) == (graph.source_kind[s], graph.source_layer[s])
            for n, (kind, layer) in enumerate(zip(graph.source_kind, graph.source_layer, strict=True))
        ]
        reads = [
            (kind, layer) == (graph.kind[d], graph.layer[d]) for kind, layer in zip(graph.kind, graph.layer, strict=True)
        ]
        group = size[torch.tensor(own)][:, torch.tensor(reads)]
        first += bool(size[s, d] >= group.max())
        chances.append(1 / group.numel())
    return first, sum(chances) / len(chances)


@pytest.mark.slow
@pytest.mark.parametrize("case", [CASES[0], pytest.param(CASES[1], marks=pytest.mark.slow)], indirect=True)
def test_in_the_twin_no_edge_carries_anything_and_the_planted_ones_no_more_than_others_of_their_kind(case):
    """Each planted edge is the first of its kind with a known chance: as many are as a binomial allows in 999 of 1000.

    (Chances differ from edge to edge: a binomial of their mean is the wider one, by Hoeffding.) And none, planted or not,
    carries a twentieth of what the planted model's differ in.
    """
    firsts, planted_firsts, chances, sets = 0, 0, [], case.with_decoys()
    for name in ("two hops", "concepts"):
        ours, twins = (
            case.find(STORIES[name], model=one, neurons=sets, rows=1, **COARSE) for one in (case.model, case.twin)
        )
        whole = (ours.clean_metric - ours.corrupted_metric).mean().abs()
        assert twins.score.abs().max() < 0.05 * whole
        first, chance = first_of_their_kind(twins, case.edges(name))
        firsts, chances = firsts + first, [*chances, *[chance] * len(case.edges(name))]
        planted_firsts += first_of_their_kind(ours, case.edges(name))[0]
    bound = binom.ppf(0.999, len(chances), sum(chances) / len(chances))
    assert firsts <= bound < planted_firsts
