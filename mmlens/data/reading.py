"""Benchmarks as sequences of examples, whose media are read when an example is asked for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, overload

import numpy as np

from mmlens.data.benchmark import Benchmark
from mmlens.data.benchmarks import BENCHMARKS
from mmlens.data.example import Example


def load(
    name: str | Benchmark,
    *,
    folder: str | Path | None = None,
    split: str | None = None,
    n: int | None = None,
    seed: int | None = None,
    prompt: str | None = None,
    streaming: bool = False,
) -> "Examples | Stream":
    """Return the examples of a benchmark, from its source on the hub or from a local `folder` alone.

    `split` and `prompt` are the benchmark's own unless told ("{question}" alone is what Huo et al. 2024 collect statistics
    with). `n` takes the first rows, or with `seed` as many at random: fewer of a seed are part of more. `streaming` reads
    the hub's rows one after the other, without a length. A folder holds tables with the hub's columns (Parquet, JSON, CSV,
    `save_to_disk`), or the release as `note` says, with the media files anywhere below. Raises KeyError for a benchmark
    that is not known and for columns that are not there, ValueError for options that do not fit, ImportError without
    `datasets`.
    """
    benchmark = _benchmark(name, prompt)
    split = split or benchmark.split
    if n is not None and n < 1:
        raise ValueError(f"n is how many examples to take, at least 1, got {n}")
    if streaming and (folder is not None or seed is not None):
        raise ValueError("rows stream from the hub in their order: leave out folder and seed, or streaming")
    if folder is None and benchmark.files is not None:
        raise ValueError(
            f"{benchmark.name} keeps its media in files beside the table: fetch both from {benchmark.source}, on its terms "
            f"({benchmark.licence}), and give folder=. ({benchmark.note})"
        )
    rows = _rows(benchmark, None if folder is None else Path(folder), split, streaming)
    if streaming:
        return Stream(benchmark, rows, n)
    if n is not None and n > len(rows):
        raise ValueError(f"{benchmark.name} has {len(rows)} examples in {split!r}, asked for {n}: ask for fewer, or for all")
    order = np.random.default_rng(seed).permutation(len(rows)).tolist() if seed is not None else range(len(rows))
    return Examples(benchmark, rows, order[:n], None if folder is None else Path(folder))


@dataclass(frozen=True, eq=False, repr=False)
class Examples(Sequence[Example]):
    """A benchmark's examples, each made from its row when it is asked for: `rows[order[i]]` is example i.

    A slice is examples too, so that one can go on where a run stopped without reading what is done. An example's `id` does
    not depend on what was taken.
    """

    benchmark: Benchmark
    rows: Any
    order: Sequence[int]
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.order)

    def __repr__(self) -> str:
        return f"Examples({self.benchmark.name}: {len(self)} of {len(self.rows)})"

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Examples": ...
    def __getitem__(self, index: int | slice) -> "Example | Examples":
        """Return one example, or those of a slice."""
        if isinstance(index, slice):
            return replace(self, order=self.order[index])
        number = self.order[index]
        row = self.rows[number]
        column = self.benchmark.files
        if column is not None:
            value = row[column]
            row = {**row, column: self._file(value) if isinstance(value, str) else [self._file(name) for name in value]}
        return self.benchmark.example(row, number)

    @cached_property
    def _files(self) -> Mapping[str, list[Path]]:
        from mmlens.data.folders import media_files  # needs `datasets`, as whoever has rows does

        assert self.folder is not None
        return media_files(self.folder)

    def _file(self, name: str) -> Path:
        """Return the file that a row names: by its path in the folder, or by its name anywhere below."""
        assert self.folder is not None
        path = PurePath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"media lie below the folder, a row names {name!r}: give the folder above, and names within it")
        if (self.folder / path).is_file():
            return self.folder / path
        found = self._files.get(path.name, [])
        if len(found) != 1:
            got = f"{len(found)} ({found[0]}, {found[1]}, ...)" if found else "none"
            raise FileNotFoundError(f"a row names one file below {self.folder}, found {got} for {name!r}: unpack it there")
        return found[0]


@dataclass(frozen=True, eq=False)
class Stream(Iterable[Example]):
    """A benchmark's examples as they come from the hub, the first `n` of them, from the start each time."""

    benchmark: Benchmark
    rows: Iterable[Mapping[str, Any]]
    n: int | None = None

    def __iter__(self) -> Iterator[Example]:
        return (self.benchmark.example(row, index) for index, row in enumerate(islice(self.rows, self.n)))


def _benchmark(name: str | Benchmark, prompt: str | None) -> Benchmark:
    if isinstance(name, str) and name not in BENCHMARKS:
        raise KeyError(
            f"a benchmark is one of {', '.join(BENCHMARKS)}, got {name!r}: for others, give Examples of your own to a sweep"
        )
    benchmark = BENCHMARKS[name] if isinstance(name, str) else name
    return benchmark if prompt is None else replace(benchmark, prompt=prompt)


def _rows(benchmark: Benchmark, folder: Path | None, split: str, streaming: bool) -> Any:
    """Return a benchmark's rows, sounds not decoded: soundfile reads them, where `datasets` would ask for torchcodec."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError("benchmarks are read by `datasets`, an extra: pip install 'mmlens[data]'") from error
    from mmlens.data.folders import read_folder

    rows: Any
    if folder is None:
        rows = datasets.load_dataset(benchmark.source, benchmark.config, split=split, streaming=streaming)
    elif not folder.is_dir():
        raise FileNotFoundError(
            f"a local benchmark is a folder, {folder} is none: give the folder with its tables and media"
        )
    else:
        rows = read_folder(benchmark.name, folder, split, benchmark.config)
    if rows.column_names is not None:
        benchmark.check(tuple(rows.column_names), f"this {split!r}")
    if benchmark.sound is not None and isinstance((rows.features or {}).get(benchmark.sound), datasets.Audio):
        rows = rows.cast_column(benchmark.sound, datasets.Audio(decode=False))
    return rows
