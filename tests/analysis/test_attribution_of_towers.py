"""Gradient x activation of towers, projectors and query transformers, row by row, in every family."""

import pytest
import raw
import torch
from support import ask, load, picture

from mmlens.analysis import grad_x_activation
from mmlens.hooks import neuron_hook


def modules(model):
    return [module for module in model.widths if module != "language"]


@pytest.mark.dear
def test_scores_are_the_plain_models_own_gradients_times_activations_of_each_rows_vectors(model, plain, batches):
    inputs, tokens = batches["padded"], torch.tensor([5, 9])
    assert modules(model)
    names = {
        (module, layer): neuron_hook(module, layer, "post")
        for module in modules(model)
        for layer in {0, len(model.widths[module]) - 1}
    }
    logits, seen = raw.read(plain, inputs, names.values(), retain=True)
    logits[:, -1].gather(1, tokens[:, None]).sum().backward()
    plain.zero_grad()
    best = {module: grad_x_activation(model, inputs, tokens, module=module) for module in modules(model)}
    last = modules(model)[-1]
    total = grad_x_activation(model, inputs, tokens, module=last, reduce="sum").scores
    for (module, layer), name in names.items():
        found, activation = best[module], seen[name].detach()
        assert found.scores.shape == (2, len(model.widths[module]), max(model.widths[module]))
        product = activation * (0 if seen[name].grad is None else seen[name].grad)
        rows, _ = inputs.held(module, product.shape[:-1])
        for row in range(2):
            raw.same(found.scores[row, layer], product[rows == row].amax(0), relative=1e-3)
            picked = activation[rows == row].gather(0, found.position[row, layer][None])[0]
            raw.same(found.activation[row, layer], picked)
            if module == last:
                raw.same(total[row, layer], product[rows == row].sum(0), relative=1e-3)
        assert layer or found.scores[:, 0].abs().max() > 0


@pytest.fixture(scope="module")
def small(small_folder):
    """One tiny model, for what does not depend on the family."""
    return load(small_folder)


def test_a_row_does_not_depend_on_the_rows_beside_it_and_blocks_that_nobody_reads_score_nothing(small):
    model = small
    inputs, tokens = ask(model, "padded"), torch.tensor([5, 9])
    alone = model.to_inputs("what", images=picture(0))
    for module in modules(model):
        ours = grad_x_activation(model, alone, tokens[:1], module=module).scores
        raw.same(ours[0], grad_x_activation(model, inputs, tokens, module=module).scores[0])
    assert model.family.live_layers(model.hf_model.config) == {"vision": 2}
    scores = grad_x_activation(model, inputs, tokens, module="vision").scores
    assert scores[:, 2].abs().max() == 0 and scores[:, 1].abs().min() > 0
    assert all(parameter.grad is None for parameter in model.hf_model.parameters())


def test_what_a_tower_has_not_is_refused(small):
    model = small
    inputs, tokens = ask(model, "mixed"), torch.tensor([5, 9, 7])
    with pytest.raises(ValueError, match="row 1 has none"):
        grad_x_activation(model, inputs, tokens, module="vision")
    for options in (dict(where=inputs.mask("image")), dict(reduce=None)):
        with pytest.raises(ValueError, match="are not those of vision"):
            grad_x_activation(model, inputs, tokens, module="vision", **options)
    with pytest.raises(ValueError, match="got 'audio'"):
        grad_x_activation(model, inputs, tokens, module="audio")
