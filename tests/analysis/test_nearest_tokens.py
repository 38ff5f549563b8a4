"""Nearest tokens are those of numpy's cosines, a planted word is found, and random vectors are like their controls."""

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from support import ask, load

from mmlens.analysis import NearestTokens, nearest_tokens


@pytest.fixture(scope="module")
def small(small_folder):
    """One tiny model, for what does not depend on the family."""
    return load(small_folder)


def truth(vectors, rows):
    """Return cosines [vector, token] in float64."""
    vectors, rows = (np.asarray(one.detach(), dtype=np.float64) for one in (vectors, rows))
    lengths = np.linalg.norm(vectors, axis=1)[:, None] * np.maximum(np.linalg.norm(rows, axis=1), 1e-12)
    return vectors @ rows.T / lengths


@torch.no_grad()
def test_every_position_of_text_is_nearest_to_its_own_token(model, batches):
    inputs = batches["mixed"]
    where = inputs.mask("text")
    found = nearest_tokens(model, inputs, where=where, k=1, controls=10)
    assert torch.equal(found.tokens[:, 0], inputs.tokens[where])
    torch.testing.assert_close(found.cosines, torch.ones_like(found.cosines), rtol=1e-5, atol=0)


@pytest.mark.parametrize("chunk", [7, 10_000])
@pytest.mark.parametrize("space", ["embed", "unembed"])
@torch.no_grad()
def test_image_positions_have_the_cosines_of_numpy_whatever_the_chunk(small, plain_small, space, chunk):
    inputs = ask(small, "two")
    seen = []
    handle = plain_small.model.multi_modal_projector.register_forward_hook(lambda m, a, out: seen.append(out))
    plain_small(**inputs.kwargs())
    handle.remove()
    rows = (plain_small.get_input_embeddings() if space == "embed" else plain_small.get_output_embeddings()).weight
    expected = truth(seen[0].flatten(0, 1), rows[: len(small.tokenizer)])
    found = nearest_tokens(small, inputs, k=3, space=space, chunk=chunk, controls=10)
    np.testing.assert_allclose(found.cosines, -np.sort(-expected, axis=1)[:, :3], rtol=1e-4, atol=1e-6)
    assert np.array_equal(found.tokens, np.argsort(-expected, axis=1)[:, :3])
    assert found.words[0] == tuple(small.to_str_tokens(found.tokens[0]))


@torch.no_grad()
def test_ids_that_the_tokenizer_does_not_have_are_never_nearest(small, plain_small, tmp_path):
    known = len(small.tokenizer)
    plain_small.resize_token_embeddings(known + 8)
    plain_small.save_pretrained(tmp_path)
    small.processor.save_pretrained(tmp_path)
    model = load(tmp_path)
    found = nearest_tokens(model, model.W_E[-1:], k=known, controls=10)
    assert len(model.W_E) == known + 8
    assert sorted(found.tokens[0].tolist()) == list(range(known))
    assert float(found.cosines.max()) < 0.999


@torch.no_grad()
def test_a_projector_that_writes_words_is_found_out_and_differs_from_its_controls(small_folder):
    model = load(small_folder)
    inputs, car = ask(model, "one"), model.to_token("car")
    last = model.hf_model.model.multi_modal_projector.linear_2
    last = getattr(last, "original_component", last)
    last.weight.mul_(0.01)
    last.bias.copy_(3 * model.W_E[car])
    found = nearest_tokens(model, inputs)
    assert (found.tokens[:, 0] == car).all()
    assert float(found.cosines[:, 0].min()) > 0.9
    assert max(found.ks_p.values()) < 1e-6


@pytest.mark.parametrize("kind", ["norm", "gaussian"])
@torch.no_grad()
def test_random_vectors_are_not_different_from_controls_of_their_own_kind(small, kind):
    rows = small.W_E[: len(small.tokenizer)]
    noise = torch.randn(300, small.cfg.d_model, generator=torch.Generator().manual_seed(7))
    vectors = 5 * noise if kind == "norm" else rows.mean(0) + rows.std(0) * noise
    found = nearest_tokens(small, vectors)
    assert found.ks_p[kind] > 0.05
    best = truth(vectors, rows).max(1)
    test = ks_2samp(best, found.controls[kind].numpy())
    assert found.ks_statistic[kind] == pytest.approx(test.statistic, abs=0.01)
    assert found.where is None


@torch.no_grad()
def test_the_seed_alone_draws_the_controls_which_are_like_those_of_numpy(small):
    inputs = ask(small, "one")
    one, same, other = (nearest_tokens(small, inputs, seed=seed, controls=400) for seed in (0, 0, 1))
    random = np.random.default_rng(0).normal(size=(400, small.cfg.d_model))
    rows = small.W_E[: len(small.tokenizer)]
    gaussian = rows.mean(0).numpy() + rows.std(0).numpy() * random
    for kind, drawn in (("norm", random), ("gaussian", gaussian)):
        assert torch.equal(one.controls[kind], same.controls[kind])
        assert not torch.equal(one.controls[kind], other.controls[kind])
        assert ks_2samp(truth(torch.tensor(drawn), rows).max(1), one.controls[kind].numpy()).pvalue > 0.05


def test_it_loads_as_it_was_saved(small, tmp_path):
    found = nearest_tokens(small, ask(small, "one"), controls=10)
    loaded = NearestTokens.load(found.save(tmp_path / "nearest"), model=small)
    assert loaded.words == found.words and loaded.ks_p == found.ks_p
    assert torch.equal(loaded.controls["norm"], found.controls["norm"])


def test_nothing_to_look_up_and_too_many_tokens_are_refused(small):
    with pytest.raises(ValueError, match="nothing to look up"):
        nearest_tokens(small, ask(small, "text"))
    with pytest.raises(ValueError, match=r"got k = 0"):
        nearest_tokens(small, ask(small, "one"), k=0)
    with pytest.raises(ValueError, match=r"controls = 0"):
        nearest_tokens(small, ask(small, "one"), controls=0)
    with pytest.raises(ValueError, match="choose among those before"):
        nearest_tokens(small, torch.ones(2, small.cfg.d_model), where=torch.ones(1, 2, dtype=torch.bool))
