"""Attribution patching: plain transformers' gradients in every family, finite differences, and what integrals add up to."""

from functools import partial
from typing import get_args

import pytest
import raw
import torch
from support import ask, picture

from mmlens import Neurons, hooks, metrics
from mmlens.analysis import activation_patching, attribution_patching
from mmlens.analysis.nodes import HEADED, Activation
from mmlens.inputs import MEDIA

KINDS = list(get_args(Activation))
CURVED = ("gemma3", "pictoworld-frozen")  # on whose way from picture to picture the metric turns most


def runs(model, kind="padded"):
    """Return a clean and a corrupted run with other media behind the same words, and a metric of two tokens."""
    clean, corrupted = ask(model, kind), ask(model, kind, first=5)
    correct, wrong = torch.randint(0, model.cfg.d_vocab, (2, len(clean)), generator=torch.Generator().manual_seed(0))
    return clean, corrupted, partial(metrics.logit_diff, correct=correct, wrong=wrong)


def change(found):
    return found.metric - found.corrupted_metric


def name_of(activation, layer):
    owner = "attn." if activation in HEADED else "mlp." if activation in ("pre", "post") else ""
    return f"blocks.{layer}.{owner}hook_{activation}"


@pytest.mark.dear
def test_attributions_are_the_plain_models_own_gradients_times_the_difference(model, plain):
    clean, corrupted, metric = runs(model)
    where = {"media": clean.mask(*MEDIA), "last": clean.last()}
    known = [kind for kind in ("resid_post", "attn_out", "mlp_out", "z", "post") if name_of(kind, 1) in raw.names(plain)]
    names = [name_of(kind, 1) for kind in known]
    assert len(names) >= 2
    with torch.no_grad():
        _, there = raw.read(plain, clean, names)
    logits, here = raw.read(plain, corrupted, names, retain=True)
    metric(logits).sum().backward()
    for kind, name in zip(known, names, strict=True):
        found = attribution_patching(
            model, clean=clean, corrupted=corrupted, metric=metric, activation=kind, sites=where, layers=[1]
        )
        product = (there[name].reshape(here[name].shape) - here[name].detach()) * here[name].grad
        product = product.reshape(*clean.tokens.shape, -1).sum(-1)
        truth = torch.stack([(product * mask).sum(-1) for mask in where.values()])
        torch.testing.assert_close(
            change(found)[0], truth, rtol=1e-3, atol=1e-5 * max(1.0, float(found.clean_metric.abs().max()))
        )
        assert truth.abs().max() > 1e-5


@pytest.mark.dear
def test_along_the_input_the_merged_streams_attributions_add_up_to_the_whole_difference(model, folder):
    steps = 64 if folder.name.startswith(CURVED) else 8
    clean, corrupted, metric = runs(model)
    sites = {"media": clean.mask(*MEDIA), "words": ~clean.mask(*MEDIA)}
    found = attribution_patching(
        model, clean=clean, corrupted=corrupted, metric=metric, sites=sites, layers=[0], steps=steps, path="input"
    )
    whole = found.clean_metric - found.corrupted_metric
    assert change(found)[0, 1].abs().max() == 0 and (whole.abs() > 1e-4).all()  # only the pictures differ
    if any(name.startswith("deepstack.") for name in model.hook_names):
        return  # what DeepStack adds behind block 0 is no part of what enters it
    torch.testing.assert_close(change(found)[0].sum(0), whole, rtol=0.05, atol=0.01 * float(whole.abs().max()))


@pytest.fixture
def pair(exact):
    model, clean, tokens = exact
    texts = ["what is at the left ?", "which object is red and blue ? answer :"]
    corrupted = model.to_inputs(texts, images=[picture(7), picture(8)], answer="the")
    return model, clean, corrupted, partial(metrics.logit_diff, correct=tokens, wrong=tokens.flip(0))


