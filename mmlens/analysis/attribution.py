"""Which neurons an answer depends on: gradient x activation of every neuron, in one forward and one backward."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlens.hooks import feed, neuron_hook
from mmlens.inputs import MEDIA, Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class Attribution(Result):
    """The score of every neuron for each row's target token.

    `scores` is in logits: activation times the gradient of the target's logit, over the positions that were asked for.
    With `reduce="max"`, `position` and `activation` say where the maximum was taken and what the neuron's activation was
    there (its sign is the sign with which `decode` should read the neuron).
    """

    scores: Float[Tensor, "batch layer unit"] | Float[Tensor, "batch layer pos unit"]
    position: Int[Tensor, "batch layer unit"] | None
    activation: Float[Tensor, "batch layer unit"] | None


def grad_x_activation(
    model: HookedMLLM,
    inputs: Inputs,
    tokens: Int[Tensor, " batch"],
    *,
    site: Literal["pre", "post"] = "post",
    where: Bool[Tensor, "batch pos"] | None = None,
    reduce: Literal["max", "sum"] | None = "max",
) -> Attribution:
    """Return activation x gradient of the logit of each row's token, which its last position predicts, for all neurons.

    `where` (default: the positions of images and other media) chooses the positions; `reduce` takes the largest or the
    sum over them, None keeps them all, [batch, layer, pos, unit]. At a gated MLP the score is the same number for the
    gate's output, the linear branch and their product `post`; only `pre` differs. Source: Schwettmann et al. 2023, eq. 2
    (methods A2, A3). Theirs is `site="pre"` (its literal reading); `post` is our default, since it is what ablation sets
    to zero.
    """
    where = inputs.mask(*MEDIA) if where is None else where
    if not bool(where.any(-1).all()):
        row = int((~where.any(-1)).nonzero()[0])
        raise ValueError(f"every row needs positions to attribute to, row {row} has none in `where` (no image in it?)")
    layers = range(len(model.widths["language"]))
    found: dict[int, tuple[Tensor, ...]] = {}
    hooks = [(neuron_hook("language", layer, site), feed(_scores(layer, where, reduce, found))) for layer in layers]
    start = torch.empty(0)

    def begin(resid: Tensor, hook: Any) -> Tensor:
        nonlocal start
        start = resid.detach().requires_grad_(True)  # nothing before block 0 needs a gradient
        return start

    with torch.enable_grad():
        logits = model.run_with_hooks(inputs, fwd_hooks=[("blocks.0.hook_resid_pre", begin), *hooks])
        logits[:, -1].gather(1, tokens[:, None].to(logits.device)).sum().backward(inputs=[start])
    stacked = [torch.stack(part, dim=1) for part in zip(*(found[layer] for layer in layers), strict=True)]
    return Attribution(
        scores=stacked[0],
        position=stacked[1] if reduce == "max" else None,
        activation=stacked[2] if reduce == "max" else None,
        provenance=Provenance.record(
            model, (inputs.digest(),), analysis="grad_x_activation", site=site, reduce=reduce, tokens=tokens.tolist()
        ),
    )


def _scores(layer: int, where: Tensor, reduce: Literal["max", "sum"] | None, found: dict[int, tuple[Tensor, ...]]) -> Any:
    """Return a sink that waits for the gradient of a layer's activations and keeps only the reduced scores."""

    def sink(activation: Tensor, hook: Any) -> None:
        wide = torch.promote_types(activation.dtype, torch.float32)  # sums over positions need more than bfloat16
        values = activation.detach().to(wide)

        def on_gradient(gradient: Tensor) -> None:
            scores = values * gradient.to(wide)
            found[layer] = tuple(part.cpu() for part in reduced(scores, values, where, reduce))

        activation.register_hook(on_gradient)

    return sink


def reduced(
    scores: Float[Tensor, "batch pos unit"],
    values: Float[Tensor, "batch pos unit"],
    where: Bool[Tensor, "batch pos"],
    reduce: Literal["max", "sum"] | None,
) -> tuple[Tensor, ...]:
    """Return scores over the `where` positions: all (0 elsewhere), their sum, or the largest with its position and value."""
    where = where[..., None].to(scores.device)
    if reduce is None:
        return (scores.where(where, 0.0),)
    if reduce == "sum":
        return (scores.where(where, 0.0).sum(1),)
    best, position = scores.where(where, -torch.inf).max(1)
    return best, position, values.gather(1, position[:, None])[:, 0]
