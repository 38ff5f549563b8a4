import numpy as np
import pytest
import torch

from mmlens import hooks
from mmlens.analysis import Attribution, grad_x_activation


def target_logits(model, inputs, tokens, fwd_hooks=()):
    with torch.no_grad():
        return model.run_with_hooks(inputs, fwd_hooks=fwd_hooks)[:, -1].gather(1, tokens[:, None])[:, 0]


@pytest.mark.parametrize("site", ["pre", "post"])
def test_scores_equal_activation_times_a_finite_difference(exact, site):
    model, inputs, tokens = exact
    scores = grad_x_activation(model, inputs, tokens, site=site, reduce=None).scores
    _, cache = model.run_with_cache(inputs, f"blocks.*.mlp.hook_{site}")
    rng, step = np.random.default_rng(0), 1e-5
    positions = inputs.mask("image")[0].nonzero()[:, 0].numpy()
    for _ in range(8):
        layer, unit, pos = int(rng.integers(3)), int(rng.integers(48)), int(rng.choice(positions))
        here = torch.zeros_like(inputs.mask("all"))
        here[0, pos] = True
        name = f"blocks.{layer}.mlp.hook_{site}"
        value = cache[name][0, pos, unit]
        up, down = (
            target_logits(model, inputs, tokens, [(name, hooks.replace(value + d, where=here, units=[unit]))])[0]
            for d in (step, -step)
        )
        expected = (value * (up - down) / (2 * step)).item()
        assert scores[0, layer, pos, unit].item() == pytest.approx(expected, rel=1e-5, abs=1e-11)


def test_the_gate_the_linear_branch_and_their_product_have_the_same_score(exact):
    model, inputs, tokens = exact
    layer, kept = 1, {}

    def keep(module, args, output):
        output.retain_grad()
        kept[module] = output

    mlp = model.bridge.blocks[layer].mlp.original_component
    gate, linear, product = mlp.act_fn, mlp.up_proj, {}

    def keep_input(module, args):
        args[0].retain_grad()
        product["post"] = args[0]

    handles = [gate.register_forward_hook(keep), linear.register_forward_hook(keep)]
    handles.append(mlp.down_proj.register_forward_pre_hook(keep_input))
    try:
        model(inputs)[:, -1].gather(1, tokens[:, None]).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    by_hand = [t * t.grad for t in (*kept.values(), product["post"])]
    model.hf_model.zero_grad()
    ours = grad_x_activation(model, inputs, tokens, where=inputs.mask("all"), reduce=None).scores[:, layer]
    real = inputs.mask("all")
    assert len(by_hand) == 3
    for scores in by_hand:
        torch.testing.assert_close(scores[real], ours[real], rtol=1e-9, atol=1e-12)


def test_reductions_are_the_maximum_and_the_sum_over_image_positions(small):
    model, inputs, tokens = small
    full = grad_x_activation(model, inputs, tokens, reduce=None).scores
    best = grad_x_activation(model, inputs, tokens, reduce="max")
    image = inputs.mask("image")[:, None, :, None]
    torch.testing.assert_close(best.scores, full.where(image, -torch.inf).amax(2))
    torch.testing.assert_close(grad_x_activation(model, inputs, tokens, reduce="sum").scores, full.sum(2))
    _, cache = model.run_with_cache(inputs, "blocks.*.mlp.hook_post")
    at = best.position[1, 2, 7]
    assert inputs.mask("image")[1, at]
    torch.testing.assert_close(best.activation[1, 2, 7], cache["post", 2][1, at, 7])


def test_image_positions_of_the_last_layer_cannot_reach_the_answer(small):
    model, inputs, tokens = small
    assert grad_x_activation(model, inputs, tokens).scores[:, -1].abs().max() == 0


def test_a_row_does_not_depend_on_the_rows_beside_it(exact):
    model, inputs, tokens = exact
    alone = model.to_inputs("what is at the left ?", images=inputs.media[0][0], answer="the")
    ours = grad_x_activation(model, alone, tokens[:1]).scores
    torch.testing.assert_close(ours[0], grad_x_activation(model, inputs, tokens).scores[0], rtol=1e-6, atol=1e-9)


def test_it_works_with_gradients_switched_off_and_leaves_no_gradient_behind(small):
    model, inputs, tokens = small
    with torch.no_grad():
        quiet = grad_x_activation(model, inputs, tokens).scores
    torch.testing.assert_close(quiet, grad_x_activation(model, inputs, tokens).scores)
    assert all(parameter.grad is None for parameter in model.hf_model.parameters())


def test_a_row_without_a_picture_is_refused(small):
    model, _, _ = small
    with pytest.raises(ValueError, match="row 0 has none"):
        grad_x_activation(model, model.to_inputs("the red car"), torch.tensor([5]))


def test_it_loads_as_it_was_saved_and_warns_beside_another_model(small, exact, tmp_path):
    model, inputs, tokens = small
    result = grad_x_activation(model, inputs, tokens)
    loaded = Attribution.load(result.save(tmp_path / "scores"), model=model)
    torch.testing.assert_close(loaded.scores, result.scores, rtol=0, atol=0)
    assert loaded.provenance == result.provenance
    with pytest.warns(UserWarning, match="do not mix"):
        Attribution.load(tmp_path / "scores", model=exact[0])
