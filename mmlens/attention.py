"""Attention that is SDPA where nobody looks, and exact, readable and editable where somebody does.

One function is registered with transformers under the name "mmlens". It finds TransformerLens' hook points on the
attention module that calls it. Without a hook on them it hands over to transformers' own SDPA, bit for bit; with one it
computes scores (with their soft cap, where the model has one), fires `hook_attn_scores` (masked, before the softmax),
takes the softmax in float32 or better, fires `hook_pattern`, and multiplies with the values. SDPA knows no soft cap: where
the model has one, the scores are always computed, as transformers' eager attention does.

Three points more can be read and not edited, while SDPA goes on: `hook_pattern_mean` [batch, query, key] is the pattern's
mean over heads, in float32 or better, computed head by head; `hook_pattern_mean_unmasked` the same of a softmax over all
real keys, those to come too (where positions see each other both ways, the two are equal); `hook_pattern_rows` [batch,
head, query, key] the pattern of the queries that `rows_of` chooses, in float32 or better. No gradient passes there.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmlens.hooks import STEP

NAME = "mmlens"
MEANS = ("hook_pattern_mean", "hook_pattern_mean_unmasked")
ROWS = "hook_pattern_rows"
BESIDE = (*MEANS, ROWS)
_QUERIES: ContextVar[Tensor | None] = ContextVar("queries", default=None)
_COMPONENT = "_mmlens_component"
_CHUNKS = "_mmlens_chunks"
_PARTS = ("hook_q", "hook_k", "hook_v")
_ROWS = 128  # of a pattern that are computed at a time: they stay in a CPU's cache


def attach(module: nn.Module, component: nn.Module) -> None:
    """Let the attention `module` find its hook points on `component`, outside of nn.Module's own registration.

    Where queries, keys and values come from one linear map, and so have no module of their own, `component` has points for
    them too. Where transformers would call attention once for each chunk of a packed row (`cu_seqlens`), the points see the
    whole row, in one matrix: what lies in different chunks is masked.
    """
    object.__setattr__(module, _COMPONENT, component)
    if "cu_seqlens" in inspect.signature(module.forward).parameters:
        module.register_forward_pre_hook(_whole_row, with_kwargs=True)


def attach_all(bridge: Any) -> None:
    """Give each attention component of `bridge` the points of `BESIDE`, and let the module that it wraps find its points."""
    known = dict(bridge._hook_registry)
    bridge._hook_registry.clear()
    for name, point in known.items():
        bridge._hook_registry[name] = point
        owner, _, last = name.rpartition(".")
        if last == "hook_pattern":
            component = bridge.get_submodule(owner)
            for beside in BESIDE:
                added = HookPoint().eval()
                setattr(component, beside, added)
                added.name = f"{owner}.{beside}"
                bridge._hook_registry[added.name] = added
    for component in bridge.modules():
        module = getattr(component, "original_component", None)
        if {"hook_attn_scores", "hook_pattern"} <= set(component._modules) and isinstance(module, nn.Module):
            attach(module, component)


def _points(module: nn.Module) -> dict[str, Any]:
    """Return the hook points of an attention module, by the last part of their names."""
    component = getattr(module, _COMPONENT, None)
    return {} if component is None else component._modules


def _whole_row(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return arguments that make one chunk of a packed row, where somebody looks; its real chunks stay on the module."""
    points, ends = _points(module), kwargs.get("cu_seqlens")
    object.__setattr__(module, _CHUNKS, None)
    if ends is None or not any(
        _watched(points.get(name)) for name in ("hook_attn_scores", "hook_pattern", *BESIDE, *_PARTS)
    ):
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
    points = _points(module)
    scores_point, pattern_point = points.get("hook_attn_scores"), points.get("hook_pattern")
    query, key, value = (_through(points.get(part), x) for part, x in zip(_PARTS, (query, key, value), strict=True))
    chunks: list[int] | None = getattr(module, _CHUNKS, None)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    settings = _Settings(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, causal, chunks)
    if softcap is None and not (_watched(scores_point) or _watched(pattern_point)):
        _show_beside(points, query, key, attention_mask, settings)
        options: dict[str, Any] = dict(dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs)
        if chunks is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # pyright: ignore[reportReturnType]
        rows = zip(query.split(chunks, dim=2), key.split(chunks, dim=2), value.split(chunks, dim=2), strict=True)
        return torch.cat([sdpa_attention_forward(module, q, k, v, None, **options)[0] for q, k, v in rows], dim=1), None
    groups = query.shape[1] // key.shape[1]
    mask = attention_mask if chunks is None else _apart(chunks, query.device)
    scores = query @ repeat_kv(key, groups).transpose(-2, -1) * settings.scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = _at(scores_point, _masked(scores, mask, causal=causal))
    precision = torch.promote_types(query.dtype, torch.float32)
    pattern = _at(pattern_point, torch.softmax(scores, dim=-1, dtype=precision).to(query.dtype))
    _show_beside(points, query, key, mask, settings, pattern)
    pattern = torch.nn.functional.dropout(pattern, p=dropout, training=module.training)
    return (pattern @ repeat_kv(value, groups)).transpose(1, 2).contiguous(), None


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


