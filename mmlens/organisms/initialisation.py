"""How the language model of an organism starts: without this, lookups stay at guessing in the time there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

PREVIOUS_TOKEN_HEADS = {0: (1, 2, 3), 1: (1, 3)}


@torch.no_grad()
def initialise(layers: Any, *, width: int, heads: int, previous: Mapping[int, Sequence[int]] = PREVIOUS_TOKEN_HEADS) -> None:
    """Sets the attention of Llama's or Qwen2's layers: queries agree with keys, some heads look at the tokens before.

    previous: by layer, how far back each of its first heads looks. Needs biases of queries and keys.
    """
    for layer in layers:
        _mimetic(layer.self_attn, width, heads)
    dim = width // heads
    for layer, offsets in previous.items():
        for head, offset in enumerate(offsets):
            _look_back(layers[layer].self_attn, head * dim, dim, offset)


def _mimetic(attention: Any, width: int, heads: int) -> None:
    # Trockman and Kolter 2023: queries and keys agree, values and outputs nearly undo each other.
    for head in range(heads):
        rows = slice(head * width // heads, (head + 1) * width // heads)
        nn.init.orthogonal_(attention.q_proj.weight[rows])
        nn.init.orthogonal_(attention.v_proj.weight[rows])
    attention.k_proj.weight.copy_(attention.q_proj.weight)
    attention.o_proj.weight.copy_(0.12 * attention.v_proj.weight.T)


def _look_back(attention: Any, start: int, dim: int, offset: int) -> None:
    # A query bias b and a key bias that is b rotated by `offset` positions score highest where the key stands
    # `offset` before the query. Only the fast rotary frequencies tell neighbours apart, so only they are set.
    half, fast, strength = dim // 2, 5, 5.5
    angle = (10000.0 ** (-torch.arange(half) / half))[:fast] * offset
    attention.q_proj.bias[start : start + fast] = strength
    attention.k_proj.bias[start : start + fast] = strength * angle.cos()
    attention.k_proj.bias[start + half : start + half + fast] = strength * angle.sin()
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[start : start + dim] *= 0.2
