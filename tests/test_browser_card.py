"""A neuron's card and CircuitsVis' views as a reader uses them: in a real browser, by mouse and keys, the network cut."""

import json
import time
from dataclasses import replace

import pytest
import torch
from browser import NEEDED, Browser
from drawn_circuit import HOSTILE
from support import picture

from mmlens import HookedMLLM, Neurons, plot
from mmlens.analysis import ablation_curve, decode, receptive_field, time_field
from mmlens.organisms import pictosound
from mmlens.plot.circuits_vis import JOINER
from mmlens.plot.html import Page

pytestmark = [
    pytest.mark.slow,
    NEEDED,
]
SPELLED = HOSTILE.replace("\u2028", "\\u2028")
WORDS = ["<s>", "<image>", "a", "&", "&amp;", "\n", "</script>", "x\u2028", HOSTILE]
SHOWN = ["<s>", "<image>", "a", "&", "&amp;", "\\n", "</script>", "x\\u2028", SPELLED]
FOCUSED = "document.activeElement.innerText"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def card():
    """Three neurons on two pictures, the words of the second hostile; and the fields."""
    model = HookedMLLM.from_pretrained("pictoworld", device="cpu")
    neurons = Neurons.of([(0, 1), (2, 4), (1, 3)], model.widths)
    inputs = model.to_inputs([f"{HOSTILE} ?", "the red one"], images=[picture(0), picture(1, 40, 60)])
    decoding = decode(model, neurons, k=3)
    decoding = replace(decoding, words=(decoding.words[0], (HOSTILE, "<s>", "&lt;"), decoding.words[2]))
    fields = [receptive_field(model, inputs, neurons, row=row) for row in (0, 1)]
    curve = ablation_curve(model, inputs, torch.tensor([7, 8]), neurons, ks=[0, 1, 3], draws=2)
    return plot.neuron_card(decoding, fields=fields, inputs=inputs, ablation=curve, title=HOSTILE), fields, inputs


@pytest.fixture
def page(browser, card, tmp_path):
    browser.open(card[0].save(tmp_path / "card.html"))
    yield browser
    assert browser.said() == []


def opacities(browser, n):
    """Return how strongly each cell of the n-th field is coloured, by its place in the stream; blue ones below 0."""
    cells = (
        f"[...document.querySelectorAll('#field{n} .cells .cell')].sort((a, b) => a.dataset.position - b.dataset.position)"
    )
    return torch.tensor(browser.ask(f"{cells}.map(c => c.style.fillOpacity * (c.classList.contains('cold') ? -1 : 1))"))


def test_a_tab_shows_another_neuron_by_click_and_by_keys(page, card):
    _, fields, _ = card
    scale = torch.stack([field.activations.abs().amax(-1) for field in fields]).amax(0)
    for which, move in enumerate((lambda: None, lambda: page.click("[role=tab]", 1), lambda: page.press("ArrowRight"))):
        move()
        names = ("L0.u1", "L2.u4", "L1.u3")
        assert page.ask("document.querySelector('[aria-selected=true][role=tab]').innerText") == names[which]
        assert page.ask("[...document.querySelectorAll('[role=tabpanel]')].map(p => p.hidden)") == [
            n != which for n in range(3)
        ]
        drawn = [opacities(page, n) for n in range(2)]
        most = max(float(one.abs().max()) for one in drawn)
        for one, field in zip(drawn, fields, strict=True):
            torch.testing.assert_close(one / most, field.activations[which] / scale[which], atol=2e-3, rtol=0)
        assert page.ask("document.querySelector('#field0 [role=listbox]').ariaLabel").startswith(names[which])
    page.press("ArrowRight")  # around
    assert page.ask(FOCUSED) == "L0.u1"
    page.press("End")
    assert page.ask(FOCUSED) == "L1.u3"


