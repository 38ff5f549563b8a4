"""Text and media as one object that knows which position of the stream holds what."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlens.grid import Grid, Place, Tiles, Timeline

Modality = Literal["text", "special", "image", "video", "audio", "pad"]
MODALITIES: tuple[Modality, ...] = ("text", "special", "image", "video", "audio", "pad")
PAD = MODALITIES.index("pad")
MEDIA: tuple[Modality, ...] = ("image", "video", "audio")
_PART = re.compile(r"(?P<kind>image|video|audio):(?P<medium>\d+)(?:/(?P<part>tile|frame):(?P<number>\d+))?")


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
    """One example as a family encodes it, before padding: tokens, what each holds, and what the towers are fed.

    `medium` numbers images, then videos, then sounds (-1: none), as `grids` and `media` do. `stream` is what the model
    takes beside the tokens, a number per position (`mm_token_type_ids` and kin); `tower` has a leading axis of media,
    tiles or patches, along which rows are joined.

    `entries` says what the leading axis of a tower's activations counts: (medium, how many of it) in the order in which a
    tower reads them, for each tensor of `tower` that is read on its own (none said: one entry for each medium). `inside`
    holds, for the modules whose entries are not all of their medium, what each position inside an entry is [entry, pos]:
    an index in MODALITIES, "pad" where there is nothing.
    """

    text: str
    tokens: list[int]
    modality: list[Modality]
    medium: list[int]
    tower: dict[str, Tensor]
    grids: tuple[Place, ...] = ()
    media: tuple[Any, ...] = ()
    stream: dict[str, list[int]] = field(default_factory=dict)
    answer: int = 0
    entries: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    inside: dict[str, Int[Tensor, "_ _"]] = field(default_factory=dict)

    def answered(self, tokens: Sequence[int], **stream: int) -> "Row":
        """Return this row with the answer `tokens` behind it; `stream` says what they are in there (0 unless said)."""
        return replace(
            self,
            tokens=[*self.tokens, *tokens],
            modality=[*self.modality, *["text"] * len(tokens)],
            medium=[*self.medium, *[-1] * len(tokens)],
            stream={name: [*values, *[stream.get(name, 0)] * len(tokens)] for name, values in self.stream.items()},
            answer=len(tokens),
        )


@dataclass(frozen=True, repr=False)
class Inputs:
    """A left-padded batch of text and media: what the model reads, and what each position of the stream holds.

    `tokens`, `attention_mask`: [batch, pos], media placeholders expanded. `tower`: what the towers are fed
    (`pixel_values` and kin), in the order of the rows. `stream`: what the model takes beside the tokens, [batch, pos].
    `grids[row][medium]` maps a medium's positions to pixels or seconds, or is None where there is no map.
    `media[row][medium]` is the original image, video or sound: images first, then videos, then sounds. `entries` are
    (row, medium, how many) in the order in which towers read them, `inside` what their positions are; see `Row` and `held`.
    """

    text: tuple[str, ...]
    tokens: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    modality: Int[Tensor, "batch pos"]
    medium: Int[Tensor, "batch pos"]
    answer: Bool[Tensor, "batch pos"]
    tower: dict[str, Tensor]
    grids: tuple[tuple[Place, ...], ...]
    media: tuple[tuple[Any, ...], ...]
    stream: dict[str, Int[Tensor, "batch pos"]] = field(default_factory=dict)
    entries: tuple[tuple[int, int, int], ...] = ()
    inside: dict[str, Int[Tensor, "_ _"]] = field(default_factory=dict)

    @classmethod
    def from_rows(cls, rows: Sequence[Row], *, pad: int) -> "Inputs":
        """Return the left-padded batch of `rows`. Raises ValueError when there are none."""
        if not rows:
            raise ValueError("Inputs need at least one row, got none: pass a text or a list of texts")
        length = max(len(row.tokens) for row in rows)

        def padded(values: Sequence[int], fill: int) -> list[int]:
            return [fill] * (length - len(values)) + list(values)

        towers = dict.fromkeys(name for row in rows for name in row.tower)
        streams = dict.fromkeys(name for row in rows for name in row.stream)
        insides = dict.fromkeys(name for row in rows for name in row.inside)
        return cls(
            text=tuple(row.text for row in rows),
            tokens=torch.tensor([padded(row.tokens, pad) for row in rows]),
            attention_mask=torch.tensor([padded([1] * len(row.tokens), 0) for row in rows]),
            modality=torch.tensor([padded([MODALITIES.index(m) for m in row.modality], PAD) for row in rows]),
            medium=torch.tensor([padded(row.medium, -1) for row in rows]),
            answer=torch.tensor(
                [padded([i >= len(row.tokens) - row.answer for i in range(len(row.tokens))], False) for row in rows]
            ),
            tower={name: _joined([row.tower[name] for row in rows if name in row.tower]) for name in towers},
            grids=tuple(row.grids for row in rows),
            media=tuple(row.media for row in rows),
            stream={name: torch.tensor([padded(row.stream.get(name, []), 0) for row in rows]) for name in streams},
            entries=_entries(rows),
            inside={name: _joined([row.inside[name] for row in rows if name in row.inside], fill=PAD) for name in insides},
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

        A group is a modality (`text`, `special`, `image`, `video`, `audio`, `pad`), one medium of each row (`image:0`,
        `video:1`), a part of it (`image:0/tile:2`; `video:0/frame:3`, a frame that was given), `answer` (the tokens
        given as `answer=`), `prompt` (all real positions before it) or `all` (all real positions). Raises KeyError for
        another name, and for a medium that no row has.
        """
        where = torch.zeros_like(self.tokens, dtype=torch.bool)
        for group in groups:
            where = where | self._group(group)
        return where

    def _group(self, group: str) -> Bool[Tensor, "batch pos"]:
        real = self.attention_mask.bool()
        if group in MODALITIES:
            return self.modality == MODALITIES.index(group)
        if named := _PART.fullmatch(group):
            return self._medium(named["kind"], int(named["medium"]), named["part"], int(named["number"] or 0))
        if group == "answer":
            return self.answer
        if group == "prompt":
            return real & ~self.answer
        if group == "all":
            return real
        raise KeyError(
            f"a group of positions is one of {', '.join(MODALITIES)}, one medium such as 'image:0', a part of it such as "
            f"'image:0/tile:1' or 'video:0/frame:2', 'answer', 'prompt' or 'all'; got {group!r}"
        )

    def _medium(self, kind: str, number: int, part: str | None, index: int) -> Bool[Tensor, "batch pos"]:
        """Return where each row holds its `number`-th medium of a kind, or one tile or frame of it."""
        where, held = torch.zeros_like(self.tokens, dtype=torch.bool), False
        for row in range(len(self)):
            of_kind = self.modality[row] == MODALITIES.index(kind)
            owners = self.medium[row][of_kind].unique()  # sorted
            if number >= len(owners):
                continue
            own = of_kind & (self.medium[row] == owners[number])
            if part is not None:
                place = self.grids[row][int(owners[number])]
                tiles = place.grids if isinstance(place, Tiles) else (place,) if isinstance(place, Grid) else ()
                chosen = [
                    index == tile if part == "tile" else grid.frames is not None and grid.frames[0] <= index < grid.frames[1]
                    for tile, grid in enumerate(tiles)
                    for _ in range(len(grid))
                ] or [False] * int(own.sum())
                own[own.clone()] = torch.tensor(chosen, device=own.device)
            where[row] = own
            held = True
        if not held:
            raise KeyError(
                f"no row holds {kind}:{number}: media of a kind are numbered from 0 in each row, and {self} has fewer"
            )
        return where

    def overlap(
        self, area: Bool[Tensor, "*frame height width"] | Sequence[int | float], *, row: int = 0, medium: int = 0
    ) -> Float[Tensor, "batch pos"]:
        """Return, for every position of the stream, the fraction of its piece of a medium that `area` covers.

        `area` is a mask of the original picture (or of a video's frames), a box (left, top, right, bottom) in its pixels,
        or, of a sound, (start, stop) in seconds. It is 0 at all positions that do not hold that medium of `row`. Raises
        ValueError where the row has no such medium, and where its positions have no place on it.
        """
        places = self.grids[row]
        place = places[medium] if 0 <= medium < len(places) else None
        if place is None:
            what = "whose positions have no place on it" if 0 <= medium < len(places) else f"and not medium {medium}"
            raise ValueError(f"overlaps need a medium with a grid; row {row} has {len(places)} media, {what}")
        if isinstance(place, Timeline) != (not isinstance(area, Tensor) and len(area) == 2):
            raise ValueError(
                "an area is a mask or a box (left, top, right, bottom) of a picture, or (start, stop) of a sound; got "
                + (f"a mask {list(area.shape)}" if isinstance(area, Tensor) else f"{len(area)} numbers")
                + f" for a {'sound' if isinstance(place, Timeline) else 'picture'}"
            )
        if isinstance(place, Timeline):
            start, stop = (float(edge) for edge in area)
            fractions = place.overlap(start, stop)
        elif isinstance(area, Tensor):
            fractions = place.overlap(area)
        else:
            left, top, right, bottom = (float(edge) for edge in area)
            fractions = place.box_overlap((left, top, right, bottom))
        found = torch.zeros(self.tokens.shape, dtype=fractions.dtype, device=self.tokens.device)
        found[row, self.medium[row] == medium] = fractions.to(found.device)
        return found

    def last(self) -> Bool[Tensor, "batch pos"]:
        """Return a mask of each row's last real position, the `answer` included: where the next token is predicted."""
        where = torch.zeros_like(self.tokens, dtype=torch.bool)
        where[:, -1] = True
        return where

    def held(self, module: str, shape: Sequence[int]) -> tuple[Int[Tensor, "..."], Int[Tensor, "..."]]:
        """Return which row each vector of an activation belongs to (-1: padding of any kind), and the modality it holds.

        `shape` is the activation's without its last axis, and the shape of both; modalities are indices in MODALITIES.
        `module` is `language` ([batch, pos]) or one of the others: [entry, pos], where entries are media or tiles, or
        [entry], where they are patches, or positions of the stream made of them. Raises ValueError for a shape that the
        activations of these inputs do not have.
        """
        if module == "language":
            _fits(module, shape, tuple(self.tokens.shape))
            rows = torch.arange(len(self), device=self.tokens.device)[:, None]
            return rows.where(self.attention_mask.bool(), -1), self.modality
        own = [self.medium[row] == medium for row, medium, _ in self.entries]
        sizes, positions = [count for *_, count in self.entries], [int(here.sum()) for here in own]
        inside = self.inside.get(module)
        if inside is None and len(shape) == 1 and shape[0] != sum(sizes):
            sizes = positions
        _fits(module, shape, (sum(sizes), *shape[1:2]) if inside is None else tuple(inside.shape))
        repeats = self.modality.new_tensor(sizes)

        def spread(values: Sequence[int]) -> Tensor:
            each = self.modality.new_tensor(values).repeat_interleave(repeats)
            return each.view(-1, *[1] * (len(shape) - 1)).expand(*shape)

        rows = spread([row for row, *_ in self.entries])
        if inside is not None:
            return rows.where(inside != PAD, -1), inside
        kinds = [int(self.modality[row][here][0]) for (row, *_), here in zip(self.entries, own, strict=True)]
        return rows, spread(kinds)

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
        parts = ("tower", "stream", "inside")
        fed = {part: {name: value.to(device) for name, value in getattr(self, part).items()} for part in parts}
        return replace(self, **tensors, **fed)

    def kwargs(self) -> dict[str, Tensor]:
        """Return what transformers' forward and `generate` take: input_ids, attention_mask, stream and tower tensors."""
        return {"input_ids": self.tokens, "attention_mask": self.attention_mask, **self.stream, **self.tower}

    def digest(self) -> str:
        """Return a SHA-256 (first 16 hex digits) of tokens, mask and tower tensors: equal inputs have equal digests."""
        sha = hashlib.sha256()
        for name, value in sorted(self.kwargs().items()):
            sha.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            sha.update(
                value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype).numpy().tobytes()
            )
        return sha.hexdigest()[:16]


