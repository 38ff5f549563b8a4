"""Pictures in tiles whose features are put together again: an overview first, then the lattice of all tiles.

The picture is resized into the best of several resolutions and padded, cut into square tiles, and each tile goes through
the tower. The model lays the tiles' features side by side, cuts off whole rows or columns that padding filled, and ends
every row with a position of its own.
"""

import math
from collections.abc import Sequence
from typing import Any

from transformers.image_processing_utils import select_best_resolution

from mmlens.families.family import UnsupportedModel, one_of
from mmlens.grid import Grid, Tiles


def tile_edge(settings: Any) -> int:
    """Return how many pixels wide and high a tile is, from an image processor's settings.

    Raises UnsupportedModel for tiles that are not square, or of which a part is cut off.
    """
    size = {name: value for name, value in dict(settings.size).items() if value is not None}
    edges = set(size.values())
    if set(size) not in ({"shortest_edge"}, {"height", "width"}) or len(edges) != 1:
        raise UnsupportedModel(f"mmlens knows square tiles; this image processor resizes to {size}")
    if getattr(settings, "do_center_crop", False):
        crop = settings.crop_size
        one_of("crop_size", (crop["height"], crop["width"]), [(*edges, *edges)])
    one_of("do_resize", settings.do_resize, (True,))
    return edges.pop()


def overview(size: tuple[int, int], *, edge: int, patch: int) -> Grid:
    """Return the lattice of one tile that shows the whole picture of `size` (width, height)."""
    count = edge // patch
    seen = count * patch / edge  # what is left over at the right and at the bottom is not looked at
    return Grid(count, count, (0.0, 0.0, size[0] * seen, size[1] * seen), size)


def anyres(size: tuple[int, int], pinpoints: Sequence[Sequence[int]], *, edge: int, patch: int) -> Tiles:
    """Return where the positions of a picture of `size` (width, height) lie: the overview, then the rows of all tiles.

    `pinpoints` are the resolutions (height, width) to choose from, `edge` a tile's and `patch` a patch's width in pixels.
    Boxes reach over the picture's edge where padding shares a position with it.
    """
    width, height = size
    target = select_best_resolution((height, width), [tuple(one) for one in pinpoints])
    if target is None or target[0] % edge or target[1] % edge:
        raise UnsupportedModel(
            f"mmlens knows resolutions in whole tiles of {edge} pixels; a picture of {size} gets {target}"
        )
    count = edge // patch
    resized = _resized((height, width), target)
    rows, columns = (length // edge * count for length in target)
    cut = [0, 0]
    if width / height > columns / rows:
        cut[0] = (rows - int(round(height * (columns / width), 7))) // 2
    else:
        cut[1] = (columns - int(round(width * (rows / height), 7))) // 2
    down, across = (
        _stretch(lattice, gone, place=(whole - part) // 2, scale=original / part, patch=patch)
        for lattice, gone, whole, part, original in zip((rows, columns), cut, target, resized, (height, width), strict=True)
    )
    region = (across[0], down[0], across[1], down[1])
    fine = Grid(rows - 2 * cut[0], columns - 2 * cut[1], region, size, newline=True)
    return Tiles((overview(size, edge=edge, patch=patch), fine), size)


def _resized(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of a picture that was resized to fit into the target."""
    down, across = target[0] / size[0], target[1] / size[1]
    if across < down:
        return min(math.ceil(size[0] * across), target[0]), target[1]
    return target[0], min(math.ceil(size[1] * down), target[1])


def _stretch(lattice: int, gone: int, *, place: int, scale: float, patch: int) -> tuple[float, float]:
    """Return where, on the original picture, the rows (or columns) that are kept begin and end."""
    return ((gone * patch - place) * scale, ((lattice - gone) * patch - place) * scale)
