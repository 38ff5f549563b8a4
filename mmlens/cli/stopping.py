"""What goes wrong is said once, in one line, and the command leaves with a status that is not zero."""

from pathlib import Path
from typing import NoReturn

import typer


def say(message: str) -> None:
    """Print one line on stderr."""
    typer.echo("mmlens: " + " ".join(message.split()), err=True)


def stop(message: str, status: int = 1) -> NoReturn:
    """Print one line on stderr and leave with that status."""
    say(message)
    raise typer.Exit(status)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)  # a KeyError shows its repr
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def quiet() -> None:
    """Let no library say anything by itself."""
    import warnings

    warnings.filterwarnings("ignore")
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity(50)  # CRITICAL
    logging.disable_progress_bar()
    logging.set_verbosity(50)


def writable(out: Path, option: str = "--out") -> None:
    """Make the folder, or stop."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".mmlens-writable"
        probe.touch()
        probe.unlink()
    except (FileExistsError, NotADirectoryError):
        stop(f"{option} is a folder to write into, {out} is (or lies under) a file: name another")
    except OSError as error:
        stop(f"{option} must be writable, {out} is not ({error.strerror}): name another folder")


def file_in_a_folder(out: Path, option: str = "--out") -> None:
    """Make the folder of a file that is to be written, or stop."""
    if out.is_dir():
        stop(f"{option} is a file to write, {out} is a folder: name a file in it")
    writable(out.parent, option)
