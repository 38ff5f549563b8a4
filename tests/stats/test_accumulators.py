"""Accumulators equal sums written out in numpy, whatever the shapes, masks and padding; they merge, in any order."""

import by_hand
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlens.stats import NotFinite, SampleStats, TokenStats, TopExamples

LABELS = ["a", "b", "c"]
WIDTHS = {"language": (5, 3)}
slow_shapes = settings(max_examples=25, deadline=None)


def pairs_of(shapes, *, patterns=False):
    """Return batches with their activations (and head-averaged attention), one behind the other in a data set."""
    found, first = [], 0
    for seed, rows, length in shapes:
        batch = by_hand.batch(seed, rows, length, LABELS, first)
        pair = (batch, by_hand.activations(seed, batch, WIDTHS["language"]))
        if patterns:
            random = torch.Generator().manual_seed(seed)
            pair += (
                [
                    torch.rand(rows, length, length, generator=random, dtype=torch.float64).softmax(-1)
                    for _ in WIDTHS["language"]
                ],
            )
        found.append(pair)
        first += rows
    return found


def filled(make, pairs, model):
    accumulator = make()
    for pair in pairs:
        by_hand.feed(accumulator, model, *pair)
    return accumulator


def tokens(**options):
    return TokenStats(WIDTHS, labels=LABELS, groups=by_hand.GROUPS, **options)


def samples(**options):
    every = ("probability", "mean", "max", "attn_k", "attn_q")
    return SampleStats(WIDTHS, labels=LABELS, groups=by_hand.GROUPS, statistics=every, **options)


def top(**options):
    return TopExamples(WIDTHS, labels=LABELS, groups=by_hand.GROUPS, k=3, **options)


