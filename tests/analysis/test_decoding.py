import numpy as np
import pytest
import torch

from mmlens import Neurons
from mmlens.analysis import decode

CHOSEN = [(0, 3), (2, 47), (1, 10)]


@pytest.fixture
def effects(small):
    """Return W_out W_U of the chosen neurons, by numpy from the transformers model's own weights."""
    model = small[0].hf_model
    head = model.lm_head.weight.detach().numpy()
    layers = model.model.language_model.layers
    return np.stack([layers[l].mlp.down_proj.original_component.weight.detach().numpy()[:, u] @ head.T for l, u in CHOSEN])


def test_words_are_the_top_of_the_output_row_times_the_unembedding(small, effects):
    model = small[0]
    found = decode(model, Neurons.of(CHOSEN, model.widths), k=5)
    assert np.array_equal(found.tokens.numpy(), np.argsort(-effects, kind="stable")[:, :5])
    np.testing.assert_allclose(found.effects.numpy(), -np.sort(-effects)[:, :5], rtol=1e-5)
    assert found.words[0][0] == model.tokenizer.convert_ids_to_tokens(int(found.tokens[0, 0]))


def test_a_negative_sign_reads_the_words_that_the_weights_lower(small, effects):
    model = small[0]
    found = decode(model, Neurons.of(CHOSEN, model.widths), k=5, sign=torch.tensor([-2.0, 1.0, -0.1]))
    assert np.array_equal(found.tokens[0].numpy(), np.argsort(effects[0], kind="stable")[:5])
    assert np.array_equal(found.tokens[1].numpy(), np.argsort(-effects[1], kind="stable")[:5])


def test_projector_neurons_write_into_the_stream_and_tower_neurons_do_not(small):
    model = small[0]
    assert decode(model, Neurons.of([("projector", 0, 4)], model.widths), k=3).tokens.shape == (1, 3)
    with pytest.raises(ValueError, match="write into the stream"):
        decode(model, Neurons.of([("vision", 0, 4)], model.widths))
