"""Which neurons an answer depends on: gradient x activation of every neuron, in one forward and one backward."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlens.hooks import Hook, feed, neuron_hook
from mmlens.inputs import MEDIA, Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance, Result

Reduce = Literal["max", "sum"] | None
Reduction = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True, repr=False)
class Attribution(Result):
    """The score of every neuron for each row's target token.

    `scores` is in logits: activation times the gradient of the target's logit, over the positions that were asked for.
    With `reduce="max"`, `position` and `activation` say where the maximum was taken and what the neuron's activation was
    there (its sign is the sign with which `decode` should read the neuron). Outside the language model, positions are
    counted among those that the module has for the row.
    """

    scores: Float[Tensor, "batch layer unit"] | Float[Tensor, "batch layer pos unit"]
    position: Int[Tensor, "batch layer unit"] | None
    activation: Float[Tensor, "batch layer unit"] | None


def grad_x_activation(
    model: HookedMLLM,
    inputs: Inputs,
    tokens: Int[Tensor, " batch"],
    *,
    module: str = "language",
    site: Literal["pre", "post"] = "post",
    where: Bool[Tensor, "batch pos"] | None = None,
    reduce: Reduce = "max",
) -> Attribution:
    """Return activation x gradient of the logit of each row's token, which its last position predicts, for all neurons.

    `where` (default: the positions of images and other media) chooses the positions; `reduce` takes the largest or the
    sum over them, None keeps them all, [batch, layer, pos, unit]. At a gated MLP the score is the same number for the
    gate's output, the linear branch and their product `post`; only `pre` differs. Source: Schwettmann et al. 2023, eq. 2
    (methods A2, A3). Theirs is `site="pre"` (its literal reading); `post` is our default, since it is what ablation sets
    to zero.

    `module`: the language model, or another of `model.widths` (ours), whose positions are its own, of each row those of the
    row's media, and always reduced; layers behind what the model reads from a tower score 0. Raises ValueError for a row
    without such positions, and for `where` or `reduce=None` outside the language model.
    """
    if module not in model.widths:
        raise ValueError(f"this model has neurons in {', '.join(model.widths)}, got {module!r}: choose among those")
    if module == "language":
        where = inputs.mask(*MEDIA) if where is None else where
        check_rows(where)
        reduction: Reduction = partial(reduced, where=where, reduce=reduce)
    elif where is not None or reduce is None:
        raise ValueError(f"positions of the stream are not those of {module}: leave `where` out, and take its max or sum")
    else:
        reduction = partial(_by_row, inputs, module, reduce)
    layers, found, starts = range(len(model.widths[module])), dict[int, tuple[Tensor, ...]](), list[Tensor]()

    def begin(resid: Tensor, hook: Any) -> Tensor:
        starts.append(resid.detach().requires_grad_(True))  # nothing before it needs a gradient
        return starts[-1]

    hooks: list[Hook] = [(name, begin) for name in _entrances(module, len(layers))]
    for layer in layers:
        sink = _scores(layer, reduction, found, idle=module != "language")
        hooks.append((neuron_hook(module, layer, site), feed(sink)))
    with torch.enable_grad():
        logits = model.next_logits(inputs, fwd_hooks=hooks)
        logits.gather(1, tokens[:, None].to(logits.device)).sum().backward(inputs=starts)
    stacked = [torch.stack(part, dim=1) for part in zip(*(found[layer] for layer in layers), strict=True)]
    return Attribution(
        scores=stacked[0],
        position=stacked[1] if reduce == "max" else None,
        activation=stacked[2] if reduce == "max" else None,
        provenance=Provenance.record(
            model,
            (inputs.digest(),),
            analysis="grad_x_activation",
            module=module,
            site=site,
            reduce=reduce,
            tokens=tokens.tolist(),
        ),
    )


def check_rows(where: Bool[Tensor, "batch pos"]) -> None:
    """Raise ValueError where a row has no position in `where`."""
    if not bool(where.any(-1).all()):
        row = int((~where.any(-1)).nonzero()[0])
        raise ValueError(f"every row needs positions to attribute to, row {row} has none in `where` (no image in it?)")


def reduced(
    scores: Float[Tensor, "batch pos unit"],
    values: Float[Tensor, "batch pos unit"],
    *,
    where: Bool[Tensor, "batch pos"],
    reduce: Reduce,
) -> tuple[Tensor, ...]:
    """Return scores over the `where` positions: all (0 elsewhere), their sum, or the largest with its position and value."""
    where = where[..., None].to(scores.device)
    if reduce is None:
        return (scores.where(where, 0.0),)
    if reduce == "sum":
        return (scores.where(where, 0.0).sum(1),)
    best, position = scores.where(where, -torch.inf).max(1)
    return best, position, values.gather(1, position[:, None])[:, 0]


def _by_row(
    inputs: Inputs, module: str, reduce: Reduce, scores: Float[Tensor, "*vector unit"], values: Float[Tensor, "*vector unit"]
) -> tuple[Tensor, ...]:
    """Return each row's scores over the vectors that a module has for it."""
    rows, _ = inputs.held(module, scores.shape[:-1])
    own = rows.flatten() == torch.arange(len(inputs), device=rows.device)[:, None]  # [batch, vector]
    check_rows(own)
    scores, values = scores.flatten(0, -2), values.flatten(0, -2)
    each = [(scores[here][None], values[here][None]) for here in own.to(scores.device)]
    parts = [reduced(*one, where=torch.ones_like(one[0][..., 0], dtype=torch.bool), reduce=reduce) for one in each]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _entrances(module: str, depth: int) -> list[str]:
    """Return the points through which everything comes that a module's neurons are computed from."""
    if module == "deepstack":  # side by side, not one after the other
        return [f"deepstack.{layer}.hook_in" for layer in range(depth)]
    prefix = {"language": "", "qformer_text": "qformer."}.get(module, f"{module}.")  # its words share the queries' stream
    return ["projector.hook_in" if module == "projector" else f"{prefix}blocks.0.hook_resid_pre"]


def _scores(layer: int, reduction: Reduction, found: dict[int, tuple[Tensor, ...]], *, idle: bool) -> Any:
    """Return a sink that waits for the gradient of a layer's activations and keeps only the reduced scores.

    `idle`: there may be none, where nothing reads the layer.
    """

    def sink(activation: Tensor, hook: Any) -> None:
        wide = torch.promote_types(activation.dtype, torch.float32)  # sums over positions need more than bfloat16
        values = activation.detach().to(wide)

        def keep(gradient: Tensor) -> None:
            found[layer] = tuple(part.cpu() for part in reduction(values * gradient.to(wide), values))

        if idle:
            keep(torch.zeros_like(values))
        activation.register_hook(keep)

    return sink
