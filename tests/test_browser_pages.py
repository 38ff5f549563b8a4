"""Pages with pictures as a reader uses them: opened in a real browser, by mouse and by keys, with the network cut."""

import re

import pytest
import torch
from browser import NEEDED, Browser
from drawn_circuit import HOSTILE
from support import medium, picture

from mmlens import HookedMLLM, plot
from mmlens.analysis import AttentionSinks, attention_rows, attention_sinks, logit_lens
from mmlens.plot.html import Page
from mmlens.plot.stage import words_of
from mmlens.testing import tiny

pytestmark = [
    pytest.mark.slow,
    NEEDED,
]
SPELLED = HOSTILE.replace("\u2028", "\\u2028")
PANEL = "document.getElementById('panel').innerText"
LEGEND = "document.getElementById('legend').innerText"
CELLS = "#stage .cells .cell"
ALONG = f"[...document.querySelectorAll('{CELLS}')].sort((a, b) => a.dataset.position - b.dataset.position)"
OPACITIES = f"{ALONG}.map(c => Number(c.style.fillOpacity))"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def model():
    return HookedMLLM.from_pretrained("pictoworld", device="cpu")


@pytest.fixture(scope="module")
def inputs(model):
    return model.to_inputs(f"{HOSTILE} <image> and <image> the red one", images=[picture(0, 50, 40), picture(1, 40, 60)])


@pytest.fixture(scope="module")
def lens(model, inputs):
    return logit_lens(model, inputs, targets=[7])


@pytest.fixture(scope="module")
def rows(model, inputs):
    return attention_rows(model, inputs, queries=inputs.mask("text"))


@pytest.fixture(scope="module")
def sinks(model, inputs):
    """Sinks that are one position, the strongest that the last query sees on a picture at layer 2."""
    found = attention_sinks(model, inputs)
    pattern = attention_rows(model, inputs).pattern[2, 0, :, 0].mean(0)
    strongest = int((pattern * inputs.mask("image")[0]).argmax())
    drawn = torch.zeros_like(found.drawn).index_fill(-1, torch.tensor([strongest]), 0.9)
    return AttentionSinks(drawn=drawn, layers=found.layers, provenance=found.provenance), strongest


@pytest.fixture
def lens_page(browser, model, inputs, lens, tmp_path, monkeypatch):
    """The page of a lens, whose token 8 is hostile."""
    plain = model.tokenizer.convert_ids_to_tokens
    monkeypatch.setattr(
        model.tokenizer,
        "convert_ids_to_tokens",
        lambda ids: [HOSTILE if n == 8 else word for n, word in zip(ids, plain(ids), strict=True)],
    )
    browser.open(plot.image_lens(lens, inputs, model=model, title=HOSTILE).save(tmp_path / "lens.html"))
    yield browser
    assert browser.said() == []


@pytest.fixture
def attention(browser, model, inputs, rows, sinks, tmp_path):
    page = plot.attention_page(rows, inputs, model=model, sinks=sinks[0], groups={HOSTILE: [(0, 0), (4, 3)]}, title=HOSTILE)
    browser.open(page.save(tmp_path / "attention.html"))
    yield browser
    assert browser.said() == []


def at(browser, position):
    """Return which of the cells on pictures shows that position of the stream."""
    return browser.ask(f"[...document.querySelectorAll('{CELLS}')].findIndex(c => c.dataset.position == {position})")


def share(text):
    """Return the number that a percentage in the text stands for."""
    return float(re.search(r"([\d.]+)\s%", text)[1]) / 100


def test_a_position_tells_its_words_and_the_layer_changes_them(lens_page, model, inputs, lens):
    position = int(inputs.mask("image:1")[0].nonzero()[21])
    assert "Point at a position" in lens_page.ask(PANEL)
    lens_page.click(CELLS, at(lens_page, position))
    for layer in (5, 3):
        words = words_of(model, lens.tokens[layer, 0, position])
        lines = lens_page.ask("[...document.querySelectorAll('#panel table:first-of-type tr')].map(r => r.innerText)")
        assert "image:1" in lens_page.ask(PANEL) and f"position {position}" in lens_page.ask(PANEL)
        assert [line.split("\t")[0] for line in lines[:10]] == [w if w != HOSTILE else SPELLED for w in words]
        assert share(lines[0]) == pytest.approx(float(lens.log_probs[layer, 0, position, 0].exp()), rel=0.06, abs=6e-3)
        shown = lens_page.ask(f"document.querySelectorAll('{CELLS}').length")
        assert shown == 128 and lens_page.ask(OPACITIES) == pytest.approx(
            [0.72 * float(lens.log_probs[layer, 0, n, 0].exp()) for n in inputs.mask("image")[0].nonzero()[:, 0]], abs=2e-3
        )
        lens_page.press("-", "-")
    assert lens_page.ask("document.getElementById('told').value") == "layer 1"


