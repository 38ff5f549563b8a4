"""InternVL: what the tower adds to its stream is scaled; tiles row by row and a thumbnail; frames that share a token."""

import copy

import numpy as np
import pytest
import raw
import recorded
import torch
from ramps import compare, patch_colours, ramp
from support import ask, clip, picture
from transformers import GotOcr2ImageProcessor, InternVLConfig, InternVLForConditionalGeneration
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLVisionLayer

from mmlens import Grid, HookedMLLM, hooks
from mmlens.families import UnsupportedModel, internvl
from mmlens.families.internvl import InternVLProcessor
from mmlens.liveness import InertHook
from mmlens.media import Media, Video
from mmlens.testing import tiny
from mmlens.testing.internvl import _internvl

NAME = "internvl-qwen3"
SIZES = [(50, 40), (40, 50), (24, 24), (120, 31), (31, 120), (77, 45), (20, 13), (64, 64), (100, 98)]


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    return tiny(NAME, tmp_path_factory.mktemp("internvl"))


@pytest.fixture(scope="module")
def model(own_folder):
    return HookedMLLM.from_pretrained(own_folder, device="cpu")


@pytest.fixture(scope="module")
def plain(own_folder):
    return InternVLForConditionalGeneration.from_pretrained(own_folder).eval()


# ---------------------------------------------------------------- where positions lie


def shuffled(pixels, settings, patch):
    """Return the mean colour of what each position was made from, put together as the model shuffles features."""
    grouped = InternVLModel.pixel_shuffle(None, patch_colours(pixels, settings, patch).contiguous(), scale_factor=0.5)
    return grouped.unflatten(-1, (4, 3)).mean(-2).flatten(0, 2)


@pytest.mark.parametrize("size", SIZES)
def test_what_lies_in_a_box_is_what_the_processor_showed_at_that_position(model, size):
    settings = model.processor.image_processor
    pixels = settings([ramp(*size)], return_tensors="pt", crop_to_patches=True)["pixel_values"]
    compare(internvl.place(model.processor, picture(0, *size)), shuffled(pixels, settings, 6), size)


@pytest.mark.parametrize("size", [(640, 480), (448, 448), (1000, 300)])
def test_boxes_are_right_at_the_size_of_the_published_checkpoints(model, size):
    settings = GotOcr2ImageProcessor(size={"height": 448, "width": 448})
    processor = InternVLProcessor(settings, model.tokenizer)
    pixels = settings([ramp(*size)], return_tensors="pt", crop_to_patches=True)["pixel_values"]
    place = internvl.place(processor, picture(0, *size))
    compare(place, shuffled(pixels, settings, 14), size)
    assert len(place) == 256 * len(pixels)


def test_a_picture_is_its_tiles_row_by_row_and_then_all_of_it(model):
    inputs = model.to_inputs("see", images=picture(0, 60, 90))
    place = inputs.grids[0][0]
    tiles = [grid.region for grid in place.grids]
    halves, thirds = ((0.0, 30.0), (30.0, 60.0)), ((0.0, 30.0), (30.0, 60.0), (60.0, 90.0))
    assert tiles == [(left, top, right, bottom) for top, bottom in thirds for left, right in halves] + [(0, 0, 60, 90)]
    masks = [inputs.mask(f"image:0/tile:{index}")[0] for index in range(7)]
    assert torch.equal(torch.stack(masks).sum(0), inputs.mask("image")[0].long())
    assert torch.stack(masks).sum(1).tolist() == [4] * 7
    assert not inputs.mask("image:0/tile:7").any()
    assert model.to_inputs("see", images=picture(0, 24, 24)).grids[0][0] == Grid(2, 2, (0.0, 0.0, 24.0, 24.0), (24, 24))


@torch.no_grad()
def test_a_painted_tile_changes_its_own_positions_and_the_thumbnails_only(model):
    image = picture(0, 60, 90)
    painted = image.copy()
    painted.paste((255, 0, 0), (40, 40, 50, 50))  # in the fourth of six tiles
    one, two = (
        model.run_with_cache(model.to_inputs("see", images=each), "blocks.0.hook_resid_pre")[1]["blocks.0.hook_resid_pre"]
        for each in (image, painted)
    )
    inputs = model.to_inputs("see", images=image)
    assert torch.equal((one != two).any(-1), inputs.mask("image:0/tile:3", "image:0/tile:6"))


def test_a_video_is_its_frames_each_named_in_the_text(model):
    inputs = model.to_inputs("what is red ?", videos=clip(0, 3))
    assert [span.modality for span in inputs.spans(0) if span.modality != "special"] == ["text", "video"] * 3 + ["text"]
    place = inputs.grids[0][0]
    assert [grid.frames for grid in place.grids] == [(0, 1), (1, 2), (2, 3)]
    assert all(grid.region == (0, 0, 50, 40) for grid in place.grids)
    counts = [int(inputs.mask(f"video:0/frame:{index}").sum()) for index in range(3)]
    assert counts == [4, 4, 4] and not inputs.mask("image").any()
    assert model.to_str_tokens(inputs.tokens[0])[1:3] == ["Frame1:", "<img>"]


