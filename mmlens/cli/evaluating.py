"""`mmlens evaluate`: what tasks score with neurons held, beside random controls."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmlens.cli.application import app
from mmlens.cli.config import Config
from mmlens.cli.examples import PICTOWORLD, Data, Folder, Number, Split, read_examples
from mmlens.cli.loading import Device, DeviceMap, Dtype, Model, load
from mmlens.cli.stopping import file_in_a_folder, first_line, quiet, stop
from mmlens.cli.sweeping import (
    BatchSize,
    Chat,
    Checkpoint,
    Every,
    Resume,
    check_files,
    first_process,
    lines_of,
    names,
    shows_progress,
    sweeping,
    tell_failures,
)

if TYPE_CHECKING:
    from mmlens.neurons import Neurons


@app.command()
def evaluate(
    model: Model,
    data: Data,
    neurons: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="Neurons to hold, as Neurons.save wrote them. Repeat it.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="exact_match, vqa_score, ..., log_prob or margin (default: the benchmark's own).")
    ] = None,
    n: Number = None,
    split: Split = None,
    folder: Folder = None,
    value: Annotated[str, typer.Option(help="What they are held at: a number, mean, resample or layer_min.")] = "0",
    site: Annotated[Literal["pre", "gate_act", "post"], typer.Option(help="Where in the MLP.")] = "post",
    where: Annotated[
        str | None, typer.Option(help="At which of a prompt's positions: image, text, ... (default: everywhere).")
    ] = None,
    complement: Annotated[bool, typer.Option("--complement", help="Hold all others of their modules instead.")] = False,
    draws: Annotated[int, typer.Option(min=0, help="Random controls of each set of neurons.")] = 10,
    off_diagonal: Annotated[
        bool,
        typer.Option("--off-diagonal/--no-off-diagonal", help="Whether neurons called as a task run on others too."),
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Which random controls are drawn.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How long an answer may get.")] = 16,
    batch_size: BatchSize = 8,
    chat: Chat = False,
    checkpoint: Checkpoint = None,
    every: Every = 200,
    resume: Resume = True,
    out: Annotated[Path, typer.Option(help="The file for the result.")] = Path("mmlens-evaluation.safetensors"),
    csv: Annotated[Path | None, typer.Option(help="Write the whole table to this file too.")] = None,
    config: Config = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
) -> None:
    """Score tasks with neurons held, beside the model as it is and as many random neurons. A task is a label.

    Try it: mmlens evaluate pictoworld pictoworld --n 40

    Neurons come from Python: mmlens.top_k(scores, 40, widths=model.widths).save("photo.safetensors")

    In Python, mmlens.Evaluation.load(FILE) is what came out. Several processes share the examples as in mmlens stats.
    """
    metric = _metric(metric, data)
    held = _neurons(neurons or [])
    from mmlens.evaluation import Ablation
    from mmlens.evaluation import evaluate as run
    from mmlens.evaluation.reference import checkpoint_beside

    try:
        at = _number(value)
        interventions = {
            name: Ablation(
                one, value=at, site=site, where=tuple(names(where)) if where else None, complement=complement, seed=seed
            )
            for name, one in held.items()
        }
    except ValueError as error:
        stop(first_line(error))
    beside = None if checkpoint is None else checkpoint_beside(checkpoint)
    check_files(out, checkpoint, beside, resume=resume)
    if csv is not None and first_process():
        file_in_a_folder(csv, "--csv")
    examples = read_examples(data, n=n, split=split, folders=folder or [])
    if not off_diagonal and not set(held) & set(examples.labels):
        stop(
            "--no-off-diagonal runs neurons on the task of their name alone, and none has one: tasks are "
            f"{', '.join(examples.labels) or 'all'}, neurons {', '.join(held) or 'none'}"
        )
    loaded = load(model, device=device, dtype=dtype, device_map=device_map)
    with sweeping(checkpoint, beside):
        found = run(
            loaded,
            examples,
            metric,
            interventions,
            draws=draws,
            off_diagonal=off_diagonal,
            max_new_tokens=max_new_tokens,
            seed=seed,
            batch_size=batch_size,
            chat=chat,
            checkpoint=checkpoint,
            every=every,
            resume=resume,
            progress=shows_progress(),
        )
        if not first_process():
            return
        path = found.save(out)
        if csv is not None:
            found.table().to_csv(csv)
    for line in lines_of(found.cells(), left=2):
        typer.echo(line)
    typer.echo(f"saved to {path}" + (f", the table to {csv}" if csv is not None else ""))
    tell_failures(found.failures, path)


def _metric(asked: str | None, data: Sequence[str]) -> str:
    """Return the metric that was asked for, or the one that all data sets have as their own; or stop."""
    quiet()
    from mmlens.data import BENCHMARKS
    from mmlens.evaluation.scoring import OF_LOGITS
    from mmlens.metrics import METRICS

    known = ", ".join([*METRICS, *OF_LOGITS])
    if asked is None:
        own = {
            name: "exact_match" if name == PICTOWORLD else BENCHMARKS[name].metric if name in BENCHMARKS else None
            for name in data
        }
        asked = next(iter(own.values()))
        if asked is None or len(set(own.values())) > 1:
            told = ", ".join(f"{name}: {one or 'none'}" for name, one in own.items())
            stop(f"--metric is needed, one of {known}: the data have no one metric of their own ({told})")
    if asked not in (*METRICS, *OF_LOGITS):
        stop(f"--metric is one of {known}, got {asked!r}")
    return asked


def _neurons(told: Sequence[str]) -> "dict[str, Neurons]":
    """Return the sets of neurons that --neurons names, or stop."""
    from mmlens.neurons import Neurons

    found: dict[str, Neurons] = {}
    for one in told:
        name, equals, path = one.partition("=")
        if not name or not equals or not path:
            stop(f"--neurons is a name and a file, NAME=FILE, got {one!r}")
        if name in found:
            stop(f"--neurons have a name of their own each, two are called {name!r}")
        try:
            found[name] = Neurons.load(path)
        except (ValueError, OSError) as error:
            stop(f"--neurons {name}: {first_line(error)}")
    return found


def _number(text: str) -> "float | Literal['mean', 'resample', 'layer_min']":
    """Return a number, or the name of what neurons are held at. Raises ValueError for what is neither."""
    if text in ("mean", "resample", "layer_min"):
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--value is a number, mean, resample or layer_min, got {text!r}") from None
