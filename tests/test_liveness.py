"""Every hook point that is listed fires and matters; every other one is refused with what to use instead."""

import pytest
import raw
import torch
from support import ask, leaves_no_hooks

from mmlens import hooks
from mmlens.liveness import InertHook, UnknownHook, lookup


def nothing(activation, hook):
    return None


def wipe(activation):
    activation.zero_()


@torch.no_grad()
def test_every_listed_point_fires_where_there_is_a_picture(model, batches):
    fired = set()
    with model.hooks(fwd_hooks=[(name, lambda x, hook: fired.add(hook.name)) for name in model.hook_names]):
        model(batches["mixed"])
    assert fired == set(model.hook_names)


def at_the_ends(model):
    """Return the points of the first and the last layer, and those of none: the other layers' are like them."""
    middle = {str(layer) for layer in range(1, model.cfg.n_layers - 1)}
    return [name for name in model.hook_names if name.partition("blocks.")[2].partition(".")[0] not in middle]


@pytest.mark.dear("blip2-opt", "gemma3", "qwen2-audio", "qwen3-vl")
@torch.no_grad()
def test_noise_at_every_point_that_is_not_read_only_changes_the_logits(model, batches):
    inputs = batches["one"]
    before, unseen = model(inputs), []
    visible = torch.finfo(torch.float32).min / 2

    def shake(x, hook):
        if x.dtype in (torch.int64, torch.bool):  # embed.hook_in holds token ids
            return (x + 1) % model.cfg.d_vocab
        return torch.where(x > visible, x + 0.3 * raw.noise(x.clamp(min=-1e3)), x)

    for name in at_the_ends(model):
        if lookup(name, model.points.read_only) is None:
            after = model.run_with_hooks(inputs, fwd_hooks=[(name, shake)])
            if (after - before).abs().max() < 1e-4:
                unseen.append(name)
    assert unseen == []


@pytest.mark.dear
@torch.no_grad()
def test_every_read_only_point_can_be_read_and_refuses_an_edit(model):
    inputs = ask(model, "one")  # the last edit is made in place: in inputs that no other test shares
    refused = [name for name in at_the_ends(model) if lookup(name, model.points.read_only) is not None]
    read_whole = [live > len(model.widths[tower]) for tower, live in model.family.live_layers(model.hf_model.config).items()]
    assert refused or all(read_whole)
    for name in refused:
        model.run_with_hooks(inputs, fwd_hooks=[(name, nothing)])
        with leaves_no_hooks(model), pytest.raises(InertHook, match=r"read but not edited.*: edit .+ instead"):
            model.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: x * 2)])
    for name in refused[-1:]:
        with pytest.raises(InertHook, match="read but not edited"):  # an edit in place is an edit too
            model.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: wipe(x))])


@torch.no_grad()
def test_a_towers_last_block_is_read_only_where_the_plain_model_does_not_read_it_either(model, plain, batches):
    inputs, tower = batches["one"], raw.prefixes(plain)[-1]
    dead = len(model.widths[tower.removesuffix(".")]) - 1
    name = f"{tower}blocks.{dead}.mlp.hook_post"
    unread = lookup(name, model.points.read_only) is not None
    assert torch.equal(raw.logits(plain, inputs, {name: lambda x: x * 0}), raw.logits(plain, inputs)) == unread


@pytest.mark.parametrize(
    ("dead", "instead"),
    [
        ("blocks.0.attn.hook_rot_q", "hook_q"),
        ("blocks.0.attn.hook_result", "hook_z"),
        ("blocks.0.hook_q_input", "hook_q"),
        ("blocks.0.hook_mlp_in", "hook_resid_mid"),
        ("vision.hook_patch_embed", "vision.hook_embed"),
    ],
)
def test_a_dead_hook_is_refused_and_names_the_live_one(small, dead, instead):
    if dead not in small.points.canonical:
        pytest.skip(f"this version of TransformerLens has no {dead}")
    with leaves_no_hooks(small), pytest.raises(InertHook, match=f"never fires.*{instead}"):
        small.run_with_hooks(ask(small, "one"), fwd_hooks=[(dead, nothing)])
    assert small.points.canonical[dead] not in small.hook_names


@pytest.mark.parametrize(
    ("name", "near"),
    [("blocks.0.mlp.hook_pots", "hook_post"), ("block.1.hook_resid_post", "hook_resid_post"), ("zz", "hook_names")],
)
def test_an_unknown_name_is_refused_and_names_the_nearest(small, name, near):
    inputs = ask(small, "one")
    for run in (
        lambda: small.run_with_hooks(inputs, fwd_hooks=[(name, nothing)]),
        lambda: small.run_with_hooks(inputs, bwd_hooks=[(name, nothing)]),
        lambda: small.run_with_cache(inputs, name),
        lambda: small.run_with_cache(inputs, ["blocks.0.hook_resid_pre", name]),
    ):
        with leaves_no_hooks(small), pytest.raises(UnknownHook, match=near):
            run()


@pytest.mark.parametrize("glob", ["blocks.99.*", "audio.*", "*.hook_posts"])
def test_a_glob_that_matches_nothing_is_refused(small, glob):
    with pytest.raises(UnknownHook, match="no hook point"):
        small.run_with_cache(ask(small, "one"), glob)


def test_a_hook_that_no_run_reached_is_reported(small):
    text, image = ask(small, "text"), ask(small, "one")
    with small.hooks(fwd_hooks=[("vision.blocks.0.attn.hook_z", nothing)]):
        small(text)  # a tower rests where there is no picture
    with pytest.raises(KeyError, match="was not cached"):
        small.run_with_cache(text, "vision.*")[1]["vision.blocks.0.attn.hook_z"]
    with pytest.raises(InertHook, match="no run reached"), small.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", nothing)]):
        small.points.by_name["blocks.0.hook_resid_pre"]._forward_hooks.clear()  # as if the point had not fired
        small(image)


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_mid", "vision.blocks.0.hook_resid_mid", "*.hook_resid_mid"])
def test_a_gradient_at_resid_mid_is_refused_and_names_the_whole_one(small, name):
    with leaves_no_hooks(small), pytest.raises(InertHook, match="hook_attn_out"):
        small.run_with_hooks(ask(small, "one"), bwd_hooks=[(name, nothing)])


def test_transformerlens_own_spellings_and_ours_are_the_same_point(small):
    inputs, calls = ask(small, "one"), []
    for spelling, ours in [
        ("vision_encoder.encoder_layers.0.attn.hook_z", "vision.blocks.0.attn.hook_z"),
        ("blocks.1.mlp.out.hook_in", "blocks.1.mlp.hook_post"),
        ("blocks.1.ln2.hook_in", "blocks.1.hook_resid_mid"),
        ("blocks.1.hook_out", "blocks.1.hook_resid_post"),
    ]:
        small.run_with_hooks(inputs, fwd_hooks=[(spelling, lambda x, hook: calls.append(hook.name))])
        assert calls.pop() == ours
        assert list(small.run_with_cache(inputs, spelling)[1].keys()) == [ours]


def test_every_point_has_one_name(small):
    points = [id(small.points.by_name[name]) for name in small.hook_names]
    assert len(set(points)) == len(points) == len(set(small.hook_names))


@torch.no_grad()
def test_zeroing_the_projector_by_glob_equals_zeroing_it_by_name(small):
    inputs = ask(small, "one")
    by_glob = small.run_with_hooks(inputs, fwd_hooks=[("proj*hook_out", hooks.replace(0.0))])
    torch.testing.assert_close(by_glob, small.run_with_hooks(inputs, fwd_hooks=[("projector.hook_out", hooks.replace(0.0))]))
