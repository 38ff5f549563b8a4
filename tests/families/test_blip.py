"""BLIP-2 and InstructBLIP: what the Q-Former's points mean, what its two branches read, where images stand in a prompt."""

import copy

import pytest
import raw
import torch
from support import ask, leaves_no_hooks, load, picture
from transformer_lens import patching
from transformers import AutoProcessor, Blip2Config, InstructBlipConfig, LlamaConfig, OPTConfig, T5Config

from mmlens import HookedMLLM, hooks
from mmlens.families import UnsupportedModel, blip2, instructblip
from mmlens.liveness import InertHook
from mmlens.testing import tiny

BLIP = pytest.mark.parametrize("folder", ["instructblip-llama", "blip2-opt"], indirect=True)
INSTRUCT = pytest.mark.parametrize("folder", ["instructblip-llama"], indirect=True)
OPT = pytest.mark.parametrize("folder", ["blip2-opt"], indirect=True)


def published(language, **changes):
    """Return a configuration with the settings of Salesforce/blip2-opt-2.7b or Salesforce/instructblip-vicuna-7b."""
    if language == "opt":
        text = OPTConfig(hidden_size=2560, ffn_dim=10240, num_hidden_layers=32, num_attention_heads=32, vocab_size=50304)
        return Blip2Config(text_config=text, image_token_index=50265, **changes)
    text = LlamaConfig(vocab_size=32001, max_position_embeddings=2048)
    return InstructBlipConfig(text_config=text, image_token_index=32000, **changes)


# ---------------------------------------------------------------- which models


@pytest.mark.parametrize(("family", "language"), [(blip2, "opt"), (instructblip, "llama")])
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("text_config.model_type", "gpt2"),
        ("vision_config.model_type", "siglip_vision_model"),
        ("qformer_config.model_type", "bert"),
        ("qformer_config.chunk_size_feed_forward", 4),
        ("image_token_index", None),
    ],
)
def test_a_setting_that_is_not_understood_is_refused_by_name(family, language, setting, value):
    config = published(language)
    family.check(config)
    owner, _, name = setting.rpartition(".")
    object.__setattr__(getattr(config, owner) if owner else config, name, value)
    with pytest.raises(UnsupportedModel, match=name):
        family.check(config)


@pytest.mark.parametrize(
    "change",
    [
        dict(do_layer_norm_before=False),
        dict(word_embed_proj_dim=512),  # opt-350m
        dict(_remove_final_layer_norm=True),
        dict(layer_norm_elementwise_affine=False),
    ],
)
def test_an_opt_whose_blocks_are_built_otherwise_is_refused_by_name(change):
    config = published("opt")
    for name, value in change.items():
        object.__setattr__(config.text_config, name, value)
    with pytest.raises(UnsupportedModel, match=next(iter(change))):
        blip2.check(config)


def test_a_text_branch_that_would_never_run_is_refused():
    config = published("opt")
    config.qformer_config.use_qformer_text_input = True
    with pytest.raises(UnsupportedModel, match="use_qformer_text_input"):
        blip2.check(config)


@pytest.mark.parametrize(("family", "config"), [(blip2, Blip2Config), (instructblip, InstructBlipConfig)])
def test_an_encoder_decoder_is_refused_and_the_reason_given(family, config):
    with pytest.raises(UnsupportedModel, match=r"'t5', an encoder-decoder.*stream.*two streams would be needed"):
        family.check(config(text_config=T5Config(), image_token_index=32100))


@BLIP
def test_a_processor_that_marks_images_otherwise_than_the_model_looks_for_them_is_refused(folder, model):
    processor = AutoProcessor.from_pretrained(folder)
    model.family.settle(processor, model.hf_model.config)
    for name, value in [("num_query_tokens", None), ("num_query_tokens", 32), ("image_token", "<unk>")]:
        other = copy.copy(processor)
        setattr(other, name, value)
        with pytest.raises(UnsupportedModel, match="num_query_tokens" if name == "num_query_tokens" else "image token"):
            model.family.settle(other, model.hf_model.config)


# ---------------------------------------------------------------- inputs


@BLIP
def test_one_picture_is_encoded_as_transformers_own_processor_encodes_it(model):
    for text in ("what is in the picture ?", ""):
        truth = model.processor(text=text, images=picture(0), return_tensors="pt")
        inputs = model.to_inputs(text, images=picture(0))
        assert set(inputs.kwargs()) == set(truth)
        for name, value in inputs.kwargs().items():
            torch.testing.assert_close(value, truth[name], rtol=0, atol=0)
    assert ask(model, "text").tower == {}


