"""Pictures, sounds and videos made of numbers: the same for the same seed, different for every other."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

ARGUMENTS = {"image": "images", "video": "videos", "audio": "audio"}


def picture(seed: int = 0, width: int = 96, height: int = 80) -> Image.Image:
    """Return a picture of coarse colour patches, wider than high."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.BILINEAR)


def sound(seed: int = 0, seconds: float = 0.5, rate: int = 16_000) -> tuple[np.ndarray, int]:
    """Return (samples, rate) of a few tones and noise."""
    random, time = np.random.default_rng(seed), np.arange(int(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * pitch * time) for pitch in random.uniform(200, 3000, 3)) / 6
    return (tones + random.normal(0, 0.02, time.shape)).astype(np.float32), rate


def clip(seed: int = 0, frames: int = 4, width: int = 96, height: int = 80) -> list[Image.Image]:
    """Return the frames of a video that fades from one picture to another."""
    first, last = picture(seed, width, height), picture(seed + 100, width, height)
    return [Image.blend(first, last, step / max(frames - 1, 1)) for step in range(frames)]


def given(kind: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Return media of one kind ("image", "video", "audio") behind the argument of `to_inputs` that takes them."""
    make = {"image": picture, "video": clip, "audio": sound}[kind]
    media = [make(seed) for seed in seeds]
    return {ARGUMENTS[kind]: media if len(media) > 1 else media[0]}
