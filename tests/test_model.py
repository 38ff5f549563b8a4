"""The hooked model computes what transformers computes, and an edit in it is the edit that a raw torch hook would make."""

import socket

import pytest
import raw
import torch
from support import KINDS, ask, hook_count, leaves_no_hooks, questions
from transformers import BertConfig, LlavaForConditionalGeneration

from mmlens import HookedMLLM, hooks
from mmlens.attention import BESIDE
from mmlens.families import UnsupportedModel
from mmlens.hooks import STEP, module_of, neuron_hook
from mmlens.liveness import UnknownHook
from mmlens.testing import FAMILIES

# ---------------------------------------------------------------- the same numbers as transformers


@pytest.mark.parametrize("attention", ["its own choice", "eager"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_equal_transformers_own(model, plain, batches, kind, attention):
    inputs = batches[kind]
    chosen = raw.implementations(plain)
    assert set(chosen.values()) <= {"sdpa", "eager"} and chosen[""] == "sdpa"
    plain.set_attn_implementation("eager" if attention == "eager" else chosen)
    try:
        truth = raw.logits(plain, inputs)
    finally:
        plain.set_attn_implementation(chosen)
    real = inputs.mask("all")
    raw.same(model(inputs)[real], truth[real])


@pytest.mark.parametrize("kind", ["padded", "mixed"])
@torch.no_grad()
def test_a_row_of_a_padded_batch_says_what_it_says_alone(model, plain, batches, kind):
    inputs = batches[kind]
    logits = model(inputs)
    for row, (text, media) in enumerate(questions(model, kind)):
        alone = model.to_inputs(text, **media)
        raw.same(logits[row, inputs.attention_mask[row].bool()], raw.logits(plain, alone)[0])


@torch.no_grad()
def test_another_picture_changes_the_logits(model, batches):
    raw.differs(model(batches["one"]), model(ask(model, "one", first=7)))


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_generation_equals_transformers_token_for_token(model, plain, batches, kind):
    inputs = batches[kind]
    pad = model.tokenizer.pad_token_id
    truth = raw.generate(plain, inputs, max_new_tokens=6, pad_token_id=pad)
    ours = model.generate(inputs, max_new_tokens=6)
    assert torch.equal(ours.tokens, truth)
    new = truth[:, inputs.tokens.shape[1] :]
    assert ours.text == [model.tokenizer.decode(row, skip_special_tokens=True).strip() for row in new]


@torch.no_grad()
def test_bfloat16_loads_and_computes_what_transformers_computes(small_folder):
    ours = HookedMLLM.from_pretrained(small_folder, dtype=torch.bfloat16, device="cpu")
    plain = LlavaForConditionalGeneration.from_pretrained(small_folder, dtype=torch.bfloat16).eval()
    inputs = ask(ours, "one")
    logits, cache = ours.run_with_cache(inputs, "blocks.*.hook_resid_post")
    assert logits.dtype == cache["blocks.1.hook_resid_post"].dtype == torch.bfloat16
    raw.same(logits, raw.logits(plain, inputs), relative=1e-2)
    logits, _ = ours.run_with_cache(inputs, "*.hook_pattern")
    raw.same(logits, raw.logits(plain, inputs), relative=5e-2)


# ---------------------------------------------------------------- reading and editing at every site


@pytest.mark.parametrize("kind", ["mixed", "two"])
@torch.no_grad()
def test_every_site_reads_what_a_raw_torch_hook_reads(model, plain, batches, kind):
    inputs = batches[kind]
    names, real = raw.names(plain), inputs.mask("all")
    logits, truth = raw.read(plain, inputs, names)
    ours, cache = model.run_with_cache(inputs, names)
    raw.same(ours[real], logits[real])
    for name in names:
        one, other = cache[name], truth[name]
        if module_of(name) == "language":
            one, other = one[real], other[real]
        raw.same(one.reshape(other.shape), other)


@pytest.mark.dear("blip2-opt", "gemma3", "prefix-gptj", "qwen3-vl")
@torch.no_grad()
def test_adding_noise_at_a_site_equals_the_same_edit_by_a_raw_torch_hook(model, plain, batches):
    inputs, real = batches["mixed"], batches["mixed"].mask("all")
    unedited, seen = raw.read(plain, inputs, raw.names(plain))
    for name in seen:
        delta = raw.noise(seen[name])
        truth = raw.logits(plain, inputs, {name: lambda x, delta=delta: x + delta.view_as(x)})
        ours = model.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook, delta=delta: x + delta.view_as(x))])
        raw.same(ours[real], truth[real])
        raw.differs(truth[real], unedited[real])


