"""CircuitsVis' views (coloured tokens, attention patterns, top tokens) as pages that need no network.

CircuitsVis itself asks the network whenever a notebook shows a view, and puts tokens into the page as HTML, so that
`<image>` and `<s>` vanish. Here its script, which its package ships, is inlined, once in a page, and every token is text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmlens.plot.canvas import spelled
from mmlens.plot.html import Page, document

JOINER = "\u2060"  # has no width; behind < and & it keeps HTML from reading a tag or a character, and text stays as it is
MOST = 4_000_000  # numbers that a page holds
PATTERN = "Each row of a pattern is a query, each column a key; a share of 0 has no colour, one of 1 the strongest."

STYLE = """
body { max-width: 82rem; padding: 1.2rem; } h1 { font-size: 1.3rem; margin-top: 1.2rem; }
h1:first-child { margin-top: 0; }
p { margin: .1rem 0 .5rem; } select { font: inherit; font-size: .9rem; }
label { display: inline-block; margin: .2rem 0 .5rem; }
.circuitsvis { background: #fff; color: #1d2329; color-scheme: light; padding: .8rem; border-radius: 6px; overflow-x: auto;
  border: 1px solid #dcd9d3; font-size: 1rem; }
@media (prefers-color-scheme: dark) { .circuitsvis { filter: invert(.91) hue-rotate(180deg); } }  /* it knows light alone */
.circuitsvis h4 { margin: .3rem 0; } .circuitsvis figure:focus-visible { outline: 3px solid #0b6bcb; }
.circuitsvis button { font: inherit; font-size: .95rem; min-width: 1em; min-height: 1.6em; }
.circuitsvis table td, .circuitsvis table th { text-align: center; padding: .1rem .5rem; }
.circuitsvis .colored-tokens > span > span { white-space: pre; }
.circuitsvis:has(> div > .colored-tokens) { overflow: visible; }  /* a word's value is told below it */
.circuitsvis:hover { position: relative; z-index: 1; }
"""

BEFORE = r"""
for (const kind of [HTMLCanvasElement, window.OffscreenCanvas]) {  // browsers give few of WebGL's contexts: none is needed
  if (!kind) continue;
  const given = kind.prototype.getContext;
  kind.prototype.getContext = function (type, ...more) {
    return type.includes("webgl") ? null : given.call(this, type, ...more);
  };
}
"""

SCRIPT = r"""
const { log, warn } = console;
for (const [number, view] of JSON.parse(document.getElementById("data").textContent).views.entries()) {
  const root = document.getElementById(`view-${number}`), select = document.getElementById(`choice-${number}`);
  const show = () => {  // in an element of its own: a view keeps what was chosen in it, which another may not have
    const inner = document.createElement("div");
    inner.id = `view-${number}-${select ? select.selectedIndex : 0}`;
    root.replaceChildren(inner);
    document.getElementById(`note-${number}`).textContent = view.notes[select ? select.selectedIndex : 0] ?? view.notes[0];
    const props = { ...view.props, ...view.choices[select ? select.selectedIndex : 0] };
    CircuitsVis.render(inner.id, CircuitsVis[view.component], props);
  };
  new MutationObserver(() => {
    if (view.component === "AttentionPatterns" && root.querySelector("canvas")) Object.assign(console, { log, warn });
    const units = view.component === "TopkTokens" && root.querySelector("#visible-cols-selector");
    if (units && !units.dataset.seen) {  // it begins with five columns, also where there are fewer units
      units.dataset.seen = "yes";
      units.value = Math.min(5, units.options.length);
      units.dispatchEvent(new Event("change", { bubbles: true }));
    }
    for (const figure of root.querySelectorAll("figure:not([role])")) {  // heads, which CircuitsVis gives to the mouse alone
      figure.tabIndex = 0;
      figure.setAttribute("role", "button");
      figure.setAttribute("aria-label", `${figure.textContent}: its attention pattern`);
      figure.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        figure.click();
      });
    }
  }).observe(root, { childList: true, subtree: true });
  if (select) select.addEventListener("change", show);
  if (view.component === "AttentionPatterns") Object.assign(console, { log() {}, warn() {} });  // it looks for WebGL
  show();
}
"""


@dataclass(frozen=True)
class View:
    """One view: the name of CircuitsVis' component, what it is given, and, of several `choices`, what each one adds.

    `notes` say what the colours of each choice are, or of all, in words.
    """

    title: str
    component: str
    props: dict[str, Any]
    choices: tuple[dict[str, Any], ...] = ({},)
    names: tuple[str, ...] = ()
    what: str = ""
    notes: tuple[str, ...] = ("",)


@dataclass(frozen=True, repr=False)
class Views(Page):
    """A page of CircuitsVis' views; `+` puts those of another page below, with the script in it once."""

    views: tuple[View, ...] = ()

    def __add__(self, other: "Views") -> "Views":
        return _page(*self.views, *other.views, height=self.height + other.height)


