"""The words of a neuron are the ends of its row of W_out times the unembedding, and a filter says whether they are words."""

from dataclasses import replace

import numpy as np
import pytest
import raw
import torch
from support import load

from mmlens import Neurons
from mmlens.analysis import decode, decoding
from mmlens.analysis.decoding import interpretable, word_list
from mmlens.testing import tiny

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


def test_bottom_words_are_those_that_it_lowers_most_and_a_flipped_sign_makes_them_the_top(small, effects):
    model = small[0]
    neurons = Neurons.of(CHOSEN, model.widths)
    bottom = decode(model, neurons, k=6, largest=False)
    assert np.array_equal(bottom.tokens.numpy(), np.argsort(effects, kind="stable")[:, :6])
    np.testing.assert_allclose(bottom.effects.numpy(), np.sort(effects)[:, :6], rtol=1e-5)
    flipped = decode(model, neurons, k=6, sign=-torch.ones(3))
    assert flipped.words == bottom.words and torch.equal(flipped.effects, -bottom.effects)


def test_all_neurons_at_once_or_a_few_at_a_time_are_the_full_table(small, monkeypatch):
    model = small[0]
    every = Neurons.of([(l, u) for l, width in enumerate(model.widths["language"]) for u in range(width)], model.widths)
    layers = model.hf_model.model.language_model.layers
    rows = np.concatenate([l.mlp.down_proj.original_component.weight.detach().numpy().T for l in layers])
    table = rows @ model.hf_model.lm_head.weight.detach().numpy()[: len(model.tokenizer)].T
    whole = decode(model, every, k=len(model.tokenizer))
    np.testing.assert_allclose(
        np.take_along_axis(table, whole.tokens.numpy(), 1), whole.effects.numpy(), rtol=1e-4, atol=1e-6
    )
    assert all(sorted(row) == list(range(len(model.tokenizer))) for row in whole.tokens.tolist())
    monkeypatch.setattr(decoding, "AT_ONCE", 7)
    parts = decode(model, every, k=4)
    assert torch.equal(parts.tokens, whole.tokens[:, :4])


@pytest.mark.parametrize("family", ["llava-clip-llama", "prefix-gptj"])
def test_through_the_final_norm_is_what_the_plain_models_own_norm_makes_of_it_at_scale_one(family, tmp_path):
    model = load(tiny(family, tmp_path / "model"))
    norm = model.bridge.ln_final.original_component
    rows = torch.stack([model.W_out(l)[u] for l, u in [(0, 3), (1, 5)]]).detach()
    gain, _ = raw.gain_and_scale(norm, rows)
    table = (raw.centred(norm, rows) * gain) @ model.hf_model.get_output_embeddings().weight.T[:, : len(model.tokenizer)]
    found = decode(model, Neurons.of([(0, 3), (1, 5)], model.widths), k=9, norm=True)
    torch.testing.assert_close(found.effects, table.topk(9).values.detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.tokens, table.topk(9).indices)
    assert not torch.equal(found.tokens, decode(model, Neurons.of([(0, 3), (1, 5)], model.widths), k=9).tokens)


def test_more_tokens_than_there_are_and_a_sign_too_few_are_refused(small):
    model = small[0]
    neurons = Neurons.of(CHOSEN, model.widths)
    with pytest.raises(ValueError, match="tokenizer has"):
        decode(model, neurons, k=10_000)
    with pytest.raises(ValueError, match="3 neurons"):
        decode(model, neurons, sign=torch.ones(2))


# ---------------------------------------------------------------- words or not


def read(small, *rows):
    """Return a decoding whose words are these."""
    model = small[0]
    found = decode(model, Neurons.of(CHOSEN[: len(rows)], model.widths), k=len(rows[0]))
    return replace(found, words=rows)


def test_seven_of_ten_words_are_enough_and_six_are_not(small):
    words = {"horse", "racing", "pony", "ride", "saddle", "foal", "mare"}
    seven = (" horse", "racing", "pony ", "ride", " Saddle", "FOAL", "mare", "##ing", "xq", "!")
    six = (*seven[:6], "##mare", *seven[7:])
    assert interpretable(read(small, seven, six), words).tolist() == [True, False]
    assert interpretable(read(small, seven, six), words, least=6).tolist() == [True, True]


def test_words_of_two_letters_are_none_and_tokens_beyond_the_tenth_do_not_count(small):
    words = {"of", "cat"}
    found = read(small, ("cat",) * 6 + ("of",) * 4, ("cat",) * 7 + ("of",) * 3)
    assert interpretable(found, words).tolist() == [False, True]
    assert interpretable(found, words, letters=2).tolist() == [True, True]
    longer = read(small, ("x",) * 10 + ("cat",) * 10)
    assert interpretable(longer, words).tolist() == [False]
    with pytest.raises(ValueError, match="k=10"):
        interpretable(read(small, ("cat",) * 9), words)


def test_the_organisms_words_are_those_that_their_tokenizers_were_made_of(small):
    from mmlens.organisms.pictosound.text import LEXICON as SOUNDS
    from mmlens.organisms.pictoworld.text import LEXICON as PICTURES

    whole = read(small, ("car", "lamppost", "trumpet", "top-left", "##post", "lamp", ".", "<s>", "x", "a"))
    assert interpretable(whole, least=4).tolist() == [True] and interpretable(whole, least=5).tolist() == [False]
    assert {*PICTURES.words, *SOUNDS.words} - decoding.ORGANISM_WORDS == {".", ",", "?", ":"}


def test_a_word_list_is_what_its_file_has_on_each_line(tmp_path):
    path = tmp_path / "words"
    path.write_text("3\n# ours\ncat\n\n  dog \nhorse/SMDG\nélan\n")
    assert word_list(path) == {"cat", "dog", "horse", "élan"}
    path.write_bytes("élan\n".encode("latin-1"))
    assert word_list(path, encoding="latin-1") == {"élan"}
    path.write_text("\n# nothing\n")
    with pytest.raises(ValueError, match="has none"):
        word_list(path)