def test_arrow_keys_move_over_a_picture_and_along_the_words(lens_page, model, inputs, lens):
    first = int(inputs.mask("image:0")[0].nonzero()[0])
    lens_page.ask("document.querySelector('#stage [role=listbox]').focus()")
    lens_page.press("ArrowRight")
    assert f"position {first}" in lens_page.ask(PANEL)
    lens_page.press("ArrowRight", "ArrowDown", "ArrowDown")
    assert f"position {first + 17}" in lens_page.ask(PANEL)
    chosen = f"stage-at-{first + 17}"
    assert lens_page.ask("document.activeElement.getAttribute('aria-activedescendant')") == chosen
    said = lens_page.ask(f"document.getElementById('{chosen}').getAttribute('aria-label')")
    word = words_of(model, lens.tokens[-1, 0, first + 17, :1])[0]
    assert said.startswith("image:0, x ") and said.endswith(f"position {first + 17}: {word}")
    lens_page.press("ArrowUp", "ArrowLeft", "ArrowLeft")
    assert f"position {first + 8}" in lens_page.ask(PANEL)
    lens_page.press("Escape")
    assert "Point at a position" in lens_page.ask(PANEL)
    lens_page.ask("document.querySelector('#stage .text [role=listbox]').focus()")
    lens_page.press("End")
    assert f"position {inputs.tokens.shape[1] - 1}" in lens_page.ask(PANEL)
    lens_page.press("ArrowLeft")
    assert f"position {inputs.tokens.shape[1] - 2}" in lens_page.ask(PANEL)


def test_a_word_is_coloured_where_it_is_read(lens_page, model, inputs, lens):
    lens_page.press("-")  # layer 4
    word = words_of(model, lens.tokens[4, 0, inputs.mask("image")[0], 0])[0]
    lens_page.ask(f"document.getElementById('word').value = {word!r}")
    lens_page.ask("document.getElementById('word').dispatchEvent(new Event('input'))")
    held = torch.tensor([[w == word for w in words_of(model, own)] for own in lens.tokens[:, 0].flatten(0, 1)])
    chances = (lens.log_probs[:, 0].exp() * held.view(lens.tokens[:, 0].shape)).sum(-1)
    shown = chances[4, inputs.mask("image")[0]] / chances.max()
    assert lens_page.ask(OPACITIES) == pytest.approx((0.72 * shown).tolist(), abs=2e-3)
    top = int((lens.tokens[4, 0, inputs.mask("image")[0], 0] == model.tokenizer.convert_tokens_to_ids(word)).sum())
    assert f"the top word at {top} of 128 positions" in lens_page.ask(LEGEND)
    lens_page.click("#chips button")  # the target, known at every position
    target = lens.target_log_probs[:, 0, :, 0].exp()
    shown = target[4, inputs.mask("image")[0]] / target.max()
    assert lens_page.ask(OPACITIES) == pytest.approx((0.72 * shown).tolist(), abs=2e-3)
    lens_page.click("#clear")
    assert "the top word's probability" in lens_page.ask(LEGEND)


def test_hostile_tokens_names_and_questions_are_shown_as_text(lens_page, attention):
    assert attention.ask("document.title") == SPELLED and attention.ask("document.images.length") == 0
    assert SPELLED in attention.ask("document.getElementById('head').innerText")
    assert SPELLED in attention.ask("document.body.innerText")


def test_zoom_makes_pictures_larger_and_words_with_them(lens_page):
    size = "document.querySelector('#stage svg').getBoundingClientRect().width"
    before = lens_page.ask(size)
    lens_page.ask("document.querySelector('.zoom').focus()")
    lens_page.press("ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight")
    assert lens_page.ask(size) == pytest.approx(2 * before, rel=0.01)
    assert lens_page.ask("document.querySelectorAll('#stage .words text').length") == 128
    lens_page.size(500, 900)
    assert lens_page.ask("document.documentElement.scrollWidth") <= 500


