"""LLaVA-OneVision: one picture in tiles, several without, videos pooled, and pixels as the real processor makes them."""

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import raw
import recorded
import torch
from PIL import Image
from ramps import compare, patch_colours, ramp
from support import clip, picture
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, LlavaOnevisionImageProcessor
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from mmlens import Grid, HookedMLLM
from mmlens.families import UnsupportedModel, llava_onevision
from mmlens.families.anyres import anyres
from mmlens.families.llava_onevision import OnevisionProcessor
from mmlens.media import Media, Video
from mmlens.testing import tiny

NAME = "llava-onevision-siglip-qwen2"
SIZES = [(50, 40), (40, 50), (20, 20), (120, 31), (31, 120), (77, 45), (20, 13), (64, 64), (200, 190)]


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    return tiny(NAME, tmp_path_factory.mktemp("onevision"))


@pytest.fixture(scope="module")
def model(own_folder):
    return HookedMLLM.from_pretrained(own_folder, device="cpu")


@pytest.fixture(scope="module")
def plain(own_folder):
    return LlavaOnevisionForConditionalGeneration.from_pretrained(own_folder).eval()


# ---------------------------------------------------------------- where positions lie


def packed(pixels, settings, image_sizes, config):
    """Return the mean colour of what each position of a picture was made from, packed as the model packs features."""
    colours = patch_colours(pixels, settings, config.vision_config.patch_size).flatten(1, 2)
    newline = torch.full((3,), torch.nan)
    aspect = config.vision_aspect_ratio
    return LlavaOnevisionModel.pack_image_features(SimpleNamespace(config=config), [colours], image_sizes, newline, aspect)[
        0
    ][0]


@pytest.mark.parametrize("size", SIZES)
def test_what_lies_in_a_box_is_what_the_processor_showed_at_that_position(model, size):
    settings = model.processor.image_processor
    made = settings([[ramp(*size)]], return_tensors="pt")
    seen = packed(made["pixel_values"][0], settings, made["image_sizes"], model.hf_model.config)
    compare(llava_onevision.place(model.processor, picture(0, *size), alone=True), seen, size)


@pytest.mark.parametrize("size", [(640, 480), (300, 1000), (384, 384), (1700, 1500)])
def test_boxes_are_right_at_the_size_of_the_published_checkpoints(size):
    config, half = (
        LlavaOnevisionConfig(vision_config=dict(model_type="siglip_vision_model", image_size=384, patch_size=14)),
        [0.5] * 3,
    )
    settings = LlavaOnevisionImageProcessor(image_mean=half, image_std=half)
    made = settings([[ramp(*size)]], return_tensors="pt")
    seen = packed(made["pixel_values"][0], settings, made["image_sizes"], config)
    place = anyres(size, config.image_grid_pinpoints, edge=384, patch=14, most=9)
    compare(place, seen, size)
    fine = place.grids[1]
    assert len(place.grids[0]) == 729 and len(fine) <= 1.21 * 9 * 729 + fine.rows
    if size == (640, 480):  # two tiles each way: the 28th column begins where the second tile does, 6 pixels later
        assert fine.columns == 54 and fine.columns_at[27][0] - fine.columns_at[26][1] == pytest.approx(6 * 640 / 768)


@pytest.mark.parametrize("size", [(50, 40), (40, 51), (20, 20), (90, 60)])
def test_one_of_several_pictures_is_shown_once_in_a_padded_square(model, size):
    settings = model.processor.image_processor
    made = settings([[ramp(*size), picture(1)]], return_tensors="pt")
    assert made["pixel_values"].shape[:2] == (2, 1)
    seen = packed(made["pixel_values"][0], settings, made["image_sizes"][:1], model.hf_model.config)
    place = llava_onevision.place(model.processor, picture(0, *size), alone=False)
    assert len(place) == 10 and place.box(9) is None
    compare(place, seen, size)


def test_the_positions_of_a_video_are_its_frames_pooled_in_twos_and_one_newline(model):
    size, frames = (50, 40), 3
    video = Video(tuple(ramp(*size) for _ in range(frames)))
    place, settings = llava_onevision.frames(model.processor, video), model.processor.image_processor
    colours = patch_colours(model.processor.frames(list(video.frames)), settings, 6)
    pooled = LlavaOnevisionModel.apply_pooling(SimpleNamespace(config=model.hf_model.config), colours.flatten(1, 2))
    compare(place, torch.cat([pooled.flatten(0, 1), torch.full((1, 3), torch.nan)]), size)
    assert [grid.frames for grid in place.grids] == [(0, 1), (1, 2), (2, 3), None]
    inputs = model.to_inputs("see", videos=clip(0, frames))
    assert inputs.mask("video").sum() == 3 * 4 + 1
    where = [inputs.mask(f"video:0/frame:{index}")[0].nonzero()[:, 0].tolist() for index in range(frames)]
    first = int(inputs.mask("video")[0].nonzero().min())
    assert where == [list(range(first + 4 * index, first + 4 * index + 4)) for index in range(frames)]


