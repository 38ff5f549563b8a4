"""Scenes: an image, what is in it and where, what is said about it; and pairs and controls made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool
from PIL import Image

from mmlens.organisms.pairing import draw_pairs
from mmlens.organisms.pictoworld import world
from mmlens.organisms.pictoworld.text import LEXICON, Question, caption_of, notes_of, questions_of
from mmlens.organisms.pictoworld.world import Layout, Split, Thing

Change = Literal["noun", "color", "place"]


@dataclass(frozen=True)
class Object:
    """One object of a scene; `mask` is true at exactly its pixels."""

    noun: str
    color: str
    place: str
    mask: Bool[np.ndarray, "64 64"]


@dataclass(frozen=True)
class Scene:
    """An image of Pictoworld with its ground truth.

    `notes` describe the same scene in words, for the same questions without the image. `seed` is (split, seed, index):
    `scenes(split, n=index + 1, seed=seed)[index]` is this scene.
    """

    image: Image.Image
    objects: tuple[Object, ...]
    domain: str
    caption: str
    questions: tuple[Question, ...]
    notes: str
    seed: tuple[str, int, int]


@dataclass(frozen=True)
class Pair:
    """Two scenes that differ in one thing; `index` is the object they differ in."""

    clean: Scene
    corrupted: Scene
    index: int


def scenes(split: Split = "held_out", n: int = 100, seed: int = 0) -> list[Scene]:
    """n scenes, the same ones for the same seed. No combination of contents occurs in both splits."""
    return [compose(*world.layout_at(split, seed, index), (split, seed, index)) for index in range(n)]


def compose(layout: Layout, rng: np.random.Generator, seed: tuple[str, int, int]) -> Scene:
    """The scene of a layout; `rng` words its notes."""
    objects = tuple(Object(t.noun, t.color, t.place, world.mask_of(t)) for t in layout.things)
    return Scene(
        image=Image.fromarray(world.render(layout)),
        objects=objects,
        domain=layout.domain,
        caption=caption_of(layout.domain, objects),
        questions=questions_of(layout.domain, objects),
        notes=notes_of(layout.domain, objects, rng),
        seed=seed,
    )


def pairs(split: Split = "held_out", n: int = 100, seed: int = 0, change: Change = "noun") -> list[Pair]:
    """n pairs of scenes that differ in one object; background, noise and the other objects are equal, pixel for pixel.

    change: what differs about that object. Nouns that differ also differ in their first token.
    """
    found = draw_pairs(world, split, n, seed, change=lambda layout, rng: _changed(layout, rng, change), compose=compose)
    return [Pair(*pair) for pair in found]


def domain_pairs(split: Split = "held_out", n: int = 100, seed: int = 0) -> list[Pair]:
    """n pairs with the same objects, pixel for pixel, in images of two domains.

    The object at `index` has one of the silhouettes that every domain names differently: its noun differs.
    """
    return [Pair(*pair) for pair in draw_pairs(world, split, n, seed, change=_retold, compose=compose)]


def shuffled(scenes: Sequence[Scene]) -> list[Image.Image]:
    """For every scene the image of the next one of the same domain: a control that keeps what the domain gives away."""
    images = []
    for position, scene in enumerate(scenes):
        later = [*scenes[position + 1 :], *scenes[:position]]
        other = next((s for s in later if s.domain == scene.domain), None)
        if other is None:
            raise ValueError(f"no second {scene.domain} among {len(scenes)} scenes to take an image from; pass more")
        images.append(other.image)
    return images


def blank() -> Image.Image:
    """A uniform grey image: a control that shows nothing."""
    return Image.new("RGB", (world.SIZE, world.SIZE), (128, 128, 128))


def _changed(layout: Layout, rng, change: Change) -> tuple[Layout, int] | None:
    position = int(rng.integers(len(layout.things)))
    thing = layout.things[position]
    if change == "noun":
        name = world.draw_silhouette(rng, layout.domain)
        other = replace(thing, silhouette=name, noun=world.noun_of(name, layout.domain))
        if first_token(other.noun) in [first_token(t.noun) for t in layout.things]:
            return None
    elif change == "color":
        other = replace(thing, color=str(rng.choice([c for c in world.COLORS if c != thing.color])))
    else:
        other = _moved(thing, str(rng.choice([p for p in world.PLACES if p not in {t.place for t in layout.things}])))
    things = (*layout.things[:position], other, *layout.things[position + 1 :])
    return replace(layout, things=things), position


def _moved(thing: Thing, place: str) -> Thing:
    half = world.SIZE // 2
    row, column = divmod(world.PLACES.index(place), 2)
    return replace(thing, place=place, top=thing.top % half + row * half, left=thing.left % half + column * half)


def _retold(layout: Layout, rng) -> tuple[Layout, int] | None:
    positions = [i for i, thing in enumerate(layout.things) if thing.silhouette in world.RENAMED]
    if not positions:
        return None
    domain = str(rng.choice([d for d in world.DOMAINS if d != layout.domain]))
    things = tuple(replace(t, noun=world.noun_of(t.silhouette, domain)) for t in layout.things)
    return replace(layout, domain=domain, things=things), positions[int(rng.integers(len(positions)))]


def first_token(noun: str) -> str:
    """The first token of a noun: the noun itself, or its first piece."""
    return LEXICON.first_token(noun)
