"""What happens to the answer as more and more neurons are switched off, beside as many random ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
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
from mmlens.targets import Targets


@dataclass(frozen=True, kw_only=True, repr=False)
class AblationCurve(Result):
    """The target's log-probability (nats) and the predicted token, with the first `ks[i]` neurons switched off.

    `random_*` are the same for `draw` random sets of as many neurons in the same layers, none of them among the neurons.
    """

    neurons: Neurons
    ks: tuple[int, ...]
    log_prob: Float[Tensor, "k target"]
    predicted: Int[Tensor, "k target"]
    random_log_prob: Float[Tensor, "draw k target"]
    random_predicted: Int[Tensor, "draw k target"]

    def change(self) -> Float[Tensor, "k target"]:
        """Return the relative change of each target's probability: 0 is none, -1 that nothing is left of it.

        Raises ValueError where 0 is not among `ks`, the model as it is.
        """
        return torch.expm1(self.log_prob - self._whole())

    def random_change(self) -> Float[Tensor, "draw k target"]:
        """Return the relative change under each random draw, as `change` does."""
        return torch.expm1(self.random_log_prob - self._whole())

    def _whole(self) -> Float[Tensor, " target"]:
        if 0 not in self.ks:
            raise ValueError(f"a change is from the model as it is: give 0 among ks, got {list(self.ks)}")
        return self.log_prob[self.ks.index(0)]


@dataclass(frozen=True, kw_only=True, repr=False)
class AblationConditions(Result):
    """Two curves, of all neurons and of the interpretable ones among them, each with its random controls."""

    all: AblationCurve
    interpretable: AblationCurve

    def table(self) -> pd.DataFrame:
        """Return the mean relative change of the targets' probabilities for each k, under three conditions.

        `random` is for as many random neurons of the same layers as `all` has, `random_low` to `random_high` from the lowest
        draw's mean to the highest. NaN where there are fewer interpretable ones than k.
        """
        draws = self.all.random_change().mean(-1)
        columns = {
            "all": self.all.change().mean(-1),
            "random": draws.mean(0),
            "random_low": draws.amin(0),
            "random_high": draws.amax(0),
        }
        found = pd.DataFrame(
            {name: values.numpy() for name, values in columns.items()}, index=pd.Index(self.all.ks, name="k")
        )
        few = pd.Series(self.interpretable.change().mean(-1).numpy(), index=list(self.interpretable.ks))
        found.insert(1, "interpretable", few.reindex(found.index))
        return found


@torch.no_grad()
def ablation_curve(
    model: HookedMLLM,
    inputs: Inputs,
    tokens: Int[Tensor, " batch"] | Targets,
    neurons: Neurons,
    *,
    ks: Sequence[int],
    where: Bool[Tensor, "batch pos"] | None = None,
    value: float = 0.0,
    draws: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> AblationCurve:
    """Return how the prediction of `tokens` falls as the first k `neurons` are held at `value`.

    `tokens`: one for each row, which its last position predicts, or `Targets` anywhere in the rows, such as the nouns of a
    caption with the inputs that `targets.nouns` returns beside them.
    `where` defaults to the positions of images and other media. Every k has `draws` random controls matched by layer.
    k = 0 is the model itself. Source: Schwettmann et al. 2023, section 3.3 (methods A11), who ablate at all positions
    (`where=None` there is `inputs.mask("all")` here).
    """
    if not ks or max(ks) > len(neurons):
        raise ValueError(f"ks are numbers of neurons from 0 to {len(neurons)}, got {list(ks)}")
    where = inputs.mask(*MEDIA) if where is None else where
    targets = tokens if isinstance(tokens, Targets) else Targets.last(model, inputs, tokens)
    top = neurons[: max(ks)]
    sets = [neurons[:k] for k in ks]
    for draw in range(draws):
        sets += [neurons[:k].random_like(seed=seed * 1000 + draw, exclude=top) for k in ks]
    runs = [
        _outcome(model, inputs, targets, chosen, where, value) for chosen in tqdm(sets, "ablating", disable=not progress)
    ]
    log_prob, predicted = (torch.stack(part).unflatten(0, (draws + 1, len(ks))) for part in zip(*runs, strict=True))
    return AblationCurve(
        neurons=neurons,
        ks=tuple(ks),
        log_prob=log_prob[0],
        predicted=predicted[0],
        random_log_prob=log_prob[1:],
        random_predicted=predicted[1:],
        provenance=Provenance.record(
            model,
            (inputs.digest(),),
            seed=seed,
            analysis="ablation_curve",
            value=value,
            draws=draws,
            tokens=targets.token.tolist(),
        ),
    )


def ablation_conditions(
    model: HookedMLLM,
    inputs: Inputs,
    tokens: Int[Tensor, " batch"] | Targets,
    neurons: Neurons,
    interpretable: Bool[Tensor, " neuron"],
    *,
    ks: Sequence[int],
    **options: Any,
) -> AblationConditions:
    """Return the curves of all `neurons`, of those that are `interpretable`, and of random ones beside either.

    `interpretable` says which of the neurons are (`interpretable(decode(model, neurons))`); of them, only the `ks` that they
    have are tried. 0 is among `ks`. `options` are those of `ablation_curve`. Raises ValueError for another number of flags.

    Source: Schwettmann et al. 2023, section 3.3 and S.5 (methods A11): k = 0, 50, ..., 6400, at all positions. Their random
    condition is one draw in the layers of all neurons; here each condition has draws in layers of its own.
    """
    if len(interpretable) != len(neurons):
        raise ValueError(f"one flag says whether each neuron is interpretable, got {len(interpretable)} for {len(neurons)}")
    if 0 not in ks:
        raise ValueError(f"a change is from the model as it is: give 0 among ks, got {list(ks)}")
    some = neurons[interpretable.nonzero()[:, 0].tolist()]
    every = ablation_curve(model, inputs, tokens, neurons, ks=ks, **options)
    fewer = [k for k in ks if k <= len(some)]
    return AblationConditions(
        all=every,
        interpretable=ablation_curve(model, inputs, tokens, some, ks=fewer, **options),
        provenance=every.provenance,
    )


def _outcome(
    model: HookedMLLM, inputs: Inputs, targets: Targets, neurons: Neurons, where: Tensor, value: float
) -> tuple[Tensor, Tensor]:
    logits = model.run_with_hooks(inputs, fwd_hooks=ablate(neurons, value=value, where=where))
    logits = logits[targets.row.to(logits.device), targets.position.to(logits.device)]
    return metrics.log_prob(logits[:, None], targets.token).cpu(), logits.argmax(-1).cpu()
