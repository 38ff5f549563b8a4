"""The examples that commands run over: benchmarks, tables of one's own, and scenes of Pictoworld."""

import json
import sys
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmlens.cli.stopping import first_line, quiet, stop

if TYPE_CHECKING:
    from mmlens.data import Example

PICTOWORLD = "pictoworld"
SCENES = 100  # of Pictoworld, unless told
MEDIA = ("images", "audio", "videos")

Data = Annotated[
    list[str],
    typer.Argument(
        help="One or more of: pictoworld (its held-out scenes), a benchmark's name, or a table of yours: a .jsonl, .json, "
        ".csv or .parquet file, or a folder with one, whose columns are text, and of images, audio, videos, answers, label "
        "and id what there is. Media are paths, relative to the table."
    ),
]
Number = Annotated[
    int | None, typer.Option("--n", "-n", min=1, help=f"The first so many of each (default: all; of pictoworld {SCENES}).")
]
Split = Annotated[str | None, typer.Option(help="train, test, ... (default: the benchmark's own; of a folder, test).")]
Folder = Annotated[
    list[str] | None, typer.Option(metavar="NAME=PATH", help="Where a benchmark lies, if it is not to be downloaded.")
]


@dataclass(frozen=True, eq=False)
class Part:
    """One data set: rows by their place, and the labels that they have, in order of appearance (None: no label)."""

    name: str
    rows: Any
    labels: tuple[str | None, ...]
    folder: Path | None = None  # what paths of media are relative to

    def example(self, place: int) -> "Example":
        """Return one example, read now."""
        from mmlens.data import Example

        row = self.rows[place]
        if self.folder is not None and isinstance(row, dict):
            row = {name: _beside(self.folder, cell) if name in MEDIA else cell for name, cell in row.items()}
        return Example.of(row, place)


