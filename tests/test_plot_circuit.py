"""Drawings of circuits show what the circuits hold: edges, their sizes and signs, and the regions of their sites."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from drawn_circuit import HOSTILE, drawn_circuit
from matplotlib.collections import LineCollection
from matplotlib.colors import same_color, to_hex
from matplotlib.legend import Legend
from support import medium

from mmlens import HookedMLLM, Neurons, plot
from mmlens.analysis import attention_rows
from mmlens.analysis.circuit import Circuit, Faithfulness
from mmlens.analysis.circuit.graph import graph_of
from mmlens.grid import Grid
from mmlens.plot.canvas import RANDOM, Canvas, png
from mmlens.plot.circuit import NEGATIVE, POSITIVE, WIDEST
from mmlens.plot.circuit_layout import HIGH, boundary, layout
from mmlens.plot.stage import staged
from mmlens.results import Provenance
from mmlens.testing import tiny

PROVENANCE = Provenance("tiny", None, "0" * 16, (), {}, None, {}, "2026-01-01T00:00:00+00:00")


@pytest.fixture(scope="module")
def organism():
    return HookedMLLM.from_pretrained("pictoworld", device="cpu")


@pytest.fixture(scope="module")
def found(organism):
    return drawn_circuit(organism)


@pytest.fixture(scope="module")
def hostile(organism):
    sets = {HOSTILE: Neurons.of([("language", 2, unit) for unit in range(300)], organism.widths)}
    return drawn_circuit(organism, names=(f"a {HOSTILE}", "b", "c"), neurons=sets)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """A circuit with random scores of a model whose heads share keys and values."""
    model = HookedMLLM.from_pretrained(tiny("llava-siglip-qwen2", tmp_path_factory.mktemp("grouped")), device="cpu")
    name, picture = medium(model, 0)
    inputs = model.to_inputs("what is it ?", **{name: picture})
    return of_graph(graph_of(model, inputs)[0]), inputs


def of_graph(graph):
    scores = torch.randn(*graph.possible.shape, 1, generator=torch.Generator().manual_seed(0)) * graph.possible[..., None]
    return Circuit(
        graph=graph,
        method="exact",
        scores=scores,
        kept=graph.possible.clone(),
        clean_metric=torch.ones(1),
        corrupted_metric=torch.zeros(1),
        provenance=PROVENANCE,
    )


def edges_of(figure):
    """Return the drawn edges of a figure by their number, from the largest score on."""
    patches = [patch for patch in figure.axes[0].patches if str(patch.get_gid()).startswith("edge-")]
    return {int(patch.get_gid().removeprefix("edge-")): patch for patch in patches}


def test_a_figure_draws_every_kept_edge_as_wide_as_its_score_in_the_colour_of_its_sign(found):
    circuit, inputs, sites = found
    small = circuit.top(60)
    figure = plot.circuit(small, inputs=inputs, sites=sites)
    drawn, edges = edges_of(figure), small.edges()
    assert isinstance(figure, Canvas) and len(drawn) == len(small) == len(edges)
    largest = edges.score.abs().max()
    for number, edge in edges.iterrows():
        width = WIDEST * abs(edge.score) / largest
        assert width < 0.4 or drawn[number].get_linewidth() == pytest.approx(width)
        assert same_color(to_hex(drawn[number].get_edgecolor()), POSITIVE if edge.score > 0 else NEGATIVE)
        way = {"q": "dashed", "k": "dotted"}.get(edge.destination.rpartition(".")[2], "solid")
        assert (drawn[number].get_linestyle() in ("-", "solid")) == (way == "solid")
    assert figure.get_suptitle().startswith(f"{len(small)} edges (of 959 possible), EAP, mean of 2 pairs")
    assert "score: what the metric of the corrupted run" in figure.get_suptitle()
    half = float(f"{largest / 2:.1g}")
    legends = [one for axes in figure.axes for one in axes.findobj(Legend)]
    told = {text.get_text() for one in legends for text in one.get_texts()}
    assert {f"+{half:g}: raises the metric", f"−{half:g}: lowers it", "into queries", "object", "head", "MLP"} <= told
    few = plot.circuit(small, most=7)
    assert len(edges_of(few)) == 7 and few.get_suptitle().startswith(f"the 7 largest of {len(small)} edges")


@pytest.mark.parametrize("k", [20, 60, 150])
def test_edges_run_upwards_from_their_source_to_their_destination_and_behind_no_box(found, k):
    drawn = layout(found[0].top(k))
    for edge in drawn.edges:
        for end, path in zip(edge.ends, edge.paths, strict=True):
            source, destination = drawn.nodes[edge.source], drawn.nodes[end]
            assert path[0] == pytest.approx((source.x, source.y + HIGH / 2))
            assert path[-1][1] == pytest.approx(destination.y - HIGH / 2)
            assert abs(path[-1][0] - destination.x) < destination.wide / 2
            points = along(path)
            assert (np.diff(points[:, 1]) > -1e-9).all()
            for node in drawn.nodes:
                if node not in (source, destination):
                    near = np.abs(points - (node.x, node.y)) < (node.wide / 2, HIGH / 2)
                    assert not near.all(1).any(), f"{edge} is behind {node.name}"


def along(path):
    """Return points of a path of cubic curves."""
    t = np.linspace(0, 1, 30)[:, None]
    parts = [np.array(path[start : start + 4]) for start in range(0, len(path) - 1, 3)]
    return np.concatenate(
        [(1 - t) ** 3 * p[0] + 3 * t * (1 - t) ** 2 * p[1] + 3 * t**2 * (1 - t) * p[2] + t**3 * p[3] for p in parts]
    )


def test_nodes_stand_by_layer_with_rings_of_their_effect_and_no_two_in_one_place(found):
    circuit = found[0].top(80)
    drawn = layout(circuit)
    assert [node.name for node in drawn.nodes[:-1]] == [n for n in circuit.graph.sources if n in set(circuit.nodes())]
    assert len({(node.x, node.y) for node in drawn.nodes}) == len(drawn.nodes)
    heights = {name: [n.y for n in drawn.nodes if n.name.startswith(name)] for name in ("L0H", "L0.mlp", "L1H", "logits")}
    assert all(max(a) < min(b) for a, b in zip(list(heights.values())[:-1], list(heights.values())[1:], strict=True))
    rings = {p.get_gid(): p for p in plot.circuit(circuit).axes[0].patches if str(p.get_gid()).startswith("ring-")}
    effects = dict(zip(circuit.graph.sources, circuit.outgoing().mean(-1).tolist(), strict=True))
    for number, node in enumerate(drawn.nodes[:-1]):
        assert node.effect == pytest.approx(effects[node.name])
        ring = rings.get(f"ring-{number}")
        assert ring is None or same_color(ring.get_edgecolor(), POSITIVE if node.effect > 0 else NEGATIVE)
    largest = max(range(len(drawn.nodes) - 1), key=lambda n: abs(drawn.nodes[n].effect))
    assert rings[f"ring-{largest}"].get_linewidth() == max(ring.get_linewidth() for ring in rings.values())


def test_the_picture_shows_each_sites_region_in_the_colour_of_its_node(found):
    circuit, inputs, sites = found
    drawn = layout(circuit.top(60))
    axes = plot.circuit(circuit.top(60), inputs=inputs, sites=sites, row=1).axes
    picture = next(one for one in axes if one.images)
    assert np.allclose(picture.images[0].get_array(), np.asarray(inputs.media[1][0]) / 255)
    regions = {one.get_label(): one for one in picture.collections if isinstance(one, LineCollection)}
    assert set(regions) == {"object", "elsewhere"}
    for site, lines in regions.items():
        assert same_color(lines.get_color()[0], drawn.colors[site])
    grid = inputs.grids[1][0]
    boxes = [grid.box(i) for i in sites["object"][1, inputs.medium[1] == 0].nonzero()[:, 0].tolist()]
    for line in regions["object"].get_segments():
        middle = line.mean(0)
        assert any(left <= middle[0] <= right and top <= middle[1] <= bottom for left, top, right, bottom in boxes)


@pytest.mark.parametrize("newline", [False, True])
def test_a_boundary_runs_within_the_cells_and_closes_around_them(newline):
    grid = Grid(3, 4, (0.0, 10.0, 40.0, 40.0), (40, 50), newline=newline)
    inside = torch.zeros(len(grid), dtype=torch.bool)
    stride = 4 + newline
    inside[[1 * stride + 1, 1 * stride + 2, 2 * stride + 1]] = True  # an L
    lines = boundary(grid, inside)
    ends = [tuple(round(v, 6) for v in end) for line in lines for end in line]
    assert len(lines) == 8 and all(ends.count(end) == 2 for end in ends)
    assert boundary(grid, torch.zeros_like(inside)) == []
    (left, top), (right, bottom) = np.array(ends).min(0), np.array(ends).max(0)
    assert (left, top, right, bottom) == pytest.approx((10.5, 20.5, 29.5, 39.5))


def test_an_edge_into_shared_keys_enters_each_head_that_goes_on(grouped):
    circuit, inputs = grouped
    small = circuit.top(40)
    drawn = layout(small)
    going = set(small.nodes())
    shared = [edge for edge in drawn.edges if edge.way in ("k", "v")]
    assert shared
    for edge in shared:
        heads = [small.graph.sources[n] for n in small.graph.nodes_of(small.graph.destinations.index(edge.destination))]
        assert [drawn.nodes[end].name for end in edge.ends] == [head for head in heads if head in going]
    figure = plot.circuit(small, inputs=inputs)  # the sites are modalities: their masks are those of the inputs
    assert any(axes.images for axes in figure.axes) and png(figure).startswith(b"\x89PNG")


def test_a_circuit_without_edges_and_sites_of_others_are_refused(found, grouped):
    circuit, inputs, sites = found
    for draw in (plot.circuit, plot.circuit_page):
        with pytest.raises(ValueError, match="this one has none"):
            draw(circuit.top(0))
        with pytest.raises(ValueError, match="the circuit has the sites object, elsewhere, words, got object"):
            draw(circuit, inputs=inputs, sites={"object": sites["object"]})
        with pytest.raises(ValueError, match="got object"):
            draw(circuit, inputs=grouped[1], sites=sites)
    with pytest.raises(ValueError, match=r"there is no 'L9\.mlp'"):
        plot.circuit_page(circuit, words={"L9.mlp": ["a"]})


class Reader(HTMLParser):
    """Reads a page: tags with their attributes, text, and what scripts hold."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.scripts = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)
        else:
            self.text += data

    def all(self, name):
        return [attrs for _, attrs in self.tags if name in (attrs.get("class") or "").split()]


