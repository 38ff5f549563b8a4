"""What the stages of Pictoworld's training read: rows of text, of images with questions, and classes of patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from mmlens.organisms.packing import Batch, Packed, pack
from mmlens.organisms.pictoworld import world
from mmlens.organisms.pictoworld.text import CAPTION_PROMPT, LEXICON, caption_of, facts_of, notes_of, questions_of

IMAGE_POSITIONS = (world.SIZE // world.PATCH) ** 2
_FACTS = 0.08
_RENAMED = 0.25
_NOTES_WEIGHT, _PROMPT_WEIGHT = 0.2, 0.1


def text_batch(seed: int, n: int, *, simple: float) -> Batch:
    """n rows of notes with questions about them, and a few of plain facts."""
    rows = []
    for index in range(n):
        layout, rng = world.layout_at("train", seed, index)
        if rng.random() < _FACTS:
            nouns = rng.choice(world.NOUNS, 4, replace=False)
            rows.append(Packed(LEXICON.encode("<s>"), 0.0, [fact for noun in nouns for fact in facts_of(noun)]))
            continue
        notes = notes_of(layout.domain, layout.things, rng, simple=simple, renamed=_RENAMED)
        rows.append(Packed(LEXICON.encode(f"<s> {notes}"), _NOTES_WEIGHT, _asked(layout, rng, 5)))
    return pack(LEXICON, rows, prompt_weight=_PROMPT_WEIGHT)


def image_batch(seed: int, n: int) -> Batch:
    """n rows of an image with questions about it."""
    context = [LEXICON.ids["<s>"]] + [LEXICON.ids["<image>"]] * IMAGE_POSITIONS
    drawn = [world.layout_at("train", seed, index) for index in range(n)]
    rows = [Packed(context, 0.0, _asked(layout, rng, 4)) for layout, rng in drawn]
    return pack(LEXICON, rows, prompt_weight=0.0, media=pixels_of([world.render(layout) for layout, _ in drawn]))


def patch_batch(
    seed: int, n: int, split: world.Split = "train"
) -> tuple[Float[torch.Tensor, "batch 3 64 64"], Int[torch.Tensor, "batch patch"], Int[torch.Tensor, "batch patch"]]:
    """n images with the class of every patch: its silhouette or, if none covers enough of it, the domain; and a colour.

    A silhouette that is called differently in every domain is one class.
    """
    images, shapes, colors = [], [], []
    side = world.SIZE // world.PATCH
    for index in range(n):
        layout, _ = world.layout_at(split, seed, index)
        images.append(world.render(layout))
        shape = np.full((side, side), len(world.SILHOUETTE_CLASSES) + world.DOMAINS.index(layout.domain))
        color = np.full((side, side), len(world.COLORS))
        for thing in layout.things:
            covered = world.mask_of(thing).reshape(side, world.PATCH, side, world.PATCH).mean((1, 3)) > 0.2
            shape[covered] = world.SILHOUETTE_CLASSES.index(thing.silhouette)
            color[covered] = list(world.COLORS).index(thing.color)
        shapes.append(shape.ravel())
        colors.append(color.ravel())
    return pixels_of(images), torch.tensor(np.stack(shapes)), torch.tensor(np.stack(colors))


def pixels_of(images: Sequence[np.ndarray]) -> Float[torch.Tensor, "batch 3 64 64"]:
    """The images as the processor hands them to the model: channels first, in [-1, 1]."""
    return torch.tensor(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _asked(layout: world.Layout, rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
    # Lookups are what is hard, so they are asked more often than domain and count; captions half of the time.
    questions = questions_of(layout.domain, layout.things)
    odds = np.array([0.4 if q.object is None else 1.0 for q in questions])
    chosen = rng.choice(len(questions), min(n, len(questions)), replace=False, p=odds / odds.sum())
    asked = [(questions[i].text, questions[i].answer) for i in chosen]
    if rng.random() < 0.5:
        asked.append((CAPTION_PROMPT, caption_of(layout.domain, layout.things)))
    return asked
