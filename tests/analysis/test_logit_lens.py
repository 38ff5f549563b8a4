import torch

from mmlens.analysis import LogitLens, logit_lens


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


def test_the_chunk_size_changes_nothing(small):
    model, inputs, _ = small
    one, other = logit_lens(model, inputs, chunk=1), logit_lens(model, inputs, chunk=10_000)
    torch.testing.assert_close(one.entropy, other.entropy, rtol=1e-5, atol=1e-6)


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
