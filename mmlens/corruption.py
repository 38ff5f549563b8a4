"""Pictures and sounds with a part of them taken away: what a counterfactual shows instead."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageFilter
from torch import Tensor

from mmlens.media import Sound, read_image, read_sound

How = Literal["blur", "grey", "shuffle"]
Area = Bool[Tensor, "height width"] | Sequence[int | float]


def corrupt(
    image: Any, area: Area | None = None, *, how: How = "blur", radius: int | float = 8.0, seed: int = 0
) -> Image.Image:
    """Return a picture with `area` corrupted: a mask, or a box (left, top, right, bottom) in pixels; None is all of it.

    "blur" puts there what is there under a Gaussian of `radius` pixels, "grey" mid grey, and "shuffle" the same pixels in an
    order drawn by `seed`: shape is gone, colours are kept. All else is as it was, pixel for pixel. Raises ValueError for a
    mask of another size, for an area without pixels, and for a radius that is not above 0.
    """
    picture = read_image(image)
    pixels = np.array(picture)
    inside = _inside(area, picture)
    if how == "blur":
        if not radius > 0:
            raise ValueError(f"a blur has a radius above 0 pixels, got {radius}")
        pixels[inside] = np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)))[inside]
    elif how == "grey":
        pixels[inside] = 128
    elif how == "shuffle":
        pixels[inside] = np.random.default_rng(seed).permutation(pixels[inside])
    else:
        raise ValueError(f"a picture is corrupted by blur, grey or shuffle, got {how!r}")
    return Image.fromarray(pixels)


def splice(sound: Any, other: Any, start: int | float, stop: int | float) -> Sound:
    """Return `sound` with its seconds `start` to `stop` taken from the same seconds of `other`.

    Both are what `to_inputs` takes as audio, of one rate. Raises ValueError for two rates, for sounds without one, and for
    seconds that one of them does not have.
    """
    one, two = read_sound(sound), read_sound(other)
    if one.rate is None or one.rate != two.rate:
        raise ValueError(f"sounds are spliced at one rate, got {one.rate} and {two.rate}: give both as (samples, rate)")
    first, last = round(start * one.rate), round(stop * one.rate)
    most = min(len(one.samples), len(two.samples))
    if not 0 <= first < last <= most:
        raise ValueError(
            f"seconds to splice lie in both sounds, 0 to {most / one.rate:g}, the first before the last; got {start:g} to "
            f"{stop:g}"
        )
    samples = one.samples.copy()
    samples[first:last] = two.samples[first:last]
    return Sound(samples, one.rate)


def _inside(area: Area | None, picture: Image.Image) -> np.ndarray:
    """Return which pixels [height, width] an area covers: of a box, those whose middle lies in it."""
    width, height = picture.size
    if area is None:
        return np.ones((height, width), dtype=bool)
    if isinstance(area, Tensor):
        inside = area.cpu().numpy()
    elif len(area) == 4:
        left, top, right, bottom = area
        across, down = np.arange(width) + 0.5, np.arange(height) + 0.5
        inside = ((down >= top) & (down < bottom))[:, None] & ((across >= left) & (across < right))
    else:
        raise ValueError(f"an area is a mask or a box (left, top, right, bottom), got {len(area)} numbers")
    if inside.shape != (height, width) or not inside.any():
        raise ValueError(
            f"an area has pixels of the picture, which is {height} high and {width} wide; got a mask {list(inside.shape)} "
            f"with {int(inside.sum())} in it"
        )
    return inside