def _apart(chunks: list[int], device: torch.device) -> Bool[Tensor, "1 1 pos pos"]:
    """Return the mask of a packed row: what lies in different chunks does not see each other."""
    number = torch.arange(len(chunks), device=device).repeat_interleave(torch.tensor(chunks, device=device))
    return (number[:, None] == number)[None, None]


# ---------------------------------------------------------------- beside SDPA


@dataclass(frozen=True)
class _Settings:
    """How scores are made of queries and keys; those in different `chunks` of a packed row do not see each other."""

    scale: float
    softcap: float | None
    causal: bool
    chunks: list[int] | None


def _show_beside(
    points: Mapping[str, Any], query: Tensor, key: Tensor, mask: Tensor | None, settings: _Settings, pattern: Any = None
) -> None:
    """Fire the points of `BESIDE` that somebody looks at; `pattern` [batch, head, query, key] is used where it is there."""
    if _watched(points.get(ROWS)):
        points[ROWS](_pattern_rows(query, key, mask, settings, pattern))
    looked_at = [name for name in MEANS if _watched(points.get(name))]
    if looked_at and settings.chunks is not None:
        mask = _apart(settings.chunks, query.device)
    for name in looked_at:
        if name.endswith("unmasked"):
            everywhere = _padding_only(mask) if settings.chunks is None else mask
            points[name](_mean_pattern(query, key, everywhere, replace(settings, causal=False)))
        elif pattern is not None:
            points[name](pattern.detach().mean(1, dtype=torch.promote_types(pattern.dtype, torch.float32)))
        else:
            points[name](_mean_pattern(query, key, mask, settings))


@contextmanager
def rows_of(queries: Int[Tensor, "batch query"]) -> Iterator[None]:
    """Let `hook_pattern_rows` show the pattern of these positions; outside of this, it is each row's last position's.

    Where rows have fewer than others, -1 fills up (and shows position 0). In a generation they are the prompt's positions;
    at each step behind it, the one position of that step is shown.
    """
    before = _QUERIES.set(queries)
    try:
        yield
    finally:
        _QUERIES.reset(before)