@pytest.mark.parametrize("activation", KINDS)
def test_along_the_nodes_of_a_layer_attributions_add_up_to_patching_them_all(pair, activation):
    model, clean, corrupted, metric = pair
    media = clean.mask("image")
    for layer in (0, 2):
        patch = partial(activation_patching, model, clean=clean, corrupted=corrupted, metric=metric, activation=activation)
        together = change(patch(sites={"all": clean.mask("all")}, layers=[layer]))[0, 0]
        found = attribution_patching(
            model,
            clean=clean,
            corrupted=corrupted,
            metric=metric,
            activation=activation,
            sites={"image": media, "rest": clean.mask("all") & ~media},
            layers=[layer],
            steps=20,
            path="node",
        )
        torch.testing.assert_close(change(found)[0].sum(0), together, rtol=0.02, atol=1e-4)
    assert together.abs().max() > 1e-3


@pytest.mark.parametrize("activation", ["resid_pre", "k", "pattern", "post"])
@torch.no_grad()
def test_attributions_are_the_slope_of_moving_a_node_towards_the_clean_run(pair, activation):
    model, clean, corrupted, metric = pair
    step, here, name = 1e-6, clean.mask("image"), name_of(activation, 1)
    (_, there), (_, before) = (model.run_with_cache(one, [name]) for one in (clean, corrupted))
    moved = {sign: before[name] + sign * step * (there[name] - before[name]) for sign in (1, -1)}
    ends = [
        metric(model.run_with_hooks(corrupted, fwd_hooks=[(name, hooks.replace(moved[s], where=here))])) for s in (1, -1)
    ]
    found = attribution_patching(
        model, clean=clean, corrupted=corrupted, metric=metric, activation=activation, sites={"image": here}, layers=[1]
    )
    torch.testing.assert_close(change(found)[0, 0], (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-8)


def test_heads_units_and_positions_add_up_to_what_they_are_parts_of(llava):
    clean, corrupted, metric = runs(llava)
    attribute = partial(attribution_patching, llava, clean=clean, corrupted=corrupted, metric=metric)
    image = {"image": clean.mask("image")}
    whole = attribute(activation="z", sites=image)
    heads = attribute(activation="z", sites=image, heads=range(llava.cfg.n_heads))
    torch.testing.assert_close(change(heads).sum(2), change(whole), rtol=1e-4, atol=1e-6)
    units = attribute(activation="post", sites=image, units=range(llava.widths["language"][0]))
    whole = attribute(activation="post", sites=image)
    torch.testing.assert_close(change(units).sum(2), change(whole), rtol=1e-4, atol=1e-6)
    neurons = Neurons.of([(0, 3), (0, 7), (1, 5)], llava.widths)
    chosen = attribute(activation="post", sites=image, units=neurons)
    sums = [change(units)[0, :, [3, 7]].sum(1), change(units)[1, :, 5], torch.zeros(1, len(clean))]
    torch.testing.assert_close(change(chosen), torch.stack(sums), rtol=1e-4, atol=1e-6)
    positions = attribute()
    assert positions.metric.shape == (3, clean.tokens.shape[1], len(clean))
    torch.testing.assert_close(
        change(positions)[:, clean.mask("image").any(0)].sum(1) + change(positions)[:, ~clean.mask("image").any(0)].sum(1),
        change(attribute(sites={"all": torch.ones_like(clean.mask("all"))}))[:, 0],
        rtol=1e-4,
        atol=1e-6,
    )


def test_a_run_attributes_nothing_to_itself_and_embed_nodes_see_the_picture(llava):
    clean, corrupted, metric = runs(llava)
    itself = attribution_patching(llava, clean=clean, corrupted=clean, metric=metric)
    assert change(itself).abs().max() == 0 and itself.effect.isnan().all()
    seen = attribution_patching(
        llava, clean=clean, corrupted=corrupted, metric=metric, sites={"image": clean.mask("image")}, layers=[0]
    )
    assert change(seen).abs().min() > 1e-4  # TransformerLens' embed node is 0 at image positions


def test_what_has_no_gradient_or_no_steps_is_refused(llava):
    clean, corrupted, metric = runs(llava)
    attribute = partial(attribution_patching, llava, clean=clean, corrupted=corrupted)
    with pytest.raises(ValueError, match="a metric with a gradient"):
        attribute(metric=lambda logits: logits[:, -1].argmax(-1).float())
    with pytest.raises(ValueError, match="over 1 step or more"):
        attribute(metric=metric, steps=0)
