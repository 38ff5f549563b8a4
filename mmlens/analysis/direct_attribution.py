"""Direct logit attribution: how far each component's own vector, read by the unembedding, raises a token's logit."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlens.analysis.components import Components, decompose
from mmlens.cache import gain
from mmlens.hooks import feed
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class DirectAttribution(Result):
    """What each component adds to the logit of its row's token (minus that of `against`), at each place of `where`.

    `parts` add up to `logits`: the model's own, less `model.b_U`, which no component writes, and before a soft cap.
    Places are the `where` positions, row by row. Parts of `"block"` are attention, MLP and DeepStack of a layer together.
    """

    components: Components
    parts: Float[Tensor, "component place"]
    logits: Float[Tensor, " place"]
    tokens: Int[Tensor, " batch"]
    against: Int[Tensor, " batch"] | None
    where: Bool[Tensor, "batch pos"]

    def scores(self, kind: Literal["head", "neuron", "attn", "mlp", "block"]) -> Float[Tensor, "layer index place"]:
        """Return the parts of one kind as a table: of heads by layer and head, of neurons by layer and unit, and so on.

        `top_k(found.scores("neuron").mean(-1), 20, widths=model.widths)` are neurons. Raises ValueError for a kind that
        was not asked for.
        """
        own = torch.tensor([one == kind for one in self.components.kind])
        if not own.any():
            raise ValueError(f"this attribution is to {', '.join(dict.fromkeys(self.components.kind))}, got {kind!r}")
        layer, index = self.components.layer[own], self.components.index[own].clamp(min=0)
        table = torch.zeros(int(layer.max()) + 1, int(index.max()) + 1, self.parts.shape[1])
        table[layer, index] = self.parts[own]
        return table

    def top(self, k: int = 10) -> list[tuple[str, float]]:
        """Return the `k` components with the highest mean over places, and those means, best first."""
        mean, labels = self.parts.mean(-1), self.components.labels()
        best = mean.argsort(descending=True, stable=True)[:k].tolist()
        return [(labels[one], float(mean[one])) for one in best]


@torch.no_grad()
def direct_logit_attribution(
    model: HookedMLLM,
    inputs: Inputs,
    tokens: Int[Tensor, " batch"],
    *,
    against: Int[Tensor, " batch"] | None = None,
    where: Bool[Tensor, "batch pos"] | None = None,
    by: Literal["layer", "component", "head", "neuron"] = "component",
) -> DirectAttribution:
    """Return what each component adds to the logit of its row's token at the `where` positions (default: the last).

    `by`: blocks; attention and MLP of each layer; heads instead of attention; or neurons instead of MLPs. The final norm
    is frozen: every part is divided by the scale that the norm had in this run, and multiplied by its gain, so that parts
    add up. What a part would do to that scale, and all that later components make of it, is not in it. With `against`
    parts are those of a difference of two logits. Source: Elhage et al. 2021; nostalgebraist 2020.
    """
    where = inputs.last() if where is None else where
    for name, ids in (("tokens", tokens), ("against", against)):
        if ids is not None and ids.shape != (len(inputs),):
            raise ValueError(f"{name} are one for each of {len(inputs)} rows, got {list(ids.shape)}")
    row = where.nonzero()[:, 0].cpu()
    seen: dict[str, Tensor] = {}

    def wanted(scores: Tensor) -> Tensor:
        """Return the entry of each place's token along the last axis, less that of the other."""
        places = torch.arange(len(scores), device=scores.device)
        chosen = scores[places, tokens.cpu()[row].to(scores.device)]
        return chosen if against is None else chosen - scores[places, against.cpu()[row].to(scores.device)]

    def scale(value: Tensor, hook: Any) -> None:
        seen["scale"] = value.float().cpu()

    def logits(value: Tensor, hook: Any) -> None:
        seen["logits"] = wanted(value.float()).cpu()

    found = decompose(
        model,
        inputs,
        where,
        heads=by == "head",
        units={number: torch.arange(width) for number, width in enumerate(model.widths["language"])}
        if by == "neuron"
        else None,
        onto=directions(model, tokens, against)[row][..., None],
        fwd_hooks=[("ln_final.hook_scale", feed(scale, where=where)), ("hook_unembed", feed(logits, where=where))],
    )
    components, parts = found.components, found.parts[..., 0] / seen["scale"][:, 0]
    if by == "layer":
        components, parts = _by_layer(components, parts)
    return DirectAttribution(
        components=components,
        parts=parts,
        logits=seen["logits"] - wanted(model.b_U.float().cpu().expand(len(row), -1)),
        tokens=tokens.cpu(),
        against=None if against is None else against.cpu(),
        where=where.cpu(),
        provenance=Provenance.record(model, (inputs.digest(),), analysis="direct_logit_attribution", by=by),
    )


def directions(
    model: HookedMLLM, tokens: Int[Tensor, " batch"], against: Int[Tensor, " batch"] | None = None
) -> Float[Tensor, "batch d_model"]:
    """Return what reads each row's token from the final stream, but for the norm's scale."""
    norm, unembedding = model.bridge.ln_final, model.W_U
    chosen = unembedding[:, tokens.to(unembedding.device)].float()
    if against is not None:
        chosen = chosen - unembedding[:, against.to(unembedding.device)].float()
    directions = chosen.T * gain(norm).float().to(chosen.device)
    if isinstance(norm.original_component, nn.LayerNorm):  # it takes the stream's mean away first
        directions = directions - directions.mean(-1, keepdim=True)
    return directions.cpu()


def _by_layer(components: Components, parts: Tensor) -> tuple[Components, Tensor]:
    """Return components with those of each block as one, and the sums of their parts."""
    outside = components.layer < 0
    depth = int(components.layer.max()) + 1
    blocks = torch.stack([parts[components.layer == layer].sum(0) for layer in range(depth)])
    lead = int(outside.sum())
    together = Components(
        kind=components.kind[:lead] + ("block",) * depth,
        layer=torch.cat([components.layer[:lead], torch.arange(depth)]),
        index=torch.full((lead + depth,), -1),
    )
    return together, torch.cat([parts[outside], blocks])
