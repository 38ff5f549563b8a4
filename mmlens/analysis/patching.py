"""Activation patching by layer and site: where in depth and position the difference between two inputs lives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from mmlens.hooks import replace
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class Patching(Result):
    """How much of the clean run's metric comes back: 0 is the corrupted run, 1 the clean one.

    `effect[layer, site, row]`: the clean residual stream before block `layer` is put into the corrupted run at the
    positions of `sites[site]`. NaN in a row whose two metrics are equal. The metrics themselves are kept, unscaled.
    """

    sites: tuple[str, ...]
    effect: Float[Tensor, "layer site batch"]
    clean_metric: Float[Tensor, " batch"]
    corrupted_metric: Float[Tensor, " batch"]


@torch.no_grad()
def activation_patching(
    model: HookedMLLM,
    *,
    clean: Inputs,
    corrupted: Inputs,
    metric: Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, " batch"]],
    sites: Mapping[str, Bool[Tensor, "batch pos"]],
    progress: bool = False,
) -> Patching:
    """Return the effect of putting the clean residual stream into the corrupted run, by layer and by named site.

    `metric` takes logits and returns a number per row, for example `metrics.logit_diff` of two answers. Both inputs must
    have the same positions (they may differ in tokens and in media). Raises ValueError where they do not.
    Source: Meng et al. 2022; scaled as TransformerLens' tutorials do.
    """
    if clean.tokens.shape != corrupted.tokens.shape or not clean.modality.equal(corrupted.modality):
        raise ValueError(
            f"clean and corrupted must line up position by position; got {list(clean.tokens.shape)} and "
            f"{list(corrupted.tokens.shape)} positions" + ("" if len(clean) != len(corrupted) else " of differing kinds")
        )
    layers = range(len(model.widths["language"]))
    names = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
    logits, cache = model.run_with_cache(clean, names)
    best, worst = metric(logits), metric(model(corrupted))
    effect = torch.zeros(len(names), len(sites), len(clean))
    steps = [(layer, site) for layer in layers for site in range(len(sites))]
    masks = list(sites.values())
    for layer, site in tqdm(steps, "patching", disable=not progress):
        hook = (names[layer], replace(cache[names[layer]], where=masks[site]))
        patched = metric(model.run_with_hooks(corrupted, fwd_hooks=[hook]))
        effect[layer, site] = ((patched - worst) / (best - worst)).cpu()
    return Patching(
        sites=tuple(sites),
        effect=effect,
        clean_metric=best.cpu(),
        corrupted_metric=worst.cpu(),
        provenance=Provenance.record(model, (clean.digest(), corrupted.digest()), analysis="activation_patching"),
    )
