"""`mmlens stats`: how active every neuron is over data sets, by label and group of positions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmlens.cli.application import app
from mmlens.cli.config import Config
from mmlens.cli.examples import Data, Folder, Number, Split, read_examples
from mmlens.cli.loading import Device, DeviceMap, Dtype, Model, load
from mmlens.cli.stopping import stop
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
    from mmlens.stats import Statistics

HEAD = ("label", "group", "module", "examples", "positions")
ACTIVE, SCALED = ("neurons ever active", "mean activity"), ("neurons ever above the least", "mean scaled activity")


@app.command()
def stats(
    model: Model,
    data: Data,
    n: Number = None,
    split: Split = None,
    folder: Folder = None,
    groups: Annotated[
        str, typer.Option(help="Groups of positions: image, text, audio, video, all, ..., or several joined by +.")
    ] = "all",
    modules: Annotated[str, typer.Option(help="Whose neurons: language, vision, projector, ...")] = "language",
    site: Annotated[Literal["pre", "gate_act", "post"], typer.Option(help="Where in the MLP.")] = "post",
    by: Annotated[Literal["tokens", "samples"], typer.Option(help="What counts once: positions or examples.")] = "tokens",
    attn: Annotated[bool, typer.Option("--attn", help="By samples: weighted by attention too.")] = False,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="By samples: scaled to 0..1 over the units of each example's layer.")
    ] = False,
    budget: Annotated[
        int | None, typer.Option(min=1, help="By tokens: just so many positions of each example and group.")
    ] = None,
    batch_size: BatchSize = 8,
    chat: Chat = False,
    checkpoint: Checkpoint = None,
    every: Every = 200,
    resume: Resume = True,
    out: Annotated[Path, typer.Option(help="The file for the result.")] = Path("mmlens-stats.safetensors"),
    config: Config = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
) -> None:
    """Measure how active every neuron is over data sets, by label and group of positions.

    Try it: mmlens stats pictoworld pictoworld --n 40 --groups image,text

    In Python, mmlens.Sweep.load(FILE)["tokens"] (or ["samples"]) is what came out.

    Several processes share the examples: torchrun --nproc_per_node=2 --no-python -- mmlens stats ...
    """
    if attn and by == "tokens":
        stop("attention weighs positions within an example: give --attn with --by samples")
    if normalise and by == "tokens":
        stop("what is scaled is an example's statistics: give --normalise with --by samples")
    if budget is not None and by == "samples":
        stop("a budget is of positions: give --budget with --by tokens")
    check_files(out, checkpoint, resume=resume)
    examples = read_examples(data, n=n, split=split, folders=folder or [])
    loaded = load(model, device=device, dtype=dtype, device_map=device_map)
    from mmlens.stats import Accumulator, SampleStats, TokenStats
    from mmlens.stats.samples import ALL
    from mmlens.sweeps import sweep

    with sweeping(checkpoint):
        of = {"groups": names(groups), "modules": names(modules), "site": site}
        if examples.labels:
            of["labels"] = examples.labels
        accumulator: Accumulator
        if by == "tokens":
            accumulator = TokenStats(loaded.widths, budget=budget, **of)
        else:
            scaled = "minmax" if normalise else None
            accumulator = SampleStats(loaded.widths, statistics=ALL if attn else ALL[:3], normalise=scaled, **of)
        found = sweep(
            loaded,
            examples,
            {by: accumulator},
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
    for line in lines_of([(*HEAD, *(SCALED if normalise else ACTIVE)), *summary(found[by])], left=3):
        typer.echo(line)
    if short := sum(int(count.sum()) for count in found[by].short.values()):
        typer.echo(f"{short} time(s), an example had fewer positions of a group than the budget of {budget}, and gave none")
    typer.echo(f"saved to {path}")
    tell_failures(found.failures, path)


def summary(found: "Statistics") -> list[tuple[str, ...]]:
    """Return a row per label, group and module: examples, positions, the share of neurons ever above 0, the mean activity.

    A group that a module has nowhere (text, in a tower) is left out.
    """
    import torch

    rows: list[tuple[str, ...]] = []
    for module, widths in found.widths.items():
        real = torch.arange(max(widths)) < torch.tensor(widths)[:, None]
        ever, mean = found.table("probability", module) > 0, found.table("mean", module)
        for row, label in enumerate(found.labels):
            for column, group in enumerate(found.groups):
                positions = int(found.tokens[module][row, column])
                if positions:
                    share, average = ever[row, column][real].double().mean(), mean[row, column][real].mean()
                    told = f"{share.item():.1%}", f"{average.item():.3g}"
                elif module == "language" or found.tokens[module][:, column].any():
                    told = "", ""
                else:
                    continue
                rows.append((label, group, module, str(int(found.samples[module][row, column])), str(positions), *told))
    return rows
