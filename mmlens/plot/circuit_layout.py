"""Where the nodes and edges of a circuit are drawn: layers upwards, what enters at the bottom, the logits on top."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import wrap

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmlens.analysis.circuit import Circuit, Graph
from mmlens.grid import Grid, Tiles, finest
from mmlens.inputs import MODALITIES, Inputs
from mmlens.plot.canvas import RANDOM, spelled
from mmlens.plot.curves import colors_of

MOST = 300  # edges: more cannot be told apart
WIDE, HIGH = 0.74, 0.40  # a node, where the next one in its row is 1 away
UP = {"embed": 0.0, "head": 0.0, "mlp": 0.75, "neurons": 0.75, "deepstack": 1.25}  # within a layer, as the stream goes
ENTRY, APART, CLEAR = 1.3, 0.95, 0.34  # between what enters and layers, between layers, free above and below a box
PORT = {"q": -0.24, "k": 0.0, "v": 0.24}  # where an edge enters a head
COLUMNS = 12  # heads that keep a column of their own through all layers
METHODS = {"eap": "EAP", "eap-ig": "EAP-IG", "exact": "exact patching"}
Point = tuple[float, float]


@dataclass(frozen=True)
class Node:
    """A box `wide` across, centred at (x, y). `effect` is the sum of the scores of all its edges, None of the logits."""

    name: str
    kind: str
    layer: int
    x: float
    y: float
    effect: float | None
    wide: float = WIDE


@dataclass(frozen=True)
class Edge:
    """From a node to one or several (heads that share keys), which read `destination` by a `way`; numbers are of nodes.

    Each of `paths` leads to one of `ends`: a point, and three more for each of its cubic Bezier curves.
    """

    source: int
    ends: tuple[int, ...]
    destination: str
    way: str
    score: float
    paths: tuple[tuple[Point, ...], ...] = ()


@dataclass(frozen=True)
class Layout:
    """Nodes row by row, upwards and each from left to right, and edges from the largest absolute score on.

    `colors` are those of all sites; `layers` are the drawn layers, with the heights of their lowest and highest boxes.
    """

    nodes: list[Node]
    edges: list[Edge]
    colors: dict[str, str]
    layers: list[tuple[int, float, float]]
    columns: int

    @property
    def rows(self) -> float:
        """How high the logits are."""
        return self.nodes[-1].y

    def share(self, score: float) -> float:
        """Return a score's absolute size as a share of the largest edge's."""
        return abs(score) / (abs(self.edges[0].score) or 1.0)

    @property
    def largest_effect(self) -> float:
        """The largest absolute effect of a node."""
        return max((abs(node.effect) for node in self.nodes if node.effect is not None), default=1.0) or 1.0


def layout(found: Circuit, *, most: int = MOST) -> Layout:
    """Return where a circuit's largest `most` edges are drawn, with all nodes that they touch and the logits.

    Where heads share keys and values, an edge into these enters those heads that go on, or all where none does. Raises
    ValueError for a circuit without edges.
    """
    graph, score = found.graph, found.score
    kept = found.kept.nonzero()
    if not len(kept) or most < 1:
        raise ValueError("a circuit is drawn by its edges, this one has none: take top(k) or above(threshold) with some")
    size = score[found.kept].abs()
    chosen = kept[torch.argsort(size, descending=True, stable=True)[:most]].tolist()
    going = {source for source, _ in chosen}
    ends = {d: [n for n in graph.nodes_of(d) if n in going] or graph.nodes_of(d) for _, d in chosen}
    present = sorted(going | {n for own in ends.values() for n in own})
    nodes, layers, columns = _placed(graph, present, found.outgoing().mean(-1).tolist())
    number = {node.name: place for place, node in enumerate(nodes)}
    edges = [
        Edge(
            number[graph.sources[s]],
            tuple(number[graph.sources[n]] for n in ends[d]) or (len(nodes) - 1,),
            graph.destinations[d],
            graph.kind[d],
            float(score[s, d]),
        )
        for s, d in chosen
    ]
    return Layout(nodes, routed(nodes, edges, columns), site_colors(graph.sites), layers, columns)


def _placed(
    graph: Graph, present: Sequence[int], effects: Sequence[float]
) -> tuple[list[Node], list[tuple[int, float, float]], int]:
    """Return the nodes: heads at the left, in columns of their own where these are few, sets and MLPs at the right."""
    rows: dict[int, list[int]] = {}
    for number in present:
        rows.setdefault(int(graph.source_layer[number]), []).append(number)
    heads = {layer: [n for n in own if graph.source_kind[n] == "head"] for layer, own in rows.items()}
    used = sorted({int(graph.source_index[n]) for own in heads.values() for n in own})
    entering, sets = rows.get(-1, []), sorted({int(graph.source_index[n]) for n in present if _is(graph, n, "neurons")})
    across = len(used) if len(used) <= COLUMNS else max(len(own) for own in heads.values())
    inner = len(sets) + any(_is(graph, n, "mlp") or _is(graph, n, "deepstack") for n in present)
    columns = max(across + inner, len(entering), 3)
    across = columns - inner
    step = max(1, min(3, (columns - 1) // max(1, len(entering) - 1)))
    first = (columns - 1 - step * (len(entering) - 1)) // 2
    nodes: list[Node] = []
    layers: list[tuple[int, float, float]] = []
    height = 0.0
    for layer, own in sorted(rows.items()):
        stages = [UP[graph.source_kind[n]] for n in own]
        height -= min(stages)
        for place, number in enumerate(own):
            kind, index = graph.source_kind[number], int(graph.source_index[number])
            if kind == "head" and len(used) <= COLUMNS:
                x = used.index(index) + (across - len(used)) // 2
            elif kind == "head":
                x = place + (across - len(heads[layer])) // 2
            elif kind == "neurons":
                x = across + sets.index(index)
            else:
                x = first + step * place if kind == "embed" else columns - 1
            nodes.append(Node(graph.sources[number], kind, layer, float(x), height + UP[kind], effects[number]))
        layers.append((layer, height + min(stages), height + max(stages)))
        height += ENTRY if layer < 0 else max(stages) + APART
    wide = max(1.2, 0.6 * columns)
    nodes.append(Node("logits", "logits", int(graph.layer[-1]), (columns - 1) / 2, height + 0.15, None, wide))
    return nodes, layers, columns


def _is(graph: Graph, number: int, kind: str) -> bool:
    return graph.source_kind[number] == kind


def routed(nodes: Sequence[Node], edges: Sequence[Edge], columns: int) -> list[Edge]:
    """Return the edges with their paths: straight on where no box is in the way, else upwards between two columns.

    Queries, keys and values enter a head in this order; edges into anything else side by side, as they come.
    """
    ports = _ports(nodes, edges)
    boxes = np.array([(n.x - n.wide / 2, n.x + n.wide / 2, n.y - HIGH / 2, n.y + HIGH / 2) for n in nodes])
    used: Counter[float] = Counter()
    found = []
    for place, edge in enumerate(edges):
        node, paths = nodes[edge.source], []
        for end in edge.ends:
            start, stop = (node.x, node.y + HIGH / 2), ports[place, end]
            rise = stop[1] - start[1]
            path = (start, (start[0], start[1] + 0.45 * rise), (stop[0], stop[1] - 0.45 * rise), stop)
            others = np.delete(boxes, [edge.source, end], axis=0)
            if rise > 2 * CLEAR and _hits(path, others):
                gaps = [gap + 0.5 for gap in range(-1, columns)]
                best = min(gaps, key=lambda x: (abs(x - start[0]) + abs(x - stop[0]) + 0.04 * used[x], x))
                offset = (used[best] + 1) // 2 * (1 if used[best] % 2 else -1)
                used[best] += 1
                path = _between(start, stop, best + max(-0.11, min(0.11, 0.022 * offset)))
            paths.append(path)
        found.append(replace(edge, paths=tuple(paths)))
    return found


def _ports(nodes: Sequence[Node], edges: Sequence[Edge]) -> dict[tuple[int, int], Point]:
    """Return where each edge (its place, the node at its end) enters."""
    found: dict[tuple[int, int], Point] = {}
    into: dict[int, list[int]] = {}
    for place, edge in enumerate(edges):
        for end in edge.ends:
            node = nodes[end]
            found[place, end] = (node.x + PORT.get(edge.way, 0.0), node.y - HIGH / 2)
            if edge.way not in PORT:
                into.setdefault(end, []).append(place)
    for end, places in into.items():
        node = nodes[end]
        places.sort(key=lambda place: (nodes[edges[place].source].x, -nodes[edges[place].source].y))
        step = min(0.25, (node.wide - 0.2) / max(1, len(places) - 1))
        for number, place in enumerate(places):
            found[place, end] = (node.x + step * (number - (len(places) - 1) / 2), node.y - HIGH / 2)
    return found


def _hits(path: Sequence[Point], boxes: Float[np.ndarray, "box 4"]) -> bool:
    """Return whether a Bezier curve crosses a box."""
    t = np.linspace(0, 1, 41)[:, None]
    weights = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    x, y = (weights @ np.array(path)).T[..., None]
    left, right, low, high = boxes.T
    return bool(((x > left - 0.02) & (x < right + 0.02) & (y > low) & (y < high)).any())


def _between(start: Point, stop: Point, x: float) -> tuple[Point, ...]:
    """Return the path that leaves its column, goes up at `x`, and comes back."""
    low, high = start[1] + CLEAR, stop[1] - CLEAR
    return (
        *(start, (start[0], start[1] + 0.7 * CLEAR), (x, low - 0.7 * CLEAR), (x, low)),
        *((x, low + (high - low) / 3), (x, high - (high - low) / 3), (x, high)),
        *((x, high + 0.7 * CLEAR), (stop[0], stop[1] - 0.7 * CLEAR), stop),
    )


def site_colors(sites: Sequence[str]) -> dict[str, str]:
    """Return a colour for each site: a modality's own, others in turn, grey for the rest."""
    named = [site for site in sites if site != "rest"]
    return {**dict(zip(named, colors_of(named), strict=True)), "rest": RANDOM}