def test_a_position_tells_its_activation_and_colour_can_be_taken_off(page, card):
    _, fields, inputs = card
    read = "document.getElementById('read1').innerText"
    assert page.ask(read).startswith("strongest")
    page.ask("document.querySelector('#field1 [role=listbox]').focus()")
    page.press("ArrowRight", "ArrowRight")
    position = inputs.mask("image")[1].nonzero()[1, 0]
    value = float(fields[1].activations[0, 1])
    said = page.ask(read)
    assert said.endswith(f"position {position}") and f"{abs(value):#.3g}" in said and said[0] == ("−" if value < 0 else "+")
    page.press("Escape")
    assert page.ask(read).startswith("strongest")
    page.click("#colour")
    assert not opacities(page, 0).any() and not opacities(page, 1).any()
    page.click("#colour")
    assert opacities(page, 0).any()
    wide = "document.querySelector('#field0 svg').getBoundingClientRect().width"
    before = page.ask(wide)
    page.ask("document.getElementById('zoom').focus()")
    page.press("ArrowRight", "ArrowRight")
    assert page.ask(wide) > 1.3 * before


def test_hostile_words_are_shown_as_text_and_every_picture_has_words(page):
    assert page.ask("document.title") == SPELLED and page.ask("document.querySelector('h1').innerText") == SPELLED
    page.click("[role=tab]", 1)
    words = page.ask("[...document.querySelectorAll('#panel1 .words tbody tr')].map(r => r.cells[0].innerText)")
    assert words == [SPELLED[:23] + "…", "<s>", "&lt;"]
    assert page.ask("document.images.length") == 0
    assert page.ask("[...document.querySelectorAll('svg')].every(s => s.ariaLabel || s.ariaHidden)")


def test_a_sounds_field_is_painted_over_its_seconds(browser, tmp_path):
    model = HookedMLLM.from_pretrained("pictosound", device="cpu")
    inputs = model.to_inputs("what is first ? answer :", audio=pictosound.clips(n=1)[0].audio)
    neurons = Neurons.of([(1, 3)], model.widths)
    field = time_field(model, inputs, neurons)
    browser.open(plot.neuron_card(neurons, fields=[field], inputs=inputs).save(tmp_path / "sound.html"))
    own, drawn = field.activations[0], opacities(browser, 0)
    torch.testing.assert_close(drawn / drawn.abs().max(), own / own.abs().max(), atol=2e-3, rtol=0)
    assert " s, position " in browser.ask("document.getElementById('read0').innerText")
    assert browser.said() == []


# ---------------------------------------------------------------- CircuitsVis


def waited(browser, script):
    """Return what a script gives, as soon as it gives something: CircuitsVis draws when the browser is idle."""
    for _ in range(200):
        if found := browser.ask(script):
            return found
        time.sleep(0.05)
    raise AssertionError(f"nothing came of {script}")


@pytest.fixture
def views(browser, tmp_path):
    pattern = torch.full((2, 3, 9, 9), 1 / 9).tril()
    pattern[1, 2] = torch.eye(9)
    values = torch.stack([torch.linspace(-1, 1, 9), torch.linspace(2, -2, 9)])
    units = torch.linspace(0, 1, 9)[None, :, None].repeat(1, 1, 2)
    page = plot.tokens(WORDS, values, names=["up", HOSTILE], title=HOSTILE) + plot.attention_patterns(WORDS, pattern)
    browser.open((page + plot.top_k_tokens([WORDS, WORDS], [units, -units], k=9)).save(tmp_path / "views.html"))
    waited(
        browser, "document.querySelectorAll('#view-0 span span').length && document.querySelectorAll('canvas').length == 4"
    )
    waited(browser, "document.querySelectorAll('#view-2 td span').length")
    yield browser
    assert browser.said() == []


