"""Commands that look into one model: a tour of it, and its checks."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmlens.cli.application import app
from mmlens.cli.loading import Device, DeviceMap, Dtype, Model, load
from mmlens.cli.stopping import first_line, quiet, stop, writable

if TYPE_CHECKING:
    from PIL import Image

Layers = Annotated[str | None, typer.Option(help="0,5,11 or all (default: the first, the middle and the last).")]


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
        stop("--question is empty: ask something, or leave it out for the default question")
    if word is not None and not word.strip():
        stop("--word is empty: name a word of the answer, or leave it out")
    writable(out)
    picture = None if image is None else _open(image)
    loaded = load(model)
    from mmlens.tour import tour as run

    command = " ".join(["mmlens", *sys.argv[1:]])
    try:
        found = run(loaded, out, image=picture, question=question, word=word, seed=seed, progress=None, command=command)
    except (ValueError, OSError) as error:
        stop(str(error))
    typer.echo(found.sentence)
    typer.echo(found.beside)
    typer.echo(str(found.path))


@app.command()
def doctor(
    model: Model,
    layers: Layers = None,
    every: Annotated[bool, typer.Option("--all", help="A line for every point, not one for like points.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write every point to this file too.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
) -> None:
    """Measure every hook point: does it fire, does an edit there reach the logits, and is that what mmlens promises?

    Leaves with status 1 where a point does less than is promised.
    """
    chosen = _layers(layers)
    if json is not None:
        writable(json.parent, "--json")
    loaded = load(model, device=device, dtype=dtype, device_map=device_map)
    from mmlens.doctor import doctor as run
    from mmlens.doctor import does_less

    try:
        found = run(loaded, layers=chosen, progress=sys.stderr.isatty())
    except (ValueError, IndexError) as error:
        stop(str(error))
    lines = [("", "point", "promised", "measured", "change")]
    for point, promised, measured, change in found.table(every=every):
        lines.append(("!" if does_less(measured, promised) else "", point, promised, measured, change))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for line in lines:
        typer.echo("  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[4]]).rstrip())
    if json is not None:
        json.write_text(found.json())
    failed = len(found.failures)
    typer.echo(f"{len(found.names)} points, {len(found.names) - failed} as promised or better, {failed} failed")
    if failed:
        stop(f"{failed} promised point(s) do nothing: {', '.join(found.failures[:4])}")


@app.command()
def verify(
    model: Model,
    out: Annotated[Path | None, typer.Option(help="Write all lines, versions and hashes to this JSON file.")] = None,
    layers: Layers = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
) -> None:
    """Check a model against plain transformers on the very same weights: logits, hooks, gradients, generation, shapes.

    Leaves with status 1 where a check fails. What can't be checked says why.
    """
    chosen = _layers(layers)
    if out is not None:
        writable(out.parent)
    options = {"device": device, "dtype": dtype, "device_map": device_map}
    quiet()
    from mmlens.verify import verify as run

    try:
        found = run(
            model, layers=chosen, progress=sys.stderr.isatty(), **{k: v for k, v in options.items() if v is not None}
        )
    except Exception as error:  # a model folder can be wrong in as many ways as there are libraries that read it
        stop(f"cannot verify the model {model!r}: {first_line(error)}")
    for line in found.lines:
        mark = {True: "pass", False: "FAIL", None: "-"}[line["passed"]]
        error = "" if line["error"] is None or not line["tolerance"] else f"{line['error']:.1e} <= {line['tolerance']:.0e}"
        if line["passed"] is False:
            error = error.replace("<=", ">")
        typer.echo(f"{mark:4}  {line['check']:48}  {error:18}  {line['said']}".rstrip())
    if out is not None:
        out.write_text(found.json())
    counts = [sum(line["passed"] is kind for line in found.lines) for kind in (True, False, None)]
    typer.echo(f"{counts[0]} passed, {counts[1]} failed, {counts[2]} skipped ({found.dtype} on {found.device})")
    if not found.passed:
        stop(f"{counts[1]} check(s) failed")


def _layers(text: str | None) -> "list[int] | Literal['all'] | None":
    """Return the layers that --layers names, or stop."""
    if text is None or text == "all":
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        stop(f"--layers is numbers such as 0,5,11, or all; got {text!r}")


def _open(path: Path) -> "Image.Image":
    """Return the picture upright, or stop."""
    from mmlens.media import read_image

    try:
        return read_image(path)
    except (ValueError, OSError) as error:
        stop(str(error))
