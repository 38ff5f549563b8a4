"""TransformerLens' own tools under `model.bind`: the media stay with their tokens, and the numbers are right."""

import pytest
import raw
import torch
from support import leaves_no_hooks, load, picture
from transformer_lens import patching
from transformer_lens.tools.analysis import (
    EdgeAttributionConfig,
    attribution_patch,
    direct_logit_attribution,
    logit_lens,
)
from transformers import LlavaForConditionalGeneration

from mmlens.testing import tiny

TOOLS = {
    "resid_pre": (patching.get_act_patch_resid_pre, "hook_resid_pre"),
    "resid_mid": (patching.get_act_patch_resid_mid, "hook_resid_mid"),
    "attn_out": (patching.get_act_patch_attn_out, "hook_attn_out"),
    "mlp_out": (patching.get_act_patch_mlp_out, "hook_mlp_out"),
}


@pytest.fixture(scope="module", params=["llava-clip-llama", "llava-siglip-qwen2"])
def case(request, tmp_path_factory):
    """A model with four image positions, the same weights left plain, and a clean and a corrupted picture."""
    folder = tiny(request.param, tmp_path_factory.mktemp("bind"), image_size=12)
    model = load(folder)
    plain = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    clean, corrupted = (model.to_inputs("which object", images=picture(seed)) for seed in (0, 7))
    return model, plain, clean, corrupted


def metric(logits):
    return logits[0, -1, 7] - logits[0, -1, 9]


def positions(inputs):
    return range(inputs.tokens.shape[1])


def put(value, *index):
    """Return a hook that puts `value` at these indices, where it has been cut out of another run."""

    def change(activation, hook=None):
        new = activation.clone()
        new[index] = value[index]
        return new

    return change


@pytest.mark.parametrize(("tool", "gradients"), [*((tool, False) for tool in TOOLS), ("resid_mid", True)])
@torch.no_grad()
def test_patching_the_stream_equals_a_loop_of_raw_torch_hooks(case, tool, gradients):
    """With gradients, TransformerLens returns a new tensor instead of editing in place."""
    model, plain, clean, corrupted = case
    function, point = TOOLS[tool]
    _, cache = model.run_with_cache(clean)
    with leaves_no_hooks(model), model.bind(corrupted) as bridge, torch.set_grad_enabled(gradients):
        result = function(bridge, corrupted.tokens, cache, metric)
    truth = torch.zeros_like(result)
    _, seen = raw.read(plain, clean, [f"blocks.{layer}.hook_resid_pre" for layer in range(len(truth))])
    _, attention = raw.read(plain, clean, [f"blocks.{layer}.hook_attn_out" for layer in range(len(truth))])
    for layer in range(len(truth)):
        name = f"blocks.{layer}.{point}"
        for pos in positions(corrupted):
            if tool == "resid_mid":  # reached through the attention output: stream + attention is what is patched
                stream, middle = [], seen[f"blocks.{layer}.hook_resid_pre"] + attention[f"blocks.{layer}.hook_attn_out"]
                change = put(middle, slice(None), pos)
                edits = {
                    f"blocks.{layer}.hook_resid_pre": stream.append,
                    f"blocks.{layer}.hook_attn_out": lambda x, s=stream, c=change: c(s[-1] + x) - s[-1],
                }
            else:
                edits = {name: put(raw.read(plain, clean, [name])[1][name], slice(None), pos)}
            truth[layer, pos] = metric(raw.logits(plain, corrupted, edits))
    raw.same(result, truth)
    raw.differs(result, metric(raw.logits(plain, corrupted)).expand_as(result))


@torch.no_grad()
def test_patching_heads_and_patterns_equals_a_loop_of_our_runs(case):
    model, _, clean, corrupted = case
    heads = range(model.cfg.n_heads)
    _, cache = model.run_with_cache(clean, ["*.hook_z", "*.hook_pattern"])
    with model.bind(corrupted) as bridge:
        z = patching.get_act_patch_attn_head_out_by_pos(bridge, corrupted.tokens, cache, metric)
        pattern = patching.get_act_patch_attn_head_pattern_all_pos(bridge, corrupted.tokens, cache, metric)
    for layer in range(model.cfg.n_layers):
        for head in heads:
            name = f"blocks.{layer}.attn.hook_pattern"
            edit = (name, put(cache[name], slice(None), head))
            raw.same(pattern[layer, head], metric(model.run_with_hooks(corrupted, fwd_hooks=[edit])))
            name = f"blocks.{layer}.attn.hook_z"
            for pos in positions(corrupted):
                edit = (name, put(cache[name], slice(None), pos, head))
                raw.same(z[layer, pos, head], metric(model.run_with_hooks(corrupted, fwd_hooks=[edit])))
    raw.differs(z, metric(model(corrupted)).expand_as(z))
    raw.differs(pattern, metric(model(corrupted)).expand_as(pattern), by=1e-4)


@torch.no_grad()
def test_a_bound_bridge_runs_what_the_plain_model_runs(case):
    model, plain, clean, _ = case
    batch = model.to_inputs(["the", "which object is red"], images=[picture(1), picture(2)])
    name = "blocks.1.attn.hook_z"
    with model.bind(clean, batch) as bridge:
        for inputs in (clean, batch):
            real, truth = inputs.mask("all"), raw.logits(plain, inputs)
            raw.same(bridge(inputs.tokens)[real], truth[real])
            logits, cache = bridge.run_with_cache(inputs.tokens)
            raw.same(logits[real], truth[real])
            raw.same(cache[name].flatten(2)[real], raw.read(plain, inputs, [name])[1][name][real])
            edit = [(name, lambda z, hook: z * 0.5)]
            edited = raw.logits(plain, inputs, {name: lambda z: z * 0.5})
            raw.same(bridge.run_with_hooks(inputs.tokens, fwd_hooks=edit)[real], edited[real])
            raw.differs(edited[real], truth[real])


