"""How well neurons' fields cover the object, concept by concept, beside random neurons and what is possible at all."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from mmlens.analysis.fields import Heat, receptive_field
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.results import Provenance, Result


@dataclass(frozen=True, eq=False)
class Region:
    """One picture (the `image`-th of a row of `inputs`), the pixels of a concept on it, and neurons that should find it.

    `sign`: with which sign each neuron acts, where that may be negative (gated MLPs); its random partner is turned over too.
    """

    concept: str
    inputs: Inputs
    mask: Bool[Tensor, "height width"]
    neurons: Neurons
    sign: Float[Tensor, " neuron"] | None = None
    row: int = 0
    image: int = 0


@dataclass(frozen=True, kw_only=True, repr=False)
class ConceptOverlap(Result):
    """Intersection over union of fields and objects, of each example: the numbers behind a table and its intervals.

    `iou` is the mean over an example's neurons, `average_iou` that of their average map. `random_*` are the same for as many
    random neurons of the same layers, drawn anew for each example. `bound` is the largest overlap that the object's size
    allows, `area` the object's share of the picture.
    """

    concepts: tuple[str, ...]
    iou: Float[Tensor, " example"]
    average_iou: Float[Tensor, " example"]
    random_iou: Float[Tensor, "draw example"]
    random_average_iou: Float[Tensor, "draw example"]
    bound: Float[Tensor, " example"]
    area: Float[Tensor, " example"]

    def table(self) -> pd.DataFrame:
        """Return means over the `n` examples of each concept, and over all examples (`all`).

        `random` is the mean over draws, `random_low` to `random_high` from the lowest draw's mean to the highest;
        `of_bound` is the mean of what each example reaches of its bound.
        """
        names = [*dict.fromkeys(self.concepts), "all"]
        return pd.DataFrame([self._means(name) for name in names], index=pd.Index(names, name="concept"))

    def _means(self, concept: str) -> dict[str, float | int]:
        here = torch.tensor([concept in (own, "all") for own in self.concepts])
        draws = self.random_iou[:, here].mean(1)
        return {
            "n": int(here.sum()),
            "iou": float(self.iou[here].mean()),
            "random": float(draws.mean()),
            "random_low": float(draws.min()),
            "random_high": float(draws.max()),
            "average_iou": float(self.average_iou[here].mean()),
            "random_average": float(self.random_average_iou[:, here].mean()),
            "bound": float(self.bound[here].mean()),
            "of_bound": float((self.iou / self.bound)[here].mean()),
            "area": float(self.area[here].mean()),
        }


def concept_overlap(
    model: HookedMLLM,
    regions: Iterable[Region],
    *,
    quantile: float = 0.95,
    draws: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> ConceptOverlap:
    """Return how far the fields of each region's neurons overlap its mask, beside `draws` random sets of the same layers.

    One forward for each region. A field covers 1 - `quantile` of the picture whatever the object's size, so an overlap is
    to be read beside its bound. Raises ValueError where there is no region, where a mask is empty, and without draws.

    Source: Schwettmann et al. 2023, Fig. 5 (methods A7): pictures of a category that have one annotated object of it. How
    many neurons enter their means is not said; here it is all that are given. The bound and the average maps are ours.
    """
    if draws < 1:
        raise ValueError(f"an overlap is compared with at least one random draw, got draws = {draws}")
    found: list[Tensor] = []
    concepts: list[str] = []
    digests: list[str] = []
    for number, region in enumerate(tqdm(regions, "mapping", disable=not progress)):
        found.append(_overlaps(model, region, quantile, draws, seed=(seed * 1_000_000 + number) * 1000))
        concepts.append(region.concept)
        digests.append(region.inputs.digest())
    if not found:
        raise ValueError("overlaps are of one region or more, got none")
    values = torch.stack(found, dim=-1)
    return ConceptOverlap(
        concepts=tuple(concepts),
        iou=values[0],
        average_iou=values[1],
        random_iou=values[2 : 2 + draws],
        random_average_iou=values[2 + draws : 2 + 2 * draws],
        bound=values[-2],
        area=values[-1],
        provenance=Provenance.record(
            model, tuple(digests), seed=seed, analysis="concept_overlap", quantile=quantile, draws=draws
        ),
    )


def _overlaps(model: HookedMLLM, region: Region, quantile: float, draws: int, *, seed: int) -> Float[Tensor, " number"]:
    """Return a region's overlap and its average map's, those of every draw, its bound and its area."""
    if not region.mask.any():
        raise ValueError(f"an object has one pixel or more, a mask of {region.concept!r} has none: leave it out")
    own, mask = region.neurons, region.mask.cpu()
    sign = torch.ones(len(own)) if region.sign is None else region.sign.cpu().sign()
    partner = [index for indices in own.indices_by_layer().values() for index in indices]  # `random_like` goes by layer
    sets = [own, *(own.random_like(seed=seed + draw) for draw in range(draws))]
    signs = [sign, *[sign[partner]] * draws]
    every = Neurons.of(dict.fromkeys(neuron for one in sets for neuron in one), own.widths)
    place = {neuron: index for index, neuron in enumerate(every)}
    field = receptive_field(model, region.inputs, every, row=region.row, image=region.image)
    found: list[Tensor] = []
    for one, turned in zip(sets, signs, strict=True):  # one set's maps at a time: each is as large as the picture
        values = field.activations[[place[neuron] for neuron in one]] * turned[:, None]
        both = torch.cat([values, values.mean(0, keepdim=True)])
        ious = Heat(activations=both, grid=field.grid, provenance=field.provenance).iou(mask, quantile)
        found.append(torch.stack([ious[:-1].mean(), ious[-1]]))
    single, average = torch.stack(found, dim=1)
    ends = torch.tensor([field.bound(mask, quantile), float(mask.float().mean())])
    return torch.cat([single[:1], average[:1], single[1:], average[1:], ends])
