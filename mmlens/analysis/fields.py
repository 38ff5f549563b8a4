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
class Heat(Result):
    """Numbers over the positions of one image, a row for each map, and where those positions lie on it."""

    activations: Float[Tensor, "map position"]
    grid: Grid | Tiles

    def heat(self) -> Float[Tensor, "map height width"]:
        """Return the activations over the original image, bilinear between positions; NaN where the tower saw nothing."""
        return upsample(self.activations, self.grid)

    def mask(self, quantile: float = 0.95) -> Bool[Tensor, "map height width"]:
        """Return the pixels above the `quantile` of each map's own heat (methods A6: 0.95, so about 5 % of them)."""
        heat = self.heat()
        bar = heat.flatten(1).nanquantile(quantile, dim=1)
        return heat > bar[:, None, None]

    def iou(self, target: Bool[Tensor, "height width"], quantile: float = 0.95) -> Float[Tensor, " map"]:
        """Return the intersection over union of each map's mask with `target`.

        The mask covers about 1 - quantile of the picture, whatever the target's size: see `bound`.
        """
        mask = self.mask(quantile)
        union = (mask | target).flatten(1).sum(1)
        return (mask & target).flatten(1).sum(1) / union.clamp(min=1)

    def bound(self, target: Bool[Tensor, "height width"], quantile: float = 0.95) -> float:
        """Return the largest overlap that a mask of this size can have with a target of that size."""
        ours, theirs = (1 - quantile) * target.numel(), float(target.sum())
        return min(ours, theirs) / max(ours, theirs)


@dataclass(frozen=True, kw_only=True, repr=False)
class AverageField(Heat):
    """The mean activation of the first `ks[i]` of some neurons over the positions of one image, a map for each k."""

    neurons: Neurons
    ks: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class ReceptiveField(Heat):
    """Each neuron's activation over the positions of one image, a map each; times its sign, where signs were given."""

    neurons: Neurons

    def average(self, *ks: int) -> AverageField:
        """Return the mean map of the first k neurons, for each of `ks` (all of them unless said).

        It is the mean of raw activations, which then go through the same steps as one neuron's: a neuron that fires
        strongly counts for more. Raises ValueError for more neurons than there are. Sources: Schwettmann et al. 2023
        (methods A6: 5 or 20 neurons; that means are taken first is our reading), Pan et al. 2024 (methods B5: 1 to 1000).
        """
        ks = ks or (len(self.neurons),)
        if not all(1 <= k <= len(self.neurons) for k in ks):
            raise ValueError(f"means are of 1 to {len(self.neurons)} neurons, got {list(ks)}")
        return AverageField(
            neurons=self.neurons,
            ks=ks,
            activations=torch.stack([self.activations[:k].mean(0) for k in ks]),
            grid=self.grid,
            provenance=self.provenance,
        )


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
    here = inputs.mask("image")[row] & (inputs.medium[row] == image)
    grid = inputs.grids[row][image] if bool(here.any()) else None  # images are numbered before other media
    if not isinstance(grid, (Grid, Tiles)):
        raise ValueError(
            f"row {row} has no image {image} whose positions have a place on it ({len(inputs.grids[row])} media): choose "
            "another, or a model that keeps places"
        )
    return ReceptiveField(
        neurons=neurons,
        activations=read(model, inputs, neurons, here, row=row, sign=sign),
        grid=grid,
        provenance=Provenance.record(model, (inputs.digest(),), analysis="receptive_field", row=row, image=image),
    )


def read(
    model: HookedMLLM,
    inputs: Inputs,
    neurons: Neurons,
    here: Bool[Tensor, " pos"],
    *,
    row: int,
    sign: Float[Tensor, " neuron"] | None,
) -> Float[Tensor, "neuron position"]:
    """Return each neuron's activation (site `post`) at some positions of a row, times its sign; float32, on the CPU.

    Raises ValueError for neurons outside of the language model, whose positions are others.
    """
    if set(neurons.module) - {"language"}:
        raise ValueError(f"receptive fields are read in the language model's stream, got neurons of {set(neurons.module)}")
    layers = sorted({layer for _, layer, _ in neurons})
    _, cache = model.run_with_cache(inputs, [neuron_hook("language", layer, "post") for layer in layers])
    each = [cache[neuron_hook("language", layer, "post")][row, here, unit] for _, layer, unit in neurons]
    values = torch.stack(each).float()
    return (values if sign is None else values * sign.sign().to(values)[:, None]).cpu()


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
