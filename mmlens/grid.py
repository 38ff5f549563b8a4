"""Where the positions of a medium lie on it: on pixels of a picture or of a video's frames, on seconds of a sound."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mmlens.results import Storable

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Grid(Storable):
    """Where the positions of one image lie on it: `rows` x `columns`, row by row, over `region` of the image.

    `region` is (left, top, right, bottom) in pixels of the original image: the part that the tower saw, which a
    centre crop makes smaller than the image, and padding larger. `size` is the original image's (width, height). With
    `newline`, each row ends with one position more, which holds no piece of the image (so a grid of one row and no columns
    is such a position alone). `frames` (first, last + 1) says which frames of a video the positions hold. Cells are equal
    unless `rows_at` and `columns_at` say where, in pixels, each row and column begins and ends: where a tower leaves out
    the edge of every tile, a column that crosses from one tile to the next skips pixels.
    """

    rows: int
    columns: int
    region: Box
    size: tuple[int, int]
    newline: bool = False
    frames: tuple[int, int] | None = None
    rows_at: tuple[tuple[float, float], ...] = ()
    columns_at: tuple[tuple[float, float], ...] = ()

    def __len__(self) -> int:
        return self.rows * self._stride

    @property
    def _stride(self) -> int:
        return self.columns + self.newline

    @property
    def grids(self) -> "tuple[Grid, ...]":
        """This grid alone, so that it can be read as `Tiles` are."""
        return (self,)

    def painted(self, values: Shaped[Tensor, "*n position"]) -> "list[tuple[Grid, Shaped[Tensor, '*n row column']]]":
        """Return this grid with the values of its positions as rows and columns, those that end a row left out."""
        if not self.columns:
            return []
        return [(self, values.unflatten(-1, (self.rows, self._stride))[..., : self.columns])]

    def box(self, index: int) -> Box | None:
        """Return (left, top, right, bottom) in pixels of the original image for the image's `index`-th position.

        None for the position that ends a row.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"this grid has positions 0 to {len(self) - 1} ({self.rows} x {self.columns}), got {index}")
        row, column = divmod(index, self._stride)
        if column == self.columns:
            return None
        left, top, right, bottom = self.region
        across = self.columns_at[column] if self.columns_at else _cell_of(left, right, self.columns, column)
        down = self.rows_at[row] if self.rows_at else _cell_of(top, bottom, self.rows, row)
        return (across[0], down[0], across[1], down[1])

    def index(self, x: float, y: float) -> int | None:
        """Return which position holds the pixel (x, y) of the original image, or None where the tower saw nothing."""
        left, top, right, bottom = self.region
        if not (left <= x < right and top <= y < bottom):
            return None
        column = _holding(x, left, right, self.columns, self.columns_at)
        row = _holding(y, top, bottom, self.rows, self.rows_at)
        return None if row is None or column is None else row * self._stride + column

    def overlap(self, mask: Bool[Tensor, "*frame height width"]) -> Float[Tensor, " position"]:
        """Return, for every position, the fraction of its box that `mask` (of the original image) covers.

        A box edge that cuts a pixel counts that pixel in part; a position that ends a row has 0. For a video the mask
        may have a frame axis: then the fraction is the mean over the position's frames. Raises ValueError for a mask of
        another size.
        """
        width, height = self.size
        if tuple(mask.shape[-2:]) != (height, width) or mask.ndim > 2 + (self.frames is not None):
            raise ValueError(f"a mask for this image is [{height}, {width}] (height, width), got {list(mask.shape)}")
        if mask.ndim == 3 and self.frames is not None and len(mask) < self.frames[1]:
            raise ValueError(f"a mask of this video has at least {self.frames[1]} frames, got {list(mask.shape)}")
        covered = mask.to("cpu", torch.float64)
        if mask.ndim == 3 and self.frames is not None:
            covered = covered[self.frames[0] : self.frames[1]].mean(0)
        left, top, right, bottom = self.region
        across = _cells(left, right, self.columns, self.columns_at)
        down = _cells(top, bottom, self.rows, self.rows_at)
        area = down.diff(dim=1) * across.diff(dim=1).T
        fractions = _coverage(down, height) @ covered @ _coverage(across, width).T / area
        return torch.nn.functional.pad(fractions, (0, int(self.newline))).flatten()

    def box_overlap(self, box: Box) -> Float[Tensor, " position"]:
        """Return, for every position, the fraction of its box that `box` (left, top, right, bottom, pixels) covers."""
        own = torch.tensor([self.box(index) or (0.0, 0.0, 0.0, 0.0) for index in range(len(self))], dtype=torch.float64)
        other = torch.tensor(box, dtype=torch.float64)
        sides = (torch.minimum(own[:, 2:], other[2:]) - torch.maximum(own[:, :2], other[:2])).clamp(min=0)
        return sides.prod(-1) / (own[:, 2:] - own[:, :2]).prod(-1).clamp(min=torch.finfo(torch.float64).tiny)


