"""What curves by layer share: their axis, the colours of groups, means over rows with a band, and random draws in grey."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from scipy.stats import t as student
from torch import Tensor

from mmlens.plot.canvas import RANDOM

GROUPS = {"image": "#c0392b", "text": "#2c3e50", "special": "#95a5a6", "audio": "#8e44ad", "video": "#d35400"}
OTHERS = ("#2980b9", "#27ae60", "#f39c12", "#e84393", "#6c3b1c", "#16a085")
PROJECTIONS = {"tsne": "t-SNE", "umap": "UMAP"}  # those whose axes have no unit: only who is near whom counts
STREAM = "layer (the stream that enters it; the last is the output)"


def colors_of(names: Sequence[str]) -> list[str]:
    """Return a colour for each group of positions: a modality's own, and for others the colours of no modality, in turn."""
    others = cycle(OTHERS)
    return [GROUPS[name] if name in GROUPS else next(others) for name in names]


def layer_axis(axes: Axes, depth: int, *, label: str = STREAM) -> None:
    """Make the horizontal axis that of `depth` layers, counted from 0 and numbered wherever there is room."""
    axes.set_xticks(range(0, depth, max(1, depth // 12)))
    axes.set_xlabel(label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def mean_curve(
    axes: Axes, values: Float[Tensor, "layer batch"], *, color: str, at: Sequence[int] | None = None, **style: Any
) -> None:
    """Draw the mean over rows by layer and, where there are several, its 95 % interval (Student's t) as a band.

    Rows in which a value is NaN are left out of that layer's. `at` are other numbers than layers, for other curves.
    """
    mean, count = values.nanmean(1), (~values.isnan()).sum(1)
    layers = range(len(values)) if at is None else at
    axes.plot(layers, mean, marker="o", color=color, **style)
    if int(count.max()) > 1:
        deviation = ((values - mean[:, None]) ** 2).nansum(1) / (count - 1)  # NaN, and no band, for a single row
        wide = torch.from_numpy(student.ppf(0.975, (count - 1).clamp(min=1).numpy())) * (deviation / count).sqrt()
        axes.fill_between(layers, mean - wide, mean + wide, color=color, alpha=0.2, linewidth=0)


def random_curves(axes: Axes, draws: Float[Tensor, "draw layer batch"], *, label: str) -> None:
    """Draw the mean over rows of every random draw, thin, and of all of them, thick; `label` says what was drawn."""
    if not len(draws):
        return
    means = draws.nanmean(-1)
    layers = range(means.shape[1])
    axes.plot(layers, means.nanmean(0), color=RANDOM, linewidth=2.6, marker="o", label=f"mean of {len(means)} {label}")
    for index, mean in enumerate(means):
        axes.plot(layers, mean, color=RANDOM, linewidth=0.7, label=None if index else "one draw each")
