"""Where whole pictures or sounds lie in a tower, by label: whether it tells domains apart before the words come."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlens.analysis.labelled import batches_of, numbered
from mmlens.analysis.planes import Projection, on_plane, silhouette
from mmlens.hooks import feed
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance, Result

TOWERS = ("vision", "audio")
Pool = Literal["mean", "first"]


@dataclass(frozen=True, kw_only=True, repr=False)
class MediaGeometry(Result):
    """Where each example's media lie in the output of a tower's block `layer`, and whose label each of them has.

    `embedding` is the pooled vector of an example, `plane` its coordinates on two axes: principal components (with
    `explained`, the share of variance), t-SNE or UMAP. `silhouette` (-1 to 1, by cosine distance of embeddings) says how
    well the labels separate: near 1, each lies by itself; near 0, they overlap; NaN where there is one label, or no two
    examples of one. `random_silhouette` is that of shuffled labels.
    """

    module: str
    layer: int
    projection: str
    labels: tuple[str, ...]
    label: Int[Tensor, " example"]
    embedding: Float[Tensor, "example d"]
    plane: Float[Tensor, "example 2"]
    explained: Float[Tensor, "2"]
    silhouette: Float[Tensor, ""]
    random_silhouette: Float[Tensor, " draw"]


@torch.no_grad()
def media_geometry(
    model: HookedMLLM,
    inputs: Inputs | Iterable[Inputs],
    labels: Sequence[str],
    *,
    module: str = "vision",
    layer: int | None = None,
    pool: Pool = "mean",
    projection: Projection = "pca",
    draws: int = 10,
    seed: int = 0,
) -> MediaGeometry:
    """Return where the media of each row lie in a tower, by `labels`: one for each row of all inputs, in order.

    A row's embedding is the mean over all positions of its media, or over the `first` of each picture (the CLS, where the
    tower has one) or tile, in what leaves block `layer` (default: the last that the model reads), before any norm. `draws`
    shufflings of the labels stand beside it; `seed` is theirs, t-SNE's and UMAP's. Raises ValueError for a module that is no
    tower of this model, a row without media, `first` in a tower that reads patches as one list, and fewer than two rows;
    IndexError for a layer that is not there; ImportError for UMAP where it is not installed.

    Source: Huo et al. 2024, Fig. 2 (methods C12), which draws embeddings of a vision encoder by domain; the silhouette is
    ours.
    """
    layer = _layer(model, module, layer)
    if pool not in get_args(Pool):
        raise ValueError(f"a row's positions are pooled by {' or '.join(get_args(Pool))}, got {pool!r}")
    parts: list[Tensor] = []
    digests: list[str] = []
    for batch in batches_of(inputs, labels):
        parts.append(_embedded(model, batch, module, layer, pool))
        digests.append(batch.digest())
    embedding = torch.cat(parts)
    if len(embedding) < 2:
        raise ValueError("a geometry is of two rows or more, got one")
    names, label = numbered(labels)
    plane, explained = on_plane(embedding, projection, seed)
    generator = torch.Generator().manual_seed(seed)
    shuffled = [silhouette(embedding, label[torch.randperm(len(label), generator=generator)]) for _ in range(draws)]
    return MediaGeometry(
        module=module,
        layer=layer,
        projection=projection,
        labels=names,
        label=label,
        embedding=embedding,
        plane=plane,
        explained=explained,
        silhouette=silhouette(embedding, label),
        random_silhouette=torch.stack(shuffled) if shuffled else torch.zeros(0),
        provenance=Provenance.record(
            model, tuple(digests), seed=seed, analysis="media_geometry", module=module, layer=layer, pool=pool, draws=draws
        ),
    )


def _layer(model: HookedMLLM, module: str, layer: int | None) -> int:
    """Return the layer that is read. Raises ValueError for what is no tower, IndexError for a layer that it has not."""
    towers = [name for name in TOWERS if name in model.widths]
    if module not in towers:
        raise ValueError(f"media lie in a tower, {model.name} has {' and '.join(towers)}; got {module!r}: give one of those")
    depth = len(model.widths[module])
    if layer is None:
        return model.live_layers[module] - 1
    if not 0 <= layer < depth:
        raise IndexError(f"{module} has the layers 0 to {depth - 1}, got {layer}: choose among those")
    return layer


def _embedded(model: HookedMLLM, inputs: Inputs, module: str, layer: int, pool: str) -> Float[Tensor, "batch d"]:
    """Return the pooled output of the tower's block for each row."""
    if bare := sorted(set(range(len(inputs))) - {row for row, *_ in inputs.entries}):
        raise ValueError(f"every row has a place in the tower, row {bare[0]} of {inputs} has no media: leave it out")
    found: list[Tensor] = []

    def read(resid: Tensor, hook: Any) -> None:
        rows = inputs.held(module, resid.shape[:-1])[0].to(resid.device)
        if pool == "first" and rows.ndim < 2:
            raise ValueError(f"{module} reads the patches of all media as one list, and has no CLS: take pool='mean'")
        resid, rows = (resid[:, 0], rows[:, 0]) if pool == "first" else (resid, rows)
        own = rows[rows >= 0]
        sums = resid.new_zeros(len(inputs), resid.shape[-1], dtype=torch.float64)
        sums = sums.index_add(0, own, resid[rows >= 0].double())
        found.append((sums / own.bincount(minlength=len(inputs))[:, None]).float().cpu())

    model.next_logits(inputs, fwd_hooks=[(f"{module}.blocks.{layer}.hook_resid_post", feed(read))])
    return found[0]
