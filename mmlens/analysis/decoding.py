"""Which words a neuron writes: its output weights read by the unembedding."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlens.cache import gain
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.results import Provenance, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class Decoding(Result):
    """The top words of each neuron: `tokens`, how far it raises their logits per unit of activation, and as text."""

    neurons: Neurons
    tokens: Int[Tensor, "neuron k"]
    effects: Float[Tensor, "neuron k"]
    words: tuple[tuple[str, ...], ...]


@torch.no_grad()
def decode(model: HookedMLLM, neurons: Neurons, *, k: int = 10, sign: Float[Tensor, " neuron"] | None = None) -> Decoding:
    """Return the `k` tokens that each neuron's output raises most: the top of `W_out W_U`, no final norm, no bias.

    Where a norm stands between the MLP and the stream, its gain is in `W_out`, its scale is not: that depends on the input.
    `sign` (any numbers, their sign counts) reads a neuron as it acted: one that fires negatively promotes what its output
    weights lower, and gated activations are signed. Only tokens that the tokenizer has are returned. Raises ValueError for
    neurons of a tower, whose outputs are not in the stream. Source: Schwettmann et al. 2023, eq. 3 (methods A4).
    """
    outside = sorted(set(neurons.module) - {"language", "projector"})
    if outside:
        raise ValueError(f"only neurons that write into the stream read as words, got neurons of {', '.join(outside)}")
    if sign is not None and sign.shape != (len(neurons),):
        raise ValueError(f"one sign per neuron: {len(neurons)} neurons, got {list(sign.shape)}")
    W_U = model.W_U[:, : len(model.tokenizer)]
    directions = torch.empty(len(neurons), len(W_U), device=W_U.device)
    for (module, layer), indices in neurons.indices_by_layer().items():  # one read each: a quantised one is unpacked anew
        rows = model.W_out(layer, module)
        if module == "language" and "ln2_post" in model.bridge.blocks[layer].submodules:
            rows = rows * gain(model.bridge.blocks[layer].ln2_post).to(rows.device)
        directions[indices] = rows[neurons.unit[indices].to(rows.device)].to(directions)
    effects = directions @ W_U.float()
    if sign is not None:
        effects = effects * sign.sign().to(effects)[:, None]
    top, tokens = effects.topk(k, dim=-1)
    return Decoding(
        neurons=neurons,
        tokens=tokens.cpu(),
        effects=top.cpu(),
        words=tuple(tuple(model.to_str_tokens(row)) for row in tokens),
        provenance=Provenance.record(model, (), analysis="decode", k=k, signed=sign is not None),
    )
