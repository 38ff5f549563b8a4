"""Pictosound: a small world of made sounds with exact masks, on which the shipped checkpoints were trained."""

from mmlens.organisms.pictosound.clips import Clip, Event, Pair, clips, first_token, pairs, shuffled, silence
from mmlens.organisms.pictosound.text import CAPTION_PROMPT, Question
from mmlens.organisms.pictosound.world import NOISES, NOUNS, ORDERS, PITCHES, RATE, RHYTHMS

__all__ = [
    "CAPTION_PROMPT",
    "NOISES",
    "NOUNS",
    "ORDERS",
    "PITCHES",
    "RATE",
    "RHYTHMS",
    "Clip",
    "Event",
    "Pair",
    "Question",
    "clips",
    "first_token",
    "pairs",
    "shuffled",
    "silence",
]
