"""The silhouettes of Pictoworld: each is a list of filled or cut-out primitives in the unit square."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

_SUPERSAMPLING = 4


def _box(left, top, right, bottom, fill=1):
    return ("rectangle", (left, top, right, bottom), fill)


def _oval(left, top, right, bottom, fill=1):
    return ("ellipse", (left, top, right, bottom), fill)


def _poly(*points, fill=1):
    return ("polygon", points, fill)


def _line(*points, width=0.1, fill=1):
    return ("line", points, fill, width)


def _around(radius, angle):
    return 0.5 + radius * math.sin(angle), 0.5 - radius * math.cos(angle)


def _petal(k):
    x, y = _around(0.3, 2 * math.pi * k / 5)
    return _oval(x - 0.2, y - 0.2, x + 0.2, y + 0.2)


_STAR = [_around(0.52 if k % 2 == 0 else 0.22, math.pi * k / 5) for k in range(10)]
_WAVE = [(0.1 + 0.8 * k / 24, 0.5 + 0.28 * math.sin(2 * math.pi * k / 24)) for k in range(25)]

SILHOUETTES: dict[str, list[tuple]] = {
    "tree": [_poly((0.5, 0), (0.95, 0.68), (0.05, 0.68)), _box(0.4, 0.68, 0.6, 1)],
    "flower": [*[_petal(k) for k in range(5)], _oval(0.38, 0.38, 0.62, 0.62, fill=0)],
    "fish": [
        _oval(0, 0.22, 0.74, 0.78),
        _poly((0.62, 0.5), (1, 0.18), (1, 0.82)),
        _oval(0.12, 0.36, 0.26, 0.5, fill=0),
    ],
    "mushroom": [_oval(0, 0.02, 1, 1.02), _box(0, 0.5, 1, 1.1, fill=0), _box(0.36, 0.5, 0.64, 1)],
    "car": [
        _box(0, 0.45, 1, 0.74),
        _poly((0.2, 0.45), (0.32, 0.18), (0.7, 0.18), (0.84, 0.45)),
        _oval(0.1, 0.6, 0.38, 0.9),
        _oval(0.62, 0.6, 0.9, 0.9),
    ],
    "house": [_poly((0.5, 0), (1, 0.45), (0, 0.45)), _box(0.12, 0.45, 0.88, 1), _box(0.4, 0.62, 0.6, 1, fill=0)],
    "lamppost": [
        _box(0.4, 0.05, 0.54, 1),
        _box(0.4, 0, 0.9, 0.13),
        _oval(0.62, 0.1, 1, 0.44),
        _box(0.22, 0.88, 0.72, 1),
    ],
    "bicycle": [
        *[_oval(left, 0.42, left + 0.48, 0.9) for left in (0, 0.52)],
        *[_oval(left + 0.12, 0.54, left + 0.36, 0.78, fill=0) for left in (0, 0.52)],
        _line((0.24, 0.66), (0.42, 0.3), (0.7, 0.3), (0.76, 0.66)),
        _line((0.6, 0.16), (0.8, 0.16)),
        _line((0.7, 0.3), (0.7, 0.16)),
    ],
    "envelope": [_box(0, 0.18, 1, 0.82), _line((0, 0.2), (0.5, 0.56), (1, 0.2), width=0.1, fill=0)],
    "barcode": [_box(x, 0.1, x + w, 0.9) for x, w in ((0, 0.14), (0.24, 0.08), (0.42, 0.2), (0.72, 0.08), (0.9, 0.1))],
    "table": [
        _box(0, 0.06, 1, 0.94),
        *[_box(x, y, x + 0.34, y + 0.2, fill=0) for x in (0.1, 0.56) for y in (0.16, 0.46, 0.7)],
    ],
    "chart": [_box(0, 0.9, 1, 1), _box(0.04, 0.62, 0.28, 1), _box(0.38, 0.36, 0.62, 1), _box(0.72, 0.04, 0.96, 1)],
    "runway": [_box(0.27, 0, 0.73, 1), *[_box(0.44, y, 0.56, y + 0.2, fill=0) for y in (0.06, 0.4, 0.74)]],
    "airplane": [
        _box(0.41, 0, 0.59, 1),
        _poly((0.5, 0.24), (1, 0.58), (1, 0.72), (0.5, 0.54), (0, 0.72), (0, 0.58)),
        _poly((0.5, 0.78), (0.76, 1), (0.24, 1)),
    ],
    "stadium": [_oval(0, 0.12, 1, 0.88), _oval(0.16, 0.28, 0.84, 0.72, fill=0), _box(0.32, 0.4, 0.68, 0.6)],
    "bridge": [_box(0, 0.38, 1, 0.54), *[_box(x, 0.12, x + 0.14, 0.92) for x in (0.06, 0.43, 0.8)]],
    "bone": [_box(0.2, 0.4, 0.8, 0.6), *[_oval(x, y, x + 0.3, y + 0.3) for x in (0, 0.7) for y in (0.22, 0.48)]],
    "tooth": [
        _oval(0.08, 0, 0.56, 0.5),
        _oval(0.44, 0, 0.92, 0.5),
        _poly((0.08, 0.25), (0.92, 0.25), (0.8, 1), (0.62, 1), (0.5, 0.62), (0.38, 1), (0.2, 1)),
    ],
    "kidney": [_oval(0.1, 0, 0.9, 1), _oval(0.56, 0.26, 1.06, 0.74, fill=0)],
    "pill": [
        _oval(0, 0.28, 0.44, 0.72),
        _oval(0.56, 0.28, 1, 0.72),
        _box(0.22, 0.28, 0.78, 0.72),
        _box(0.45, 0.2, 0.55, 0.8, fill=0),
    ],
    "star": [_poly(*_STAR)],
    "triangle": [_poly((0.5, 0.02), (1, 0.96), (0, 0.96))],
    "cross": [_box(0.34, 0, 0.66, 1), _box(0, 0.34, 1, 0.66)],
    "heart": [_oval(0, 0.05, 0.54, 0.56), _oval(0.46, 0.05, 1, 0.56), _poly((0.04, 0.4), (0.96, 0.4), (0.5, 1))],
    "arrow": [_box(0, 0.36, 0.6, 0.64), _poly((0.5, 0.08), (1, 0.5), (0.5, 0.92))],
    "disc": [_oval(0.06, 0.06, 0.94, 0.94)],
    "wave": [_line(*_WAVE, width=0.22)],
}


@cache
def silhouette(name: str, size: int) -> Bool[np.ndarray, "size size"]:
    """The pixels that the silhouette covers by more than half in a square of `size` pixels."""
    scale = size * _SUPERSAMPLING
    canvas = Image.new("L", (scale, scale), 0)
    pen = ImageDraw.Draw(canvas)
    for shape, points, fill, *width in SILHOUETTES[name]:
        if shape in ("rectangle", "ellipse"):
            getattr(pen, shape)([scale * p for p in points], fill=255 * fill)
            continue
        scaled = [(scale * x, scale * y) for x, y in points]
        if shape == "polygon":
            pen.polygon(scaled, fill=255 * fill)
        else:
            pen.line(scaled, fill=255 * fill, width=round(scale * width[0]), joint="curve")
    covered = np.asarray(canvas.resize((size, size), Image.Resampling.BOX)) > 127
    covered.setflags(write=False)
    return covered
