"""Pages of what lies on media: boxes where the grids say, numbers as the results hold them, and no word is ever markup."""

import base64
import html
import json
import math
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import torch
from drawn_circuit import HOSTILE
from PIL import Image
from support import medium, picture, sound

from mmlens import HookedMLLM, plot
from mmlens.analysis import AttentionRows, AttentionSinks, LogitLens, attention_rows, attention_sinks, logit_lens
from mmlens.grid import Grid, Tiles, Timeline
from mmlens.inputs import Inputs, Row
from mmlens.media import Sound, Video
from mmlens.plot.canvas import spelled
from mmlens.plot.stage import HIGH, WIDE, packed, staged, words_of
from mmlens.results import Provenance
from mmlens.testing import tiny

SPELLED = HOSTILE.replace("\u2028", "\\u2028")
PROVENANCE = Provenance("tiny", None, "0" * 16, (), {}, None, {}, "2026-01-01T00:00:00+00:00")


@pytest.fixture(scope="module")
def model():
    return HookedMLLM.from_pretrained("pictoworld", device="cpu")


@pytest.fixture(scope="module")
def inputs(model):
    return model.to_inputs(["what is it ?", f"{HOSTILE} the red one"], images=[picture(0), picture(1, 64, 30)])


@pytest.fixture(scope="module")
def lens(model, inputs):
    return logit_lens(model, inputs, targets=[7, 9])


@pytest.fixture(scope="module")
def rows(model, inputs):
    return attention_rows(model, inputs, queries=inputs.mask("text") | inputs.last())


def row_of(*media):
    """Return inputs of one row that holds media, each with its place, between two words."""
    tokens, modality, owner = [1], ["text"], [-1]
    for number, (what, _, count) in enumerate(media):
        kind = "audio" if isinstance(what, Sound) else "video" if isinstance(what, Video) else "image"
        tokens += [3] * count
        modality += [kind] * count
        owner += [number] * count
    row = Row(
        text="a b",
        tokens=[*tokens, 2],
        modality=[*modality, "text"],
        medium=[*owner, -1],
        tower={},
        grids=tuple(place for _, place, _ in media),
        media=tuple(what for what, *_ in media),
    )
    return Inputs.from_rows([row], pad=0)


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page.html)[1])


def numbers(text, bits, *shape):
    return torch.tensor(np.frombuffer(base64.b64decode(text), f"<u{bits // 8}").astype(np.int64)).view(*shape)


def shares(one, least, *shape):
    """Return the shares that a page holds on its logarithmic scale."""
    code, most = numbers(one["values"], one["bits"], *shape).double(), 2 ** one["bits"] - 1
    return (-math.log(least) * (code - most) / (most - 1)).exp().where(code > 0, 0.0)


def drawn_boxes(text):
    """Return the boxes that a stage's HTML gives: position to x, y, width, height, view by view."""
    return [
        {n: box for n, *box in json.loads(cells)}
        for cells in (html.unescape(c) for c in re.findall('data-cells="(.*?)"', text))
    ]


def near(box, edges):
    x0, y0, x1, y1 = edges
    assert box == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=0.011)


def test_every_position_of_a_row_has_one_place_on_a_stage(tmp_path):
    for family in ("llava-next-clip-mistral", "llava-onevision-siglip-qwen2", "instructblip-llama", "qwen2-audio"):
        own = HookedMLLM.from_pretrained(tiny(family, tmp_path / family), device="cpu")
        name, one = medium(own, 0)
        inputs = own.to_inputs(["what", "what is in it ?"], **{name: [one, one]})
        for row in (0, 1):
            stage = staged(inputs, row, words=words_of(own, inputs.tokens[row]))
            held = sorted(position for view in stage.views for position in view.positions)
            assert held == inputs.attention_mask[row].nonzero()[:, 0].tolist()
            assert stage.media() == (inputs.medium[row] >= 0).nonzero()[:, 0].tolist()
            assert stage.about().count("padding") == int((inputs.attention_mask[row] == 0).sum())


