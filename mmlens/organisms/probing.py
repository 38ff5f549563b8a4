"""What can be read from a tower's features by a linear map."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch.nn import functional as F

Classes = Mapping[str, Int[torch.Tensor, " position"]]


def linear_probe(
    features: Float[torch.Tensor, "position width"],
    classes: Classes,
    held_out: Float[torch.Tensor, "held_out width"],
    truths: Mapping[str, Int[torch.Tensor, " held_out"]],
) -> dict[str, float]:
    """How often ridge regression from `features` to `classes` is right on the held-out ones, by name."""
    known, asked = (F.pad(values, (0, 1), value=1.0).double() for values in (features, held_out))
    gram = known.T @ known + 0.1 * torch.eye(known.shape[1], dtype=torch.float64)
    right = {}
    for name, target in classes.items():
        weights = torch.linalg.solve(gram, known.T @ F.one_hot(target).double())
        right[name] = round(((asked @ weights).argmax(-1) == truths[name]).double().mean().item(), 4)
    return right
