import pytest
import torch

from mmlens import hooks, metrics, top_k
from mmlens.analysis import ablation_curve, grad_x_activation


@pytest.fixture
def curve(small):
    model, inputs, tokens = small
    ranking = top_k(grad_x_activation(model, inputs, tokens).scores.mean(0), 30, widths=model.widths)
    return model, inputs, tokens, ranking, ablation_curve(model, inputs, tokens, ranking, ks=[0, 5, 30], draws=10)


def test_no_neurons_switched_off_is_exactly_no_change(curve):
    model, inputs, tokens, _, found = curve
    with torch.no_grad():
        logits = model(inputs)
    assert torch.equal(found.log_prob[0], metrics.log_prob(logits, tokens))
    assert torch.equal(found.random_log_prob[:, 0], found.log_prob[0].expand(10, -1))
    assert torch.equal(found.predicted[0], logits[:, -1].argmax(-1))


def test_every_point_equals_zeroing_those_units_by_a_raw_torch_hook(curve):
    model, inputs, tokens, ranking, found = curve
    chosen = ranking[:5].by_layer()
    image = inputs.mask("image")

    def zero(units):
        def edit(module, args):
            keep = torch.ones_like(args[0])
            keep[..., units] = 0
            return (torch.where(image[..., None], args[0] * keep, args[0]),)

        return edit

    blocks = model.hf_model.model.language_model.layers
    handles = [blocks[layer].mlp.down_proj.register_forward_pre_hook(zero(u)) for (_, layer), u in chosen.items()]
    try:
        with torch.no_grad():
            expected = metrics.log_prob(model(inputs), tokens)
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(found.log_prob[1], expected, rtol=1e-5, atol=1e-6)
    assert (found.log_prob[1] - found.log_prob[0]).abs().max() > 1e-4


def test_random_controls_differ_between_draws_and_repeat_with_the_seed(curve):
    model, inputs, tokens, ranking, found = curve
    again = ablation_curve(model, inputs, tokens, ranking, ks=[0, 5, 30], draws=10)
    assert torch.equal(again.random_log_prob, found.random_log_prob)
    assert found.random_log_prob[:, 1, 0].unique().numel() > 5


def test_a_control_holds_none_of_the_ranked_neurons(small):
    model, inputs, tokens = small
    ranking = top_k(grad_x_activation(model, inputs, tokens).scores.mean(0), 60, widths=model.widths)
    for seed in range(5):
        drawn = ranking[:10].random_like(seed=seed, exclude=ranking)
        assert len(drawn & ranking) == 0
        assert {k: len(v) for k, v in drawn.by_layer().items()} == {k: len(v) for k, v in ranking[:10].by_layer().items()}


def test_more_neurons_than_were_ranked_are_refused(small):
    model, inputs, tokens = small
    ranking = top_k(torch.rand(3, 48), 4, widths=model.widths)
    with pytest.raises(ValueError, match="from 0 to 4"):
        ablation_curve(model, inputs, tokens, ranking, ks=[5])


def test_ablating_a_set_and_its_complement_leaves_the_mlps_nothing_to_say(small):
    model, inputs, _ = small
    some = top_k(torch.rand(3, 48, generator=torch.Generator().manual_seed(0)), 40, widths=model.widths)
    with torch.no_grad():
        _, cache = model.run_with_cache(
            inputs, "blocks.*.hook_mlp_out", fwd_hooks=hooks.ablate(some) + hooks.ablate(some.complement())
        )
    assert all(cache["mlp_out", layer].abs().max() == 0 for layer in range(3))
