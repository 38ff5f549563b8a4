"""What transformers' own processors make of pictures and videos, recorded once where torchvision is installed.

Some of transformers' processors need torchvision, which mmlens does not. `record.py` runs them in an environment of its own
and writes arrays; `cases(name)` and `arrays(name)` are what the tests compare with. Nothing here imports mmlens.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import load_file

HERE = Path(__file__).parent


def pixels(seed, width, height):
    """Return a picture of coarse colour patches, the same on every machine: no resizing is involved in making it."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 5 // height, np.arange(width) * 6 // width
    return Image.fromarray(patches[rows][:, columns])


def cases(name):
    """Return the cases of a family: (name, text, images, videos, fps)."""
    for case in json.loads((HERE / f"{name}.json").read_text()):
        images = [pixels(*one) for one in case.get("images", [])]
        videos = [
            [pixels(seed + frame, width, height) for frame in range(count)]
            for seed, count, width, height in case.get("videos", [])
        ]
        yield case["name"], case["text"], images, videos, case.get("fps", 2.0)


def arrays(name):
    """Return what the real processor made of each case: {case: {tensor's name: tensor}}."""
    found = {}
    for key, tensor in load_file(HERE / f"{name}.safetensors").items():
        case, _, part = key.partition("/")
        found.setdefault(case, {})[part] = tensor
    return found
