"""Statistics of parts, joined, are those of the whole: equal labels added up, others side by side, other kinds refused."""

from dataclasses import replace

import by_hand
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from support import picture

import mmlens
from mmlens.stats import SampleStats, Statistics, TokenStats

WIDTHS = {"language": (5, 3)}
GROUPS = ("all", "image", "answer")
slow_shapes = settings(max_examples=8, deadline=None)


def tokens(labels, **options):
    return TokenStats(WIDTHS, labels=labels, groups=GROUPS, **options)


def samples(labels, **options):
    every = ("probability", "mean", "max", "attn_k", "attn_q")
    return SampleStats(WIDTHS, labels=labels, groups=GROUPS, statistics=every, **options)


def drawn(shapes, labels, patterns, first=0):
    """Return random batches of examples with these labels, their activations and head-averaged attention."""
    found = []
    for seed, rows, length in shapes:
        batch = by_hand.batch(seed, rows, length, labels, first + sum(len(one[0].inputs) for one in found))
        random = torch.Generator().manual_seed(seed)
        attention = [torch.rand(rows, length, length, generator=random, dtype=torch.float64) for _ in WIDTHS["language"]]
        found.append((batch, by_hand.activations(seed, batch, WIDTHS["language"]), *([attention] if patterns else [])))
    return found


def filled(accumulator, pairs, model):
    for pair in pairs:
        by_hand.feed(accumulator, model, *pair)
    return accumulator.result(model)


def agree(found, whole):
    assert (found.labels, found.groups, found.widths, found.live) == (whole.labels, whole.groups, whole.widths, whole.live)
    assert found.totals.keys() == whole.totals.keys()
    for name in ("tokens", "samples", "short"):
        assert torch.equal(getattr(found, name)["language"], getattr(whole, name)["language"])
    for name, own in whole.totals.items():
        assert found.totals[name]["language"].dtype == own["language"].dtype
        np.testing.assert_allclose(found.totals[name]["language"], own["language"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [tokens, samples])
@slow_shapes
@given(first=by_hand.BATCHES, second=by_hand.BATCHES)
def test_two_halves_joined_are_the_whole(small, make, first, second):
    labels = ["a", "b"]
    halves = [drawn(shapes, labels, make is samples, place) for place, shapes in ((0, first), (99, second))]
    parts = [filled(make(labels), half, small) for half in halves]
    before = [{name: own["language"].clone() for name, own in part.totals.items()} for part in parts]
    found = Statistics.joined(*parts)
    agree(found, filled(make(labels), [*halves[0], *halves[1]], small))
    assert found.provenance.inputs == parts[0].provenance.inputs + parts[1].provenance.inputs
    for part, totals in zip(parts, before, strict=True):
        assert all(torch.equal(part.totals[name]["language"], own) for name, own in totals.items())
        agree(Statistics.joined(part), part)


@pytest.mark.parametrize("make", [tokens, samples])
@slow_shapes
@given(first=by_hand.BATCHES, second=by_hand.BATCHES, third=by_hand.BATCHES)
def test_other_labels_stand_side_by_side_and_equal_ones_are_added_up(small, make, first, second, third):
    named = (["b", "a"], ["c", "b"], ["d"])
    pairs = [drawn(shapes, own, make is samples) for shapes, own in zip((first, second, third), named, strict=True)]
    parts = [filled(make(own), part, small) for own, part in zip(named, pairs, strict=True)]
    agree(Statistics.joined(*parts), filled(make(["b", "a", "c", "d"]), [pair for part in pairs for pair in part], small))


def test_examples_that_were_too_short_for_the_budget_are_added_up_too(small):
    pairs = drawn([(1, 4, 7), (2, 4, 7), (3, 4, 7)], ["a"], False)
    parts = [filled(tokens(["a"], budget=3), [pair], small) for pair in pairs]
    found = Statistics.joined(*parts)
    agree(found, filled(tokens(["a"], budget=3), pairs, small))
    assert found.short["language"].sum() > 0


def test_what_is_of_another_kind_is_refused(small):
    pairs = drawn([(1, 3, 5)], ["a"], True)
    plain = [pair[:2] for pair in pairs]
    one = filled(tokens(["a"]), plain, small)
    shares = filled(samples(["a"]), pairs, small)
    of_others = replace(one, provenance=replace(one.provenance, weights="others"))
    for first, second, said in [
        (one, of_others, "the weights .* and others"),
        (one, shares, "the weighting tokens and samples"),
        (one, filled(tokens(["a"], site="pre"), plain, small), "the site post and pre"),
        (one, filled(TokenStats(WIDTHS, labels=["a"]), plain, small), "the groups"),
        (one, filled(TokenStats({"language": (5,)}, labels=["a"], groups=GROUPS), plain, small), "the modules"),
        (one, filled(tokens(["a"], statistics=["sum"]), plain, small), "the statistics"),
        (one, filled(tokens(["a"], budget=1), plain, small), "the parameters"),
        (shares, filled(samples(["a"], normalise="minmax"), pairs, small), "the parameters .*minmax"),
    ]:
        with pytest.raises(ValueError, match=f"joined where they are of one kind, got {said}"):
            Statistics.joined(first, second)
    with pytest.raises(ValueError, match="one part or more, got none"):
        Statistics.joined()


def test_sweeps_over_two_stretches_join_and_say_which_layers_are_live(small, tmp_path):
    examples = [mmlens.Example("what", images=picture(seed), label="ab"[seed % 2]) for seed in range(4)]

    def swept(some):
        of = dict(labels=["a", "b"], modules=["vision", "language"], groups=["all", "image"])
        both = {"tokens": TokenStats(small.widths, **of), "samples": SampleStats(small.widths, **of)}
        return mmlens.sweep(small, some, both, progress=False)

    whole, first, second = swept(examples), swept(examples[:3]), swept(examples[3:])
    for name in ("tokens", "samples"):
        own = whole[name]
        found = Statistics.joined(first[name], second[name])
        assert found.live == own.live == {module: small.live_layers[module] for module in ("vision", "language")}
        assert own.live["vision"] == len(small.widths["vision"]) - 1
        assert Statistics.load(found.save(tmp_path / name)).live == own.live
        for module in own.widths:
            assert torch.equal(found.tokens[module], own.tokens[module])
            for statistic in own.totals:
                np.testing.assert_allclose(
                    found.totals[statistic][module], own.totals[statistic][module], rtol=1e-4, atol=1e-4
                )
