"""Text and media as one object that knows which position of the stream holds what."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mmlens.results import Storable

Modality = Literal["text", "special", "image", "video", "audio", "pad"]
MODALITIES: tuple[Modality, ...] = ("text", "special", "image", "video", "audio", "pad")
MEDIA: tuple[Modality, ...] = ("image", "video", "audio")


@dataclass(frozen=True)
class Grid(Storable):
    """Where the positions of one image lie on it: `rows` x `columns`, row by row, over `region` of the image.

    `region` is (left, top, right, bottom) in pixels of the original image: the part that the tower saw, which a
    centre crop makes smaller than the image. `size` is the original image's (width, height).
    """

    rows: int
    columns: int
    region: tuple[float, float, float, float]
    size: tuple[int, int]

    def __len__(self) -> int:
        return self.rows * self.columns

    def box(self, index: int) -> tuple[float, float, float, float]:
        """Return (left, top, right, bottom) in pixels of the original image for the image's `index`-th position."""
        if not 0 <= index < len(self):
            raise IndexError(f"this grid has positions 0 to {len(self) - 1} ({self.rows} x {self.columns}), got {index}")
        left, top, right, bottom = self.region
        width, height = (right - left) / self.columns, (bottom - top) / self.rows
        row, column = divmod(index, self.columns)
        return (left + column * width, top + row * height, left + (column + 1) * width, top + (row + 1) * height)

    def index(self, x: float, y: float) -> int | None:
        """Return which position holds the pixel (x, y) of the original image, or None where the tower saw nothing."""
        left, top, right, bottom = self.region
        if not (left <= x < right and top <= y < bottom):
            return None
        column = int((x - left) / (right - left) * self.columns)
        row = int((y - top) / (bottom - top) * self.rows)
        return min(row, self.rows - 1) * self.columns + min(column, self.columns - 1)

    def overlap(self, mask: Bool[Tensor, "height width"]) -> Float[Tensor, " position"]:
        """Return, for every position, the fraction of its box that `mask` (of the original image) covers.

        A box edge that cuts a pixel counts that pixel in part. Raises ValueError for a mask of another size.
        """
        width, height = self.size
        if tuple(mask.shape) != (height, width):
            raise ValueError(f"a mask for this image is [{height}, {width}] (height, width), got {list(mask.shape)}")
        left, top, right, bottom = self.region
        across = _coverage(left, right, self.columns, width)
        down = _coverage(top, bottom, self.rows, height)
        area = (right - left) / self.columns * (bottom - top) / self.rows
        return (down @ mask.to(torch.float64) @ across.T).flatten() / area


def _coverage(start: float, stop: float, cells: int, pixels: int) -> Tensor:
    """Return how much of each pixel each of `cells` equal cells of [start, stop) covers: [cell, pixel]."""
    edges = torch.linspace(start, stop, cells + 1, dtype=torch.float64)
    pixel = torch.arange(pixels, dtype=torch.float64)
    low = torch.maximum(edges[:-1, None], pixel)
    high = torch.minimum(edges[1:, None], pixel + 1)
    return (high - low).clamp(min=0)


@dataclass(frozen=True)
class Span:
    """A run of neighbouring positions of one row that hold the same thing: positions `start` to `stop` - 1."""

    modality: Modality
    start: int
    stop: int
    medium: int | None = None

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Row:
    """One example as a family encodes it, before padding: tokens, what each holds, and what the towers are fed."""

    text: str
    tokens: list[int]
    modality: list[Modality]
    medium: list[int]
    tower: dict[str, Tensor]
    grids: tuple[Grid | None, ...] = ()
    media: tuple[Any, ...] = ()
    answer: int = 0


