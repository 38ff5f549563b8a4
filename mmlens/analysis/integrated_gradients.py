"""Which neurons an answer depends on, all the way: gradients integrated while a layer's neurons rise from zero."""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mmlens.analysis.attribution import Attribution, check_rows, reduced
from mmlens.analysis.contribution import is_sandwich
from mmlens.analysis.replay import Edit, Replay, record
from mmlens.hooks import neuron_hook
from mmlens.inputs import MEDIA, Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance

SLOWLY = 6  # below a norm nearly all happens where the share is as small as the norm's epsilon


def integrated_gradients(
    model: HookedMLLM,
    inputs: Inputs,
    tokens: Int[Tensor, " batch"],
    *,
    site: Literal["pre", "post"] = "post",
    where: Bool[Tensor, "batch pos"] | None = None,
    reduce: Literal["max", "sum"] | None = "sum",
    steps: int = 20,
    chunk: int = 2048,
    progress: bool = False,
) -> Attribution:
    """Return activation x the gradient's mean on the way from zero to it, of the logit of each row's token, for all neurons.

    Layer by layer: the neurons of one layer, at the `where` positions (default: those of images and other media), are put at
    u = (step + 1/2) / `steps` of their activation together, all else is as in the model. Where a norm stands between MLP and
    stream (Gemma 3), which undoes a share until it is next to nothing, they are put at u^6, and gradients weighed for it.
    `reduce` is that of `grad_x_activation`, and the result's `scores` have its shapes and units. Summed over units and
    positions, a layer's scores come to the logit less what it is with all these neurons at zero, as `steps` grow. So, unlike
    the gradient at the end of the way alone, they see what has saturated there, as two neurons of which each is enough.

    Costs a forward, and for each layer and step a forward and a backward of the blocks from that layer on, about `chunk`
    positions at a time. Raises ValueError where a row has no position in `where`, for no steps, and what `record` raises.
    Source: Sundararajan et al. 2017, eq. 3 (at midpoints, not at ends); Dai et al. 2022, eq. 2, who integrate each neuron of
    one position by itself and probabilities (a layer together, many positions and logits are ours).
    """
    where = inputs.mask(*MEDIA) if where is None else where
    check_rows(where)
    if steps < 1:
        raise ValueError(f"gradients are integrated over 1 step or more, got {steps}: more steps are more exact")
    replay, found = record(model, inputs), list[tuple[Tensor, ...]]()
    for layer in tqdm(range(model.cfg.n_layers), "integrating", disable=not progress):
        values, gradient = _integrated(replay, layer, neuron_hook("language", layer, site), where, tokens, steps, chunk)
        whole = values.new_zeros(2, *where.shape, values.shape[-1])
        whole[:, where.to(values.device)] = torch.stack([values * gradient, values])
        found.append(tuple(part.cpu() for part in reduced(whole[0], whole[1], where=where, reduce=reduce)))
    stacked = [torch.stack(part, dim=1) for part in zip(*found, strict=True)]
    return Attribution(
        scores=stacked[0],
        position=stacked[1] if reduce == "max" else None,
        activation=stacked[2] if reduce == "max" else None,
        provenance=Provenance.record(
            model,
            (inputs.digest(),),
            analysis="integrated_gradients",
            site=site,
            reduce=reduce,
            steps=steps,
            tokens=tokens.tolist(),
        ),
    )


def _integrated(
    replay: Replay, layer: int, name: str, where: Tensor, tokens: Tensor, steps: int, chunk: int
) -> tuple[Float[Tensor, "place unit"], Float[Tensor, "place unit"]]:
    """Return a layer's activations at the `where` positions, and the mean gradient on the way to them."""
    rows, length = where.shape
    most, rising, total = max(1, chunk // (rows * length)), _Rising(where), torch.zeros(())
    power = SLOWLY if is_sandwich(replay.model, layer) else 1
    ups = (torch.arange(steps) + 0.5) / steps
    shares, weights = ups**power, ups ** (power - 1) / (ups ** (power - 1)).sum()
    for some, weight in zip(shares.split(most), weights.split(most), strict=True):
        rising.leaves.clear()
        edits = [Edit(layer, (0, length), 0, {name: partial(rising.put, float(share))}) for share in some]
        with torch.enable_grad():
            logits = replay.model.unembed(replay.onward(layer, edits)[:, -1])
            chosen = logits.gather(1, tokens.to(logits.device).repeat(len(some))[:, None])
            gradients = torch.autograd.grad(chosen.sum(), rising.leaves)
        for gradient, own in zip(gradients, weight.tolist(), strict=True):
            total = total.to(rising.values) + own * gradient.to(rising.values)
    return rising.values, total


@dataclass
class _Rising:
    """Activations at some positions of several runs, put at shares of what they are: `leaves`, which get gradients."""

    where: Bool[Tensor, "batch pos"]
    leaves: list[Float[Tensor, "place unit"]] = field(default_factory=list)
    values: Float[Tensor, "place unit"] = field(default_factory=lambda: torch.zeros(0, 0))

    def put(self, share: float, activation: Float[Tensor, "batch pos unit"], stop: int) -> None:
        """Set a run's activation to a share of itself, in place."""
        here = self.where.to(activation.device)
        own = activation.detach()[here]
        self.leaves.append((share * own).requires_grad_())
        self.values = own.to(torch.promote_types(own.dtype, torch.float32))  # sums need more than bfloat16
        activation[here] = self.leaves[-1]
