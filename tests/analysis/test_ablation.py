import pytest
import torch

from mmlens import hooks, metrics, top_k
from mmlens.analysis import ablation_curve, grad_x_activation
from mmlens.analysis.ablation import AblationConditions, ablation_conditions
from mmlens.targets import Targets


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


# ---------------------------------------------------------------- anywhere in a row, and in three conditions


@pytest.fixture(scope="module")
def spread(small):
    """Targets at three positions of two rows, the first row's last one among them."""
    model, inputs, _ = small
    last = inputs.tokens.shape[1] - 1
    return Targets(
        row=torch.tensor([0, 1, 0]),
        position=torch.tensor([last, last - 2, last - 1]),
        token=torch.tensor([model.to_token(word) for word in ("car", "boat", "tree")]),
        word=torch.tensor([0, 1, 2]),
        words=("car", "boat", "tree"),
    )


def test_targets_anywhere_have_the_log_probability_of_their_position_under_the_same_hooks(small, spread):
    model, inputs, _ = small
    ranking = top_k(torch.rand(3, 48, generator=torch.Generator().manual_seed(1)), 20, widths=model.widths)
    found = ablation_curve(model, inputs, spread, ranking, ks=[0, 20], where=inputs.mask("all"), draws=2)
    drawn = [ranking, *(ranking.random_like(seed=draw, exclude=ranking) for draw in range(2))]
    for neurons, own in zip(drawn, [found.log_prob, *found.random_log_prob], strict=True):
        with torch.no_grad():
            logits = model.run_with_hooks(inputs, fwd_hooks=hooks.ablate(neurons, where=inputs.mask("all")))
        at = logits.log_softmax(-1)[spread.row, spread.position, spread.token]
        torch.testing.assert_close(own[1], at)
    assert (found.log_prob[1] - found.log_prob[0]).abs().min() > 1e-4


def test_change_is_relative_to_the_probability_that_was_there(curve):
    *_, found = curve
    prob = found.log_prob.exp()
    torch.testing.assert_close(found.change(), prob / prob[0] - 1)
    torch.testing.assert_close(found.random_change(), found.random_log_prob.exp() / prob[0] - 1)
    assert not found.change()[0].any() and not found.random_change()[:, 0].any()


def test_the_three_conditions_are_the_curves_of_all_of_some_and_of_random_neurons(small, spread, tmp_path):
    model, inputs, _ = small
    ranking = top_k(torch.rand(3, 48, generator=torch.Generator().manual_seed(1)), 12, widths=model.widths)
    flags = torch.arange(12) % 2 == 0
    found = ablation_conditions(model, inputs, spread, ranking, flags, ks=[0, 4, 10], draws=3)
    some = ablation_curve(model, inputs, spread, ranking[[0, 2, 4, 6, 8, 10]], ks=[0, 4], draws=3)
    every = ablation_curve(model, inputs, spread, ranking, ks=[0, 4, 10], draws=3)
    assert torch.equal(found.all.log_prob, every.log_prob) and torch.equal(found.interpretable.log_prob, some.log_prob)
    table = found.table()
    assert table.loc[0].tolist() == [0] * 5 and table["interpretable"].isna().tolist() == [False, False, True]
    assert table.loc[4, "interpretable"] == pytest.approx(some.change()[1].mean().item())
    assert table.loc[10, "random_low"] == pytest.approx(every.random_change()[:, 2].mean(-1).min().item())
    again = AblationConditions.load(found.save(tmp_path / "found"), model=model)
    assert again.table().equals(table)


def test_conditions_without_interpretable_neurons_have_none_and_flags_and_zero_are_asked_for(small, spread):
    model, inputs, _ = small
    ranking = top_k(torch.rand(3, 48), 4, widths=model.widths)
    none = torch.zeros(4, dtype=torch.bool)
    found = ablation_conditions(model, inputs, spread, ranking, none, ks=[0, 4], draws=1)
    assert found.interpretable.ks == (0,) and found.table()["interpretable"].isna().tolist() == [False, True]
    with pytest.raises(ValueError, match="got 3 for 4"):
        ablation_conditions(model, inputs, spread, ranking, none[:3], ks=[0, 4])
    with pytest.raises(ValueError, match="give 0 among ks"):
        ablation_conditions(model, inputs, spread, ranking, none, ks=[4])
    with pytest.raises(ValueError, match="give 0 among ks"):
        ablation_curve(model, inputs, spread, ranking, ks=[4], draws=1).change()