@torch.no_grad()
def test_the_logit_lens_of_transformerlens_sees_the_picture(case):
    model, plain, clean, _ = case
    with model.bind(clean) as bridge:
        lens = logit_lens(bridge, clean.tokens, positions=None).values
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)] + ["ln_final.hook_in"]
    _, seen = raw.read(plain, clean, names)
    norm, head = plain.model.language_model.norm, plain.lm_head
    raw.same(lens, torch.stack([head(norm(seen[name])) for name in names]))


def test_node_attribution_equals_gradients_times_differences_on_the_plain_model(case):
    model, plain, clean, _ = case
    corrupted = model.to_inputs("which tree", images=picture(7))
    with leaves_no_hooks(model), model.bind(clean, corrupted) as bridge:
        scores = attribution_patch(bridge, clean.tokens, corrupted.tokens, metric).node_scores
    z = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    mlp = [f"blocks.{layer}.hook_mlp_out" for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        _, before = raw.read(plain, clean, z + mlp)
    logits, seen = raw.read(plain, corrupted, z + mlp, retain=True)
    metric(logits).backward()
    truth = {name: ((before[name] - seen[name]) * seen[name].grad).detach() for name in z + mlp}
    ours = {"attn_head_out": [], "mlp_out": []}
    theirs = {"attn_head_out": [], "mlp_out": []}
    for node, score in scores.items():
        if node.kind == "embed":
            if clean.mask("image")[0, node.position]:
                assert score == 0.0  # TransformerLens takes it before the merge, as the docstring of bind says
            continue
        name = (z if node.kind == "attn_head_out" else mlp)[node.layer]
        value = truth[name][0, node.position]
        ours[node.kind].append(score)
        theirs[node.kind].append(
            (value if node.head is None else value.unflatten(-1, (-1, model.cfg.d_head))[node.head]).sum()
        )
    for kind, values in ours.items():
        raw.same(torch.tensor(values), torch.stack(theirs[kind]))
        assert torch.tensor(values).abs().max() > 1e-3


def test_what_transformerlens_refuses_on_native_attention_is_refused_loudly(case):
    model, _, clean, _ = case
    other = model.to_inputs("which tree", images=picture(7))
    with leaves_no_hooks(model), model.bind(clean, other) as bridge:
        with pytest.raises(NotImplementedError, match="use_attn_result"):
            bridge.set_use_attn_result(True)
        with pytest.raises(NotImplementedError, match="use_split_qkv_input"):
            bridge.set_use_split_qkv_input(True)
        with pytest.raises((ValueError, NotImplementedError)):
            attribution_patch(bridge, clean.tokens, other.tokens, metric, EdgeAttributionConfig(granularity="edge"))
        with pytest.raises(ValueError, match="compatibility mode"):
            direct_logit_attribution(bridge, clean.tokens, 5)
        with torch.no_grad(), pytest.raises((ValueError, NotImplementedError, KeyError)):
            _, one = bridge.run_with_cache(clean.tokens)
            _, two = bridge.run_with_cache(other.tokens)
            patching.get_act_patch_direct_path(bridge, other.tokens, one, two, metric, 0, 0, verbose=False)


def test_two_inputs_with_equal_tokens_and_different_pictures_are_refused(case):
    model, _, clean, corrupted = case
    assert torch.equal(clean.tokens, corrupted.tokens)
    with pytest.raises(ValueError, match="bind one at a time"), model.bind(clean, corrupted):
        pass
    with model.bind(clean, clean):  # the same twice is no conflict
        pass


def test_tokens_that_were_not_bound_are_refused(case):
    model, _, clean, _ = case
    other = model.to_inputs("which tree", images=picture(0))
    with model.bind(clean) as bridge:
        for unbound in (other.tokens, clean.tokens[:, :-1], "which object", torch.zeros(1, 3, model.cfg.d_model)):
            with pytest.raises(ValueError, match="bind these inputs too"):
                bridge(unbound)


@torch.no_grad()
def test_nothing_stays_bound_after_the_with(case):
    model, _, clean, _ = case
    with model.bind(clean) as bridge:
        seen = bridge(clean.tokens)
    with pytest.raises(ZeroDivisionError), model.bind(clean):
        _ = 1 / 0
    assert "forward" not in bridge.__dict__
    raw.differs(bridge(clean.tokens), seen)  # TransformerLens alone drops the picture


@pytest.mark.parametrize("kind", ["one", "two", "text"])
@torch.no_grad()
def test_a_bound_bridge_of_any_family_runs_what_the_plain_model_runs(model, plain, batches, kind):
    inputs = batches[kind]
    with model.bind(inputs) as bridge:
        logits, cache = bridge.run_with_cache(inputs.tokens, names_filter=["blocks.1.hook_in"])
    truth, seen = raw.read(plain, inputs, ["blocks.1.hook_resid_pre"])
    raw.same(logits, truth)
    raw.same(cache["blocks.1.hook_in"], seen["blocks.1.hook_resid_pre"])