@BLIP
def test_pictures_in_front_come_before_the_first_token_and_others_where_they_are_written(model):
    one, two, start = picture(0), picture(1), model.tokenizer.bos_token_id
    written = model.to_inputs("<image> <image>\nthe red car", images=[one, two])
    assert written.digest() == model.to_inputs("the red car", images=[one, two]).digest()
    queries = model.hf_model.config.num_query_tokens
    assert written.tokens[0, 2 * queries] == start
    inside = model.to_inputs("<image>the <image> red", images=[one, two])
    assert [(span.modality, len(span)) for span in inside.spans(0)] == [
        ("image", queries),
        ("special", 1),
        ("text", 1),
        ("image", queries),
        ("text", 1),
    ]
    assert inside.grids == ((None, None),)  # a query has no place


@INSTRUCT
def test_the_q_former_reads_the_words_of_its_row_with_each_picture(model):
    inputs = model.to_inputs(
        ["see <image> and <image>", "the", "what is at the left of the tree"],
        images=[[picture(0), picture(1)], None, picture(2)],
    )
    words = [model.processor.qformer_tokenizer(text)["input_ids"] for text in ("see and", "what is at the left of the tree")]
    ids, mask = inputs.tower["qformer_input_ids"], inputs.tower["qformer_attention_mask"]
    read = [row[seen.bool()].tolist() for row, seen in zip(ids, mask, strict=True)]
    assert read == [words[0], words[0], words[1]]
    _, cache = model.run_with_cache(inputs, ["qformer.blocks.0.*", "qformer_text.blocks.0.mlp.hook_post"])
    queries, longest = model.hf_model.config.num_query_tokens, ids.shape[1]
    assert cache["qformer.blocks.0.hook_resid_pre"].shape[:2] == (3, queries + longest)
    assert cache["qformer.blocks.0.hook_cross_attn_out"].shape[:2] == (3, queries)
    assert cache["qformer_text.blocks.0.mlp.hook_post"].shape[:2] == (3, longest)


@INSTRUCT
@torch.no_grad()
def test_another_instruction_makes_another_picture_of_the_same_pixels(model):
    one, other = (model.to_inputs(text, images=picture(0)) for text in ("the car", "what tree"))
    seen = [model.run_with_cache(inputs, "projector.hook_out")[1]["projector.hook_out"] for inputs in (one, other)]
    raw.differs(*seen, by=1e-2)


# ---------------------------------------------------------------- the Q-Former


@BLIP
@torch.no_grad()
def test_the_q_formers_stream_is_the_norm_of_the_stream_before_a_sublayer_plus_its_output(model, plain, batches):
    inputs, queries = batches["mixed"], model.hf_model.config.num_query_tokens
    _, cache = model.run_with_cache(inputs, ["qformer*.blocks.*", "qformer.hook_out", "projector.hook_in"])
    for layer in range(3):
        block, parts = plain.qformer.encoder.layer[layer], f"qformer.blocks.{layer}"

        def at(point, parts=parts):
            return cache[f"{parts}.hook_{point}"]

        middle = at("resid_mid")
        raw.same(middle, block.attention.output.LayerNorm(at("resid_pre") + at("attn_out")), relative=1e-6)
        asked, words = middle[:, :queries], middle[:, queries:]
        assert (f"{parts}.hook_cross_attn_out" in cache) == block.has_cross_attention == (layer % 2 == 0)
        if block.has_cross_attention:
            asked = block.crossattention.output.LayerNorm(asked + at("cross_attn_out"))
            raw.same(at("resid_mid_cross"), asked, relative=1e-6)
        raw.same(cache[f"{parts}.mlp.hook_in"], asked)
        after = block.output_query.LayerNorm(asked + at("mlp_out"))
        if words.shape[1]:
            own = block.output.LayerNorm(words + cache[f"qformer_text.blocks.{layer}.hook_mlp_out"])
            after = torch.cat([after, own], dim=1)
        raw.same(at("resid_post"), after, relative=1e-6)
        following = cache[f"qformer.blocks.{layer + 1}.hook_resid_pre"] if layer < 2 else cache["qformer.hook_out"]
        assert torch.equal(at("resid_post"), following)
    assert torch.equal(cache["projector.hook_in"], cache["qformer.hook_out"][:, :queries])


@BLIP
@torch.no_grad()
def test_an_edit_of_the_q_formers_stream_reaches_the_skip_path(model, plain, batches):
    """What the branch after it adds is held, so that only the skip path carries the edit."""
    inputs = batches["one"]
    points = ["qformer.blocks.1.hook_resid_mid", "qformer.blocks.0.hook_resid_mid_cross"]
    for name in points:
        block = name.rpartition(".")[0]
        after, out = f"{block}.hook_resid_post", f"{block}.hook_mlp_out"
        _, before = model.run_with_cache(inputs, [name, after, out])
        held = (out, hooks.replace(before[out]))
        edits = [(name, lambda x, hook: x + raw.noise(x)), held]
        _, cache = model.run_with_cache(inputs, after, fwd_hooks=edits)
        norm = plain.qformer.encoder.layer[int(block[-1])].output_query.LayerNorm
        count = before[out].shape[1]
        truth = norm((before[name] + raw.noise(before[name]))[:, :count] + before[out])
        raw.same(cache[after][:, :count], truth)
        raw.differs(cache[after], before[after], by=1e-2)


