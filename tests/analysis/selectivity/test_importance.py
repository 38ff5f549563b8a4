"""Importance is that of a loop over data sets and examples: weights by name or free, absent groups left out or as zeros."""

import numpy as np
import pytest
import rules
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmlens.analysis.selectivity import WEIGHTINGS, importance

NAMED = {  # probability, mean, max, attn_k, attn_q: as methods 4.d lists them
    "probability": (1, 0, 0, 0, 0),
    "mean": (0, 1, 0, 0, 0),
    "max": (0, 0, 1, 0, 0),
    "attn_k": (0, 0, 0, 1, 0),
    "attn_q": (0, 0, 0, 0, 1),
    "mean_max": (0, 0.5, 0.5, 0, 0),
    "attn": (0, 0, 0, 0.5, 0.5),
    "mean_max_attn_k": (0, 0.25, 0.25, 0.5, 0),
    "mean_max_attn_q": (0, 0.25, 0.25, 0, 0.5),
    "equal": (0.2, 0.2, 0.2, 0.2, 0.2),
}
STATISTICS = ("probability", "mean", "max", "attn_k", "attn_q")
GROUPS = ("image", "text", "image+text", "all")
WIDTHS = {"language": (5, 3), "vision": (2, 4, 1)}


def expected(examples, weights, group, layer, unit, *, absent_as_zero):
    """`examples` are, for each data set, each example's {group: {statistic: [layer, unit]}}, without those it lacks."""
    by_data_set = []
    for own in examples:
        scores = [sum(w * one[group][name][layer, unit] for name, w in weights.items()) for one in own if group in one]
        if scores:
            by_data_set.append(sum(scores) / (len(own) if absent_as_zero else len(scores)))
    return sum(by_data_set) / len(by_data_set) if by_data_set else None


def data_sets(seed, labels, module):
    random = np.random.default_rng(seed)
    shape = len(WIDTHS[module]), max(WIDTHS[module])
    some = [[group for group in GROUPS if group == "all" or random.random() < 0.4] for _ in range(3 * len(labels))]
    sizes = random.integers(1, 4, len(labels))
    return [
        [
            {group: {name: random.random(shape) for name in STATISTICS} for group in some[3 * place + i]}
            for i in range(sizes[place])
        ]
        for place in range(len(labels))
    ]


def gathered(examples, labels, module, names=STATISTICS):
    """Return what `SampleStats` would make of examples: sums, and how many have each group."""
    totals = {name: np.zeros((len(labels), len(GROUPS), len(WIDTHS[module]), max(WIDTHS[module]))) for name in names}
    samples = np.zeros((len(labels), len(GROUPS)), int)
    for place, own in enumerate(examples):
        for one in own:
            for column, group in enumerate(GROUPS):
                samples[place, column] += group in one
                for name in names:
                    if group in one:
                        totals[name][place, column] += one[group][name]
    by_module = {name: {module: total} for name, total in totals.items()}
    counts = {module: samples}
    return rules.statistics("samples", labels, GROUPS, {module: WIDTHS[module]}, None, by_module, counts, counts)


FREE = st.dictionaries(st.sampled_from(STATISTICS), st.sampled_from([-1.0, 0.25, 2.0]), min_size=1)


@rules.rules
@given(
    seed=st.integers(0, 999),
    count=st.integers(1, 4),
    weights=st.sampled_from(sorted(NAMED)) | FREE,
    module=st.sampled_from(sorted(WIDTHS)),
    absent_as_zero=st.booleans(),
)
def test_importance_is_that_of_a_loop_over_data_sets_and_examples(seed, count, weights, module, absent_as_zero):
    labels, options = rules.NAMES[:count], dict(absent_as_zero=absent_as_zero)
    examples = data_sets(seed, labels, module)
    found = importance(gathered(examples, labels, module), weights, module=module, **options)
    plain = dict(zip(STATISTICS, NAMED[weights], strict=True)) if isinstance(weights, str) else weights
    there = [group for group in GROUPS if any(group in one for own in examples for one in own)]
    assert len(found) == len(there)
    for layer, width in enumerate(WIDTHS[module]):
        for unit in range(width):
            values = [expected(examples, plain, group, layer, unit, **options) for group in there]
            np.testing.assert_allclose(found[:, layer, unit], values, rtol=1e-12, atol=1e-12)


def test_the_ten_weightings_are_the_papers():
    assert {name: tuple(weights.get(one, 0) for one in STATISTICS) for name, weights in WEIGHTINGS.items()} == NAMED


def test_groups_are_returned_in_the_order_asked_for():
    statistics = rules.by_samples(3, ["a", "b", "c"], GROUPS, WIDTHS)
    every = importance(statistics, module="vision", groups=GROUPS)
    assert torch.equal(importance(statistics, module="vision", groups=["all", "text"]), every[[3, 1]])


def test_a_rare_group_is_small_only_where_absence_counts_as_zero():
    example = {name: np.ones((2, 5)) for name in STATISTICS}
    statistics = gathered([[{"all": example, "image": example}, {"all": example}, {"all": example}]], ["a"], "language")
    groups = ["image", "all"]
    assert importance(statistics, groups=groups)[:, 0, 0].tolist() == pytest.approx([1, 1])
    assert importance(statistics, groups=groups, absent_as_zero=True)[:, 0, 0].tolist() == pytest.approx([1 / 3, 1])


def test_what_is_not_there_is_refused():
    statistics = rules.by_samples(3, ["a"], GROUPS, {"language": (5, 3)})
    few = rules.by_samples(3, ["a"], GROUPS, {"language": (5, 3)}, names=("mean", "max"))
    absent = gathered([[{"all": {name: np.ones((2, 5)) for name in STATISTICS}}]], ["a"], "language")
    for wrong, options, said in [
        (rules.by_tokens(3, ["a"], GROUPS, {"language": (5, 3)}), {}, "gather them with SampleStats"),
        (statistics, dict(weights="median"), "weights are one of probability, .*; got 'median'"),
        (statistics, dict(weights={}), "or a number for each statistic; got {}"),
        (statistics, dict(weights={"median": 1.0}), "weights are of median too"),
        (few, {}, r"these statistics are mean, max, and weights are of attn_k too: gather with SampleStats\("),
        (statistics, dict(module="vision"), "these statistics are of language, got 'vision'"),
        (statistics, dict(groups=["all", "audio"]), r"examples here have the groups .*all, got 'audio'"),
        (absent, dict(groups=["image"]), "have the groups all, got 'image'"),
    ]:
        with pytest.raises(ValueError, match=said):
            importance(wrong, **options)
    assert importance(few, "mean_max").shape[1:] == (2, 5)
