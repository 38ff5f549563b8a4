"""The logit lens: what every position already reads as, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlens.hooks import feed
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class LogitLens(Result):
    """What the model would predict from the residual stream, at every layer and position.

    Row l of the layer axis is the stream that enters block l; the last row is the final stream, so the model's own
    output. `entropy` is that of the whole prediction, in nats. `target_*` are about the tokens that were asked for: their
    log-probability (nats) and rank (0 is the top).
    """

    tokens: Int[Tensor, "layer batch pos k"]
    log_probs: Float[Tensor, "layer batch pos k"]
    entropy: Float[Tensor, "layer batch pos"]
    targets: Int[Tensor, " target"]
    target_log_probs: Float[Tensor, "layer batch pos target"]
    target_ranks: Int[Tensor, "layer batch pos target"]

    def mean_entropy(self, where: Bool[Tensor, "batch pos"]) -> Float[Tensor, " layer"]:
        """Return the mean entropy (nats) over the `where` positions by layer: `lens.mean_entropy(inputs.mask("image"))`."""
        return self.entropy[:, where.to(self.entropy.device)].mean(-1)


@torch.no_grad()
def logit_lens(
    model: HookedMLLM, inputs: Inputs, *, top_k: int = 10, targets: Sequence[int] = (), chunk: int = 512
) -> LogitLens:
    """Return top tokens and entropy of every layer and position, read through the final norm and the unembedding.

    Only `chunk` positions' logits are in memory at a time. Source: nostalgebraist 2020; by modality in Huo et al. 2024
    (MMNeuron), section on the logit lens (methods C10).
    """
    wanted = torch.tensor(list(targets), dtype=torch.long)
    rows: list[tuple[Tensor, ...]] = []

    def read(resid: Tensor, hook: Any) -> None:
        pieces = [_read(model, piece, top_k, wanted.to(resid.device)) for piece in resid.flatten(0, 1).split(chunk)]
        rows.append(tuple(torch.cat(part).unflatten(0, resid.shape[:2]).cpu() for part in zip(*pieces, strict=True)))

    names = ["blocks.0.hook_resid_pre", "blocks.*.hook_resid_post"]
    model.run_with_hooks(inputs, fwd_hooks=[(name, feed(read)) for name in names])
    tokens, log_probs, entropy, target_log_probs, target_ranks = (torch.stack(part) for part in zip(*rows, strict=True))
    return LogitLens(
        tokens=tokens,
        log_probs=log_probs,
        entropy=entropy,
        targets=wanted,
        target_log_probs=target_log_probs,
        target_ranks=target_ranks,
        provenance=Provenance.record(model, (inputs.digest(),), analysis="logit_lens", top_k=top_k),
    )


def _read(model: HookedMLLM, resid: Float[Tensor, "n d_model"], top_k: int, targets: Tensor) -> tuple[Tensor, ...]:
    log_probs = torch.log_softmax(model.unembed(resid).float(), dim=-1)
    best, tokens = log_probs.topk(top_k, dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    chosen = log_probs[:, targets]
    ranks = (log_probs[:, None, :] > chosen[:, :, None]).sum(-1)
    return tokens, best, entropy, chosen, ranks
