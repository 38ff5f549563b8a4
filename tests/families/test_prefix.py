"""Prefix models: a language model that has never seen a picture says what it says of the same embeddings, given by hand."""

import copy

import pytest
import raw
import torch
from support import ask, load, picture, unhooked
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BeitConfig,
    BeitModel,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from mmlens import HookedMLLM, hooks
from mmlens.families import UnsupportedModel, family_of, prefix
from mmlens.families.prefix_model import PrefixConfig, PrefixModel, PrefixProcessor
from mmlens.organisms import CHECKPOINTS, pictoworld
from mmlens.testing import FAMILIES, tiny

NAMES = ("prefix-gptj", "prefix-gpt2", "prefix-opt", "prefix-llama")


@pytest.fixture(scope="module", params=NAMES)
def case(request, tmp_path_factory):
    """A hooked prefix model, the same weights left plain, and with the attention that is written out in raw.py."""
    folder = tiny(request.param, tmp_path_factory.mktemp(request.param))
    reference = unhooked(folder, attn_implementation=raw.REFERENCE)
    raw.route(reference)
    return load(folder), unhooked(folder), reference


def by_hand(plain, inputs):
    """Return what the language model is given, put together here: token embeddings, and projected tower features."""
    tower, layer = plain.vision_tower, plain.config.feature_layer
    outputs = tower(inputs.tower["pixel_values"], output_hidden_states=True)
    features = outputs.last_hidden_state if layer is None else outputs.hidden_states[layer]
    if plain.config.vision_config.model_type != "siglip_vision_model":
        features = features[:, 1:]
    prefix = iter((features @ plain.projector.weight.T + plain.projector.bias).flatten(0, 1))
    words = plain.language_model.get_input_embeddings().weight
    rows = [
        [next(prefix) if token == plain.config.image_token_id else words[token] for token in row] for row in inputs.tokens
    ]
    given = {"inputs_embeds": torch.stack([torch.stack(row) for row in rows]), "attention_mask": inputs.attention_mask}
    return given, {"position_ids": (inputs.attention_mask.cumsum(-1) - 1).clamp(min=0)}


@pytest.mark.parametrize("kind", ["one", "padded", "mixed", "two"])
@torch.no_grad()
def test_logits_and_generation_are_the_language_models_own_of_embeddings_put_together_by_hand(case, kind):
    model, plain, _ = case
    inputs, real = ask(model, kind), ask(model, kind).mask("all")
    given, positions = by_hand(plain, inputs)
    truth = plain.language_model(**given, **positions)
    raw.same(model(inputs)[real], truth.logits[real])
    raw.same(plain(**inputs.kwargs()).logits[real], truth.logits[real])
    options = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=model.tokenizer.pad_token_id)
    ours = model.generate(inputs, max_new_tokens=6, min_new_tokens=6).tokens
    assert torch.equal(ours[:, inputs.tokens.shape[1] :], plain.language_model.generate(**given, **options))
    assert torch.equal(ours[:, : inputs.tokens.shape[1]], inputs.tokens)


@torch.no_grad()
def test_what_enters_block_0_is_the_prefix_and_the_words_and_where_it_has_them_learned_positions(case):
    model, plain, _ = case
    inputs = ask(model, "mixed")
    given, positions = by_hand(plain, inputs)
    _, cache = model.run_with_cache(inputs, "blocks.0.hook_resid_pre")
    truth, real = given["inputs_embeds"], inputs.mask("all")
    learned = {"gpt2": "transformer.wpe", "opt": "model.decoder.embed_positions"}.get(plain.config.text_config.model_type)
    if learned:
        offset = 2 if "decoder" in learned else 0
        truth = truth + plain.language_model.get_submodule(learned).weight[positions["position_ids"] + offset]
    raw.same(cache["blocks.0.hook_resid_pre"][real], truth[real])


@torch.no_grad()
def test_every_site_reads_and_edits_as_a_raw_torch_hook_does(case):
    model, plain, _ = case
    inputs, real = ask(model, "mixed"), ask(model, "mixed").mask("all")
    unedited, seen = raw.read(plain, inputs, raw.names(plain))
    _, cache = model.run_with_cache(inputs, list(seen))
    for name, truth in seen.items():
        ours = cache[name][real] if name.startswith("blocks") else cache[name]
        theirs = truth[real] if name.startswith("blocks") else truth
        if not name.startswith(("hook_unembed", "unembed", "ln_final", "hook_embed")):
            raw.same(ours.reshape(theirs.shape), theirs)
        delta = raw.noise(truth)
        edited = raw.logits(plain, inputs, {name: lambda x, delta=delta: x + delta.view_as(x)})
        ours = model.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook, delta=delta: x + delta.view_as(x))])
        raw.same(ours[real], edited[real])
        raw.differs(edited[real], unedited[real])