@BLIP
@torch.no_grad()
def test_a_query_sees_every_piece_of_the_picture_and_no_padding_among_the_words(model, batches):
    inputs, queries = batches["padded"], model.hf_model.config.num_query_tokens
    _, cache = model.run_with_cache(inputs, "qformer.blocks.*.*attn.hook_pattern")
    across, among = (cache[f"qformer.blocks.0.{attention}.hook_pattern"] for attention in ("cross_attn", "attn"))
    assert across.shape == (2, 2, queries, 5)  # two heads; four patches and the class token
    assert (across > 0).all()
    mask = inputs.tower.get("qformer_attention_mask", torch.zeros(2, 0))
    seen = torch.cat([torch.ones(2, queries), mask], dim=1).bool()
    assert torch.equal(among[:, 0, 0] > 0, seen)
    torch.testing.assert_close(among.sum(-1), torch.ones(among.shape[:3]))


@INSTRUCT
@torch.no_grad()
def test_what_the_last_text_branch_says_is_read_by_nothing(model, plain, batches):
    inputs = batches["one"]
    before = raw.logits(plain, inputs)
    assert torch.equal(raw.logits(plain, inputs, {"qformer_text.blocks.2.mlp.hook_post": lambda x: x * 0}), before)
    with leaves_no_hooks(model), pytest.raises(InertHook, match=r"projector\.hook_in"):
        model.run_with_hooks(inputs, fwd_hooks=[("qformer_text.blocks.2.mlp.hook_post", hooks.replace(0.0))])
    edit = [("qformer_text.blocks.1.mlp.hook_post", hooks.replace(0.0))]
    truth = raw.logits(plain, inputs, {"qformer_text.blocks.1.mlp.hook_post": lambda x: x * 0})
    raw.same(model.run_with_hooks(inputs, fwd_hooks=edit), truth)
    raw.differs(truth, before)


@BLIP
def test_points_are_called_by_the_names_that_the_other_towers_have(model):
    blocks = {"vision.blocks.0": "attn", "qformer.blocks.0": "attn", "qformer.blocks.2": "cross_attn"}
    for block, attention in blocks.items():
        stream = {f"{block}.hook_{point}" for point in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")}
        inside = {f"{block}.{attention}.hook_{point}" for point in ("q", "k", "v", "z", "pattern", "attn_scores")}
        assert {*stream, *inside, f"{block}.mlp.hook_pre", f"{block}.mlp.hook_post"} <= set(model.hook_names)
    towers = [name for name in model.hook_names if not name.startswith("blocks")]
    assert not [name for name in towers if "pre_linear" in name or "mlp_text" in name or "ln_text" in name]


@BLIP
def test_output_weights_are_the_rows_of_transformers_own(model, plain):
    names = {"language": "blocks.1.mlp.hook_post"}
    for module in model.widths:
        name = names.get(module, f"{module}.blocks.1.mlp.hook_post")
        assert torch.equal(model.W_out(1, module), raw.locate(plain, name)[0].weight.T)
    assert list(model.widths)[:3] == ["language", "vision", "qformer"]
    assert model.widths["language"] == (48, 48, 48) and model.widths["qformer"] == (28, 28, 28)
    assert ("qformer_text" in model.widths) == (model.family.model_type == "instructblip")


# ---------------------------------------------------------------- the tower, the language model


@BLIP
@pytest.mark.parametrize("part", ["q", "k", "v"])
@torch.no_grad()
def test_queries_keys_and_values_of_the_tower_are_thirds_of_one_map(model, plain, batches, part):
    inputs, name, whole = batches["mixed"], f"vision.blocks.1.attn.hook_{part}", "vision.blocks.1.attn.qkv.hook_out"
    third = slice(*(24 * ("qkv".index(part) + step) for step in (0, 1)))
    _, seen = raw.read(plain, inputs, [whole])
    _, cache = model.run_with_cache(inputs, name)
    raw.same(cache[name].flatten(-2), seen[whole][..., third])
    delta = raw.noise(seen[whole][..., third])

    def change(qkv):
        new = qkv.clone()
        new[..., third] += delta
        return new

    truth = raw.logits(plain, inputs, {whole: change})
    real = inputs.mask("all")
    ours = model.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: x + delta.view_as(x))])
    raw.same(ours[real], truth[real])
    raw.differs(truth[real], raw.logits(plain, inputs)[real])


