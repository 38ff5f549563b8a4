import sys

import pytest
import torch

from mmlens import HookedMLLM
from mmlens.analysis import LogitLens, TunedLens, fit_tuned_lens, logit_lens, turning_points
from mmlens.organisms import pictoworld


def dense(model, inputs):
    """Return log-probabilities of every layer and position, from plain hidden states under raw torch hooks."""
    kept = []
    layers = model.hf_model.model.language_model.layers
    handles = [layer.register_forward_hook(lambda m, a, k, out: kept.append(out), with_kwargs=True) for layer in layers]
    handles.append(layers[0].register_forward_pre_hook(lambda m, a: kept.append(a[0])))
    try:
        with torch.no_grad():
            logits = model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    norm, head = model.hf_model.model.language_model.norm, model.hf_model.lm_head
    with torch.no_grad():
        return torch.stack([torch.log_softmax(head(norm(h)), -1) for h in kept]), torch.log_softmax(logits, -1)


def test_every_row_equals_norm_and_unembedding_of_the_plain_stream(small):
    model, inputs, tokens = small
    expected, final = dense(model, inputs)
    lens = logit_lens(model, inputs, top_k=4, targets=tokens.tolist(), chunk=7)
    top = expected.topk(4, -1)
    torch.testing.assert_close(lens.log_probs, top.values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(expected.gather(-1, lens.tokens), top.values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        lens.entropy, torch.distributions.Categorical(logits=expected).entropy(), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(lens.target_log_probs, expected[..., tokens], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lens.log_probs[-1], final.topk(4, -1).values, rtol=1e-4, atol=1e-5)


def test_ranks_count_the_tokens_that_are_more_probable(small):
    model, inputs, tokens = small
    expected, _ = dense(model, inputs)
    lens = logit_lens(model, inputs, targets=tokens.tolist())
    order = expected.argsort(-1, descending=True)
    ranks = torch.stack([(order == token).int().argmax(-1) for token in tokens], -1)
    real = inputs.mask("all")  # a padded position's stream is zero, where all tokens tie
    assert torch.equal(lens.target_ranks[:, real], ranks[:, real])


def test_how_many_positions_are_read_at_a_time_changes_nothing(small, monkeypatch):
    model, inputs, _ = small
    one, other = (logit_lens(model, inputs, targets=[7, 9], chunk=size) for size in (1, 10_000))
    monkeypatch.setattr(sys.modules["mmlens.analysis.logit_lens"], "CACHED", 3 * model.cfg.d_vocab)
    parts = logit_lens(model, inputs, targets=[7, 9])
    for found in (other, parts):
        torch.testing.assert_close(found.entropy, one.entropy, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.target_log_probs, one.target_log_probs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.log_probs, one.log_probs, rtol=1e-5, atol=1e-6)


def test_mean_entropy_is_the_mean_over_the_chosen_positions(small):
    model, inputs, _ = small
    lens = logit_lens(model, inputs)
    where = inputs.mask("image")
    by_hand = [float(sum(lens.entropy[layer][where]) / where.sum()) for layer in range(4)]
    torch.testing.assert_close(lens.mean_entropy(where), torch.tensor(by_hand))


def test_it_loads_as_it_was_saved(small, tmp_path):
    model, inputs, _ = small
    lens = logit_lens(model, inputs)
    assert torch.equal(LogitLens.load(lens.save(tmp_path / "lens")).tokens, lens.tokens)


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"])
def test_each_site_is_read_as_the_cache_has_it(small, site):
    model, inputs, _ = small
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, f"blocks.*.hook_{site}")
        expected = torch.stack([torch.log_softmax(model.unembed(value), -1) for value in cache.values()])
    lens = logit_lens(model, inputs, site=site, top_k=3)
    torch.testing.assert_close(lens.log_probs, expected.topk(3, -1).values, rtol=1e-4, atol=1e-5)


def test_every_row_is_what_enters_its_block_and_the_last_is_the_model_in_every_family(model, batches):
    inputs = batches["mixed"] if "mixed" in batches else batches["one"]
    depth, real = model.cfg.n_layers, inputs.mask("all")
    entering = [f"blocks.{layer}.hook_resid_pre" for layer in range(depth)]
    with torch.no_grad():
        logits, cache = model.run_with_cache(inputs, [*entering, f"blocks.{depth - 1}.hook_resid_post"])
        streams = [*(cache[name] for name in entering), cache[f"blocks.{depth - 1}.hook_resid_post"]]
        truth = torch.stack([model.unembed(stream) for stream in streams])
    for lens in (None, lambda row, stream: model.unembed(stream)):  # the second does not take the model's word for the last
        best = logit_lens(model, inputs, top_k=1, lens=lens).log_probs[:, real]
        expected = torch.log_softmax(truth.float(), -1).amax(-1, keepdim=True)[:, real].cpu()
        torch.testing.assert_close(best, expected, rtol=1e-4, atol=1e-4)
        final = torch.log_softmax(logits.float(), -1).amax(-1, keepdim=True)[real].cpu()
        torch.testing.assert_close(best[-1], final, rtol=1e-4, atol=1e-4)


def test_another_lens_reads_row_by_row(small):
    model, inputs, _ = small
    seen = []

    def shifted(row, stream):
        seen.append(row)
        return model.unembed(stream) + 100 * torch.nn.functional.one_hot(torch.tensor(row), model.cfg.d_vocab)

    found = logit_lens(model, inputs, lens=shifted, top_k=1)
    assert [int(found.tokens[row].unique()) for row in range(4)] == [0, 1, 2, 3]
    assert sorted(set(seen)) == [0, 1, 2, 3]


def test_turning_points_are_the_knots_of_a_line_with_two():
    layers = torch.arange(24.0)
    for first, second in ((5, 15), (8, 12)):
        curve = 3 - 0.5 * layers + 0.6 * (layers - first).clamp(min=0) + 0.7 * (layers - second).clamp(min=0)
        found = turning_points(curve)
        assert abs(found[0] - first) <= 1 and abs(found[1] - second) <= 1
    with pytest.raises(ValueError, match="five layers or more"):
        turning_points(torch.arange(4.0))


@pytest.fixture(scope="module")
def seeing():
    return HookedMLLM.from_pretrained("pictoworld-frozen", device="cpu")


def batch(seeing, first):
    scenes = pictoworld.scenes("held_out", n=24)[first : first + 8]
    return seeing.to_inputs([scene.questions[0].text for scene in scenes], images=[scene.image for scene in scenes])


@pytest.mark.slow
def test_a_tuned_lens_is_nearer_to_the_output_on_pictures_that_it_did_not_see(seeing):
    tuned = fit_tuned_lens(seeing, [batch(seeing, 0), batch(seeing, 8)], steps=60, lr=3e-3)
    unseen = batch(seeing, 16)
    real = unseen.mask("all")
    with torch.no_grad():
        truth = torch.log_softmax(seeing(unseen), -1)[real]

    def distance(lens):
        kept = []

        def read(row, stream):
            kept.append(torch.log_softmax(lens(row, stream), -1))
            return kept[-1]

        logit_lens(seeing, unseen, lens=read, chunk=10**6)
        shape = unseen.tokens.shape
        return torch.stack([(truth.exp() * (truth - one.unflatten(0, shape)[real])).sum(-1).mean() for one in kept])

    plain, ours = distance(lambda row, stream: seeing.unembed(stream)), distance(tuned.lens(seeing))
    assert (ours[:-1] < 0.7 * plain[:-1]).all(), (ours, plain)
    assert ours[-1].abs() < 1e-6


def test_an_unfitted_lens_is_the_logit_lens_and_a_seed_says_what_is_fitted(seeing, tmp_path):
    inputs = batch(seeing, 0)
    unfitted = fit_tuned_lens(seeing, [inputs], steps=0)
    one, other = logit_lens(seeing, inputs, lens=unfitted.lens(seeing)), logit_lens(seeing, inputs)
    assert torch.equal(one.log_probs, other.log_probs)
    first, second = (fit_tuned_lens(seeing, [inputs], steps=3, seed=4) for _ in range(2))
    assert torch.equal(first.weight, second.weight) and first.weight.abs().max() > 0
    assert torch.equal(TunedLens.load(first.save(tmp_path / "lens")).bias, first.bias)
    assert all(weight.grad is None for weight in seeing.hf_model.parameters())