@dataclass(frozen=True, eq=False)
class Together:
    """Data sets one after the other. Where there are several, or labels, what has no label is labelled by its data set.

    Where there are several, an example's id begins with its data set's name.
    """

    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self.parts)

    def __getitem__(self, place: int) -> "Example":
        """Return one example, read now."""
        ends = list(accumulate(len(part.rows) for part in self.parts))
        if not 0 <= place < len(self):
            raise IndexError(f"there are {len(self)} examples, asked for number {place}")
        number = bisect_right(ends, place)
        part = self.parts[number]
        found = part.example(place - ends[number] + len(part.rows))
        label = found.label if found.label is not None or not self.labels else part.name
        return replace(found, label=label, id=f"{part.name}/{found.id}" if len(self.parts) > 1 else found.id)

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels in order of appearance; none where nothing has one."""
        if len(self.parts) == 1 and set(self.parts[0].labels) <= {None}:
            return ()
        return tuple(dict.fromkeys(part.name if label is None else label for part in self.parts for label in part.labels))


def read_examples(data: Sequence[str], *, n: int | None, split: str | None, folders: Sequence[str]) -> Together:
    """Return the examples that DATA, --n, --split and --folder name, or stop."""
    quiet()
    from mmlens.data import BENCHMARKS

    lies: dict[str, str] = {}
    for told in folders:
        name, equals, path = told.partition("=")
        if not equals or not path:
            stop(f"--folder is a data set's name and a path, NAME=PATH, got {told!r}")
        if name not in data or name not in BENCHMARKS:
            stop(f"--folder says where a benchmark among DATA lies, {name!r} is none: DATA are {', '.join(data)}")
        lies[name] = path
    parts = []
    for name in data:
        try:
            if name == PICTOWORLD:
                part = _scenes(n or SCENES)
            elif name in BENCHMARKS:
                part = _benchmark(name, n, split, lies.get(name))
            else:
                part = _table(Path(name), n, split)
        except Exception as error:  # data can be wrong in as many ways as there are libraries that read them
            stop(f"cannot read the data {name!r}: {first_line(error)}")
        if part.name in [other.name for other in parts]:
            stop(f"every data set has a name of its own, two are called {part.name!r}: rename one, or leave it out")
        parts.append(part)
    return Together(tuple(parts))


def _scenes(n: int) -> Part:
    """Return held-out scenes, each with one of its questions: its kinds take turns; labels are the domains."""
    from mmlens.data import Example
    from mmlens.organisms.pictoworld import scenes

    rows = []
    for index, scene in enumerate(scenes("held_out", n)):
        question = scene.questions[index % len(scene.questions)]
        rows.append(
            Example(question.text, images=scene.image, answers=(question.answer,), label=scene.domain, id=str(index))
        )
    return Part(PICTOWORLD, rows, tuple(dict.fromkeys(row.label for row in rows)))


def _benchmark(name: str, n: int | None, split: str | None, folder: str | None) -> Part:
    from mmlens.data import BENCHMARKS, Examples, load

    one = BENCHMARKS[name]
    if folder is None and one.files is not None:
        raise ValueError(
            f"it keeps its media in files beside the table: fetch both from {one.source}, on its terms ({one.licence}), and "
            f"give --folder {name}=PATH ({one.note})"
        )
    _quiet_datasets()
    try:
        rows = load(one, n=n, split=split, folder=folder)
    except ConnectionError as error:
        raise ConnectionError(f"{first_line(error)}. If it lies on this machine, give --folder {name}=PATH") from error
    assert isinstance(rows, Examples)
    if name == "pope" and "category" in rows.rows.column_names:  # the one benchmark whose rows have labels of their own
        of_all = rows.rows["category"]
        return Part(name, rows, tuple(dict.fromkeys(f"pope-{of_all[number]}" for number in rows.order)))
    return Part(name, rows, (name,))


def _table(path: Path, n: int | None, split: str | None) -> Part:
    """Return the rows of a file or folder."""
    if not path.exists():
        from mmlens.data import BENCHMARKS

        known = ", ".join([PICTOWORLD, *BENCHMARKS])
        raise ValueError(f"data are a file, a folder, or one of {known}; there is nothing at {path}")
    rows = _records(path) if path.suffix in (".json", ".jsonl") else _dataset(path, split or "test")
    if n is not None and n > len(rows):
        raise ValueError(f"there are {len(rows)} examples, asked for {n}: ask for fewer, or leave --n out for all")
    count = len(rows) if n is None else n
    if isinstance(rows, list):
        rows, cells = rows[:count], [row.get("label") for row in rows[:count]]
    else:
        rows = rows.select(range(count))
        cells = list(rows["label"]) if "label" in rows.column_names else [None]
    labels = dict.fromkeys(None if label is None else str(label) for label in cells)
    folder = path.is_dir()
    return Part(path.resolve().name if folder else path.stem, rows, tuple(labels), path if folder else path.parent)


def _records(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON file: a list of them, or one a line."""
    text = path.read_text("utf-8-sig")
    pieces = [(1, text)] if path.suffix == ".json" else [*enumerate(text.split("\n"), 1)]
    found: list[Any] = []
    for line, piece in pieces:
        if piece.strip():
            try:
                value = json.loads(piece)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {line + error.lineno - 1} is not JSON ({error.msg})") from error
            found += value if path.suffix == ".json" and isinstance(value, list) else [value]
    if wrong := [value for value in found if not isinstance(value, dict)]:
        raise ValueError(f'rows are objects such as {{"text": ...}}, one of {path} is a {type(wrong[0]).__name__}')
    return found


def _dataset(path: Path, split: str) -> Any:
    """Return the rows of a table that `datasets` reads, sounds not decoded."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError("this table is read by `datasets`, an extra: pip install 'mmlens[data]'") from error
    _quiet_datasets()
    from mmlens.data.folders import read_file, read_tables

    rows: Any = read_tables(path, split) if path.is_dir() else read_file(path)
    if isinstance(rows.features.get("audio"), datasets.Audio):
        rows = rows.cast_column("audio", datasets.Audio(decode=False))
    return rows


def _quiet_datasets() -> None:
    """Let `datasets`, if it is there, show its progress on a terminal, and say nothing else."""
    with suppress(ImportError):
        import datasets

        datasets.logging.set_verbosity(50)  # CRITICAL
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()


def _beside(folder: Path, cell: Any) -> Any:
    """Return a medium's cell with its paths below the folder of its table."""
    if isinstance(cell, list):
        return [_beside(folder, one) for one in cell]
    return str(folder / cell) if isinstance(cell, str) else cell
