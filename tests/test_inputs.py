"""Inputs say of every position what it holds, and of every image position where on the picture it lies."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from support import KINDS, ask, medium, picture

from mmlens import Grid, Tiles, Timeline
from mmlens.grid import finest
from mmlens.inputs import MEDIA, MODALITIES, Inputs, Row

LLAVA = pytest.mark.parametrize(
    "folder", ["llava-clip-llama", "llava-siglip-qwen2", "pictoworld", "pictoworld-frozen"], indirect=True
)
SIZES = [(50, 40), (40, 50), (30, 30), (120, 31), (31, 120), (77, 45), (20, 13), (64, 64)]

# ---------------------------------------------------------------- positions


@pytest.mark.parametrize("kind", KINDS)
def test_modalities_partition_all_positions(model, batches, kind):
    inputs = batches[kind]
    parts = torch.stack([inputs.mask(modality) for modality in MODALITIES])
    assert (parts.sum(0) == 1).all()
    tokens = inputs.tokens.numpy()
    np.testing.assert_array_equal(inputs.mask("pad").numpy(), inputs.attention_mask.numpy() == 0)
    marked = [index for index, token in model.tokenizer.added_tokens_decoder.items() if token.special]
    special = np.isin(tokens, marked) & ~inputs.mask(*MEDIA, "pad").numpy()
    np.testing.assert_array_equal(inputs.mask("special").numpy(), special)
    assert torch.equal(inputs.mask("text", "special", *MEDIA), inputs.mask("all"))
    given = {kind for row in inputs.media for kind in model.family.takes if row}
    assert {kind for kind in MEDIA if inputs.mask(kind).any()} == given & set(model.family.takes[:1])
    assert torch.equal(inputs.mask("prompt", "answer"), inputs.mask("all"))
    assert not inputs.mask().any()


@pytest.mark.parametrize("kind", KINDS)
def test_spans_are_the_longest_runs_and_cover_a_row_without_gaps(batches, kind):
    inputs = batches[kind]
    for row in range(len(inputs)):
        spans, kinds = inputs.spans(row), []
        for span in spans:
            kinds += [(span.modality, span.medium)] * len(span)
        assert [spans[0].start, *(s.stop for s in spans)] == [*(s.start for s in spans), inputs.tokens.shape[1]]
        for position, (modality, number) in enumerate(kinds):
            assert inputs.mask(modality)[row, position]
            if modality in MEDIA:
                assert inputs.mask(f"{modality}:{number}")[row, position]
        neighbours = pairwise(spans)
        assert all((a.modality, a.medium) != (b.modality, b.medium) for a, b in neighbours)


def test_each_of_two_media_has_its_own_positions(model, batches):
    inputs, kind = batches["two"], model.family.takes[0]
    first, second = inputs.mask(f"{kind}:0"), inputs.mask(f"{kind}:1")
    assert torch.equal(first | second, inputs.mask(kind)) and not (first & second).any()
    places = [(int(own.sum()), place) for own, place in zip((first, second), inputs.grids[0], strict=True)]
    assert all(count == len(place) for count, place in places if place is not None)
    assert first[0].nonzero().max() < second[0].nonzero().min()
    with pytest.raises(KeyError, match=f"no row holds {kind}:2"):
        inputs.mask(f"{kind}:2")


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_position_is_where_a_row_ends(batches, kind):
    inputs = batches[kind]
    last = inputs.last()
    for row in range(len(inputs)):
        real = np.flatnonzero(inputs.attention_mask[row].numpy())
        np.testing.assert_array_equal(np.flatnonzero(last[row].numpy()), real[-1:])


def test_unknown_groups_are_refused_and_the_known_named(batches):
    for group in ("images", "image:", "image:x", "text:0", "last"):
        with pytest.raises(KeyError, match="one of text, special"):
            batches["one"].mask(group)


def tiled_row():
    """Return one row by hand: an image in two tiles (the second with row ends), a word, and a video of four frames."""
    overview = Grid(1, 2, (0.0, 0.0, 8.0, 4.0), (8, 4))
    fine = Grid(2, 2, (0.0, 0.0, 8.0, 4.0), (8, 4), newline=True)
    frames = [Grid(1, 1, (0.0, 0.0, 6.0, 6.0), (6, 6), frames=(start, start + 2)) for start in (0, 2)]
    return Row(
        text="",
        tokens=[9] * 8 + [5] + [8] * 2,
        modality=["image"] * 8 + ["text"] + ["video"] * 2,
        medium=[0] * 8 + [-1] + [1] * 2,
        tower={"pixel_values": torch.ones(1, 2, 3)},
        grids=(Tiles((overview, fine), (8, 4)), Tiles(tuple(frames), (6, 6))),
        media=("picture", "video"),
        stream={"kind": [1] * 8 + [0] + [2] * 2},
    )


def test_tiles_and_frames_of_a_medium_have_masks_of_their_own():
    text = Row("", [5] * 14, ["text"] * 14, [-1] * 14, {})
    inputs = Inputs.from_rows([tiled_row(), text], pad=0)

    def where(*groups):
        assert not inputs.mask(*groups)[1].any()
        return inputs.mask(*groups)[0].nonzero()[:, 0].sub(3).tolist()  # three positions of padding

    assert where("image:0/tile:0") == [0, 1] and where("image:0/tile:1") == [2, 3, 4, 5, 6, 7]
    assert where("video:0") == [9, 10] == where("video")
    for frame, position in [(0, 9), (1, 9), (2, 10), (3, 10)]:
        assert where(f"video:0/frame:{frame}") == [position]
    assert where("image:0/tile:2", "video:0/frame:4", "image:0/frame:0") == []
    with pytest.raises(KeyError, match="no row holds video:1"):
        inputs.mask("video:1")
    assert inputs.grids[0][0].box(4) is None and inputs.grids[0][0].box(2) == (0.0, 0.0, 4.0, 2.0)
    for wrong in ("image:0/row:1", "image/tile:0", "image:0/tile:x"):
        with pytest.raises(KeyError, match="a part of it such as"):
            inputs.mask(wrong)


def test_an_area_of_a_picture_covers_positions_of_the_stream():
    word = Row("", [5], ["text"], [-1], {})
    sound = Row("", [5, 7, 7], ["text", "audio", "audio"], [-1, 0, 0], {}, (Timeline(2, 0.5),), ("sound",))
    inputs = Inputs.from_rows([word, tiled_row(), sound], pad=0)
    left_half = torch.zeros(4, 8, dtype=torch.bool)
    left_half[:, :4] = True
    truth = torch.zeros(3, 11, dtype=torch.float64)
    truth[1, [0, 2, 5]] = 1.0  # the overview's left box and the left boxes of the two rows of the finer tile
    torch.testing.assert_close(inputs.overlap(left_half, row=1), truth)
    torch.testing.assert_close(inputs.overlap((0, 0, 4, 4), row=1), truth)
    frames = torch.zeros(4, 6, 6, dtype=torch.bool)
    frames[2] = True
    assert inputs.overlap(frames, row=1, medium=1)[1].nonzero().tolist() == [[10]]
    assert inputs.overlap(frames, row=1, medium=1)[1, 10] == 0.5
    assert inputs.overlap((0.25, 0.75), row=2)[2, -2:].tolist() == [0.5, 0.5]
    for area, options, says in [
        (left_half, dict(row=0), "has 0 media"),
        (left_half, dict(row=1, medium=2), "not medium 2"),
        ((0.0, 1.0), dict(row=1), "2 numbers for a picture"),
        (left_half, dict(row=2), "for a sound"),
        (left_half.T, dict(row=1), r"\[4, 8\]"),
    ]:
        with pytest.raises(ValueError, match=says):
            inputs.overlap(area, **options)


def test_rows_with_more_tiles_are_joined_with_the_others_filled_up():
    rows = [tiled_row(), Row("", [5], ["text"], [-1], {}), tiled_row()]
    rows[2].tower["pixel_values"] = torch.full((2, 3, 3), 2.0)
    inputs = Inputs.from_rows(rows, pad=0)
    joined = inputs.tower["pixel_values"]
    assert joined.shape == (3, 3, 3)
    assert (joined[0, :2] == 1).all() and (joined[0, 2] == 0).all() and (joined[1:] == 2).all()
    assert inputs.stream["kind"].tolist() == [rows[0].stream["kind"], [0] * 11, rows[2].stream["kind"]]
    assert set(inputs.kwargs()) == {"input_ids", "attention_mask", "pixel_values", "kind"}


def test_an_answer_is_of_the_kind_that_the_family_says():
    row = tiled_row().answered([3, 4], kind=7)
    assert row.stream["kind"][-3:] == [2, 7, 7] and row.tokens[-2:] == [3, 4] and row.answer == 2
    assert Inputs.from_rows([row], pad=0).mask("answer")[0].nonzero()[:, 0].tolist() == [11, 12]


# ---------------------------------------------------------------- what the processor makes of it


@LLAVA
def test_rows_are_padded_as_the_processor_itself_pads(model, batches):
    token, texts = model.processor.image_token, ["the red car", "what is at the left of the blue tree ?", "a"]
    truth = model.processor(
        text=[f"{token}\n{texts[0]}", texts[1], f"{token}\n{texts[2]}"],
        images=[[picture(0)], [picture(1)]],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    inputs = batches["mixed"]
    assert torch.equal(inputs.tokens, truth["input_ids"])
    assert torch.equal(inputs.attention_mask, truth["attention_mask"])
    torch.testing.assert_close(inputs.kwargs()["pixel_values"], truth["pixel_values"])
    assert set(inputs.kwargs()) == {"input_ids", "attention_mask", "pixel_values"}


@LLAVA
def test_placeholders_that_are_missing_go_in_front_one_to_a_line(model):
    token, one, two = model.processor.image_token, picture(0), picture(1)
    written = model.to_inputs(f"{token}\n{token}\nthe red car", images=[one, two])
    assert model.to_inputs("the red car", images=[one, two]).digest() == written.digest()
    inside = model.to_inputs(f"the {token} red {token} car", images=[one, two])
    assert [s.modality for s in inside.spans(0) if s.modality != "special"] == ["text", "image", "text", "image", "text"]


def test_an_answer_is_tokenized_on_its_own_behind_the_prompt(model):
    prompts, answers = ["what is red ?", "the"], ["car", "the blue tree"]
    name, one = medium(model, 0)
    inputs = model.to_inputs(prompts, **{name: [one, None]}, answer=answers)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        alone = model.to_inputs(prompt, **({name: one} if row == 0 else {}))
        ids = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
        real = inputs.tokens[row][inputs.attention_mask[row].bool()].tolist()
        assert real == alone.tokens[0].tolist() + ids
        assert inputs.tokens[row][inputs.mask("answer")[row]].tolist() == ids
        assert inputs.last()[row].nonzero().item() == inputs.mask("answer")[row].nonzero().max().item()
    shared = model.to_inputs(prompts, answer="car")
    assert shared.mask("answer").sum() == 2 * len(model.tokenizer("car", add_special_tokens=False)["input_ids"])
    assert not model.to_inputs(prompts).mask("answer").any()


@LLAVA
def test_chat_is_the_processors_own_template(model):
    if not model.processor.chat_template:
        with pytest.raises(ValueError, match="has no chat template"):
            model.to_inputs("what is red ?", images=picture(0), chat=True)
        return
    content = [{"type": "image"}, {"type": "text", "text": "what is red ?"}]
    text = model.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    truth = model.processor(text=text, images=[picture(0)], return_tensors="pt")["input_ids"]
    assert torch.equal(model.to_inputs("what is red ?", images=picture(0), chat=True).tokens, truth)


def test_an_image_may_be_a_picture_an_array_or_a_file(small, tmp_path):
    image = picture(0)
    image.save(tmp_path / "image.png")
    truth = small.to_inputs("see", images=image).digest()
    for source in (np.asarray(image), tmp_path / "image.png", str(tmp_path / "image.png"), image.convert("RGBA"), [image]):
        assert small.to_inputs("see", images=source).digest() == truth
    assert (
        small.to_inputs("see", images=np.asarray(image.convert("L"))).digest()
        == small.to_inputs("see", images=image.convert("L").convert("RGB")).digest()
    )


def test_the_pictures_and_texts_are_kept_by_row(small):
    inputs = ask(small, "mixed")
    assert [len(media) for media in inputs.media] == [len(grids) for grids in inputs.grids] == [1, 0, 1]
    np.testing.assert_array_equal(np.asarray(inputs.media[2][0]), np.asarray(picture(1)))
    assert len(inputs) == len(inputs.text) == 3 and "red car" in inputs.text[0]


def test_digests_are_equal_for_equal_inputs_only(small):
    one = small.to_inputs("the red car", images=picture(0))
    same = small.to_inputs("the red car", images=picture(0))
    assert one.digest() == same.digest() == one.to("cpu").digest()
    others = [
        small.to_inputs("the red car", images=picture(1)),
        small.to_inputs("the red boat", images=picture(0)),
        small.to_inputs("the red car"),
        small.to_inputs(["the red car"] * 2, images=[picture(0), picture(0)]),
    ]
    assert len({one.digest(), *(other.digest() for other in others)}) == 5


def test_a_single_list_of_one_text_is_a_batch_of_one(small):
    assert small.to_inputs(["see"], images=[picture(0)]).digest() == small.to_inputs("see", images=picture(0)).digest()


@pytest.mark.parametrize(
    ("text", "images", "error", "says"),
    [
        ("<image> and <image>", [0], ValueError, "2 in .* and 1 image"),
        ("<image>", None, ValueError, "1 in .* and 0 image"),
        ("<image>", [0, 1], ValueError, "1 in .* and 2 image"),
        (["a", "the"], [0], ValueError, "got 1 entries"),
        (["a", "the"], 0, ValueError, "got one image"),
        ("a", 3.5, TypeError, "got a float"),
        ("a", "missing.png", FileNotFoundError, "no picture at"),
        ("", None, ValueError, "empty text and no media"),
        (["a", "  "], None, ValueError, "empty text and no media"),
        ([], None, ValueError, "at least one row"),
    ],
)
def test_text_and_images_that_do_not_match_are_refused(small, text, images, error, says):
    def load(image):
        return picture(image) if isinstance(image, int) else image

    images = [load(image) for image in images] if isinstance(images, list) else load(images)
    with pytest.raises(error, match=says):
        small.to_inputs(text, images=images)


def test_files_that_are_no_images_and_media_that_the_model_has_no_tower_for_are_refused(small, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="not a picture"):
        small.to_inputs("a", images=tmp_path / "text.png")
    with pytest.raises(ValueError, match="takes image, got audio"):
        small.to_inputs("a", audio=np.zeros(8))
    with pytest.raises(ValueError, match="takes image, got video"):
        small.to_inputs("a", videos=np.zeros((2, 4, 4, 3)))
    with pytest.raises(ValueError, match=r"2 text\(s\) and 1 answer"):
        small.to_inputs(["a", "the"], answer=["red"])
    with pytest.raises(ValueError, match="at least one row"):
        Inputs.from_rows([], pad=0)


# ---------------------------------------------------------------- grids


@LLAVA
@pytest.mark.parametrize("size", SIZES)
def test_boxes_tile_the_region_and_a_pixel_belongs_to_the_box_around_it(model, size):
    grid = model.to_inputs("see", images=picture(0, *size)).grids[0][0]
    left, top, right, bottom = grid.region
    assert len(grid) == grid.rows * grid.columns and grid.size == size
    assert -1e-9 <= left < right <= size[0] + 1e-9 and -1e-9 <= top < bottom <= size[1] + 1e-9
    boxes = np.array([grid.box(i) for i in range(len(grid))]).reshape(grid.rows, grid.columns, 4)
    np.testing.assert_allclose(boxes[:, 1:, 0], boxes[:, :-1, 2])
    np.testing.assert_allclose(boxes[1:, :, 1], boxes[:-1, :, 3])
    np.testing.assert_allclose(
        [boxes[..., 0].min(), boxes[..., 1].min(), boxes[..., 2].max(), boxes[..., 3].max()], grid.region
    )
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    np.testing.assert_allclose(areas.sum(), (right - left) * (bottom - top))
    for index, (x0, y0, x1, y1) in enumerate(boxes.reshape(-1, 4)):
        assert grid.index((x0 + x1) / 2, (y0 + y1) / 2) == index
        assert grid.index(x0 + 1e-6 * (x1 - x0), y0 + 1e-6 * (y1 - y0)) == index
    for x, y in [(left - 0.1, top), (right, top), (left, bottom), (left, top - 0.1)]:
        assert grid.index(x, y) is None
    for index in (-1, len(grid)):
        with pytest.raises(IndexError, match="has positions 0 to"):
            grid.box(index)


@pytest.mark.parametrize(
    "grid",
    [
        Grid(3, 4, (0.0, 0.0, 20.0, 15.0), (20, 15)),
        Grid(3, 4, (1.3, 2.7, 18.9, 14.1), (20, 15)),
        Grid(5, 5, (2.5, 0.0, 9.5, 7.0), (12, 7)),  # boxes smaller than two pixels
    ],
)
def test_overlap_is_the_covered_area_over_the_boxs_area(grid):
    width, height = grid.size
    mask = np.random.default_rng(0).random((height, width)) < 0.4
    truth = np.zeros(len(grid))
    for index in range(len(grid)):
        left, top, right, bottom = grid.box(index)
        for y, x in np.ndindex(height, width):
            across = max(0.0, min(right, x + 1) - max(left, x))
            down = max(0.0, min(bottom, y + 1) - max(top, y))
            truth[index] += across * down * mask[y, x]
        truth[index] /= (right - left) * (bottom - top)
    np.testing.assert_allclose(grid.overlap(torch.tensor(mask)).numpy(), truth, atol=1e-9)
    assert 0 < truth.max() <= 1
    torch.testing.assert_close(grid.overlap(torch.ones(height, width).bool()), torch.ones(len(grid), dtype=torch.float64))
    assert not grid.overlap(torch.zeros(height, width).bool()).any()
    with pytest.raises(ValueError, match=rf"\[{height}, {width}\]"):
        grid.overlap(torch.ones(width, height).bool())


@LLAVA
@pytest.mark.parametrize("size", SIZES)
def test_what_lies_in_a_box_is_what_the_processor_showed_at_that_position(model, size):
    """A picture whose red says x and whose green says y: a patch's mean colour then says where it was cut from."""
    width, height = size
    ramp = np.zeros((height, width, 3), dtype=np.uint8)
    ramp[..., 0] = np.round((np.arange(width) + 0.5) / width * 255)[None]
    ramp[..., 1] = np.round((np.arange(height) + 0.5) / height * 255)[:, None]
    inputs = model.to_inputs("see", images=Image.fromarray(ramp))
    settings, grid = model.processor.image_processor, inputs.grids[0][0]
    pixels = inputs.tower["pixel_values"][0].numpy()
    colours = (pixels * np.array(settings.image_std)[:, None, None] + np.array(settings.image_mean)[:, None, None]) * [
        [[1.0]]
    ]
    patches = colours[:2].reshape(2, grid.rows, pixels.shape[1] // grid.rows, grid.columns, pixels.shape[2] // grid.columns)
    seen = patches.mean((2, 4)).reshape(2, -1) * np.array([[width], [height]])
    boxes = np.array([grid.box(index) for index in range(len(grid))])
    centres = np.stack([(boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2])
    assert np.abs(seen - centres).max() < 0.25  # of a pixel of the picture: colours have 8 bits


def test_a_grid_with_gaps_says_nothing_of_what_was_left_out():
    columns, rows = ((0.0, 4.0), (4.0, 8.0), (10.0, 14.0)), ((1.0, 3.0), (5.0, 7.0))
    grid = Grid(2, 3, (0.0, 1.0, 14.0, 7.0), (16, 8), rows_at=rows, columns_at=columns)
    assert [grid.box(index) for index in (2, 4)] == [(10.0, 1.0, 14.0, 3.0), (4.0, 5.0, 8.0, 7.0)]
    assert [grid.index(x, 1.5) for x in (0.0, 7.9, 8.0, 9.9, 10.0, 13.9, 14.0)] == [0, 1, None, None, 2, 2, None]
    assert [grid.index(5.0, y) for y in (0.5, 2.0, 4.0, 5.0, 6.9)] == [None, 1, None, 4, 4]
    mask = torch.zeros(8, 16).bool()
    mask[2:6, 6:12] = True
    truth = [0, 0.25, 0.25, 0, 0.25, 0.25]
    assert grid.overlap(mask).tolist() == truth == grid.box_overlap((6.0, 2.0, 12.0, 6.0)).tolist()


def test_a_newline_alone_is_a_position_without_a_place(tmp_path):
    cells, end = Grid(1, 2, (0.0, 0.0, 4.0, 2.0), (4, 2)), Grid(1, 0, (0.0, 0.0, 4.0, 2.0), (4, 2), newline=True)
    place = Tiles((cells, end), (4, 2))
    assert len(end) == 1 and len(place) == 3
    assert place.box(2) is None and end.index(1.0, 1.0) is None and place.indices(1.0, 1.0) == [0]
    assert place.overlap(torch.ones(2, 4).bool()).tolist() == [1, 1, 0] == place.box_overlap((0.0, 0.0, 4.0, 2.0)).tolist()
    assert [grid for grid, _ in place.painted(torch.arange(3))] == [cells] == list(finest(place))
    assert Tiles.load(place.save(tmp_path / "place")) == place