def site_masks(
    graph: Graph, inputs: Inputs, sites: Mapping[str, Bool[Tensor, "batch pos"]] | None
) -> dict[str, Bool[Tensor, "batch pos"]]:
    """Return each site's positions in `inputs`: those given, or the modalities' where the circuit has these, and "rest".

    Raises ValueError for masks of other sites than the circuit's, or of other inputs.
    """
    named = [site for site in graph.sites if site != "rest"]
    if sites is None:
        sites = {site: inputs.mask(site) for site in named} if set(named) <= set(MODALITIES) else {}
    elif set(sites) != set(named) or any(mask.shape != inputs.tokens.shape for mask in sites.values()):
        got = ", ".join(f"{name} {list(mask.shape)}" for name, mask in sites.items())
        raise ValueError(
            f"the circuit has the sites {', '.join(named)}, got {got} for inputs {list(inputs.tokens.shape)}: give the "
            "inputs and the sites that it was found with"
        )
    masks = {site: mask.cpu() for site, mask in sites.items()}
    if masks or not named:
        masks["rest"] = ~torch.stack([*masks.values(), torch.zeros(inputs.tokens.shape, dtype=torch.bool)]).any(0)
    return masks


def boundary(place: Grid | Tiles, inside: Bool[Tensor, " position"]) -> list[tuple[Point, Point]]:
    """Return the lines, in pixels, just within the edge of the positions that are `inside`; of tiles, of the finest."""
    found: list[tuple[Point, Point]] = []
    for tile, cells in place.painted(inside):
        if tile not in finest(place):
            continue
        left, top, right, bottom = tile.region
        x = _edges(left, right, tile.columns, tile.columns_at)
        y = _edges(top, bottom, tile.rows, tile.rows_at)
        within = 0.05 * min((right - left) / tile.columns, (bottom - top) / tile.rows)
        found += _sides(cells, x, y, within)
        found += [((a, b), (c, d)) for (b, a), (d, c) in _sides(cells.T, y, x, within)]
    return found


