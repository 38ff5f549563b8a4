"""Pictures in tiles whose features are put together again: an overview first, then the lattice of all tiles.

The picture is resized into the best of several resolutions and padded, cut into square tiles, and each tile goes through
the tower. The model lays the tiles' features side by side, cuts off whole rows or columns that padding filled, and ends
every row with a position of its own.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
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


def anyres(
    size: tuple[int, int], pinpoints: Sequence[Sequence[int]], *, edge: int, patch: int, most: int | None = None
) -> Tiles:
    """Return where the positions of a picture of `size` (width, height) lie: the overview, then the rows of all tiles.

    `pinpoints` are the resolutions (height, width) to choose from, `edge` a tile's and `patch` a patch's width in pixels.
    With `most`, a lattice of (much) more positions than that many tiles have is shrunk. Boxes reach over the picture's
    edge where padding shares a position with it.
    """
    (width, height), target, count = size, _target(size, pinpoints, edge), edge // patch
    resized = _resized((height, width), target)
    rows, columns = (length // edge * count for length in target)
    cut = [0, 0]
    if width / height > columns / rows:
        cut[0] = (rows - int(round(height * (columns / width), 7))) // 2
    else:
        cut[1] = (columns - int(round(width * (rows / height), 7))) // 2
    kept = [rows - 2 * cut[0], columns - 2 * cut[1]]
    ratio = math.sqrt(kept[0] * kept[1] / (most * count**2)) if most else 0.0
    new = [int(length // ratio) for length in kept] if ratio > 1.1 else kept
    if 0 in new:  # of a very flat picture no row or column is kept: what ends its rows is all there is
        ends = Grid(new[0], 0, (0.0, 0.0, float(width), float(height)), size, newline=True)
        return Tiles((overview(size, edge=edge, patch=patch), *([ends] if new[0] else [])), size)
    down, across = (
        _lines(lines, gone, length, edge=edge, patch=patch, place=(whole - part) // 2, scale=original / part)
        for lines, gone, length, whole, part, original in zip(new, cut, kept, target, resized, (height, width), strict=True)
    )
    region = (across[0][0], down[0][0], across[-1][1], down[-1][1])
    rows_at, columns_at = ((), ()) if edge == count * patch else (tuple(down), tuple(across))
    fine = Grid(new[0], new[1], region, size, newline=True, rows_at=rows_at, columns_at=columns_at)
    return Tiles((overview(size, edge=edge, patch=patch), fine), size)


def tile_count(size: tuple[int, int], pinpoints: Sequence[Sequence[int]], *, edge: int) -> int:
    """Return how many tiles a picture of `size` (width, height) goes through the tower in, the overview among them."""
    height, width = _target(size, pinpoints, edge)
    return 1 + height // edge * (width // edge)


def _target(size: tuple[int, int], pinpoints: Sequence[Sequence[int]], edge: int) -> tuple[int, int]:
    """Return the (height, width) of the lattice of tiles that a picture of `size` (width, height) is put into."""
    target = select_best_resolution((size[1], size[0]), [tuple(one) for one in pinpoints])
    if target is None or target[0] % edge or target[1] % edge:
        raise UnsupportedModel(
            f"mmlens knows resolutions in whole tiles of {edge} pixels; a picture of {size} gets {target}"
        )
    return target


def _resized(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of a picture that was resized to fit into the target."""
    down, across = target[0] / size[0], target[1] / size[1]
    if across < down:
        return min(math.ceil(size[0] * across), target[0]), target[1]
    return target[0], min(math.ceil(size[1] * down), target[1])


def _lines(
    lines: int, gone: int, kept: int, *, edge: int, patch: int, place: int, scale: float
) -> list[tuple[float, float]]:
    """Return where, on the original picture, each of `lines` rows (or columns) begins and ends.

    They are what is made of the `kept` ones behind the first `gone`; the padded picture shows the original from `place` on.
    """
    count = edge // patch

    def at(line: float, whole: int) -> float:
        tile, inner = divmod(whole, count)
        return (tile * edge + (inner + line - whole) * patch - place) * scale

    edges = [gone + index * kept / lines for index in range(lines + 1)]
    return [(at(begin, math.floor(begin)), at(end, math.ceil(end) - 1)) for begin, end in pairwise(edges)]
