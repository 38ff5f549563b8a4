"""What sets share is what Python's sets share; `domain_neurons` and `modality_neurons` are the rules on the tables."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import rules
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import load, picture

import mmlens
from mmlens import Neurons
from mmlens.analysis.selectivity import (
    Selection,
    activation_entropy,
    by_quota,
    domain_neurons,
    importance,
    low_entropy,
    modality_neurons,
)
from mmlens.stats import SampleStats, TokenStats
from mmlens.testing import tiny

WIDTHS = {"language": (5, 3, 4), "vision": (2, 6)}


@st.composite
def sets_of_neurons(draw):
    widths = draw(rules.WIDTHS)
    some = st.lists(st.sampled_from(rules.everyone(widths)), unique=True)
    return {name: draw(some) for name in rules.NAMES[: draw(st.integers(1, 4))]}, widths


def made(sets, widths):
    chosen = {name: Neurons.of([("vision", *place) for place in own], {"vision": widths}) for name, own in sets.items()}
    return Selection(module="vision", sets=chosen, score=torch.ones(len(widths), max(widths)), provenance=rules.MADE)


@rules.rules
@given(sets_of_neurons())
def test_counts_and_memberships_are_those_of_a_loop(drawn):
    (sets, widths), found = drawn, made(*drawn)
    for row, own in zip(found.counts(), sets.values(), strict=True):
        assert row.tolist() == [sum(layer == one for one, _ in own) for layer in range(len(widths))]
    times = Counter(place for own in sets.values() for place in own)
    assert found.memberships().tolist() == [list(times.values()).count(n) for n in range(1, len(sets) + 1)]
    table = found.table()
    first_seen = list(dict.fromkeys(place for own in sets.values() for place in own))
    assert list(table.index) == [f"vision.L{layer}.u{unit}" for layer, unit in first_seen]
    assert list(table.columns) == list(sets) and set(table.dtypes) == {np.dtype(bool)}
    assert table.to_numpy().tolist() == [[place in own for own in sets.values()] for place in first_seen]


@rules.rules
@given(sets_of_neurons())
def test_overlaps_are_counted_for_every_combination_in_every_layer(drawn):
    (sets, widths), found = drawn, made(*drawn)
    table = found.overlaps()
    names = [" & ".join(some) for size in range(1, len(sets) + 1) for some in combinations(sets, size)]
    assert list(table.columns) == names and len(names) == 2 ** len(sets) - 1
    assert list(table.index) == [*(str(layer) for layer in range(len(widths))), "all"]
    for name in names:
        shared = [place for place in rules.everyone(widths) if all(place in sets[one] for one in name.split(" & "))]
        by_layer = [sum(layer == one for one, _ in shared) for layer in range(len(widths))]
        assert table[name].tolist() == [*by_layer, len(shared)]


@rules.rules
@given(sets_of_neurons())
def test_similarities_are_intersections_over_unions(drawn):
    (sets, _), found = drawn, made(*drawn)
    own = [set(one) for one in sets.values()]
    expected = [[len(a & b) / len(a | b) if a | b else 1 for b in own] for a in own]
    np.testing.assert_allclose(found.jaccard(), expected, rtol=1e-6)
    for layer, matrix in enumerate(found.jaccard_by_layer()):
        here = [{place for place in one if place[0] == layer} for one in own]
        expected = [[len(a & b) / len(a | b) if a | b else np.nan for b in here] for a in here]
        np.testing.assert_allclose(matrix, expected, rtol=1e-6)


@rules.rules
@given(sets_of_neurons())
def test_unions_and_what_one_has_alone_are_those_of_sets_in_their_order(drawn):
    (sets, _), found = drawn, made(*drawn)
    first, *_, last = [*sets, *sets]
    assert rules.pairs(found.union()) == list(dict.fromkeys(place for own in sets.values() for place in own))
    assert rules.pairs(found.union(last, first)) == list(dict.fromkeys([*sets[last], *sets[first]]))
    others = [place for name, own in sets.items() if name != last for place in own]
    assert rules.pairs(found.only(last)) == [place for place in sets[last] if place not in others]
    with pytest.raises(KeyError, match=r"these are the neurons of .*dawn.*, got 'noon'"):
        found["noon"]


def test_combinations_of_too_many_sets_are_refused():
    many = made({str(number): [] for number in range(11)}, (2,))
    with pytest.raises(ValueError, match=r"up to 10 sets, got 11: use jaccard\(\)"):
        many.overlaps()
    assert many.jaccard().shape == (11, 11) and many.memberships().tolist() == [0] * 11


@pytest.mark.parametrize("choose", ["domain", "modality"])
def test_a_selection_is_saved_and_loaded_as_it_was(tmp_path, choose):
    if choose == "domain":
        found = domain_neurons(
            rules.by_tokens(1, ["a", "b"], ["all"], WIDTHS), rate=0.5, filter_quantile=0.5, bar_quantile=0.5
        )
    else:
        found = modality_neurons(rules.by_samples(1, ["a", "b"], ["text", "all"], WIDTHS), ratio=0.4, weights={"mean": 1.0})
    again = Selection.load(found.save(tmp_path / "chosen"))
    assert again.sets == found.sets and any(map(len, found.sets.values())) and again.module == "language"
    assert all(torch.equal(again[name].score, own.score) for name, own in found.sets.items())
    assert torch.equal(again.score.nan_to_num(-1), found.score.nan_to_num(-1)) and again.provenance == found.provenance
    assert repr(again) == repr(found)


@pytest.mark.parametrize("module", ["language", "vision"])
@pytest.mark.parametrize("unread", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_domain_neurons_are_the_rule_on_the_table(module, unread, seed):
    labels, live = ("b", "a", "c"), {"language": 3, "vision": 1}
    statistics = rules.by_tokens(seed, labels, ["all", "image"], WIDTHS, live)
    options = dict(rate=0.4, filter_quantile=0.3, bar_quantile=0.6)
    found = domain_neurons(statistics, group="image", module=module, unread=unread, **options)
    probability = statistics.totals["count"][module][:, 1] / statistics.tokens[module][:, 1, None, None]
    layers = None if unread else live[module]
    expected = low_entropy(probability, labels, widths=WIDTHS, module=module, layers=layers, **options)
    loop = rules.low_entropy(probability.double().numpy(), WIDTHS[module], layers=layers, **options)
    assert found.sets == expected and list(map(set, map(rules.pairs, found.sets.values()))) == list(map(set, loop))
    assert any(map(len, loop)) and tuple(found.sets) == labels and found.module == module
    entropy = activation_entropy(statistics.table("probability", module)[:, 1])
    assert torch.equal(found.score.nan_to_num(-1), entropy.nan_to_num(-1)) and entropy.isnan().any()
    said = dict(analysis="domain_neurons", group="image", module=module, unread=unread, site="gate_act", **options)
    assert found.provenance.parameters == said and found.provenance.inputs == statistics.provenance.inputs


@pytest.mark.parametrize("module", ["language", "vision"])
@pytest.mark.parametrize("unread", [False, True])
@pytest.mark.parametrize("strategy", ["adaptive", "adaptive_joint", "LA_MU", "LU_MA", "uniform", "random"])
def test_modality_neurons_are_the_rule_on_the_importances(module, unread, strategy):
    groups, live = ("image", "text", "all"), {"language": 3, "vision": 1}
    statistics = rules.by_samples(4, ["a", "b"], groups, WIDTHS, live)
    quota = dict(ratio=0.34, strategy=strategy, exact=False, replacement=True, seed=5)
    found = modality_neurons(
        statistics, weights="equal", groups=["all", "image"], module=module, absent_as_zero=True, unread=unread, **quota
    )
    scores = importance(statistics, "equal", groups=["all", "image"], module=module, absent_as_zero=True)
    layers = None if unread else live[module]
    expected = by_quota(scores, ["all", "image"], widths=WIDTHS, module=module, layers=layers, **quota)
    assert found.sets == expected and torch.equal(found.score, scores)
    if strategy != "random":
        loop = rules.by_quota(scores.numpy(), WIDTHS[module], ratio=0.34, strategy=strategy, exact=False, layers=layers)
        assert [rules.pairs(own) for own in found.sets.values()] == [[tuple(place) for place in own] for own in loop]
    said = dict(weights="equal", groups=["all", "image"], module=module, absent_as_zero=True, unread=unread)
    assert found.provenance.parameters == dict(analysis="modality_neurons", site="gate_act", **said, **quota)


def test_every_group_that_is_there_is_chosen_for_by_default():
    statistics = rules.by_samples(4, ["a", "b"], ("audio", "text", "all"), WIDTHS)
    statistics.samples["language"][:, 0] = 0
    assert tuple(modality_neurons(statistics).sets) == ("text", "all")


def test_a_group_has_to_be_named_and_there():
    statistics = rules.by_tokens(1, ["a", "b"], ["all", "image"], WIDTHS)
    for options, said in [
        ({}, "of the groups all, image: say which, by group="),
        (dict(group="text"), "have the groups all, image, got 'text'"),
        (dict(group="all", module="audio"), "these statistics are of language, vision, got 'audio'"),
    ]:
        with pytest.raises(ValueError, match=said):
            domain_neurons(statistics, **options)
    for of_none in (statistics.tokens, statistics.samples):
        of_none["language"][1, 1] = 0
    with pytest.raises(ValueError, match="'b' has none: leave it out"):
        domain_neurons(statistics, group="image")
    with pytest.raises(ValueError, match=r"have the groups .*, got 'video'"):
        modality_neurons(rules.by_samples(1, ["a"], ["image", "all"], WIDTHS), groups=["video"])


def test_layers_of_a_tower_that_are_not_read_are_left_out_unless_asked_for(tmp_path):
    model = load(tiny("llava-clip-llama", tmp_path))
    depth = len(model.widths["vision"])
    read = model.live_layers["vision"]
    assert read == depth - 1 > 0  # LLaVA reads CLIP's second-to-last layer
    examples = [mmlens.Example("what", images=picture(seed), label="ab"[seed % 2]) for seed in range(4)]
    found = mmlens.sweep(
        model,
        examples,
        {
            "tokens": TokenStats(model.widths, labels=["a", "b"], modules=["vision"], site="gate_act"),
            "samples": SampleStats(model.widths, labels=["a", "b"], modules=["vision"], normalise="minmax"),
        },
        progress=False,
    )
    for unread in (False, True):
        layers = depth if unread else read
        whole = dict(module="vision", unread=unread)
        by_domain = domain_neurons(found["tokens"], rate=1.0, filter_quantile=0.0, bar_quantile=0.0, **whole)
        assert (by_domain.counts() > 0).any(0).tolist() == [layer < layers for layer in range(depth)]
        by_group = modality_neurons(found["samples"], weights="mean_max", ratio=1.0, **whole)
        assert by_group.counts()[0].tolist() == [width * (l < layers) for l, width in enumerate(model.widths["vision"])]
        assert by_domain.score.shape == by_group.score[0].shape == (depth, max(model.widths["vision"]))
        assert by_domain.provenance.parameters["unread"] == by_group.provenance.parameters["unread"] == unread
        assert by_domain.provenance.model == model.identity()["model"]
