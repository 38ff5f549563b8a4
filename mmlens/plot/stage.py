"""The media and words of one row as a page shows them: every position of the stream has a place there that can be chosen.

A page puts `Stage.html(name)` in its body, `STYLE` in its style, and `SCRIPT` before its own script, which then paints:

- `staged(name, point, choose)`: the stage of that name; `point(position)` is called with the position to tell of (hovered,
  else chosen; null for none), `choose(position)`, if given, when one is chosen by a click or keys; `stage.chosen` is it, and
  `stage.choose(position)` chooses from outside.
- `paint(stage, values)`: colours positions, `values[position]` from -1 (cold) to 1 (hot); what has none stays as it is, and
  null takes all colour off.
- `write(stage, words)`: writes `words[position]` on the boxes of media, where there is room.
- `say(stage, words)`: what a screen reader says of a position behind where it lies, `words[position]`.
- `mark(stage, name, positions)`: gives these positions the class `name`, and takes it from all others ("crossed", "ringed").
- `stage.about[position]`: where it lies, in words; `make(tag, text, class)`, `percent(x)`, `numbers(text, bits)`: an
  element, a share in words, and the numbers that `packed` has packed.
"""

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Literal

import numpy as np
from PIL import Image
from scipy.signal import spectrogram

from mmlens.grid import Box, Grid, Place, Tiles, Timeline
from mmlens.inputs import MEDIA, MODALITIES, Inputs
from mmlens.media import Sound, Video
from mmlens.model import HookedMLLM
from mmlens.plot.canvas import spelled
from mmlens.plot.html import compressed, encoded, uri
from mmlens.plot.stage_script import SCRIPT, STYLE

__all__ = ["SCRIPT", "STYLE", "Stage", "View", "group_names", "packed", "staged", "words_of"]

Kind = Literal["picture", "frame", "sound", "cells", "text"]
Cell = tuple[int, Box]
END = 0.35  # how wide the position that ends a row is drawn, in columns
WIDE, HIGH, FLOOR, DECIBELS = 1000.0, 170.0, 60.0, 80.0  # a spectrogram: its size, its lowest frequency (Hz), its range
BESIDE, BELOW, BEHIND = 90.0, 36.0, 24.0  # room around it for frequencies, for seconds, and for the last of these


@dataclass(frozen=True)
class View:
    """One picture with the boxes of its positions, or a line of positions that have no place on a picture.

    `cells` are (position of the stream, box): pixels of the original, for a sound those of the spectrogram; `line` are
    positions without a box, each with its word. `ends` are those that end a row of a grid and hold no piece of the picture.
    `alt` says what is seen, in words; `over` is SVG that lies above the boxes, in their units.
    """

    kind: Kind
    alt: str
    cells: tuple[Cell, ...] = ()
    line: tuple[tuple[int, str], ...] = ()
    image: bytes = b""
    size: tuple[int | float, int | float] = (0, 0)
    box: Box = (0.0, 0.0, 0.0, 0.0)
    width: int = 0
    seconds: float = 0.0
    highest: float = 0.0
    name: str = ""
    ends: frozenset[int] = frozenset()
    over: str = ""

    @property
    def positions(self) -> list[int]:
        """The positions of the stream that can be chosen here."""
        return [position for position, _ in (*self.cells, *self.line)]

    def about(self) -> dict[int, str]:
        """Return where each position lies, in words."""
        found = {position: f"{self.name} {word}, position {position}" for position, word in self.line}
        for position, (left, top, right, bottom) in self.cells:
            place = f"x {left:.4g} to {right:.4g}, y {top:.4g} to {bottom:.4g}"
            if position in self.ends:
                place = f"the end of the row y {top:.4g} to {bottom:.4g}"
            if self.kind == "sound":
                begin, end = (self.seconds * edge / WIDE for edge in (left, right))
                place = f"{begin:.3g} to {end:.3g} s"
            found[position] = f"{self.name}, {place}, position {position}"
        return found