@torch.no_grad()
def test_edits_at_many_sites_at_once_equal_the_same_edits_by_raw_torch_hooks(model, plain, batches):
    inputs, real = batches["mixed"], batches["mixed"].mask("all")
    names = [
        *(f"{p}blocks.{1 - bool(p)}.mlp.hook_post" for p in raw.prefixes(plain)),
        "blocks.1.attn.hook_z",
        "projector.hook_out",
    ]
    unedited, seen = raw.read(plain, inputs, names)
    keep = {name: torch.rand(seen[name].shape, generator=torch.Generator().manual_seed(2)) < 0.5 for name in names}
    truth = raw.logits(plain, inputs, {name: lambda x, name=name: x * keep[name].view_as(x) for name in names})
    edits = [(name, lambda x, hook: x * keep[hook.name].view_as(x)) for name in names]
    reads = [(name, hooks.feed(lambda x, hook: None)) for name in ("*.hook_pattern", "blocks.*.hook_resid_*")]
    ours = model.run_with_hooks(inputs, fwd_hooks=[*reads, *edits])
    raw.same(ours[real], truth[real])
    raw.differs(truth[real], unedited[real])


@torch.no_grad()
def test_the_stream_after_a_block_is_the_stream_before_it_plus_attention_plus_mlp(model, plain, batches):
    inputs = batches["mixed"]
    for prefix in raw.prefixes(plain):
        _, cache = model.run_with_cache(inputs, f"{prefix}blocks.*.hook_*_*")
        for layer in range(len(model.widths[prefix.removesuffix(".") or "language"])):
            pre, post, attn, mlp = (
                cache[f"{prefix}blocks.{layer}.hook_{part}"] for part in ("resid_pre", "resid_post", "attn_out", "mlp_out")
            )
            if prefix or not raw.side_by_side(plain):
                raw.same(pre + attn, cache[f"{prefix}blocks.{layer}.hook_resid_mid"], relative=1e-6)
            raw.same(pre + attn + mlp, post, relative=1e-6)


def has_no_middle(model, plain, inputs, name):
    """Return whether `name` is a point between attention and MLP where they stand side by side: it is then unknown."""
    if name.startswith("blocks") and name.endswith("mid") and raw.side_by_side(plain):
        with pytest.raises(UnknownHook, match="no hook point"):
            model.run_with_hooks(inputs, fwd_hooks=[(name, hooks.add(1.0))])
        return True
    return False


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid", "TOWER.blocks.0.hook_resid_mid"])
@torch.no_grad()
def test_what_is_added_before_a_sublayer_stays_in_the_stream(model, plain, batches, name):
    inputs, name = batches["mixed"], name.replace("TOWER.", raw.prefixes(plain)[-1])
    if has_no_middle(model, plain, inputs, name):
        return
    block = name.rpartition(".")[0]
    names = [f"{block}.{part}" for part in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")]
    _, before = model.run_with_cache(inputs, name)
    delta = raw.noise(before[name])
    _, cache = model.run_with_cache(inputs, names, fwd_hooks=[(name, lambda x, hook: x + delta)])
    pre, attn, mlp, post = (cache[name] for name in names)
    raw.same(post - attn - mlp, pre if name.endswith("pre") else pre + delta, relative=1e-5)
    if name.endswith("pre"):
        raw.same(post - attn - mlp, before[name] + delta, relative=1e-5)


@pytest.mark.parametrize("name", ["blocks.0.hook_resid_mid", "blocks.1.hook_resid_mid", "TOWER.blocks.0.hook_resid_mid"])
@torch.no_grad()
def test_an_edit_at_resid_mid_reaches_the_mlp_and_the_skip_path(model, plain, batches, name):
    """The truth: the attention output is chosen so that stream plus attention is the edited middle of the block."""
    inputs, real = batches["mixed"], batches["mixed"].mask("all")
    name = name.replace("TOWER.", raw.prefixes(plain)[-1])
    if has_no_middle(model, plain, inputs, name):
        return
    before, stream = name.replace("resid_mid", "resid_pre"), []
    width = raw.read(plain, inputs, [before])[1][before].shape[-1]
    gate = torch.rand(width, generator=torch.Generator().manual_seed(3))

    def change(middle):
        return torch.tanh(middle * gate)

    unedited = raw.logits(plain, inputs)
    truth = raw.logits(
        plain,
        inputs,
        {before: stream.append, name.replace("resid_mid", "attn_out"): lambda out: change(stream[-1] + out) - stream[-1]},
    )
    ours = model.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: change(x))])
    raw.same(ours[real], truth[real])
    raw.differs(truth[real], unedited[real])
    doubled = [(name, lambda x, hook: change(x)), (name, hooks.feed(lambda x, hook: None))]
    raw.same(model.run_with_hooks(inputs, fwd_hooks=doubled)[real], truth[real])


