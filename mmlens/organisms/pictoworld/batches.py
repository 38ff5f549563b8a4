"""Training batches: a context (notes or an image) and many questions about it, packed into one row.

Every question sees the context and itself, never another question or its answer, and stands at the positions it has
when it is asked alone. So a row trains exactly what is asked later, and the context is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from mmlens.organisms.pictoworld import world
from mmlens.organisms.pictoworld.network import vocabulary
from mmlens.organisms.pictoworld.text import CAPTION_PROMPT, TWO_PIECES, caption_of, facts_of, notes_of, questions_of

IMAGE_POSITIONS = (world.SIZE // world.PATCH) ** 2
_IDS = vocabulary()
_FACTS = 0.08
_RENAMED = 0.25
_NOTES_WEIGHT, _PROMPT_WEIGHT = 0.2, 0.1


@dataclass(frozen=True)
class Batch:
    """Rows of packed texts; `weight` is how much the prediction of a token counts (from the position before it)."""

    tokens: Int[torch.Tensor, "batch pos"]
    position_ids: Int[torch.Tensor, "batch pos"]
    attention: Bool[torch.Tensor, "batch 1 pos pos"]
    weight: Float[torch.Tensor, "batch pos"]
    pixels: Float[torch.Tensor, "batch 3 64 64"] | None = None


def encode(text: str) -> list[int]:
    """The token ids of a text of the world, without <s>; the same as the tokenizer's, and faster."""
    return [_IDS[piece] for word in text.split() for piece in TWO_PIECES.get(word, (word,))]


def text_batch(seed: int, n: int, *, simple: float) -> Batch:
    """n rows of notes with questions about them, and a few of plain facts."""
    rows = []
    for index in range(n):
        layout, rng = world.layout_at("train", seed, index)
        if rng.random() < _FACTS:
            nouns = rng.choice(world.NOUNS, 4, replace=False)
            rows.append((encode("<s>"), 0.0, [fact for noun in nouns for fact in facts_of(noun)]))
            continue
        notes = notes_of(layout.domain, layout.things, rng, simple=simple, renamed=_RENAMED)
        rows.append((encode(f"<s> {notes}"), _NOTES_WEIGHT, _asked(layout, rng, 5)))
    return _pack(rows, _PROMPT_WEIGHT)


def image_batch(seed: int, n: int) -> Batch:
    """n rows of an image with questions about it."""
    context = [_IDS["<s>"]] + [_IDS["<image>"]] * IMAGE_POSITIONS
    drawn = [world.layout_at("train", seed, index) for index in range(n)]
    rows = [(context, 0.0, _asked(layout, rng, 4)) for layout, rng in drawn]
    return _pack(rows, 0.0, pixels=pixels_of([world.render(layout) for layout, _ in drawn]))


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


def _pack(rows, prompt_weight: float, pixels=None) -> Batch:
    packed = []
    for context, context_weight, texts in rows:
        tokens, weight = list(context), [0.0] + [context_weight] * (len(context) - 1)
        position, segment = list(range(len(context))), [0] * len(context)
        for number, (prompt, answer) in enumerate(texts, start=1):
            asked, answered = encode(prompt), encode(f"{answer} </s>")
            tokens += asked + answered
            weight += [0.0] + [prompt_weight] * (len(asked) - 1) + [1.0] * len(answered)
            position += range(len(context), len(context) + len(asked) + len(answered))
            segment += [number] * (len(asked) + len(answered))
        packed.append((tokens, position, segment, weight))
    length = max(len(tokens) for tokens, *_ in packed)
    tokens, position, segment, weight = (
        torch.tensor([values + [fill] * (length - len(values)) for values in column])
        for column, fill in zip(zip(*packed, strict=True), (_IDS["<pad>"], 0, -1, 0.0), strict=True)
    )
    same = (segment[:, :, None] == segment[:, None, :]) | (segment[:, None, :] == 0)
    attention = same & torch.ones(length, length, dtype=torch.bool).tril()
    return Batch(tokens, position, attention[:, None], weight, pixels)
