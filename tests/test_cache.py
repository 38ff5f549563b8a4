"""Components in the cache add up to the stream and to the logits at every position, images included."""

import pytest
import raw
import torch
from support import ask

from mmlens.inputs import MEDIA


@pytest.fixture(scope="module")
def runs(model, plain, batches):
    """For two kinds of inputs: inputs, cache, what the plain model's unembedding gives (its logits, before a soft cap) and
    its stream before each block and at the end."""
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)] + ["ln_final.hook_in"]
    runs = {}
    with torch.no_grad():
        for kind in ("mixed", "two"):
            inputs = batches[kind]
            _, seen = raw.read(plain, inputs, [*names, "hook_unembed"])
            stream = [seen[name] for name in names]
            runs[kind] = (inputs, model.run_with_cache(inputs)[1], seen["hook_unembed"], stream)
    return runs


@pytest.fixture(scope="module", params=["mixed", "two"])
def run(request, runs):
    return runs[request.param]


def at_real(inputs, stack):
    return stack[..., inputs.mask("all"), :]


def constant(plain):
    """Return what every position's logits have in common: the final norm's bias, unembedded."""
    norm, head = raw.locate(plain, "ln_final.hook_out")[0], plain.get_output_embeddings()
    bias = getattr(norm, "bias", None)
    return head(torch.zeros_like(norm.weight) if bias is None else bias)


@torch.no_grad()
def test_components_add_up_to_the_plain_models_stream(run):
    inputs, cache, _, stream = run
    for layer in (1, 2, None):
        truth = at_real(inputs, stream[-1 if layer is None else layer])
        parts, labels = cache.decompose_resid(layer, return_labels=True)
        assert labels[0] == "embed" and len(labels) == len(parts)
        raw.same(at_real(inputs, parts).sum(0), truth)
        for expand in (False, True) if layer == 1 else (False,):
            parts = cache.get_full_resid_decomposition(layer, expand_neurons=expand)
            raw.same(at_real(inputs, parts).sum(0), truth)
        assert inputs.mask(*MEDIA).any()


@torch.no_grad()
def test_what_is_called_embed_is_the_stream_with_the_image_features_in_it(run):
    _, cache, _, stream = run
    parts, labels = cache.decompose_resid(return_labels=True)
    raw.same(parts[labels.index("embed")], stream[0])


@torch.no_grad()
def test_heads_and_the_bias_add_up_to_what_attention_wrote(run, model, plain):
    inputs, cache, _, stream = run
    depth, real = model.cfg.n_layers, inputs.mask("all")
    heads = cache.stack_head_results(layer=-1)
    assert len(heads) == depth * model.cfg.n_heads
    _, seen = raw.read(plain, inputs, [f"blocks.{layer}.hook_attn_out" for layer in range(depth)])
    for layer, own in enumerate(heads.unflatten(0, (depth, -1))):
        bias = raw.locate(plain, f"blocks.{layer}.attn.hook_z")[0].bias
        truth = seen[f"blocks.{layer}.hook_attn_out"] - (0 if bias is None else bias)
        raw.same(own.sum(0)[real], truth[real])
    remainder = cache.stack_head_results(layer=-1, incl_remainder=True)
    raw.same(at_real(inputs, remainder).sum(0), stream[-1][real])


@torch.no_grad()
def test_one_heads_result_is_its_part_of_a_raw_matrix_product(run, model, plain):
    inputs, cache, _, _ = run
    heads, width = cache.stack_head_results(layer=2), model.cfg.d_head
    _, seen = raw.read(plain, inputs, ["blocks.1.attn.hook_z"])
    z, head = seen["blocks.1.attn.hook_z"], 3
    truth = z[..., head * width : (head + 1) * width] @ raw.weight(plain, "blocks.1.attn.hook_z")[head * width :][:width]
    truth = truth * raw.way_into_stream(plain, inputs, "blocks.1.hook_attn_out")
    raw.same(at_real(inputs, heads[model.cfg.n_heads + head]), at_real(inputs, truth))


@torch.no_grad()
def test_attributions_of_all_components_add_up_to_the_logit_but_for_the_final_norms_bias(run, model, plain):
    inputs, cache, logits, _ = run
    bias = constant(plain)
    torch.testing.assert_close(model.b_U, bias)
    logits = logits - bias
    real, token, other = inputs.mask("all"), 7, 9
    stacks = [cache.decompose_resid(), cache.get_full_resid_decomposition(expand_neurons=True)]
    for stack in stacks:
        raw.same(cache.logit_attrs(stack, token).sum(0)[real], logits[..., token][real])
        difference = logits[..., token] - logits[..., other]
        raw.same(cache.logit_attrs(stack, token, other).sum(0)[real], difference[real])
    last = cache.decompose_resid(pos_slice=-1)
    raw.same(cache.logit_attrs(last, token, pos_slice=-1).sum(0), logits[:, -1, token])
    each = torch.tensor([5 + row for row in range(len(inputs))])
    raw.same(cache.logit_attrs(stacks[0], each).sum(0)[:, -1], logits[:, -1].gather(1, each[:, None])[:, 0])


@torch.no_grad()
def test_a_component_through_the_final_norm_is_over_the_cached_scale_times_the_gain(run, model, plain):
    inputs, cache, _, stream = run
    norm = raw.locate(plain, "ln_final.hook_out")[0]
    gain, scale = raw.gain_and_scale(norm, stream[-1])
    parts = cache.decompose_resid()
    truth = raw.centred(norm, parts) / scale * gain
    for ours in (cache.apply_ln_to_stack(parts), cache.decompose_resid(apply_ln=True)):
        raw.same(at_real(inputs, ours), at_real(inputs, truth))
    raw.differs(at_real(inputs, truth), at_real(inputs, parts / scale))  # the gain is not 1


