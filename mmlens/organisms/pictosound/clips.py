"""Clips: a sound, what happens in it and when, what is said about it; and pairs and controls made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from mmlens.organisms.pairing import draw_pairs
from mmlens.organisms.pictosound import world
from mmlens.organisms.pictosound.text import LEXICON, Question, caption_of, notes_of, questions_of
from mmlens.organisms.pictosound.world import Layout, Split

Change = Literal["noun", "pitch", "rhythm"]


@dataclass(frozen=True)
class Event:
    """One event of a clip; `mask` is true at exactly its samples, which are those from `start` to `stop` seconds."""

    noun: str
    pitch: str
    rhythm: str
    order: str
    mask: Bool[np.ndarray, " sample"]

    @property
    def start(self) -> float:
        """When it begins, in seconds."""
        return int(self.mask.argmax()) / world.RATE

    @property
    def stop(self) -> float:
        """When it ends, in seconds."""
        return self.start + int(self.mask.sum()) / world.RATE


@dataclass(frozen=True)
class Clip:
    """A sound of Pictosound (2 s at 16 kHz) with its ground truth.

    `notes` describe the same clip in words, for the same questions without the sound. `seed` is (split, seed, index):
    `clips(split, n=index + 1, seed=seed)[index]` is this clip.
    """

    samples: Float[np.ndarray, " sample"]
    events: tuple[Event, ...]
    noise: str
    caption: str
    questions: tuple[Question, ...]
    notes: str
    seed: tuple[str, int, int]

    @property
    def audio(self) -> tuple[Float[np.ndarray, " sample"], int]:
        """The samples and their rate, as `HookedMLLM.to_inputs` takes a sound."""
        return self.samples, world.RATE


@dataclass(frozen=True)
class Pair:
    """Two clips that differ in one event; `index` is the event they differ in."""

    clean: Clip
    corrupted: Clip
    index: int


def clips(split: Split = "held_out", n: int = 100, seed: int = 0) -> list[Clip]:
    """n clips, the same ones for the same seed. No combination of contents occurs in both splits."""
    return [compose(*world.layout_at(split, seed, index), (split, seed, index)) for index in range(n)]


def compose(layout: Layout, rng: np.random.Generator, seed: tuple[str, int, int]) -> Clip:
    """The clip of a layout; `rng` words its notes."""
    events = tuple(Event(t.noun, t.pitch, t.rhythm, t.order, world.mask_of(t)) for t in layout.tones)
    return Clip(
        samples=world.render(layout),
        events=events,
        noise=layout.noise,
        caption=caption_of(events),
        questions=questions_of(events),
        notes=notes_of(events, rng),
        seed=seed,
    )


def pairs(split: Split = "held_out", n: int = 100, seed: int = 0, change: Change = "noun") -> list[Pair]:
    """n pairs of clips that differ in one event; the noise and the other events are equal, sample for sample.

    change: what differs about that event, which stays where and as loud as it was. Nouns that differ also differ in
    their first token.
    """
    found = draw_pairs(world, split, n, seed, change=lambda layout, rng: _changed(layout, rng, change), compose=compose)
    return [Pair(*pair) for pair in found]


def shuffled(clips: Sequence[Clip]) -> list[tuple[Float[np.ndarray, " sample"], int]]:
    """For every clip the sound of the next one with as many events: a control that gives away nothing but their number."""
    sounds = []
    for position, clip in enumerate(clips):
        later = [*clips[position + 1 :], *clips[:position]]
        other = next((c for c in later if len(c.events) == len(clip.events)), None)
        if other is None:
            raise ValueError(
                f"no second clip of {len(clip.events)} events among {len(clips)} to take a sound from; pass more"
            )
        sounds.append(other.audio)
    return sounds


def silence() -> tuple[Float[np.ndarray, " sample"], int]:
    """Two seconds of nothing: a control in which there is nothing to hear."""
    return np.zeros(world.SAMPLES, dtype=np.float32), world.RATE


def first_token(noun: str) -> str:
    """The first token of a noun: the noun itself, or its first piece."""
    return LEXICON.first_token(noun)


def _changed(layout: Layout, rng: np.random.Generator, change: Change) -> tuple[Layout, int]:
    position = int(rng.integers(len(layout.tones)))
    tone = layout.tones[position]
    if change == "noun":
        other = replace(tone, noun=str(rng.choice([n for n in world.NOUNS if n not in {t.noun for t in layout.tones}])))
    elif change == "pitch":
        pitch = str(rng.choice([p for p in world.PITCHES if p != tone.pitch]))
        other = replace(tone, pitch=pitch, hertz=world.draw_hertz(rng, pitch))
    else:
        other = replace(tone, rhythm=next(r for r in world.RHYTHMS if r != tone.rhythm))
    return replace(layout, tones=(*layout.tones[:position], other, *layout.tones[position + 1 :])), position