@torch.no_grad()
def test_patterns_and_scores_are_read_and_edited_as_in_a_reference_attention(case):
    model, _, reference = case
    inputs, real = ask(model, "mixed"), ask(model, "mixed").mask("all")
    names = raw.matrices(reference)
    _, cache = model.run_with_cache(inputs, names)
    unedited, truth = raw.attention_read(reference, inputs, names)
    for name in names:
        rows = real[:, None, :, None] if name.startswith("blocks") else torch.ones(())
        visible = truth[name] > torch.finfo(torch.float32).min / 2
        raw.same((cache[name] * rows)[visible], (truth[name] * rows)[visible])
        weights = torch.rand(truth[name].shape, generator=torch.Generator().manual_seed(1))

        def change(matrix, weights=weights):
            hidden = matrix < torch.finfo(matrix.dtype).min / 2
            return torch.where(hidden, matrix, matrix * weights)

        ours = model.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook, change=change: change(x))])
        theirs = raw.attention_logits(reference, inputs, {name: change})
        raw.same(ours[real], theirs[real])
        raw.differs(theirs[real], unedited[real], by=1e-4)


@torch.no_grad()
def test_the_stream_is_a_sum_and_components_and_the_constant_add_up_to_the_logits(case):
    model, plain, _ = case
    inputs = ask(model, "mixed")
    _, cache = model.run_with_cache(inputs)
    for block in [f"{tower}blocks.{layer}" for tower in ("", "vision.") for layer in range(3)]:
        pre, attn, mlp, post = (cache[f"{block}.hook_{part}"] for part in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
        raw.same(pre + attn + mlp, post, relative=1e-5)
    real, token = inputs.mask("all"), 7
    truth = raw.logits(plain, inputs)[real][:, token]
    for stack in (cache.decompose_resid(), cache.get_full_resid_decomposition(expand_neurons=True)):
        raw.same(cache.logit_attrs(stack, token).sum(0)[real] + model.b_U[token], truth)


def test_every_point_fires_and_noise_there_changes_the_logits(case):
    model, _, _ = case
    inputs, fired = ask(model, "one"), set()

    def shake(x, hook):
        return x + 0.5 * raw.noise(x) if x.is_floating_point() else (x + 1) % model.cfg.d_vocab

    with torch.no_grad():
        before = model.run_with_hooks(
            inputs, fwd_hooks=[(name, lambda x, hook: fired.add(hook.name)) for name in model.hook_names]
        )
        assert fired == set(model.hook_names)
        for name in model.hook_names:
            if model.points.promise(name) == "live" and "hook_attn_scores" not in name:
                shaken = model.run_with_hooks(inputs, fwd_hooks=[(name, shake)])
                assert (shaken - before).abs().max() > 1e-5, name


def test_the_vocabulary_stays_as_it_was_and_the_placeholder_lies_behind_it(case):
    model, plain, _ = case
    rows = plain.get_input_embeddings().weight.shape[0]
    assert rows == plain.config.text_config.vocab_size == len(model.tokenizer) - 1
    assert plain.config.image_token_id == model.processor.image_token_id == rows
    assert model.tokenizer.convert_ids_to_tokens(rows) == "<image>"
    assert model.tokenizer.decode([5, rows], skip_special_tokens=True) == model.tokenizer.decode([5])


# ---------------------------------------------------------------- one folder


def test_a_folder_is_loaded_by_transformers_auto_classes_without_remote_code(tmp_path):
    folder = tiny("prefix-gpt2", tmp_path)
    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)
    assert type(processor) is PrefixProcessor and type(model) is PrefixModel
    assert not list(folder.glob("*.py")) and (folder / "model.safetensors").is_file()
    batch = processor(images=[picture(0), picture(1)], text=["<image>a", "the <image>"], padding=True, return_tensors="pt")
    assert (batch["input_ids"] == processor.image_token_id).sum() == 50 and batch["pixel_values"].shape[0] == 2
    assert model(**batch).logits.isfinite().all()
    with pytest.raises(ValueError, match=r"got 24 placeholders and 2 pictures of 25"):
        model(batch["input_ids"].index_fill(1, torch.tensor([5]), 7)[:1], batch["pixel_values"])
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()


