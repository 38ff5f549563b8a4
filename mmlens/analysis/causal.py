"""What single neurons do: how far an answer's logit falls without each of them."""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mmlens.analysis.replay import Edit, record
from mmlens.hooks import ablate, neuron_hook
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.results import Provenance, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class CausalScore(Result):
    """How far the logit of each row's target falls where one of `neurons` is zero: below 0 where it rises.

    `fall` is in logits, a column for each neuron; `logit` is the target's with all neurons on.
    """

    neurons: Neurons
    fall: Float[Tensor, "batch neuron"]
    logit: Float[Tensor, " batch"]

    def scores(self, module: str = "language") -> Float[Tensor, "batch layer unit"]:
        """Return `fall` as the other scores come: NaN for neurons that were not tried, 0 beyond a layer's width.

        Raises KeyError for a module that the model does not have.
        """
        widths = self.neurons.widths[module]
        table = self.fall.new_full((len(self.fall), len(widths), max(widths)), torch.nan)
        for layer, width in enumerate(widths):
            table[:, layer, width:] = 0
        for (of, layer), indices in self.neurons.indices_by_layer().items():
            if of == module:
                table[:, layer, self.neurons.unit[indices]] = self.fall[:, indices]
        return table


@torch.no_grad()
def causal_score(
    model: HookedMLLM,
    inputs: Inputs,
    tokens: Int[Tensor, " batch"],
    neurons: Neurons,
    *,
    where: Bool[Tensor, "batch pos"] | None = None,
    chunk: int = 2048,
    progress: bool = False,
) -> CausalScore:
    """Return how far the logit of each row's token, which its last position predicts, falls without each neuron.

    Every one of `neurons` is set to zero by itself, at the `where` positions (default: everywhere), and all others stay on:
    what they do together is not in it. Exact. Of the language model only what the neuron can reach is computed again, about
    `chunk` positions at a time; a neuron of a tower costs a whole run. Positive scores are of neurons that speak for the
    token, as in the other scores; in half precision, small ones drown in the rounding of logits. Raises ValueError where a
    tower's neurons are given with `where`, and what `record` raises. Source: single-unit ablation (Morcos et al. 2018); as a
    score beside the others it is ours.
    """
    if tokens.shape != (len(inputs),):
        raise ValueError(f"tokens are one for each of {len(inputs)} rows, got {list(tokens.shape)}")
    if where is not None and not where.any():
        raise ValueError("neurons are set to zero somewhere, got `where` without a position: leave it out for everywhere")
    replay = record(model, inputs)
    logit = _target(replay.logits, tokens)
    found = logit.new_zeros(len(inputs), len(neurons))
    inside = [number for number, module in enumerate(neurons.module) if module == "language"]
    edits = [_without(*neuron, where, replay.starts) for neuron in neurons[inside]]
    with tqdm(total=len(neurons), desc="switching off", disable=not progress) as bar:
        for number, _, logits in replay.edited(edits, last=True, chunk=chunk):
            found[:, inside[number]] = _target(logits, tokens)
            bar.update()
        for number in sorted(set(range(len(neurons))) - set(inside)):
            logits = model.run_with_hooks(inputs, fwd_hooks=ablate(neurons[[number]], where=where))
            found[:, number] = _target(logits, tokens)
            bar.update()
    return CausalScore(
        neurons=neurons,
        fall=logit[:, None] - found,
        logit=logit,
        provenance=Provenance.record(model, (inputs.digest(),), analysis="causal_score", tokens=tokens.tolist()),
    )


def _target(logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return the last position's logit of each row's token, on the CPU and in float32 or more."""
    chosen = logits[:, -1].gather(1, tokens[:, None].to(logits.device))[:, 0]
    return chosen.to("cpu", torch.promote_types(chosen.dtype, torch.float32))


def _without(module: str, layer: int, unit: int, where: Tensor | None, starts: Int[Tensor, " pos"]) -> Edit:
    """Return the edit in which a neuron of the language model is zero."""
    columns = torch.arange(len(starts)) if where is None else where.any(0).nonzero()[:, 0].cpu()
    return Edit(
        layer=layer,
        span=(int(columns[0]), int(columns[-1]) + 1),
        start=int(starts[columns].min()),
        changes={neuron_hook(module, layer, "post"): partial(_silence, unit, where)},
    )


def _silence(unit: int, where: Tensor | None, activation: Tensor, stop: int) -> None:
    """Set a unit of an activation of positions up to `stop` to zero."""
    values = activation[..., unit]
    here = True if where is None else where[:, stop - values.shape[1] : stop].to(values.device)
    values.masked_fill_(torch.as_tensor(here, device=values.device), 0.0)