@dataclass(frozen=True)
class Tiles(Storable):
    """Where the positions of an image in several tiles, or of a video's frames, lie: one `Grid` after the other.

    Tiles may overlap (an overview of the whole image beside its parts). `size` is the original's (width, height).
    """

    grids: tuple[Grid, ...]
    size: tuple[int, int]

    def __len__(self) -> int:
        return sum(map(len, self.grids))

    @property
    def region(self) -> Box:
        """The smallest box around all tiles."""
        left, top, right, bottom = zip(*(grid.region for grid in self.grids), strict=True)
        return min(left), min(top), max(right), max(bottom)

    def painted(self, values: Shaped[Tensor, "*n position"]) -> "list[tuple[Grid, Shaped[Tensor, '*n row column']]]":
        """Return each tile with the values of its positions, coarse tiles first: fine ones then cover them."""
        parts = zip(self.grids, values.split([len(grid) for grid in self.grids], dim=-1), strict=True)
        return sorted((pair for grid, part in parts for pair in grid.painted(part)), key=lambda pair: -_cell(pair[0]))

    def tile(self, index: int) -> tuple[int, int]:
        """Return which tile the medium's `index`-th position belongs to, and which position of that tile it is."""
        if not 0 <= index < len(self):
            raise IndexError(f"these tiles have positions 0 to {len(self) - 1}, got {index}")
        stops = list(accumulate(map(len, self.grids)))
        tile = bisect_right(stops, index)
        return tile, index - (stops[tile] - len(self.grids[tile]))

    def box(self, index: int) -> Box | None:
        """Return (left, top, right, bottom) in pixels of the original for the `index`-th position, as `Grid.box` does."""
        tile, inner = self.tile(index)
        return self.grids[tile].box(inner)

    def indices(self, x: float, y: float) -> list[int]:
        """Return the positions that hold the pixel (x, y), one of each tile that saw it, in their order."""
        starts = [0, *accumulate(map(len, self.grids))]
        found = [(start, grid.index(x, y)) for start, grid in zip(starts, self.grids, strict=False)]
        return [start + index for start, index in found if index is not None]

    def index(self, x: float, y: float) -> int | None:
        """Return the position that shows the pixel (x, y) largest (of the first such tile), or None where none does."""

        def area(index: int) -> float:
            left, top, right, bottom = self.box(index) or (0.0, 0.0, 0.0, 0.0)
            return (right - left) * (bottom - top)

        return min(self.indices(x, y), key=area, default=None)

    def overlap(self, mask: Bool[Tensor, "*frame height width"]) -> Float[Tensor, " position"]:
        """Return, for every position, the fraction of its box that `mask` covers, as `Grid.overlap` does."""
        return torch.cat([grid.overlap(mask) for grid in self.grids])

    def box_overlap(self, box: Box) -> Float[Tensor, " position"]:
        """Return, for every position, the fraction of its box that `box` (left, top, right, bottom, pixels) covers."""
        return torch.cat([grid.box_overlap(box) for grid in self.grids])


@dataclass(frozen=True)
class Timeline(Storable):
    """Where the positions of a sound lie in time: `count` positions of `step` seconds each, from its beginning."""

    count: int
    step: float

    def __len__(self) -> int:
        return self.count

    def seconds(self, index: int) -> tuple[float, float]:
        """Return when the sound's `index`-th position begins and ends, in seconds."""
        if not 0 <= index < self.count:
            raise IndexError(f"this sound has positions 0 to {self.count - 1}, got {index}")
        return index * self.step, (index + 1) * self.step

    def index(self, second: float) -> int | None:
        """Return which position holds the moment `second`, or None outside of the sound."""
        if not 0 <= second < self.count * self.step:
            return None
        found = int(second / self.step)
        begin, end = found * self.step, (found + 1) * self.step  # the division has rounded: edges are what `seconds` says
        return found + 1 if end <= second else found - 1 if begin > second else found

    def overlap(self, start: float, stop: float) -> Float[Tensor, " position"]:
        """Return, for every position, the fraction of its time that lies between `start` and `stop` (seconds)."""
        begins = torch.arange(self.count, dtype=torch.float64) * self.step
        return ((begins + self.step).clamp(max=stop) - begins.clamp(min=start)).clamp(min=0) / self.step


Place = Grid | Tiles | Timeline | None


def finest(place: Grid | Tiles) -> tuple[Grid, ...]:
    """Return the tiles that show the picture largest (within a factor of two of the largest, by area)."""
    smallest = min(map(_cell, place.grids))
    return tuple(grid for grid in place.grids if _cell(grid) <= 2 * smallest)


def _cell(grid: Grid) -> float:
    """Return the area of a position's box; a grid that holds no piece of the image has no end of it."""
    left, top, right, bottom = grid.region
    return (right - left) * (bottom - top) / (grid.rows * grid.columns) if grid.columns else math.inf


def _cell_of(start: float, stop: float, cells: int, index: int) -> tuple[float, float]:
    """Return where the `index`-th of `cells` equal cells of [start, stop) begins and ends."""
    size = (stop - start) / cells
    return start + index * size, start + (index + 1) * size


def _holding(place: float, start: float, stop: float, cells: int, at: tuple[tuple[float, float], ...]) -> int | None:
    """Return which cell holds a `place` in [start, stop): None between cells, and where there are none."""
    if at:
        return next((index for index, (begin, end) in enumerate(at) if begin <= place < end), None)
    return min(int((place - start) / (stop - start) * cells), cells - 1) if cells else None


def _cells(start: float, stop: float, cells: int, at: tuple[tuple[float, float], ...]) -> Tensor:
    """Return where each cell begins and ends: [cell, 2]."""
    if at:
        return torch.tensor(at, dtype=torch.float64)
    edges = torch.linspace(start, stop, cells + 1, dtype=torch.float64)
    return torch.stack([edges[:-1], edges[1:]], dim=1)


def _coverage(cells: Tensor, pixels: int) -> Tensor:
    """Return how much of each pixel each cell [cell, 2] covers: [cell, pixel]."""
    pixel = torch.arange(pixels, dtype=torch.float64)
    low = torch.maximum(cells[:, :1], pixel)
    high = torch.minimum(cells[:, 1:], pixel + 1)
    return (high - low).clamp(min=0)
