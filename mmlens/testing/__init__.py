"""Tiny models in real transformers classes, saved as real folders, no downloads: random ones, and planted ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmlens.testing import (
    blip,
    gemma3,
    idefics3,
    internvl,
    llava,
    llava_next,
    llava_onevision,
    paligemma,
    prefix,
    qwen2_audio,
    qwen_vl,
    smolvlm,
)
from mmlens.testing.plants import AnswerKey, Planted, Stimulus, planted
from mmlens.testing.words import roughen

__all__ = ["FAMILIES", "AnswerKey", "Planted", "Stimulus", "planted", "tiny"]

MODULES = (
    blip,
    gemma3,
    idefics3,
    internvl,
    llava,
    llava_next,
    llava_onevision,
    paligemma,
    prefix,
    qwen2_audio,
    qwen_vl,
    smolvlm,
)
FAMILIES: dict[str, Callable[..., tuple[Any, Any]]] = {
    name: build for module in MODULES for name, build in module.BUILDERS.items()
}


def tiny(family: str, folder: str | Path, *, seed: int = 0, **changes: Any) -> Path:
    """Return `folder`, in which a tiny random model of `family` and its processor now lie.

    `changes` reach the family's own builder (for LLaVA: `image_size`, `patch_size`, `layers`, `heads`, `kv_heads`,
    `d_model`, `d_mlp`, `dtype`). Raises KeyError for a family that is not in `FAMILIES`.
    """
    if family not in FAMILIES:
        raise KeyError(f"testing.tiny knows the families {sorted(FAMILIES)}, got {family!r}")
    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = FAMILIES[family](**changes)
        roughen(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
