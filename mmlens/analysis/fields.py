"""Where on the picture a neuron fires: receptive fields, their masks, and their overlap with an object."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from mmlens.grid import Grid, Tiles
from mmlens.hooks import neuron_hook
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.results import Provenance, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class ReceptiveField(Result):
    """Each neuron's activation over the positions of one image; times its sign, where signs were given."""

    neurons: Neurons
    activations: Float[Tensor, "neuron position"]
    grid: Grid | Tiles

    def heat(self) -> Float[Tensor, "neuron height width"]:
        """Return the activations over the original image, bilinear between positions; NaN where the tower saw nothing."""
        return upsample(self.activations, self.grid)

    def mask(self, quantile: float = 0.95) -> Bool[Tensor, "neuron height width"]:
        """Return the pixels above the `quantile` of each neuron's own heat (methods A6: 0.95, so about 5 % of them)."""
        heat = self.heat()
        bar = heat.flatten(1).nanquantile(quantile, dim=1)
        return heat > bar[:, None, None]

    def iou(self, target: Bool[Tensor, "height width"], quantile: float = 0.95) -> Float[Tensor, " neuron"]:
        """Return the intersection over union of each neuron's mask with `target`.

        The mask covers about 1 - quantile of the picture, whatever the target's size: see `bound`.
        """
        mask = self.mask(quantile)
        union = (mask | target).flatten(1).sum(1)
        return (mask & target).flatten(1).sum(1) / union.clamp(min=1)

    def bound(self, target: Bool[Tensor, "height width"], quantile: float = 0.95) -> float:
        """Return the largest overlap that a mask of this size can have with a target of that size."""
        ours, theirs = (1 - quantile) * target.numel(), float(target.sum())
        return min(ours, theirs) / max(ours, theirs)


@torch.no_grad()
def receptive_field(
    model: HookedMLLM,
    inputs: Inputs,
    neurons: Neurons,
    *,
    row: int = 0,
    image: int = 0,
    sign: Float[Tensor, " neuron"] | None = None,
) -> ReceptiveField:
    """Return where on the `image`-th picture of `row` each language-model neuron fires (site `post`).

    `sign` turns neurons over that act by firing negatively. Raises ValueError for neurons elsewhere, and for media whose
    positions have no place (grid None). Source: Schwettmann et al. 2023, section 3.2 (methods A6, A7).
    """
    if set(neurons.module) - {"language"}:
        raise ValueError(f"receptive fields are read in the language model's stream, got neurons of {set(neurons.module)}")
    here = inputs.mask("image")[row] & (inputs.medium[row] == image)
    grid = inputs.grids[row][image] if bool(here.any()) else None  # images are numbered before other media
    if not isinstance(grid, (Grid, Tiles)):
        raise ValueError(
            f"row {row} has no image {image} whose positions have a place on it ({len(inputs.grids[row])} media): choose "
            "another, or a model that keeps places"
        )
    layers = sorted({layer for _, layer, _ in neurons})
    _, cache = model.run_with_cache(inputs, [neuron_hook("language", layer, "post") for layer in layers])
    values = torch.stack(
        [cache[neuron_hook("language", layer, "post")][row, here, unit] for _, layer, unit in neurons]
    ).float()
    if sign is not None:
        values = values * sign.sign().to(values)[:, None]
    return ReceptiveField(
        neurons=neurons,
        activations=values.cpu(),
        grid=grid,
        provenance=Provenance.record(model, (inputs.digest(),), analysis="receptive_field", row=row, image=image),
    )


def upsample(values: Float[Tensor, "n position"], grid: Grid | Tiles) -> Float[Tensor, "n height width"]:
    """Return values of an image's positions over the original image, bilinear; NaN where the tower saw nothing.

    Where tiles overlap, the one that shows the image larger counts.
    """
    width, height = grid.size
    canvas = torch.full((len(values), height, width), torch.nan)
    for tile, cells in grid.painted(values):
        left, top, right, bottom = (round(edge) for edge in tile.region)
        inside = interpolate(cells[:, None], (bottom - top, right - left), mode="bilinear", align_corners=False)[:, 0]
        rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
        canvas[:, rows, columns] = inside[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return canvas
