"""A circuit's page as a reader uses it: opened in a real browser, by mouse and by keys, with the network cut."""

import json

import pytest
from browser import NEEDED, Browser
from drawn_circuit import HOSTILE, drawn_circuit

from mmlens import HookedMLLM, Neurons, plot
from mmlens.analysis import attention_rows
from mmlens.analysis.circuit import circuit as find
from mmlens.organisms import pictosound
from mmlens.plot.canvas import GREY
from mmlens.plot.html import Page

pytestmark = [
    pytest.mark.slow,
    NEEDED,
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def circuit(tmp_path_factory):
    """A circuit whose names and words are hostile, and its page."""
    model = HookedMLLM.from_pretrained("pictoworld", device="cpu")
    sets = {f"set {HOSTILE}": Neurons.of([("language", 2, unit) for unit in range(200)], model.widths)}
    found, inputs, sites = drawn_circuit(model, names=(HOSTILE, "elsewhere", "words"), neurons=sets)
    page = plot.circuit_page(
        found,
        inputs=inputs,
        sites=sites,
        attention=attention_rows(model, inputs),
        words={f"L2.set {HOSTILE}": [HOSTILE]},
        title=HOSTILE,
        most=120,
    )
    return found, page.save(tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture
def page(browser, circuit):
    browser.open(circuit[1])
    yield browser
    assert browser.said() == []


SPELLED = HOSTILE.replace("\u2028", "\\u2028")
FOCUSED = "document.activeElement.getAttribute('aria-label')"
PANEL = "document.getElementById('panel').innerText"
SEEN = "document.getElementById('seen').innerText"
OPACITIES = "[...document.querySelectorAll('#stage .cell')].map(c => Number(c.style.fillOpacity))"


def number(page, name):
    """Return which node has that name."""
    return page.ask(
        "[...document.querySelectorAll('.node')].findIndex(n => n.getAttribute('aria-label').startsWith("
        + json.dumps(name)
        + "))"
    )


def test_the_slider_and_keys_say_how_many_edges_are_shown(page):
    assert page.shown(".graph .edge") == 60 and page.ask("document.getElementById('told').value") == "60 edges"
    page.ask("document.getElementById('count').focus()")
    page.press("ArrowRight", "ArrowRight", "ArrowLeft")
    assert page.shown(".graph .edge") == 61
    page.press("-", "-", "-", "+")
    assert page.shown(".graph .edge") == 59
    page.click("#whole")
    assert page.ask("document.getElementById('told').value") == f"{page.shown('.graph .edge')} of the 59 largest edges"


def test_only_whole_ways_are_those_of_the_circuit_pruned(page, circuit):
    page.click("#whole")
    for size in (5, 20, 47, 110):
        page.ask(f"document.getElementById('count').value = {size}")
        page.ask("document.getElementById('count').dispatchEvent(new Event('input'))")
        assert page.shown(".graph .edge") == len(circuit[0].top(size))


def test_a_click_shows_a_nodes_edges_with_their_numbers_and_where_a_head_looks(page, circuit):
    assert "Click a node" in page.ask(PANEL) and page.shown(".painted") == 0
    page.click(".node", number(page, "L2H3"))
    said = page.ask(PANEL)
    edges = circuit[0].edges().head(60)
    into = edges[edges.destination.str.startswith("L2H3.")]
    out = edges[edges.source == "L2H3"]
    assert f"{len(into)} shown in" in said and f"{len(out)} shown out" in said
    largest = into.iloc[0]
    assert f"{abs(largest.score):.3g}" in said and largest.destination in said
    assert page.shown(".painted") == 1
    assert max(page.ask(OPACITIES)) == 0.72
    assert page.ask("getComputedStyle(document.querySelector('.under')).filter") == f"grayscale({GREY})"
    page("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert "% lies on image:0; the full colour is" in page.ask(SEEN).replace("\xa0", " ")
    assert page.shown(".graph .edge.lit:not(.off)") == len(into) + len(out)
    page.click("#panel td button")  # on to the node at the other end
    assert page.ask(PANEL).startswith(page.ask(FOCUSED).split(",")[0][:4])
    page.press("Escape")
    assert "Click a node" in page.ask(PANEL) and page.shown(".graph .edge.lit") == 0 and page.shown(".painted") == 0


def test_tab_arrows_and_enter_move_between_nodes_and_show_them(page):
    page.press("Tab", "Tab", "Tab")
    assert page.ask(FOCUSED).startswith("logits")
    lit = page.shown(".graph .edge.lit:not(.off)")
    page.press("ArrowDown")
    here = page.ask(FOCUSED)
    assert here.startswith("L4") and page.shown(".graph .edge.lit:not(.off)") != lit
    page.press("ArrowLeft" if here.startswith("L4.mlp") else "ArrowRight")
    assert page.ask(FOCUSED) not in (here, None)
    page.press("Enter")
    assert page.ask(PANEL).startswith(page.ask(FOCUSED).split(",")[0])
    for _ in range(8):
        page.press("ArrowDown")
    assert "what enters at" in page.ask(FOCUSED)


def test_hostile_names_and_words_are_shown_as_text(page):
    assert page.ask("document.title") == SPELLED and page.ask("document.querySelector('h1').innerText") == SPELLED
    assert page.ask("document.images.length") == 0
    page.click(".node", number(page, "L2.set"))
    assert f"It writes: {SPELLED}" in page.ask(PANEL) and page.ask("document.images.length") == 0
    page.click(".node", number(page, SPELLED[:9]))
    assert page.ask(PANEL).startswith(SPELLED) and page.shown(".region.lit") == 1


def test_a_notebook_shows_the_page_in_a_frame_that_cannot_reach_out(browser, circuit, tmp_path):
    html = circuit[1].read_text(encoding="utf-8")
    around = tmp_path / "notebook.html"
    around.write_text(
        f"<!doctype html><meta charset='utf-8'><script>var secret = 1</script>{Page(html)._repr_html_()}", encoding="utf-8"
    )
    browser.open(around)
    assert browser.ask("document.querySelector('iframe').contentDocument") is None  # another origin
    assert browser.said() == []


def test_a_sounds_sites_and_what_a_head_hears_are_shown_on_the_spectrogram(browser, tmp_path):
    model = HookedMLLM.from_pretrained("pictosound", device="cpu")
    (pair,) = pictosound.pairs(n=1)
    event = pair.clean.events[pair.index]
    clean, corrupted = (
        model.to_inputs(f"what is {event.order} ? answer :", audio=one.audio) for one in (pair.clean, pair.corrupted)
    )
    own = clean.overlap((event.start, event.stop)) > 0
    sites = {"event": own, "elsewhere": clean.mask("audio") & ~own, "words": clean.mask("text")}
    options = dict(clean=clean, corrupted=corrupted, metric=lambda logits: logits[:, -1, 7] - logits[:, -1, 8])
    rows = attention_rows(model, clean)
    found = find(model, sites=sites, **options)
    browser.open(plot.circuit_page(found, inputs=clean, sites=sites, attention=rows).save(tmp_path / "page.html"))
    assert browser.ask(SEEN) == "outlined: event, elsewhere"
    browser.click(".node", number(browser, "event"))
    assert browser.shown(".region.lit") == 1
    browser.ask("document.querySelector('#stage [role=listbox]').focus()")
    position = int(own[0].nonzero()[0])
    browser.press(*["ArrowRight"] * (1 + position - int(clean.mask("audio")[0].nonzero()[0])))
    assert browser.ask(SEEN).endswith(f" s, position {position}, of event")
    browser.press("Escape")
    browser.click(".node", number(browser, "L2H3"))
    shares = rows.pattern[2, 0, 3, 0, clean.mask("audio")[0]]
    along = browser.ask(f"{OPACITIES.replace('].map', '].sort((a, b) => a.dataset.position - b.dataset.position).map')}")
    assert along == pytest.approx((0.72 * shares / shares.max()).tolist(), abs=3e-3)
    assert browser.said() == []
