"""What happens to the answer as more and more neurons are switched off, beside as many random ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mmlens import metrics
from mmlens.hooks import ablate
from mmlens.inputs import MEDIA, Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.results import Provenance, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class AblationCurve(Result):
    """The target's log-probability (nats) and the predicted token, with the first `ks[i]` neurons switched off.

    `random_*` are the same for `draw` random sets of as many neurons in the same layers, none of them among the neurons.
    """

    neurons: Neurons
    ks: tuple[int, ...]
    log_prob: Float[Tensor, "k batch"]
    predicted: Int[Tensor, "k batch"]
    random_log_prob: Float[Tensor, "draw k batch"]
    random_predicted: Int[Tensor, "draw k batch"]


@torch.no_grad()
def ablation_curve(
    model: HookedMLLM,
    inputs: Inputs,
    tokens: Int[Tensor, " batch"],
    neurons: Neurons,
    *,
    ks: Sequence[int],
    where: Bool[Tensor, "batch pos"] | None = None,
    value: float = 0.0,
    draws: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> AblationCurve:
    """Return how the prediction of `tokens` at the last position falls as the first k `neurons` are held at `value`.

    `where` defaults to the positions of images and other media. Every k has `draws` random controls matched by layer.
    k = 0 is the model itself. Source: Schwettmann et al. 2023, section 3.3 (methods A11), who ablate at all positions
    (`where=None` there is `inputs.mask("all")` here).
    """
    if not ks or max(ks) > len(neurons):
        raise ValueError(f"ks are numbers of neurons from 0 to {len(neurons)}, got {list(ks)}")
    where = inputs.mask(*MEDIA) if where is None else where
    top = neurons[: max(ks)]
    sets = [neurons[:k] for k in ks]
    for draw in range(draws):
        sets += [neurons[:k].random_like(seed=seed * 1000 + draw, exclude=top) for k in ks]
    runs = [_outcome(model, inputs, tokens, chosen, where, value) for chosen in tqdm(sets, "ablating", disable=not progress)]
    log_prob, predicted = (torch.stack(part).unflatten(0, (draws + 1, len(ks))) for part in zip(*runs, strict=True))
    return AblationCurve(
        neurons=neurons,
        ks=tuple(ks),
        log_prob=log_prob[0],
        predicted=predicted[0],
        random_log_prob=log_prob[1:],
        random_predicted=predicted[1:],
        provenance=Provenance.record(
            model, (inputs.digest(),), seed=seed, analysis="ablation_curve", value=value, draws=draws, tokens=tokens.tolist()
        ),
    )


def _outcome(
    model: HookedMLLM, inputs: Inputs, tokens: Tensor, neurons: Neurons, where: Tensor, value: float
) -> tuple[Tensor, Tensor]:
    logits = model.run_with_hooks(inputs, fwd_hooks=ablate(neurons, value=value, where=where))
    return metrics.log_prob(logits, tokens).cpu(), logits[:, -1].argmax(-1).cpu()
