"""The best of a picture's neurons, and the same with another picture's, are what a table of scores says."""

import numpy as np
import pytest
import torch

from mmlens import Neurons
from mmlens.analysis import decode
from mmlens.analysis.semantic import (
    SemanticSensitivity,
    as_texts,
    lexical_overlap,
    object_presence,
    semantic_sensitivity,
)

TABLE = np.random.default_rng(0).normal(size=(4, 4, 3))  # picture of the reference, picture of the neurons, neuron
TEXTS = [[f"{picture} {neuron}" for neuron in range(3)] for picture in range(4)]


def scorer(text, reference):
    picture, neuron = map(int, text.split())
    return TABLE[reference, picture, neuron]


def test_the_score_of_a_picture_is_that_of_its_best_neuron():
    found = semantic_sensitivity(TEXTS, range(4), scorer)
    own = TABLE[range(4), range(4)]
    np.testing.assert_allclose(found.best, own.max(1), rtol=1e-6)
    assert found.neuron == tuple(own.argmax(1)) and found.mean == pytest.approx(own.max(1).mean())
    assert found.scorer == "scorer" and "4 pictures" in repr(found)


def test_in_a_shuffle_no_picture_keeps_its_neurons_and_every_picture_has_anothers():
    asked = []

    def spy(text, reference):
        asked.append((int(text.split()[0]), reference))
        return scorer(text, reference)

    found = semantic_sensitivity(TEXTS, range(4), spy, shuffles=50, seed=1)
    calls = np.array(asked)[12:].reshape(50, 4, 3, 2)  # behind the pictures' own: shuffle, picture, neuron
    given, reference = calls[..., 0, 0], calls[..., 0, 1]
    assert (reference == np.arange(4)).all() and (given != reference).all()
    assert (np.sort(given, axis=1) == np.arange(4)).all() and len(np.unique(given, axis=0)) > 3
    np.testing.assert_allclose(found.shuffled, TABLE[reference, given].max(-1), rtol=1e-6)
    again = semantic_sensitivity(TEXTS, range(4), scorer, shuffles=50, seed=1)
    assert torch.equal(again.shuffled, found.shuffled) and again.shuffled_mean == found.shuffled_mean


def test_words_that_fit_score_above_shuffled_ones_and_words_that_do_not_as_they():
    objects = [["dog"], ["car"], ["tree"], ["boat"]]
    fits = [["x, y", f"red, {own[0]}s"] for own in objects]
    found = semantic_sensitivity(fits, objects, object_presence)
    assert found.mean == 1 and found.shuffled_mean == 0
    same = semantic_sensitivity([["a, dog"]] * 4, objects, object_presence)
    assert same.mean == same.shuffled_mean == 0.25


def test_lexical_overlap_is_the_share_of_different_words_in_any_caption():
    assert lexical_overlap("Dog, dog, horse, riding", ["a dog runs", "A HORSE."]) == pytest.approx(2 / 3)
    assert lexical_overlap("puppy", ["a dog"]) == 0 and lexical_overlap("", ["a dog"]) == 0
    assert lexical_overlap("dog", []) == 0


def test_an_object_is_present_as_a_whole_word_in_either_number():
    assert object_presence("racing, Horses, x", ["horse"]) == 1 and object_presence("seahorse", ["horse"]) == 0
    assert object_presence("hot dog", ["dog", "hot dog"]) == 1 and object_presence("dog", []) == 0


def test_a_neurons_words_are_one_string_with_commas(small):
    model = small[0]
    found = decode(model, Neurons.of([(0, 3), (1, 2)], model.widths), k=3)
    assert as_texts(found) == [", ".join(word.strip() for word in row) for row in found.words]


def test_what_cannot_be_paired_is_refused(tmp_path):
    for texts, references in (([["a"]], [1]), ([["a"], ["b"]], [1])):
        with pytest.raises(ValueError, match="two pictures or more"):
            semantic_sensitivity(texts, references, scorer)
    with pytest.raises(ValueError, match="picture 1 has none"):
        semantic_sensitivity([["a"], []], [1, 2], scorer)
    found = semantic_sensitivity(TEXTS, range(4), scorer, shuffles=0)
    assert found.shuffled.shape == (0, 4)
    assert SemanticSensitivity.load(found.save(tmp_path / "found")).neuron == found.neuron