def texts(browser, selector):
    found = browser.ask(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")
    return [word.replace(JOINER, "").replace("\xa0", " ") for word in found]


def test_every_token_shows_as_itself_in_every_view(views):
    shown = [word.replace(" ", " ") for word in SHOWN]
    assert texts(views, "#view-0 .colored-tokens > span > span") == shown
    assert texts(views, "#view-1 .tokens button") == shown
    assert set(texts(views, "#view-2 td span")) == set(shown)
    assert texts(views, "h1")[0] == SPELLED and views.ask("document.images.length") == 0
    assert views.ask("document.scripts.length") == 2


def test_another_map_and_another_layer_are_chosen_by_keys(views):
    colour = "getComputedStyle(document.querySelector('#view-0 .colored-tokens > span > span')).backgroundColor"
    assert waited(views, colour) == "rgb(255, 0, 0)"
    views.ask("document.getElementById('choice-0').focus()")
    views.press("ArrowDown")
    waited(views, f"{colour} == 'rgb(0, 0, 255)'")
    said = "document.getElementById('note-0').innerText"
    assert views.ask(said) == "Blue is above 0, full at +2; red below, full at −2."
    last = "getComputedStyle([...document.querySelectorAll('#view-1 .tokens button')].at(-1)).backgroundColor"
    before = views.ask(last)
    views.ask("document.getElementById('choice-1').focus()")
    views.press("ArrowDown")
    waited(views, f"{last} && {last} != {json.dumps(before)}")


def test_a_dark_page_has_dark_cards_and_a_table_no_columns_without_units(views):
    ground = "getComputedStyle(document.querySelector('.circuitsvis')).filter"
    assert views.ask(ground) == "none"
    views("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert views.ask(ground) == "invert(0.91) hue-rotate(180deg)"
    views("Emulation.setEmulatedMedia", features=[])
    units = "[...document.querySelectorAll('#view-2 table tr')].map(r => r.innerText.trim()).find(t => t.startsWith('0'))"
    assert waited(views, f"({units}) && ({units}).split(/\\s+/)") == ["0", "1"]
    assert views.ask("document.querySelector('#visible-cols-selector').value") == "2"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_word_tells_its_value_where_the_mouse_is_above_all_else(views, scheme):
    views("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    word = "document.querySelectorAll('#view-0 .colored-tokens > span > span')[2].getBoundingClientRect()"
    x, y = views.ask(f"[{word}.x + {word}.width / 2, {word}.y + {word}.height / 2]")
    views("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    told = "document.querySelector('#view-0 .colored-tokens > div')"
    seen = f"(b => document.elementFromPoint(b.x + b.width / 2, b.y + b.height - 6))({told}.getBoundingClientRect())"
    assert waited(views, f"{told} && {told}.contains({seen}) && {told}.textContent").endswith("-0.5")
    views("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    views("Emulation.setEmulatedMedia", features=[])


def test_a_head_is_chosen_by_click_and_by_enter(views):
    heads = "[...document.querySelectorAll('figure')]"
    assert views.ask(f"{heads}.map(f => f.ariaLabel)") == [f"head {n}: its attention pattern" for n in range(3)]
    chosen = f"{heads}.map(f => f.querySelector('canvas').style.boxShadow != '')"
    views.click("figure", 2)
    assert waited(views, f"{chosen}[2] && {chosen}") == [False, False, True]
    views("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    views.ask(f"{heads}[0].focus()")
    views.press("Enter")
    assert waited(views, f"{chosen}[0] && {chosen}") == [True, False, False]


def test_a_notebooks_frame_draws_the_views(browser, tmp_path):
    around = tmp_path / "notebook.html"
    frame = plot.attention_patterns(WORDS[:2], torch.ones(1, 2, 2).tril())._repr_html_()
    around.write_text(f"<!doctype html><meta charset='utf-8'>{frame}", encoding="utf-8")
    assert isinstance(plot.tokens(WORDS, torch.zeros(9)), Page)
    browser.open(around)
    time.sleep(1)
    assert browser.ask("document.querySelector('iframe').contentDocument") is None  # another origin
    assert browser.said() == []
