"""What an answer loses where some positions may not attend to others: by layer window and by what is hidden."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from mmlens.analysis.nodes import windows_of
from mmlens.hooks import knock_out
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class KnockOutEffect(Result):
    """The metric while the queries can't attend to a source: `metric[window, source, row]`, beside that of the clean run.

    `windows[i]` are the first layer of a window and the one behind its last.
    """

    sources: tuple[str, ...]
    windows: tuple[tuple[int, int], ...]
    metric: Float[Tensor, "window source batch"]
    clean_metric: Float[Tensor, " batch"]

    @property
    def change(self) -> Float[Tensor, "window source batch"]:
        """What the metric changes by: negative where the queries needed the source in these layers."""
        return self.metric - self.clean_metric


@torch.no_grad()
def knock_out_effect(
    model: HookedMLLM,
    inputs: Inputs,
    metric: Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, " batch"]],
    *,
    sources: Sequence[str] | Mapping[str, Bool[Tensor, "batch pos"]],
    queries: Bool[Tensor, "batch pos"] | None = None,
    layers: Sequence[int] | None = None,
    window: int = 1,
    progress: bool = False,
) -> KnockOutEffect:
    """Return the metric with attention from `queries` (default: the last position) to each source blocked.

    It is blocked in `window` neighbouring layers at a time, starting at each of `layers` (default: all at which a window
    fits). `sources` are groups (`inputs.mask(group)`) or named masks; the query itself is in the group of its own modality,
    and blocked there as all others are: leave it out by a mask, `inputs.mask("text") & ~inputs.last()`. `metric` takes
    logits and returns a number per row. Raises ValueError for a window that does not fit, and for a query that would be left
    with nothing to attend to. Source: attention knock-out of Geva et al. 2023 (Dissecting recall of factual associations).
    """
    windows = windows_of(model.cfg.n_layers, layers, window)
    masks = dict(sources) if isinstance(sources, Mapping) else {name: inputs.mask(name) for name in sources}
    asking = inputs.last() if queries is None else queries
    clean = metric(model(inputs)).cpu()
    found = torch.zeros(len(windows), len(masks), len(inputs), dtype=clean.dtype)
    steps = [(at, source) for at in range(len(windows)) for source in range(len(masks))]
    keys = list(masks.values())
    for at, source in tqdm(steps, "knocking out", disable=not progress):
        hooks = knock_out(asking, keys[source], layers=range(*windows[at]))
        found[at, source] = metric(model.run_with_hooks(inputs, fwd_hooks=hooks)).cpu()
    return KnockOutEffect(
        sources=tuple(masks),
        windows=windows,
        metric=found,
        clean_metric=clean,
        provenance=Provenance.record(model, (inputs.digest(),), analysis="knock_out_effect", window=window),
    )
