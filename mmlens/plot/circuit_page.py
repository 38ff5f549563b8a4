"""A circuit as a page to explore: fewer or more edges, each node's own, its sites on the media, and where its heads look."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from mmlens.analysis import AttentionRows
from mmlens.analysis.circuit import Circuit
from mmlens.grid import Grid, Tiles
from mmlens.inputs import Inputs
from mmlens.plot.canvas import spelled
from mmlens.plot.circuit import on
from mmlens.plot.circuit_layout import (
    HIGH,
    MOST,
    PORT,
    Layout,
    Node,
    Point,
    about,
    boundary,
    layout,
    lines,
    site_masks,
    told,
)
from mmlens.plot.circuit_script import SCRIPT, STYLE
from mmlens.plot.html import Page, document
from mmlens.plot.stage import Stage, View, group_names, packed, staged
from mmlens.plot.stage_script import LAYOUT
from mmlens.plot.stage_script import SCRIPT as STAGE_SCRIPT
from mmlens.plot.stage_script import STYLE as STAGE_STYLE

UNIT_X, UNIT_Y, LEFT = 104, 88, 1.25  # pixels of a column and of a row; columns at the left for the layers' names
WIDEST, THINNEST = 8.0, 0.7  # pixels
FIRST = 60  # edges shown at first
SIDES = {"picture": 300, "frame": 150}  # pixels at first


def circuit_page(
    found: Circuit,
    *,
    inputs: Inputs | None = None,
    row: int = 0,
    sites: Mapping[str, Bool[Tensor, "batch pos"]] | None = None,
    attention: AttentionRows | None = None,
    words: Mapping[str, Sequence[str]] | None = None,
    title: str = "A circuit",
    most: int = MOST,
) -> Page:
    """Return one page, which needs no network, of the `most` largest kept edges; `.save(path)` it, or show it in a notebook.

    A slider, or + and -, says how many are shown; a click, or Tab, arrow keys and Enter, shows a node's edges with their
    numbers. Nodes and edges are drawn as in `plot.circuit`, with `row`'s media of `inputs` beside them: pictures, sounds as
    spectrograms, frames of videos, with the regions of `sites` on them (of words there are none: a node says how many it
    has). With `attention` (`attention_rows(model, inputs)`), a head shows where its last query looks on these. `words` are
    what is to be told of a node by its name ("L2.brown"), such as what neurons write.

    Raises ValueError for a circuit without edges, for sites and attention of other inputs, and for words of no node.
    """
    drawn = layout(found, most=most)
    masks = None if inputs is None else site_masks(found.graph, inputs, sites)
    if unknown := set(words or {}) - set(found.graph.sources):
        raise ValueError(f"words are of nodes such as {found.graph.sources[-1]!r}, there is no {sorted(unknown)[0]!r}")
    if attention is not None and (inputs is None or attention.pattern.shape[-1] != inputs.tokens.shape[1]):
        raise ValueError("attention is drawn on the media of its inputs: give inputs, those that it was measured on")
    stage = None if inputs is None or masks is None else _stage(inputs, row, masks, drawn)
    media = [] if stage is None else stage.media()
    sites_of = {} if masks is None else {name: mask[row].nonzero()[:, 0].tolist() for name, mask in masks.items()}
    steps = [-1, *(layer for layer, *_ in drawn.layers if layer >= 0), drawn.nodes[-1].layer]
    data = {
        "nodes": [
            {
                "name": spelled(node.name),
                "about": about(node, masks, row),
                "effect": node.effect,
                "enters": node.kind in ("embed", "deepstack"),
                "row": steps.index(node.layer),
                "x": node.x,
                "words": [spelled(word) for word in words[node.name]] if words and node.name in words else None,
                "positions": sites_of.get(node.name),
                "heat": None if attention is None or inputs is None else _heat(attention, inputs, row, node, media),
            }
            for node in drawn.nodes
        ],
        "edges": [
            {"source": e.source, "ends": e.ends, "destination": spelled(e.destination), "score": e.score}
            for e in drawn.edges
        ],
        "media": media,
    }
    shown = f'{stage.html("stage")}<p class="soft" id="seen"></p>' if media and stage is not None else ""
    what, units = told(found, drawn)
    asked = (
        ""
        if inputs is None
        else f'<p><span class="soft">asked</span> {escape(spelled(" ".join(inputs.text[row].split())))}</p>'
    )
    count = len(drawn.edges)
    body = f"""<h1>{escape(spelled(title))}</h1>
