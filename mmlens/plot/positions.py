"""The pictures of an input with the grid of their positions."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmlens.grid import finest
from mmlens.inputs import Inputs
from mmlens.plot.canvas import canvas, grid_lines, middle, picture, pictures, shape

LABELS = 400


def positions(inputs: Inputs, row: int = 0) -> Figure:
    """Return the row's pictures with the grid of their image positions, numbered as `inputs.mask("image:0")` counts them.

    Where a grid has more than 400 positions only the first of each line of the grid is numbered; of tiles that overlap,
    those that show the picture largest. Beneath each picture stands where its positions lie in the stream. Raises
    ValueError where the row has no picture.
    """
    drawn = pictures(inputs, row)
    tall = max(min(4.8 * image.size[1] / image.size[0], 9.0) for image, _ in drawn)
    figure = canvas(4.8 * len(drawn), max(tall, 1.2) + 0.6)
    for column, (image, grid) in enumerate(drawn):
        axes = figure.add_subplot(1, len(drawn), column + 1)
        picture(axes, image)
        grid_lines(axes, grid)
        numbered = finest(grid)
        across = sum(tile.columns for tile in numbered) / len(numbered) ** 0.5
        all_shown = sum(map(len, numbered)) <= LABELS
        for tile, indices in grid.painted(torch.arange(len(grid))):
            for (line, place), index in np.ndenumerate(indices.numpy()):
                if tile in numbered and (all_shown or place == 0):
                    _number(axes, *middle(tile, line, place), int(index), size=max(min(9.0, 95 / across), 5.0))
        where = inputs.mask(f"image:{column}")[row].nonzero()[:, 0]
        axes.set_title(f"image {column}: {image.size[0]} x {image.size[1]} pixels, {shape(grid)}")
        axes.set_xlabel(f"image position 0 is position {int(where[0])} of the stream, {len(grid) - 1} is {int(where[-1])}")
    return figure


def _number(axes: Axes, x: float, y: float, index: int, *, size: float) -> None:
    axes.text(
        x,
        y,
        str(index),
        ha="center",
        va="center",
        fontsize=size,
        color="white",
        bbox=dict(boxstyle="round,pad=0.12", facecolor="black", alpha=0.45, linewidth=0),
        clip_on=True,
    )
