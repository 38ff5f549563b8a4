"""Sets of neurons behave like Python's sets that keep their order; rankings like numpy's."""

import numpy as np
import pytest
import torch

from mmlens import Neurons, top_k
from mmlens.neurons import label

WIDTHS = {"language": (6, 4, 5), "vision": (3, 3), "projector": (4,)}


def random_set(seed, size=9):
    generator = np.random.default_rng(seed)
    everything = [(m, l, u) for m, layers in WIDTHS.items() for l, width in enumerate(layers) for u in range(width)]
    return [everything[i] for i in generator.permutation(len(everything))[:size]]


@pytest.mark.parametrize("seed", range(5))
def test_set_algebra_is_pythons_and_keeps_the_order_of_the_first_set(seed):
    one, other = random_set(seed), random_set(seed + 100)
    a, b = Neurons.of(one, WIDTHS), Neurons.of(other, WIDTHS)
    assert list(a) == one and len(a) == len(one)
    assert list(a & b) == [n for n in one if n in set(other)]
    assert list(a - b) == [n for n in one if n not in set(other)]
    assert list(a | b) == one + [n for n in other if n not in set(one)]
    assert set(a | b) == set(one) | set(other)
    assert a.jaccard(b) == len(set(one) & set(other)) / len(set(one) | set(other))
    assert all(n in a for n in one) and not any(n in a for n in set(other) - set(one))
    assert a == Neurons.of(one, WIDTHS) and a != Neurons.of(one[::-1], WIDTHS)
    assert a.labels() == [("" if m == "language" else f"{m}.") + f"L{l}.u{u}" for m, l, u in one]
    assert list(a[2:5]) == one[2:5] and list(a[[4, 0]]) == [one[4], one[0]]


def test_a_pair_is_a_neuron_of_the_language_model():
    assert list(Neurons.of([(1, 2), ("vision", 0, 1)], WIDTHS)) == [("language", 1, 2), ("vision", 0, 1)]
    assert label(("language", 3, 120)) == "L3.u120" and label(("vision", 3, 120)) == "vision.L3.u120"


@pytest.mark.parametrize("seed", range(3))
def test_units_by_layer_are_the_set_again(seed):
    neurons = Neurons.of(random_set(seed), WIDTHS)
    flat = [(module, layer, unit) for (module, layer), units in neurons.by_layer().items() for unit in units.tolist()]
    assert sorted(flat) == sorted(neurons)
    for (module, layer), indices in neurons.indices_by_layer().items():
        assert [list(neurons)[i] for i in indices] == [n for n in neurons if n[:2] == (module, layer)]


@pytest.mark.parametrize("seed", range(10))
def test_a_matched_control_has_as_many_neurons_in_every_layer_and_none_of_the_set(seed):
    neurons = Neurons.of([(0, 1), (0, 4), (2, 3), ("vision", 1, 0)], WIDTHS)
    barred = Neurons.of([(0, 0), ("vision", 1, 2)], WIDTHS)
    control = neurons.random_like(seed=seed, exclude=barred)
    count = {key: len(units) for key, units in neurons.by_layer().items()}
    assert {key: len(units) for key, units in control.by_layer().items()} == count
    assert not set(control) & (set(neurons) | set(barred))
    assert control == neurons.random_like(seed=seed, exclude=barred)


def test_matched_controls_of_other_seeds_differ_and_reach_every_free_neuron():
    neurons = Neurons.of([(0, 1)], WIDTHS)
    drawn = {next(iter(neurons.random_like(seed=seed))) for seed in range(60)}
    assert drawn == {("language", 0, unit) for unit in (0, 2, 3, 4, 5)}


def test_a_control_that_has_too_few_neurons_left_is_refused():
    with pytest.raises(ValueError, match="take a smaller set"):
        Neurons.of([("vision", 0, 0), ("vision", 0, 1)], WIDTHS).random_like(seed=0)


def test_a_set_and_its_complement_are_all_neurons_of_its_modules():
    neurons = Neurons.of([(0, 1), (2, 3), ("vision", 1, 0)], WIDTHS)
    everything = {(m, l, u) for m in ("language", "vision") for l, width in enumerate(WIDTHS[m]) for u in range(width)}
    complement = neurons.complement()
    assert set(neurons) | set(complement) == everything and not set(neurons) & set(complement)
    assert len(neurons) + len(complement) == len(everything)