def _entries(rows: Sequence[Row]) -> tuple[tuple[int, int, int], ...]:
    """Return (row, medium, how many) in the order in which towers read: the pictures of all rows, then their videos."""
    read = [row.entries or {"": [(medium, 1) for medium in range(len(row.media))]} for row in rows]
    tensors = sorted({name for one in read for name in one})  # pixel_values before pixel_values_videos
    return tuple((row, *entry) for name in tensors for row, one in enumerate(read) for entry in one.get(name, ()))


def _fits(module: str, got: Sequence[int], expected: tuple[int, ...]) -> None:
    """Raise ValueError for the shape of an activation (without its units) that is not the expected one."""
    if tuple(got) != expected:
        raise ValueError(
            f"activations of {module} on these inputs are {list(expected)} without their last axis, got {list(got)}: give "
            "the shape of a neuron's activation (hook_post) in this very run, at its prompt"
        )


def _joined(parts: list[Tensor], fill: int = 0) -> Tensor:
    """Return `parts` one after the other along the first axis; along the others, the shorter end in `fill`."""
    shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]

    def whole(part: Tensor) -> Tensor:
        missing = [(0, size - own) for size, own in zip(shape, part.shape[1:], strict=True)]
        return torch.nn.functional.pad(part, [edge for pair in reversed(missing) for edge in pair], value=fill)

    return torch.cat([part if list(part.shape[1:]) == shape else whole(part) for part in parts])
