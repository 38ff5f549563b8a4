"""The world: which domains, nouns, colours and places there are, how a scene is laid out, and how it is drawn."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8

from mmlens.organisms.pictoworld.shapes import silhouette

Split = Literal["train", "held_out"]

SIZE = 64
PATCH = 8
DOMAINS = ("nature photo", "street photo", "document page", "satellite image", "medical scan")
PLACES = ("top-left", "top-right", "bottom-left", "bottom-right")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 175, 60),
    "blue": (50, 80, 225),
    "yellow": (240, 220, 40),
    "purple": (140, 45, 180),
    "pink": (250, 150, 200),
    "cyan": (45, 210, 220),
    "brown": (145, 80, 25),
}
OWN: dict[str, tuple[str, ...]] = {
    "nature photo": ("tree", "flower", "fish", "mushroom"),
    "street photo": ("car", "house", "lamppost", "bicycle"),
    "document page": ("envelope", "barcode", "table", "chart"),
    "satellite image": ("runway", "airplane", "stadium", "bridge"),
    "medical scan": ("bone", "tooth", "kidney", "pill"),
}
SHARED = ("star", "triangle", "cross", "heart", "arrow")
# The same pixels, another word in every domain: what the picture shows does not settle the noun, its domain does.
RENAMED: dict[str, dict[str, str]] = {
    "disc": dict(zip(DOMAINS, ("sun", "wheel", "stamp", "crater", "cell"), strict=True)),
    "wave": dict(zip(DOMAINS, ("snake", "cable", "signature", "river", "vessel"), strict=True)),
}
OWN_SILHOUETTES = tuple(name for names in OWN.values() for name in names)
SILHOUETTE_CLASSES = (*OWN_SILHOUETTES, *SHARED, *RENAMED)
NOUNS = (*OWN_SILHOUETTES, *SHARED, *(noun for names in RENAMED.values() for noun in names.values()))

_FOREIGN = 0.25
_OBJECT_COUNTS = (0.25, 0.4, 0.35)
_REPERTOIRE_WEIGHTS = np.array([1.0] * 4 + [0.6] * len(SHARED) + [2.0] * len(RENAMED))


@dataclass(frozen=True)
class Thing:
    """One object of a layout: what it is called, which silhouette it has, and where it is drawn."""

    noun: str
    color: str
    place: str
    silhouette: str
    left: int
    top: int
    size: int


@dataclass(frozen=True)
class Layout:
    """Everything a scene is drawn from; `noise` seeds the background."""

    domain: str
    things: tuple[Thing, ...]
    noise: int


def noun_of(silhouette: str, domain: str) -> str:
    """The word for a silhouette in an image of this domain."""
    return RENAMED[silhouette][domain] if silhouette in RENAMED else silhouette


def split_of(layout: Layout) -> Split:
    """The split a layout belongs to, by its content: one in ten combinations is never trained on."""
    content = [layout.domain, *sorted(f"{t.noun} {t.color} {t.place}" for t in layout.things)]
    return "held_out" if zlib.crc32("|".join(content).encode()) % 10 == 0 else "train"


def draw_silhouette(rng: np.random.Generator, domain: str) -> str:
    """A silhouette for an image of this domain: mostly from its own repertoire, sometimes from another domain's."""
    if rng.random() < _FOREIGN:
        return str(rng.choice([name for name in OWN_SILHOUETTES if name not in OWN[domain]]))
    return str(rng.choice([*OWN[domain], *SHARED, *RENAMED], p=_REPERTOIRE_WEIGHTS / _REPERTOIRE_WEIGHTS.sum()))