@dataclass(frozen=True)
class Stage:
    """What a row holds, ready to be shown: its views in order, the text last. See the head of this file."""

    views: tuple[View, ...]
    length: int

    def html(self, name: str) -> str:
        """Return the stage as HTML, for one place of a page; `name` is its id there, of letters and digits."""
        parts, kind, drawn = [], "", {}
        for number, view in enumerate(self.views):
            if view.kind == "frame" != kind:
                parts.append('<div class="strip">')
            if kind == "frame" != view.kind:
                parts.append("</div>")
            kind = view.kind
            parts.append(_line(view) if not view.image else _drawing(view, f"{name}-{number}", drawn))
        zoom = ""
        if any(view.image for view in self.views):
            zoom = '<label class="soft">size <input type="range" class="zoom" min="1" max="6" step="0.25" value="1"></label>'
        ends = "</div>" if kind == "frame" else ""
        about = escape(json.dumps(self.about(), separators=(",", ":")))
        return f'<div class="stage" id="{escape(name)}" data-about="{about}">{zoom}{"".join(parts)}{ends}</div>'

    def about(self) -> list[str]:
        """Return where each position of the row lies, in words: on which medium and where on it, or which word it is."""
        found = {position: words for view in self.views for position, words in view.about().items()}
        return [found.get(position, "padding") for position in range(self.length)]

    def media(self) -> list[int]:
        """Return the positions that hold a medium."""
        return sorted(position for view in self.views if view.kind != "text" for position in view.positions)


def staged(inputs: Inputs, row: int = 0, *, words: Sequence[str] | None = None) -> Stage:
    """Return the stage of a `row` of inputs; `words` are those of its positions (`words_of(model, inputs.tokens[row])`).

    Of overlapping tiles, those that show the picture largest come first, and the others below as pictures of their own.
    """
    medium, modality = inputs.medium[row].tolist(), inputs.modality[row].tolist()
    views: list[View] = []
    for number, (what, place, name) in enumerate(
        zip(inputs.media[row], inputs.grids[row], group_names(inputs, row), strict=True)
    ):
        positions = [position for position, own in enumerate(medium) if own == number]
        views += _medium(what, place, positions, name)
    shown = {position for view in views for position in view.positions}
    rest = [n for n, kind in enumerate(modality) if MODALITIES[kind] != "pad" and n not in shown]
    line = tuple((n, str(n) if words is None else spelled(words[n], 24)) for n in rest)
    views.append(View("text", f"text: {len(line)} positions", line=line, name="text"))
    return Stage(tuple(views), len(modality))


def group_names(inputs: Inputs, row: int) -> list[str]:
    """Return the name of each medium of a row as a group of positions: "image:0", "image:1", "audio:0"."""
    counts = dict.fromkeys(MEDIA, 0)
    names = []
    for one in inputs.media[row]:
        kind = "audio" if isinstance(one, Sound) else "video" if isinstance(one, Video) else "image"
        names.append(f"{kind}:{counts[kind]}")
        counts[kind] += 1
    return names


def words_of(model: HookedMLLM, tokens: Any) -> list[str]:
    """Return each token as text; a number stands for an entry of the vocabulary that no token has."""
    pieces = model.tokenizer.convert_ids_to_tokens(tokens.tolist())
    named = zip(pieces, tokens.tolist(), strict=True)
    return [f"[{n}]" if p is None else p.replace("\u2581", " ").replace("\u0120", " ") for p, n in named]


def packed(values: Any, bits: Literal[8, 16, 32]) -> str:
    """Return whole numbers as text that the script reads by `numbers(text, bits)`; those out of range go to its end."""
    whole = np.clip(np.rint(np.asarray(values, dtype=np.float64)), 0, 2**bits - 1)
    return base64.b64encode(whole.astype(f"<u{bits // 8}").tobytes()).decode()


def _medium(what: Any, place: Place, positions: Sequence[int], name: str) -> Iterator[View]:
    """Yield the views of one medium."""
    if isinstance(what, Sound):
        yield _sound(what, place, positions, name)
    elif isinstance(what, Video):
        yield from _video(what, place, positions, name)
    elif isinstance(what, Image.Image):
        yield from _picture(what, place, positions, name)
    without = positions
    if isinstance(place, Timeline):
        without = []
    elif isinstance(place, (Grid, Tiles)):
        without = [positions[n] for n, box in enumerate(_boxes(place)) if box is None]
    if without:
        about = "have no place on it" if place is None else "hold no piece of it"
        line = tuple((position, str(n)) for n, position in enumerate(without))
        yield View("cells", f"{name}: {len(line)} positions that {about}", line=line, name=f"{name}, number")


def _picture(picture: Image.Image, place: Place, positions: Sequence[int], name: str) -> Iterator[View]:
    wide, high = picture.size
    image = compressed(picture, side=896)
    if not isinstance(place, (Grid, Tiles)):
        whole = (0.0, 0.0, float(wide), float(high))
        yield View("picture", f"{name}, {wide} x {high} pixels", image=image, size=picture.size, box=whole, width=360)
        return
    layers = _layers(place, positions)
    ends = frozenset(position for n, position in enumerate(positions) if place.box(n) is None)
    for number, cells in enumerate(layers):
        alt = f"{name}, {wide} x {high} pixels, {len(cells)} positions"
        alt += f", {'finest' if not number else 'coarser'} tiles" if len(layers) > 1 else ""
        box = _around(cells)
        left, _, right, _ = cells[0][1]
        width = min(max(40 * (box[2] - box[0]) / (right - left), 480), 900)
        width = min(width, 900 * (box[2] - box[0]) / (box[3] - box[1]))
        shown = View("picture", alt, tuple(cells), image=image, size=picture.size, box=box, width=round(width))
        yield replace(shown, name=name, ends=ends)