def test_boxes_of_several_pictures_that_are_not_square_are_those_of_their_grids():
    first = Grid(2, 4, (0.0, -30.0, 100.0, 70.0), (100, 40))  # padded to a square: the region is larger than the picture
    second = Grid(3, 3, (20.0, 0.0, 50.0, 30.0), (70, 30))  # cropped
    inputs = row_of((picture(0, 100, 40), first, 8), (picture(1, 70, 30), second, 9))
    stage = staged(inputs, 0)
    one, other = drawn_boxes(stage.html("s"))
    assert sorted(one) == list(range(1, 9)) and sorted(other) == list(range(9, 18))
    for index in range(8):
        near(one[1 + index], first.box(index))
    for index in range(9):
        near(other[9 + index], second.box(index))
    text = stage.html("s")
    assert 'viewBox="0 -30 100 100"' in text and 'viewBox="20 0 30 30"' in text
    assert '<image id="s-0-image" width="100" height="40"' in text and '<image id="s-1-image" width="70" height="30"' in text
    assert stage.about()[9] == "image:1, x 20 to 30, y 0 to 10, position 9"
    assert "image:0, 100 x 40 pixels, 8 positions" in text and "image:1, 70 x 30 pixels, 9 positions" in text


def test_overlapping_tiles_are_drawn_apart_the_finest_first_and_ends_of_rows_behind_them():
    size = (80, 40)
    whole = Grid(2, 2, (0.0, -20.0, 80.0, 60.0), size)
    left, right = (Grid(2, 2, (x, 0.0, x + 40, 40.0), size, newline=True) for x in (0.0, 40.0))
    closing = Grid(1, 0, (0.0, 0.0, 80.0, 40.0), size, newline=True)
    place = Tiles((whole, Grid(2, 4, (0.0, 0.0, 80.0, 40.0), size, newline=True), closing), size)
    inputs = row_of((picture(0, *size), place, len(place)))
    stage = staged(inputs, 0)
    text = stage.html("s")
    fine, coarse = drawn_boxes(text)
    assert sorted(fine) == list(range(5, 15)) and sorted(coarse) == [1, 2, 3, 4]
    for index in range(len(place) - 1):
        if (box := place.box(index)) is not None:
            near((coarse if index < 4 else fine)[1 + index], box)
    near(fine[9], (80, 0, 80 + 0.35 * 20, 20))
    assert stage.about()[9] == "image:0, the end of the row y 0 to 20, position 9"
    assert text.count("<image ") == 1 and text.count("<use ") == 1  # the picture is in the page once
    assert stage.views[2].line == ((15, "0"),)
    beside = Tiles((left, right), size)
    assert len(drawn_boxes(staged(row_of((picture(0, *size), beside, len(beside)))).html("s"))) == 1


def test_a_video_is_a_strip_of_the_frames_that_positions_hold_and_a_sound_its_seconds():
    frames = tuple(Image.new("RGB", (60, 30), (40 * n, 0, 0)) for n in range(4))
    grids = tuple(Grid(1, 3, (0.0, 0.0, 60.0, 30.0), (60, 30), frames=(n, n + 2)) for n in (0, 2))
    samples, rate = sound(0, seconds=0.5)
    inputs = row_of(
        (Video(frames, 2.0), Tiles(grids, (60, 30)), 6),
        (Sound(samples, rate), Timeline(10, 0.04), 10),
        (Sound(samples), None, 3),
    )
    stage = staged(inputs, 0)
    first, second, heard, alone, cells, words = stage.views
    assert [view.kind for view in stage.views] == ["frame", "frame", "sound", "sound", "cells", "text"]
    assert first.positions == [1, 2, 3] and second.positions == [4, 5, 6] and words.positions == [0, 20]
    assert "frames 2 to 3, 1 s" in second.alt and first.image != second.image
    for index, (_, box) in enumerate(heard.cells):
        assert [edge * heard.seconds / WIDE for edge in (box[0], box[2])] == pytest.approx(Timeline(10, 0.04).seconds(index))
        assert (box[1], box[3]) == (0.0, HIGH)
    assert heard.seconds == pytest.approx(0.5) and alone.cells == () and cells.positions == [17, 18, 19]
    assert stage.about()[8] == "audio:0, 0.04 to 0.08 s, position 8"
    assert stage.html("s").count('class="strip"') == 1


def test_a_spectrogram_is_bright_where_the_tone_is():
    time = np.arange(8000) / 16_000
    tone = np.where(time < 0.25, np.sin(2 * np.pi * 1000 * time), 0).astype(np.float32)
    view = staged(row_of((Sound(tone, 16_000), Timeline(10, 0.05), 10)), 0).views[0]
    pixels = np.asarray(Image.open(BytesIO(view.image)), dtype=float)
    quarter = pixels.shape[1] // 4
    place = pixels[:, :quarter].mean(1).argmax() / (len(pixels) - 1)  # from 8000 Hz at the top to 60 Hz, logarithmic
    assert 8000 * (60 / 8000) ** place == pytest.approx(1000, rel=0.05)
    assert pixels[:, :quarter].max() == 255 and pixels[:, -quarter:].max() < 40


