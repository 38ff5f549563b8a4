"""How the last position becomes what it ends as, layer by layer: where it points, where it looks, what it would say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmlens.analysis.attention_rows import positions_of, read_rows
from mmlens.analysis.logit_lens import stream_points
from mmlens.hooks import Hook, ablate, feed
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.results import Provenance, Result, Storable

Curve = Literal["cosine", "centroids", "mass", "kl"]


@dataclass(frozen=True)
class Curves(Storable):
    """The last position through depth: row l of the layer axis enters block l, the last row leaves the last block.

    `cosine` is its similarity to its own final state; `centroids` that to each group's centroid (the mean direction of the
    group's other positions; NaN where there is none); `mass` the share of its attention, averaged over the heads of each
    block, that each group gets; `kl` the divergence (nats) of what it reads as, through the logit lens, from the output.
    """

    cosine: Float[Tensor, "layer batch"]
    centroids: Float[Tensor, "group layer batch"]
    mass: Float[Tensor, "group block batch"]
    kl: Float[Tensor, "layer batch"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Convergence(Result):
    """The last position's curves in the `clean` run, with neurons `ablated`, and with each `random` set of as many."""

    groups: tuple[str, ...]
    clean: Curves
    ablated: Curves | None
    random: tuple[Curves, ...]

    @property
    def cosine(self) -> Float[Tensor, "layer batch"]:
        """How similar each layer's last position is to where it ends up, in the clean run."""
        return self.clean.cosine

    def difference(self, curve: Curve) -> Float[Tensor, "..."]:
        """Return a curve with the neurons ablated less that of the clean run. Raises ValueError where none were."""
        if self.ablated is None:
            raise ValueError("a difference is between two runs: give last_token_convergence the `neurons` to ablate")
        return getattr(self.ablated, curve) - getattr(self.clean, curve)

    def random_difference(self, curve: Curve) -> Float[Tensor, "draw ..."]:
        """Return the same of the random sets, draw by draw. Raises ValueError where none were drawn."""
        if not self.random:
            raise ValueError(
                "random differences are of random sets: give last_token_convergence `neurons`, and draws above 0"
            )
        return torch.stack([getattr(one, curve) for one in self.random]) - getattr(self.clean, curve)


def last_token_convergence(
    model: HookedMLLM,
    inputs: Inputs,
    *,
    groups: Sequence[str] = ("image", "text", "special"),
    neurons: Neurons | None = None,
    value: float = 0.0,
    where: Bool[Tensor, "batch pos"] | None = None,
    draws: int = 10,
    seed: int = 0,
) -> Convergence:
    """Return how each row's last position converges, and, with `neurons`, how it does with them held at `value`.

    They are held there at the `where` positions (default: all). Ablated runs are compared to their own final state and
    output; beside them stand `draws` random sets of as many neurons in the same layers. Source: claim III of Huang et al.
    2024 (methods 4.h), whose code for it was not released; the definitions are ours.
    """
    sets = [] if neurons is None else [neurons, *(neurons.random_like(seed=seed * 1000 + draw) for draw in range(draws))]
    curves = [_curves(model, inputs, groups, ablate(one, value=value, where=where)) for one in sets]
    return Convergence(
        groups=tuple(groups),
        clean=_curves(model, inputs, groups, []),
        ablated=curves[0] if curves else None,
        random=tuple(curves[1:]),
        provenance=Provenance.record(
            model,
            (inputs.digest(),),
            seed=seed,
            analysis="last_token_convergence",
            neurons=None if neurons is None else neurons.labels(),
            value=value,
            draws=draws,
        ),
    )


@torch.no_grad()
def _curves(model: HookedMLLM, inputs: Inputs, groups: Sequence[str], edits: Sequence[Hook]) -> Curves:
    """Return the curves of one run: each layer is read as it comes by, and only its last position and centroids are kept."""
    masks = torch.stack([inputs.mask(group) & ~inputs.last() for group in groups])
    sizes = masks.sum(-1)
    last: list[Tensor] = []
    centroids: list[Tensor] = []
    mass: list[Tensor] = []

    def read(resid: Tensor, hook: Any) -> None:
        directions = torch.nn.functional.normalize(resid.float(), dim=-1)
        means = torch.einsum("gbp,bpd->gbd", masks.to(resid.device).float(), directions) / sizes.to(resid.device)[..., None]
        last.append(resid[:, -1].clone())
        centroids.append(torch.cosine_similarity(means, directions[:, -1], dim=-1).cpu())

    def look(layer: int, rows: Float[Tensor, "batch head 1 key"]) -> None:
        mass.append(torch.einsum("bk,gbk->gb", rows[:, :, 0].mean(1), masks.to(rows.device).float()).cpu())

    with model.hooks(fwd_hooks=[*edits, *((name, feed(read)) for name in stream_points(model))]):
        read_rows(model, inputs, positions_of(inputs.last()), look)
    states = torch.stack([state.to(last[-1].device) for state in last])
    read_as = torch.log_softmax(model.unembed(states).float(), dim=-1)
    output = read_as[-1]
    return Curves(
        cosine=torch.cosine_similarity(states.float(), states[-1].float(), dim=-1).cpu(),
        centroids=torch.stack(centroids, 1).masked_fill((sizes == 0).cpu()[:, None], torch.nan),
        mass=torch.stack(mass, 1),
        kl=(output.exp() * (output - read_as)).sum(-1).cpu(),
    )