def test_tiles_have_gaps_where_the_tower_leaves_out_their_edge(model):
    place = llava_onevision.place(model.processor, picture(0, 40, 40), alone=True)
    fine = place.grids[1]
    assert fine.columns_at == ((0, 6), (6, 12), (12, 18), (20, 26), (26, 32), (32, 38)) == fine.rows_at
    assert place.grids[0] == Grid(3, 3, (0.0, 0.0, 36.0, 36.0), (40, 40))
    assert fine.index(19.0, 1.0) is None and fine.index(21.0, 1.0) == 3


def test_a_lattice_of_too_many_positions_is_shrunk_over_the_same_region(model):
    small, large = (
        llava_onevision.place(model.processor, picture(0, *size), alone=True).grids[1] for size in ((40, 40), (60, 60))
    )
    assert (small.rows, small.columns) == (6, 6)
    ratio = math.sqrt(81 / (4 * 9))
    assert (large.rows, large.columns) == (int(9 // ratio), int(9 // ratio)) == (6, 6)
    assert large.region == (0, 0, 58, 58)


# ---------------------------------------------------------------- pixels and tokens of the real processor


@pytest.mark.parametrize("case", list(recorded.cases(NAME)), ids=lambda case: case[0])
def test_tokens_and_pixels_are_those_of_the_real_processor(own_folder, case):
    """torchvision rounds resized pixels in another way than Pillow: one of 255 levels, which are 2 / 255 apart here."""
    name, text, images, videos, _ = case
    truth = recorded.arrays(NAME)[name]
    ours = OnevisionProcessor.from_pretrained(own_folder)(
        text=[text], images=[images] if images else None, videos=videos or None
    )
    assert set(ours) == set(truth)
    for part in set(truth) - {"pixel_values", "pixel_values_videos"}:
        assert torch.equal(torch.as_tensor(ours[part]), truth[part]), part
    for part in set(truth) & {"pixel_values", "pixel_values_videos"}:
        assert ours[part].shape == truth[part].shape
        error = (ours[part] - truth[part]).abs().max()
        exact = "no resizing" in name or name == "picture and two videos"
        assert error <= (1e-5 if exact else 1.01 * 2 / 255), error


def test_a_row_is_what_the_real_processor_made(model):
    for name, text, images, videos, _ in recorded.cases(NAME):
        row = llava_onevision.encode(model.processor, text, Media(tuple(images), tuple(Video(tuple(v)) for v in videos)))
        truth = recorded.arrays(NAME)[name]
        assert row.tokens == truth["input_ids"][0].tolist()
        assert set(row.tower) == set(truth) - {"input_ids", "attention_mask"}
        counts = [row.medium.count(index) for index in range(len(images) + len(videos))]
        assert counts == [len(place) for place in row.grids]


def test_a_folder_of_the_old_layout_is_read(own_folder, tmp_path):
    processor = OnevisionProcessor.from_pretrained(own_folder)
    processor.tokenizer.save_pretrained(tmp_path)
    video = {**processor.video, "image_mean": [0.25, 0.5, 0.75]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor.image_processor.to_dict()))
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(video))
    (tmp_path / "processor_config.json").write_text(json.dumps({**processor.settings, "processor_class": processor.name}))
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": processor.chat_template}))
    (tmp_path / "config.json").write_text((own_folder / "config.json").read_text())
    old = OnevisionProcessor.from_pretrained(tmp_path)
    assert old.settings == processor.settings and old.chat_template == processor.chat_template
    assert old.video["image_mean"] == [0.25, 0.5, 0.75]
    frame = picture(0)
    np.testing.assert_allclose(old.frames([frame])[0, 1], processor.frames([frame])[0, 1])
    assert type(old.image_processor) is type(processor.image_processor)


def test_chat_is_the_templates_own(model):
    inputs = model.to_inputs("what is red ?", images=picture(0), videos=clip(1), chat=True)
    written = model.to_inputs("user : <image> <video> what is red ? assistant :", images=picture(0), videos=clip(1))
    assert inputs.digest() == written.digest()


# ---------------------------------------------------------------- the model


