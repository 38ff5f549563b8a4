"""Idefics3: how a picture is cut into tiles, where each position lies on it, and which settings are understood."""

import copy

import numpy as np
import pytest
import raw
import torch
from PIL import Image
from support import ask, load, picture
from transformers import AutoProcessor, Idefics3Config

from mmlens import Tiles
from mmlens.families import UnsupportedModel, idefics3
from mmlens.media import Media
from mmlens.testing import tiny

IDEFICS3 = pytest.mark.parametrize("folder", ["idefics3"], indirect=True)
SIZES = [(50, 40), (40, 50), (30, 30), (120, 31), (31, 120), (77, 45), (20, 13), (64, 64), (300, 2)]


@pytest.fixture(scope="module")
def idefics(tmp_path_factory):
    return load(tiny("idefics3", tmp_path_factory.mktemp("idefics3")))


@pytest.fixture
def processor(idefics):
    return copy.deepcopy(idefics.processor)


def setting(processor, **changes):
    """Return the processor with other settings of its image processor; `patch_size` is the tower's."""
    processor.patch_size = changes.pop("patch_size", processor.patch_size)
    for name, value in changes.items():
        setattr(processor.image_processor, name, value)
    return processor


def ramp(width, height):
    """Return a picture whose red says x and whose green says y: a mean colour then says where it was cut from."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.round((np.arange(width) + 0.5) / width * 255)[None]
    pixels[..., 1] = np.round((np.arange(height) + 0.5) / height * 255)[:, None]
    return Image.fromarray(pixels)


# ---------------------------------------------------------------- where positions lie


@pytest.mark.parametrize("size", SIZES[:-1])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(size={"longest_edge": 90}),
        dict(do_image_splitting=False),
        dict(size={"height": 70, "width": 30}),
        dict(do_resize=False),
    ],
    ids=["two", "four", "none", "fixed", "as it is"],
)
def test_what_lies_in_a_box_is_what_the_processor_showed_at_that_position(processor, size, changes):
    row = idefics3.encode(setting(processor, **changes), "see", Media(images=(ramp(*size),)))
    place, pixels = row.grids[0], row.tower["pixel_values"][0].numpy()
    assert isinstance(place, Tiles) and len(place.grids) == len(pixels) and len(place) == row.modality.count("image")
    patch = processor.patch_size * 2
    for grid, tile in zip(place.grids, pixels, strict=True):
        colours = (tile[:2, : grid.rows * patch, : grid.columns * patch] + 1) / 2
        seen = colours.reshape(2, grid.rows, patch, grid.columns, patch).mean((2, 4)).reshape(2, -1)
        boxes = np.array([grid.box(index) for index in range(len(grid))])
        centres = np.stack([(boxes[:, 0] + boxes[:, 2]) / 2 / size[0], (boxes[:, 1] + boxes[:, 3]) / 2 / size[1]])
        assert np.abs(seen - centres).max() < 0.01  # of the picture; colours have 8 bits, and its edge is smoothed


@pytest.mark.parametrize(("longest", "edge"), [(26, 26), (52, 26), (52, 17), (100, 17), (4108, 1000)])
def test_a_picture_is_cut_as_the_image_processor_cuts_it(processor, longest, edge):
    settings = processor.image_processor
    settings.size, settings.max_image_size = {"longest_edge": longest}, {"longest_edge": edge}
    random = np.random.default_rng(longest)
    many = SIZES + [tuple(map(int, random.integers(1, 90, 2))) for _ in range(30)]
    for size in many if longest < 1000 else [(300, 2), (3, 300)]:
        made = settings([[Image.new("RGB", size)]], return_row_col_info=True)
        width, height = idefics3.in_whole_tiles(settings, size)
        cut = (height // edge, width // edge) if max(width, height) > edge else (0, 0)
        assert cut == (made["rows"][0][0], made["cols"][0][0]), size


@torch.no_grad()
def test_a_position_holds_the_patches_that_lie_in_its_box(idefics):
    patches = torch.arange(16).reshape(1, 16, 1)
    held = idefics.hf_model.model.connector.original_component.pixel_shuffle(patches, 2)[0]
    grid = idefics3.part(idefics.processor, (0.0, 0.0, 1.0, 1.0), (26, 26))
    for index in range(len(grid)):
        left, top, right, bottom = (round(edge / 6) for edge in grid.box(index))
        assert sorted(held[index].tolist()) == [y * 4 + x for y in range(top, bottom) for x in range(left, right)]


@torch.no_grad()
def test_what_a_tile_leaves_over_does_not_change_the_logits(idefics):
    """Tiles have 26 pixels, of which four patches of 6 are seen: the last two columns and rows are not."""
    inputs = idefics.to_inputs("see", images=picture(0))
    before, pixels = idefics(inputs), inputs.tower["pixel_values"]
    pixels[..., 24:] = 0.5
    pixels[..., 24:, :] = 0.5
    torch.testing.assert_close(idefics(inputs), before)
    pixels[..., 23:] = 0.5
    raw.differs(idefics(inputs), before)


def test_the_tiles_come_row_by_row_and_the_whole_picture_last(idefics):
    inputs = idefics.to_inputs("see", images=picture(0, 120, 30))
    place, words = inputs.grids[0][0], idefics.to_str_tokens(inputs.tokens[0])
    assert [token for token in words if token.startswith("<row") or token == "<global-img>"] == [
        "<row_1_col_1>",
        "<row_1_col_2>",
        "<global-img>",
    ]
    assert [[round(edge, 2) for edge in grid.region] for grid in place.grids] == [
        [0, 0, 55.38, 27.69],
        [60, 0, 115.38, 27.69],
        [0, 0, 110.77, 27.69],
    ]
    assert inputs.mask("image:0/tile:1").sum() == 4 and not inputs.mask("image:0/tile:3").any()
    for tile, name in enumerate(["<row_1_col_1>", "<row_1_col_2>", "<global-img>"]):
        assert inputs.mask(f"image:0/tile:{tile}")[0].nonzero()[0].item() == words.index(name) + 1
    between = (inputs.tokens[0] == idefics.to_token("<row_1_col_1>")).nonzero().item()
    assert inputs.mask("special")[0, [between - 1, between]].all()


def test_a_picture_in_one_tile_has_that_tile_only(processor):
    for changes in (dict(do_image_splitting=False), dict(do_image_splitting=True, size={"longest_edge": 26})):
        row = idefics3.encode(setting(processor, **changes), "see", Media(images=(picture(0), picture(1))))
        assert [len(place.grids) for place in row.grids] == [1, 1]
        assert row.tower["pixel_values"].shape == (1, 2, 3, 26, 26)


# ---------------------------------------------------------------- rows


def test_rows_equal_the_processors_own_with_other_numbers_of_images_and_tiles(idefics):
    one, two, three = picture(0, 50, 40), picture(1, 120, 30), picture(2, 30, 90)
    inputs = idefics.to_inputs(["the red car", "a tree", "<image> and\n<image>"], images=[one, None, [two, three]])
    truth = idefics.processor(
        text=["<image>the red car", "a tree", "<image> and\n<image>"],
        images=[[one], [], [two, three]],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    assert torch.equal(inputs.tokens, truth["input_ids"]) and torch.equal(inputs.attention_mask, truth["attention_mask"])
    assert set(inputs.kwargs()) == {"input_ids", "attention_mask", "pixel_values", "pixel_attention_mask"}
    for name in ("pixel_values", "pixel_attention_mask"):  # the row without images has none here, and zeros there
        assert torch.equal(inputs.tower[name], truth[name][[0, 2]]) and not truth[name][1].any()
    assert [[len(place.grids) for place in row] for row in inputs.grids] == [[5], [], [3, 3]]


@torch.no_grad()
def test_a_row_without_images_and_rows_of_fewer_tiles_are_in_a_batch_what_they_are_alone(idefics):
    texts, images = ["the red car", "a tree", "see"], [picture(0), None, [picture(1, 120, 30), picture(2, 26, 26)]]
    inputs = idefics.to_inputs(texts, images=images)
    together = idefics(inputs)
    for row, (text, image) in enumerate(zip(texts, images, strict=True)):
        alone = idefics(idefics.to_inputs(text, images=image))[0]
        raw.same(together[row][-len(alone) :], alone)


@IDEFICS3
@torch.no_grad()
def test_image_positions_enter_the_stream_as_the_projectors_output(model, plain, batches):
    for kind in ("one", "mixed", "two"):
        inputs = batches[kind]
        _, truth = raw.read(plain, inputs, ["projector.hook_out", "hook_embed"])
        _, cache = model.run_with_cache(inputs, "blocks.0.hook_resid_pre")
        stream, image = cache["blocks.0.hook_resid_pre"], inputs.mask("image")
        raw.same(stream[image], truth["projector.hook_out"].flatten(0, 1))
        raw.same(stream[~image], truth["hook_embed"][~image])


@torch.no_grad()
def test_the_whole_tower_reaches_the_output(idefics):
    _, cache = idefics.run_with_cache(ask(idefics, "one"))
    raw.same(cache["vision.post_layernorm.hook_in"], cache["vision.blocks.2.hook_resid_post"], relative=0)
    raw.same(cache["projector.hook_in"], cache["vision.post_layernorm.hook_out"], relative=0)
    assert not [name for name in idefics.points.read_only if name.startswith(("vision", "projector"))]


def test_a_chat_begins_with_one_beginning(idefics):
    """Some templates write the token that the tokenizer puts in front anyway: transformers then has it once."""
    model = copy.copy(idefics)
    model.processor = copy.copy(idefics.processor)
    model.processor.chat_template = "<s>" + idefics.processor.chat_template
    turn = {"role": "user", "content": [{"type": "image", "image": picture(0)}, {"type": "text", "text": "what ?"}]}
    truth = model.processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=True, return_dict=True)
    tokens = model.to_inputs("what ?", images=picture(0), chat=True).tokens
    assert tokens.tolist() == torch.as_tensor(truth["input_ids"]).tolist()
    assert torch.equal(tokens, idefics.to_inputs("what ?", images=picture(0), chat=True).tokens)


# ---------------------------------------------------------------- settings


PUBLISHED = {  # tile, patch, patches to a position (along one edge), positions of a tile
    "HuggingFaceM4/Idefics3-8B-Llama3": (364, 14, 2, 169),
    "HuggingFaceTB/SmolVLM-Instruct": (384, 14, 3, 81),
    "HuggingFaceTB/SmolVLM-256M-Instruct": (512, 16, 4, 64),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_checkpoints_settings_are_understood(processor, name):
    edge, patch, scale, positions = PUBLISHED[name]
    config = Idefics3Config(
        vision_config={"model_type": "idefics3", "image_size": edge, "patch_size": patch},
        text_config={"model_type": "llama", "qk_layer_norms": False, "use_resampler": False},
        scale_factor=scale,
    )
    idefics3.check(config)
    setting(processor, size={"longest_edge": 4 * edge}, max_image_size={"longest_edge": edge}).image_seq_len = positions
    idefics3.settle(processor, config)
    place = idefics3.tiles(processor, (1000, 700))
    assert len(place.grids) == 4 * 3 + 1 and len(place) == 13 * positions
    assert place.grids[-1].region == pytest.approx((0, 0, *(side * (edge // patch * patch) / edge for side in (1000, 700))))
    row = idefics3.encode(processor, "see", Media(images=(picture(0, 100, 70),)))
    assert row.modality.count("image") == len(row.grids[0]) == 13 * positions


@pytest.mark.parametrize(
    ("name", "value"),
    [("text_config.model_type", "qwen2"), ("vision_config.patch_size", [6, 6]), ("vision_config.image_size", [26, 26])],
)
def test_a_setting_that_is_not_understood_is_refused_by_name(idefics, name, value):
    config = copy.deepcopy(idefics.hf_model.config)
    idefics3.check(config)
    owner, _, attribute = name.rpartition(".")
    object.__setattr__(getattr(config, owner), attribute, value)
    with pytest.raises(UnsupportedModel, match=attribute):
        idefics3.check(config)


def test_a_processor_that_does_not_fit_the_model_or_is_not_understood_is_refused(idefics, processor, tmp_path):
    config = copy.deepcopy(idefics.hf_model.config)
    processor.image_seq_len = 9
    with pytest.raises(UnsupportedModel, match="9 positions"):
        idefics3.settle(processor, config)
    processor.image_seq_len = 4
    with pytest.raises(UnsupportedModel, match="shortest_edge"):
        idefics3.tiles(setting(processor, size={"shortest_edge": 9}), (20, 20))
    idefics.processor.save_pretrained(tmp_path)
    fresh = AutoProcessor.from_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="HookedMLLM"):
        idefics3.encode(fresh, "see", Media(images=(picture(0),)))
    idefics3.settle(fresh, config)
    assert idefics3.encode(fresh, "see", Media(images=(picture(0),))).grids
