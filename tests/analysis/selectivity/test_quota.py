"""The neurons of a modality are those of a loop that shares K picks out, whatever the strategy, ties and widths."""

from collections import Counter

import numpy as np
import pytest
import rules
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mmlens.analysis.selectivity import by_quota

SHARED_OUT = ("adaptive", "adaptive_joint", "LA_MU", "LU_MA", "uniform")


@pytest.mark.parametrize("strategy", SHARED_OUT)
@rules.rules
@example(seed=1, count=3, widths=(7, 2, 7), ratio=0.7, exact=True, cut=0)
@given(
    seed=st.integers(0, 999),
    count=st.integers(1, 4),
    widths=rules.WIDTHS,
    ratio=st.sampled_from([0.0, 0.15, 0.35, 0.6, 1.0]),
    exact=st.booleans(),
    cut=st.integers(0, 3),
)
def test_each_strategys_neurons_are_those_of_a_loop_over_shares(strategy, seed, count, widths, ratio, exact, cut):
    groups, layers = rules.NAMES[:count], max(len(widths) - cut, 1) if cut else None
    importance = rules.importances(seed, count, widths)
    options = dict(ratio=ratio, strategy=strategy, exact=exact, layers=layers)
    ours = dict(widths={"audio": widths}, module="audio", **options)
    try:
        expected = rules.by_quota(importance, widths, **options)
    except rules.TooFew:
        with pytest.raises(ValueError, match=f"{strategy} takes .* lower the ratio"):
            by_quota(torch.tensor(importance), groups, **ours)
        return
    found = by_quota(torch.tensor(importance), groups, **ours)
    assert tuple(found) == groups
    for group, (own, theirs) in enumerate(zip(found.values(), expected, strict=True)):
        assert rules.pairs(own) == [tuple(place) for place in theirs] and set(own.module) <= {"audio"}
        assert own.score.tolist() == [importance[group, *place] for place in theirs]
    picks, k = sum(map(len, found.values())), int(ratio * len(rules.everyone(widths, layers)))
    assert picks == k if exact or strategy.startswith("adaptive") else k - len(widths) * count < picks <= k
    if strategy == "adaptive":
        assert len({place for own in found.values() for place in own}) == picks  # each neuron has one owner


def test_the_rest_of_a_division_goes_to_the_shares_whose_next_neuron_is_the_most_important():
    importance = torch.tensor([[[9.0, 8, 1]], [[7.0, 3, 2]]])  # two groups, one layer

    def chosen(strategy, exact):
        found = by_quota(importance, ["a", "b"], widths={"language": (3,)}, ratio=1.0, strategy=strategy, exact=exact)
        return [own.unit.tolist() for own in found.values()]

    assert chosen("LA_MU", True) == [[0, 1], [0]] and chosen("LA_MU", False) == [[0], [0]]
    assert chosen("uniform", True) == [[0, 1], [0]] and chosen("uniform", False) == [[0], [0]]
    assert chosen("LU_MA", True) == chosen("adaptive_joint", False) == [[0, 1], [0]]
    assert chosen("adaptive", True) == [[0, 1], [2]]


@pytest.mark.parametrize("strategy", SHARED_OUT)
def test_where_all_are_as_important_the_first_by_group_layer_and_unit_are_taken(strategy):
    widths = (3, 3)
    found = by_quota(torch.ones(2, 2, 3), ["a", "b"], widths={"language": widths}, ratio=0.5, strategy=strategy)
    expected = rules.by_quota(np.ones((2, 2, 3)), widths, ratio=0.5, strategy=strategy)
    assert [rules.pairs(own) for own in found.values()] == [[tuple(place) for place in own] for own in expected]
    assert rules.pairs(found["a"])[0] == (0, 0)


def random(widths, **options):
    found = by_quota(
        torch.ones(2, len(widths), max(widths)), ["a", "b"], widths={"vision": widths}, module="vision", **options
    )
    assert tuple(found) == ("random",)
    return rules.pairs(found["random"])


@rules.rules
@given(
    seed=st.integers(0, 99), widths=rules.WIDTHS, ratio=st.sampled_from([0.0, 0.3, 1.0]), layers=st.sampled_from([None, 1])
)
def test_random_neurons_are_k_others_for_every_seed(seed, widths, ratio, layers):
    options = dict(ratio=ratio, layers=layers, strategy="random")
    own, k = rules.everyone(widths, layers), int(ratio * len(rules.everyone(widths, layers)))
    without, drawn = (random(widths, seed=seed, replacement=one, **options) for one in (False, True))
    assert len(set(without)) == len(without) == k and len(drawn) <= k
    assert set(without) | set(drawn) <= set(own)
    assert without == random(widths, seed=seed, **options) and drawn == random(
        widths, seed=seed, replacement=True, **options
    )


def test_random_neurons_are_drawn_alike_and_with_replacement_fewer():
    widths, draws = (7, 2, 3), 400
    for replacement in (False, True):
        seen = Counter()
        for seed in range(draws):
            seen.update(random(widths, strategy="random", ratio=0.5, seed=seed, replacement=replacement))
        share = 1 - (11 / 12) ** 6 if replacement else 0.5
        error = (share * (1 - share) / draws) ** 0.5
        assert all(abs(seen[place] / draws - share) < 4 * error for place in rules.everyone(widths))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(ratio=2.0), "the ratio is from 0 to 1, got 2"),
        (dict(ratio=-0.1), "the ratio is from 0 to 1"),
        (dict(module="audio"), r"the modules \['language'\], got 'audio'"),
        (dict(groups=["a"]), r"\[1, 2, 8\] for the different labels a; got \[2, 2, 8\]"),
        (dict(layers=3), "2 layers, got layers=3"),
        (dict(strategy="LU_MA", ratio=1.0), "LU_MA takes 5 neurons of each share, and one has 2: lower the ratio"),
        (dict(strategy="uniform", ratio=0.6), "uniform takes 2 neurons of each share, and one has 1"),
    ],
)
def test_what_cannot_be_chosen_is_refused(options, said):
    options = dict(groups=["a", "b"], widths={"language": (8, 1)}) | options
    with pytest.raises(ValueError, match=said):
        by_quota(torch.rand(2, 2, 8), **options)
