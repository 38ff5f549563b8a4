"""Activation patching: where in depth and position the difference between two inputs lives."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import bootstrap
from torch import Tensor
from tqdm.auto import tqdm

from mmlens.analysis.nodes import Activation, Nodes, lined_up, nodes, values_at, windows_of
from mmlens.analysis.replay import Change, Edit, Replay, record
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.results import Provenance, Result

Metric = Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, " batch"]]


@dataclass(frozen=True, kw_only=True, repr=False)
class Patching(Result):
    """The metric of the corrupted run, with the clean run's `activation` put in at one place at a time.

    `metric[window, site, row]`: in the layers of `windows[window]` (the first and the one behind the last), at the positions
    of `sites[site]`; where heads or units were patched one by one, [window, site, part, row] with `parts` saying which.
    `clean_metric` and `corrupted_metric` are those of the two runs. In the result of `attribution_patching`, `metric` is
    what a linear model of the network predicts.
    """

    activation: str
    windows: tuple[tuple[int, int], ...]
    sites: tuple[str, ...]
    parts: tuple[int, ...]
    metric: Float[Tensor, "window site *part batch"]
    clean_metric: Float[Tensor, " batch"]
    corrupted_metric: Float[Tensor, " batch"]

    @property
    def effect(self) -> Float[Tensor, "window site *part batch"]:
        """How much of the clean run comes back: 0 is the corrupted run, 1 the clean one.

        NaN in a row whose two metrics are equal: there is nothing to bring back.
        """
        gap = self.clean_metric - self.corrupted_metric
        return ((self.metric - self.corrupted_metric) / gap).masked_fill(gap == 0, torch.nan)

    @property
    def mean(self) -> Float[Tensor, "window site *part"]:
        """The mean effect over rows, those left out in which there is nothing to bring back."""
        return self.effect.nanmean(-1)

    def interval(
        self, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
    ) -> tuple[Float[Tensor, "window site *part"], Float[Tensor, "window site *part"]]:
        """Return the lower and upper end of the mean effect's interval: percentiles over rows drawn with replacement.

        NaN where fewer than two rows count.
        """
        effect = self.effect[..., self.clean_metric != self.corrupted_metric].double().numpy()
        if effect.shape[-1] < 2:
            return torch.full(effect.shape[:-1], torch.nan), torch.full(effect.shape[:-1], torch.nan)
        rng, batch = np.random.default_rng(seed), max(1, (1 << 22) // effect.size)
        found = bootstrap(
            (effect,),
            np.mean,
            axis=-1,
            n_resamples=resamples,
            batch=batch,
            confidence_level=level,
            method="percentile",
            rng=rng,
        ).confidence_interval
        return torch.as_tensor(found.low).float(), torch.as_tensor(found.high).float()


@torch.no_grad()
def activation_patching(
    model: HookedMLLM,
    *,
    clean: Inputs,
    corrupted: Inputs,
    metric: Metric,
    activation: Activation = "resid_pre",
    sites: Mapping[str, Bool[Tensor, "batch pos"]] | None = None,
    positions: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    units: Sequence[int] | Neurons | None = None,
    layers: Sequence[int] | None = None,
    window: int = 1,
    chunk: int = 2048,
    progress: bool = False,
) -> Patching:
    """Return the metric of the corrupted run with the clean run's activation put in, by layer and by site or position.

    `metric` takes logits and returns a number per row, for example `metrics.logit_diff` of two answers. Both inputs have the
    same positions, and may differ in tokens and in media. `sites` are named masks (an object's: `inputs.overlap(mask) > 0`);
    without them every one of `positions` (default: all) is patched by itself. `heads` (of q, k, v, z, pattern; keys and
    values are counted by their own, grouped heads) and `units` are patched one by one, None means all together; `Neurons`
    are patched together, layer by layer. A pattern's positions are its queries. `layers` (default: all at which it fits) are
    the first of `window` neighbouring layers that are patched at once.

    Exact, and computed are only the layers and positions that a patch can reach, about `chunk` positions at a time, of the
    last layer only the last position where `metric` reads no other. Raises ValueError where the inputs do not line up, and
    what `record` raises. Source: Meng et al. 2022; scaled as TransformerLens' tutorials do.
    """
    lined_up(clean, corrupted)
    chosen = nodes(model, corrupted, activation, sites=sites, positions=positions, heads=heads, units=units)
    windows = windows_of(model.cfg.n_layers, layers, window)
    replay = record(model, corrupted)
    wanted = chosen.everywhere(corrupted)
    patched = sorted({layer for first, stop in windows for layer in range(first, stop)})
    logits, values = values_at(model, clean, chosen, patched, wanted)
    best, worst = metric(logits).cpu(), metric(replay.logits).cpu()
    where = [(at, site, part) for at in range(len(windows)) for site in range(len(chosen.masks)) for part in _parts(chosen)]
    edits = [_edit(chosen, windows[at], chosen.masks[site], part, values, wanted, replay.starts) for at, site, part in where]
    found = worst.expand(len(edits), -1).clone()
    real = [number for number, edit in enumerate(edits) if edit is not None]
    measured = _measured(replay, [edit for edit in edits if edit is not None], metric, chunk)
    for number, value in tqdm(measured, "patching", total=len(real), disable=not progress):
        found[real[number]] = value.cpu()
    parts = (len(chosen.parts),) if chosen.parts else ()
    return Patching(
        activation=activation,
        windows=windows,
        sites=chosen.sites,
        parts=chosen.parts,
        metric=found.view(len(windows), len(chosen.masks), *parts, len(clean)),
        clean_metric=best,
        corrupted_metric=worst,
        provenance=Provenance.record(
            model, (clean.digest(), corrupted.digest()), analysis="activation_patching", activation=activation, window=window
        ),
    )


def _parts(chosen: Nodes) -> Sequence[int | None]:
    return chosen.parts or (None,)


def _edit(
    chosen: Nodes,
    window: tuple[int, int],
    mask: Bool[Tensor, "batch pos"],
    number: int | None,
    values: Mapping[int, Float[Tensor, "place ..."]],
    wanted: Bool[Tensor, "batch pos"],
    starts: Tensor,
) -> Edit | None:
    """Return the edit that puts the clean `values` (of the `wanted` places) in at a site, None where nothing is put."""
    parts = {layer: chosen.part(layer, number) for layer in range(*window)}
    layers = [layer for layer, part in parts.items() if part is None or len(part)]
    columns = mask.any(0).nonzero()[:, 0].cpu()
    if not layers or not len(columns):
        return None
    changes: dict[str, Change] = {
        chosen.name(layer): partial(_put, chosen, mask, values[layer][mask[wanted].to(values[layer].device)], parts[layer])
        for layer in layers
    }
    start, stop = int(starts[columns].min()), int(columns[-1]) + 1
    return Edit(
        layer=layers[0],
        span=(start, mask.shape[1]) if chosen.spreads else (int(columns[0]), stop),
        start=start,
        changes=changes,
        entering=(int(columns[0]), stop) if chosen.activation == "resid_pre" else (0, 0),
    )


def _put(chosen: Nodes, mask: Tensor, values: Tensor, part: Tensor | None, activation: Tensor, stop: int) -> None:
    """Set the `values` of a mask's positions in an activation of positions up to `stop`."""
    start = stop - activation.shape[chosen.axis]
    positions = torch.arange(mask.shape[1], device=mask.device)
    here = ((positions >= start) & (positions < stop)).expand_as(mask)[mask]
    chosen.put(activation, mask[:, start:stop], values[here.to(values.device)], part)


def _measured(
    replay: Replay, edits: Sequence[Edit], metric: Metric, chunk: int
) -> Iterator[tuple[int, Float[Tensor, " batch"]]]:
    """Yield each edit's number and its metric, as soon as it is there.

    A metric is shown logits of all positions, those that it does not read as NaN: one that did read them would say so.
    """
    canvas = torch.full_like(replay.logits, torch.nan)
    canvas[:, -1] = replay.logits[:, -1]
    last = torch.equal(metric(canvas), metric(replay.logits))
    for number, start, logits in replay.edited(edits, last=last, chunk=chunk):
        if not last:
            canvas[:, :start] = replay.logits[:, :start]
        canvas[:, start:] = logits
        yield number, metric(canvas)
