"""Metrics of logits: what an intervention changes, one number per example."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def log_prob(logits: Float[Tensor, "batch pos d_vocab"], token: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return the log-probability (nats) that the last position gives to each row's `token`."""
    return torch.log_softmax(logits[:, -1].float(), dim=-1).gather(1, token[:, None])[:, 0]


def logit_diff(
    logits: Float[Tensor, "batch pos d_vocab"], correct: Int[Tensor, " batch"], wrong: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return the logit of `correct` minus that of `wrong` at each row's last position."""
    last = logits[:, -1]
    return (last.gather(1, correct[:, None]) - last.gather(1, wrong[:, None]))[:, 0]


def kl_divergence(
    logits: Float[Tensor, "batch pos d_vocab"], reference: Float[Tensor, "batch pos d_vocab"]
) -> Float[Tensor, " batch"]:
    """Return KL(reference || logits) in nats at each row's last position."""
    ours = torch.log_softmax(logits[:, -1].float(), dim=-1)
    theirs = torch.log_softmax(reference[:, -1].float(), dim=-1)
    return (theirs.exp() * (theirs - ours)).sum(-1)