@torch.no_grad()
def test_pictures_videos_and_text_in_one_batch_equal_transformers(model, plain):
    pictures, videos = [picture(0), picture(1, 20, 61), picture(2)], [clip(0, 2), clip(1, 2)]
    inputs = model.to_inputs(
        ["the red car", "a", "what <video> is <image>", "<image> here"],
        images=[pictures[:2], None, pictures[2], picture(3, 90, 20)],
        videos=[None, videos[0], videos[1], None],
    )
    assert inputs.tower["batch_num_images"].tolist() == [2, 1, 1]
    assert inputs.tower["pixel_values_videos"].shape[:2] == (2, 2)
    real = inputs.mask("all")
    logits, _ = model.run_with_cache(inputs, ["*.hook_pattern", "vision.blocks.0.mlp.hook_post", "blocks.0.hook_resid_pre"])
    raw.same(logits[real], raw.logits(plain, inputs)[real])
    assert len(inputs.grids[2]) == 2 and inputs.mask("image:0")[2].sum() == len(inputs.grids[2][0])
    ours = model.generate(inputs, max_new_tokens=4)
    assert torch.equal(ours.tokens, raw.generate(plain, inputs, max_new_tokens=4, pad_token_id=model.tokenizer.pad_token_id))


@torch.no_grad()
def test_sites_read_and_edit_as_raw_hooks_do_on_a_video(model, plain):
    inputs = model.to_inputs("what is red ?", videos=clip(0, 3))
    truth_logits, truth = raw.read(plain, inputs, raw.names(plain))
    logits, cache = model.run_with_cache(inputs, list(truth))
    raw.same(logits, truth_logits)
    for name, activation in truth.items():
        raw.same(cache[name].reshape(activation.shape), activation)
        delta = raw.noise(activation)
        edited = raw.logits(plain, inputs, {name: lambda x, delta=delta: x + delta})
        ours = model.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook, delta=delta: x + delta.view_as(x))])
        raw.same(ours, edited)
        raw.differs(edited, truth_logits)


@torch.no_grad()
def test_a_changed_frame_changes_its_own_positions_and_no_others(model):
    frames = clip(0, 3)
    other = [frames[0], picture(9), frames[2]]
    one, two = (
        model.run_with_cache(model.to_inputs("see", videos=video), "blocks.0.hook_resid_pre")[1]["blocks.0.hook_resid_pre"]
        for video in (frames, other)
    )
    inputs = model.to_inputs("see", videos=frames)
    assert torch.equal((one != two).any(-1), inputs.mask("video:0/frame:1"))
    assert torch.equal(one[inputs.mask("video")][-1], model.hf_model.model.image_newline)


def test_every_block_of_the_tower_reaches_the_output(plain):
    assert llava_onevision.FAMILY.live_layers(plain.config) == {"vision": 3}


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("vision_feature_layer", [-2, -1]),
        ("vision_feature_select_strategy", "default"),
        ("vision_aspect_ratio", "square"),
        ("vision_config.model_type", "clip_vision_model"),
        ("text_config.model_type", "llama"),
        ("text_config.use_sliding_window", True),
    ],
)
def test_a_setting_that_is_not_understood_is_refused_by_name(model, setting, value):
    config = copy.deepcopy(model.hf_model.config)
    llava_onevision.check(config)
    owner, _, name = setting.rpartition(".")
    object.__setattr__(getattr(config, owner) if owner else config, name, value)
    with pytest.raises(UnsupportedModel, match=name):
        llava_onevision.check(config)


def test_the_published_checkpoints_settings_are_understood():
    vision = dict(
        model_type="siglip_vision_model", image_size=384, patch_size=14, num_hidden_layers=26, vision_use_head=False
    )
    for tied in (True, False):
        llava_onevision.check(
            LlavaOnevisionConfig(vision_config=vision, text_config=dict(model_type="qwen2", tie_word_embeddings=tied))
        )


def test_videos_of_other_lengths_and_placeholders_without_media_are_refused(model):
    with pytest.raises(ValueError, match="equally many frames"):
        model.to_inputs("see", videos=[clip(0, 2), clip(1, 3)])
    with pytest.raises(ValueError, match=r"1 in .* and 0 video"):
        model.to_inputs("see <video>", images=picture(0))
    with pytest.raises(ValueError, match="takes image and video, got audio"):
        model.to_inputs("see", audio=np.zeros(8))


@pytest.mark.parametrize(
    ("change", "says"), [(dict(do_center_crop=True), "do_center_crop"), (dict(size={"shortest_edge": 20}), "fixed height")]
)
def test_a_video_part_that_is_not_understood_is_refused(own_folder, change, says):
    processor = OnevisionProcessor.from_pretrained(own_folder)
    processor.video.update(change)
    with pytest.raises(UnsupportedModel, match=says):
        processor.frames([Image.new("RGB", (20, 20))])


def test_a_number_of_image_tokens_that_does_not_say_how_a_tile_is_cut_is_refused(own_folder):
    processor = OnevisionProcessor.from_pretrained(own_folder)
    for count in (8, 4):  # no square; 20 pixels are cut into two by patches of 7 to 10
        processor.num_image_tokens = count
        with pytest.raises(UnsupportedModel, match=f"num_image_tokens = {count}"):
            llava_onevision.sizes(processor)