def test_a_lens_page_holds_the_words_and_probabilities_of_the_lens(model, inputs, lens):
    for row in (0, 1):
        data = data_of(plot.image_lens(lens, inputs, model=model, row=row, most=6))
        first = int(inputs.attention_mask[row].argmax())
        shape = (len(lens.tokens), inputs.tokens.shape[1] - first)
        assert (data["first"], data["length"], data["k"]) == (first, shape[1], 6)
        words = [data["words"][n] for n in numbers(data["tokens"], data["bits"], -1).tolist()]
        assert words == [spelled(w, 40) for w in words_of(model, lens.tokens[:, row, first:, :6].flatten())]
        nats = -numbers(data["nats"], 16, *shape, 6) / data["per"]["nats"]
        torch.testing.assert_close(nats, lens.log_probs[:, row, first:, :6], atol=3e-4, rtol=0)
        entropy = numbers(data["entropy"], 16, *shape) / data["per"]["entropy"]
        torch.testing.assert_close(entropy, lens.entropy[:, row, first:], atol=2e-4, rtol=0)
        for number, target in enumerate(data["targets"]):
            own = lens.target_log_probs[:, row, first:, number]
            torch.testing.assert_close(
                -numbers(target["nats"], 16, *shape) / 2000, own.clamp(min=-32.7675), atol=3e-4, rtol=0
            )
            assert torch.equal(numbers(target["ranks"], 32, *shape), lens.target_ranks[:, row, first:, number])
        assert [first + n for n in data["media"]] == inputs.mask("image")[row].nonzero()[:, 0].tolist()
        assert data["of"] == "positions on media"
    assert data["layers"] == ["0", "1", "2", "3", "4", "output"]


def test_an_attention_page_holds_the_shares_of_the_rows(model, inputs, rows):
    sinks = attention_sinks(model, inputs)
    sinks = AttentionSinks(
        drawn=sinks.drawn.index_fill(-1, torch.tensor([12]), 0.9), layers=sinks.layers, provenance=PROVENANCE
    )
    group = [(1, 2), (3, 0)]
    for row in (0, 1):
        data = data_of(plot.attention_page(rows, inputs, model=model, row=row, sinks=sinks, groups={HOSTILE: group}))
        asked = rows.queries[row] >= 0
        pattern = rows.pattern[:, row][:, :, asked].double()
        assert [one["position"] for one in data["queries"]] == rows.queries[row][asked].tolist()
        single = shares(data["single"], data["least"], *pattern.shape)
        torch.testing.assert_close(single, pattern, atol=1e-7, rtol=3e-4)
        mean = shares(data["mean"], data["least"], *pattern.mean(1).shape)
        torch.testing.assert_close(mean, pattern.mean(1), atol=1e-7, rtol=3e-4)
        one = shares({"bits": 16, **data["groups"][0]}, data["least"], *pattern.shape[2:])
        torch.testing.assert_close(one, (pattern[1, 2] + pattern[3, 0]) / 2, atol=1e-7, rtol=3e-4)
        assert data["groups"][0]["heads"] == ["L1H2", "L3H0"]
        sums = numbers(data["shares"]["single"], 16, *pattern.shape[:3], len(data["names"])) / 65535
        for number, mass in {
            data["names"].index("image:0"): rows.mass("image"),
            data["names"].index("sinks"): rows.mass(sinks.where()),
        }.items():
            torch.testing.assert_close(sums[..., number], mass[:, row][:, :, asked], atol=2e-5, rtol=0)
        parts = [n for n, name in enumerate(data["names"]) if name != "sinks"]
        torch.testing.assert_close(sums[..., parts].sum(-1), torch.ones(pattern.shape[:3]), atol=1e-4, rtol=0)
        assert (
            data["sinks"] == [layer.nonzero()[:, 0].tolist() for layer in sinks.where()[:, row]] and 12 in data["sinks"][0]
        )


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.handlers, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text.append(data)


def test_no_token_caption_or_name_becomes_markup_or_script_and_every_picture_has_its_words(
    model, inputs, lens, rows, monkeypatch
):
    harmless = plot.image_lens(lens, inputs, model=model, row=1), plot.attention_page(rows, inputs, model=model, row=1)
    monkeypatch.setattr(model.tokenizer, "convert_ids_to_tokens", lambda ids: [f"{HOSTILE}{n}" for n in ids])
    pages = (
        plot.image_lens(lens, inputs, model=model, row=1, title=HOSTILE),
        plot.attention_page(rows, inputs, model=model, row=1, title=HOSTILE, groups={HOSTILE: [(0, 0)]}),
    )
    for page, calm in zip(pages, harmless, strict=True):
        found, before = Elements(), Elements()
        found.feed(page.html)
        before.feed(calm.html)
        kinds = [tag for tag, _ in found.tags if tag not in ("span", "option")]
        assert kinds == [tag for tag, _ in before.tags if tag not in ("span", "option")]
        assert not found.handlers and "\u2028" not in page.html and kinds.count("script") == 2
        assert SPELLED in "".join(found.text)
        assert "default-src 'none'" in page.html and not re.search(r"(src|href)=\"(?!data:|#)", page.html)
        drawings = [about for tag, about in found.tags if tag == "svg"]
        assert drawings and all(about.get("aria-label") for about in drawings)
        data_of(page)


