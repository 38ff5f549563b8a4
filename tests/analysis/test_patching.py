from functools import partial

import pytest
import torch
from support import picture
from transformer_lens import patching

from mmlens import metrics
from mmlens.analysis import activation_patching


@pytest.fixture
def pair(exact):
    model, clean, tokens = exact
    texts = ["what is at the left ?", "which object is red and blue ? answer :"]
    corrupted = model.to_inputs(texts, images=[picture(7), picture(8)], answer="the")
    return model, clean, corrupted, partial(metrics.logit_diff, correct=tokens, wrong=tokens.flip(0))


def test_patching_a_run_into_itself_changes_nothing(pair):
    model, clean, _, metric = pair
    found = activation_patching(model, clean=clean, corrupted=clean, metric=metric, sites={"image": clean.mask("image")})
    assert torch.isnan(found.effect).all()  # 0 / 0: nothing to bring back, and it says so
    torch.testing.assert_close(found.clean_metric, found.corrupted_metric, rtol=0, atol=0)


def test_all_positions_before_layer_0_bring_back_the_clean_run_and_the_image_alone_does_too(pair):
    model, clean, corrupted, metric = pair
    sites = {"all": clean.mask("all"), "image": clean.mask("image"), "text": clean.mask("text", "special")}
    effect = activation_patching(model, clean=clean, corrupted=corrupted, metric=metric, sites=sites).effect
    torch.testing.assert_close(effect[0, 0], torch.ones(2))
    torch.testing.assert_close(effect[0, 1], torch.ones(2))  # the texts are equal: the image is all that differs
    assert effect[0, 2].abs().max() < 1e-6
    torch.testing.assert_close(effect[:, 0], torch.ones(3, 2))


def test_each_entry_equals_a_raw_torch_hook_on_the_layer(pair):
    model, clean, corrupted, metric = pair
    sites = {"image": clean.mask("image"), "last": clean.last()}
    found = activation_patching(model, clean=clean, corrupted=corrupted, metric=metric, sites=sites)
    layers, streams = model.hf_model.model.language_model.layers, {}

    def keep(index):
        return lambda module, args: streams.__setitem__(index, args[0].clone())

    with torch.no_grad():
        handles = [layer.register_forward_pre_hook(keep(i)) for i, layer in enumerate(layers)]
        best = metric(model(clean))
        for handle in handles:
            handle.remove()
        worst = metric(model(corrupted))
        for index, layer in enumerate(layers):
            for site, where in enumerate(sites.values()):
                handle = layer.register_forward_pre_hook(
                    lambda m, a, i=index, w=where: (torch.where(w[..., None], streams[i], a[0]), *a[1:])
                )
                patched = metric(model(corrupted))
                handle.remove()
                expected = (patched - worst) / (best - worst)
                torch.testing.assert_close(found.effect[index, site].double(), expected, rtol=1e-5, atol=1e-6)
    assert found.effect[1:].std() > 1e-3


def test_inputs_that_do_not_line_up_are_refused(pair):
    model, clean, _, metric = pair
    other = model.to_inputs("what ?", images=picture(1))
    with pytest.raises(ValueError, match="line up"):
        activation_patching(model, clean=clean, corrupted=other, metric=metric, sites={"image": clean.mask("image")})


def test_transformer_lens_own_patching_under_bind_gives_the_same_numbers(pair):
    model, clean, corrupted, _ = pair
    clean, corrupted = (model.to_inputs("what is at the left ?", images=one.media[0][0]) for one in (clean, corrupted))
    one = partial(metrics.logit_diff, correct=torch.tensor([7]), wrong=torch.tensor([8]))
    positions = clean.tokens.shape[1]
    sites = {str(p): torch.arange(positions)[None] == p for p in range(positions)}
    ours = activation_patching(model, clean=clean, corrupted=corrupted, metric=one, sites=sites)
    _, cache = model.run_with_cache(clean)

    def scaled(logits):
        return (one(logits)[0] - ours.corrupted_metric[0]) / (ours.clean_metric[0] - ours.corrupted_metric[0])

    with model.bind(corrupted) as bridge, torch.no_grad():
        theirs = patching.get_act_patch_resid_pre(bridge, corrupted.tokens, cache, scaled)
    torch.testing.assert_close(ours.effect[:, :, 0].double(), theirs.double(), rtol=1e-5, atol=1e-6)
    assert ours.effect.std() > 1e-3