def read(page):
    """Return a page, after checking that it fetches nothing and runs nothing but its own script."""
    assert len(page.html.encode()) < 600_000
    reader = Reader(page.html)
    assert [attrs.get("type") for tag, attrs in reader.tags if tag == "script"] == ["application/json", None]
    digest = base64.b64encode(hashlib.sha256(reader.scripts[1].encode()).digest()).decode()
    policy = next(attrs["content"] for tag, attrs in reader.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy
    assert not {"iframe", "link", "object", "img"} & {tag for tag, _ in reader.tags}
    for _, attrs in reader.tags:
        assert not [name for name in attrs if name.startswith("on")]
        assert all(str(attrs[name]).startswith(("data:image/", "#")) for name in ("src", "href") if name in attrs)
    assert "url(" not in page.html and "@import" not in page.html and "innerHTML" not in page.html
    return reader, json.loads(reader.scripts[0])


def test_a_page_holds_every_edge_with_its_number_and_fetches_nothing(found, tmp_path):
    circuit, inputs, sites = found
    page = plot.circuit_page(circuit, inputs=inputs, sites=sites, most=100)
    reader, data = read(page)
    edges = circuit.edges().head(100)
    paths = {int(path["data-edge"]): path for path in reader.all("edge") if "data-edge" in path}
    assert len(data["edges"]) == len(paths) == 100
    for number, (edge, row) in enumerate(zip(data["edges"], edges.itertuples(), strict=True)):
        assert data["nodes"][edge["source"]]["name"] == row.source and edge["destination"] == row.destination
        assert edge["score"] == pytest.approx(row.score)
        assert ("pos" if row.score > 0 else "neg") in paths[number]["class"].split()
    assert [node["aria-label"].split(",")[0] for node in reader.all("node")] == [node["name"] for node in data["nodes"]]
    half = float(f"{abs(edges.score.iloc[0]) / 2:.1g}")
    assert f"+{half:g}: raises the metric" in reader.text and f"−{half:g}: lowers it" in reader.text
    assert "score: what the metric of the corrupted run" in reader.text
    assert len(reader.all("region")) == 2 and "which object is" in reader.text
    assert page.save(tmp_path / "a" / "page.html").read_text(encoding="utf-8") == page.html
    frame = Reader(page._repr_html_()).tags[0]
    assert frame[0] == "iframe" and frame[1]["sandbox"] == "allow-scripts" and frame[1]["srcdoc"] == page.html


def test_a_pages_heads_hold_the_attention_of_the_last_query_on_the_picture(organism, found):
    circuit, inputs, sites = found
    attention = attention_rows(organism, inputs, layers=[1, 2])
    _, data = read(plot.circuit_page(circuit, inputs=inputs, sites=sites, row=1, attention=attention))
    heads = {node["name"]: node["heat"] for node in data["nodes"] if node["heat"]}
    assert heads and {name[:2] for name in heads} == {"L1", "L2"}
    own = attention.pattern[1, 1, 3, 0, inputs.mask("image")[1]]
    heat = heads["L2H3"]
    assert heat["masses"] == [["image:0", pytest.approx(float(own.sum()), abs=1e-6)]]
    assert heat["top"] == pytest.approx(float(own.max()))
    values = torch.tensor(list(base64.b64decode(heat["values"])))
    assert torch.allclose(values / 255, own / own.max(), atol=0.003)
    assert data["media"] == inputs.mask("image")[1].nonzero()[:, 0].tolist() and len(values) == 64
    with pytest.raises(ValueError, match="give inputs"):
        plot.circuit_page(circuit, attention=attention)


def extents(reader, number, view):
    """Return, for each region of a node, from where to where it reaches from left to right, as shares of the view."""
    found = []
    for region in reader.all("region"):
        if region["data-node"] == str(number):
            x = [float(x) for x, _ in re.findall(r"([\d.-]+) ([\d.-]+)", region["d"])]
            found.append((min(x) / view.box[2], max(x) / view.box[2]))
    return found


@pytest.mark.parametrize(("family", "kind"), [("qwen2-audio", "audio"), ("qwen2-vl", "video")])
def test_sites_of_sounds_and_videos_are_outlined_on_spectrogram_and_frames_and_heads_look_at_them(family, kind, tmp_path):
    model = HookedMLLM.from_pretrained(tiny(family, tmp_path), device="cpu")
    name, one = medium(model, 0, kind)
    inputs = model.to_inputs("what is it ?", **{name: one})
    held = inputs.mask(kind)[0].nonzero()[:, 0].tolist()
    views = [view for view in staged(inputs, 0).views if view.kind != "text"]
    early = torch.zeros_like(inputs.tokens, dtype=torch.bool)
    early[0, held[: len(held) // 2]] = True
    sites = {"early": early, "late": inputs.mask(kind) & ~early}
    found, attention = of_graph(graph_of(model, inputs, sites=sites)[0]), attention_rows(model, inputs)
    reader, data = read(plot.circuit_page(found, inputs=inputs, sites=sites, attention=attention))
    names = [node["name"] for node in data["nodes"]]
    assert data["media"] == held and data["nodes"][names.index("early")]["positions"] == held[: len(held) // 2]
    assert [drawing["aria-label"] for drawing in reader.all("drawing")] == [view.alt for view in views]
    places = {place: extents(reader, names.index(place), views[0]) for place in sites}
    if kind == "video":  # two frames for each step in time, each step a picture
        assert len(views) == 2 and all(len(place) == 1 for place in places.values())
        assert all(0 <= left < 0.1 and 0.9 < right <= 1 for place in places.values() for left, right in place)
    else:
        (place,) = inputs.grids[0]
        middle = place.seconds(len(held) // 2)[0] / views[0].seconds
        assert places["early"] == [pytest.approx((0, middle), abs=0.01)]
        assert places["late"] == [pytest.approx((middle, len(place) * place.step / views[0].seconds), abs=0.01)]
    own = attention.pattern[1, 0, 2, 0, held]
    heat = data["nodes"][names.index("L1H2")]["heat"]
    assert heat["masses"] == [[f"{kind}:0", pytest.approx(float(own.sum()), abs=1e-6)]]
    values = torch.tensor(list(base64.b64decode(heat["values"])))
    torch.testing.assert_close(heat["top"] * values / 255, own, atol=0.003 * heat["top"], rtol=0)


def test_hostile_names_words_and_texts_are_text_in_figures_and_pages(hostile):
    circuit, inputs, sites = hostile
    inputs = replace(inputs, text=(HOSTILE, HOSTILE))
    name = f"L2.{HOSTILE}"
    options = dict(inputs=inputs, sites=sites)
    reader, data = read(plot.circuit_page(circuit, words={name: [HOSTILE, "\ud800"]}, title=HOSTILE, **options))
    spelled = HOSTILE.replace("\u2028", "\\u2028")
    assert reader.text.count(spelled) >= 3
    assert next(node for node in data["nodes"] if node["name"] == f"L2.{spelled}")["words"][0] == spelled
    assert re.search("[\u2028<>&]", reader.scripts[0]) is None
    figure = plot.circuit(circuit, **options)
    assert png(figure).startswith(b"\x89PNG")
    assert not [text for text in figure.axes[0].texts if re.search(r"(?<!\\)\$", text.get_text())]


def test_a_circuit_without_inputs_or_without_pictures_is_drawn_alone(found):
    circuit, inputs, sites = found
    assert not any(axes.images for axes in plot.circuit(circuit.top(30)).axes)
    reader, data = read(plot.circuit_page(circuit.top(30)))
    assert data["media"] == [] and not reader.all("stage")
    blind = replace(inputs, media=((), ()), grids=((), ()))
    assert not any(axes.images for axes in plot.circuit(circuit.top(30), inputs=blind, sites=sites).axes)
    read(plot.circuit_page(circuit.top(30), inputs=blind, sites=sites))


def faithful(alone, **changes):
    sizes = torch.tensor([0, 5, 40, 12, 300])
    values = torch.tensor(alone)[:, None] + torch.tensor([-0.05, 0.0, 0.05])
    own = dict(
        ablation="resample",
        sizes=sizes,
        alone=values,
        without=1 - values,
        controls={"random": torch.rand(3, 5, 3), "matched": torch.full((2, 5, 3), torch.nan)},
        provenance=PROVENANCE,
    )
    return Faithfulness(**{**own, **changes})


def test_faithfulness_draws_alone_and_without_by_size_beside_grey_controls_and_says_from_where_on_it_is_enough():
    result = faithful([0.0, 0.3, 0.85, 0.5, 1.0])
    (axes,) = plot.faithfulness(result).axes
    lines = {line.get_label(): line for line in axes.lines}
    order = [1, 3, 2, 4]
    for label, values in (("these edges alone", result.alone), ("all edges without these", result.without)):
        assert list(lines[label].get_xdata()) == [5, 12, 40, 300]
        assert np.allclose(lines[label].get_ydata(), values.mean(1)[order])
    grey = [line for line in axes.lines if same_color(line.get_color(), RANDOM)]
    assert len(grey) == (1 + 3) + (1 + 2)
    assert np.allclose(lines["alone, random edges (3 draws)"].get_ydata(), result.controls["random"].mean((0, 2))[order])
    assert axes.get_xscale() == "log" and len(axes.collections) == 2 and axes.get_xlabel() == "edges (number)"
    assert axes.get_ylabel() == "share of the clean run's metric\n(mean of 3, ablation: resample)"
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(1.0 + 4.302653 * 0.05 / 3**0.5, abs=1e-4)  # Student's t, three rows
    assert f"0.8: from {result.size_for(0.8)} edges on" in lines
    (never,) = plot.faithfulness(faithful([0.0, 0.1, 0.2, 0.1, 0.3], controls={})).axes
    assert "0.8: reached at no size" in [line.get_label() for line in never.lines]
