"""Pictures whose colours say where they were cut from: the truth about where a position lies."""

import numpy as np
import torch
from PIL import Image


def ramp(width, height):
    """Return a picture whose red says x and whose green says y, and which is as blue as no padding is."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.round((np.arange(width) + 0.5) / width * 255)[None]
    pixels[..., 1] = np.round((np.arange(height) + 0.5) / height * 255)[:, None]
    pixels[..., 2] = 255
    return Image.fromarray(pixels)


def patch_colours(pixels, settings, patch):
    """Return the mean colour of each patch of tiles [tile, colour, height, width]: [tile, row, column, colour]."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (settings.image_mean, settings.image_std))
    colours = pixels.float() * std + mean
    return colours.unfold(2, patch, patch).unfold(3, patch, patch).mean((-1, -2)).permute(0, 2, 3, 1)


def compare(place, seen, size):
    """Fail unless each position's box is where its colour [position, colour] says it was cut from; newlines are NaN.

    Positions that padding has a part of are left out.
    """
    assert len(place) == len(seen)
    compared = 0
    for index, colour in enumerate(seen.tolist()):
        box = place.box(index)
        assert (box is None) == bool(np.isnan(colour[0]))
        if box is None or colour[2] < 0.999:
            continue
        left, top, right, bottom = box
        assert left >= -1e-6 and top >= -1e-6 and right <= size[0] + 1e-6 and bottom <= size[1] + 1e-6
        own = np.array([colour[0] * size[0], colour[1] * size[1]])
        centre = np.array([(left + right) / 2, (top + bottom) / 2])
        slack = 0.3 + 0.004 * max(size)  # resizing to whole pixels, and colours of 8 bits
        assert np.abs(own - centre).max() < slack, (index, own, centre)
        compared += 1
    assert compared > len(seen) / 5, compared
