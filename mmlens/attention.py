"""Attention that is SDPA where nobody looks, and exact, readable and editable where somebody does.

One function is registered with transformers under the name "mmlens". It finds TransformerLens' hook points on the
attention module that calls it. Without a hook on them it hands over to transformers' own SDPA, bit for bit; with one it
computes scores (with their soft cap, where the model has one), fires `hook_attn_scores` (masked, before the softmax),
takes the softmax in float32 or better, fires `hook_pattern`, and multiplies with the values. SDPA knows no soft cap: where
the model has one, the scores are always computed, as transformers' eager attention does.
"""

import inspect
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "mmlens"
_POINTS = "_mmlens_hook_points"
_CHUNKS = "_mmlens_chunks"


def attach(module: nn.Module, scores: HookPoint, pattern: HookPoint, **parts: HookPoint) -> None:
    """Let the attention `module` find its hook points, outside of nn.Module's own registration.

    `parts` are the points of `q`, `k` and `v` where they come from one linear map, and so have no module of their own.
    Where transformers would call attention once for each chunk of a packed row (`cu_seqlens`), the points see the whole
    row, in one matrix: what lies in different chunks is masked.
    """
    object.__setattr__(module, _POINTS, (scores, pattern, parts))
    if "cu_seqlens" in inspect.signature(module.forward).parameters:
        module.register_forward_pre_hook(_whole_row, with_kwargs=True)


def attach_all(bridge: nn.Module) -> None:
    """Let every attention module that a component of `bridge` wraps find that component's hook points."""
    for component in bridge.modules():
        scores, pattern = getattr(component, "hook_attn_scores", None), getattr(component, "hook_pattern", None)
        module = getattr(component, "original_component", None)
        if isinstance(scores, HookPoint) and isinstance(pattern, HookPoint) and isinstance(module, nn.Module):
            fused = {part: component._modules.get(f"hook_{part}") for part in "qkv"}
            attach(module, scores, pattern, **{part: p for part, p in fused.items() if isinstance(p, HookPoint)})


def _whole_row(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return arguments that make one chunk of a packed row, where somebody looks; its real chunks stay on the module."""
    scores, pattern, parts = getattr(module, _POINTS)
    ends = kwargs.get("cu_seqlens")
    object.__setattr__(module, _CHUNKS, None)
    if ends is None or not any(map(_watched, (scores, pattern, *parts.values()))):
        return None
    object.__setattr__(module, _CHUNKS, (ends[1:] - ends[:-1]).tolist())
    return args, {**kwargs, "cu_seqlens": ends[[0, -1]]}


def attention(
    module: nn.Module,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_value"],
    attention_mask: Bool[Tensor, "#batch #head query key"] | Float[Tensor, "#batch #head query key"] | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch query head d_value"], None]:
    """Return what attention hands to the output projection, and no weights; the signature is transformers' own."""
    scores_point, pattern_point, parts = getattr(module, _POINTS, (None, None, {}))
    if parts:
        query, key, value = (_through(parts.get(part), x) for part, x in zip("qkv", (query, key, value), strict=True))
    chunks: list[int] | None = getattr(module, _CHUNKS, None)
    if softcap is None and not (_watched(scores_point) or _watched(pattern_point)):
        options: dict[str, Any] = dict(dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs)
        if chunks is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # pyright: ignore[reportReturnType]
        rows = zip(query.split(chunks, dim=2), key.split(chunks, dim=2), value.split(chunks, dim=2), strict=True)
        return torch.cat([sdpa_attention_forward(module, q, k, v, None, **options)[0] for q, k, v in rows], dim=1), None
    if chunks is not None:
        number = torch.arange(len(chunks), device=query.device).repeat_interleave(torch.tensor(chunks, device=query.device))
        attention_mask = (number[:, None] == number)[None, None]
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scores = _at(scores_point, _masked(scores, attention_mask, causal=causal))
    precision = torch.promote_types(query.dtype, torch.float32)
    pattern = _at(pattern_point, torch.softmax(scores, dim=-1, dtype=precision).to(query.dtype))
    pattern = torch.nn.functional.dropout(pattern, p=dropout, training=module.training)
    return (pattern @ value).transpose(1, 2).contiguous(), None


def _through(point: HookPoint | None, heads: Tensor) -> Tensor:
    """Return queries, keys or values [batch, head, pos, d_head] after their point, which sees [batch, pos, head, d_head]."""
    return point(heads.transpose(1, 2)).transpose(1, 2) if point is not None and _watched(point) else heads


def _at(point: HookPoint | None, matrix: Tensor) -> Tensor:
    return matrix if point is None else point(matrix)


def _watched(point: HookPoint | None) -> bool:
    return point is not None and bool(point._forward_hooks or point._backward_hooks)


def _masked(scores: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Return the scores with what may not be seen at the lowest finite number, as transformers' eager attention has it."""
    queries, keys = scores.shape[-2:]
    if mask is None and causal and queries > 1:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril(keys - queries)
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
