"""Pictures of plain cells, and the tower and projector that see in each patch which of them it is."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmlens.testing.plants.language import CONST, SPREAD
from mmlens.testing.plants.layout import DOMAINS, SHOWN, background, seen

SIDE, PATCH = 5, 6
MIDDLE, REACH, GRAIN = 128, 90, 28
D_TOWER, SEE, STEADY = 72, 20.0, 60.0
CHANNELS = D_TOWER // 2  # every channel has its negative beside it, so that a layer norm finds nothing to subtract
COLOURS = {  # the directions (+-1, +-1, 0): twelve colours, each of which overlaps with no other by more than a half
    kind: torch.tensor(direction, dtype=torch.float32)
    for kind, direction in zip(
        (*SHOWN, *DOMAINS), [d for d in product((-1, 0, 1), repeat=3) if d.count(0) == 1], strict=False
    )
}


def picture(shown: Mapping[int, str], domain: str, seed: int) -> Image.Image:
    """Return a picture of 5 x 5 cells, one to a position, in the domain's colour but where something is shown.

    Every cell has grain of its own, whose mean is 0.
    """
    random, half = np.random.default_rng(seed), PATCH * PATCH // 2
    cells = np.empty((SIDE * SIDE, PATCH * PATCH, 3), dtype=np.int64)
    for position, cell in enumerate(cells):
        for channel, direction in enumerate(COLOURS[shown.get(position, domain)].int().tolist()):
            grain = random.integers(1, GRAIN + 1, half)
            cell[:, channel] = MIDDLE + REACH * direction + random.permutation(np.concatenate([grain, -grain]))
    rows = cells.reshape(SIDE, SIDE, PATCH, PATCH, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(rows.reshape(SIDE * PATCH, SIDE * PATCH, 3).astype(np.uint8))


def see(model: Any, processor: Any, layout: dict[str, int], generator: torch.Generator) -> None:
    """Write a tower that keeps each patch's mean colour and some grain, and a projector with a unit for every colour."""
    processor.image_processor.image_mean = processor.image_processor.image_std = [0.5] * 3
    tower = model.model.vision_tower
    embeddings = tower.embeddings
    filters = torch.randn(CHANNELS, 3, PATCH * PATCH, generator=generator)
    filters -= filters.mean(-1, keepdim=True)  # grain, and nothing of the mean colour
    grain_deviation = (GRAIN**2 / 3) ** 0.5 / 127.5
    filters /= filters.flatten(1).norm(dim=1)[:, None, None] * grain_deviation
    filters[:4] = 0.0
    for channel in range(3):
        filters[1 + channel, channel] = 127.5 / REACH / PATCH**2
    steady = torch.zeros(CHANNELS)
    steady[0], steady[1:4] = STEADY, (127.5 - MIDDLE) / REACH
    embeddings.patch_embedding.weight.copy_(_with_negatives(filters).unflatten(-1, (PATCH, PATCH)))
    embeddings.position_embedding.weight.copy_(_with_negatives(steady).expand(SIDE * SIDE + 1, -1))
    embeddings.class_embedding.zero_()
    deviation = ((2 * STEADY**2 + 2 * CHANNELS) / D_TOWER) ** 0.5
    tower.pre_layrnorm.weight.fill_(deviation)
    tower.pre_layrnorm.bias.zero_()
    whisper(tower.encoder.layers, deviation, [0, 1], generator)
    _project(model.model.multi_modal_projector, layout, generator)


def whisper(blocks: Any, deviation: float, steady: list[int], generator: torch.Generator) -> None:
    """Fill a tower's blocks with units and heads that read all there is and write very little."""
    for name, weight in blocks.named_parameters():
        if "norm" in name:
            weight.fill_(0.0 if name.endswith("bias") else deviation)
            if name.endswith("weight"):
                weight[steady] = deviation / STEADY
        elif weight.ndim == 1:
            weight.copy_(torch.randn(weight.shape, generator=generator) * (0.0 if _writes(name) else 0.1))
        else:
            weight.copy_(torch.randn(weight.shape, generator=generator) * (0.001 if _writes(name) else D_TOWER**-0.5))


def _writes(name: str) -> bool:
    return "out_proj" in name or "fc2" in name


def _project(projector: Any, layout: dict[str, int], generator: torch.Generator) -> None:
    first, second = projector.linear_1, projector.linear_2
    hidden = background(layout, len(second.weight))
    grain = torch.zeros(CHANNELS)
    grain[4:] = (CHANNELS - 4) ** -0.5
    first.weight.zero_()
    first.weight[:, ::2] = torch.randn(len(first.weight), CHANNELS, generator=generator) * grain
    first.bias.zero_()
    second.weight.zero_()
    units = torch.randperm(len(first.weight), generator=generator).tolist()
    seeing, others = units[: len(COLOURS)], units[len(COLOURS) :]
    gelu = torch.nn.functional.gelu(torch.randn(10_000, generator=generator))
    weights = torch.randn(len(hidden), len(others), generator=generator) * SPREAD / float(gelu.std()) / len(others) ** 0.5
    second.weight[hidden[:, None], torch.tensor(others)] = weights
    second.bias.zero_()
    second.bias[hidden] = -float(gelu.mean()) * weights.sum(1)
    second.bias[layout["const"]], second.bias[layout["media"]] = CONST, 1.0
    for unit, (kind, direction) in zip(seeing, COLOURS.items(), strict=True):
        sees = torch.zeros(CHANNELS)
        sees[1:4] = SEE * direction / 2
        first.weight[unit] = _with_negatives(sees)
        first.bias[unit] = -SEE * 1.5  # so SEE / 2 for its own colour, and -SEE / 2 or less for any other
        second.weight[seen(layout, kind), unit] = 2 / SEE


def _with_negatives(channels: torch.Tensor) -> torch.Tensor:
    """Return every channel followed by its negative."""
    return torch.stack([channels, -channels], dim=1).flatten(0, 1)