<p class="soft">{escape(what)}; {escape(units)}</p>{asked}
<div class="tools"><label for="count">edges shown, the largest first</label>
<input type="range" id="count" min="1" max="{count}" value="{min(count, FIRST)}"><output id="told" for="count"></output>
<label><input type="checkbox" id="whole"> only those on a way from what enters to the logits</label></div>
<div class="view-of"><div class="graph">{_graph(drawn, what)}</div>
<aside>{shown}{_legend(drawn)}<section id="panel" aria-live="polite"></section></aside></div>
<p class="soft">Keys: Tab to the circuit, arrows from node to node, Enter for its edges, Escape back, + and - for more and
fewer edges.</p>"""
    style, script = STAGE_STYLE + LAYOUT + STYLE, STAGE_SCRIPT + SCRIPT
    return Page(document(spelled(title), body, style=style, script=script, data=data))


def _stage(inputs: Inputs, row: int, masks: Mapping[str, Bool[Tensor, "batch pos"]], drawn: Layout) -> Stage:
    """Return the media of a row, with the regions of sites in their nodes' colours."""
    number = {node.name: place for place, node in enumerate(drawn.nodes)}
    whole, views = staged(inputs, row), []
    for view in whole.views:
        if view.kind == "text":
            continue
        over = "".join(
            f'<path class="region" data-node="{number.get(site, -1)}" stroke="{drawn.colors[site]}" d="{path}"/>'
            for site, mask in masks.items()
            if site != "rest" and (path := "".join(_outlines(view, inputs, row, mask[row])))
        )
        views.append(replace(view, over=over, width=min(view.width, SIDES.get(view.kind, view.width))))
    return replace(whole, views=tuple(views))


def _outlines(view: View, inputs: Inputs, row: int, inside: Bool[Tensor, " pos"]) -> Iterator[str]:
    """Yield the lines around the positions of a view that are `inside`, as an SVG path."""
    for place, positions in _grids(view, inputs, row):
        for (a, b), (c, d) in boundary(place, inside[positions]):
            yield f"M{a:.2f} {b:.2f}L{c:.2f} {d:.2f}"


def _grids(view: View, inputs: Inputs, row: int) -> Iterator[tuple[Grid, list[int]]]:
    """Yield the grids that a view shows, each with its positions; a sound is one of a single row."""
    if view.kind == "sound" and view.cells:
        columns = tuple((left, right) for _, (left, _, right, _) in view.cells)
        size = (round(view.box[2]), round(view.box[3]))
        yield Grid(1, len(columns), view.box, size, columns_at=columns), [position for position, _ in view.cells]
        return
    held = {position for position, _ in view.cells}
    for medium, place in enumerate(inputs.grids[row]):
        positions, start = (inputs.medium[row] == medium).nonzero()[:, 0].tolist(), 0
        for grid in place.grids if isinstance(place, (Grid, Tiles)) else ():
            own = positions[start : start + len(grid)]
            start += len(grid)
            if grid.columns and held.intersection(own):
                yield grid, own


def _heat(attention: AttentionRows, inputs: Inputs, row: int, node: Node, media: Sequence[int]) -> dict[str, Any] | None:
    """Return the attention of a head's last query: on each medium, its largest, and each position's share of that."""
    head = int(node.name.rpartition("H")[2]) if node.kind == "head" else -1
    if not media or node.layer not in attention.layers or head not in attention.heads:
        return None
    query = int((attention.queries[row] >= 0).nonzero()[-1])
    shares = attention.pattern[attention.layers.index(node.layer), row, attention.heads.index(head), query].cpu()
    names, medium = group_names(inputs, row), inputs.medium[row].cpu()
    top = float(shares[media].max())
    return {
        "masses": [[name, float(shares[medium == number].sum())] for number, name in enumerate(names)],
        "top": top,
        "values": packed(255 * shares[media] / max(top, 1e-12), 8),
    }


