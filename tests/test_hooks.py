"""What a hook function does to an activation, entry by entry, and what ablations do to the model."""

import numpy as np
import pytest
import raw
import torch
from support import ask, leaves_no_hooks

from mmlens import Neurons, hooks
from mmlens.hooks import STEP, neuron_hook
from mmlens.inputs import Inputs, Row

POST, Z, PATTERN = "blocks.1.mlp.hook_post", "blocks.1.attn.hook_z", "blocks.1.attn.hook_pattern"


def before_and_after(model, inputs, name, edit):
    """Return the activation at `name` without and with the edit, as arrays."""
    _, before = model.run_with_cache(inputs, name)
    _, after = model.run_with_cache(inputs, name, fwd_hooks=[(name, edit)])
    return before[name].numpy(), after[name].numpy()


def loop(array, change, *, where=None, units=None, heads=None, name=POST):
    """Return `array` with `change(value, index)` at the chosen entries, by a loop over all of them."""
    new, matrix = array.copy(), name == PATTERN
    for index in np.ndindex(array.shape):
        position, head = (index[2], index[1]) if matrix else (index[1], index[2])
        if where is not None and not where[index[0], position]:
            continue
        if (units is None or index[-1] in units) and (heads is None or head in heads):
            new[index] = change(array[index], index)
    return new


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("name", "chosen"),
    [(POST, {}), (POST, {"units": [3, 0, 17]}), (Z, {"heads": [1, 2]}), (Z, {}), (PATTERN, {"heads": [0, 3]})],
)
@torch.no_grad()
def test_replace_and_scale_change_exactly_the_chosen_entries(small, name, chosen, masked):
    inputs = ask(small, "mixed")
    where = inputs.mask("image") if masked else None
    for make, change in [
        (lambda **kwargs: hooks.replace(2.5, **kwargs), lambda value, index: np.float32(2.5)),
        (lambda **kwargs: hooks.scale(-0.5, **kwargs), lambda value, index: value * np.float32(-0.5)),
    ]:
        before, after = before_and_after(small, inputs, name, make(where=where, **chosen))
        truth = loop(before, change, where=None if where is None else where.numpy(), name=name, **chosen)
        np.testing.assert_allclose(after, truth, rtol=1e-6)
        assert np.abs(after - before).max() > 1e-3


@torch.no_grad()
def test_replace_takes_one_value_per_chosen_unit_and_per_position(small):
    inputs, units = ask(small, "mixed"), [4, 1]
    where = inputs.mask("text")
    per_unit = torch.tensor([10.0, 20.0])
    before, after = before_and_after(small, inputs, POST, hooks.replace(per_unit, where=where, units=units))
    values = dict(zip(units, per_unit.tolist(), strict=True))
    np.testing.assert_allclose(after, loop(before, lambda v, i: values[i[-1]], where=where.numpy(), units=units))
    full = torch.randn(*inputs.tokens.shape, 2)
    before, after = before_and_after(small, inputs, POST, hooks.replace(full, where=where, units=units))
    np.testing.assert_allclose(
        after, loop(before, lambda v, i: full[i[0], i[1], units.index(i[-1])], where=where.numpy(), units=units)
    )


