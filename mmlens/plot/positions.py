"""The pictures of an input with the grid of their positions."""

from matplotlib.figure import Figure

from mmlens.inputs import Inputs
from mmlens.plot.canvas import canvas, grid_lines, picture, pictures

LABELS = 400


def positions(inputs: Inputs, row: int = 0) -> Figure:
    """Return the row's pictures with the grid of their image positions, numbered as `inputs.mask("image:0")` counts them.

    Where a grid has more than 400 positions only the first of each line of the grid is numbered. Beneath each picture
    stands where its positions lie in the stream. Raises ValueError where the row has no picture.
    """
    drawn = pictures(inputs, row)
    tall = max(min(4.8 * image.size[1] / image.size[0], 9.0) for image, _ in drawn)
    figure = canvas(4.8 * len(drawn), max(tall, 1.2) + 0.6)
    for column, (image, grid) in enumerate(drawn):
        axes = figure.add_subplot(1, len(drawn), column + 1)
        picture(axes, image)
        grid_lines(axes, grid)
        size = min(9.0, 190 / grid.columns / 2)
        for index in range(len(grid)):
            if len(grid) > LABELS and index % grid.columns:
                continue
            left, top, right, bottom = grid.box(index)
            axes.text(
                (left + right) / 2,
                (top + bottom) / 2,
                str(index),
                ha="center",
                va="center",
                fontsize=max(size, 5.0),
                color="white",
                bbox=dict(boxstyle="round,pad=0.12", facecolor="black", alpha=0.45, linewidth=0),
                clip_on=True,
            )
        where = inputs.mask(f"image:{column}")[row].nonzero()[:, 0]
        axes.set_title(f"image {column}: {image.size[0]} x {image.size[1]} pixels, {grid.rows} x {grid.columns} positions")
        axes.set_xlabel(f"image position 0 is position {int(where[0])} of the stream, {len(grid) - 1} is {int(where[-1])}")
    return figure