def test_empty_sets_are_sets_too():
    empty, some = Neurons.of([], WIDTHS), Neurons.of([(0, 1)], WIDTHS)
    assert len(empty) == 0 and empty | some == some and some & empty == empty and some - some == empty
    assert empty.jaccard(empty) == 1.0 and empty.jaccard(some) == 0.0
    assert len(empty.random_like(seed=0)) == len(empty.complement()) == 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ([("audio", 0, 0)], "modules"),
        ([(3, 0)], "has 3 layers"),
        ([(1, 4)], "layer 1 has 4 units"),
        ([(0, -1)], "does not exist"),
        ([(0, 1), (0, 2), (0, 1)], "L0.u1 twice"),
    ],
)
def test_neurons_that_do_not_exist_or_come_twice_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        Neurons.of(wrong, WIDTHS)


def table(seed, levels=None):
    generator = np.random.default_rng(seed)
    shape = (len(WIDTHS["language"]), max(WIDTHS["language"]))
    return generator.normal(size=shape) if levels is None else generator.integers(0, levels, shape).astype(float)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(("seed", "levels"), [(0, None), (1, None), (2, 2), (3, 3), (4, 1)])
def test_top_k_is_numpys_stable_sort_over_the_units_that_exist(seed, levels, largest):
    scores, widths = table(seed, levels), WIDTHS["language"]
    existing = [(l, u) for l in range(scores.shape[0]) for u in range(scores.shape[1]) if u < widths[l]]
    values = np.array([scores[n] for n in existing])
    order = np.argsort(-values if largest else values, kind="stable")
    for k in (0, 1, 7, len(existing)):
        chosen = top_k(torch.tensor(scores), k, widths=WIDTHS, largest=largest)
        assert [(l, u) for _, l, u in chosen] == [existing[i] for i in order[:k]]
        np.testing.assert_allclose(chosen.score.numpy(), values[order[:k]], rtol=1e-6)


def test_top_k_never_chooses_a_unit_that_a_narrower_layer_does_not_have():
    scores = torch.zeros(3, 6)
    scores[1, 4:] = 100.0
    scores[2, 5:] = torch.inf
    assert ("language", 1, 4) not in top_k(scores, 15, widths=WIDTHS)
    assert len(set(top_k(scores, 15, widths=WIDTHS))) == 15


def test_top_k_of_another_module_is_named_so():
    chosen = top_k(torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]]), 2, widths=WIDTHS, module="vision")
    assert list(chosen) == [("vision", 1, 0), ("vision", 0, 1)]


def test_scores_that_can_not_be_ranked_are_refused():
    scores = torch.zeros(3, 6)
    with pytest.raises(ValueError, match="got NaN"):
        top_k(scores.index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(torch.nan)), 1, widths=WIDTHS)
    with pytest.raises(ValueError, match=r"\[3, 6\]"):
        top_k(torch.zeros(3, 5), 1, widths=WIDTHS)
    with pytest.raises(ValueError, match="15 neurons, got k = 16"):
        top_k(scores, 16, widths=WIDTHS)


def test_scores_follow_their_neurons():
    chosen = top_k(torch.arange(18.0).view(3, 6), 5, widths=WIDTHS)
    assert chosen.score.tolist() == [16.0, 15.0, 14.0, 13.0, 12.0]
    assert chosen[1:3].score.tolist() == [15.0, 14.0]
    assert (chosen[:2] | chosen[3:]).score.tolist() == [16.0, 15.0, 13.0, 12.0]
    assert (chosen[:2] | Neurons.of([(0, 0)], WIDTHS)).score is None


def test_a_set_that_was_saved_is_the_set_that_is_loaded(tmp_path):
    scores = torch.arange(18.0).view(6, 3).T  # whose highest are spread over the layers, which `random_like` needs
    for neurons in (Neurons.of(random_set(0), WIDTHS), top_k(scores, 4, widths=WIDTHS), Neurons.of([], WIDTHS)):
        loaded = Neurons.load(neurons.save(tmp_path / "neurons"))
        assert loaded == neurons and loaded.widths == neurons.widths
        assert (loaded.score is None) == (neurons.score is None)
        if neurons.score is not None:
            assert torch.equal(loaded.score, neurons.score)
        assert loaded.random_like(seed=1) == neurons.random_like(seed=1)
