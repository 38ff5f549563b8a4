"""Metrics of logits: what an intervention changes, one number per example."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def log_prob(logits: Float[Tensor, "batch pos d_vocab"], token: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return the log-probability (nats) that the last position gives to each row's `token`."""
    return torch.log_softmax(_last(logits), dim=-1).gather(1, token.to(logits.device)[:, None])[:, 0]


def logit_diff(
    logits: Float[Tensor, "batch pos d_vocab"], correct: Int[Tensor, " batch"], wrong: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return the logit of `correct` minus that of `wrong` at each row's last position."""
    last = _last(logits)
    ours, theirs = (last.gather(1, token.to(last.device)[:, None])[:, 0] for token in (correct, wrong))
    return ours - theirs


def kl_divergence(
    logits: Float[Tensor, "batch pos d_vocab"], reference: Float[Tensor, "batch pos d_vocab"]
) -> Float[Tensor, " batch"]:
    """Return KL(reference || logits) in nats at each row's last position."""
    ours = torch.log_softmax(_last(logits), dim=-1)
    theirs = torch.log_softmax(_last(reference), dim=-1)
    return (theirs.exp() * (theirs - ours)).sum(-1)


def _last(logits: Tensor) -> Tensor:
    """Return the last position's logits in float32 or better: differences of bfloat16 logits are mostly rounding."""
    return logits[:, -1].to(torch.promote_types(logits.dtype, torch.float32))
