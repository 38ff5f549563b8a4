"""Pictoworld: a small world of drawn scenes with exact masks, on which the shipped checkpoints were trained."""

from mmlens.organisms.pictoworld.mentions import Prompt, mentions
from mmlens.organisms.pictoworld.network import parts
from mmlens.organisms.pictoworld.scenes import (
    Object,
    Pair,
    Scene,
    blank,
    domain_pairs,
    first_token,
    pairs,
    scenes,
    shuffled,
)
from mmlens.organisms.pictoworld.text import CAPTION_PROMPT, Question
from mmlens.organisms.pictoworld.world import COLORS, DOMAINS, NOUNS, PLACES, RENAMED

__all__ = [
    "CAPTION_PROMPT",
    "COLORS",
    "DOMAINS",
    "NOUNS",
    "PLACES",
    "RENAMED",
    "Object",
    "Pair",
    "Prompt",
    "Question",
    "Scene",
    "blank",
    "domain_pairs",
    "first_token",
    "mentions",
    "pairs",
    "parts",
    "scenes",
    "shuffled",
]
