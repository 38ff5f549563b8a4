"""Trains both checkpoints: `python -m mmlens.organisms.pictoworld.train [--out DIR] [--steps N] [--only STAGE]`.

Four stages, each of which writes its weights and a line of training.jsonl to the folder `work` in DIR, and is skipped if
its weights are there:

language    the language model, on text alone
vision      the vision tower, on the class of every patch (supervised; no words)
projector   the linear projector between the two, which stay frozen -> DIR's pictoworld-frozen
tuning      everything together, on images and, so that it still reads notes, on text -> DIR's pictoworld
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from mmlens.organisms.packing import Batch
from mmlens.organisms.pictoworld import world
from mmlens.organisms.pictoworld.batches import IMAGE_POSITIONS, image_batch, patch_batch, text_batch
from mmlens.organisms.pictoworld.evaluate import image_features, measure_image, measure_notes, patch_probe
from mmlens.organisms.pictoworld.network import build_model, build_processor, save
from mmlens.organisms.pictoworld.scenes import scenes
from mmlens.organisms.training import Descent, Organism, Run, Stage, language_loss, main, muon_and_adamw

_CURRICULUM = 0.35
_CHECK_SEED = 10**6


def train_language(model, run: Run) -> Descent:
    """Trains the first stage; easy sentences first, then all of them."""
    part = model.model.language_model.requires_grad_(True)

    def loss(step):
        return _loss(model, text_batch(run.seed + step, run.batch, simple=0.85 if step < _CURRICULUM * run.steps else 0.3))

    return run.descend(loss, muon_and_adamw(part, 0.012, 2e-3))


def train_vision(model, run: Run) -> Descent:
    """Trains the second stage: silhouette (or domain) and colour of every patch, by two linear heads."""
    tower = model.model.vision_tower
    width = model.config.vision_config.hidden_size
    shape_head = nn.Linear(width, len(world.SILHOUETTE_CLASSES) + len(world.DOMAINS))
    color_head = nn.Linear(width, len(world.COLORS) + 1)

    def loss(step):
        pixels, shapes, colors = patch_batch(run.seed + step, run.batch)
        features = image_features(model, pixels)
        # Most patches are background, which is easy: they count less.
        importance = torch.where(colors < len(world.COLORS), 1.0, 0.2)
        total = sum(
            F.cross_entropy(head(features).flatten(0, 1).float(), target.flatten(), reduction="none")
            for head, target in ((shape_head, shapes), (color_head, colors))
        )
        return (total * importance.flatten()).sum() / importance.sum()

    optimizers = muon_and_adamw(nn.ModuleList([tower, shape_head, color_head]), 0.02, 3e-3)
    return run.descend(loss, optimizers)


def train_projector(model, run: Run) -> Descent:
    """Trains the third stage, in which nothing but the projector changes."""
    projector = model.model.multi_modal_projector
    model.requires_grad_(False)
    with torch.no_grad():
        spread = image_features(model, patch_batch(run.seed - 1, 64)[0]).std().item()
        embeddings = model.get_input_embeddings().weight.std().item()
        nn.init.orthogonal_(projector.linear_1.weight, 1 / spread)
        nn.init.orthogonal_(projector.linear_2.weight, 10 * embeddings)
    projector.requires_grad_(True)
    biases = [projector.linear_1.bias, projector.linear_2.bias]
    optimizers = [
        torch.optim.Muon(
            [
                {"params": [projector.linear_1.weight], "lr": 0.02 / spread},
                {"params": [projector.linear_2.weight], "lr": 0.03},
            ],
            weight_decay=0.0,
        ),
        torch.optim.AdamW(biases, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    return run.descend(lambda step: _loss(model, image_batch(run.seed + step, run.batch)), optimizers)


def train_tuning(model, run: Run) -> Descent:
    """Trains the fourth stage: images, and half as many rows of text so that notes are not forgotten."""
    model.requires_grad_(True)

    def loss(step):
        text = text_batch(run.seed + step, run.batch // 2, simple=0.0)
        return _loss(model, image_batch(run.seed + step, run.batch)) + 0.5 * _loss(model, text)

    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.98), weight_decay=0.01)
    return run.descend(loss, [optimizer])


def _loss(model, batch: Batch) -> torch.Tensor:
    return language_loss(model, batch, partial(_with_images, model))


def _with_images(model, pixels, embedded):
    image = model.model.multi_modal_projector(image_features(model, pixels))
    return torch.cat([embedded[:, :1], image.to(embedded.dtype), embedded[:, 1 + IMAGE_POSITIONS :]], dim=1)


def accuracy(model, stage: str, n: int) -> dict[str, float]:
    """What a stage has taught, on n held-out scenes: exact-match rates, or how well the tower's patches can be read."""
    held_out, processor, rates = scenes("held_out", n, _CHECK_SEED), build_processor(), {}
    if stage in ("vision", "masked"):
        rates = patch_probe(model, n=6 * n)
    if stage in ("language", "tuning"):
        rates |= {f"notes, {name}": r["rate"] for name, r in measure_notes(model, processor, held_out).items()}
    if stage in ("projector", "tuning"):
        rates |= {f"image, {name}": r["rate"] for name, r in measure_image(model, processor, held_out).items()}
    return rates


PICTOWORLD = Organism(
    stages={
        "language": Stage(train_language, steps=3000, part="model.language_model."),
        "vision": Stage(train_vision, steps=1800, batch=48, part="model.vision_tower."),
        "projector": Stage(train_projector, steps=1000, part="model.multi_modal_projector.", finishes="pictoworld-frozen"),
        "tuning": Stage(train_tuning, steps=1200, finishes="pictoworld"),
    },
    build=build_model,
    save=save,
    accuracy=accuracy,
)

if __name__ == "__main__":
    main(PICTOWORLD, description=__doc__, out=Path("runs/pictoworld"))
