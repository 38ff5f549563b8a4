"""Gradients integrated while a layer's neurons rise from zero come to what the layer's neurons are worth."""

import pytest
import raw
import torch

from mmlens import hooks
from mmlens.analysis import Attribution, integrated_gradients
from mmlens.inputs import MEDIA

CURVED = ("gemma3", "paligemma2", "pictoworld-frozen")  # a norm behind the MLP, and a model that has learned


def logits_of(model, inputs, tokens, fwd_hooks=()):
    with torch.no_grad():
        return model.run_with_hooks(inputs, fwd_hooks=fwd_hooks)[:, -1].gather(1, tokens[:, None])[:, 0]


def worth(model, inputs, tokens, layer, site, where):
    """Return what each row's logit loses with all neurons of a layer at zero."""
    off = [(f"blocks.{layer}.mlp.hook_{site}", hooks.replace(0.0, where=where))]
    return logits_of(model, inputs, tokens) - logits_of(model, inputs, tokens, off)


@pytest.mark.parametrize(("site", "group"), [("pre", "image"), ("post", "all")])
def test_a_layers_scores_add_up_to_what_its_neurons_are_worth(exact, site, group):
    model, inputs, tokens = exact
    where = inputs.mask(group)
    scores = integrated_gradients(model, inputs, tokens, site=site, where=where).scores
    truth = torch.stack([worth(model, inputs, tokens, layer, site, where) for layer in range(3)], dim=1)
    torch.testing.assert_close(scores.sum(-1), truth, rtol=2e-3, atol=1e-6)
    assert truth.abs().max() > 1e-3


@pytest.mark.dear
def test_they_add_up_in_every_family(model, folder, batches):
    inputs, tokens = batches["padded"], torch.tensor([5, 9])
    where = inputs.mask(*MEDIA)
    truth = worth(model, inputs, tokens, 0, "post", where)
    scores = integrated_gradients(model, inputs, tokens, steps=20 if folder.name.startswith(CURVED) else 6).scores
    assert scores.shape == (2, model.cfg.n_layers, max(model.widths["language"]))
    raw.same(scores[:, 0].sum(-1), truth, relative=0.01)


def test_a_score_is_the_mean_of_finite_differences_on_the_way(exact):
    model, inputs, tokens = exact
    where, layer, unit, steps, step = inputs.mask("image"), 1, 5, 3, 1e-5
    name = f"blocks.{layer}.mlp.hook_post"
    scores = integrated_gradients(model, inputs, tokens, reduce=None, steps=steps).scores
    value = model.run_with_cache(inputs, [name])[1][name]
    position = int(where[0].nonzero()[4])
    slopes = []
    for share in (1 / 6, 3 / 6, 5 / 6):
        moved = []
        for sign in (1, -1):
            activation = share * value
            activation[0, position, unit] += sign * step
            moved.append(logits_of(model, inputs, tokens, [(name, hooks.replace(activation, where=where))])[0])
        slopes.append((moved[0] - moved[1]) / (2 * step))
    expected = value[0, position, unit] * torch.stack(slopes).mean()
    torch.testing.assert_close(scores[0, layer, position, unit], expected, rtol=1e-5, atol=1e-11)
    assert scores[:, :, ~where.any(0)].abs().max() == 0


def test_reductions_are_of_the_same_scores_and_chunks_change_nothing(small, tmp_path):
    model, inputs, tokens = small
    full = integrated_gradients(model, inputs, tokens, reduce=None, steps=5)
    best = integrated_gradients(model, inputs, tokens, reduce="max", steps=5, chunk=1)
    image = inputs.mask("image")[:, None, :, None]
    torch.testing.assert_close(best.scores, full.scores.where(image, -torch.inf).amax(2), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(integrated_gradients(model, inputs, tokens, steps=5).scores, full.scores.sum(2))
    value = model.run_with_cache(inputs, "blocks.*.mlp.hook_post")[1]["post", 2]
    torch.testing.assert_close(best.activation[1, 2, 7], value[1, best.position[1, 2, 7], 7])
    loaded = Attribution.load(best.save(tmp_path / "integrated"), model=model)
    assert torch.equal(loaded.scores, best.scores) and loaded.provenance == best.provenance
    assert all(parameter.grad is None for parameter in model.hf_model.parameters())


def test_with_gradients_switched_off_it_is_the_same(small):
    model, inputs, tokens = small
    with torch.no_grad():
        quiet = integrated_gradients(model, inputs, tokens, steps=2).scores
    torch.testing.assert_close(quiet, integrated_gradients(model, inputs, tokens, steps=2).scores)


def test_rows_without_positions_and_no_steps_are_refused(small):
    model, inputs, tokens = small
    with pytest.raises(ValueError, match="row 0 has none"):
        integrated_gradients(model, model.to_inputs("the red car"), tokens[:1])
    with pytest.raises(ValueError, match="1 step or more"):
        integrated_gradients(model, inputs, tokens, steps=0)
