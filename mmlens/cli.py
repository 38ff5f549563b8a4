"""The `mmlens` command. Nothing heavy is imported before a command runs, so that help is there at once."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from PIL import Image

    from mmlens.model import HookedMLLM

SMALL = 30_000_000  # weights: below this, threads only wait for each other

app = typer.Typer(
    name="mmlens",
    help="Look into models that also see: TransformerLens for multimodal language models.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


def _version(asked: bool) -> bool:
    if asked:
        from importlib.metadata import version

        typer.echo(f"mmlens {version('mmlens')}")
        raise typer.Exit
    return asked


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Look into models that also see: TransformerLens for multimodal language models."""


@app.command()
def tour(
    model: Annotated[str, typer.Option(help="pictoworld, pictoworld-frozen, a model folder, or a hub id.")] = "pictoworld",
    image: Annotated[Path | None, typer.Option(help="A picture of your own (default: a scene the model never saw).")] = None,
    question: Annotated[str | None, typer.Option(help="What to ask about it.")] = None,
    word: Annotated[str | None, typer.Option(help="Which word of the answer to trace.")] = None,
    out: Annotated[Path, typer.Option(help="The folder for index.html and results/.")] = Path("mmlens-tour"),
    seed: Annotated[int, typer.Option(min=0, help="Which scenes and which random neurons are drawn.")] = 0,
) -> None:
    """Trace one answer through a model: what it sees, which neurons carry it, where it arises.

    Writes one offline page, and every result beside it. Less than a minute for the models that ship with mmlens.
    """
    if question is not None and not question.strip():
        _stop("--question is empty: ask something, or leave it out for the default question")
    if word is not None and not word.strip():
        _stop("--word is empty: name a word of the answer, or leave it out")
    _writable(out)
    picture = None if image is None else _open(image)
    loaded = _load(model)
    from mmlens.tour import tour as run

    command = " ".join(["mmlens", *sys.argv[1:]])
    try:
        found = run(loaded, out, image=picture, question=question, word=word, seed=seed, progress=None, command=command)
    except (ValueError, OSError) as error:
        _stop(str(error))
    typer.echo(found.sentence)
    typer.echo(found.beside)
    typer.echo(str(found.path))


def _stop(message: str) -> NoReturn:
    """Print one line on stderr and leave with status 1."""
    typer.echo("mmlens: " + " ".join(message.split()), err=True)
    raise typer.Exit(1)


def _writable(out: Path) -> None:
    """Make the folder, or stop."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".mmlens-writable"
        probe.touch()
        probe.unlink()
    except (FileExistsError, NotADirectoryError):
        _stop(f"--out is a folder to write into, {out} is (or lies under) a file: name another")
    except OSError as error:
        _stop(f"--out must be writable, {out} is not ({error.strerror}): name another folder")


def _open(path: Path) -> "Image.Image":
    """Return the picture upright, or stop."""
    from mmlens.media import read_image

    try:
        return read_image(path)
    except (ValueError, OSError) as error:
        _stop(str(error))


def _load(name: str) -> "HookedMLLM":
    """Return the model, or stop with the first line of what went wrong, whatever library said it."""
    import warnings

    import torch

    warnings.filterwarnings("ignore")
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    from mmlens.model import HookedMLLM

    hub_logging.set_verbosity(50)  # CRITICAL: what goes wrong is said below, once
    logging.disable_progress_bar()
    logging.set_verbosity(50)
    try:
        model = HookedMLLM.from_pretrained(name)
    except Exception as error:  # a model folder can be wrong in as many ways as there are libraries that read it
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        _stop(f"cannot load the model {name!r}: {lines[0]}")
    if sum(weight.numel() for weight in model.hf_model.parameters()) < SMALL:
        torch.set_num_threads(1)
    return model


if __name__ == "__main__":
    app()
