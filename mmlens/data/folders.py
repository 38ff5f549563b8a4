"""Local folders as tables of rows: tables that `datasets` reads, and releases that keep questions and media apart.

Nothing here looks anywhere but into the folder. The file needs `datasets`, which is an extra.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets

_READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}
_SPLITS = ({"train", "training"}, {"validation", "val", "valid", "dev"}, {"test", "eval", "evaluation"})
_SHARD = re.compile(r"-\d+-of-\d+.*$")


def read_folder(name: str, folder: Path, split: str, config: str | None = None) -> datasets.Dataset:
    """Return the rows of a benchmark's split: as its release keeps them, or else as tables with the hub's columns."""
    return _RELEASES[name](folder, split) if name in _RELEASES else read_tables(folder, split, config)


def read_tables(folder: Path, split: str, config: str | None = None) -> datasets.Dataset:
    """Return the rows of a split: of what `save_to_disk` wrote, or of Parquet, JSON, CSV or Arrow files named after it.

    A table without any split in its name is taken where it is the only one. Raises FileNotFoundError where there is none,
    and ValueError where there are several.
    """
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        saved = datasets.load_from_disk(str(folder))
        if isinstance(saved, datasets.DatasetDict) and split not in saved:
            raise ValueError(f"{folder} has the splits {', '.join(map(str, saved))}, and no {split!r}: choose one by split=")
        return saved[split] if isinstance(saved, datasets.DatasetDict) else saved
    return _read(_choose(folder, split, config))


def read_file(path: Path) -> datasets.Dataset:
    """Return the rows of one Parquet, JSON, CSV or Arrow file. Raises ValueError for a file of another kind."""
    if path.suffix not in _READERS:
        raise ValueError(f"a table is a file of {', '.join(_READERS)}, got {path.name}: convert it, or give a folder")
    return _read([path])


def _read(files: list[Path]) -> datasets.Dataset:
    kind = _READERS[files[0].suffix]
    options: dict[str, Any] = {"keep_default_na": False} if kind == "csv" else {}  # "None" and "NA" are answers, not gaps
    rows = datasets.load_dataset(kind, data_files=[str(file) for file in files], split="train", **options)
    assert isinstance(rows, datasets.Dataset)
    return rows


def media_files(folder: Path) -> dict[str, list[Path]]:
    """Return the files below a folder that are no tables, by name and by name without its ending."""
    found: dict[str, list[Path]] = {}
    for path in _below(folder):
        if path.suffix not in _READERS and path.is_file():
            for name in {path.name, path.stem}:
                found.setdefault(name, []).append(path)
    return found


def _choose(folder: Path, split: str, config: str | None) -> list[Path]:
    """Return the files of the one table of a split."""
    files = [path for path in _below(folder) if path.suffix in _READERS]
    files = [path for path in files if config in path.relative_to(folder).parts] or files
    names = next((names for names in _SPLITS if split in names), {split})
    chosen = [path for path in files if _mentions(path.relative_to(folder), names)]
    if not chosen and not any(_mentions(path.relative_to(folder), set().union(*_SPLITS)) for path in files):
        chosen = files
    tables: dict[Path, list[Path]] = {}
    for path in chosen:
        stem = _SHARD.sub("", path.stem)
        tables.setdefault(path.parent if stem.isdigit() else path.parent / stem, []).append(path)
    exact = {table: shards for table, shards in tables.items() if table.name in names}
    tables = exact if len(exact) == 1 else tables
    there = ", ".join(str(path.relative_to(folder)) for path in (chosen or files)[:8]) or "none"
    if not tables:
        raise FileNotFoundError(
            f"a split is a Parquet, JSON, CSV or Arrow file with {' or '.join(sorted(names))} in its name; {folder} has "
            f"these tables: {there}. Choose a split by split=, or rename the file"
        )
    if len(tables) > 1:
        raise ValueError(f"the split {split!r} is one table, {folder} has several: {there}. Give the folder of one alone")
    return next(iter(tables.values()))


def _below(folder: Path) -> list[Path]:
    """Return all that lies below a folder and is not hidden, in order."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _mentions(path: Path, names: set[str]) -> bool:
    return re.search(rf"(?<![a-z0-9])({'|'.join(map(re.escape, sorted(names)))})(?![a-z0-9])", str(path).lower()) is not None