def test_the_image_goes_in_front_and_a_tower_that_keeps_its_class_token_has_one_position_more(tmp_path):
    model = load(tiny("prefix-gpt2", tmp_path))
    spans = [span.modality for span in model.to_inputs("a red car", images=picture(0)).spans(0)]
    assert spans == ["special", "image", "text"]
    config = copy.deepcopy(model.hf_model.config)
    config.drop_cls = False
    model.hf_model.config.drop_cls, model.processor.keeps_cls = False, True
    inputs = model.to_inputs("a", images=picture(0))
    assert inputs.mask("image").sum() == 26 and inputs.grids[0] == (None,)
    assert model(inputs).isfinite().all()


# ---------------------------------------------------------------- from parts


def parts(seed=0):
    """Return a small GPT-2 and a BEiT with a pooler, as transformers makes them, a map between them, and processors."""
    torch.manual_seed(seed)
    text = GPT2LMHeadModel(GPT2Config(n_embd=32, n_head=4, n_layer=2, vocab_size=44, n_positions=64))
    tower = BeitModel(
        BeitConfig(
            hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=30, patch_size=6
        )
    )
    _, processor = FAMILIES["prefix-gptj"]()
    rest = dict(tokenizer=processor.tokenizer, image_processor=processor.image_processor)
    return text.eval(), tower.eval(), torch.nn.Linear(24, 32), rest


@torch.no_grad()
def test_a_model_of_loaded_parts_of_folders_and_of_weights_alone_is_the_same(tmp_path):
    text, tower, linear, rest = parts()
    for name, part in dict(text=text, tower=tower, **rest).items():
        part.save_pretrained(tmp_path / name)
    folders = {name: tmp_path / name for name in ("tokenizer", "image_processor")}
    made = [
        HookedMLLM.from_parts(tmp_path / "text", tmp_path / "tower", linear, **folders, device="cpu"),
        HookedMLLM.from_parts(tmp_path / "text", tmp_path / "tower", (linear.weight, linear.bias), **folders, device="cpu"),
        HookedMLLM.from_parts(text, tower, linear, **rest, device="cpu"),
    ]
    logits = [model(model.to_inputs("a red car", images=picture(0))) for model in made]
    raw.same(logits[0], logits[2], relative=0)
    raw.same(logits[1], logits[2], relative=0)
    made[2].save_pretrained(tmp_path / "whole")
    again = HookedMLLM.from_pretrained(tmp_path / "whole", device="cpu")
    raw.same(again(again.to_inputs("a red car", images=picture(0))), logits[2], relative=0)
    assert made[2].hf_model.vision_tower.pooler is None
    bare = HookedMLLM.from_parts(tmp_path / "text", tmp_path / "tower", linear.weight, **folders, device="cpu")
    assert not torch.allclose(
        bare(bare.to_inputs("a", images=picture(0))), made[0](made[0].to_inputs("a", images=picture(0)))
    )


def test_parts_that_do_not_fit_are_refused():
    text, tower, linear, rest = parts()
    for wrong, says in [
        (torch.nn.Linear(25, 32), r"\[32, 24\].*got \[32, 25\]"),
        (linear.weight.T, r"got \[24, 32\]"),
        ((linear.weight, torch.zeros(24)), r"and \[24\]"),
    ]:
        with pytest.raises(ValueError, match=says):
            HookedMLLM.from_parts(text, tower, wrong, **rest)
    with pytest.raises(UnsupportedModel, match=r"feature_layer is None .* 3 hidden states, got 7"):
        HookedMLLM.from_parts(text, tower, linear, **rest, feature_layer=7)
    with pytest.raises(UnsupportedModel, match=r"vision_config\.model_type"):
        HookedMLLM.from_parts(text, text, linear, **rest)
    size = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3)
    clip = CLIPModel(CLIPConfig(vision_config=dict(**size, image_size=30, patch_size=6), text_config=size))
    assert prefix.assemble(text, clip, linear, **rest)[0].vision_tower is clip.vision_model


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("prefix-opt", "text_config.do_layer_norm_before", False),
        ("prefix-opt", "text_config.word_embed_proj_dim", 16),
        ("prefix-gpt2", "text_config.add_cross_attention", True),
        ("prefix-gpt2", "text_config.model_type", "bloom"),
        ("prefix-gpt2", "vision_config.model_type", "swin"),
        ("prefix-gpt2", "vision_config.patch_size", [6, 6]),
        ("prefix-llama", "drop_cls", True),
        ("prefix-gpt2", "feature_layer", 9),
    ],
)
def test_a_setting_that_is_not_understood_is_refused_by_name(name, setting, value):
    config = FAMILIES[name]()[0].config
    prefix.check(config)
    owner, _, inner = setting.rpartition(".")
    object.__setattr__(getattr(config, owner) if owner else config, inner, value)
    with pytest.raises(UnsupportedModel, match=inner):
        prefix.check(config)