@slow_shapes
@given(shapes=by_hand.BATCHES)
def test_token_statistics_are_those_of_a_loop_over_positions(small, shapes):
    pairs = pairs_of(shapes)
    found = filled(tokens, pairs, small).result(small)
    count, total, largest, positions, examples = by_hand.token_statistics(pairs, LABELS, by_hand.GROUPS, (5, 3))
    np.testing.assert_array_equal(found.totals["count"]["language"], count)
    np.testing.assert_allclose(found.totals["sum"]["language"], total, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(found.totals["max"]["language"], largest)
    np.testing.assert_array_equal(found.tokens["language"], positions)
    np.testing.assert_array_equal(found.samples["language"], examples)
    with np.errstate(divide="ignore", invalid="ignore"):
        np.testing.assert_array_equal(found.table("probability"), count / positions[..., None, None])


@slow_shapes
@given(shapes=by_hand.BATCHES, normalise=st.sampled_from([None, "minmax"]), renorm=st.sampled_from(["l1", "softmax"]))
def test_sample_statistics_are_those_of_the_papers_full_products(small, shapes, normalise, renorm):
    pairs = pairs_of(shapes, patterns=True)
    found = filled(lambda: samples(normalise=normalise, renorm=renorm), pairs, small).result(small)
    total, examples = by_hand.sample_statistics(pairs, LABELS, by_hand.GROUPS, (5, 3), normalise=normalise, renorm=renorm)
    np.testing.assert_array_equal(found.samples["language"], examples)
    for name, expected in total.items():
        np.testing.assert_allclose(found.totals[name]["language"], expected, rtol=1e-9, atol=1e-9)


@slow_shapes
@given(shapes=by_hand.BATCHES)
def test_the_strongest_examples_are_those_of_a_sorted_list(small, shapes):
    pairs = pairs_of(shapes)
    found = filled(top, pairs, small).result(small)
    for label, name in enumerate(LABELS):
        for column, group in enumerate(by_hand.GROUPS):
            for layer, width in enumerate(WIDTHS["language"]):
                for unit in range(width):
                    answers = []
                    for batch, values in pairs:
                        for row in range(len(batch.inputs)):
                            where = by_hand.positions(batch, row, group)
                            if batch.labels[row] == name and where:
                                answers.append((-float(values[layer][row, where, unit].max()), batch.places[row]))
                    answers = [*sorted(answers), *[(np.inf, -1)] * 3][:3]
                    kept = (
                        found.value["language"][label, column, layer, unit],
                        found.place["language"][label, column, layer, unit],
                    )
                    assert [-value for value, _ in answers] == kept[0].tolist()
                    assert [place for _, place in answers] == kept[1].tolist()


def test_the_position_of_a_strongest_activation_is_counted_from_the_first_real_one(small):
    batch = by_hand.batch(3, 4, 6, LABELS)
    values = by_hand.activations(3, batch, (5, 3))
    found = filled(lambda: TopExamples(WIDTHS, k=4), [(batch, values)], small).result(small)
    for unit in range(5):
        for value, place, position in zip(
            *(getattr(found, name)["language"][0, 0, 0, unit].tolist() for name in ("value", "place", "position")),
            strict=True,
        ):
            real = batch.inputs.attention_mask[place].nonzero()[:, 0]
            assert values[0][place, real[position], unit] == value


@pytest.mark.parametrize(
    "make", [tokens, pytest.param(samples, marks=pytest.mark.slow), top], ids=["tokens", "samples", "top"]
)
@slow_shapes
@given(shapes=by_hand.BATCHES, cut=st.integers(0, 4), order=st.randoms(use_true_random=False))
def test_two_halves_merged_are_the_whole_and_order_does_not_matter(small, make, shapes, cut, order):
    pairs = pairs_of(shapes, patterns=make is samples)
    whole = filled(make, pairs, small)
    first, second = filled(make, pairs[:cut], small), filled(make, pairs[cut:], small)
    first.merge_state(second)
    shuffled = list(pairs)
    order.shuffle(shuffled)
    for other in (first, filled(make, shuffled, small)):
        for name, state in whole.metric_state.items():
            theirs = other.metric_state[name]
            if state.dtype == torch.int64 or name.endswith(("max", "value")):
                assert torch.equal(state, theirs) or "_position" in name, name
            else:
                torch.testing.assert_close(state, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [tokens, samples, top], ids=["tokens", "samples", "top"])
def test_a_batch_that_is_forgotten_leaves_no_trace(small, make):
    pairs = pairs_of([(1, 3, 5), (2, 2, 4)], patterns=make is samples)
    once, twice = filled(make, pairs[:1], small), filled(make, pairs[:1], small)
    for name, read in twice.hooks(small, pairs[1][0]):
        read(pairs[1][2 if "pattern" in name else 1][int(name.split(".")[1])], hook=None)
    twice.forget()
    twice.update()
    assert all(torch.equal(state, twice.metric_state[name]) for name, state in once.metric_state.items())


@pytest.mark.parametrize("make", [tokens, samples, top], ids=["tokens", "samples", "top"])
def test_a_saved_accumulator_goes_on_to_the_same_bits(small, make):
    pairs = pairs_of([(1, 3, 5), (2, 2, 4), (3, 4, 6)], patterns=make is samples)
    first, second = filled(make, pairs[:1], small), make()
    second.restore({name: state.clone() for name, state in first.saved().items()})
    for pair in pairs[1:]:
        by_hand.feed(second, small, *pair)
    whole = filled(make, pairs, small)
    assert all(torch.equal(state, second.metric_state[name]) for name, state in whole.metric_state.items())


@pytest.mark.parametrize("make", [tokens, samples, top], ids=["tokens", "samples", "top"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_number_that_is_not_finite_is_refused_with_the_examples_name_and_padding_is_not_looked_at(small, make, value):
    batch, values, patterns = pairs_of([(5, 3, 6)], patterns=True)[0]
    real = batch.inputs.attention_mask.bool()
    broken = [layer.clone() for layer in values]
    broken[1][~real] = value
    assert (~real).any()
    pair = (batch, broken, *([patterns] if make is samples else []))
    clean = (batch, values, *([patterns] if make is samples else []))
    states = filled(make, [clean], small).metric_state
    assert all(torch.equal(state, states[name]) for name, state in filled(make, [pair], small).metric_state.items())
    row = int(real.nonzero()[-1, 0])
    broken[1][row, -1, 2] = value
    with pytest.raises(NotFinite, match=rf"layer 1 of language in the example\(s\) {batch.ids[row]}:"):
        filled(make, [pair], small)


def test_a_budget_takes_exactly_so_many_positions_of_each_example(small):
    pairs = pairs_of([(1, 4, 7), (2, 4, 7), (3, 4, 7)])
    budgeted = lambda: TokenStats(WIDTHS, labels=LABELS, groups=("all",), budget=3)  # noqa: E731
    found = filled(budgeted, pairs, small).result(small)
    enough = dict.fromkeys(LABELS, 0)
    for batch, _ in pairs:
        for row, label in enumerate(batch.labels):
            enough[label] += len(by_hand.positions(batch, row, "all")) >= 3
    assert found.tokens["language"][:, 0].tolist() == [3 * enough[name] for name in LABELS]
    assert found.samples["language"][:, 0].tolist() == [enough[name] for name in LABELS]
    everybody = sum(len(batch.inputs) for batch, _ in pairs)
    assert int(found.samples["language"].sum() + found.short["language"].sum()) == everybody
    again = filled(budgeted, pairs[::-1], small).result(small)
    assert torch.equal(found.totals["count"]["language"], again.totals["count"]["language"])
    whole = filled(lambda: TokenStats(WIDTHS, labels=LABELS, budget=7), pairs, small)
    assert int(whole.result(small).tokens["language"].sum()) % 7 == 0


def test_states_are_wide_and_nothing_grows_with_positions(small):
    accumulator = TokenStats(WIDTHS, labels=LABELS)
    assert {state.dtype for state in accumulator.metric_state.values()} == {torch.int64, torch.float64}
    size = sum(state.numel() for state in accumulator.metric_state.values())
    for length in (3, 300):
        batch = by_hand.batch(1, 2, length, LABELS)
        by_hand.feed(accumulator, small, batch, by_hand.activations(1, batch, (5, 3)))
    assert sum(state.numel() for state in accumulator.metric_state.values()) == size


def test_what_does_not_fit_together_is_refused(small):
    with pytest.raises(ValueError, match="equal"):
        tokens().merge_state(TokenStats(WIDTHS))
    with pytest.raises(ValueError, match="a group is one of"):
        TokenStats(WIDTHS, groups=("images",))
    with pytest.raises(ValueError, match="neurons in language"):
        TokenStats(WIDTHS, modules=("vision",))
    with pytest.raises(ValueError, match="none was counted"):
        tokens().result(small)
    with pytest.raises(ValueError, match=r"label is one of a, got 'b' in example '0'"):
        batch = by_hand.batch(1, 1, 4, ["b"])
        by_hand.feed(TokenStats(WIDTHS, labels=["a"]), small, batch, by_hand.activations(1, batch, (5, 3)))
    with pytest.raises(ValueError, match="the checkpoint has nothing"):
        tokens().restore({"shown": torch.zeros(2, dtype=torch.int64)})
    found = filled(tokens, pairs_of([(1, 3, 5)]), small).result(small)
    with pytest.raises(KeyError, match="say which"):
        found.scores("mean")
    with pytest.raises(KeyError, match="got 'attn_k'"):
        found.table("attn_k")