def _graph(drawn: Layout, what: str) -> str:
    width, height = (drawn.columns + LEFT + 0.1) * UNIT_X, (drawn.rows + 0.95) * UNIT_Y

    def at(point: Point) -> Point:
        return (point[0] + LEFT + 0.35) * UNIT_X, (drawn.rows + 0.4 - point[1]) * UNIT_Y

    parts = []
    for layer, low, high in drawn.layers:
        if layer >= 0:
            (x0, y0), (x1, y1) = at((-0.55, high + 0.36)), at((drawn.columns - 0.45, low - 0.42))
            parts.append(f'<rect class="band" x="{x0:.0f}" y="{y0:.0f}" width="{x1 - x0:.0f}" height="{y1 - y0:.0f}"/>')
        x, middle = at((-0.65, (low + high) / 2))
        name = f"layer {layer}" if layer >= 0 else "enters"
        parts.append(f'<text class="soft" x="{x:.0f}" y="{middle + 4:.0f}" text-anchor="end">{name}</text>')
    for place, edge in reversed(list(enumerate(drawn.edges))):  # the largest last
        sign = "pos" if edge.score > 0 else "neg"
        words = escape(spelled(f"{drawn.nodes[edge.source].name} to {edge.destination}: {edge.score:+.3g}"))
        for points in edge.paths:
            (x, y), *rest = map(at, points)
            curves = "".join(f"{' ' if n % 3 else 'C'}{a:.1f} {b:.1f}" for n, (a, b) in enumerate(rest))
            parts.append(
                f'<path class="edge {sign} {edge.way}" data-edge="{place}" d="M{x:.1f} {y:.1f}{curves}" '
                f'stroke-width="{max(WIDEST * drawn.share(edge.score), THINNEST):.2f}"><title>{words}</title></path>'
            )
    parts += [_node(drawn, number, node, *at((node.x, node.y))) for number, node in enumerate(drawn.nodes)]
    return (
        f'<svg id="graph" role="group" aria-label="{escape(f"A circuit of {what}: nodes by layer, upwards")}" '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">{"".join(parts)}</svg>'
    )


def _node(drawn: Layout, number: int, node: Node, x: float, y: float) -> str:
    wide, high = node.wide * UNIT_X, HIGH * UNIT_Y

    def rect(name: str, beyond: float, more: str = "") -> str:
        return (
            f'<rect class="{name}" x="{x - wide / 2 - beyond:.1f}" y="{y - high / 2 - beyond:.1f}" '
            f'width="{wide + 2 * beyond:.1f}" height="{high + 2 * beyond:.1f}" rx="{8 + beyond:.1f}"{more}/>'
        )

    effect, ring = "", ""
    if node.effect is not None:
        effect, sign = f", all its edges {node.effect:+.3g}", "pos" if node.effect > 0 else "neg"
        thick = 5 * abs(node.effect) / drawn.largest_effect
        ring = rect(f"ring {sign}", thick / 2, f' stroke-width="{thick:.1f}"') if thick > 0.2 else ""
    own = f' fill="{drawn.colors[node.name]}"' if node.kind == "embed" else ""
    ink = f' style="fill: {on(drawn.colors[node.name])}"' if own else ""
    written = lines(node, 10)
    first = y + 4.5 - 7 * (len(written) - 1)
    text = "".join(
        f'<text x="{x:.1f}" y="{first + 14 * place:.1f}" text-anchor="middle"{ink}>{escape(line)}</text>'
        for place, line in enumerate(written)
    )
    ways = sorted({edge.way for edge in drawn.edges if number in edge.ends} & {"q", "k", "v"})
    letters = "".join(
        f'<text class="way" x="{x + PORT[way] * UNIT_X + 4:.1f}" y="{y + high / 2 + 11:.1f}">{way}</text>' for way in ways
    )
    label = escape(spelled(f"{node.name}, {about(node)}{effect}"))
    tab = 0 if number == len(drawn.nodes) - 1 else -1
    return (
        f'<g class="node {node.kind}" role="button" tabindex="{tab}" aria-pressed="false" aria-label="{label}">'
        f"{rect('focus', 8.0)}{ring}{rect('box', 0.0, own)}{text}{letters}</g>"
    )


def _legend(drawn: Layout) -> str:
    half = float(f"{abs(drawn.edges[0].score) / 2:.1g}")
    thick, touched = WIDEST * drawn.share(half), {node.name for node in drawn.nodes}

    def line(sign: str, way: str, width: float, words: str) -> str:
        drawing = f'<svg viewBox="0 0 35 12" aria-hidden="true"><path class="edge {sign} {way}" stroke-width="{width:.1f}"'
        return f'<li>{drawing} d="M0 6H35"/></svg>{words}</li>'

    sites = "".join(
        f'<li><svg viewBox="0 0 35 12" aria-hidden="true"><rect width="35" height="12" rx="3" fill="{color}"/></svg>'
        f"{escape(spelled(site))}{'' if site in touched else ' (no edge)'}</li>"
        for site, color in drawn.colors.items()
        if site != "rest" or site in touched
    )
    edges = line("pos", "", thick, f"+{half:g}: raises the metric") + line("neg", "", thick, f"−{half:g}: lowers it")
    words = {"q": "into queries", "k": "into keys", "v": "into values"}
    ways = "".join(line("pos", w, 1.5, words[w]) for w in words if any(edge.way == w for edge in drawn.edges))
    ring = "<li>ring of a node: the sum of all its edges</li>"
    return f'<ul class="legend">{sites}{edges}{ways}{ring}</ul>'
