"""Training an organism in stages, each logged, checked on held-out examples, and skipped if its weights are there."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmlens.organisms.packing import Batch

Optimizers = Sequence[torch.optim.Optimizer]


class Descent(NamedTuple):
    """The mean loss of every twentieth of the way, and the seconds that it took."""

    losses: list[float]
    seconds: float


@dataclass(frozen=True)
class Run:
    """A stage under way: `steps` batches of `batch` rows, drawn from `seed` on. Its state is kept in a file as it goes."""

    name: str
    steps: int
    batch: int
    seed: int
    keep: Path
    every: int = 100

    def descend(self, loss_at: Callable[[int], torch.Tensor], optimizers: Optimizers) -> Descent:
        """Trains what the optimizers hold: cosine decay after a warm-up, gradients clipped at 1.

        `loss_at(step)` must depend on nothing but the step and the weights: then a run that was killed goes on from its
        last kept state to the same weights as one that was not.
        """
        parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        losses, before = _restore(self.keep, parameters, optimizers) if self.keep.exists() else ([], 0.0)
        groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
        started = time.time() - before
        bar = tqdm(range(len(losses), self.steps), self.name, initial=len(losses), total=self.steps, mininterval=5)
        for step in bar:
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_at(step)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for group, rate in groups:
                group["lr"] = rate * _share(step, self.steps)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.3f}", refresh=False)
            if (step + 1) % self.every == 0:
                _keep(self.keep, parameters, optimizers, losses, time.time() - started)
        means = [round(sum(part) / len(part), 4) for part in _twentieths(losses)]
        return Descent(means, round(time.time() - started, 1))


@dataclass(frozen=True)
class Stage:
    """One stage: `train(model, run)` returns what `run.descend` does.

    part: the prefix of the weights that it trains, which later stages start from.
    finishes: the name of the checkpoint that is finished with it.
    """

    train: Callable[[Any, Run], Descent]
    steps: int
    batch: int = 24
    part: str = "model."
    finishes: str | None = None


@dataclass(frozen=True)
class Organism:
    """What there is to train: `build(seed)` is the untrained model, `save(model, folder)` writes it and its processor.

    `accuracy(model, stage, n)` measures what a stage has taught, on n held-out examples, by name.
    """

    stages: dict[str, Stage]
    build: Callable[[int], Any]
    save: Callable[[Any, Path], None]
    accuracy: Callable[[Any, str, int], dict[str, float]]


def train(
    organism: Organism,
    out: Path,
    *,
    steps: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    only: str | None = None,
    check: int = 100,
) -> None:
    """Runs, in order, the stages whose weights `out`'s folder `work` lacks; one that was killed goes on where it was.

    steps, batch: for every stage, instead of each stage's own number.
    only: the one stage to run (stages that do not need each other can run side by side).
    check: how many held-out examples each stage is checked on.
    """
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    for index, (name, stage) in enumerate(organism.stages.items()):
        weights = work / f"{name}.safetensors"
        if weights.exists() or only not in (None, name):
            continue
        model = organism.build(seed)
        model.set_attn_implementation("sdpa_in_float32")
        for earlier in list(organism.stages)[:index]:
            if (work / f"{earlier}.safetensors").exists():
                model.load_state_dict(load_file(work / f"{earlier}.safetensors"), strict=False)
        run = Run(
            name,
            steps=steps or stage.steps,
            batch=batch or stage.batch,
            seed=1 + seed * 10**8 + 10**7 * index,
            keep=work / f"{name}-under-way.safetensors",
        )
        descent = stage.train(model, run)
        plan = {"stage": name, "seed": seed, "steps": run.steps, "batch": run.batch}
        accuracy = organism.accuracy(model.eval(), name, check)
        _log(work, {**plan, "seconds": descent.seconds, "losses": descent.losses, "accuracy": accuracy})
        if stage.finishes:
            organism.save(model, out / stage.finishes)
            shutil.copy(work / "training.jsonl", out / stage.finishes)
        state = {key: value.contiguous() for key, value in model.state_dict().items() if key.startswith(stage.part)}
        save_file(state, weights)
        run.keep.unlink(missing_ok=True)


def main(organism: Organism, *, description: str | None, out: Path) -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=out, help=f"where the folders go ({out})")
    parser.add_argument("--steps", type=int, help="steps of every stage, instead of each stage's own number")
    parser.add_argument("--batch", type=int, help="rows of every batch, instead of each stage's own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=organism.stages, help="run this stage alone")
    parser.add_argument("--check", type=int, default=100, help="held-out examples that each stage is checked on")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = vars(parser.parse_args())
    torch.set_num_threads(options.pop("threads"))
    train(organism, options.pop("out"), **options)


def language_loss(model: Any, batch: Batch, embed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The weighted mean cross-entropy of a batch's tokens, each predicted from the position before it.

    embed: puts what the projector makes of the media among the embedded tokens [batch, pos, d_model].
    """
    embedded = model.get_input_embeddings()(batch.tokens)
    if batch.media is not None:
        embedded = embed(batch.media, embedded)
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


def _share(step: int, steps: int) -> float:
    """Of the learning rate, what a step uses: up from a hundredth in a straight line, then down along a cosine."""
    warm_up = min(100, max(1, steps // 10))
    if step < warm_up:
        return 0.01 + 0.99 * step / warm_up
    return (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))) / 2


def _keep(path: Path, parameters: Sequence[Any], optimizers: Optimizers, losses: list[float], seconds: float) -> None:
    tensors = {f"parameter {index}": parameter.detach() for index, parameter in enumerate(parameters)}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"state {number} {index} {name}": value for name, value in state.items()}
    partial, about = path.with_suffix(".partial"), {"losses": json.dumps(losses), "seconds": str(seconds)}
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial, about)
    partial.replace(path)


def _restore(path: Path, parameters: Sequence[Any], optimizers: Optimizers) -> tuple[list[float], float]:
    with safe_open(path, "pt") as kept, torch.no_grad():
        for index, parameter in enumerate(parameters):
            parameter.copy_(kept.get_tensor(f"parameter {index}"))
        for number, optimizer in enumerate(optimizers):
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key in kept.keys():  # noqa: SIM118 (it is no dict)
                kind, *where = key.split(" ", 3)
                if kind == "state" and int(where[0]) == number:
                    state.setdefault(int(where[1]), {})[where[2]] = kept.get_tensor(key)
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        about = kept.metadata()
    return json.loads(about["losses"]), float(about["seconds"])


def _twentieths(values: list[float]) -> Iterator[list[float]]:
    size = max(1, len(values) // 20)
    return (values[start : start + size] for start in range(0, len(values), size))


def _attention_in_float32(module, query, key, value, *arguments, **settings):
    # The backward pass of attention in bfloat16 is slow on processors.
    with torch.autocast("cpu", enabled=False):
        output, weights = sdpa_attention_forward(module, query.float(), key.float(), value.float(), *arguments, **settings)
    return output.to(query.dtype), weights


AttentionInterface.register("sdpa_in_float32", _attention_in_float32)
AttentionMaskInterface.register("sdpa_in_float32", sdpa_mask)


def _log(work: Path, entry: dict) -> None:
    machine = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{_processor_name()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
    }
    with open(work / "training.jsonl", "a") as log:
        log.write(json.dumps(entry | machine) + "\n")


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