def test_entries_of_the_vocabulary_without_a_token_are_numbers(model, monkeypatch):
    monkeypatch.setattr(model.tokenizer, "convert_ids_to_tokens", lambda ids: [None if n == 9 else "\u2581a" for n in ids])
    assert words_of(model, torch.tensor([8, 9])) == [" a", "[9]"]


def test_a_large_page_stays_small_and_many_heads_are_left_out_in_words(model, monkeypatch):
    monkeypatch.setattr(model.tokenizer, "convert_ids_to_tokens", lambda ids: [f"word{n}" for n in ids])
    grid = Grid(24, 24, (0.0, 0.0, 336.0, 336.0), (336, 336))
    inputs = row_of((picture(0, 336, 336), grid, 576))
    random = torch.Generator().manual_seed(0)
    length = inputs.tokens.shape[1]
    shape = (33, 1, length)
    none = torch.zeros(*shape, 0)
    lens = LogitLens(
        site="resid",
        tokens=torch.randint(0, 150_000, (*shape, 10), generator=random),
        log_probs=-10 * torch.rand(*shape, 10, generator=random),
        entropy=5 * torch.rand(shape, generator=random),
        targets=torch.zeros(0, dtype=torch.long),
        target_log_probs=none,
        target_ranks=none.long(),
        provenance=PROVENANCE,
    )
    assert len(plot.image_lens(lens, inputs, model=model).html) < 3_700_000  # as many words as there can be
    usual = LogitLens(**{**vars(lens), "tokens": lens.tokens % 20_000})
    assert len(plot.image_lens(usual, inputs, model=model).html) < 2_000_000
    for count, most, left in ((1, 2_200_000, False), (3, 3_000_000, False), (10, 1_500_000, True)):
        rows = AttentionRows(
            pattern=torch.rand(32, 1, 32, count, length, generator=random).softmax(-1),
            layers=tuple(range(32)),
            heads=tuple(range(32)),
            queries=torch.arange(length - count, length)[None],
            modality=inputs.modality,
            medium=inputs.medium,
            grids=inputs.grids,
            provenance=PROVENANCE,
        )
        page = plot.attention_page(rows, inputs, model=model)
        assert len(page.html) < most and ("Single heads are left out" in page.html) == left
        if count == 3:  # a byte for each share
            single = shares(data_of(page)["single"], 1e-7, *rows.pattern[:, 0].shape)
            torch.testing.assert_close(single, rows.pattern[:, 0].double(), atol=0, rtol=0.04)


def test_packed_numbers_come_back_and_those_out_of_range_stay_at_its_end():
    assert numbers(packed([0, 1.4, 255, 300, -2], 8), 8, -1).tolist() == [0, 1, 255, 255, 0]
    assert numbers(packed(torch.tensor([70_000, 3]), 32), 32, -1).tolist() == [70_000, 3]


def test_pages_of_other_inputs_and_heads_say_what_to_give(model, inputs, lens, rows, tmp_path):
    other = model.to_inputs("a red one", images=picture(0))
    with pytest.raises(ValueError, match="inputs that it read"):
        plot.image_lens(lens, other, model=model)
    with pytest.raises(ValueError, match="inputs that it was measured on"):
        plot.attention_page(rows, other, model=model)
    with pytest.raises(ValueError, match="at least the layers"):
        plot.attention_page(rows, inputs, model=model, sinks=attention_sinks(model, inputs, layers=[1]))
    with pytest.raises(ValueError, match="choose among these"):
        plot.attention_page(rows, inputs, model=model, groups={"beyond": [(0, 99)]})
    queries = inputs.last()
    queries[1] = False
    with pytest.raises(ValueError, match="row 1 has no query"):
        plot.attention_page(attention_rows(model, inputs, queries=queries), inputs, model=model, row=1)
    assert plot.image_lens(lens, inputs, model=model).save(tmp_path / "own" / "page.html").stat().st_size < 200_000
