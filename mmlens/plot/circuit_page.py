"""A circuit as a page to explore: fewer or more edges, each node's own, and where its heads look on the picture."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from mmlens.analysis import AttentionRows
from mmlens.analysis.circuit import Circuit
from mmlens.grid import Grid, Tiles, finest
from mmlens.inputs import Inputs
from mmlens.plot.canvas import spelled
from mmlens.plot.circuit import on, placed_pictures
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
from mmlens.plot.html import Page, compressed, document, uri

UNIT_X, UNIT_Y, LEFT = 104, 88, 1.25  # pixels of a column and of a row; columns at the left for the layers' names
WIDEST, THINNEST = 8.0, 0.7  # pixels
FIRST = 60  # edges shown at first


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
    numbers. Nodes and edges are drawn as in `plot.circuit`, with `row`'s pictures of `inputs` and the regions of `sites`
    beside them. With `attention` (`attention_rows(model, inputs)`), a head shows where its last query looks on these;
    `words` are what is to be told of a node by its name ("L2.brown"), such as what neurons write.

    Raises ValueError for a circuit without edges, for sites and attention of other inputs, and for words of no node.
    """
    drawn = layout(found, most=most)
    masks = None if inputs is None else site_masks(found.graph, inputs, sites)
    if unknown := set(words or {}) - set(found.graph.sources):
        raise ValueError(f"words are of nodes such as {found.graph.sources[-1]!r}, there is no {sorted(unknown)[0]!r}")
    if attention is not None and (inputs is None or attention.pattern.shape[-1] != inputs.tokens.shape[1]):
        raise ValueError("attention is drawn on the pictures of its inputs: give inputs, those that it was measured on")
    pictures = [] if inputs is None else placed_pictures(inputs, row)
    places = [(medium, grid, _cells(grid)) for medium, _, grid in pictures]
    heats = None if inputs is None or attention is None else [(inputs.medium[row].cpu() == m, c) for m, _, c in places]
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
                "heat": None if attention is None or heats is None else _heat(attention, row, node, heats),
            }
            for node in drawn.nodes
        ],
        "edges": [
            {"source": e.source, "ends": e.ends, "destination": spelled(e.destination), "score": e.score}
            for e in drawn.edges
        ],
        "cells": [[box for _, box in cells] for *_, cells in places],
    }
    figures = "".join(
        _picture(
            image, grid, drawn, {} if masks is None else {n: m[row, _of(inputs, row, medium)] for n, m in masks.items()}
        )
        for medium, image, grid in pictures
    )
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
<div class="view"><div class="graph">{_graph(drawn, what)}</div>
<aside>{figures}{_legend(drawn)}<section id="panel" aria-live="polite"></section></aside></div>
<p class="soft">Keys: Tab to the circuit, arrows from node to node, Enter for its edges, Escape back, + and - for more and
fewer edges.</p>"""
    return Page(document(spelled(title), body, style=STYLE, script=SCRIPT, data=data))


def _of(inputs: Inputs | None, row: int, medium: int) -> Bool[Tensor, " pos"]:
    assert inputs is not None, "pictures are those of inputs"
    return inputs.medium[row].cpu() == medium


def _cells(grid: Grid | Tiles) -> list[tuple[int, list[float]]]:
    """Return the positions that show the picture largest, and each one's box: x, y, width, height."""
    found = []
    for tile, indices in grid.painted(torch.arange(len(grid))):
        for index in indices.flatten().tolist() if tile in finest(grid) else ():
            if (box := grid.box(index)) is not None:
                left, top, right, bottom = box
                found.append((index, [round(v, 2) for v in (left, top, right - left, bottom - top)]))
    return found


def _heat(
    attention: AttentionRows, row: int, node: Node, places: Sequence[tuple[Tensor, list[tuple[int, list[float]]]]]
) -> list[dict[str, Any]] | None:
    """Return the attention of a head's last query on each picture: all of it, its largest, and each cell's share of that."""
    head = int(node.name.rpartition("H")[2]) if node.kind == "head" else -1
    if node.layer not in attention.layers or head not in attention.heads:
        return None
    query = int((attention.queries[row] >= 0).nonzero()[-1])
    pattern = attention.pattern[attention.layers.index(node.layer), row, attention.heads.index(head), query]
    found = []
    for where, cells in places:
        own = pattern[where]
        shares = own[[index for index, _ in cells]]
        top = float(shares.max())
        values = bytes((255 * shares / max(top, 1e-12)).round().int().tolist())
        found.append({"mass": float(own.sum()), "top": top, "values": base64.b64encode(values).decode()})
    return found


def _picture(image: Any, grid: Grid | Tiles, drawn: Layout, inside: Mapping[str, Tensor]) -> str:
    left, top, right, bottom = grid.region
    width, height = image.size
    number = {node.name: place for place, node in enumerate(drawn.nodes)}
    regions, named = "", []
    for site, own in inside.items():
        if site == "rest" or not (around := boundary(grid, own)):
            continue
        path = "".join(f"M{a:.2f} {b:.2f}L{c:.2f} {d:.2f}" for (a, b), (c, d) in around)
        regions += f'<path class="region" data-node="{number.get(site, -1)}" stroke="{drawn.colors[site]}" d="{path}"/>'
        named.append(spelled(site))
    caption = escape("The picture" + (f", with the regions of {', '.join(named)}" if named else ""))
    return (
        f'<figure><svg class="picture{" small" if max(image.size) <= 128 else ""}" role="img" aria-label="{caption}" '
        f'data-caption="{caption}" viewBox="{left} {top} {right - left} {bottom - top}"><image width="{width}" '
        f'height="{height}" preserveAspectRatio="none" href="{uri(compressed(image))}"/><g class="heat"></g>{regions}</svg>'
        f'<figcaption class="soft">{caption}</figcaption></figure>'
    )


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
