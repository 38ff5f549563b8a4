"""Training batches: a context (notes, an image or a sound) and many questions about it, packed into one row.

Every question sees the context and itself, never another question or its answer, and stands at the positions it has
when it is asked alone. So a row trains exactly what is asked later, and the context is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int

from mmlens.organisms.lexicon import Lexicon


@dataclass(frozen=True)
class Batch:
    """Rows of packed texts; `weight` is how much the prediction of a token counts (from the position before it).

    `media` is what the tower reads: one image or one sound per row.
    """

    tokens: Int[torch.Tensor, "batch pos"]
    position_ids: Int[torch.Tensor, "batch pos"]
    attention: Bool[torch.Tensor, "batch 1 pos pos"]
    weight: Float[torch.Tensor, "batch pos"]
    media: Float[torch.Tensor, "batch ..."] | None = None


@dataclass(frozen=True)
class Packed:
    """One row before it is packed: its context's token ids and what they weigh, and (prompt, answer) texts about it."""

    context: Sequence[int]
    weight: float
    asked: Sequence[tuple[str, str]]


def pack(
    lexicon: Lexicon, rows: Sequence[Packed], *, prompt_weight: float, media: Float[torch.Tensor, "batch ..."] | None = None
) -> Batch:
    """The rows as one batch; an answer's tokens and its end weigh 1, a prompt's `prompt_weight`."""
    packed = []
    for row in rows:
        tokens, weight = list(row.context), [0.0] + [row.weight] * (len(row.context) - 1)
        position, segment = list(range(len(tokens))), [0] * len(tokens)
        for number, (prompt, answer) in enumerate(row.asked, start=1):
            asked, answered = lexicon.encode(prompt), lexicon.encode(f"{answer} </s>")
            tokens += asked + answered
            weight += [0.0] + [prompt_weight] * (len(asked) - 1) + [1.0] * len(answered)
            position += range(len(row.context), len(row.context) + len(asked) + len(answered))
            segment += [number] * (len(asked) + len(answered))
        packed.append((tokens, position, segment, weight))
    length = max(len(tokens) for tokens, *_ in packed)
    tokens, position, segment, weight = (
        torch.tensor([values + [fill] * (length - len(values)) for values in column])
        for column, fill in zip(zip(*packed, strict=True), (lexicon.ids["<pad>"], 0, -1, 0.0), strict=True)
    )
    same = (segment[:, :, None] == segment[:, None, :]) | (segment[:, None, :] == 0)
    attention = same & torch.ones(length, length, dtype=torch.bool).tril()
    return Batch(tokens, position, attention[:, None], weight, media)
