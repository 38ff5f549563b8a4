"""Trains both checkpoints: `python -m mmlens.organisms.pictosound.train [--out DIR] [--steps N] [--only STAGE]`.

Four stages, each of which writes its weights and a line of training.jsonl to the folder `work` in DIR, and is skipped if
its weights are there:

language    the language model, on text alone
tower       the audio tower, on the classes of every position (supervised; no words)
projector   the linear projector between the two, which stay frozen -> DIR's pictosound-frozen
tuning      everything together, on sounds and, so that it still reads notes, on text -> DIR's pictosound
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from mmlens.organisms.packing import Batch
from mmlens.organisms.pictosound import world
from mmlens.organisms.pictosound.batches import CLASSES, position_batch, sound_batch, text_batch
from mmlens.organisms.pictosound.clips import clips
from mmlens.organisms.pictosound.evaluate import measure_notes, measure_sound, position_probe, sound_features
from mmlens.organisms.pictosound.network import POSITIONS, build_model, build_processor, save
from mmlens.organisms.training import Descent, Organism, Run, Stage, language_loss, main, muon_and_adamw

_CURRICULUM = 0.35
_CHECK_SEED = 10**6


def train_language(model, run: Run) -> Descent:
    """Trains the first stage; easy sentences first, then all of them."""
    part = model.model.language_model.requires_grad_(True)

    def loss(step):
        return _loss(model, text_batch(run.seed + step, run.batch, simple=0.85 if step < _CURRICULUM * run.steps else 0.1))

    return run.descend(loss, muon_and_adamw(part, 0.012, 2e-3))


def train_tower(model, run: Run) -> Descent:
    """Trains the second stage: noun, pitch, rhythm and order at every position, by linear heads."""
    tower = model.model.audio_tower
    width = model.config.audio_config.d_model
    heads = nn.ModuleDict({name: nn.Linear(width, len(values) + 1) for name, values in CLASSES.items()})

    def loss(step):
        sounds, classes = position_batch(run.seed + step, run.batch)
        features = sound_features(model, sounds).flatten(0, 1)
        # Where nothing sounds is easy to hear: it counts less.
        importance = torch.where(classes["noun"] < len(world.NOUNS), 1.0, 0.3).flatten()
        total = sum(
            F.cross_entropy(head(features).float(), classes[name].flatten(), reduction="none")
            for name, head in heads.items()
        )
        return (total * importance).sum() / importance.sum()

    return run.descend(loss, muon_and_adamw(nn.ModuleList([tower, heads]), 0.02, 3e-3))


def train_projector(model, run: Run) -> Descent:
    """Trains the third stage, in which nothing but the projector changes."""
    projector = model.model.multi_modal_projector.linear
    model.requires_grad_(False)
    with torch.no_grad():
        spread = sound_features(model, position_batch(run.seed - 1, 64)[0]).std().item()
        nn.init.orthogonal_(projector.weight, 10 * model.get_input_embeddings().weight.std().item() / spread)
    projector.requires_grad_(True)
    optimizers = [
        torch.optim.Muon([projector.weight], lr=0.03 / spread, weight_decay=0.0),
        torch.optim.AdamW([projector.bias], lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    return run.descend(lambda step: _loss(model, sound_batch(run.seed + step, run.batch)), optimizers)


def train_tuning(model, run: Run) -> Descent:
    """Trains the fourth stage: sounds, and half as many rows of text so that notes are not forgotten."""
    model.requires_grad_(True)
    model.model.audio_tower.embed_positions.requires_grad_(False)

    def loss(step):
        text = text_batch(run.seed + step, run.batch // 2, simple=0.0)
        return _loss(model, sound_batch(run.seed + step, run.batch)) + 0.5 * _loss(model, text)

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=6e-4, betas=(0.9, 0.98), weight_decay=0.01)
    return run.descend(loss, [optimizer])


def accuracy(model, stage: str, n: int) -> dict[str, float]:
    """What a stage has taught, on n held-out clips: exact-match rates, or how well the tower's positions can be read."""
    held_out, processor, rates = clips("held_out", n, _CHECK_SEED), build_processor(), {}
    if stage == "tower":
        rates = position_probe(model, n=6 * n)
    if stage in ("language", "tuning"):
        rates |= {f"notes, {name}": r["rate"] for name, r in measure_notes(model, processor, held_out).items()}
    if stage in ("projector", "tuning"):
        rates |= {f"sound, {name}": r["rate"] for name, r in measure_sound(model, processor, held_out).items()}
    return rates


def _loss(model, batch: Batch) -> torch.Tensor:
    def embed(media, embedded):
        sound = model.model.multi_modal_projector(sound_features(model, media)).to(embedded.dtype)
        return torch.cat([embedded[:, :2], sound, embedded[:, 2 + POSITIONS :]], dim=1)

    return language_loss(model, batch, embed)


PICTOSOUND = Organism(
    stages={
        "language": Stage(train_language, steps=600, part="model.language_model."),
        "tower": Stage(train_tower, steps=500, batch=32, part="model.audio_tower."),
        "projector": Stage(train_projector, steps=300, part="model.multi_modal_projector.", finishes="pictosound-frozen"),
        "tuning": Stage(train_tuning, steps=250, batch=16, finishes="pictosound"),
    },
    build=build_model,
    save=save,
    accuracy=accuracy,
)


if __name__ == "__main__":
    main(PICTOSOUND, description=__doc__, out=Path("runs/pictosound"))