@torch.no_grad()
def test_two_edits_at_resid_mid_act_one_after_the_other(model, plain, batches):
    inputs, real = batches["one"], batches["one"].mask("all")
    if has_no_middle(model, plain, inputs, "blocks.1.hook_resid_mid"):
        return
    stream = []
    truth = raw.logits(
        plain,
        inputs,
        {
            "blocks.1.hook_resid_pre": stream.append,
            "blocks.1.hook_attn_out": lambda out: (stream[-1] + out + 0.5) * 2 - stream[-1],
        },
    )
    edits = [("blocks.1.hook_resid_mid", hooks.add(0.5)), ("blocks.1.hook_resid_mid", hooks.scale(2.0))]
    raw.same(model.run_with_hooks(inputs, fwd_hooks=edits)[real], truth[real])


# ---------------------------------------------------------------- gradients


def test_gradients_equal_those_that_raw_hooks_retain(model, plain, batches):
    inputs = batches["mixed"]
    truth_logits, seen = raw.read(plain, inputs, raw.names(plain), retain=True)
    truth_logits[:, -1].square().sum().backward()
    ours = {}
    keep = [(name, lambda grad, hook: ours.__setitem__(hook.name, grad.clone())) for name in seen]
    with leaves_no_hooks(model):
        logits = model.run_with_hooks(inputs, bwd_hooks=keep)
        assert not ours
    logits[:, -1].square().sum().backward()
    for name in seen:
        assert seen[name].grad.abs().max() > 0, name
        raw.same(ours[name].reshape(seen[name].shape), seen[name].grad)


def test_a_read_hook_under_gradients_hands_out_the_live_tensor(model, plain, batches):
    inputs, kept = batches["one"], {}
    names = ["blocks.1.attn.hook_z", "blocks.1.mlp.hook_post", "blocks.1.hook_resid_pre", "projector.hook_out"]
    truth_logits, seen = raw.read(plain, inputs, names, retain=True)
    truth_logits[:, -1].sum().backward()

    def keep(activation, hook):
        activation.retain_grad()
        kept[hook.name] = activation

    logits = model.run_with_hooks(inputs, fwd_hooks=[(name, hooks.feed(keep)) for name in names])
    logits[:, -1].sum().backward()
    for name in names:
        raw.same(kept[name].grad.reshape(seen[name].shape), seen[name].grad)


# ---------------------------------------------------------------- generation


@torch.no_grad()
def test_hooks_act_at_prefill_and_at_every_step(model, plain, batches):
    inputs, shapes = batches["mixed"], []
    _, seen = raw.read(plain, inputs, ["blocks.1.mlp.hook_post"])
    push = torch.randn(seen["blocks.1.mlp.hook_post"].shape[-1], generator=torch.Generator().manual_seed(4)) * 3
    options = dict(max_new_tokens=5, min_new_tokens=5)
    with raw.edited(plain, {"blocks.1.mlp.hook_post": lambda x: x + push}):
        truth = raw.generate(plain, inputs, pad_token_id=model.tokenizer.pad_token_id, **options)
    look = hooks.feed(lambda x, hook: shapes.append(x.shape[1]))
    edits = [("blocks.1.mlp.hook_post", hooks.add(push)), ("blocks.1.mlp.hook_post", look)]
    with leaves_no_hooks(model):
        ours = model.generate(inputs, fwd_hooks=edits, **options)
    assert torch.equal(ours.tokens, truth)
    assert not torch.equal(truth, model.generate(inputs, **options).tokens)
    assert shapes == [inputs.tokens.shape[1], 1, 1, 1, 1]