def _video(video: Video, place: Place, positions: Sequence[int], name: str) -> Iterator[View]:
    grids: tuple[Grid, ...] = place.grids if isinstance(place, (Grid, Tiles)) else ()
    size, count = video.frames[0].size, len(video.frames)
    side = 480 if count <= 8 else 256
    whole = (0.0, 0.0, float(size[0]), float(size[1]))
    if not any(grid.columns for grid in grids):
        for number, frame in enumerate(video.frames):
            alt = f"{name}, frame {number}"
            yield View("frame", alt, image=compressed(frame, side=side), size=size, box=whole, width=200)
        return
    start, groups = 0, dict[tuple[int, int], list[Cell]]()
    for grid in grids:
        own = positions[start : start + len(grid)]
        start += len(grid)
        cells = [(own[n], box) for n, box in enumerate(_boxes(grid)) if box is not None]
        if cells:
            groups.setdefault(grid.frames or (0, count), []).extend(cells)
    for (first, stop), cells in groups.items():
        frames = f"frame {first}" if stop - first == 1 else f"frames {first} to {stop - 1}"
        time = f", {first / video.fps:.3g} s" if video.fps else ""
        image = compressed(video.frames[min(first, count - 1)], side=side)
        box = _around(cells)
        columns = len({cell[0] for _, cell in cells})
        width = min(max(40 * columns, 240), 480)
        alt = f"{name}, {frames}{time}, {len(cells)} positions"
        yield View("frame", alt, cells=tuple(cells), image=image, size=size, box=box, width=width, name=f"{name}, {frames}")


def _sound(sound: Sound, place: Place, positions: Sequence[int], name: str) -> View:
    heard = len(place) * place.step if isinstance(place, Timeline) else 0.0
    rate = float(sound.rate or (len(sound.samples) / heard if heard else 16_000))  # its own rate is not said: the model's
    long = len(sound.samples) / rate
    lasts = max(long, heard)
    cells = []
    if isinstance(place, Timeline):
        for n, position in enumerate(positions):
            begin, end = (WIDE * edge / lasts for edge in place.seconds(n))
            cells.append((position, (begin, 0.0, end, HIGH)))
    width = min(max(26 * len(cells), 720), 960)
    return View(
        "sound",
        f"{name}: spectrogram of {long:.3g} seconds, {len(cells)} positions",
        cells=tuple(cells),
        image=encoded(_spectrogram(sound.samples, rate)),
        size=(WIDE * long / lasts, HIGH),
        box=(0.0, 0.0, WIDE, HIGH),
        width=width,
        seconds=lasts,
        highest=rate / 2,
        name=name,
    )