# ---------------------------------------------------------------- releases


def karpathy(folder: Path, split: str) -> datasets.Dataset:
    """Return the rows of Karpathy's dataset_coco.json, or of a table of them: filename, sentences, cocoid."""
    whole = next(folder.rglob("dataset_coco.json"), None)
    if whole is None:
        return read_tables(folder, split)
    images = [image for image in json.loads(whole.read_text("utf-8"))["images"] if image["split"] == split]
    return datasets.Dataset.from_dict(
        {
            "filename": [image["filename"] for image in images],
            "sentences": [[sentence["raw"] for sentence in image["sentences"]] for image in images],
            "cocoid": [image["cocoid"] for image in images],
        }
    )


def lingoqa(folder: Path, split: str) -> datasets.Dataset:
    """Return LingoQA's questions, one row each with all of its answers: the release has a row for every answer."""
    rows: Any = read_tables(folder, split).to_pandas()
    questions = rows.groupby("question_id", sort=False).agg({"images": "first", "question": "first", "answer": list})
    columns = questions.reset_index().to_dict("list")
    return datasets.Dataset.from_dict({**columns, "images": [list(frames) for frames in columns["images"]]})


def rsvqa(folder: Path, split: str) -> datasets.Dataset:
    """Return RSVQA's active questions with their answers and pictures: the release keeps them in three JSON files."""
    questions = [one for one in _records(folder, split, "questions") if one["active"]]
    answers: dict[int, list[str]] = {}
    for one in _records(folder, split, "answers"):
        if one["active"]:
            answers.setdefault(one["question_id"], []).append(one["answer"])
    return datasets.Dataset.from_dict(
        {
            "id": [one["id"] for one in questions],
            "question": [one["question"] for one in questions],
            "type": [one["type"] for one in questions],
            "answers": [answers.get(one["id"], []) for one in questions],
            "file": [f"{one['img_id']}.tif" for one in questions],
        }
    )


def _records(folder: Path, split: str, what: str) -> list[dict[str, Any]]:
    name = f"USGS_split_{split}_{what}.json"
    path = next(folder.rglob(name), None)
    if path is None:
        raise FileNotFoundError(f"RSVQA keeps the {what} of a split in {name}, which is not below {folder}: choose a split")
    return json.loads(path.read_text("utf-8"))[what]


def msvd(folder: Path, split: str) -> datasets.Dataset:
    """Return MSVD-QA's questions with the names of their videos, which youtube_mapping.txt gives where it is there."""
    rows = read_tables(folder, split)
    mapping = next(folder.rglob("youtube_mapping.txt"), None)
    names = dict(_pairs(mapping.read_text("utf-8").splitlines())) if mapping else {}
    known = media_files(folder)
    keys = (f"vid{number}" for number in rows["video_id"])
    return rows.add_column("file", [key if key in known else names.get(key, key) for key in keys])


def _pairs(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Return (vid7, its file's name) of lines that say them the other way round."""
    for line in lines:
        name, _, key = line.strip().rpartition(" ")
        yield key, name


def vocalsound(folder: Path, split: str) -> datasets.Dataset:
    """Return VocalSound's recordings: of the release's files <speaker>_<n>_<label>.wav, or of tables as on the hub."""
    files = [path for path in sorted(folder.rglob("*.wav")) if path.stem.count("_") == 2]
    if not files:
        return read_tables(folder, split)
    if split != "all":
        raise ValueError(f"VocalSound's files are of all splits together, asked for {split!r}: give split='all'")
    labels = [path.stem.rpartition("_")[2] for path in files]
    return datasets.Dataset.from_dict(
        {
            "audio": [{"path": str(path), "bytes": None} for path in files],
            "answer": ["Throat clearing" if label == "throatclearing" else label.capitalize() for label in labels],
        }
    )


_RELEASES = {
    "coco-captions": karpathy,
    "lingoqa": lingoqa,
    "rsvqa-hr": rsvqa,
    "msvd-qa": msvd,
    "vocalsound": vocalsound,
}
