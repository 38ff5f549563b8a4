"""How far the residual stream moves where neurons are held, layer by layer, beside random sets of as many."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmlens.analysis.logit_lens import stream_points
from mmlens.hooks import Hook, ablate, feed
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.results import Provenance, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class StreamChange(Result):
    """How far the stream moves from h (clean) to h' (neurons held), mean over a group's positions of each row.

    Row l of the layer axis enters block l, the last row leaves the last block. `relative` is ||h' - h|| / ||h||; `turned`
    is 1 - cos(h', h): 0 for the same direction, 1 for a right angle. Both are NaN for a group that a row has not. `random_*`
    are the same of random sets of as many neurons in the same layers, `draw` by `draw`.
    """

    groups: tuple[str, ...]
    relative: Float[Tensor, "group layer batch"]
    turned: Float[Tensor, "group layer batch"]
    random_relative: Float[Tensor, "draw group layer batch"]
    random_turned: Float[Tensor, "draw group layer batch"]


@torch.no_grad()
def stream_change(
    model: HookedMLLM,
    inputs: Inputs,
    neurons: Neurons,
    *,
    value: float = 0.0,
    where: Bool[Tensor, "batch pos"] | None = None,
    groups: Sequence[str] = ("image", "text"),
    draws: int = 10,
    seed: int = 0,
) -> StreamChange:
    """Return how far holding `neurons` at `value` moves the stream before every block, and behind the last.

    They are held at the `where` positions (default: all); neurons of a tower take no `where` (ValueError). `groups` are as
    in `Inputs.mask`. One run is for the clean stream, which is kept, and one each for the neurons and every draw, whose
    stream is compared as it comes by.

    Source: Huo et al. 2024 (methods C9), a paragraph without a formula or code: both measures and the random sets are ours.
    """
    sets = [neurons, *(neurons.random_like(seed=seed * 1000 + draw) for draw in range(draws))]
    masks = torch.stack([inputs.mask(group) for group in groups])
    clean: list[Tensor] = []
    keep = feed(lambda resid, hook: clean.append(resid.clone()))
    model.next_logits(inputs, fwd_hooks=[(name, keep) for name in stream_points(model)])
    moved = [_moved(model, inputs, clean, masks, ablate(one, value=value, where=where)) for one in sets]
    relative, turned = (torch.stack(part) for part in zip(*moved, strict=True))
    return StreamChange(
        groups=tuple(groups),
        relative=relative[0],
        turned=turned[0],
        random_relative=relative[1:],
        random_turned=turned[1:],
        provenance=Provenance.record(
            model,
            (inputs.digest(),),
            seed=seed,
            analysis="stream_change",
            neurons=neurons.labels(),
            value=value,
            draws=draws,
        ),
    )


def _moved(
    model: HookedMLLM,
    inputs: Inputs,
    clean: Sequence[Float[Tensor, "batch pos d_model"]],
    masks: Bool[Tensor, "group batch pos"],
    edits: Sequence[Hook],
) -> tuple[Float[Tensor, "group layer batch"], Float[Tensor, "group layer batch"]]:
    """Return how far one run's stream is from the clean one, and by how much it is turned."""
    relative: list[Tensor] = []
    turned: list[Tensor] = []

    def compare(resid: Tensor, hook: Any) -> None:
        now, before = resid.float(), clean[len(relative)].float()
        least = torch.finfo(now.dtype).tiny  # a vector of zeros that stays one has not moved
        relative.append(_mean((now - before).norm(dim=-1) / before.norm(dim=-1).clamp(min=least), masks))
        apart = torch.nn.functional.normalize(now, dim=-1) - torch.nn.functional.normalize(before, dim=-1)
        turned.append(_mean((apart**2).sum(-1) / 2, masks))  # 1 - cos, without losing small ones to rounding

    model.next_logits(inputs, fwd_hooks=[*edits, *((name, feed(compare)) for name in stream_points(model))])
    return torch.stack(relative, 1), torch.stack(turned, 1)


def _mean(values: Float[Tensor, "batch pos"], masks: Bool[Tensor, "group batch pos"]) -> Float[Tensor, "group batch"]:
    """Return the mean over each group's positions, NaN where there are none."""
    own = masks.to(values.device)
    return (values.double().where(own, 0.0).sum(-1) / own.sum(-1)).float().cpu()
