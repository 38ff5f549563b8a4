"""What the figures share: a figure that notebooks show by themselves, pictures, grids, and words as plain text."""

from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Bool
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from mmlens.grid import Grid, Tiles, finest
from mmlens.inputs import Inputs

OURS, RANDOM, OBJECT = "#c0392b", "#7f8c8d", "#00e5ff"
GREY = 0.6  # how much of its colour a picture loses under paint: red on red says nothing, and all grey hides pink on blue
LUMINANCE = np.tile([[0.2126], [0.7152], [0.0722]], 3)  # of red, green and blue, as browsers weigh them


class Canvas(Figure):
    """A matplotlib figure outside of pyplot: it opens no window, needs no backend, and a notebook shows it."""

    def _repr_png_(self) -> bytes:
        return png(self)


def canvas(width: float, height: float) -> Canvas:
    """Return an empty figure of that size in inches, whose parts make room for each other."""
    return Canvas(figsize=(width, height), layout="constrained", facecolor="white")


def png(figure: Figure, *, dpi: int = 120) -> bytes:
    """Return the figure as a PNG file."""
    with BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=dpi)
        return buffer.getvalue()


def spelled(word: str, longest: int = 0) -> str:
    """Return `word` with control characters spelled out, cut to at most `longest` characters."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in word).strip() or repr(word)
    return shown[: longest - 1] + "…" if longest and len(shown) > longest else shown


def plain(word: str, longest: int = 0) -> str:
    """Return `word` as matplotlib must get it: no `$` starts a formula, control characters are spelled out."""
    return spelled(word, longest).replace("$", r"\$")


def pictures(inputs: Inputs, row: int) -> list[tuple[Image.Image, Grid | Tiles]]:
    """Return the row's pictures that have a grid, with it. Raises ValueError where there is none."""
    both = zip(inputs.media[row], inputs.grids[row], strict=True)
    found = [(m, g) for m, g in both if isinstance(m, Image.Image) and isinstance(g, (Grid, Tiles))]
    if not found:
        raise ValueError(
            f"this draws pictures whose positions have a place on them, row {row} has none: give the inputs an image, and a "
            "model that keeps places (a Q-Former does not)"
        )
    return found


def picture(axes: Axes, image: Image.Image, *, faded: float = 0.0) -> None:
    """Draw a picture in pixels of the original, (0, 0) top left; where it is to lie under colours, `faded` towards white.

    What is faded is greyer too, by `GREY`, here and in pages.
    """
    width, height = image.size
    pixels = np.asarray(image.convert("RGB"), dtype=float) / 255
    if faded:
        pixels += GREY * (pixels @ LUMINANCE - pixels)
    axes.imshow(pixels * (1 - faded) + faded, extent=(0, width, height, 0), interpolation="nearest")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_xticks([])
    axes.set_yticks([])


def focus(axes: Axes, grid: Grid | Tiles) -> None:
    """Show only the part of the picture that the model sees."""
    left, top, right, bottom = grid.region
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def height(grid: Grid | Tiles, width: float, *, least: float = 1.5, most: float = 7.0) -> float:
    """Return how high the part that the model sees is drawn at that width, within limits."""
    left, top, right, bottom = grid.region
    return min(max(width * (bottom - top) / (right - left), least), most)


def grid_lines(axes: Axes, grid: Grid | Tiles, *, color: str = "white", width: float = 0.5) -> None:
    """Draw the edges of the grid's positions; of tiles, those that show the picture largest."""
    for tile in finest(grid):
        left, top, right, bottom = tile.region
        axes.vlines(np.linspace(left, right, tile.columns + 1), top, bottom, color=color, linewidth=width)
        axes.hlines(np.linspace(top, bottom, tile.rows + 1), left, right, color=color, linewidth=width)


def middle(tile: Grid, row: int, column: int) -> tuple[float, float]:
    """Return the centre of a position's box, (x, y) in pixels of the original."""
    left, top, right, bottom = tile.region
    return left + (column + 0.5) * (right - left) / tile.columns, top + (row + 0.5) * (bottom - top) / tile.rows


def shape(grid: Grid | Tiles) -> str:
    """Return how many positions a picture has, in words."""
    if isinstance(grid, Grid):
        return f"{grid.rows} x {grid.columns} positions"
    return f"{len(grid)} positions in {len(grid.grids)} tiles"


def outline(axes: Axes, mask: Bool[Tensor, "height width"], color: str, *, width: float = 1.8, style: str = "solid") -> None:
    """Draw the edge of a mask, between its pixels; nothing for a mask that is all or nothing."""
    if not bool(mask.any()) or bool(mask.all()):
        return
    height, across = mask.shape
    edge: Any = np.pad(mask.numpy().astype(float), 1)
    x, y = np.arange(-1, across + 1) + 0.5, np.arange(-1, height + 1) + 0.5
    axes.contour(x, y, edge, levels=[0.5], colors=[color], linewidths=width, linestyles=style)
