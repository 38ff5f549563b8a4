"""The units that the paper prints: found where they are written, and told apart from a count that begins at 1."""

import pytest
import torch
from support import load

from mmlens.analysis import decode
from mmlens.neurons import Neurons
from mmlens.papers.golden import GOLDEN, GoldenUnits, golden_units
from mmlens.testing import tiny

UNITS = {(1, 3): ("car", "tree"), (2, 5): ("boat",)}


@pytest.fixture(scope="module")
def gptj(tmp_path_factory):
    """A tiny GPT-J behind a tower, in which two units write words."""
    model = load(tiny("prefix-gptj", tmp_path_factory.mktemp("gptj")))
    with torch.no_grad():
        for (layer, unit), words in UNITS.items():
            columns = model.W_U[:, [model.to_token(word) for word in words]]
            model.W_out(layer)[unit] = 50 * (columns / columns.norm(dim=0)).sum(1)
    return model


def test_units_that_write_the_words_are_found_and_those_a_layer_before_are_not(gptj, tmp_path):
    found = golden_units(gptj, units=UNITS, k=2)
    assert found.hits.tolist() == [1.0, 1.0] and found.earlier.max() < 1
    assert found.words == decode(gptj, Neurons.of(UNITS, gptj.widths), k=2).words
    loaded = GoldenUnits.load(found.save(tmp_path / "golden"))
    assert str(loaded) == str(found) and "L1.u3" in str(found)


def test_a_count_that_begins_at_one_shows(gptj):
    shifted = {(layer + 1, unit): words for (layer, unit), words in UNITS.items() if layer + 1 < 3}
    found = golden_units(gptj, units=shifted, k=2)
    assert found.earlier.min() == 1.0 and found.hits.max() < 1


def test_the_papers_units_are_gptjs_own(gptj):
    with pytest.raises(ValueError, match="the paper's units are GPT-J-6B's"):
        golden_units(gptj)
    assert len(GOLDEN) == 28 and all(layer < 28 and unit < 16384 for layer, unit in GOLDEN)
