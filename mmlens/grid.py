"""Where the positions of a medium lie on it: on pixels of a picture or of a video's frames, on seconds of a sound."""

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
    `newline`, each row ends with one position more, which holds no piece of the image. `frames` (first, last + 1) says
    which frames of a video the positions hold.
    """

    rows: int
    columns: int
    region: Box
    size: tuple[int, int]
    newline: bool = False
    frames: tuple[int, int] | None = None

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
        width, height = (right - left) / self.columns, (bottom - top) / self.rows
        return (left + column * width, top + row * height, left + (column + 1) * width, top + (row + 1) * height)

    def index(self, x: float, y: float) -> int | None:
        """Return which position holds the pixel (x, y) of the original image, or None where the tower saw nothing."""
        left, top, right, bottom = self.region
        if not (left <= x < right and top <= y < bottom):
            return None
        column = int((x - left) / (right - left) * self.columns)
        row = int((y - top) / (bottom - top) * self.rows)
        return min(row, self.rows - 1) * self._stride + min(column, self.columns - 1)

    def overlap(self, mask: Bool[Tensor, "*frame height width"]) -> Float[Tensor, " position"]:
        """Return, for every position, the fraction of its box that `mask` (of the original image) covers.

        A box edge that cuts a pixel counts that pixel in part; a position that ends a row has 0. For a video the mask
        may have a frame axis: then the fraction is the mean over the position's frames. Raises ValueError for a mask of
        another size.
        """
        width, height = self.size
        if tuple(mask.shape[-2:]) != (height, width) or mask.ndim > 2 + (self.frames is not None):
            raise ValueError(f"a mask for this image is [{height}, {width}] (height, width), got {list(mask.shape)}")
        covered = mask.to(torch.float64)
        if mask.ndim == 3 and self.frames is not None:
            covered = covered[self.frames[0] : self.frames[1]].mean(0)
        left, top, right, bottom = self.region
        across = _coverage(left, right, self.columns, width)
        down = _coverage(top, bottom, self.rows, height)
        area = (right - left) / self.columns * (bottom - top) / self.rows
        fractions = down @ covered @ across.T / area
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
        found = int(second // self.step)
        return found if 0 <= found < self.count else None

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
    """Return the area of a position's box."""
    left, top, right, bottom = grid.region
    return (right - left) * (bottom - top) / (grid.rows * grid.columns)


def _coverage(start: float, stop: float, cells: int, pixels: int) -> Tensor:
    """Return how much of each pixel each of `cells` equal cells of [start, stop) covers: [cell, pixel]."""
    edges = torch.linspace(start, stop, cells + 1, dtype=torch.float64)
    pixel = torch.arange(pixels, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], pixel)
    high = torch.minimum(edges[1:, None], pixel + 1)
    return (high - low).clamp(min=0)
