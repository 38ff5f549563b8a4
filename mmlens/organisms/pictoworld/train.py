"""Trains both checkpoints: `python -m mmlens.organisms.pictoworld.train [--out DIR] [--steps N] [--only STAGE]`.

Four stages, each of which writes its weights and a line of training.jsonl to the folder `work` in DIR, and is skipped if
its weights are there:

language    the language model, on text alone
vision      the vision tower, on the class of every patch (supervised; no words)
projector   the linear projector between the two, which stay frozen -> DIR's pictoworld-frozen
tuning      everything together, on images and, so that it still reads notes, on text -> DIR's pictoworld
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from mmlens.organisms.pictoworld import world
from mmlens.organisms.pictoworld.batches import IMAGE_POSITIONS, Batch, image_batch, patch_batch, text_batch
from mmlens.organisms.pictoworld.evaluate import image_features, measure_image, measure_notes, patch_probe
from mmlens.organisms.pictoworld.network import build_model, build_processor, save
from mmlens.organisms.pictoworld.scenes import Scene, scenes

STEPS = {"language": 3000, "vision": 1800, "projector": 1000, "tuning": 1200}
BATCH = {"language": 24, "vision": 48, "projector": 24, "tuning": 24}
_PARTS = {
    "language": "model.language_model.",
    "vision": "model.vision_tower.",
    "projector": "model.multi_modal_projector.",
}
_CURRICULUM = 0.35
_CHECK_SEED = 10**6


def train(
    out: Path,
    *,
    steps: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    only: str | None = None,
    check: int = 100,
) -> None:
    """Runs, in order, the stages whose weights `out`'s folder `work` lacks; each is checked on held-out scenes, and logged.

    steps, batch: for every stage, instead of each stage's own number.
    only: the one stage to run (the first two do not need each other and can run side by side).
    """
    (out / "work").mkdir(parents=True, exist_ok=True)
    for stage in STAGES if only is None else [only]:
        weights = out / "work" / f"{stage}.safetensors"
        if weights.exists():
            continue
        model = build_model(seed)
        for earlier in _PARTS:
            if (out / "work" / f"{earlier}.safetensors").exists():
                model.load_state_dict(load_file(out / "work" / f"{earlier}.safetensors"), strict=False)
        plan = {"seed": seed, "steps": steps or STEPS[stage], "batch": batch or BATCH[stage]}
        first = 1 + seed * 10**8 + 10**7 * list(STAGES).index(stage)
        started = time.time()
        losses = STAGES[stage](model, plan["steps"], plan["batch"], first)
        seconds = round(time.time() - started, 1)
        held_out = scenes("held_out", check, _CHECK_SEED)
        accuracy = stage_accuracy(model, stage, held_out)
        _log(out, {"stage": stage, **plan, "seconds": seconds, "losses": losses, "accuracy": accuracy})
        if stage in ("projector", "tuning"):
            folder = out / ("pictoworld-frozen" if stage == "projector" else "pictoworld")
            save(model, folder)
            shutil.copy(out / "work" / "training.jsonl", folder)
        state = {k: v.contiguous() for k, v in model.state_dict().items() if k.startswith(_PARTS.get(stage, "model."))}
        save_file(state, weights)


def train_language(model, steps: int, batch: int, seed: int) -> list[float]:
    """The losses of the first stage; easy sentences first, then all of them."""
    part = model.model.language_model.requires_grad_(True)

    def loss(step):
        return language_loss(model, text_batch(seed + step, batch, simple=0.85 if step < _CURRICULUM * steps else 0.3))

    return _descend(steps, loss, muon_and_adamw(part, 0.012, 2e-3), "language")


def train_vision(model, steps: int, batch: int, seed: int) -> list[float]:
    """The losses of the second stage: silhouette (or domain) and colour of every patch, by two linear heads."""
    tower = model.model.vision_tower
    width = model.config.vision_config.hidden_size
    shape_head = nn.Linear(width, len(world.SILHOUETTE_CLASSES) + len(world.DOMAINS))
    color_head = nn.Linear(width, len(world.COLORS) + 1)

    def loss(step):
        pixels, shapes, colors = patch_batch(seed + step, batch)
        features = image_features(model, pixels)
        # Most patches are background, which is easy: they count less.
        importance = torch.where(colors < len(world.COLORS), 1.0, 0.2)
        total = sum(
            F.cross_entropy(head(features).flatten(0, 1).float(), target.flatten(), reduction="none")
            for head, target in ((shape_head, shapes), (color_head, colors))
        )
        return (total * importance.flatten()).sum() / importance.sum()

    optimizers = muon_and_adamw(nn.ModuleList([tower, shape_head, color_head]), 0.02, 3e-3)
    return _descend(steps, loss, optimizers, "vision")


def train_projector(model, steps: int, batch: int, seed: int) -> list[float]:
    """The losses of the third stage, in which nothing but the projector changes."""
    projector = model.model.multi_modal_projector
    model.requires_grad_(False)
    with torch.no_grad():
        spread = image_features(model, patch_batch(seed - 1, 64)[0]).std().item()
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
    return _descend(steps, lambda step: language_loss(model, image_batch(seed + step, batch)), optimizers, "projector")


def train_tuning(model, steps: int, batch: int, seed: int) -> list[float]:
    """The losses of the fourth stage: images, and half as many rows of text so that notes are not forgotten."""
    model.requires_grad_(True)

    def loss(step):
        text = text_batch(seed + step, batch // 2, simple=0.0)
        return language_loss(model, image_batch(seed + step, batch)) + 0.5 * language_loss(model, text)

    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.98), weight_decay=0.01)
    return _descend(steps, loss, [optimizer], "tuning")


STAGES: dict[str, Callable] = {
    "language": train_language,
    "vision": train_vision,
    "projector": train_projector,
    "tuning": train_tuning,
}


def language_loss(model, batch: Batch) -> torch.Tensor:
    """The weighted mean cross-entropy of a batch's tokens, each predicted from the position before it."""
    embedded = model.get_input_embeddings()(batch.tokens)
    if batch.pixels is not None:
        image = model.model.multi_modal_projector(image_features(model, batch.pixels))
        embedded = torch.cat([embedded[:, :1], image.to(embedded.dtype), embedded[:, 1 + IMAGE_POSITIONS :]], dim=1)
    hidden = model.model.language_model(
        inputs_embeds=embedded, attention_mask=batch.attention, position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state
    counted = batch.weight[:, 1:] > 0
    logits = model.lm_head(hidden[:, :-1][counted])
    weight = batch.weight[:, 1:][counted]
    return (F.cross_entropy(logits.float(), batch.tokens[:, 1:][counted], reduction="none") * weight).sum() / weight.sum()


def muon_and_adamw(part: nn.Module, muon_lr: float, adamw_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for everything else."""
    matrices = [p for name, p in part.named_parameters() if ".layers." in f".{name}" and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in part.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=muon_lr, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=adamw_lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _descend(steps: int, loss_at: Callable, optimizers: list[torch.optim.Optimizer], name: str) -> list[float]:
    # Cosine decay after a warm-up, gradients clipped at 1; returns the mean loss of every twentieth of the way.
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    warm_up = min(100, max(1, steps // 10))
    schedules = [
        torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warm_up),
                torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warm_up)),
            ],
            [warm_up],
        )
        for optimizer in optimizers
    ]
    losses = []
    for step in (bar := tqdm(range(steps), desc=name, mininterval=5)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_at(step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.3f}", refresh=False)
    return [round(sum(part) / len(part), 4) for part in _twentieths(losses)]


def _twentieths(values: list[float]) -> Iterator[list[float]]:
    size = max(1, len(values) // 20)
    return (values[start : start + size] for start in range(0, len(values), size))


def stage_accuracy(model, stage: str, held_out: Sequence[Scene]) -> dict[str, float]:
    """What a stage has taught, on held-out scenes: exact-match rates, or how well the tower's patches can be read."""
    processor, rates = build_processor(), {}
    model.eval()
    if stage == "vision":
        rates = patch_probe(model, n=6 * len(held_out))
    if stage in ("language", "tuning"):
        rates |= {f"notes, {name}": r["rate"] for name, r in measure_notes(model, processor, held_out).items()}
    if stage in ("projector", "tuning"):
        rates |= {f"image, {name}": r["rate"] for name, r in measure_image(model, processor, held_out).items()}
    return rates


def _log(out: Path, entry: dict) -> None:
    machine = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{_processor_name()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
    }
    with open(out / "work" / "training.jsonl", "a") as log:
        log.write(json.dumps(entry | machine) + "\n")


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/pictoworld"), help="where the folders go (runs/pictoworld)")
    parser.add_argument("--steps", type=int, help="steps of every stage, instead of each stage's own number")
    parser.add_argument("--batch", type=int, help="rows of every batch, instead of each stage's own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=STAGES, help="run this stage alone")
    parser.add_argument("--check", type=int, default=100, help="held-out scenes that each stage is checked on")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = vars(parser.parse_args())
    torch.set_num_threads(options.pop("threads"))
    train(options.pop("out"), **options)


if __name__ == "__main__":
    main()