@torch.no_grad()
def test_a_where_mask_acts_at_prefill_only(model, plain, batches):
    inputs = batches["mixed"]
    where, length = inputs.mask("all"), inputs.tokens.shape[1]
    _, seen = raw.read(plain, inputs, ["blocks.1.hook_resid_post"])
    push = raw.noise(seen["blocks.1.hook_resid_post"][0, 0], scale=4.0)
    options = dict(max_new_tokens=5, min_new_tokens=5)

    def change(stream):
        return torch.where(where[..., None], stream + push, stream) if stream.shape[1] == length else stream

    with raw.edited(plain, {"blocks.1.hook_resid_post": change}):
        truth = raw.generate(plain, inputs, pad_token_id=model.tokenizer.pad_token_id, **options)
    edit = [("blocks.1.hook_resid_post", hooks.add(push, where=where))]
    assert torch.equal(model.generate(inputs, fwd_hooks=edit, **options).tokens, truth)


# ---------------------------------------------------------------- hooks go away


def explode(activation, hook):
    raise RuntimeError("the hook failed")


@pytest.mark.parametrize(
    "name", ["blocks.1.hook_resid_mid", "blocks.1.attn.hook_pattern", "vision.blocks.0.attn.hook_z", "projector.hook_out"]
)
def test_no_hook_survives_a_run_that_raised(small, name):
    inputs = ask(small, "mixed")
    harmless = ("blocks.1.*", hooks.feed(lambda x, hook: None))
    with leaves_no_hooks(small):
        with pytest.raises(RuntimeError, match="the hook failed"):
            small.run_with_hooks(inputs, fwd_hooks=[harmless, (name, explode)])
        with pytest.raises(RuntimeError, match="the hook failed"):
            small.run_with_cache(inputs, fwd_hooks=[(name, explode)])
        with pytest.raises(RuntimeError, match="the hook failed"):
            small.generate(inputs, fwd_hooks=[harmless, (name, explode)])
        with (
            pytest.raises(ZeroDivisionError),
            small.hooks(fwd_hooks=[harmless], bwd_hooks=[("blocks.*.attn.hook_z", explode)]),
        ):
            _ = 1 / 0
        with pytest.raises(KeyError):
            small.run_with_hooks(inputs, fwd_hooks=[harmless, ("blocks.0.no_such_point", explode)])
    assert small._watchers == []


@torch.no_grad()
def test_no_hook_survives_a_run_that_raised_in_any_family(model, plain, batches):
    inputs = batches["mixed"]
    before = model(inputs)
    with leaves_no_hooks(model):
        for name in (f"{raw.prefixes(plain)[-1]}blocks.0.mlp.hook_post", "blocks.1.attn.hook_pattern"):
            for run in (model.run_with_hooks, model.generate):
                with pytest.raises(RuntimeError, match="the hook failed"):
                    run(inputs, fwd_hooks=[(name, explode)])
    assert model._watchers == [] and STEP.get() == 0
    assert torch.equal(model(inputs), before)


def test_no_hook_survives_a_normal_run(small):
    inputs = ask(small, "one")
    before, first = hook_count(small), small(inputs)
    everything = [("blocks.*.hook_*", hooks.feed(lambda x, hook: None))]
    small.run_with_hooks(inputs, fwd_hooks=everything, bwd_hooks=[("blocks.*.attn.hook_z", lambda g, hook: None)])
    small.run_with_cache(inputs)
    small.generate(inputs, max_new_tokens=2, fwd_hooks=everything)
    with small.hooks(fwd_hooks=[("projector.hook_out", hooks.replace(0.0))]):
        assert hook_count(small) > before
        small(inputs)
    assert hook_count(small) == before
    torch.testing.assert_close(small(inputs), first)


def test_hooks_in_a_with_block_act_on_every_run_inside_it(small):
    inputs = ask(small, "one")
    edit = [("projector.hook_out", hooks.replace(0.0))]
    once = small.run_with_hooks(inputs, fwd_hooks=edit)
    with small.hooks(fwd_hooks=edit) as same_model:
        assert same_model is small
        torch.testing.assert_close(small(inputs), once)
        torch.testing.assert_close(small.run_with_cache(inputs, "blocks.0.*")[0], once)
    raw.differs(small(inputs), once)