def _spectrogram(samples: np.ndarray, rate: float) -> Image.Image:
    """Return the power of a sound over time (rightwards) and frequency (upwards, both logarithmic), loud ones bright."""
    window = int(min(max(rate * 0.025, 16), len(samples)))
    step = max(int(rate * 0.01), len(samples) // 1200, 1)
    frequencies, _, power = spectrogram(
        samples.astype(np.float64), rate, nperseg=window, noverlap=max(window - step, 0), nfft=max(1024, window)
    )
    levels = 10 * np.log10(power + 1e-12)
    wanted = np.geomspace(rate / 2, min(FLOOR, rate / 4), 128)
    rows = np.stack([np.interp(wanted, frequencies, column) for column in levels.T], axis=1)
    loud = np.clip(1 + (rows - rows.max()) / DECIBELS, 0, 1)
    return Image.fromarray((255 * loud).round().astype(np.uint8))


def _boxes(place: Grid | Tiles) -> list[Box | None]:
    """Return the box of each position of a place; one that ends a row has a slim one behind it, None without a row."""
    found: list[Box | None] = []
    for grid in place.grids:
        for index in range(len(grid)):
            box = grid.box(index)
            if box is None and grid.columns:
                left, top, right, bottom = grid.box(index - 1) or (0.0, 0.0, 0.0, 0.0)
                box = (right, top, right + END * (right - left), bottom)
            found.append(box)
    return found


def _layers(place: Grid | Tiles, positions: Sequence[int]) -> list[list[Cell]]:
    """Return the cells of tiles that do not cover each other, those of the finest tiles first."""
    start, tiles = 0, []
    for grid in place.grids:
        own = positions[start : start + len(grid)]
        start += len(grid)
        cells = [(own[n], box) for n, box in enumerate(_boxes(grid)) if box is not None]
        if cells:
            left, top, right, bottom = grid.region
            tiles.append(((right - left) * (bottom - top) / (grid.rows * grid.columns), grid.region, cells))
    layers: list[tuple[float, list[Box], list[Cell]]] = []
    for area, region, cells in sorted(tiles, key=lambda tile: tile[0]):
        for least, regions, own in layers:
            if area <= 2 * least and not any(_meet(region, other) for other in regions):
                regions.append(region)
                own.extend(cells)
                break
        else:
            layers.append((area, [region], list(cells)))
    return [sorted(own) for *_, own in layers]


def _meet(one: Box, other: Box) -> bool:
    """Return whether boxes share more than the blur of an edge."""
    across, down = (min(one[n + 2], other[n + 2]) - max(one[n], other[n]) for n in (0, 1))
    return across > 1 and down > 1


def _around(cells: Sequence[Cell]) -> Box:
    left, top, right, bottom = zip(*(box for _, box in cells), strict=True)
    return min(left), min(top), max(right), max(bottom)


def _line(view: View) -> str:
    tokens = "".join(
        f'<span class="cell" role="option" aria-selected="false" data-position="{position}">{escape(word)}</span>'
        for position, word in view.line
    )
    alt = escape(view.alt)
    return (
        f'<figure class="view {view.kind}"><figcaption class="soft">{alt}</figcaption>'
        f'<div class="line" role="listbox" tabindex="0" aria-label="{alt}">{tokens}</div></figure>'
    )


def _drawing(view: View, name: str, drawn: dict[bytes, str]) -> str:
    left, top, right, bottom = view.box
    wide, high = view.size
    axis = ""
    if view.kind == "sound":
        axis, left, bottom, right = _axis(view), left - BESIDE, bottom + BELOW, right + BEHIND
    if view.image in drawn:
        image = f'<use href="#{drawn[view.image]}"/>'
    else:
        drawn[view.image] = f"{name}-image"
        image = (
            f'<image id="{drawn[view.image]}" width="{wide:g}" height="{high:g}" preserveAspectRatio="none" '
            f'href="{uri(view.image)}"/>'
        )
    boxes = [[n, *(round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0))] for n, (x0, y0, x1, y1) in view.cells]
    alt = escape(view.alt)
    box = f"{left:g} {top:g} {right - left:g} {bottom - top:g}"
    small = " small" if view.kind != "sound" and max(view.size) <= 128 else ""
    role = 'role="listbox" tabindex="0"' if view.cells else 'role="img"'
    return (
        f'<figure class="view {view.kind}{small}"><figcaption class="soft">{alt}</figcaption><div class="scroll">'
        f'<svg class="drawing" {role} aria-label="{alt}" viewBox="{box}" width="{view.width}" '
        f'data-cells="{json.dumps(boxes, separators=(",", ":"))}"><g class="under">{image}</g><g class="cells"></g>'
        f'<g class="over" aria-hidden="true">{view.over}</g><g class="words" aria-hidden="true"></g>{axis}'
        "</svg></div></figure>"
    )


def _axis(view: View) -> str:
    """Return the seconds below a spectrogram, and frequencies at its left."""
    steps = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
    step = next((s for s in steps if view.seconds / s <= 10), 120)
    parts = []
    for n in range(int(view.seconds / step + 1e-9) + 1):
        x = WIDE * n * step / view.seconds
        anchor = "end" if x > WIDE - 20 else "middle"
        parts.append(f'<path d="M{x:.1f} {HIGH}v5"/><text x="{x + (anchor == "end") * (BEHIND - 7):.1f}" y="{HIGH + 8}" ')
        parts.append(f'text-anchor="{anchor}">')
        parts.append(f"{n * step:g} s</text>")
    low = min(FLOOR, view.highest / 2)
    for hertz in (100, 1000, 4000, 10_000):
        if low < hertz < 0.9 * view.highest:
            y = HIGH * (1 - np.log(hertz / low) / np.log(view.highest / low))
            name = f"{hertz} Hz" if hertz < 1000 else f"{hertz // 1000} kHz"
            parts.append(f'<path d="M0 {y:.1f}h-5"/><text class="hertz" x="-8" y="{y:.1f}">{name}</text>')
    return f'<g class="axis" aria-hidden="true">{"".join(parts)}</g>'
