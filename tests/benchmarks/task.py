"""What a row of the table runs on: a folder with a LLaVA in random weights, and what it reads, as plain files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SIZES: dict[str, dict[str, Any]] = {
    "toy": dict(layers=3, kv_heads=4),
    "3m": dict(image_size=336, patch_size=14, layers=4, d_model=256, d_mlp=688, heads=4, kv_heads=4),
    "25m": dict(image_size=336, patch_size=14, layers=6, d_model=512, d_mlp=1376, heads=8, kv_heads=8),
    "250m": dict(image_size=336, patch_size=14, layers=18, d_model=1024, d_mlp=2752, heads=16, kv_heads=16),
    "7b": dict(image_size=336, patch_size=14, layers=32, d_model=4096, d_mlp=11008, heads=32, kv_heads=32),
}
"""Weights in the language model. 576 positions per image, as LLaVA-1.5 has them; the toy has 25."""
VOCABULARY = {"toy": 0, "3m": 1_000, "25m": 5_900, "250m": 5_900, "7b": 32_000}
TEXT = "the red car " * 10
RIGHT, WRONG = "car", "boat"


@dataclass(frozen=True)
class Task:
    """One folder, and where it runs. Peers read the files only: their environments need not hold mmlens."""

    folder: Path
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def facts(self) -> dict[str, Any]:
        """`images` of each of `rows` prompts, the ids of `right` and `wrong`, and the `positions` of a prompt."""
        return json.loads((self.folder / "task.json").read_text())

    @property
    def type(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def hooked(self) -> Any:
        """Return mmlens' model."""
        from mmlens import HookedMLLM

        return HookedMLLM.from_pretrained(self.folder, device=self.device, dtype=self.type)

    def inputs(self, model: Any, which: str = "clean") -> Any:
        """Return mmlens' inputs: the same text for each row, with "clean" or "corrupted" pictures of its own."""
        facts = self.facts
        shown = pictures(facts["images"] * facts["rows"], first=0 if which == "clean" else 1_000)
        rows = [shown[start : start + facts["images"]] for start in range(0, len(shown), facts["images"])]
        return model.to_inputs([TEXT] * facts["rows"], images=rows)

    def plain(self, attention: str = "sdpa") -> Any:
        """Return transformers' model, none of whose weights asks for a gradient."""
        from transformers import LlavaForConditionalGeneration

        model = LlavaForConditionalGeneration.from_pretrained(self.folder, attn_implementation=attention, dtype=self.type)
        return model.to(self.device).eval().requires_grad_(False)

    def kwargs(self, which: str = "clean") -> dict[str, Tensor]:
        """Return what transformers' model is called with: `inputs` as plain tensors."""
        found = load_file(self.folder / f"{which}.safetensors", device=self.device)
        return {name: value.to(self.type) if value.is_floating_point() else value for name, value in found.items()}

    def where(self) -> Tensor:
        """Return the image positions [batch, pos] of the prompts."""
        return load_file(self.folder / "masks.safetensors", device=self.device)["image"]

    def token(self, which: str = "right") -> Tensor:
        """Return a token for each row."""
        return torch.full((self.facts["rows"],), self.facts[which], device=self.device)


def make(
    folder: Path,
    size: str,
    *,
    images: int = 1,
    rows: int = 1,
    vocabulary: int | None = None,
    dtype: str = "float32",
    **changes: Any,
) -> Path:
    """Return `folder`, in which a model of this size and its inputs now lie; the same for the same arguments."""
    from mmlens import HookedMLLM
    from mmlens.testing import tiny

    words = vocabulary_of(VOCABULARY[size] if vocabulary is None else vocabulary)
    tiny("llava-clip-llama", folder, vocabulary=words, dtype=getattr(torch, dtype), **{**SIZES[size], **changes})
    model = HookedMLLM.from_pretrained(folder, device="cpu")
    right, wrong = map(model.to_token, (RIGHT, WRONG))
    facts = dict(images=images, rows=rows, right=right, wrong=wrong, positions=0)
    (folder / "task.json").write_text(json.dumps(facts))
    for which in ("clean", "corrupted"):
        inputs = Task(folder).inputs(model, which)
        save_file({name: value.contiguous() for name, value in inputs.kwargs().items()}, folder / f"{which}.safetensors")
    save_file({"image": inputs.mask("image")}, folder / "masks.safetensors")
    (folder / "task.json").write_text(json.dumps(facts | dict(positions=inputs.tokens.shape[1])))
    return folder


def pictures(count: int, first: int = 0) -> list[Any]:
    """Return pictures of noise, each with a seed of its own."""
    import numpy as np
    from PIL import Image

    seeds = map(np.random.default_rng, range(first, first + count))
    return [Image.fromarray(seed.integers(0, 256, (336, 336, 3), dtype=np.uint8)) for seed in seeds]


def vocabulary_of(size: int) -> list[str]:
    """Return words for a vocabulary of `size` tokens, with the special ones; never fewer than the tiny models know."""
    from mmlens.testing.words import WORDS

    special = 5
    return [*WORDS, *(f"word{place}" for place in range(size - len(WORDS) - special))]