@pytest.mark.parametrize(("mlp_input", "name"), [(False, "blocks.1.ln1.hook_out"), (True, "blocks.1.ln2.hook_out")])
@torch.no_grad()
def test_components_through_a_blocks_norm_add_up_to_its_output_but_for_its_bias(run, plain, mlp_input, name):
    inputs, cache, _, _ = run
    if raw.side_by_side(plain):
        name = name.replace("ln2", "ln1")
    parts = cache.decompose_resid(1, mlp_input=mlp_input, apply_ln=True)
    truth = raw.read(plain, inputs, [name])[1][name] - raw.constant(raw.locate(plain, name)[0])
    raw.same(at_real(inputs, parts).sum(0), at_real(inputs, truth))


@torch.no_grad()
def test_the_accumulated_stream_and_its_unembedding_are_the_plain_models(run, model, plain):
    inputs, cache, logits, stream = run
    real = inputs.mask("all")
    accumulated = cache.accumulated_resid()
    raw.same(at_real(inputs, accumulated), at_real(inputs, torch.stack(stream)))
    norm, head = raw.locate(plain, "ln_final.hook_out")[0], plain.get_output_embeddings()
    truth = torch.stack([head(norm(each)) for each in stream])
    raw.same(at_real(inputs, model.unembed(accumulated)), at_real(inputs, raw.soft_cap(plain, truth)))
    normed = cache.accumulated_resid(apply_ln=True) @ model.W_U  # through the whole norm, bias and all
    raw.same(at_real(inputs, normed + head(torch.zeros_like(stream[0][0, 0]))), at_real(inputs, truth))
    raw.same(model.unembed(accumulated[-1])[real], raw.soft_cap(plain, logits)[real])


@torch.no_grad()
def test_neuron_results_are_activation_times_output_weights(run, model, plain):
    inputs, cache, _, _ = run
    _, seen = raw.read(plain, inputs, ["blocks.0.mlp.hook_post"])
    weight = raw.weight(plain, "blocks.0.mlp.hook_post")
    truth = torch.stack([seen["blocks.0.mlp.hook_post"][..., unit, None] * weight[unit] for unit in (0, 5)])
    truth = truth * raw.way_into_stream(plain, inputs, "blocks.0.hook_mlp_out")
    raw.same(at_real(inputs, cache.stack_neuron_results(1)[[0, 5]]), at_real(inputs, truth))
    onto = torch.randn(truth.shape[-1], 2, generator=torch.Generator().manual_seed(0))
    for direction in (onto, onto[:, 0]):
        projected = cache.stack_neuron_results(1, project_output_onto=direction)[[0, 5]]
        real = inputs.mask("all")
        raw.same(projected[:, real], (truth @ direction)[:, real])
        last = cache.stack_neuron_results(1, project_output_onto=direction, pos_slice=-1)[[0, 5]]
        raw.same(last, (truth @ direction)[:, :, -1])
    raw.same(cache.stack_neuron_results(1, pos_slice=-1)[[0, 5]], truth[:, :, -1])


@torch.no_grad()
def test_shorthand_and_every_spelling_name_the_same_activation(small):
    inputs = ask(small, "one")
    _, cache = small.run_with_cache(inputs)
    depth = small.cfg.n_layers
    for key, name in [
        (("resid_post", -1), f"blocks.{depth - 1}.hook_resid_post"),
        (("post", 1), "blocks.1.mlp.hook_post"),
        ("blocks.1.mlp.out.hook_in", "blocks.1.mlp.hook_post"),
        ("blocks.1.hook_in", "blocks.1.hook_resid_pre"),
        ("vision_encoder.encoder_layers.0.attn.hook_z", "vision.blocks.0.attn.hook_z"),
    ]:
        assert cache[key] is cache[name]
    assert cache.inputs is inputs
    for missing in ("blocks.0.attn.hook_pattern", "nonsense", ("post", 77)):
        with pytest.raises(KeyError, match="was not cached"):
            cache[missing]


@torch.no_grad()
def test_removing_the_batch_dim_leaves_tower_entries_alone(small):
    inputs = ask(small, "two")
    _, cache = small.run_with_cache(inputs)
    stream, tower = cache["blocks.1.hook_resid_post"], cache["vision.blocks.0.attn.hook_z"]
    single = cache.remove_batch_dim()
    assert torch.equal(single["blocks.1.hook_resid_post"], stream[0])
    assert torch.equal(single["vision.blocks.0.attn.hook_z"], tower) and len(tower) == 2
    raw.same(single.decompose_resid().sum(0), single["resid_post", -1])
    with pytest.raises(ValueError, match="batch of one"):
        small.run_with_cache(ask(small, "mixed"))[1].remove_batch_dim()


@torch.no_grad()
def test_what_can_not_be_exact_is_refused_and_says_what_to_use(small):
    _, cache = small.run_with_cache(ask(small, "one"))
    onto = torch.ones(small.cfg.d_model)
    for refused in (
        lambda: cache.apply_slice_to_batch_dim(0),
        lambda: cache.get_full_resid_decomposition(apply_ln=True, project_output_onto=onto),
        lambda: cache.stack_neuron_results(1, apply_ln=True, project_output_onto=onto),
    ):
        with pytest.raises(NotImplementedError, match="use "):
            refused()
    raw.same(cache.get_full_resid_decomposition(project_output_onto=onto).sum(0), cache["resid_post", -1] @ onto)
