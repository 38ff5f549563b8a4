"""The logit lens drawn on the picture: each image position's word, layer by layer."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mmlens.analysis import LogitLens
from mmlens.grid import Grid, finest
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.plot.canvas import canvas, focus, grid_lines, height, middle, picture, pictures, plain
from mmlens.plot.curves import GROUPS, layer_axis

CELLS = 12  # words side by side that can still be read


def logit_lens(
    result: LogitLens,
    inputs: Inputs,
    model: HookedMLLM,
    *,
    layers: Sequence[int] | None = None,
    row: int = 0,
    image: int = 0,
    target: int | None = None,
) -> Figure:
    """Return the picture with each position's top word at some `layers` (default: four, first to last), and the curve of
    the mean entropy of image, text and special positions over all layers.

    Layer l is the stream that enters block l. The heat is the entropy of the prediction in nats or, with `target` (an index
    into `result.targets`), its probability; both from 0 to the largest drawn. Where more than 12 positions stand side by
    side, only the word of the surest position of each square of them is written. Raises ValueError for a row without such a
    picture.
    """
    drawn = pictures(inputs, row)
    if not 0 <= image < len(drawn):
        raise ValueError(f"row {row} has {len(drawn)} picture(s), there is no image {image}")
    picked, grid = drawn[image]
    depth = result.entropy.shape[0]
    chosen = list(layers) if layers is not None else sorted({round(i * (depth - 1) / 3) for i in range(4)})
    here = inputs.mask(f"image:{image}")[row].cpu()
    entropy = result.entropy[:, row, here]
    heat = entropy if target is None else result.target_log_probs[:, row, here, target].exp()
    lines = math.ceil(len(chosen) / 2)
    tall = height(grid, 4.7) + 0.4
    figure = canvas(10.6, tall * lines + 3.0)
    parts: Any = figure.subfigures(2, 1, height_ratios=[tall * lines, 3.0])
    cells = parts[0].subplots(lines, min(2, len(chosen)), squeeze=False).flatten()
    top = max(float(heat[chosen].max()), 1e-6)
    mappable = None
    for axes, layer in zip(cells, chosen, strict=False):
        picture(axes, picked, faded=0.35)
        for tile, shades in grid.painted(heat[layer]):
            left, upper, right, lower = tile.region
            mappable = axes.imshow(
                shades,
                extent=(left, right, lower, upper),
                cmap="Blues" if target is not None else "magma",
                vmin=0,
                vmax=top,
                alpha=0.55 if tile in finest(grid) else 0.0,
                interpolation="nearest",
            )
        grid_lines(axes, grid, width=0.4)
        words = model.to_str_tokens(result.tokens[layer, row, here, 0])
        for tile, indices in grid.painted(torch.arange(len(grid))):
            if tile in finest(grid):
                _words(axes, tile, indices.tolist(), words, entropy[layer])
        axes.set_title(f"layer {layer}" + (" (the model's output)" if layer == depth - 1 else ""), fontsize=11)
        focus(axes, grid)
    for axes in cells[len(chosen) :]:
        axes.set_axis_off()
    assert mappable is not None, "there is always a layer to draw"
    bar = parts[0].colorbar(mappable, ax=list(cells), shrink=0.8, aspect=40, pad=0.01)
    bar.set_label("entropy (nats)" if target is None else f"P({plain(_name(model, result.targets[target]))})")
    _curves(parts[1].subplots(), result, inputs, row)
    return figure


def _words(axes: Axes, grid: Grid, indices: list[list[int]], words: list[str], entropy: Float[Tensor, " position"]) -> None:
    """Write one word per square of `every` x `every` positions: that of the surest, at its own place."""
    every = math.ceil(max(grid.columns, grid.rows) / CELLS)
    side_by_side = math.ceil(grid.columns / every)
    size = min(9.0, 62 / side_by_side)
    for row in range(0, grid.rows, every):
        for column in range(0, grid.columns, every):
            square = [
                (r, c)
                for r in range(row, min(row + every, grid.rows))
                for c in range(column, min(column + every, grid.columns))
            ]
            r, c = min(square, key=lambda place: float(entropy[indices[place[0]][place[1]]]))
            x, y = middle(grid, r, c)
            axes.text(
                x,
                y,
                plain(words[indices[r][c]], 9),
                ha="center",
                va="center",
                fontsize=size,
                color="black",
                bbox=dict(boxstyle="square,pad=0.1", facecolor="white", alpha=0.6, linewidth=0),
                clip_on=True,
            )


def _curves(axes: Axes, result: LogitLens, inputs: Inputs, row: int) -> None:
    depth = result.entropy.shape[0]
    for modality, color in GROUPS.items():
        where = torch.zeros_like(inputs.tokens, dtype=torch.bool)
        where[row] = inputs.mask(modality)[row]
        if bool(where.any()):
            mean, n = result.mean_entropy(where.cpu()), int(where.sum())
            axes.plot(range(depth), mean, marker="o", color=color, label=f"{modality} ({n} position{'' if n == 1 else 's'})")
    layer_axis(axes, depth)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("mean entropy (nats)")
    axes.legend(frameon=False)


def _name(model: HookedMLLM, token: Tensor) -> str:
    return model.to_str_tokens(token[None])[0]
