"""What is said about a clip: its caption, notes that describe it without the sound, and questions with answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from mmlens.organisms.lexicon import Lexicon
from mmlens.organisms.pictosound.world import NOUNS, ORDERS, PITCHES, RHYTHMS

Kind = Literal["order", "pitch", "rhythm", "after", "count", "caption"]

CAPTION_PROMPT = "caption :"
COUNTS = ("one", "two", "three")
TEMPLATES = (
    "{order} a {rhythm} {pitch} {noun} .",
    "the {order} sound is a {rhythm} {pitch} {noun} .",
    "a {rhythm} {pitch} {noun} is {order} .",
    "{order} : {rhythm} {pitch} {noun} .",
)
AUDIO, BEGIN, END = "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"


@runtime_checkable
class Described(Protocol):
    """An event as far as text is concerned."""

    @property
    def noun(self) -> str:
        """What makes the sound: its timbre."""
        ...

    @property
    def pitch(self) -> str:
        """How high it is."""
        ...

    @property
    def rhythm(self) -> str:
        """Whether it goes on or comes in pulses."""
        ...

    @property
    def order(self) -> str:
        """Which of the clip's events it is."""
        ...


@dataclass(frozen=True)
class Question:
    """A question as it is put to the model, its exact answer, and the event that the answer names (None if about all)."""

    text: str
    answer: str
    kind: Kind
    event: Described | None


def caption_of(events: Sequence[Described]) -> str:
    """The one caption of a clip: its events as they follow each other."""
    return " , then ".join(f"a {e.rhythm} {e.pitch} {e.noun}" for e in events)


def questions_of(events: Sequence[Described]) -> tuple[Question, ...]:
    """Every question of a clip; a pitch or a rhythm is asked about only if one event has it."""
    pitches, rhythms = [e.pitch for e in events], [e.rhythm for e in events]
    return (
        *(Question(f"what is {e.order} ? answer :", f"a {e.rhythm} {e.pitch} {e.noun}", "order", e) for e in events),
        *(
            Question(f"which sound is {e.pitch} ? answer :", f"the {e.pitch} {e.noun}", "pitch", e)
            for e in events
            if pitches.count(e.pitch) == 1
        ),
        *(
            Question(f"which sound is {e.rhythm} ? answer :", f"the {e.rhythm} {e.pitch} {e.noun}", "rhythm", e)
            for e in events
            if rhythms.count(e.rhythm) == 1
        ),
        *(
            Question(f"what comes after the {earlier.noun} ? answer :", f"the {later.noun}", "after", later)
            for earlier, later in pairwise(events)
        ),
        Question("how many sounds are there ? answer :", COUNTS[len(events) - 1], "count", None),
    )


def notes_of(events: Sequence[Described], rng: np.random.Generator, *, simple: float = 0.0) -> str:
    """A description of the clip in words: told as it goes, or one sentence for each event, in any order.

    simple: how often the first sentence form is taken whatever the draw (the curriculum's start).
    """
    if rng.random() < 0.3 * (1 - simple):
        return f"{caption_of(events)} ."
    sentences = [
        TEMPLATES[0 if rng.random() < simple else rng.integers(len(TEMPLATES))].format(
            noun=e.noun, pitch=e.pitch, rhythm=e.rhythm, order=e.order
        )
        for e in events
    ]
    shuffled = rng.permutation(len(sentences)) if rng.random() < 0.5 else range(len(sentences))
    return " ".join(sentences[i] for i in shuffled)


def words() -> tuple[str, ...]:
    """Every word that any text of this world is made of."""
    grammar = "a the is what which sound sounds comes after then how many are there answer caption"
    marks = (".", ",", "?", ":")
    return tuple(dict.fromkeys([*grammar.split(), *marks, *COUNTS, *ORDERS, *PITCHES, *RHYTHMS, *NOUNS]))


LEXICON = Lexicon(
    words=words(),
    two_pieces={
        "whistle": ("whis", "##tle"),
        "buzzer": ("buz", "##zer"),
        "clarinet": ("clari", "##net"),
        "trumpet": ("trum", "##pet"),
    },
    placeholders=(AUDIO, BEGIN, END),
)
