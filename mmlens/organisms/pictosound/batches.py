"""What Pictosound is trained on: packed rows of notes or of a sound with questions, and the class of every position."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int

from mmlens.organisms.packing import Batch, Packed, pack
from mmlens.organisms.pictosound import world
from mmlens.organisms.pictosound.network import POSITIONS, build_processor
from mmlens.organisms.pictosound.text import AUDIO, BEGIN, CAPTION_PROMPT, END, LEXICON, caption_of, notes_of, questions_of

CONTEXT = tuple(LEXICON.encode(f"<s> {BEGIN} {' '.join([AUDIO] * POSITIONS)} {END}"))
CLASSES: dict[str, tuple[str, ...]] = {
    "noun": world.NOUNS,
    "pitch": tuple(world.PITCHES),
    "rhythm": world.RHYTHMS,
    "order": world.ORDERS,
}
"""What the tower is trained to tell at every position; one class more, the last, where there is no event."""
_ODDS = {"pitch": 2.0, "rhythm": 2.0, "count": 0.3}
_NOTES_WEIGHT, _PROMPT_WEIGHT = 0.2, 0.1


def text_batch(seed: int, n: int, *, simple: float) -> Batch:
    """n rows of notes with questions about them."""
    rows = []
    for index in range(n):
        layout, rng = world.layout_at("train", seed, index)
        notes = notes_of(layout.tones, rng, simple=simple)
        rows.append(Packed(LEXICON.encode(f"<s> {notes}"), _NOTES_WEIGHT, _asked(layout, rng, 5)))
    return pack(LEXICON, rows, prompt_weight=_PROMPT_WEIGHT)


def sound_batch(seed: int, n: int) -> Batch:
    """n rows of a sound with questions about it."""
    drawn = [world.layout_at("train", seed, index) for index in range(n)]
    rows = [Packed(CONTEXT, 0.0, _asked(layout, rng, 5)) for layout, rng in drawn]
    return pack(LEXICON, rows, prompt_weight=0.0, media=features_of([world.render(layout) for layout, _ in drawn]))


def position_batch(
    seed: int, n: int, split: world.Split = "train"
) -> tuple[Float[torch.Tensor, "batch mel frame"], dict[str, Int[torch.Tensor, "batch position"]]]:
    """n sounds with the class of every position, by what is told: that of the event that fills half of it, or none."""
    layouts = [world.layout_at(split, seed, index)[0] for index in range(n)]
    classes = {name: np.full((n, POSITIONS), len(values)) for name, values in CLASSES.items()}
    for row, layout in enumerate(layouts):
        for tone in layout.tones:
            here = world.mask_of(tone).reshape(POSITIONS, -1).mean(1) > 0.5
            for name, values in CLASSES.items():
                classes[name][row, here] = values.index(getattr(tone, name))
    sounds = [world.render(layout) for layout in layouts]
    return features_of(sounds), {name: torch.tensor(found) for name, found in classes.items()}


def features_of(sounds: Sequence[np.ndarray]) -> Float[torch.Tensor, "batch mel frame"]:
    """The sounds as the processor hands them to the model: log-mel spectrograms, 100 frames a second."""
    with torch.autocast("cpu", enabled=False):
        return _extractor()(list(sounds), sampling_rate=world.RATE, return_tensors="pt").input_features


@cache
def _extractor():
    return build_processor().feature_extractor


def _asked(layout: world.Layout, rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
    # Finding an event by its pitch or rhythm is what is hard, so that is asked more often; captions half of the time.
    questions = questions_of(layout.tones)
    odds = np.array([_ODDS.get(q.kind, 1.0) for q in questions])
    chosen = rng.choice(len(questions), min(n, len(questions)), replace=False, p=odds / odds.sum())
    asked = [(questions[i].text, questions[i].answer) for i in chosen]
    if rng.random() < 0.5:
        asked.append((CAPTION_PROMPT, caption_of(layout.tones)))
    return asked