def test_pictures_and_frames_share_a_token_and_are_told_apart_by_their_order(model):
    text = "<video> a <IMG_CONTEXT> on <video> and <IMG_CONTEXT>"
    pictures, videos = [picture(0, 24, 24), picture(1, 50, 24)], [clip(0, 2), clip(1, 3)]
    inputs = model.to_inputs(text, images=pictures, videos=videos)
    media = [(span.modality, span.medium) for span in inputs.spans(0) if span.medium is not None]
    assert media == [("video", 2)] * 2 + [("image", 0)] + [("video", 3)] * 3 + [("image", 1)]
    assert len(inputs.tower["pixel_values"]) == 2 + 1 + 3 + 3
    frame = model.processor.frames(clip(1, 3))
    assert torch.equal(inputs.tower["pixel_values"][3:6], frame)


# ---------------------------------------------------------------- pixels and tokens of the real processor


@pytest.mark.parametrize("case", list(recorded.cases(NAME)), ids=lambda case: case[0])
def test_tokens_and_pixels_are_those_of_the_real_processor(own_folder, model, case):
    """Of resized pixels one in a hundred is more than one of 255 levels off, at corners of colour patches.

    There bicubic weights overshoot, which Pillow and torchvision cut off at another moment.
    """
    name, text, images, videos, _ = case
    truth = recorded.arrays(NAME)[name]
    processor = InternVLProcessor.from_pretrained(own_folder)
    ours = processor(text=[text], images=[images] if images else None, videos=videos or None)
    assert set(ours) == set(truth)
    assert torch.equal(ours["input_ids"], truth["input_ids"])
    row = internvl.encode(processor, text, Media(tuple(images), tuple(Video(tuple(video)) for video in videos)))
    assert row.tokens == truth["input_ids"][0].tolist() and set(row.tower) == set(truth) - {"input_ids", "attention_mask"}
    assert [row.medium.count(index) for index in range(len(row.grids))] == [len(place) for place in row.grids]
    if "pixel_values" not in truth:
        return
    assert ours["pixel_values"].shape == truth["pixel_values"].shape
    std = torch.tensor(processor.image_processor.image_std)[:, None, None]
    levels = (ours["pixel_values"] - truth["pixel_values"]).abs() * std * 255
    if "no resizing" in name:
        assert levels.max() < 1e-3
    assert levels.max() < 9 and (levels > 1.01).float().mean() < 0.01


def test_chat_is_the_templates_own(model):
    inputs = model.to_inputs("what is red ?", images=picture(0), videos=clip(1), chat=True)
    text = "user : <IMG_CONTEXT>\n<video>\nwhat is red ? assistant :"
    assert inputs.digest() == model.to_inputs(text, images=picture(0), videos=clip(1)).digest()


# ---------------------------------------------------------------- the model


@torch.no_grad()
def test_what_the_tower_adds_is_scaled_and_the_parts_before_are_there_too(model, plain):
    inputs = ask(model, "one")
    _, cache = model.run_with_cache(inputs, "vision.blocks.*")
    for layer in range(3):
        block = f"vision.blocks.{layer}"
        module = plain.model.vision_tower.encoder.layer[layer]
        raw.same(cache[f"{block}.hook_attn_out"], cache[f"{block}.attn.hook_out"] * module.lambda_1, relative=1e-6)
        raw.same(cache[f"{block}.hook_mlp_out"], cache[f"{block}.mlp.hook_out"] * module.lambda_2, relative=1e-6)
        neurons = cache[f"{block}.mlp.hook_post"] @ model.W_out(layer, "vision") + module.mlp.fc2.bias
        raw.same(cache[f"{block}.mlp.hook_out"], neurons)


def test_scales_that_have_an_output_leave_parameters_files_and_copies_as_they_were(tmp_path):
    hf_model, _ = _internvl(language="llama")
    before = {name: weight.clone() for name, weight in hf_model.state_dict().items()}
    internvl.prepare(hf_model)
    after = hf_model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    hf_model.save_pretrained(tmp_path)
    again = InternVLForConditionalGeneration.from_pretrained(tmp_path)
    assert type(again.model.vision_tower.encoder.layer[0]) is InternVLVisionLayer
    assert all(torch.equal(one, before[name]) for name, one in again.state_dict().items())
    layer = copy.deepcopy(hf_model).model.vision_tower.encoder.layer[1]
    assert layer.attn_scale.layer is layer


