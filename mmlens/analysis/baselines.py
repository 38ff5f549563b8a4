"""The scores that another score is to be better than: how strongly neurons fire, and chance."""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmlens.analysis.attribution import check_rows
from mmlens.hooks import Site
from mmlens.inputs import MEDIA, Inputs
from mmlens.model import HookedMLLM
from mmlens.stats.accumulator import Layers


@torch.no_grad()
def activation_score(
    model: HookedMLLM,
    inputs: Inputs,
    *,
    site: Site = "post",
    where: Bool[Tensor, "batch pos"] | None = None,
    reduce: Literal["max", "mean"] = "max",
) -> Float[Tensor, "batch layer unit"]:
    """Return the largest or the mean activation of every neuron over the `where` positions, in one forward.

    It knows of no word: what fires strongly anywhere comes first. `where` defaults to the positions of images and other
    media; activations are those of the site, with their sign. 0 beyond a layer's width. Raises ValueError where a row has
    no position in `where`. Source: the activation baseline of Pan et al. 2024 (named there, defined by us: methods B8).
    """
    where = inputs.mask(*MEDIA) if where is None else where
    check_rows(where)
    widths, layers = model.widths["language"], Layers.of(model.widths, ("language",), site)
    scores = torch.zeros(len(inputs), len(widths), max(widths))

    def hook(layer: int) -> Any:
        def add(values: Float[Tensor, "batch pos unit"]) -> None:
            here = where[..., None].to(values.device)
            if reduce == "max":
                found = values.where(here, -torch.inf).amax(1)
            else:
                wide = torch.promote_types(values.dtype, torch.float32)
                found = values.where(here, 0.0).sum(1, dtype=wide) / here.sum(1)
            scores[:, layer, : widths[layer]] = found.float().cpu()

        return layers.hook(model, "language", layer, add)

    model.next_logits(inputs, fwd_hooks=[hook(layer) for layer in range(len(widths))])
    return scores


def random_score(model: HookedMLLM, seed: int, *, module: str = "language") -> Float[Tensor, "layer unit"]:
    """Return a number between 0 and 1 for every neuron of a module, drawn by `seed`: a score that knows nothing.

    The same for the same seed and widths, whatever the model's weights. Raises KeyError for a module that the model does
    not have.
    """
    widths = model.widths[module]
    return torch.rand(len(widths), max(widths), generator=torch.Generator().manual_seed(seed))
