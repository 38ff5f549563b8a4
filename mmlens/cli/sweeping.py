"""What the commands that sweep share: their options, how they are stopped, and how what they found is told."""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmlens.cli.stopping import file_in_a_folder, first_line, say, stop

if TYPE_CHECKING:
    from mmlens.sweeps import Failure

TOLD = 5  # failures that are told one by one

BatchSize = Annotated[int, typer.Option(min=1, help="How many examples the model reads at a time.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Keep the state in this file, and go on from it if it is there.")]
Every = Annotated[int, typer.Option(min=1, help="Write the checkpoint about every so many examples.")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Whether to go on from a checkpoint that is there.")]
Chat = Annotated[bool, typer.Option("--chat", help="Put the prompts into the model's chat template.")]


def first_process() -> bool:
    """Return whether this is the process that prints and writes: under torchrun there are others."""
    return int(os.environ.get("RANK", "0")) == 0


def check_files(out: Path, *checkpoints: Path | None, resume: bool) -> None:
    """Stop, before hours are spent, where the result can't be written or a checkpoint is not to be gone on with."""
    from mmlens.results import with_suffix

    out = with_suffix(out)
    if first_process():
        file_in_a_folder(out)
    for checkpoint in (with_suffix(path) for path in checkpoints if path is not None):
        if checkpoint.absolute() == out.absolute():
            stop(f"--checkpoint and --out are two files, both are {out}: name another")
        if checkpoint.is_file() and not resume:
            stop(f"{checkpoint} is there already: leave --no-resume out to go on with it, or name another file")


def names(text: str) -> list[str]:
    """Return what a flag lists, separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def shows_progress() -> bool:
    """Return whether there is a terminal to show progress on."""
    return sys.stderr.isatty()


@contextmanager
def sweeping(*checkpoints: Path | None) -> Iterator[None]:
    """Tell what stops a sweep in one line; of Ctrl-C say how to go on."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", message="the checkpoint .* could not be written")
            warnings.showwarning = lambda message, *_, **__: say(str(message))
            yield
    except KeyboardInterrupt:
        if first_process():
            say(f"stopped: {_kept([path for path in checkpoints if path is not None])}")
        raise typer.Exit(130) from None
    except (ValueError, KeyError, IndexError, TypeError, OSError, RuntimeError) as error:
        stop(first_line(error))


def tell_failures(failures: "Sequence[Failure]", out: Path) -> None:
    """Say which examples were left out: the first few, and how many more."""
    for failure in failures[:TOLD]:
        say(f"left out {failure}")
    if len(failures) > TOLD:
        say(f"left out {len(failures) - TOLD} more: all are in the failures of {out}")


def lines_of(table: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Return the rows of a table as lines: the first `left` columns flush left, the others right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def _kept(checkpoints: Sequence[Path]) -> str:
    """Return, in words, what is kept of a sweep that was stopped."""
    from mmlens.results import with_suffix
    from mmlens.sweeps import Checkpoint as State

    if not checkpoints:
        return "nothing is kept. With --checkpoint FILE, the same command goes on where it stopped"
    kept: list[Any] = []
    for path in map(with_suffix, checkpoints):
        if path.is_file():
            kept.append(f"{path} holds {State.load(path).seen} examples")
    return f"{' and '.join(kept) or 'no example is kept yet'}. The same command goes on from there"
