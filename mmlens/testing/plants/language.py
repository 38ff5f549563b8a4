"""The language model's weights: a random background, the wires on top, and the twin in which every wire is led astray."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmlens.testing.plants.circuits import Wire
from mmlens.testing.plants.layout import NOTHING, QUESTIONS, background

CONST, SPREAD = 30.0, 0.3  # the constant coordinate, and the standard deviation of a background one
LOGIT, DEFAULT, FILLER = 12.0, 6.0, 3.0  # logits of a word that is said, of "nothing"; how far the other words' spread
QUIET = 0.01  # what is left of the background in a vector that is wired


def grow(model: Any, tokenizer: Any, layout: dict[str, int], generator: torch.Generator) -> None:
    """Fill the language model with small random units and heads, and with embeddings and norms of the layout.

    Norms divide by what the constant makes of every position and so leave all coordinates as they are named; the constant
    itself reads as 1. The background reads little of the named coordinates and writes little to them.
    """
    decoder, d_model = model.get_decoder(), model.get_input_embeddings().weight.shape[1]
    hidden, named, const = background(layout, d_model), torch.tensor(list(layout.values())), layout["const"]

    def spread(weight: Tensor, unnamed: float, others: float, constant: float, *, writes: bool = False) -> None:
        columns = weight.T if writes else weight
        fresh = torch.empty(columns.shape)
        for places, deviation in ((hidden, unnamed), (named, others), (const, constant)):
            fresh[:, places] = torch.randn(fresh[:, places].shape, generator=generator) * deviation
        columns.copy_(fresh)

    unit = 1 / (SPREAD * len(hidden) ** 0.5)  # a row of this spread reads a standard normal number
    for layer in decoder.layers:
        spread(layer.mlp.gate_proj.weight, 0.7 * unit, 0.1, 0.3)
        spread(layer.mlp.up_proj.weight, 0.7 * unit, 0.1, 0.3)
        spread(layer.mlp.down_proj.weight, 0.02, 0.003, 0.0, writes=True)
        for matrix in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            spread(matrix.weight, 0.5 * unit, 0.1, 0.0)
        spread(layer.self_attn.v_proj.weight, 0.5 * unit, 0.05, 0.0)
        spread(layer.self_attn.o_proj.weight, 0.02, 0.003, 0.0, writes=True)
        layer.self_attn.v_proj.weight[:, layout["bos"]] = 0.0  # a head that rests moves nothing
    rms = ((CONST**2 + SPREAD**2 * len(hidden) + 4) / d_model) ** 0.5
    for name, gain in decoder.named_parameters():
        if "norm" in name:
            gain.fill_(rms)
            gain[const] = rms / CONST
    _embed(model.get_input_embeddings().weight, tokenizer, layout, hidden, generator)
    _unembed(model.get_output_embeddings().weight, tokenizer, layout, hidden, generator)


def wire(model: Any, wires: Sequence[Wire], layout: dict[str, int]) -> None:
    """Write the wires into the language model: what they name, over a whisper of the background."""
    weights = dict(model.get_decoder().named_parameters())
    for one in wires:
        vector = _vector(weights, one)
        vector.mul_(QUIET)
        for name, value in one.values.items():
            vector[layout[name]] = value


def scramble(model: Any, wires: Sequence[Wire], layout: dict[str, int], generator: torch.Generator) -> None:
    """Lead every wire astray: what it has at a named coordinate changes places with what it has at a background one.

    The constant stays, so thresholds do. Every vector of every weight keeps its values, in another order.
    """
    weights = dict(model.get_decoder().named_parameters())
    for one in wires:
        vector = _vector(weights, one)
        hidden = background(layout, len(vector))
        here = torch.tensor([layout[name] for name in one.values if name != "const"], dtype=torch.long)
        there = hidden[torch.randperm(len(hidden), generator=generator)[: len(here)]]
        vector[torch.cat([here, there])] = vector[torch.cat([there, here])]


def _vector(weights: dict[str, Tensor], one: Wire) -> Tensor:
    return weights[one.weight][:, one.index] if one.writes else weights[one.weight][one.index]


def _embed(weight: Tensor, tokenizer: Any, layout: dict[str, int], hidden: Tensor, generator: torch.Generator) -> None:
    special = set(tokenizer.all_special_ids)
    weight.zero_()
    weight[:, layout["const"]] = CONST
    for token in range(len(tokenizer)):
        if token == tokenizer.bos_token_id:
            weight[token, layout["bos"]] = 1.0
            continue
        weight[token, hidden] = torch.randn(len(hidden), generator=generator) * SPREAD
        weight[token, layout["text"]] = float(token not in special)
    for word in QUESTIONS:
        weight[tokenizer.convert_tokens_to_ids(word), layout[f"ask:{word}"]] = 1.0


def _unembed(weight: Tensor, tokenizer: Any, layout: dict[str, int], hidden: Tensor, generator: torch.Generator) -> None:
    weight.zero_()
    deviation = FILLER / len(hidden) ** 0.5
    weight[:, hidden] = torch.randn(len(weight), len(hidden), generator=generator) * deviation
    for name, place in layout.items():
        if name.startswith("say:"):
            token = tokenizer.convert_tokens_to_ids(name.removeprefix("say:"))
            weight[token, hidden], weight[token, place] = 0.0, LOGIT
    nothing = tokenizer.convert_tokens_to_ids(NOTHING)
    weight[nothing, hidden], weight[nothing, layout["const"]] = 0.0, DEFAULT