# ---------------------------------------------------------------- what run_with_cache returns


@torch.no_grad()
def test_activations_are_seen_after_the_edits_of_the_same_run(small):
    inputs = ask(small, "one")
    edit = [("blocks.1.mlp.hook_post", hooks.replace(0.25))]
    _, cache = small.run_with_cache(inputs, "blocks.1.mlp.hook_post", fwd_hooks=edit)
    assert (cache["blocks.1.mlp.hook_post"] == 0.25).all()


def test_cached_activations_are_detached_and_logits_are_not(small):
    logits, cache = small.run_with_cache(ask(small, "one"), ["blocks.*.hook_resid_post", "*.hook_pattern"])
    assert logits.requires_grad
    assert not any(activation.requires_grad for activation in cache.values())


@torch.no_grad()
def test_names_are_chosen_by_name_glob_list_or_predicate_and_none_leaves_out_attention_matrices(small):
    inputs, depth = ask(small, "one"), small.cfg.n_layers

    def names(chosen):
        return set(small.run_with_cache(inputs, chosen)[1].keys())

    assert names("blocks.1.hook_resid_pre") == {"blocks.1.hook_resid_pre"}
    posts = {f"blocks.{layer}.mlp.hook_post" for layer in range(depth)}
    assert names("blocks.*.mlp.hook_post") == posts
    assert names(["blocks.*.mlp.hook_post", "projector.hook_out"]) == posts | {"projector.hook_out"}
    assert names(lambda name: name.endswith("mlp.hook_post") and name.startswith("blocks.")) == posts
    endings = ("hook_pattern", "hook_attn_scores", *BESIDE)
    matrices = {name for name in small.hook_names if name.endswith(endings)}
    assert names(None) == set(small.hook_names) - matrices
    assert len(matrices) == 5 * (depth + 3)


# ---------------------------------------------------------------- weights, identity, loading


@torch.no_grad()
def test_weights_and_widths_are_the_plain_models_own(model, plain):
    posts = [name for name in raw.table(plain).SITES if name.endswith(".hook_post")]
    assert set(model.widths) == {module_of(name.format(l=0)) for name in posts}
    for name in posts:
        module = module_of(name.format(l=0))
        for layer, width in enumerate(model.widths[module]):
            weight = raw.weight(plain, name.format(l=layer))
            assert torch.equal(model.W_out(layer, module), weight) and width == len(weight)
        with pytest.raises(KeyError, match="no neurons"):
            model.W_out(len(model.widths[module]), module)
    assert torch.equal(model.W_U, plain.get_output_embeddings().weight.T)
    assert torch.equal(model.W_E, plain.get_input_embeddings().weight)
    with pytest.raises(KeyError, match="no neurons"):
        model.W_out(0, "retina")


@torch.no_grad()
def test_the_activation_function_makes_of_what_enters_the_neurons_what_leaves_them(model, batches):
    sites = (".hook_pre", ".hook_pre_linear", ".hook_post")
    _, cache = model.run_with_cache(batches["one"], lambda name: name.endswith(sites))
    for module, layer in [(module, layer) for module, widths in model.widths.items() for layer in range(len(widths))]:
        gate_act = model.act(layer, module)(cache[neuron_hook(module, layer, "pre")])
        linear = neuron_hook(module, layer, "pre_linear")
        assert model.is_gated(layer, module) == (linear in cache)
        raw.same(gate_act * cache[linear] if linear in cache else gate_act, cache[neuron_hook(module, layer, "post")])
    for ask_for in (model.act, model.is_gated):
        with pytest.raises(KeyError, match="no neurons"):
            ask_for(99)


def test_an_mlp_without_one_activation_function_is_refused(small_folder):
    model = HookedMLLM.from_pretrained(small_folder, device="cpu")
    model.hf_model.model.language_model.layers[1].mlp.act_fn = torch.nn.Identity()
    model.act(0)
    with pytest.raises(UnsupportedModel, match="one activation function beside"):
        model.act(1)


