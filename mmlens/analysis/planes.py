"""Points on two axes, and how well their labels separate them: what every figure of a geometry is made of."""

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Projection = Literal["pca", "tsne", "umap"]


def on_plane(
    points: Float[Tensor, "point d"], projection: Projection, seed: int
) -> tuple[Float[Tensor, "point 2"], Float[Tensor, "2"]]:
    """Return points on two axes, and the shares of variance of principal ones (NaN of the others).

    t-SNE and UMAP start from `seed` and go by cosine distance. Raises ImportError for UMAP where it is not installed.
    """
    if projection != "pca":
        placed = (_tsne if projection == "tsne" else _umap)(points.numpy(), seed)
        return torch.from_numpy(np.asarray(placed)).float(), torch.full((2,), torch.nan)
    centred = (points - points.mean(0)).double()
    u, s, v = torch.linalg.svd(centred, full_matrices=False)
    sign = v[:2].gather(1, v[:2].abs().argmax(1, keepdim=True)).sign()[:, 0]  # an axis points where it is largest
    return (u[:, :2] * s[:2] * sign).float(), (s[:2] ** 2 / (s**2).sum()).float()


def silhouette(points: Float[Tensor, "point d"], labels: Int[Tensor, " point"]) -> Float[Tensor, ""]:
    """Return how well labels separate points, by cosine distance: 1 is apart, 0 is mixed, NaN where all share a label, or
    none do."""
    from sklearn.metrics import silhouette_score  # half a second for what most users never ask

    if not 1 < len(labels.unique()) < len(labels):
        return torch.tensor(torch.nan)
    return torch.tensor(float(silhouette_score(points.numpy(), labels.numpy(), metric="cosine")))


def _tsne(points: Float[np.ndarray, "point d"], seed: int) -> Any:
    from sklearn.manifold import TSNE

    nearby = min(30.0, max(1.0, (len(points) - 1) / 3))
    return TSNE(perplexity=nearby, random_state=seed, init="pca", metric="cosine").fit_transform(points)


def _umap(points: Float[np.ndarray, "point d"], seed: int) -> Any:
    try:
        from umap import UMAP  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError as error:
        raise ImportError('UMAP is an extra, which is not installed: pip install "mmlens[umap]", or take t-SNE') from error
    return UMAP(n_neighbors=min(15, len(points) - 1), random_state=seed, n_jobs=1, metric="cosine").fit_transform(points)