def draw_layout(rng: np.random.Generator) -> Layout:
    """A random layout of either split: one to three objects with different nouns, one to a quadrant."""
    domain = DOMAINS[rng.integers(len(DOMAINS))]
    count = 1 + int(rng.choice(3, p=_OBJECT_COUNTS))
    quadrants = sorted(rng.choice(4, size=count, replace=False))
    names: list[str] = []
    while len(names) < count:
        name = draw_silhouette(rng, domain)
        if name not in names:
            names.append(name)
    colors = list(COLORS)
    things = []
    for name, quadrant in zip(names, quadrants, strict=True):
        size = int(rng.integers(20, 28))
        top, left = (int(corner) * SIZE // 2 + int(rng.integers(1, 32 - size)) for corner in divmod(quadrant, 2))
        color = colors[rng.integers(len(colors))]
        things.append(Thing(noun_of(name, domain), color, PLACES[quadrant], name, left, top, size))
    return Layout(domain, tuple(things), int(rng.integers(2**31)))


def layout_at(split: Split, seed: int, index: int) -> tuple[Layout, np.random.Generator]:
    """The layout with this number, and the generator that drew it (for what else the scene needs)."""
    rng = np.random.default_rng([("train", "held_out").index(split), seed, index])
    layout = draw_layout(rng)
    while split_of(layout) != split:
        layout = draw_layout(rng)
    return layout, rng


def mask_of(thing: Thing) -> Bool[np.ndarray, "64 64"]:
    """The pixels of one object."""
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[thing.top : thing.top + thing.size, thing.left : thing.left + thing.size] = silhouette(thing.silhouette, thing.size)
    return mask


def background(layout: Layout) -> UInt8[np.ndarray, "64 64 3"]:
    """The image of a layout without its objects: muted colours that tell the domain."""
    pixels, grain = _scenery(layout)
    return np.clip(pixels + grain, 0, 255).astype(np.uint8)


def render(layout: Layout) -> UInt8[np.ndarray, "64 64 3"]:
    """The image of a layout. Outside the objects' masks it equals the background, pixel for pixel."""
    pixels, grain = _scenery(layout)
    for thing in layout.things:
        pixels[mask_of(thing)] = COLORS[thing.color]
    return np.clip(pixels + grain, 0, 255).astype(np.uint8)


def _scenery(layout: Layout):
    rng = np.random.default_rng(layout.noise)
    # The grain is drawn first, so that the same seed grains every domain's image alike.
    grain = rng.normal(0, 7, (SIZE, SIZE, 1)) + rng.normal(0, 3, (SIZE, SIZE, 3))
    return _BACKGROUNDS[layout.domain](rng).astype(np.float64), grain


def _nature(rng):
    rows = np.arange(SIZE)[:, None, None]
    hills = rng.integers(22, 42) + 4 * np.sin(np.arange(SIZE) / rng.uniform(5, 9) + rng.uniform(0, 6))
    ground = rows[..., 0] > hills[None, :]
    sky = np.array([175, 195, 205]) - 0.5 * rows
    return np.where(ground[..., None], np.array([105, 125, 85]) + 0.2 * rows, sky)


def _street(rng):
    pixels = np.full((SIZE, SIZE, 3), 118.0)
    for left in range(0, SIZE, 16):
        height = rng.integers(10, 34)
        pixels[: 44 - height, left : left + 16] = (165, 172, 180)
        pixels[44 - height : 44, left : left + 16] = rng.integers(85, 120)
    pixels[44:] = 75
    pixels[53:55, rng.integers(0, 8) :: 8] = 190
    return pixels


def _document(rng):
    pixels = np.full((SIZE, SIZE, 3), 236.0) - np.array([0, 3, 9])
    for top in range(int(rng.integers(2, 5)), SIZE - 2, 5):
        pixels[top : top + 2, 4 : rng.integers(36, 60)] = rng.integers(125, 155)
    return pixels


def _satellite(rng):
    fields = rng.uniform(0, 1, (8, 8, 1))
    shades = np.array([92, 98, 80]) + fields * np.array([55, 45, 35])
    return np.kron(shades, np.ones((8, 8, 1)))


def _medical(rng):
    y, x = np.mgrid[:SIZE, :SIZE]
    middle, radii = rng.uniform(28, 36, 2), rng.uniform(24, 32, 2)
    distance = ((y - middle[0]) / radii[0]) ** 2 + ((x - middle[1]) / radii[1]) ** 2
    glow = np.where(distance < 1, 70 - 35 * distance, 14)
    return np.repeat(glow[..., None], 3, axis=2)


_BACKGROUNDS: dict[str, Callable] = dict(zip(DOMAINS, (_nature, _street, _document, _satellite, _medical), strict=True))