def test_models_that_are_asked_for_and_not_hooked_say_what_would_be_needed():
    for model_type, says in [("mplug_owl2", "hub repository"), ("mllama", "cross-attention"), ("florence2", "two")]:
        with pytest.raises(UnsupportedModel, match=f"{model_type}.*{says}"):
            family_of(model_type)


@torch.no_grad()
def test_pictoworld_of_its_parts_is_pictoworld_frozen():
    whole = HookedMLLM.from_pretrained("pictoworld-frozen", device="cpu")
    made = HookedMLLM.from_parts(**pictoworld.parts(), device="cpu", name="pictoworld-frozen of its parts")
    scene = pictoworld.scenes("held_out", n=1)[0]
    texts = [scene.questions[0].text, "a red"]
    one, other = (model.to_inputs(texts, images=[scene.image, None]) for model in (whole, made))
    assert torch.equal(one.tokens, other.tokens) and one.grids == other.grids
    names = ["blocks.*.mlp.hook_post", "blocks.*.hook_resid_post", "vision.blocks.*.mlp.hook_post", "projector.hook_out"]
    (logits, cache), (ours, own) = whole.run_with_cache(one, names), made.run_with_cache(other, names)
    raw.same(ours, logits, relative=1e-5)
    assert set(own) == set(cache) and len(own) == 15
    for name in own:
        raw.same(own[name], cache[name], relative=1e-5)
    edit = [("blocks.2.mlp.hook_post", hooks.replace(0.0, units=[3, 5, 8])), ("projector.hook_out", hooks.scale(0.5))]
    raw.same(made.run_with_hooks(other, fwd_hooks=edit), whole.run_with_hooks(one, fwd_hooks=edit), relative=1e-5)
    assert made.generate(other).text == whole.generate(one).text
    assert {name: made.widths[name] for name in ("language", "vision")} == {
        name: whole.widths[name] for name in ("language", "vision")
    }
    assert (CHECKPOINTS["pictoworld-frozen"] / "model.safetensors").is_file()


# ---------------------------------------------------------------- LiMBeR's files


def test_a_published_projection_is_a_linear_map(tmp_path):
    linear = torch.nn.Linear(24, 32).to(torch.bfloat16)
    torch.save(linear.state_dict(), tmp_path / "proj.ckpt")
    read = prefix.read_limber(tmp_path / "proj.ckpt", d_model=32, d_tower=24)
    assert type(read) is torch.nn.Linear and (read.in_features, read.out_features) == (24, 32)
    assert torch.equal(read.weight, linear.weight) and torch.equal(read.bias, linear.bias)
    torch.save({f"image_prefix.proj.{name}": value for name, value in linear.state_dict().items()}, tmp_path / "named.ckpt")
    assert torch.equal(prefix.read_limber(tmp_path / "named.ckpt").weight, linear.weight)
    text, tower, _, rest = parts()
    model = HookedMLLM.from_parts(text, tower, read, **rest, device="cpu")
    assert model.hf_model.projector.weight.dtype == torch.float32
    assert model(model.to_inputs("a picture of", images=picture(0))).isfinite().all()


def test_a_file_that_is_no_projection_is_refused_and_nothing_in_it_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="no LiMBeR projection"):
        prefix.read_limber(tmp_path / "missing.ckpt")
    linear = torch.nn.Linear(4, 3)
    for held, says in [
        (torch.nn.Linear(4, 3), "tensors alone"),
        ({"weight": linear.weight}, "holds weight"),
        ({"weight": linear.weight.T.contiguous(), "bias": linear.bias}, r"got \[4, 3\] and \[3\]"),
        ([1, 2], "holds list"),
    ]:
        torch.save(held, tmp_path / "proj.ckpt")
        with pytest.raises(ValueError, match=says):
            prefix.read_limber(tmp_path / "proj.ckpt")
    (tmp_path / "proj.ckpt").write_text("version https://git-lfs")
    with pytest.raises(ValueError, match="tensors alone"):
        prefix.read_limber(tmp_path / "proj.ckpt")
    torch.save(linear.state_dict(), tmp_path / "proj.ckpt")
    with pytest.raises(ValueError, match="maps 4 to 3 numbers, which is not d_model = 4096"):
        prefix.read_limber(tmp_path / "proj.ckpt", d_model=4096)


def test_the_default_configuration_is_limbers():
    config = PrefixConfig()
    assert (config.text_config.model_type, config.vision_config.model_type) == ("gptj", "beit")
    assert config.feature_layer is None and config.drop_cls and config.image_token_id == 50257