@torch.no_grad()
def test_add_steers_exactly_the_chosen_positions(small):
    inputs, name = ask(small, "mixed"), "blocks.1.hook_resid_post"
    direction, where = torch.randn(small.cfg.d_model), inputs.mask("image", "special")
    for mask in (None, where):
        before, after = before_and_after(small, inputs, name, hooks.add(direction, scale=3.0, where=mask))
        truth = loop(before, lambda v, i: v + 3 * direction[i[-1]].item(), where=None if mask is None else mask.numpy())
        np.testing.assert_allclose(after, truth, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_feed_hands_over_the_chosen_positions_and_edits_nothing(small, small_folder):
    inputs, seen = ask(small, "mixed"), []
    where = inputs.mask("image")
    logits = small.run_with_hooks(inputs, fwd_hooks=[(POST, hooks.feed(lambda x, hook: seen.append(x), where=where))])
    _, cache = small.run_with_cache(inputs, POST)
    array, rows = cache[POST].numpy(), []
    for row, position in zip(*np.nonzero(where.numpy()), strict=True):
        rows.append(array[row, position])
    np.testing.assert_array_equal(seen[0].numpy(), np.stack(rows))
    torch.testing.assert_close(logits, small(inputs))


@torch.no_grad()
def test_no_hook_function_edits_the_activation_in_place(small):
    inputs, kept = ask(small, "one"), []
    keep = hooks.feed(lambda x, hook: kept.append((x, x.clone())))
    for edit in (
        hooks.replace(0.0, units=[1]),
        hooks.add(1.0),
        hooks.scale(0.0),
        hooks.permute(inputs.mask("image"), seed=0),
    ):
        small.run_with_hooks(inputs, fwd_hooks=[(POST, keep), (POST, edit)])
        activation, copy = kept.pop()
        assert torch.equal(activation, copy)


@torch.no_grad()
def test_hooks_add_in_the_order_of_the_list(small):
    inputs = ask(small, "one")
    before, after = before_and_after(small, inputs, POST, lambda x, hook: (x + 1) * 2)
    _, cache = small.run_with_cache(inputs, POST, fwd_hooks=[(POST, hooks.add(1.0)), (POST, hooks.scale(2.0))])
    np.testing.assert_allclose(cache[POST].numpy(), after)
    np.testing.assert_allclose(after, (before + 1) * 2)


@pytest.mark.parametrize("name", [POST, Z, "blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid", PATTERN])
def test_a_mask_of_other_inputs_is_refused(small, name):
    inputs, other = ask(small, "one"), ask(small, "text")
    for edit in (hooks.replace(0.0, where=other.mask("all")), hooks.feed(lambda x, hook: None, where=other.mask("all"))):
        with leaves_no_hooks(small), pytest.raises(ValueError, match=r"make it from the inputs of this run"):
            small.run_with_hooks(inputs, fwd_hooks=[(name, edit)])


def test_heads_where_there_are_none_and_heads_with_units_are_refused(small):
    inputs = ask(small, "one")
    with pytest.raises(ValueError, match="no head axis"):
        small.run_with_hooks(inputs, fwd_hooks=[(POST, hooks.replace(0.0, heads=[0]))])
    with pytest.raises(ValueError, match="heads or units"):
        small.run_with_hooks(inputs, fwd_hooks=[(Z, hooks.replace(0.0, heads=[0], units=[0]))])


# ---------------------------------------------------------------- ablating neurons


@pytest.mark.parametrize("value", [0.0, 1.5, "each"])
@pytest.mark.parametrize("site", ["pre", "gate_act", "post"])
@torch.no_grad()
def test_ablating_at_a_site_equals_setting_it_by_a_raw_torch_hook(model, plain, batches, site, value):
    inputs, real = batches["mixed"], batches["mixed"].mask("all")
    gated = "blocks.{l}.mlp.hook_pre_linear" in raw.table(plain).SITES
    if site == "gate_act" and not gated:
        site = "post"  # without a gate they are the same
    neurons = Neurons.of([(0, 5), (1, 7), (0, 2), (1, 0), (1, 40)], model.widths)
    held = torch.linspace(-2, 2, len(neurons)) if value == "each" else torch.full((len(neurons),), value)

    def put(layer):
        own = [(unit, held[i]) for i, (_, its, unit) in enumerate(neurons) if its == layer]

        def change(activation):
            new = activation.clone()
            for unit, constant in own:
                new[..., unit] = constant
            return new

        return change

    unedited, handles = raw.logits(plain, inputs), []
    for layer in (0, 1):
        change = put(layer)
        if site == "gate_act":
            module = raw.locate(plain, f"blocks.{layer}.mlp.hook_in")[0].act_fn
            handles.append(module.register_forward_hook(lambda m, args, output, c=change: c(output)))
        else:
            handles.append(raw.attach(plain, f"blocks.{layer}.mlp.hook_{site}", change))
    truth = raw.logits(plain, inputs)
    for handle in handles:
        handle.remove()
    with leaves_no_hooks(model):
        ablated = hooks.ablate(neurons, value=held if value == "each" else value, site=site)
        ours = model.run_with_hooks(inputs, fwd_hooks=ablated)
    raw.same(ours[real], truth[real])
    raw.differs(truth[real], unedited[real], by=1e-4)


@torch.no_grad()
def test_a_nonzero_constant_differs_between_gate_act_and_post_and_zero_does_not(small):
    inputs, neurons = ask(small, "one"), Neurons.of([(1, 3), (2, 4)], small.widths)

    def run(**options):
        return small.run_with_hooks(inputs, fwd_hooks=hooks.ablate(neurons, **options))

    torch.testing.assert_close(run(site="gate_act"), run(site="post"))
    raw.differs(run(site="gate_act", value=2.0), run(site="post", value=2.0))


@pytest.mark.parametrize("site", ["post", "gate_act"])
@torch.no_grad()
def test_ablating_at_chosen_positions_leaves_the_others_alone(small, site):
    inputs, neurons = ask(small, "mixed"), Neurons.of([(1, 3), (1, 9)], small.widths)
    where = inputs.mask("image")
    edits = hooks.ablate(neurons, value=1.5, site=site, where=where)
    _, before = small.run_with_cache(inputs, ["blocks.1.mlp.hook_post", "blocks.1.mlp.hook_pre_linear"])
    _, after = small.run_with_cache(inputs, "blocks.1.mlp.hook_post", fwd_hooks=edits)
    linear = before["blocks.1.mlp.hook_pre_linear"].numpy()
    truth = loop(
        before[POST].numpy(),
        lambda v, i: 1.5 * (linear[i] if site == "gate_act" else 1),
        where=where.numpy(),
        units=[3, 9],
    )
    np.testing.assert_allclose(after[POST].numpy(), truth, rtol=1e-6)


@torch.no_grad()
def test_a_value_per_position_is_held_where_it_belongs(small):
    inputs, neurons = ask(small, "one"), Neurons.of([(1, 3), (0, 8), (1, 9)], small.widths)
    values = torch.randn(*inputs.tokens.shape, 3)
    _, cache = small.run_with_cache(inputs, "blocks.*.mlp.hook_post", fwd_hooks=hooks.ablate(neurons, value=values))
    for index, (_, layer, unit) in enumerate(neurons):
        assert torch.equal(cache[f"blocks.{layer}.mlp.hook_post"][..., unit], values[..., index])


@torch.no_grad()
def test_ablating_a_towers_and_the_projectors_neurons_equals_a_raw_torch_hook(model, plain, batches):
    inputs, real = batches["mixed"], batches["mixed"].mask("all")
    modules = [module for module in model.widths if module != "language"]
    neurons = Neurons.of([(module, 0, unit) for module in modules for unit in (3, 7)], model.widths)

    def put(x):
        return torch.stack([x[..., u] * 0 + 3 if u in (3, 7) else x[..., u] for u in range(x.shape[-1])], dim=-1)

    truth = raw.logits(plain, inputs, {neuron_hook(module, 0, "post"): put for module in modules})
    ours = model.run_with_hooks(inputs, fwd_hooks=hooks.ablate(neurons, value=3.0))
    raw.same(ours[real], truth[real])
    raw.differs(truth[real], raw.logits(plain, inputs)[real])


def test_ablations_that_make_no_sense_are_refused(small):
    inputs = ask(small, "one")
    tower = Neurons.of([("vision", 0, 3), (1, 1)], small.widths)
    with pytest.raises(ValueError, match="without `where`"):
        hooks.ablate(tower, where=inputs.mask("image"))
    with pytest.raises(ValueError, match="one value per neuron"):
        hooks.ablate(tower, value=torch.zeros(3))
    with pytest.raises(KeyError, match="hook_pre_linear"):  # a tower's MLP is not gated
        small.run_with_hooks(inputs, fwd_hooks=hooks.ablate(tower, value=1.0, site="gate_act"))


# ---------------------------------------------------------------- shuffling


@torch.no_grad()
def test_a_shuffle_moves_the_chosen_positions_among_each_other_and_its_inverse_undoes_it(small):
    inputs, name = ask(small, "mixed"), "blocks.0.hook_resid_pre"
    where = inputs.mask("image")
    shuffle = hooks.permute(where, seed=3)
    before, after = before_and_after(small, inputs, name, shuffle)
    order = []
    for row in range(len(inputs)):
        here = np.flatnonzero(where[row].numpy())
        rest = np.setdiff1d(np.arange(where.shape[1]), here)
        np.testing.assert_array_equal(after[row, rest], before[row, rest])
        came_from = [int(np.argmin(np.abs(before[row, here] - after[row, p]).sum(-1))) for p in here]
        np.testing.assert_array_equal(after[row, here], before[row, here][came_from])
        assert sorted(came_from) == list(range(len(here)))
        order.append(came_from)
    assert order[0] != sorted(order[0])

    def undo(x, hook):
        new = x.clone()
        for row, came_from in enumerate(order):
            here = where[row].nonzero()[:, 0]
            new[row, here[came_from]] = x[row, here]
        return new

    torch.testing.assert_close(small.run_with_hooks(inputs, fwd_hooks=[(name, shuffle), (name, undo)]), small(inputs))
    raw.differs(small.run_with_hooks(inputs, fwd_hooks=[(name, shuffle)]), small(inputs))
    again = before_and_after(small, inputs, name, hooks.permute(where, seed=3))[1]
    np.testing.assert_array_equal(again, after)
    assert np.abs(before_and_after(small, inputs, name, hooks.permute(where, seed=4))[1] - after).max() > 0


# ---------------------------------------------------------------- masks while a model writes


@torch.no_grad()
def test_a_mask_of_a_prompt_of_one_position_acts_on_the_prompt_only(small):
    """The prompt has one position, as every later run has: only counting the runs tells them apart."""
    inputs, shapes = small.to_inputs("a"), []
    inputs = Inputs.from_rows([Row("a", [inputs.tokens[0, -1].item()], ["text"], [-1], {})], pad=0)
    assert inputs.tokens.shape == (1, 1)
    edit = ("blocks.1.hook_resid_post", hooks.replace(3.0, where=inputs.mask("all")))
    look = ("blocks.1.hook_resid_post", hooks.feed(lambda x, hook: shapes.append(bool((x == 3.0).all()))))
    small.generate(inputs, max_new_tokens=3, min_new_tokens=3, fwd_hooks=[edit, look])
    assert shapes == [True, False, False]
    assert STEP.get() == 0


@torch.no_grad()
def test_a_mask_of_the_prompts_rows_is_refused_where_beams_multiply_them(small):
    inputs = ask(small, "one")
    edit = [("blocks.1.hook_resid_post", hooks.replace(3.0, where=inputs.mask("image")))]
    with leaves_no_hooks(small), pytest.raises(ValueError, match="make it from the inputs of this run"):
        small.generate(inputs, max_new_tokens=3, num_beams=2, fwd_hooks=edit)
