"""PaliGemma: a prompt that sees itself whole, an answer in order, soft caps and local layers over Gemma 2."""

import copy

import numpy as np
import pytest
import raw
import torch
from PIL import Image
from support import ask, load, picture
from transformers import PaliGemmaConfig

from mmlens import hooks
from mmlens.families import UnsupportedModel, paligemma
from mmlens.testing import tiny

both = pytest.mark.parametrize("folder", ["paligemma", "paligemma2"], indirect=True)
second = pytest.mark.parametrize("folder", ["paligemma2"], indirect=True)


@second
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("vision_config.model_type", "clip_vision_model"),
        ("text_config.model_type", "gemma3_text"),
        ("text_config.use_bidirectional_attention", False),
        ("vision_config.patch_size", 7),
    ],
)
def test_a_setting_that_is_not_understood_is_refused_by_name(model, setting, value):
    config = copy.deepcopy(model.hf_model.config)
    paligemma.check(config)
    owner, _, name = setting.rpartition(".")
    object.__setattr__(getattr(config, owner), name, value)
    with pytest.raises(UnsupportedModel, match=name):
        paligemma.check(config)


VISION = dict(
    model_type="siglip_vision_model", hidden_size=1152, num_hidden_layers=27, num_attention_heads=16, patch_size=14
)


@pytest.mark.parametrize("image_size", [224, 448, 896])
@pytest.mark.parametrize(
    "text",
    [
        dict(model_type="gemma", hidden_size=2048, num_hidden_layers=18, num_attention_heads=8, num_key_value_heads=1),
        dict(model_type="gemma2", hidden_size=2304, num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4),
        dict(model_type="gemma2", hidden_size=3584, num_hidden_layers=42, num_attention_heads=16, num_key_value_heads=8),
        dict(model_type="gemma2", hidden_size=4608, num_hidden_layers=46, num_attention_heads=32, num_key_value_heads=16),
    ],
)
def test_the_published_sizes_are_understood(text, image_size):
    paligemma.check(PaliGemmaConfig(text_config=text, vision_config={**VISION, "image_size": image_size}))


# ---------------------------------------------------------------- rows and grids


