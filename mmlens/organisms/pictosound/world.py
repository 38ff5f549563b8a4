"""The world: which timbres, pitches, rhythms and orders there are, how a clip is laid out, and how it sounds."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from mmlens.organisms.pictosound.timbres import RATE, TIMBRES, tone

Split = Literal["train", "held_out"]

SECONDS = 2
SAMPLES = SECONDS * RATE
NOUNS = tuple(TIMBRES)
PITCHES = {"low": 260.0, "middle": 520.0, "high": 1040.0}  # hertz, up to 6 % more or less
RHYTHMS = ("steady", "pulsed")
ORDERS = ("first", "second", "last")
ORDER_OF = {1: ("first",), 2: ("first", "last"), 3: ORDERS}
"""The order words of the events of a clip, by how many there are."""
NOISES = ("hiss", "rumble", "hum")

_EVENT_COUNTS = (0.2, 0.4, 0.4)
_SHORTEST, _LONGEST = int(0.36 * RATE), int(0.56 * RATE)
_LEAST_GAP = int(0.06 * RATE)
PULSE = 0.12  # seconds
_EDGE = int(0.005 * RATE)


@dataclass(frozen=True)
class Tone:
    """One event of a layout: what sounds, and from which sample to which; `grain` seeds what is random in its samples."""

    noun: str
    pitch: str
    rhythm: str
    order: str
    start: int
    stop: int
    hertz: float
    level: float
    grain: int


@dataclass(frozen=True)
class Layout:
    """Everything a clip is made from; `grain` seeds the background noise."""

    tones: tuple[Tone, ...]
    noise: str
    grain: int


def split_of(layout: Layout) -> Split:
    """The split a layout belongs to, by its content: one in ten combinations is never trained on."""
    content = "|".join(f"{t.rhythm} {t.pitch} {t.noun}" for t in layout.tones)
    return "held_out" if zlib.crc32(content.encode()) % 10 == 0 else "train"


def draw_hertz(rng: np.random.Generator, pitch: str) -> float:
    """A fundamental of this pitch, a little out of tune."""
    return float(PITCHES[pitch] * rng.uniform(0.94, 1.06))


def draw_layout(rng: np.random.Generator) -> Layout:
    """A random layout of either split: one to three events with different nouns, one after the other, with gaps."""
    count = 1 + int(rng.choice(3, p=_EVENT_COUNTS))
    lengths = rng.integers(_SHORTEST, _LONGEST, count)
    free = SAMPLES - int(lengths.sum()) - _LEAST_GAP * (count + 1)
    # Where the free time is cut is uniform, so every way of spreading the events over the clip is as likely.
    gaps = np.diff([0, *np.sort(rng.integers(0, free + 1, count)), free])
    tones, stop = [], 0
    for order, noun, length, gap in zip(
        ORDER_OF[count], rng.choice(NOUNS, count, replace=False), lengths, gaps, strict=False
    ):
        start = stop + _LEAST_GAP + int(gap)
        stop = start + int(length)
        pitch = list(PITCHES)[rng.integers(len(PITCHES))]
        rhythm = RHYTHMS[rng.integers(len(RHYTHMS))]
        hertz, level, grain = draw_hertz(rng, pitch), float(rng.uniform(0.25, 0.8)), int(rng.integers(2**31))
        tones.append(Tone(str(noun), pitch, rhythm, order, start, stop, hertz, level, grain))
    return Layout(tuple(tones), NOISES[rng.integers(len(NOISES))], int(rng.integers(2**31)))


def layout_at(split: Split, seed: int, index: int) -> tuple[Layout, np.random.Generator]:
    """The layout with this number, and the generator that drew it (for what else the clip needs)."""
    rng = np.random.default_rng([("train", "held_out").index(split), seed, index])
    layout = draw_layout(rng)
    while split_of(layout) != split:
        layout = draw_layout(rng)
    return layout, rng


def mask_of(tone: Tone) -> Bool[np.ndarray, " sample"]:
    """The samples of one event, from its onset to its end; the short pauses of a pulsed one are part of it."""
    mask = np.zeros(SAMPLES, dtype=bool)
    mask[tone.start : tone.stop] = True
    return mask


def sound(event: Tone) -> Float[np.ndarray, " time"]:
    """The samples of one event alone, from its onset to its end: never quite silent in between."""
    rng, count = np.random.default_rng(event.grain), event.stop - event.start
    if event.rhythm == "steady":
        samples = tone(event.noun, event.hertz, count, rng)
    else:
        period = int(PULSE * RATE)
        pulse = tone(event.noun, event.hertz, period, rng) * np.where(np.arange(period) < 0.55 * period, 1.0, 0.01)
        samples = np.resize(pulse, count)
    edge = np.minimum(1, (np.arange(count) + 1) / _EDGE)
    return event.level * samples * edge * edge[::-1]


def background(layout: Layout) -> Float[np.ndarray, " sample"]:
    """The clip of a layout without its events: noise of one of three kinds."""
    rng = np.random.default_rng(layout.grain)
    white = rng.normal(size=SAMPLES)
    if layout.noise == "hiss":
        noise = white
    elif layout.noise == "rumble":
        hertz = np.fft.rfftfreq(SAMPLES, 1 / RATE)
        noise = np.fft.irfft(np.fft.rfft(white) / (1 + hertz / 150), SAMPLES)
    else:
        base, phases = rng.uniform(45, 65), rng.uniform(0, 6, 3)
        turns = (base / RATE * np.arange(SAMPLES)).astype(np.float32)
        noise = sum(np.sin(2 * np.pi * m * turns + phase) for m, phase in enumerate(phases, start=1)) + 0.3 * white
    return (rng.uniform(0.004, 0.015) * noise / np.sqrt(np.mean(noise**2))).astype(np.float32)


def render(layout: Layout) -> Float[np.ndarray, " sample"]:
    """The clip of a layout, 2 s of float32. Outside the events' masks it equals the background, sample for sample."""
    samples = background(layout)
    for event in layout.tones:
        samples[event.start : event.stop] += sound(event).astype(np.float32)
    return samples