@BLIP
@torch.no_grad()
def test_what_the_tower_puts_out_is_what_every_cross_attention_reads(model, batches):
    _, cache = model.run_with_cache(batches["two"], ["vision.hook_*", "qformer.blocks.*.cross_attn.?.hook_in"])
    for layer in (0, 2):
        for part in "kv":
            assert torch.equal(cache[f"qformer.blocks.{layer}.cross_attn.{part}.hook_in"], cache["vision.hook_out"])
    assert torch.equal(cache["vision.hook_in"], batches["two"].tower["pixel_values"])


@BLIP
@torch.no_grad()
def test_every_point_of_the_language_model_has_a_batch_axis_and_a_position_axis(model, batches):
    """OPT lays both on one axis inside its MLP."""
    inputs = batches["mixed"]
    names = ["blocks.*", "ln_final.*", "hook_*", "unembed.*"]
    _, cache = model.run_with_cache(inputs, names)
    assert {tuple(value.shape[:2]) for value in cache.values() if value.ndim > 2} >= {tuple(inputs.tokens.shape)}
    flat = [name for name, value in cache.items() if value.ndim == 2 or len(value) != len(inputs)]
    assert flat == []


@OPT
@torch.no_grad()
def test_the_stream_begins_with_words_or_queries_plus_learned_positions(model, plain, batches):
    inputs, names = batches["mixed"], ["hook_embed", "hook_pos_embed", "projector.hook_out"]
    _, seen = raw.read(plain, inputs, names)
    _, cache = model.run_with_cache(inputs, ["blocks.0.hook_resid_pre", "hook_pos_embed"])
    merged, image = seen["hook_embed"].clone(), inputs.mask("image")
    merged[image] = seen["projector.hook_out"].flatten(0, 1)
    real = inputs.mask("all")
    raw.same(cache["blocks.0.hook_resid_pre"][real], (merged + seen["hook_pos_embed"])[real])
    starts = inputs.attention_mask.argmax(-1)
    rows = [cache["hook_pos_embed"][row, start:] for row, start in enumerate(starts)]
    for row in rows:  # counted from a row's first real token
        torch.testing.assert_close(row[:4], rows[0][:4])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@BLIP
@torch.no_grad()
def test_half_precision_computes_what_transformers_computes(folder, plain, dtype):
    ours = HookedMLLM.from_pretrained(folder, dtype=dtype, device="cpu")
    same = type(plain).from_pretrained(folder, dtype=dtype).eval()
    inputs = ask(ours, "mixed")
    real = inputs.mask("all")
    truth = raw.logits(same, inputs)[real]
    assert truth.dtype == dtype
    raw.same(ours(inputs)[real], truth, relative=1e-2)
    logits, cache = ours.run_with_cache(inputs, ["*.hook_pattern", "qformer.blocks.*.hook_resid_post"])
    raw.same(logits[real], truth, relative=5e-2)
    assert cache["qformer.blocks.0.hook_resid_post"].dtype == same.qformer.encoder.layer[0].output_query.dense.weight.dtype


# ---------------------------------------------------------------- TransformerLens' tools


@pytest.mark.parametrize("family", ["instructblip-llama", "blip2-opt"])
@torch.no_grad()
def test_tools_under_bind_get_pixels_and_tokens_each_by_its_name(tmp_path, family):
    folder = tiny(family, tmp_path, layers=2)
    model = load(folder)
    plain = getattr(__import__("transformers"), model.family.model_class).from_pretrained(folder).eval()
    clean, corrupted = (model.to_inputs("which object", images=picture(seed)) for seed in (0, 7))
    _, cache = model.run_with_cache(clean)
    for tool, point in [
        (patching.get_act_patch_resid_pre, "hook_resid_pre"),
        (patching.get_act_patch_attn_out, "hook_attn_out"),
        (patching.get_act_patch_mlp_out, "hook_mlp_out"),
    ]:
        with leaves_no_hooks(model), model.bind(corrupted) as bridge:
            ours = tool(bridge, corrupted.tokens, cache, lambda logits: logits[0, -1, 7] - logits[0, -1, 9])
        truth = torch.zeros_like(ours)
        for layer in range(2):
            name = f"blocks.{layer}.{point}"
            source = raw.read(plain, clean, [name])[1][name]
            for pos in range(corrupted.tokens.shape[1]):

                def put(x, source=source, pos=pos):
                    new = x.view_as(source).clone()
                    new[:, pos] = source[:, pos]
                    return new.view_as(x)

                logits = raw.logits(plain, corrupted, {name: put})
                truth[layer, pos] = logits[0, -1, 7] - logits[0, -1, 9]
        raw.same(ours, truth)
    text = model.to_inputs("the red car")
    with model.bind(text) as bridge:
        raw.same(bridge(text.tokens), raw.logits(plain, text))