@both
def test_rows_are_what_the_processor_itself_makes(model):
    token, texts = model.processor.image_token, ["the red car", "what is at the left ?"]
    truth = model.processor(
        text=[f"{token}{texts[0]}", f"{token}{token}{texts[1]}"],
        images=[[picture(0)], [picture(1), picture(2)]],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    inputs = model.to_inputs(texts, images=[picture(0), [picture(1), picture(2)]])
    assert (
        set(inputs.kwargs()) == {"input_ids", "attention_mask", "token_type_ids", "pixel_values"} == set(truth) - {"labels"}
    )
    for name, value in inputs.kwargs().items():
        torch.testing.assert_close(value, truth[name])
    assert [span.modality for span in inputs.spans(1)] == ["image", "image", "special", "text"]


@both
def test_text_alone_is_laid_out_as_text_beside_a_picture_is(model):
    alone, beside = (model.to_inputs("the red car", images=images) for images in (None, picture(0)))
    assert torch.equal(alone.tokens[0], beside.tokens[0][~beside.mask("image")[0]])
    assert model.to_str_tokens(alone.tokens[0]) == ["<s>", "the", "red", "car", "\n"]


@both
def test_an_answer_is_the_processors_suffix(model, plain):
    suffix = model.processor(text="<image>what is red ?", images=picture(0), suffix="the car", return_tensors="pt")
    ours = model.to_inputs("what is red ?", images=picture(0), answer="the car")
    assert torch.equal(ours.tokens, suffix["input_ids"][:, :-1])  # the suffix ends with </s>
    assert torch.equal(ours.stream["token_type_ids"], suffix["token_type_ids"][:, :-1])
    assert torch.equal(ours.stream["token_type_ids"].bool(), ours.mask("answer"))
    with torch.no_grad():
        truth = plain(**{name: value for name, value in suffix.items() if name != "labels"}).logits
        raw.same(model(ours), truth[:, :-1])


@both
@pytest.mark.parametrize("size", [(24, 24), (50, 40), (31, 77), (120, 31)])
def test_a_position_was_shown_what_lies_in_its_box(model, size):
    """A picture whose red says x and whose green says y: a patch's mean colour then says where it was cut from."""
    width, height = size
    ramp = np.zeros((height, width, 3), dtype=np.uint8)
    ramp[..., 0] = np.round((np.arange(width) + 0.5) / width * 255)[None]
    ramp[..., 1] = np.round((np.arange(height) + 0.5) / height * 255)[:, None]
    inputs = model.to_inputs("see", images=Image.fromarray(ramp))
    colours = inputs.tower["pixel_values"][0, :2].numpy() * 0.5 + 0.5
    seen = colours.reshape(2, 4, 6, 4, 6).mean((2, 4)).reshape(2, -1).T * [width, height]
    grid = inputs.grids[0][0]
    boxes = np.array([grid.box(index) for index in range(len(grid))])
    said = np.stack([boxes[:, [0, 2]].mean(1), boxes[:, [1, 3]].mean(1)], axis=1)
    assert len(grid) == 16 and grid.region == (0, 0, width, height)
    assert np.abs(seen - said).max() < 0.25  # of a pixel: colours have 8 bits


@second
@pytest.mark.parametrize(
    ("owner", "name", "value"), [("image_processor", "size", {"shortest_edge": 24}), ("", "image_seq_length", 9)]
)
def test_a_processor_of_another_model_is_refused(model, owner, name, value):
    processor = copy.deepcopy(model.processor)
    setattr(getattr(processor, owner) if owner else processor, name, value)
    with pytest.raises(UnsupportedModel, match=name):
        paligemma.settle(processor, model.hf_model.config)


# ---------------------------------------------------------------- attention


@both
@torch.no_grad()
def test_the_prompt_sees_itself_whole_and_the_answer_only_what_came_before(model):
    inputs = model.to_inputs("what is red ?", images=picture(0), answer="the blue car on the left")
    _, cache = model.run_with_cache(inputs, "blocks.1.attn.hook_pattern")
    seen = (cache["blocks.1.attn.hook_pattern"][0] > 0).all(0)
    answer, length = inputs.mask("answer")[0], inputs.tokens.shape[1]
    truth = torch.ones(length, length).tril().bool() | (~answer[:, None] & ~answer[None])
    assert torch.equal(seen, truth) and answer.sum() == 6


@both
@torch.no_grad()
def test_the_prompt_is_read_alike_in_a_run_and_at_the_beginning_of_a_generation(model, batches):
    inputs, seen = batches["mixed"], []
    _, cache = model.run_with_cache(inputs, "blocks.*.attn.hook_pattern")
    look = hooks.feed(lambda pattern, hook: seen.append(pattern))
    model.generate(inputs, max_new_tokens=1, fwd_hooks=[("blocks.*.attn.hook_pattern", look)])
    real = inputs.mask("all")
    for layer, pattern in enumerate(seen):
        raw.same(pattern.transpose(1, 2)[real], cache[f"blocks.{layer}.attn.hook_pattern"].transpose(1, 2)[real])


def positions_in(owner, run, inputs):
    """Return the positions that the language model is given in the first run that `run(inputs)` makes."""
    found = []
    language = owner.model.language_model
    handle = language.register_forward_pre_hook(
        lambda m, args, kwargs: found.append(kwargs["position_ids"]), with_kwargs=True
    )
    run(inputs)
    handle.remove()
    return found[0].expand(inputs.tokens.shape)[inputs.mask("all")]


@both
@torch.no_grad()
def test_positions_are_counted_from_one_as_generation_counts_them(model, plain, batches):
    for kind in ("one", "mixed"):
        truth = positions_in(plain, lambda inputs: raw.generate(plain, inputs, max_new_tokens=1), batches[kind])
        assert torch.equal(positions_in(model.hf_model, model, batches[kind]), truth) and truth.min() == 1


@second
@torch.no_grad()
def test_scores_and_logits_have_their_soft_caps_whether_somebody_looks_or_not(model, plain, batches):
    inputs = batches["one"]
    text = model.hf_model.config.text_config
    _, cache = model.run_with_cache(inputs, "blocks.*.attn.hook_attn_scores")
    scores = torch.stack(list(cache.values()))
    visible = scores[scores > -1e30]
    assert 0.8 * text.attn_logit_softcapping < visible.abs().max() <= text.attn_logit_softcapping
    logits = model(inputs)
    assert logits.abs().max() <= text.final_logit_softcapping
    raw.same(logits, raw.logits(plain, inputs))
    attention = [layer.self_attn for layer in plain.model.language_model.layers]
    for layer in attention:
        layer.attn_logit_softcapping = None
    uncapped = raw.logits(plain, inputs)
    for layer in attention:
        layer.attn_logit_softcapping = text.attn_logit_softcapping
    raw.differs(logits, uncapped, by=1e-2)


# ---------------------------------------------------------------- the stream


@both
@torch.no_grad()
def test_text_enters_the_stream_scaled_and_images_as_the_projector_left_them(model, plain, batches):
    weight = plain.get_input_embeddings().weight
    for kind in ("one", "mixed", "two"):
        inputs = batches[kind]
        _, cache = model.run_with_cache(inputs, ["blocks.0.hook_resid_pre", "projector.hook_out"])
        stream, image = cache["blocks.0.hook_resid_pre"], inputs.mask("image")
        raw.same(stream[image], cache["projector.hook_out"].flatten(0, 1), relative=0)
        raw.same(stream[~image], weight[inputs.tokens[~image]] * model.cfg.d_model**0.5)


@both
@torch.no_grad()
def test_bfloat16_computes_what_transformers_computes(model, plain, tmp_path):
    name = "paligemma2" if plain.config.text_config.model_type == "gemma2" else "paligemma"
    ours = load(tiny(name, tmp_path, dtype=torch.bfloat16))
    copied = type(plain).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    inputs = ask(ours, "two")
    raw.same(ours(inputs), raw.logits(copied, inputs), relative=0)
