"""LLaVA-NeXT: a position lies where its tile's patch was cut from; rows end with a position of their own."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import raw
import torch
from ramps import compare, patch_colours, ramp
from support import ask, picture
from transformers import AutoProcessor, LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextImageProcessor
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from mmlens import Grid, HookedMLLM
from mmlens.families import UnsupportedModel, llava_next
from mmlens.families.anyres import anyres, tile_edge
from mmlens.media import Media
from mmlens.testing import tiny
from mmlens.testing.llava_next import _llava_next

SIZES = [(50, 40), (40, 50), (18, 18), (120, 31), (31, 120), (77, 45), (20, 13), (64, 64), (37, 36), (500, 11)]
REAL = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # llava-hf's checkpoints: CLIP, 336 pixels, 14 a patch


@pytest.fixture(scope="module")
def next_folder(tmp_path_factory):
    return tiny("llava-next-clip-mistral", tmp_path_factory.mktemp("next"))


@pytest.fixture(scope="module")
def model(next_folder):
    return HookedMLLM.from_pretrained(next_folder, device="cpu")


def seen_at_each_position(images, size, config):
    """Return the mean colour of what each position of a picture was made from, packed as the model packs features."""
    made = images(ramp(*size), return_tensors="pt")
    colours = patch_colours(made["pixel_values"][0], images, config.vision_config.patch_size).flatten(1, 2)
    packed, _ = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config), [colours], made["image_sizes"], "default", torch.full((3,), torch.nan)
    )
    return packed[0]


@pytest.mark.parametrize("size", SIZES)
def test_what_lies_in_a_box_is_what_the_processor_showed_at_that_position(model, size):
    seen = seen_at_each_position(model.processor.image_processor, size, model.hf_model.config)
    compare(llava_next.tiles(model.processor, picture(0, *size)), seen, size)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1000, 300), (336, 336), (1500, 2000)])
def test_boxes_are_right_at_the_size_of_the_published_checkpoints(size):
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_grid_pinpoints=REAL
    )
    place = anyres(size, REAL, edge=tile_edge(images), patch=14)
    seen = seen_at_each_position(images, size, LlavaNextConfig())
    compare(place, seen, size)
    assert len(place.grids[0]) == 24 * 24


def test_a_picture_is_an_overview_and_then_rows_that_end_with_a_newline(model):
    inputs = model.to_inputs("see", images=picture(0, 50, 40))
    place = inputs.grids[0][0]
    overview, fine = place.grids
    assert overview == Grid(3, 3, (0.0, 0.0, 50.0, 40.0), (50, 40))
    assert (fine.rows, fine.columns, fine.newline) == (4, 6, True)  # 6 rows, of which padding filled the first and the last
    np.testing.assert_allclose(fine.region, (0, (6 - 3) * 40 / 29, 50, (30 - 3) * 40 / 29))
    assert [place.box(index) is None for index in range(9, 9 + 7)] == [False] * 6 + [True]
    first, second = inputs.mask("image:0/tile:0"), inputs.mask("image:0/tile:1")
    assert torch.equal(first | second, inputs.mask("image")) and not (first & second).any()
    assert (int(first.sum()), int(second.sum())) == (9, 28)


def test_overlap_with_the_whole_picture_is_the_part_of_each_box_that_lies_on_it(model):
    place = llava_next.tiles(model.processor, picture(0, 50, 40))
    overlap = place.overlap(torch.ones(40, 50).bool())
    for index, covered in enumerate(overlap.tolist()):
        left, top, right, bottom = place.box(index) or (0, 0, 0, 0)
        on = max(0, min(right, 50) - max(left, 0)) * max(0, min(bottom, 40) - max(top, 0))
        assert covered == pytest.approx(on / max((right - left) * (bottom - top), 1e-9))


@torch.no_grad()
def test_newline_positions_enter_the_stream_as_the_models_newline_and_the_others_as_the_projectors_output(model):
    inputs = model.to_inputs("see", images=picture(0, 50, 40))
    _, cache = model.run_with_cache(inputs, ["blocks.0.hook_resid_pre", "projector.hook_out"])
    stream, place = cache["blocks.0.hook_resid_pre"][inputs.mask("image")], inputs.grids[0][0]
    out, newline = cache["projector.hook_out"], model.hf_model.model.image_newline
    raw.same(stream[:9], out[0], relative=0)
    ends = [index for index in range(len(place)) if place.box(index) is None]
    assert len(ends) == 4
    for index in range(9, len(place)):
        if index in ends:
            raw.same(stream[index], newline, relative=0)
        else:
            row, column = divmod(index - 9, 7)
            tile, inner = (row + 1) // 3 * 2 + column // 3, (row + 1) % 3 * 3 + column % 3
            raw.same(stream[index], out[1 + tile, inner], relative=0)


@torch.no_grad()
def test_what_is_painted_into_a_box_is_what_changes_at_its_position(model):
    """The fourth row of six and the fifth column of six: the last of four tiles, its first row and second column."""
    image = picture(0, 36, 36)
    inputs = model.to_inputs("see", images=image)
    place = inputs.grids[0][0]
    index = 9 + 3 * 7 + 4
    painted = image.copy()
    painted.paste((0, 0, 255), tuple(round(edge) for edge in place.box(index)))
    one, other = inputs.tower["pixel_values"], model.to_inputs("see", images=painted).tower["pixel_values"]
    changed = (one != other).any(2)[0, 1:].unfold(1, 6, 6).unfold(2, 6, 6).any(-1).any(-1)
    assert changed.nonzero().tolist() == [[3, 0, 1]]


@torch.no_grad()
def test_rows_with_other_numbers_of_tiles_and_images_equal_transformers(model, next_folder):
    plain = LlavaNextForConditionalGeneration.from_pretrained(next_folder).eval()
    pictures = [picture(0, 60, 18), picture(1, 40, 40), picture(2, 18, 60)]
    inputs = model.to_inputs(["the red car", "a", "what"], images=[pictures[:2], None, pictures[2]])
    assert inputs.tower["pixel_values"].shape[:2] == (3, 5)  # 4, 5 and 4 tiles
    token = model.processor.image_token
    truth = model.processor(
        text=[f"{token}\n{token}\nthe red car", "a", f"{token}\nwhat"],
        images=[pictures[:2], [pictures[2]]],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    assert torch.equal(inputs.tokens, truth["input_ids"])
    assert torch.equal(inputs.tower["pixel_values"], truth["pixel_values"])
    assert torch.equal(inputs.tower["image_sizes"], truth["image_sizes"])
    real = inputs.mask("all")
    raw.same(model(inputs)[real], raw.logits(plain, inputs)[real])


@pytest.mark.parametrize("language", ["llama", "qwen2"])
@torch.no_grad()
def test_the_other_language_models_compute_what_transformers_computes(language):
    torch.manual_seed(0)
    hf_model, processor = _llava_next(language=language)
    plain = copy.deepcopy(hf_model)
    model = HookedMLLM(hf_model, processor)
    inputs = ask(model, "mixed")
    raw.same(model(inputs)[inputs.mask("all")], raw.logits(plain, inputs)[inputs.mask("all")])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("vision_feature_layer", [-2, -1]),
        ("vision_feature_select_strategy", "cls"),
        ("vision_config.model_type", "vit"),
        ("vision_config.patch_size", 5),
        ("text_config.model_type", "gpt2"),
    ],
)
def test_a_setting_that_is_not_understood_is_refused_by_name(model, setting, value):
    config = copy.deepcopy(model.hf_model.config)
    llava_next.check(config)
    owner, _, name = setting.rpartition(".")
    object.__setattr__(getattr(config, owner) if owner else config, name, value)
    with pytest.raises(UnsupportedModel, match=name):
        llava_next.check(config)


@pytest.mark.parametrize(
    "text",
    [
        dict(model_type="llama", vocab_size=32064),
        dict(model_type="mistral", vocab_size=32064, num_key_value_heads=8, sliding_window=None),
        dict(model_type="qwen2", use_sliding_window=False, sliding_window=32768),
    ],
)
def test_the_published_checkpoints_settings_are_understood(text):
    llava_next.check(LlavaNextConfig(text_config=text))
    assert llava_next.FAMILY.live_layers(LlavaNextConfig(text_config=text)) == {"vision": 23}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(crop_size={"height": 12, "width": 12}), "crop_size"),
        (dict(size={"height": 18, "width": 12}), "square tiles"),
        (dict(image_grid_pinpoints=[[40, 40]]), "whole tiles"),
    ],
)
def test_an_image_processor_that_is_not_understood_is_refused(next_folder, change, says):
    processor = AutoProcessor.from_pretrained(next_folder)
    for name, value in change.items():
        setattr(processor.image_processor, name, value)
    with pytest.raises(UnsupportedModel, match=says):
        llava_next.tiles(processor, picture(0))


def test_a_processor_that_counts_other_positions_is_refused(next_folder):
    processor = AutoProcessor.from_pretrained(next_folder)
    processor.num_additional_image_tokens = 0
    with pytest.raises(UnsupportedModel, match="not understood"):
        llava_next.encode(processor, "see", Media(images=(picture(0),)))


@pytest.mark.parametrize("folder", ["llava-next-clip-mistral"], indirect=True)
@pytest.mark.parametrize("size", [(1, 500), (500, 1), (3, 700), (700, 3), (1, 1)])
@torch.no_grad()
def test_of_a_very_flat_picture_the_overview_is_kept_and_what_ends_its_rows(model, plain, size):
    inputs = model.to_inputs("see", images=picture(0, *size))
    place = inputs.grids[0][0]
    assert len(place) == int(inputs.mask("image").sum())
    raw.same(model(inputs), raw.logits(plain, inputs))
    covered = inputs.overlap(torch.ones(size[1], size[0], dtype=torch.bool))
    assert covered.shape == inputs.tokens.shape and covered[inputs.mask("image")].max() > 0