def test_heat_shares_and_the_legend_are_those_of_layer_head_and_query(attention, model, inputs, rows, sinks):
    pattern, image = rows.pattern[:, 0], inputs.mask("image")[0]
    queries = [int(q) for q in rows.queries[0]]

    def same(values):
        scaled = values[image] / values[image].max()
        assert attention.ask(OPACITIES) == pytest.approx((0.72 * scaled).tolist(), abs=3e-3)
        assert share(attention.ask(LEGEND)) == pytest.approx(float(values[image].max()), rel=0.06, abs=6e-3)
        told = attention.ask("document.querySelectorAll('#shares tr')[1].innerText")
        assert share(told) == pytest.approx(float(values[inputs.mask("image:0")[0]].sum()), rel=0.06, abs=6e-3)

    same(pattern[2, :, -1].mean(0))
    attention.press("+", "]", "]", "]")  # mean, the group, head 0, head 1
    same(pattern[3, 1, -1])
    words = attention.ask("[...document.querySelectorAll('#stage .text .cell')].map(c => Number(c.dataset.position))")
    position = queries[-3]
    attention.click("#stage .text .cell", words.index(position))
    same(pattern[3, 1, queries.index(position)])
    attention.press("[")
    attention.press("[")  # the group
    same((pattern[0, 0, queries.index(position)] + pattern[4, 3, queries.index(position)]) / 2)
    attention.click("#map rect", 1)  # layer 0, head 1
    same(pattern[0, 1, queries.index(position)])


def test_sinks_are_crossed_and_left_out_of_the_colours_where_asked(attention, inputs, rows, sinks):
    own = rows.pattern[2, 0, :, -1].mean(0)
    image = inputs.mask("image")[0]
    place = image.nonzero()[:, 0].tolist().index(sinks[1])
    assert attention.ask("document.querySelectorAll('#stage .words path').length") == 1
    assert attention.ask(OPACITIES)[place] == pytest.approx(0.72)
    attention.click("#without")
    rest = own.index_fill(0, torch.tensor([sinks[1]]), 0.0)[image]
    assert attention.ask(OPACITIES) == pytest.approx((0.72 * rest / rest.max()).tolist(), abs=3e-3)
    assert "sinks (crossed) left out" in attention.ask(LEGEND)
    attention.click(CELLS, at(attention, sinks[1]))
    assert attention.ask("document.getElementById('here').innerText").endswith(", a sink")
    said = attention.ask(f"document.getElementById('stage-at-{sinks[1]}').getAttribute('aria-label')")
    assert said.endswith(", a sink") and "%" in said


@pytest.mark.parametrize("family", ["llava-next-clip-mistral", "qwen2-audio", "qwen2-vl", "instructblip-llama"])
def test_every_kind_of_medium_can_be_explored_in_a_notebook_and_alone(browser, family, tmp_path):
    own = HookedMLLM.from_pretrained(tiny(family, tmp_path / family), device="cpu")
    name, one = medium(own, 0, "video" if family == "qwen2-vl" else None)
    inputs = own.to_inputs("what is it ?", **{name: one})
    pages = (
        plot.image_lens(logit_lens(own, inputs), inputs, model=own),
        plot.attention_page(attention_rows(own, inputs), inputs, model=own),
    )
    for page in pages:
        browser.open(page.save(tmp_path / "page.html"))
        held = browser.ask(
            "[...document.querySelectorAll('#stage .cell')].map(c => Number(c.dataset.position)).sort((a, b) => a - b)"
        )
        assert held == list(range(inputs.tokens.shape[1]))
        cells = browser.ask("document.querySelectorAll('#stage .cell').length")
        browser.click("#stage .cell", cells // 3)
        chosen = "document.querySelector('#stage .chosen').dataset.position"
        assert browser.ask(chosen) is not None
        browser.press("Home")
        first = browser.ask(chosen)
        browser.press("End")
        assert browser.ask(chosen) != first
        assert browser.said() == []
        around = tmp_path / "notebook.html"
        around.write_text(f"<!doctype html><meta charset='utf-8'>{Page(page.html)._repr_html_()}", encoding="utf-8")
        browser.open(around)
        assert browser.said() == []