@torch.no_grad()
def test_pictures_videos_and_text_in_one_batch_equal_transformers(model, plain):
    inputs = model.to_inputs(
        ["the red car", "a", "what <video> is <IMG_CONTEXT>"],
        images=[[picture(0), picture(1, 20, 61)], None, picture(2)],
        videos=[None, clip(0, 2), clip(1, 3)],
    )
    real = inputs.mask("all")
    logits, _ = model.run_with_cache(inputs, ["*.hook_pattern", "vision.blocks.0.mlp.hook_post"])
    raw.same(logits[real], raw.logits(plain, inputs)[real])
    ours = model.generate(inputs, max_new_tokens=4)
    assert torch.equal(ours.tokens, raw.generate(plain, inputs, max_new_tokens=4, pad_token_id=model.tokenizer.pad_token_id))


@torch.no_grad()
def test_llama_computes_what_transformers_computes():
    torch.manual_seed(0)
    hf_model, processor = _internvl(language="llama")
    plain = copy.deepcopy(hf_model)
    model = HookedMLLM(hf_model, processor)
    inputs = ask(model, "mixed")
    raw.same(model(inputs)[inputs.mask("all")], raw.logits(plain, inputs)[inputs.mask("all")])


@pytest.mark.parametrize(("feature_layer", "live"), [(-1, 3), (-2, 2), (1, 1)])
@torch.no_grad()
def test_blocks_behind_the_layer_that_is_read_can_not_be_edited(tmp_path, feature_layer, live):
    folder = tiny(NAME, tmp_path, feature_layer=feature_layer)
    model = HookedMLLM.from_pretrained(folder, device="cpu")
    plain = InternVLForConditionalGeneration.from_pretrained(folder).eval()
    inputs = ask(model, "one")
    before = raw.logits(plain, inputs)
    raw.same(model(inputs), before)
    for layer in range(3):
        name = f"vision.blocks.{layer}.mlp.hook_post"
        after = raw.logits(plain, inputs, {name: lambda x: x * 0})
        if layer < live:
            raw.differs(after, before, by=1e-4)
            raw.same(model.run_with_hooks(inputs, fwd_hooks=[(name, hooks.replace(0.0))]), after)
        else:
            assert torch.equal(after, before)
            with pytest.raises(InertHook, match="read but not edited"):
                model.run_with_hooks(inputs, fwd_hooks=[(name, hooks.replace(0.0))])


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("vision_feature_layer", [-2, -1]),
        ("vision_feature_select_strategy", "full"),
        ("downsample_ratio", 0.4),
        ("vision_config.model_type", "siglip_vision_model"),
        ("vision_config.patch_size", (5, 5)),
        ("text_config.model_type", "qwen3_moe"),
        ("text_config.use_sliding_window", True),
    ],
)
def test_a_setting_that_is_not_understood_is_refused_by_name(model, setting, value):
    config = copy.deepcopy(model.hf_model.config)
    internvl.check(config)
    owner, _, name = setting.rpartition(".")
    object.__setattr__(getattr(config, owner) if owner else config, name, value)
    with pytest.raises(UnsupportedModel, match=name):
        internvl.check(config)


@pytest.mark.parametrize("text", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("vision", [{}, dict(use_qk_norm=True, norm_type="rms_norm", num_hidden_layers=45)])
def test_the_published_checkpoints_settings_are_understood(text, vision):
    config = InternVLConfig(text_config=dict(model_type=text), vision_config=dict(model_type="internvl_vision", **vision))
    internvl.check(config)


def test_processors_that_are_not_understood_are_refused(own_folder):
    processor = InternVLProcessor.from_pretrained(own_folder)
    processor.image_seq_length = 5
    with pytest.raises(UnsupportedModel, match="image_seq_length"):
        internvl.place(processor, picture(0))
    with pytest.raises(UnsupportedModel, match="settings are not understood"):
        internvl.encode(_one_more(own_folder), "see", Media(images=(picture(0),)))
    processor = InternVLProcessor.from_pretrained(own_folder)
    processor.video["size"] = {"height": 12, "width": 12}
    with pytest.raises(UnsupportedModel, match="one size"):
        internvl.encode(processor, "see", Media(images=(picture(0),), videos=(Video((picture(1),)),)))


def _one_more(folder):
    """Return a processor that writes one placeholder more for a tile than a tile has positions."""
    processor = InternVLProcessor.from_pretrained(folder)
    marked = processor._marked
    processor._marked = lambda tiles: marked(tiles) + processor.image_token
    return processor


def test_media_that_do_not_match_are_refused(model):
    with pytest.raises(ValueError, match=r"1 in .* and 0 video"):
        model.to_inputs("see <video>", images=picture(0))
    with pytest.raises(ValueError, match="takes image and video, got audio"):
        model.to_inputs("see", audio=np.zeros(8))
