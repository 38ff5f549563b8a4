"""What every neuron itself writes into the logit of a word, where that word is predicted."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlens.analysis.direct_attribution import directions
from mmlens.cache import gain
from mmlens.hooks import Hook, feed
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance, Result
from mmlens.stats.accumulator import Layers
from mmlens.targets import Targets


@dataclass(frozen=True, kw_only=True, repr=False)
class Contribution(Result):
    """What each neuron adds to the logit of each target on the direct path, and its activation where that is predicted.

    `scores` are in logits, before a soft cap. `activation` has the sign with which `decode` should read the neuron: one that
    is negative writes its row of W_out the other way round. `targets.mean(scores)` are the scores of words.
    """

    scores: Float[Tensor, "target layer unit"]
    activation: Float[Tensor, "target layer unit"]
    targets: Targets


@torch.no_grad()
def logit_contribution(
    model: HookedMLLM,
    inputs: Inputs,
    targets: Targets | Int[Tensor, " batch"],
    *,
    site: Literal["post", "gate_act"] = "post",
    norm: Literal["frozen"] | None = None,
) -> Contribution:
    """Return activation x (W_out @ W_U) of every neuron, at the position that predicts each target and for its token.

    `targets`: any tokens at any positions, or one token for each row, which its last position predicts. A norm between MLP
    and stream (Gemma 3) counts with its gain. With `norm="frozen"` all norms on the way are linear maps: their gain, the
    scale that they had in this run at that position, and, of a LayerNorm, the mean taken away; then the scores at `post` are
    those of `direct_logit_attribution(by="neuron")`, which add up to the logit with what everything else writes.

    Source: Pan et al. 2024 (methods B2), without a norm. Their release takes `site="gate_act"`, the gate's output before
    it is multiplied by the linear branch. Our default is `post`, what enters W_out: only that is what the neuron writes,
    with its sign (without a gate they are the same). What later layers make of what it writes is not in a score.

    One forward; then layers x d_mlp x d_model multiply-adds for each distinct token, and memory for targets x layers x
    units. Raises ValueError for a target that these inputs or this model do not have.
    """
    targets = targets if isinstance(targets, Targets) else Targets.last(model, inputs, _one_each(inputs, targets))
    where, place = _places(model, inputs, targets)
    tokens, column = targets.token.unique(return_inverse=True)
    read = directions(model, tokens) if norm == "frozen" else _columns(model.W_U, tokens)
    widths, layers = model.widths["language"], Layers.of(model.widths, ("language",), site)
    scores, activation = torch.zeros(2, len(targets), len(widths), max(widths))
    scales: dict[str, Tensor] = {}

    def neurons(layer: int) -> Hook:
        def add(values: Tensor) -> None:
            rows = model.W_out(layer).float()
            written = rows @ (read.to(rows) * _gain_behind(model, layer).to(rows)).T  # [unit, token]
            here = values[where.to(values.device)].float().cpu()[place]  # [target, unit]
            activation[:, layer, : widths[layer]] = here
            scores[:, layer, : widths[layer]] = here * written.T.cpu()[column]

        return layers.hook(model, "language", layer, add)

    def scale(name: str) -> Hook:
        return name, feed(lambda value, hook: scales.__setitem__(name, value.float().cpu()[place]), where=where)

    behind = {layer: f"blocks.{layer}.ln2_post.hook_scale" for layer in range(len(widths)) if is_sandwich(model, layer)}
    frozen = ["ln_final.hook_scale", *behind.values()] if norm == "frozen" else []
    model.next_logits(inputs, fwd_hooks=[*map(neurons, range(len(widths))), *map(scale, frozen)])
    if norm == "frozen":
        scores /= scales["ln_final.hook_scale"][:, :, None]
        for layer, name in behind.items():
            scores[:, layer] /= scales[name]
    return Contribution(
        scores=scores,
        activation=activation,
        targets=targets,
        provenance=Provenance.record(model, (inputs.digest(),), analysis="logit_contribution", site=site, norm=norm),
    )


def _one_each(inputs: Inputs, tokens: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    if tokens.shape != (len(inputs),):
        raise ValueError(f"tokens are one for each of {len(inputs)} rows, got {list(tokens.shape)}: give Targets for others")
    return tokens


def _columns(unembedding: Float[Tensor, "d_model d_vocab"], tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
    return unembedding[:, tokens.to(unembedding.device)].T.float()


def _places(model: HookedMLLM, inputs: Inputs, targets: Targets) -> tuple[Bool[Tensor, "batch pos"], Int[Tensor, " target"]]:
    """Return the positions at which anything is predicted, and which of them each target's is, row by row."""
    row, position, real = targets.row.cpu(), targets.position.cpu(), inputs.mask("all").cpu()
    vocabulary = model.W_U.shape[1]
    inside = (row >= 0) & (row < real.shape[0]) & (position >= 0) & (position < real.shape[1])
    known = (targets.token >= 0) & (targets.token < vocabulary)
    inside[inside.clone()] = real[row[inside], position[inside]]
    if len(wrong := (~(inside & known.cpu())).nonzero()):
        index = int(wrong[0])
        raise ValueError(
            f"a target is one of {vocabulary} tokens at a real position of {list(real.shape)}, got token "
            f"{int(targets.token[index])} at row {int(row[index])}, position {int(position[index])}: make targets from "
            "these inputs"
        )
    where = torch.zeros_like(real)
    where[row, position] = True
    return where, (where.flatten().cumsum(0) - 1).view(where.shape)[row, position]


def is_sandwich(model: HookedMLLM, layer: int) -> bool:
    """Return whether a norm stands between a layer's MLP and the stream."""
    return "ln2_post" in model.bridge.blocks[layer].submodules


def _gain_behind(model: HookedMLLM, layer: int) -> Tensor:
    return gain(model.bridge.blocks[layer].ln2_post).float() if is_sandwich(model, layer) else torch.ones(())
