"""What an organism answers, and how often that is exactly right, by transformers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

Rates = dict[str, dict[str, float | int]]


@torch.inference_mode()
def answers(
    model: Any,
    processor: Any,
    prompts: Sequence[str],
    *,
    batch: int = 100,
    rate: int | None = None,
    **media: Sequence[Any] | None,
) -> list[str]:
    """What the model says after each prompt, decoded: `answers(model, processor, prompts, images=images)`.

    media: one image or sound for each prompt, under the name that the processor has for it; each prompt holds one
    placeholder. None, or nothing, asks in words alone. `rate` is the samples a second of sounds.
    """
    said = []
    for start in range(0, len(prompts), batch):
        rows = slice(start, start + batch)
        given: dict[str, Any] = {name: list(values[rows]) for name, values in media.items() if values is not None}
        given |= {"sampling_rate": rate} if given and rate else {}
        inputs = dict(processor(text=list(prompts[rows]), padding=True, return_tensors="pt", **given))
        inputs.pop("token_type_ids", None)  # the tokenizer may return them, the model takes none
        new = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        said += processor.batch_decode(new, skip_special_tokens=True)
    return said


def rates(hits: Mapping[str, Sequence[bool]]) -> Rates:
    """The share of hits and their number, by name."""
    return {name: {"rate": round(sum(hit) / len(hit), 4), "n": len(hit)} for name, hit in sorted(hits.items())}
