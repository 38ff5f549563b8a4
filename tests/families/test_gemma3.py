"""Gemma 3: pooled patches, pan and scan, images that see themselves whole, two sets of angles, norms before the stream."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import raw
import torch
from PIL import Image
from support import ask, load, picture
from transformers import Gemma3Config, Gemma3ImageProcessorPil

from mmlens import Grid, Neurons, Tiles, hooks
from mmlens.analysis.decoding import decode
from mmlens.families import UnsupportedModel, gemma3
from mmlens.media import Media
from mmlens.testing import tiny

pytestmark = pytest.mark.parametrize("folder", ["gemma3"], indirect=True)


@pytest.fixture
def panning(model):
    """The same model with pan and scan on, for the length of a test; crops are at least 8 pixels wide."""
    settings = dict(do_pan_and_scan=True, pan_and_scan_min_crop_size=8)
    model.processor.images_kwargs = {**type(model.processor).images_kwargs, **settings}
    yield model
    del model.processor.images_kwargs


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("vision_config.model_type", "clip_vision_model"),
        ("text_config.model_type", "llama"),
        ("text_config.use_bidirectional_attention", True),
        ("text_config.attn_logit_softcapping", 50.0),
        ("text_config.final_logit_softcapping", 30.0),
        ("text_config.layer_types", ["sliding_attention"] * 3),
        ("mm_tokens_per_image", 8),
        ("mm_tokens_per_image", 16),
    ],
)
def test_a_setting_that_is_not_understood_is_refused_by_name(model, setting, value):
    config = copy.deepcopy(model.hf_model.config)
    gemma3.check(config)
    owner, _, name = setting.rpartition(".")
    object.__setattr__(getattr(config, owner) if owner else config, name, value)
    with pytest.raises(UnsupportedModel, match=name):
        gemma3.check(config)


@pytest.mark.parametrize(("width", "layers", "heads", "kv_heads"), [(2560, 34, 8, 4), (3840, 48, 16, 8), (5376, 62, 32, 16)])
def test_the_published_sizes_are_understood(folder, width, layers, heads, kv_heads):
    text = dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads)
    text |= dict(sliding_window=1024, rope_scaling={"factor": 8.0, "rope_type": "linear"}, model_type="gemma3_text")
    vision = dict(hidden_size=1152, image_size=896, patch_size=14, num_hidden_layers=27, num_attention_heads=16)
    gemma3.check(
        Gemma3Config(
            text_config=text, vision_config={**vision, "vision_use_head": False, "model_type": "siglip_vision_model"}
        )
    )


# ---------------------------------------------------------------- where positions lie


def seen_and_said(model, width, height):
    """Return, for a picture whose red says x and whose green says y, what each position was shown and what its box says."""
    ramp = np.zeros((height, width, 3), dtype=np.uint8)
    ramp[..., 0] = np.round((np.arange(width) + 0.5) / width * 255)[None]
    ramp[..., 1] = np.round((np.arange(height) + 0.5) / height * 255)[:, None]
    inputs = model.to_inputs("see", images=Image.fromarray(ramp))
    settings, place = model.processor.image_processor, inputs.grids[0][0]
    pixels = inputs.tower["pixel_values"].numpy()
    colours = pixels * np.array(settings.image_std)[:, None, None] + np.array(settings.image_mean)[:, None, None]
    cells = colours[:, :2].reshape(len(pixels), 2, 3, 8, 3, 8).mean((3, 5))  # 3 x 3 positions of 2 x 2 patches of 4 pixels
    seen = cells.transpose(0, 2, 3, 1).reshape(-1, 2) * [width, height]
    boxes = np.array([place.box(index) for index in range(len(place))])
    return seen, np.stack([boxes[:, [0, 2]].mean(1), boxes[:, [1, 3]].mean(1)], axis=1), inputs


@pytest.mark.parametrize("size", [(24, 24), (50, 40), (31, 77), (120, 31)])
def test_a_position_was_shown_what_lies_in_its_box(model, size):
    seen, said, inputs = seen_and_said(model, *size)
    place = inputs.grids[0][0]
    assert isinstance(place, Grid) and place.region == (0, 0, *size) and len(place) == 9
    assert np.abs(seen - said).max() < 0.25  # of a pixel: colours have 8 bits


@pytest.mark.parametrize(
    ("size", "parts"), [((120, 40), 3), ((41, 97), 2), ((95, 20), 4), ((61, 24), 3), ((60, 55), 0), ((30, 7), 0)]
)
@torch.no_grad()
def test_pan_and_scan_shows_the_whole_picture_and_then_its_parts(panning, plain, size, parts):
    seen, said, inputs = seen_and_said(panning, *size)
    place = inputs.grids[0][0]
    assert len(place) == 9 * (1 + parts) == inputs.mask("image").sum()
    assert np.abs(seen - said).max() < 0.35
    truth = panning.processor(
        text=panning.processor.boi_token + "see",
        images=picture(0, *size),
        images_kwargs=dict(panning.processor.images_kwargs),
        return_tensors="pt",
    )
    assert torch.equal(inputs.tokens, truth["input_ids"])
    assert torch.equal(inputs.stream["token_type_ids"], truth["token_type_ids"])
    raw.same(panning(inputs), raw.logits(plain, inputs))
    if parts:
        assert isinstance(place, Tiles)
        assert [int(inputs.mask(f"image:0/tile:{tile}").sum()) for tile in range(parts + 2)] == [9] * (parts + 1) + [0]
        left, top, right, bottom = zip(*(grid.region for grid in place.grids[1:]), strict=True)
        assert (min(left), min(top), max(right), max(bottom)) == (0, 0, *size)


def test_parts_are_cut_where_the_image_processor_cuts_them_at_its_published_settings(model):
    settings = {name: value for name, value in type(model.processor).images_kwargs.items() if name.startswith("pan_")}
    processor = SimpleNamespace(
        image_processor=model.processor.image_processor, images_kwargs={**settings, "do_pan_and_scan": True}
    )
    counts = set()
    for width, height in np.random.default_rng(0).integers(100, 3000, (100, 2)).tolist():
        across, down = (
            Gemma3ImageProcessorPil().pan_and_scan(np.broadcast_to(places, (1, height, width)), **settings)
            for places in (np.arange(width), np.arange(height)[:, None])
        )
        truth = [(x[0, 0, 0], y[0, 0, 0], x[0, 0, -1] + 1, y[0, -1, 0] + 1) for x, y in zip(across, down, strict=True)]
        assert gemma3.crops(processor, width, height) == truth
        counts.add(len(truth))
    assert counts == {0, 2, 3, 4}


def test_pan_and_scan_is_off_as_it_is_in_the_processor(model):
    inputs = model.to_inputs("see", images=picture(0, 400, 100))
    assert len(inputs.grids[0][0]) == inputs.mask("image").sum() == 9


@torch.no_grad()
def test_rows_with_and_without_parts_are_one_batch(panning, plain):
    pictures = [picture(0, 120, 40), picture(1, 40, 40)]
    inputs = panning.to_inputs(["the red car", "a", "the"], images=[pictures[0], None, pictures])
    assert [[len(place) for place in row] for row in inputs.grids] == [[36], [], [36, 9]]
    real = inputs.mask("all")
    raw.same(panning(inputs)[real], raw.logits(plain, inputs)[real])


def test_positions_that_do_not_fit_the_settings_are_refused(model):
    processor = copy.copy(model.processor)
    processor.image_seq_length = 16
    with pytest.raises(UnsupportedModel, match="not understood"):
        gemma3.encode(processor, "see", Media(images=(picture(0),)))


@pytest.mark.parametrize(
    ("owner", "name", "value"), [("image_processor", "size", {"shortest_edge": 24}), ("", "image_seq_length", 4)]
)
def test_a_processor_of_another_model_is_refused(model, owner, name, value):
    processor = copy.deepcopy(model.processor)
    setattr(getattr(processor, owner) if owner else processor, name, value)
    with pytest.raises(UnsupportedModel, match=name):
        gemma3.settle(processor, model.hf_model.config)


def test_rows_are_what_the_processor_itself_makes(model):
    start, texts = model.processor.boi_token, ["the red car", "what is at the left ?"]
    truth = model.processor(
        text=[f"{start}{texts[0]}", f"{texts[1]} {start} {start}"],
        images=[[picture(0)], [picture(1), picture(2)]],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    texts[1] += f" {start} {start}"
    inputs = model.to_inputs(texts, images=[picture(0), [picture(1), picture(2)]])
    assert set(inputs.kwargs()) == set(truth) == {"input_ids", "attention_mask", "token_type_ids", "pixel_values"}
    for name, value in inputs.kwargs().items():
        torch.testing.assert_close(value, truth[name])


def test_chat_begins_once_and_is_what_the_template_gives(model):
    inputs = model.to_inputs("what is red ?", images=picture(0), chat=True)
    content = [{"type": "image", "image": picture(0)}, {"type": "text", "text": "what is red ?"}]
    options = dict(add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    truth = model.processor.apply_chat_template([{"role": "user", "content": content}], **options)
    for name, value in inputs.kwargs().items():
        torch.testing.assert_close(value, truth[name])
    assert (inputs.tokens == model.tokenizer.bos_token_id).sum() == 1


# ---------------------------------------------------------------- the stream


@torch.no_grad()
def test_text_enters_the_stream_scaled_and_images_as_the_projector_left_them(model, plain, batches):
    weight = plain.get_input_embeddings().weight
    for kind in ("one", "mixed", "two"):
        inputs = batches[kind]
        _, cache = model.run_with_cache(inputs, ["blocks.0.hook_resid_pre", "projector.hook_out", "hook_embed"])
        stream, image = cache["blocks.0.hook_resid_pre"], inputs.mask("image")
        raw.same(stream[image], cache["projector.hook_out"].flatten(0, 1), relative=0)
        raw.same(stream[~image], weight[inputs.tokens[~image]] * model.cfg.d_model**0.5)
        raw.same(stream[~image], cache["hook_embed"][~image], relative=0)


@torch.no_grad()
def test_a_sublayer_with_a_bias_before_a_norm_is_not_taken_apart(model, batches, monkeypatch):
    _, cache = model.run_with_cache(batches["one"])
    linear = model.bridge.blocks[0].mlp.submodules["out"].original_component
    monkeypatch.setitem(linear._parameters, "bias", torch.nn.Parameter(torch.ones(32)))
    for refused in (lambda: cache.stack_neuron_results(1), lambda: cache.get_full_resid_decomposition(1)):
        with pytest.raises(NotImplementedError, match="use decompose_resid"):
            refused()
    raw.same(cache.decompose_resid().sum(0), cache["resid_post", -1])


@torch.no_grad()
def test_a_neuron_reads_as_the_words_that_it_writes_behind_the_norm(model, plain):
    layer = plain.model.language_model.layers[1]
    gain, _ = raw.gain_and_scale(layer.post_feedforward_layernorm, torch.ones(1, 32))
    neurons = Neurons.of([(1, 3), (1, 40)], model.widths)
    effects = (layer.mlp.down_proj.weight.T[[3, 40]] * gain) @ plain.lm_head.weight.T
    decoded = decode(model, neurons, k=3)
    top, tokens = effects.topk(3)
    raw.same(decoded.effects, top)
    assert torch.equal(decoded.tokens, tokens)


# ---------------------------------------------------------------- attention


@torch.no_grad()
def test_the_prompt_is_read_alike_in_a_run_and_at_the_beginning_of_a_generation(model, batches):
    inputs, seen = batches["mixed"], []
    _, cache = model.run_with_cache(inputs, "blocks.*.attn.hook_pattern")
    look = hooks.feed(lambda pattern, hook: seen.append(pattern))
    model.generate(inputs, max_new_tokens=1, fwd_hooks=[("blocks.*.attn.hook_pattern", look)])
    real = inputs.mask("all")
    for layer, pattern in enumerate(seen):
        raw.same(pattern.transpose(1, 2)[real], cache[f"blocks.{layer}.attn.hook_pattern"].transpose(1, 2)[real])


@torch.no_grad()
def test_local_layers_look_back_no_further_than_their_window(model, batches):
    inputs = batches["two"]
    _, cache = model.run_with_cache(inputs, "blocks.*.attn.hook_pattern")
    back = torch.arange(inputs.tokens.shape[1])
    far = (back[:, None] - back[None]) >= model.hf_model.config.text_config.sliding_window
    for layer, local in enumerate([True, False, True]):
        assert (cache[f"blocks.{layer}.attn.hook_pattern"][0, :, far].amax() == 0) == local


@torch.no_grad()
def test_an_answer_is_text_to_the_model(model, plain):
    inputs = model.to_inputs("what is red ?", images=picture(0), answer="the car")
    assert not inputs.stream["token_type_ids"][inputs.mask("answer")].any()
    assert inputs.stream["token_type_ids"][inputs.mask("image")].all()
    raw.same(model(inputs), raw.logits(plain, inputs))


@torch.no_grad()
def test_local_and_global_angles_have_points_of_their_own(model, plain, batches):
    inputs = batches["one"]
    positions = torch.arange(inputs.tokens.shape[1])[None]
    _, cache = model.run_with_cache(inputs, "rotary_emb.hook_*")
    for kind, suffix in [("full_attention", ""), ("sliding_attention", "_local")]:
        truth = plain.model.language_model.rotary_emb(torch.zeros(1), positions, kind)
        for name, angles in zip(("cos", "sin"), truth, strict=True):
            raw.same(cache[f"rotary_emb.hook_{name}{suffix}"], angles)
    patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in range(3)]
    _, before = model.run_with_cache(inputs, patterns)
    for suffix, first in [("", 1), ("_local", 0)]:
        _, after = model.run_with_cache(inputs, patterns, fwd_hooks=[(f"rotary_emb.hook_cos{suffix}", hooks.scale(0.5))])
        changed = [not torch.equal(before[name], after[name]) for name in patterns]
        assert changed.index(True) == first


@pytest.mark.parametrize("part", ["q", "k"])
@torch.no_grad()
def test_normed_queries_and_keys_can_be_read_and_edited(model, plain, batches, part):
    inputs, real, seen = batches["mixed"], batches["mixed"].mask("all"), []
    norm = plain.model.language_model.layers[1].self_attn.get_submodule(f"{part}_norm")
    name = f"blocks.1.attn.{part}_norm.hook_out"
    with_hook = norm.register_forward_hook(lambda module, args, output: seen.append(output))
    before = raw.logits(plain, inputs)
    with_hook.remove()
    _, cache = model.run_with_cache(inputs, name)
    raw.same(cache[name][real], seen[0].transpose(1, 2)[real])
    delta = raw.noise(cache[name])
    edit = norm.register_forward_hook(lambda module, args, output: output + delta.transpose(1, 2))
    truth = raw.logits(plain, inputs)
    edit.remove()
    raw.same(model.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: x + delta)])[real], truth[real])
    raw.differs(truth[real], before[real])


@torch.no_grad()
def test_bfloat16_computes_what_transformers_computes(plain, tmp_path):
    model = load(tiny("gemma3", tmp_path, dtype=torch.bfloat16))
    copied = type(plain).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    inputs = ask(model, "two")
    raw.same(model(inputs), raw.logits(copied, inputs), relative=0)