@torch.no_grad()
def _pattern_rows(
    query: Float[Tensor, "batch head pos d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    mask: Tensor | None,
    settings: _Settings,
    pattern: Any,
) -> Float[Tensor, "batch head query key"]:
    """Return the pattern of the chosen queries: of the whole `pattern` where that is there, else from their scores alone."""
    (batch, _, length, _), keys = query.shape, key.shape[2]
    chosen = _QUERIES.get()
    if chosen is None or STEP.get():
        chosen = torch.full((batch, 1), length - 1)
    if len(chosen) != batch or not bool((chosen < length).all()):
        raise ValueError(
            f"queries are positions below {length} of {batch} rows here, got {list(chosen.shape)} up to "
            f"{int(chosen.max())}: make them from the inputs of this run (in a tower, a row is a medium or a tile)"
        )
    at = chosen.to(query.device).clamp(min=0)
    row = torch.arange(batch, device=query.device)[:, None]
    precision = torch.promote_types(query.dtype, torch.float32)
    if pattern is not None:
        return pattern.detach().transpose(1, 2)[row, at].transpose(1, 2).to(precision)
    own = query.transpose(1, 2)[row, at].transpose(1, 2).to(precision)
    own = own.unflatten(1, (key.shape[1], -1)).flatten(2, 3)  # the heads that share their keys, one after the other
    scores = own @ key.to(precision).transpose(-2, -1) * settings.scale
    scores = scores.unflatten(2, (-1, at.shape[1])).flatten(1, 2)
    seen = None
    if settings.chunks is not None:
        number = torch.arange(len(settings.chunks), device=at.device)
        number = number.repeat_interleave(torch.tensor(settings.chunks, device=at.device))
        seen = number[at][..., None] == number
    elif mask is not None:
        seen = mask.expand(batch, -1, -1, -1).transpose(1, 2)[row, at].transpose(1, 2)
    elif settings.causal and length > 1:
        seen = torch.arange(keys, device=at.device) <= at[..., None] + keys - length
    seen = seen[:, None] if seen is not None and seen.ndim == 3 else seen
    return torch.softmax(_masked(scores, seen, causal=False), dim=-1)


@torch.no_grad()
def _mean_pattern(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    mask: Tensor | None,
    settings: _Settings,
) -> Float[Tensor, "batch query key"]:
    """Return the mean over heads of the attention pattern, one head and (on a CPU) a few queries at a time."""
    (batch, heads, queries, _), keys = query.shape, key.shape[2]
    precision = torch.promote_types(query.dtype, torch.float32)
    lowest, step = torch.finfo(precision).min, _ROWS if query.device.type == "cpu" else queries
    ahead = keys - queries if settings.causal and mask is None and queries > 1 else None
    mean = query.new_zeros(batch, queries, keys, dtype=precision)
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        rows = None if mask is None else mask[:, :, start:stop]
        reach = (keys if rows is None or step >= queries else _reach(rows)) if ahead is None else ahead + stop
        scores = query.new_empty(batch, stop - start, reach)
        pattern = scores.new_empty(scores.shape, dtype=precision)
        bias = None
        if ahead is not None:  # what is seen by the first of these queries is seen by all
            later = torch.ones(stop - start, stop - start, dtype=torch.bool, device=query.device).triu_(1)
            bias = later.new_zeros(later.shape, dtype=precision).masked_fill_(later, lowest)[None, None]
        elif rows is not None:
            rows = rows[..., :reach]
            bias = (
                rows.new_zeros(rows.shape, dtype=precision).masked_fill_(~rows, lowest) if rows.dtype == torch.bool else rows
            )
        for head in range(heads):
            own = key[:, head // (heads // key.shape[1]), :reach]
            scores.baddbmm_(query[:, head, start:stop], own.transpose(1, 2), beta=0, alpha=settings.scale)
            if settings.softcap is not None:
                scores.div_(settings.softcap).tanh_().mul_(settings.softcap)
            full = scores.to(precision)
            if bias is not None:
                full[..., reach - bias.shape[-1] :].add_(bias[:, head % bias.shape[1]])
            torch.softmax(full, -1, out=pattern)
            mean[:, start:stop, :reach].add_(pattern, alpha=1 / heads)
    return mean


def _reach(rows: Tensor) -> int:
    """Return how many keys a mask's `rows` reach; all where one of them sees nothing, and so is spread over all."""
    if rows.dtype != torch.bool or not rows.any(-1).all():
        return rows.shape[-1]
    return int(rows.flatten(0, 2).any(0).nonzero()[-1]) + 1


def _padding_only(mask: Tensor | None) -> Tensor | None:
    """Return a mask that hides only the keys which nobody sees: those are padding."""
    if mask is None:
        return None
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    padding = ~seen.any(-2, keepdim=True)
    if mask.dtype == torch.bool:
        return (~padding).expand_as(mask)
    return mask.masked_fill(~seen & ~padding, 0.0)  # a bias stays where it is


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
