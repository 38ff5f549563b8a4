"""The command itself, to which the other files add what it can do."""

from typing import Annotated

import typer

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
