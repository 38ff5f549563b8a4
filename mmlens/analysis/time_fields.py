"""When in a sound a neuron fires: receptive fields over seconds, their masks, and their overlap with an interval."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmlens.analysis.fields import read
from mmlens.grid import Timeline
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.results import Provenance, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class TimeField(Result):
    """Each neuron's activation over the positions of one sound, `timeline.step` seconds each; times its sign."""

    neurons: Neurons
    activations: Float[Tensor, "neuron position"]
    timeline: Timeline

    def mask(self, quantile: float = 0.95) -> Bool[Tensor, "neuron position"]:
        """Return the positions above the `quantile` of each neuron's own activations, so about 1 - quantile of them."""
        return self.activations > self.activations.quantile(quantile, dim=1, keepdim=True)

    def iou(self, start: float, stop: float, quantile: float = 0.95) -> Float[Tensor, " neuron"]:
        """Return the intersection over union of each neuron's mask with the time from `start` to `stop`, in seconds.

        A position that the interval cuts counts in part. Raises ValueError for an interval that does not run forward.
        """
        _check(start, stop)
        mask, step = self.mask(quantile).double(), self.timeline.step
        shared = step * mask @ self.timeline.overlap(start, stop)
        union = step * mask.sum(1) + (stop - start) - shared
        return (shared / union).float()

    def bound(self, start: float, stop: float, quantile: float = 0.95) -> float:
        """Return the largest overlap that a mask of this length can have with an interval of that length."""
        _check(start, stop)
        ours, theirs = (1 - quantile) * len(self.timeline) * self.timeline.step, stop - start
        return min(ours, theirs) / max(ours, theirs)


@torch.no_grad()
def time_field(
    model: HookedMLLM,
    inputs: Inputs,
    neurons: Neurons,
    *,
    row: int = 0,
    sound: int = 0,
    sign: Float[Tensor, " neuron"] | None = None,
) -> TimeField:
    """Return when in the `sound`-th sound of `row` each language-model neuron fires (site `post`).

    `sign` turns neurons over that act by firing negatively. Raises ValueError for neurons elsewhere and for a sound that the
    row does not have, or whose positions have no time. Ours, by analogy with `receptive_field`.
    """
    of_row = inputs.medium[row][inputs.mask("audio")[row]].unique()  # sorted; images and videos are numbered before
    medium = int(of_row[sound]) if 0 <= sound < len(of_row) else -1
    timeline = inputs.grids[row][medium] if medium >= 0 else None
    if not isinstance(timeline, Timeline):
        raise ValueError(
            f"row {row} has no sound {sound} whose positions have a time ({len(of_row)} sounds): choose another"
        )
    return TimeField(
        neurons=neurons,
        activations=read(model, inputs, neurons, inputs.medium[row] == medium, row=row, sign=sign),
        timeline=timeline,
        provenance=Provenance.record(model, (inputs.digest(),), analysis="time_field", row=row, sound=sound),
    )


def _check(start: float, stop: float) -> None:
    if not start < stop:
        raise ValueError(f"an interval begins before it ends, got {start} to {stop} seconds")
