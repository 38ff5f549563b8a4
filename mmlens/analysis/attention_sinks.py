"""Attention sinks: keys that draw a large share of the attention whatever the query."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlens.analysis.attention_rows import positions_of, read_rows
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance, Result

LEAST = 8  # queries that must have seen a key: of fewer, "whatever the query" says nothing


@dataclass(frozen=True, kw_only=True, repr=False)
class AttentionSinks(Result):
    """How much each key draws, whatever the query: 0 is an equal share, 1 all attention.

    `drawn` is what at least three in four of the queries that see the key, itself left out, give it: of (share - equal
    share) / (1 - equal share), where an equal share is 1 / (keys that the query sees), so that the few keys of an early
    query do not count as sinks. NaN for keys that fewer than 8 of the queries see.
    """

    drawn: Float[Tensor, "layer batch head key"]
    layers: tuple[int, ...]

    def where(self, *, threshold: float = 0.3, of_heads: float = 0.5) -> Bool[Tensor, "layer batch key"]:
        """Return which keys are sinks: they draw `threshold` or more in at least the fraction `of_heads` of the heads."""
        return (self.drawn >= threshold).float().mean(2) >= of_heads


@torch.no_grad()
def attention_sinks(
    model: HookedMLLM,
    inputs: Inputs,
    *,
    queries: Bool[Tensor, "batch pos"] | None = None,
    layers: Sequence[int] | None = None,
) -> AttentionSinks:
    """Return how much every key draws from `queries` (default: 64 of each row, evenly spread), layer by layer.

    The definition is ours, after the sink of the first position in Gu et al. 2024 (When attention sink emerges; there the
    mean share, of which 0.3 makes a sink). Nothing is removed: `rows.mass(sinks.where())` says how much of a row of
    `attention_rows` lies on sinks.
    """
    positions = positions_of(spread(inputs.mask("all")) if queries is None else queries, inputs)
    drawn: list[Tensor] = []
    chosen = read_rows(
        model, inputs, positions, lambda layer, pattern: drawn.append(_drawn(pattern, positions).cpu()), layers=layers
    )
    return AttentionSinks(
        drawn=torch.stack(drawn),
        layers=chosen,
        provenance=Provenance.record(
            model, (inputs.digest(),), analysis="attention_sinks", queries=int((positions >= 0).sum())
        ),
    )


def _drawn(
    pattern: Float[Tensor, "batch head query key"], positions: Int[Tensor, "batch query"]
) -> Float[Tensor, "batch head key"]:
    """Return what each key draws, as `AttentionSinks` has it, of the pattern of the queries at these positions."""
    queries = positions.to(pattern.device)[..., None]
    seen = (pattern > 0).any(1)  # by any head: the share of one may be too small for a float
    others = seen & (queries >= 0) & (queries != torch.arange(pattern.shape[-1], device=pattern.device))
    equal = (1 / seen.sum(-1, keepdim=True).clamp(min=2))[:, None]
    excess = ((pattern - equal) / (1 - equal)).where(others[:, None], torch.inf).sort(dim=2).values
    count = others.sum(1)[:, None, None]
    lower = excess.gather(2, (count // 4).clamp(max=excess.shape[2] - 1).expand(-1, excess.shape[1], -1, -1))
    return lower.masked_fill(count < LEAST, torch.nan)[:, :, 0]


def spread(where: Bool[Tensor, "batch pos"], count: int = 64) -> Bool[Tensor, "batch pos"]:
    """Return `count` positions of each row of a mask, evenly spread from its first to its last (all, where it has fewer)."""
    chosen = torch.zeros_like(where)
    for row, here in enumerate(where):
        held = here.nonzero()[:, 0]
        chosen[row, held[torch.linspace(0, max(len(held) - 1, 0), min(count, len(held))).round().long()]] = True
    return chosen
