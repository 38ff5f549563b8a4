"""Pictures that the tests show to models."""

import numpy as np
from PIL import Image


def picture(seed, width=50, height=40):
    """Return a picture of coarse colour patches, different for every seed, wider than high."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.BILINEAR)
