"""What sets of neurons share is counted on sets made by hand; chance is what random draws come to."""

import random
from itertools import combinations

import pytest
import torch
from support import picture

from mmlens import Neurons, hooks
from mmlens.analysis.properties import (
    Overlaps,
    Ranked,
    cross_image_invariance,
    layer_histogram,
    overlap,
    region_invariance,
    shuffle_image,
    specificity,
)
from mmlens.targets import continued

WIDTHS = {"language": (40, 30, 50), "vision": (20,)}


def ranking(*neurons):
    return Neurons.of(neurons, WIDTHS)


A = ranking((0, 1), (0, 2), (1, 3), (2, 4), (2, 5))
B = ranking((0, 2), (1, 3), (0, 9), (2, 5), (2, 4))
C = ranking((1, 3), (2, 8), (0, 2), (2, 7), (0, 1))


def test_overlap_counts_the_first_k_whatever_their_order():
    assert overlap(A, B, 1) == 0 and overlap(A, B, 2) == 1 / 2 and overlap(A, B, 3) == 2 / 3 and overlap(A, B, 5) == 4 / 5
    assert overlap(A, A, 4) == 1 and overlap(A, C, 3) == overlap(C, A, 3) == 2 / 3
    for k in (0, 6):
        with pytest.raises(ValueError, match="1 to 5"):
            overlap(A, B, k)


def test_region_invariance_is_over_the_nouns_that_are_still_written_each_in_its_own_image():
    before = [Ranked("i1", "dog", A), Ranked("i1", "cat", B), Ranked("i2", "dog", C)]
    after = [Ranked("i2", "dog", B), Ranked("i1", "dog", C), Ranked("i3", "cat", B)]
    found = region_invariance(before, after, 3)
    assert found.nouns == (("dog", "dog"), ("dog", "dog")) and found.images == (("i1", "i1"), ("i2", "i2"))
    assert found.overlap.tolist() == pytest.approx([2 / 3, 2 / 3])
    with pytest.raises(ValueError, match="one ranking in an image"):
        region_invariance([*before, before[0]], after, 3)


def test_cross_image_invariance_is_the_mean_of_pairs_and_what_all_images_share():
    rankings = [Ranked("i1", "dog", A), Ranked("i2", "dog", B), Ranked("i3", "dog", C), Ranked("i1", "cat", C)]
    found = cross_image_invariance(rankings, 3)
    assert list(found) == ["dog"] and found["dog"].rankings == 3
    assert found["dog"].pairwise == pytest.approx((2 / 3 + 2 / 3 + 2 / 3) / 3)
    assert found["dog"].intersection == pytest.approx(2 / 3)  # L0.u2 and L1.u3
    two = cross_image_invariance(rankings[:2], 5)["dog"]
    assert (two.pairwise, two.intersection) == pytest.approx((4 / 5, 4 / 5))


def test_specificity_is_over_pairs_of_different_nouns_and_tells_those_of_one_image_apart():
    rankings = [Ranked("i1", "dog", A), Ranked("i1", "cat", B), Ranked("i2", "dog", C), Ranked("i2", "cat", A)]
    found = specificity(rankings, 2)
    pairs = [("A", "B"), ("A", "A"), ("B", "C"), ("C", "A")]  # dog-cat i1, dog i1-cat i2, cat i1-dog i2, dog-cat i2
    named = {"A": A, "B": B, "C": C}
    expected = [len(set(named[a][:2]) & set(named[b][:2])) / 2 for a, b in pairs]
    assert found.overlap.tolist() == expected and len(found) == 4
    assert found.within(same_image=True).tolist() == [True, False, False, True]
    assert found.within(same_image=False).tolist() == [False, True, True, False]


def test_chance_is_what_random_sets_with_as_many_in_each_layer_share_on_average():
    a = ranking(*[(0, unit) for unit in range(12)], *[(2, unit) for unit in range(8)])
    b = ranking(*[(0, unit) for unit in range(6)], *[(1, unit) for unit in range(4)], *[(2, unit) for unit in range(10)])
    found = region_invariance([Ranked("i", "dog", a)], [Ranked("i", "dog", b)], 20)
    draw, total = random.Random(0), 0.0
    for _ in range(4000):
        shared = [
            len(set(draw.sample(range(width), own)) & set(draw.sample(range(width), other)))
            for own, other, width in ((12, 6, 40), (0, 4, 30), (8, 10, 50))
        ]
        total += sum(shared) / 20
    assert found.chance.item() == pytest.approx(total / 4000, rel=0.03)


def test_layers_count_each_neuron_once_however_many_rankings_have_it():
    assert layer_histogram([A, B, C], 3).tolist() == [3, 1, 1]  # u1 u2 u9, u3, u8
    assert layer_histogram([A, A]).tolist() == [2, 1, 2]
    assert layer_histogram([A, B, C], 3, keep=ranking((0, 2), (2, 8), (2, 4))).tolist() == [1, 0, 1]
    mixed = Neurons.of([("vision", 0, 3), ("language", 1, 2)], WIDTHS)
    assert layer_histogram([mixed], module="vision").tolist() == [1] and layer_histogram([mixed]).tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="got none"):
        layer_histogram([])


def test_overlaps_of_many_are_those_of_each_two_and_save_and_load(tmp_path):
    every = [
        Neurons.of([(layer, (7 * n + 3 * unit) % 30) for layer in range(3) for unit in range(6)], WIDTHS) for n in range(8)
    ]
    rankings = [Ranked(f"i{n // 2}", f"noun {n}", one) for n, one in enumerate(every)]
    found = specificity(rankings, 10)
    assert found.overlap.tolist() == pytest.approx([overlap(a, b, 10) for a, b in combinations(every, 2)])
    again = Overlaps.load(found.save(tmp_path / "overlaps"))
    assert repr(found).startswith("Overlaps(28 pairs")
    assert again.nouns == found.nouns and torch.equal(again.overlap, found.overlap)


# ---------------------------------------------------------------- the second run


@torch.no_grad()
def test_a_shuffled_image_is_the_same_shuffle_however_far_the_row_has_gone_on(small):
    model = small[0]
    inputs = model.to_inputs("what is at the left ?", images=picture(1))
    shuffle = shuffle_image(inputs, seed=3)
    grown = continued(inputs, torch.tensor([model.to_token("car"), model.to_token("boat")]))
    where = inputs.mask("image")[0]
    _, plain = model.run_with_cache(inputs, "blocks.0.hook_resid_pre")
    with model.hooks(fwd_hooks=shuffle):
        short, long = model(inputs), model(grown)
    torch.testing.assert_close(long[:, : short.shape[1]], short)
    _, cache = model.run_with_cache(grown, "blocks.0.hook_resid_pre", fwd_hooks=shuffle)
    before, after = (run["blocks.0.hook_resid_pre"][0, : len(where)] for run in (plain, cache))
    assert torch.equal(after[~where], before[~where]) and not torch.equal(after[where], before[where])
    assert sorted(after[where].sum(-1).tolist()) == sorted(before[where].sum(-1).tolist())
    by_hand = [("blocks.0.hook_resid_pre", hooks.permute(inputs.mask("image"), seed=3))]
    assert torch.equal(model.run_with_hooks(inputs, fwd_hooks=by_hand), short)
    written = model.generate(inputs, max_new_tokens=3, fwd_hooks=shuffle)
    assert torch.equal(written.tokens, model.generate(inputs, max_new_tokens=3, fwd_hooks=by_hand).tokens)


def test_images_of_several_rows_are_refused(small):
    with pytest.raises(ValueError, match="one row"):
        shuffle_image(small[1], seed=0)
