"""Sets of classes and their matrix are what loops come to, and planted neurons give a diagonal."""

import numpy as np
import pytest
import torch
from support import picture

from mmlens import HookedMLLM, Neurons, top_k
from mmlens.analysis import grad_x_activation
from mmlens.analysis.class_selectivity import ClassSelectivity, class_selectivity, class_sets
from mmlens.testing import planted
from mmlens.testing.plants.layout import NOUNS

WIDTHS = {"language": (8, 8)}


def test_a_set_has_the_neurons_that_most_pictures_share_ties_by_layer_and_unit():
    rankings = {
        "dog": [
            Neurons.of([(1, 1), (0, 2), (0, 5)], WIDTHS),
            Neurons.of([(0, 2), (1, 1), (0, 7)], WIDTHS),
            Neurons.of([(0, 2), (0, 4), (1, 1)], WIDTHS),
        ]
    }
    found = class_sets(rankings, k=2, size=3)["dog"]
    assert list(found) == [("language", 0, 2), ("language", 1, 1), ("language", 0, 4)]
    assert found.score.tolist() == [3, 2, 1]
    assert list(class_sets(rankings, k=3, size=2)["dog"]) == [("language", 0, 2), ("language", 1, 1)]
    kept = class_sets(rankings, k=3, size=2, keep={("language", 0, 5), ("language", 0, 4), ("language", 0, 7)})["dog"]
    assert list(kept) == [("language", 0, 4), ("language", 0, 5)]
    with pytest.raises(ValueError, match="have 3: give a smaller size"):
        class_sets(rankings, k=2, size=4)


@pytest.fixture(scope="module")
def pictures(small):
    model = small[0]
    batch = model.to_inputs(["what", "what is on the left ?"], images=[picture(1), picture(2)])
    return [("a", batch), ("b", model.to_inputs("what", images=picture(3))), ("a", model.to_inputs("a", images=picture(4)))]


def test_the_matrix_is_the_mean_over_pictures_of_means_over_their_positions_and_neurons(small, pictures, tmp_path):
    model = small[0]
    sets = {"a": Neurons.of([(0, 1), (2, 5), (0, 3)], model.widths), "b": Neurons.of([(1, 2)], model.widths)}
    found = class_selectivity(model, sets, pictures, draws=2, seed=1)
    assert found.labels == ("a", "a", "b", "a")

    def active(neurons):
        values = []
        for _, inputs in pictures:
            _, cache = model.run_with_cache(inputs, "blocks.*.mlp.hook_post")
            for row in range(len(inputs)):
                here = inputs.mask("image")[row].numpy()
                values.append(np.mean([cache["post", l][row, here, u].numpy().mean() for _, l, u in neurons]))
        return np.array(values)

    expected = np.stack([active(sets["a"]), active(sets["b"])])
    np.testing.assert_allclose(found.activation.numpy(), expected, rtol=1e-4, atol=1e-6)
    for draw in range(2):
        drawn = active(sets["a"].random_like(seed=1000 + draw))
        np.testing.assert_allclose(found.random_activation[draw, 0].numpy(), drawn, rtol=1e-4, atol=1e-6)
    matrix = np.stack([expected[:, [0, 1, 3]].mean(1), expected[:, 2]], axis=1)
    np.testing.assert_allclose(found.matrix().numpy(), matrix, rtol=1e-4, atol=1e-6)
    most = matrix.max(1, keepdims=True)
    np.testing.assert_allclose(found.selectivity().numpy(), np.where(most > 0, matrix / most, np.nan), rtol=1e-4)
    assert found.on_diagonal() == np.mean(matrix.argmax(1) == [0, 1]) and found.random_on_diagonal().shape == (2,)
    again = ClassSelectivity.load(found.save(tmp_path / "found"), model=model)
    assert torch.equal(again.matrix(), found.matrix())


def test_what_cannot_be_compared_is_refused(small, pictures):
    model = small[0]
    one = {"a": Neurons.of([(0, 1)], model.widths)}
    with pytest.raises(ValueError, match="'c' has none"):
        class_selectivity(model, one | {"c": Neurons.of([(0, 1)], model.widths)}, pictures)
    with pytest.raises(ValueError, match="language model's neurons"):
        class_selectivity(model, {"a": Neurons.of([("vision", 0, 1)], model.widths)}, pictures)
    with pytest.raises(ValueError, match="a row has none"):
        class_selectivity(model, one, [("a", model.to_inputs("the red car"))])


def test_planted_neurons_give_a_diagonal_on_other_pictures_and_their_random_partners_and_the_twins_do_not(tmp_path):
    made = planted(tmp_path)
    model, twin = (HookedMLLM.from_pretrained(folder, device="cpu") for folder in (made.folder, made.twin))
    first, second = ([one for one in made.stimuli(18, seed=seed) if one.answer in NOUNS] for seed in (0, 1))
    inputs = model.to_inputs(**made.arguments(first))
    scores = grad_x_activation(model, inputs, torch.tensor([model.to_token(one.answer) for one in first])).scores
    size = {len(made.key.concepts[noun]) for noun in NOUNS}.pop()
    ranked = [(one.answer, top_k(row, size, widths=model.widths)) for one, row in zip(first, scores, strict=True)]
    sets = class_sets({noun: [own for name, own in ranked if name == noun] for noun in NOUNS}, k=size, size=size)
    assert all(set(sets[noun]) == set(made.key.concepts[noun]) for noun in NOUNS)
    pictures = [(one.answer, model.to_inputs(**made.arguments([one]))) for one in second]
    found, other = (class_selectivity(own, sets, pictures, draws=20) for own in (model, twin))
    assert found.on_diagonal() == 1
    selectivity = found.selectivity()
    assert torch.equal(selectivity.diagonal(), torch.ones(len(NOUNS)))
    assert selectivity[~torch.eye(len(NOUNS), dtype=torch.bool)].max() < 0.5
    assert found.random_on_diagonal().mean() < 0.6 and other.on_diagonal() < 1