def _sides(
    cells: Bool[Tensor, "row column"], x: Sequence[float], y: Sequence[float], within: float
) -> list[tuple[Point, Point]]:
    """Return the upright lines around cells, which meet the level ones at corners."""
    padded = torch.nn.functional.pad(cells, (1, 1, 1, 1))
    found: list[tuple[Point, Point]] = []
    for row, column in (padded[:, 1:] != padded[:, :-1]).nonzero().tolist():
        own, other = (column + 1, column) if padded[row, column + 1] else (column, column + 1)

        def short(step: int, row: int = row, own: int = own, other: int = other) -> float:
            """Return by how much the line ends before its cell does: at a corner inwards, at one outwards behind it."""
            return within * (int(not padded[row + step, own]) - int(padded[row + step, own] & padded[row + step, other]))

        at = x[column] + within * (own - other)
        found.append(((at, y[row - 1] + short(-1)), (at, y[row] - short(1))))
    return found


def _edges(start: float, stop: float, cells: int, at: tuple[tuple[float, float], ...]) -> list[float]:
    """Return where cells begin, and where the last one ends."""
    return [*(begin for begin, _ in at), at[-1][1]] if at else torch.linspace(start, stop, cells + 1).tolist()


def told(found: Circuit, drawn: Layout) -> tuple[str, str]:
    """Return what is drawn, and what its numbers are, in words."""
    possible, pairs = int(found.graph.possible.sum()), found.scores.shape[-1]
    part = f"the {len(drawn.edges)} largest of {len(found)}" if len(drawn.edges) < len(found) else f"{len(found)}"
    edges, several = "edge" if len(found) == 1 else "edges", f"mean of {pairs} pairs" if pairs != 1 else "1 pair"
    clean, corrupted = float(found.clean_metric.mean()), float(found.corrupted_metric.mean())
    return (
        f"{part} {edges} (of {possible:,} possible), {METHODS.get(found.method, found.method)}, {several}",
        f"score: what the metric of the corrupted run ({corrupted:.3g}) gains where the edge is clean "
        f"(clean run: {clean:.3g})",
    )


def lines(node: Node, longest: int) -> list[str]:
    """Return a node's name in at most two lines of that length."""
    name = spelled(node.name)
    parts = [name] if len(name) <= longest else wrap(name.replace(".", ". ", 1), longest)
    return [spelled(part, longest) for part in parts[:1]] + [spelled(" ".join(parts[1:]), longest)] * (len(parts) > 1)


def about(node: Node, masks: Mapping[str, Tensor] | None = None, row: int = 0) -> str:
    """Return what a node is, in words."""
    if node.kind == "embed":
        count = "" if masks is None or node.name not in masks else f", {int(masks[node.name][row].sum())} positions"
        return f"what enters at {spelled(node.name)}{count}"
    if node.kind == "head":
        return f"head {node.name.rpartition('H')[2]} of layer {node.layer}"
    if node.kind == "mlp":
        return f"MLP of layer {node.layer}"
    if node.kind == "neurons":
        return f"neurons {spelled(node.name.partition('.')[2])} of layer {node.layer}"
    return "the logits" if node.kind == "logits" else f"what DeepStack adds behind layer {node.layer}"