@torch.no_grad()
def test_unembedding_the_last_stream_is_what_the_model_predicts(model, plain, batches):
    inputs = batches["mixed"]
    logits, seen = raw.read(plain, inputs, ["ln_final.hook_in"])
    raw.same(model.unembed(seen["ln_final.hook_in"]), logits)


def test_one_changed_weight_changes_the_identity_and_nothing_else_does(small_folder):
    one, other = (HookedMLLM.from_pretrained(small_folder, device="cpu") for _ in range(2))
    before = one.identity()
    assert before == other.identity()
    one(ask(one, "one"))
    assert one.identity() == before
    weight = one.hf_model.model.language_model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight[3, 5] += 1e-3
    assert one.identity()["weights"] != before["weights"]
    with torch.no_grad():
        weight[3, 5] = other.hf_model.model.language_model.layers[1].mlp.down_proj.weight[3, 5]
    assert one.identity() == before


def test_swapping_two_weights_changes_the_identity(small_folder):
    model = HookedMLLM.from_pretrained(small_folder, device="cpu")
    before, weight = model.identity()["weights"], model.hf_model.model.language_model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight[0, 1], weight[0, 2] = weight[0, 2].clone(), weight[0, 1].clone()
    assert model.identity()["weights"] != before


def test_loading_a_folder_needs_no_network(small_folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = HookedMLLM.from_pretrained(small_folder)
    assert model(ask(model, "one")).isfinite().all()


def test_loading_leaves_the_tokenizers_padding_side_as_it_was(small, small_folder):
    from transformers import AutoProcessor

    assert small.tokenizer.padding_side == AutoProcessor.from_pretrained(small_folder).tokenizer.padding_side


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder"):
        HookedMLLM.from_pretrained(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="no model folder"):
        HookedMLLM.from_pretrained("./missing")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        HookedMLLM.from_pretrained(tmp_path)


def test_an_unknown_architecture_is_refused_by_name(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="'bert'"):
        HookedMLLM.from_pretrained(tmp_path)


def test_a_word_is_its_first_token_without_special_tokens(small):
    assert small.to_token("red") == small.tokenizer.convert_tokens_to_ids("red")
    assert small.to_token("red car") == small.tokenizer.convert_tokens_to_ids("red")
    for word in ("", "zyzzyva"):
        with pytest.raises(ValueError, match="has no token"):
            small.to_token(word)


def test_a_model_in_memory_needs_no_folder_and_its_tokenizer_stays_as_it_was():
    hf_model, processor = FAMILIES["llava-siglip-qwen2"]()
    words = processor.tokenizer
    before = dict(words.special_tokens_map), words.padding_side, len(words), words("a red car")["input_ids"]
    made = HookedMLLM(hf_model, processor)
    assert made.bridge.tokenizer is words
    assert (dict(words.special_tokens_map), words.padding_side, len(words), words("a red car")["input_ids"]) == before
    assert made.bridge.to_tokens("a red car")[0].tolist() == before[3]


def test_an_id_without_a_token_is_shown_by_its_number(small):
    known = small.to_token("car")
    assert small.to_str_tokens(torch.tensor([known, 10_000])) == ["car", "<10000>"]


@pytest.mark.dear
@torch.no_grad()
def test_the_next_logits_are_the_last_positions_and_no_other_position_is_unembedded(model, batches):
    inputs, widths = batches["mixed"], []
    head = model.bridge.unembed.original_component
    handle = head.register_forward_hook(lambda module, args, out: widths.append(args[0].shape[1]))
    found = model.next_logits(inputs)
    handle.remove()
    truth = model(inputs)[:, -1]
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5 * truth.abs().max().item())
    assert widths == [1] and not head._forward_pre_hooks


def test_hooks_edit_the_next_logits_and_an_error_leaves_nothing_behind(small):
    inputs, off = ask(small, "one"), [("blocks.1.mlp.hook_post", hooks.replace(0.0))]
    with torch.no_grad():
        edited = small.run_with_hooks(inputs, fwd_hooks=off)[:, -1]
        torch.testing.assert_close(small.next_logits(inputs, fwd_hooks=off), edited)
    with pytest.raises(RuntimeError, match="the hook failed"):
        small.next_logits(inputs, fwd_hooks=[("blocks.0.mlp.hook_post", explode)])
    assert not small.bridge.unembed.original_component._forward_pre_hooks