@dataclass(frozen=True, repr=False)
class Inputs:
    """A left-padded batch of text and media: what the model reads, and what each position of the stream holds.

    `tokens`, `attention_mask`: [batch, pos], media placeholders expanded. `tower`: what the towers are fed
    (`pixel_values` and kin), one leading entry per medium of the batch. `grids[row][medium]` maps a medium's positions
    to pixels, or is None where there is no map. `media[row][medium]` is the original image or sound.
    """

    text: tuple[str, ...]
    tokens: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    modality: Int[Tensor, "batch pos"]
    medium: Int[Tensor, "batch pos"]
    answer: Bool[Tensor, "batch pos"]
    tower: dict[str, Tensor]
    grids: tuple[tuple[Grid | None, ...], ...]
    media: tuple[tuple[Any, ...], ...]

    @classmethod
    def from_rows(cls, rows: Sequence[Row], *, pad: int) -> "Inputs":
        """Return the left-padded batch of `rows`. Raises ValueError when there are none."""
        if not rows:
            raise ValueError("Inputs need at least one row, got none: pass a text or a list of texts")
        length = max(len(row.tokens) for row in rows)

        def padded(values: Sequence[int], fill: int) -> list[int]:
            return [fill] * (length - len(values)) + list(values)

        names = list(rows[0].tower) if rows[0].tower else next((list(row.tower) for row in rows if row.tower), [])
        return cls(
            text=tuple(row.text for row in rows),
            tokens=torch.tensor([padded(row.tokens, pad) for row in rows]),
            attention_mask=torch.tensor([padded([1] * len(row.tokens), 0) for row in rows]),
            modality=torch.tensor(
                [padded([MODALITIES.index(m) for m in row.modality], MODALITIES.index("pad")) for row in rows]
            ),
            medium=torch.tensor([padded(row.medium, -1) for row in rows]),
            answer=torch.tensor(
                [padded([i >= len(row.tokens) - row.answer for i in range(len(row.tokens))], False) for row in rows]
            ),
            tower={name: torch.cat([row.tower[name] for row in rows if row.tower]) for name in names},
            grids=tuple(row.grids for row in rows),
            media=tuple(row.media for row in rows),
        )

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __repr__(self) -> str:
        rows, length = self.tokens.shape
        held = {kind: int((self.modality == index).sum()) for index, kind in enumerate(MODALITIES)}
        shown = ", ".join(f"{count} {kind}" for kind, count in held.items() if count)
        return f"Inputs({rows} row{'s' * (rows != 1)} of {length} positions: {shown})"

    def mask(self, *groups: str) -> Bool[Tensor, "batch pos"]:
        """Return where the stream holds any of `groups`.

        A group is a modality (`text`, `special`, `image`, `video`, `audio`, `pad`), one medium of each row (`image:0`),
        `answer` (the tokens given as `answer=`), `prompt` (all real positions before it) or `all` (all real positions).
        Raises KeyError for another name.
        """
        where = torch.zeros_like(self.tokens, dtype=torch.bool)
        for group in groups:
            where = where | self._group(group)
        return where

    def _group(self, group: str) -> Bool[Tensor, "batch pos"]:
        real = self.attention_mask.bool()
        name, _, medium = group.partition(":")
        if group in MODALITIES:
            return self.modality == MODALITIES.index(group)
        if name in MEDIA and medium.isdigit():
            return (self.modality == MODALITIES.index(name)) & (self.medium == int(medium))
        if group == "answer":
            return self.answer
        if group == "prompt":
            return real & ~self.answer
        if group == "all":
            return real
        raise KeyError(
            f"a group of positions is one of {', '.join(MODALITIES)}, one medium such as 'image:0', 'answer', 'prompt' "
            f"or 'all'; got {group!r}"
        )

    def last(self) -> Bool[Tensor, "batch pos"]:
        """Return a mask of each row's last real position, the `answer` included: where the next token is predicted."""
        where = torch.zeros_like(self.tokens, dtype=torch.bool)
        where[:, -1] = True
        return where

    def spans(self, row: int) -> list[Span]:
        """Return the runs of neighbouring positions of `row` that hold the same modality and medium, in order."""
        spans: list[Span] = []
        kinds = list(zip(self.modality[row].tolist(), self.medium[row].tolist(), strict=True))
        start = 0
        for stop in range(1, len(kinds) + 1):
            if stop == len(kinds) or kinds[stop] != kinds[start]:
                kind, medium = kinds[start]
                spans.append(Span(MODALITIES[kind], start, stop, None if medium < 0 else medium))
                start = stop
        return spans

    def to(self, device: torch.device | str) -> "Inputs":
        """Return these inputs with every tensor on `device`."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors, tower={name: value.to(device) for name, value in self.tower.items()})

    def kwargs(self) -> dict[str, Tensor]:
        """Return what transformers' forward and `generate` take: input_ids, attention_mask and the towers' tensors."""
        return {"input_ids": self.tokens, "attention_mask": self.attention_mask, **self.tower}

    def digest(self) -> str:
        """Return a SHA-256 (first 16 hex digits) of tokens, mask and tower tensors: equal inputs have equal digests."""
        sha = hashlib.sha256()
        for name, value in sorted(self.kwargs().items()):
            sha.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            sha.update(
                value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype).numpy().tobytes()
            )
        return sha.hexdigest()[:16]


def images_per_row(images: Any, rows: int, *, single: bool) -> list[list[Image.Image]]:
    """Return the pictures of each row: `images` is one, a list for a `single` text, or one entry per row.

    Raises ValueError where entries and rows do not match, FileNotFoundError and ValueError for a file that is no image.
    """
    if images is None:
        return [[] for _ in range(rows)]
    if single:
        return [[_image(one) for one in images] if isinstance(images, (list, tuple)) else [_image(images)]]
    if not isinstance(images, (list, tuple)) or len(images) != rows:
        got = f"{len(images)} entries" if isinstance(images, (list, tuple)) else "one image"
        raise ValueError(f"with {rows} texts, images is a list with one entry (image, list or None) per text; got {got}")
    return [entry for one in images for entry in images_per_row(one, 1, single=True)]


def _image(source: Any) -> Image.Image:
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if isinstance(source, np.ndarray):
        return Image.fromarray(source).convert("RGB")
    if not isinstance(source, (str, Path)):
        raise TypeError(f"an image is a PIL image, an array or a file's path, got a {type(source).__name__}")
    return read_image(source)


def read_image(path: str | Path) -> Image.Image:
    """Return the picture in a file, upright and in RGB.

    Raises FileNotFoundError where there is no file, ValueError where it is no picture, damaged, or too large to be safe.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no picture at {path}" + (": that is a folder" if path.is_dir() else ""))
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture that Pillow can read: give a PNG, JPEG, WebP or the like") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"the picture {path} is damaged or too large ({error}): save it again") from error
