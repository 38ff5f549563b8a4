"""What a model wrote: which characters each of its tokens brought, and the inputs with those tokens behind them."""

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from mmlens.inputs import MODALITIES, PAD, Inputs
from mmlens.model import HookedMLLM

WORD = re.compile(r"\w+(?:['’-]\w+)*")
_PARTIAL = "\ufffd"  # what a decoder puts for the first bytes of a character whose last ones are still to come


def covered(model: HookedMLLM, new: Int[Tensor, " new"]) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of `new` tokens, and from which of its characters to which (exclusive) each token reaches.

    A token that brings some bytes of a character covers that character, as the ones with its other bytes do. Special tokens
    are no text and cover nothing. Nothing is tokenized: text is decoded, longer by one token each time.
    """
    special, text = set(model.tokenizer.all_special_ids), _decoded(model, new)
    spans: list[tuple[int, int]] = []
    stop = 0
    for index, token in enumerate(new.tolist()):
        before = _decoded(model, new[: index + 1])
        start, stop = stop, max(stop, _agreed(before, text))
        reaches = start + 1 if stop == start and before.endswith(_PARTIAL) else stop
        spans.append((start, start if token in special else reaches))
    return text, spans


def without_end(model: HookedMLLM, new: Int[Tensor, " new"]) -> Int[Tensor, " written"]:
    """Return what a row wrote without the end token and the padding behind it."""
    special = set(model.tokenizer.all_special_ids)
    ends = model.hf_model.generation_config.eos_token_id
    ends = {model.tokenizer.eos_token_id, model.tokenizer.pad_token_id, *(ends if isinstance(ends, list) else [ends])}
    tokens = new.tolist()
    while tokens and tokens[-1] in ends & special:
        tokens.pop()
    return new[: len(tokens)]


def continued(
    inputs: Inputs,
    tokens: Int[Tensor, " new"] | Sequence[Int[Tensor, " _"]],
    *,
    model: HookedMLLM | None = None,
) -> Inputs:
    """Return `inputs` with `tokens` behind them, as the group `answer`: what the model has written so far.

    `tokens` are those of the one row, or a tensor for each row, of any lengths; the batch is padded on the left anew, so
    that every row ends at the last position. `model` says what padding is and, where a family has numbers beside the tokens
    (Qwen-VL, Gemma 3, PaliGemma), what they are for an answer. Raises ValueError where it is needed and not given, and for
    another number of rows.
    """
    given = [tokens] if isinstance(tokens, Tensor) else list(tokens)
    if len(given) != len(inputs):
        raise ValueError(f"tokens are put behind each row, got {len(inputs)} rows and the tokens of {len(given)}")
    real = inputs.attention_mask.bool()
    lengths = {int(own.sum()) + len(new) for own, new in zip(real, given, strict=True)}
    if model is None and (inputs.stream or len(lengths) > 1):
        needed = f"numbers beside its tokens ({', '.join(inputs.stream)})" if inputs.stream else "rows to pad"
        raise ValueError(f"these inputs have {needed}, and only the model says what those are: give model=")
    pad = 0 if model is None else _pad(model)
    answer = {} if model is None else model.family.answer

    def longer(values: Tensor, fill: Sequence[Tensor] | int | bool, padding: int | bool) -> Tensor:
        rows = []
        for row, own in enumerate(real):
            new = fill[row].to(values) if isinstance(fill, Sequence) else values.new_full((len(given[row]),), fill)
            whole = torch.cat([values[row][own], new])
            rows.append(torch.cat([values.new_full((max(lengths) - len(whole),), padding), whole]))
        return torch.stack(rows)

    return replace(
        inputs,
        tokens=longer(inputs.tokens, given, pad),
        attention_mask=longer(inputs.attention_mask, 1, 0),
        modality=longer(inputs.modality, MODALITIES.index("text"), PAD),
        medium=longer(inputs.medium, -1, -1),
        answer=longer(inputs.answer, True, False),
        stream={name: longer(values, answer.get(name, 0), 0) for name, values in inputs.stream.items()},
    )


def _agreed(a: str, b: str) -> int:
    """Return how many characters two texts begin with in common."""
    return next((index for index, (own, other) in enumerate(zip(a, b, strict=False)) if own != other), min(len(a), len(b)))


def _pad(model: HookedMLLM) -> int:
    pad = model.tokenizer.pad_token_id
    return (model.tokenizer.eos_token_id or 0) if pad is None else pad


def _decoded(model: HookedMLLM, tokens: Tensor) -> str:
    return model.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