def tokens(
    words: Sequence[str],
    values: Float[Tensor, "*map pos"],
    *,
    names: Sequence[str] | None = None,
    title: str = "Tokens",
) -> Views:
    """Return a page of the words, each coloured by its value: blue above 0, red below, white at 0.

    `words` are those of the positions (`model.to_str_tokens(inputs.tokens[0])`). Of several maps, each on its own scale,
    one is shown, chosen by its name; a word's value is told where the mouse is over it. A line says where a scale ends. In
    a dark page light and dark change places, and colours stay.
    Raises ValueError for values of other positions and other numbers of names.
    """
    maps = values.detach().float().cpu().reshape(-1, values.shape[-1])
    names = _names(names, len(maps), "map")
    if values.ndim > 2 or maps.shape[1] != len(words):
        raise ValueError(
            f"one value is of one word: {len(words)} words, got values {list(values.shape)} ([pos] or [map, pos])"
        )
    choices, notes = [], []
    for own in maps:
        largest = float(own.nan_to_num(0, 0, 0).abs().amax()) or 1.0
        choices.append({"values": _short(own), "minValue": -largest, "maxValue": largest})
        notes.append(f"Blue is above 0, full at +{largest:.3g}; red below, full at −{largest:.3g}.")
    view = View(title, "ColoredTokens", {"tokens": _inert(words)}, tuple(choices), names, "coloured by", tuple(notes))
    return _page(view, height=260 + 26 * (len(words) // 14))


def attention_patterns(
    words: Sequence[str],
    pattern: Float[Tensor, "*layer head query key"],
    *,
    layers: Sequence[str] | None = None,
    heads: Sequence[str] | None = None,
    title: str = "Attention patterns",
) -> Views:
    """Return a page of where heads look: a picture of each one's pattern, and the words, coloured by the attention they get.

    `pattern` is one row's (`cache["pattern", 3][0]`), or that of several layers ([layer, head, query, key]), of which one is
    shown, chosen by its name. A head is chosen by click, or Tab and Enter; so is a word, whose own attention is then shown.
    Raises ValueError for a pattern of other positions, other numbers of names, and more than 4,000,000 numbers.
    """
    stack = pattern.detach().float().cpu().reshape(-1, *pattern.shape[-3:])
    size = len(words)
    if pattern.ndim > 4 or stack.shape[2:] != (size, size):
        raise ValueError(
            f"a pattern is [head, query, key] or [layer, head, query, key] of {size} words, got {list(pattern.shape)}"
        )
    if stack.numel() > MOST:
        raise ValueError(f"a page holds at most {MOST:,} numbers, got {stack.numel():,}: choose layers, heads or positions")
    props = {"tokens": _inert(words), "headLabels": list(_names(heads, stack.shape[1], "head"))}
    choices = tuple({"attention": _short(own)} for own in stack)
    view = View(title, "AttentionPatterns", props, choices, _names(layers, len(stack), "layer"), "layer", (PATTERN,))
    return _page(view, height=760)


def top_k_tokens(
    words: Sequence[Sequence[str]],
    activations: Sequence[Float[Tensor, "layer pos unit"]],
    *,
    k: int = 5,
    layers: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    title: str = "Top tokens",
) -> Views:
    """Return a page of the k words of each row at which each unit is highest, and the k at which it is lowest.

    `words` and `activations` hold one entry for each row. Values are given as shares of the largest absolute one, which a
    line says; the view colours those above 0 alone, and of a single row it shows one unit at a time.
    Raises ValueError for activations of other positions and other numbers of names.
    """
    if len(words) != len(activations) or not words:
        raise ValueError(f"each row has words and activations, got {len(words)} and {len(activations)}: give as many")
    for own, values in zip(words, activations, strict=True):
        if values.shape[1] != len(own):
            raise ValueError(f"activations are [layer, pos, unit] of {len(own)} words, got {list(values.shape)}")
    largest = max(float(values.abs().max()) for values in activations) or 1.0
    props: dict[str, Any] = {
        "tokens": [_inert(own) for own in words],
        "sampleLabels": list(_names(rows, len(words), "row")),
        "firstDimensionLabels": list(_names(layers, activations[0].shape[0], "layer")),
        "firstDimensionName": "Layer",
        "thirdDimensionName": "Unit",
    }
    for name, high in (("top", True), ("bottom", False)):
        found = [v.detach().float().cpu().topk(min(k, v.shape[1]), dim=1, largest=high) for v in activations]
        values, places = ([one[part] if high else one[part].flip(1) for one in found] for part in (0, 1))
        props |= {f"{name}kVals": [_short(one / largest) for one in values], f"{name}kIdxs": [p.tolist() for p in places]}
    note = f"Values are shares of {largest:.3g}, the largest; the full colour is 1, and what is not above 0 has none."
    view = View(title, "TopkTokens", props, notes=(note,))
    return _page(view, height=400 + 60 * k)


@cache
def _bundle() -> str:
    """Return CircuitsVis' script as a script element may hold it."""
    text = (files("circuitsvis") / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    code = text.partition("\n//# sourceMappingURL")[0]
    return code.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def _page(*views: View, height: int) -> Views:
    parts = []
    for number, view in enumerate(views):
        parts.append(f"<h1>{escape(spelled(view.title))}</h1>")
        if len(view.choices) > 1:
            options = "".join(f"<option>{escape(name)}</option>" for name in view.names)
            parts.append(f'<label>{view.what} <select id="choice-{number}">{options}</select></label>')
        parts.append(f'<p class="soft" id="note-{number}">{escape(view.notes[0])}</p>')
        parts.append(
            f'<div class="circuitsvis" id="view-{number}" role="group" aria-label="{escape(spelled(view.title))}"></div>'
        )
    data = {
        "views": [
            {"component": view.component, "props": view.props, "choices": view.choices, "notes": view.notes}
            for view in views
        ]
    }
    title = spelled(views[0].title)
    html = document(title, "\n".join(parts), style=STYLE, script=f"{BEFORE}{_bundle()}\n{SCRIPT}", data=data)
    return Views(html=html, height=height, views=views)


def _inert(words: Sequence[str]) -> list[str]:
    """Return words that are the same whether they are read as text or as HTML; control characters are spelled out."""
    shown = ("".join(c if c.isprintable() else repr(c)[1:-1] for c in word) for word in words)
    return [word.replace("<", "<" + JOINER).replace("&", "&" + JOINER) for word in shown]


def _names(names: Sequence[str] | None, count: int, what: str) -> tuple[str, ...]:
    if names is not None and len(names) != count:
        raise ValueError(f"one name is of one {what}: {count} of them, got {len(names)} names")
    return tuple(f"{what} {n}" for n in range(count)) if names is None else tuple(map(spelled, names))


def _short(values: Tensor) -> Any:
    """Return values as lists of numbers with four digits; what is not finite as 0."""
    values = values.double().nan_to_num(0, 0, 0)
    step = 10 ** (values.abs().clamp(min=1e-12).log10().floor() - 3)
    flat = [float(f"{v:.4g}") for v in ((values / step).round() * step).flatten().tolist()]
    return torch.tensor(flat, dtype=torch.float64).reshape(values.shape).tolist()
