"""The neurons of a domain are those of a loop over neurons that is written from the paper's rules."""

import math

import numpy as np
import pytest
import rules
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmlens.analysis.selectivity import activation_entropy, low_entropy

QUANTILE = st.sampled_from([0.0, 0.2, 0.5, 0.8, 0.95, 1.0])


@rules.rules
@given(seed=st.integers(0, 999), labels=st.integers(1, 6), scale=st.floats(0.01, 1))
def test_entropy_is_that_of_a_loop_whatever_a_neurons_scale(seed, labels, scale):
    found = np.nan_to_num(rules.probabilities(seed, labels, (5, 5)))
    expected = [[rules.entropy(found[:, layer, unit]) for unit in range(5)] for layer in range(2)]
    for one in (found, scale * found):
        np.testing.assert_allclose(activation_entropy(torch.tensor(one)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("labels", [1, 2, 5])
def test_entropy_is_0_under_one_label_ln_of_the_labels_under_all_alike_and_nothing_of_the_dead(labels):
    probability = torch.zeros(labels, 1, 3)
    probability[-1, 0, 0] = 0.3
    probability[:, 0, 1] = 0.3
    one, uniform, dead = activation_entropy(probability)[0].tolist()
    assert (one, uniform) == (0, pytest.approx(math.log(labels))) and math.isnan(dead)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.full((2, 1, 3), 1.1), r"\[2, 1, 3\]:"),
        (torch.full((2, 1, 3), -0.1), r"\[2, 1, 3\]:"),
        (torch.full((2, 1, 3), torch.nan), r"\[2, 1, 3\] with NaN"),
    ],
)
def test_what_is_no_probability_is_refused(wrong, said):
    with pytest.raises(ValueError, match=f"from 0 to 1, got {said}"):
        activation_entropy(wrong)


@rules.rules
@given(
    seed=st.integers(0, 999),
    count=st.integers(1, 4),
    widths=rules.WIDTHS,
    rate=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    filtered=QUANTILE,
    bar=QUANTILE,
    cut=st.integers(0, 3),
)
def test_neurons_of_low_entropy_are_those_of_a_loop_over_sorted_values(seed, count, widths, rate, filtered, bar, cut):
    labels, layers = rules.NAMES[:count], max(len(widths) - cut, 1) if cut else None
    probability = rules.probabilities(seed, count, widths)
    options = dict(rate=rate, filter_quantile=filtered, bar_quantile=bar, layers=layers)
    found = low_entropy(torch.tensor(probability), labels, widths={"vision": widths}, module="vision", **options)
    expected = rules.low_entropy(probability, widths, **options)
    assert tuple(found) == labels
    for own, theirs in zip(found.values(), expected, strict=True):
        assert rules.pairs(own) == theirs and set(own.module) <= {"vision"}
        np.testing.assert_allclose(own.score, [rules.entropy(probability[:, *place]) for place in theirs], atol=1e-6)
    if filtered == bar:  # then every neuron that is chosen is in a set
        easiest = rules.low_entropy(probability, widths, **{**options, "bar_quantile": 0.0})
        several = {place for own in easiest for place in own}
        assert {place for own in found.values() for place in rules.pairs(own)} == several


def test_the_bar_the_filter_and_the_rate_each_do_something_of_their_own():
    """Ten neurons, two labels; the 20 values are .05, .1, ... 1, the first label's odd, the second's even multiples."""
    values = torch.arange(1, 21) / 20
    probability = values.view(10, 2).T[:, None]  # the later a neuron, the higher and the more alike its probabilities

    def chosen(**options):
        found = low_entropy(probability, ["a", "b"], widths={"language": (10,)}, **options)
        return [own.unit.tolist() for own in found.values()]

    every = dict(rate=1.0, filter_quantile=0.5)  # above .5: neurons 5 to 9
    assert chosen(**every, bar_quantile=0.5) == [[5, 6, 7, 8, 9]] * 2
    assert chosen(**every, bar_quantile=0.7) == [[7, 8, 9]] * 2
    assert chosen(**every, bar_quantile=0.75) == [[8, 9], [7, 8, 9]]
    assert chosen(**every, bar_quantile=0.95) == [[], [9]]
    assert chosen(**every, bar_quantile=1.0) == [[], []]
    assert chosen(rate=0.2, filter_quantile=0.5, bar_quantile=0.5) == [[5, 6]] * 2
    assert chosen(rate=0.2, filter_quantile=0.0, bar_quantile=0.0) == [[1], [0, 1]]  # the smallest value is the bar
    assert chosen(rate=0.04, filter_quantile=0.5, bar_quantile=0.5) == [[], []]


def test_trailing_labels_and_layers_without_neurons_stay():
    probability = torch.zeros(3, 2, 4)
    probability[0, 0, 1] = 1
    found = low_entropy(probability, ["a", "b", "c"], widths={"language": (4, 2)}, rate=0.5)
    assert {label: list(own) for label, own in found.items()} == {"a": [("language", 0, 1)], "b": [], "c": []}
    assert all(own.widths == {"language": (4, 2)} for own in found.values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(rate=1.1), "rate is from 0 to 1, got 1.1"),
        (dict(filter_quantile=-0.1), "filter_quantile is from 0 to 1"),
        (dict(bar_quantile=95.0), "bar_quantile is from 0 to 1, got 95"),
        (dict(layers=0), "2 layers, got layers=0"),
        (dict(layers=3), "2 layers, got layers=3"),
        (dict(module="vision"), r"the modules \['language'\], got 'vision'"),
        (dict(labels=["a"]), r"\[1, 2, 3\] for the different labels a; got \[2, 2, 3\]"),
        (dict(labels=["a", "a"]), "different labels"),
        (dict(widths={"language": (3, 2, 3)}), r"\[2, 3, 3\]"),
        (dict(widths={"language": (2, 2)}), r"\[2, 2, 2\]"),
    ],
)
def test_what_is_not_the_modules_is_refused(options, said):
    options = dict(labels=["a", "b"], widths={"language": (3, 2)}) | options
    with pytest.raises(ValueError, match=said):
        low_entropy(torch.rand(2, 2, 3), **options)


def test_a_label_without_examples_is_refused_by_name():
    probability = torch.rand(2, 2, 3)
    probability[1] = torch.nan
    with pytest.raises(ValueError, match="'night' has none"):
        low_entropy(probability, ["day", "night"], widths={"language": (3, 2)})
    with pytest.raises(ValueError, match="from 0 to 1"):
        low_entropy(probability.nan_to_num(2), ["day", "night"], widths={"language": (3, 2)})
