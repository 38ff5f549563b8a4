"""`mmlens select`: which neurons belong to a domain or a modality, from the statistics of `mmlens stats`."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmlens.cli.application import app
from mmlens.cli.config import Config
from mmlens.cli.stopping import first_line, quiet, stop, writable
from mmlens.cli.sweeping import lines_of, names

if TYPE_CHECKING:
    from mmlens.analysis import Selection
    from mmlens.stats import Statistics

WHOLE = "selection"  # the file of all sets together
WEIGHTED = {"domain": "tokens", "modality": "samples"}


@app.command()
def select(
    file: Annotated[Path, typer.Argument(help="What mmlens stats saved.")],
    by: Annotated[
        Literal["domain", "modality"],
        typer.Option(help="Whose neurons: labels' (of stats --by tokens), or groups' of positions (--by samples)."),
    ],
    group: Annotated[
        str | None,
        typer.Option(help="By domain: at which positions (image, text, ...). By modality: several (default: all)."),
    ] = None,
    module: Annotated[str, typer.Option(help="Neurons of this module: language, vision, ...")] = "language",
    rate: Annotated[
        float | None, typer.Option(help="By domain: the share of neurons, of lowest entropy (default: 0.01).")
    ] = None,
    filter_quantile: Annotated[
        float | None, typer.Option(help="By domain: left out if never active above this quantile (default: 0.95).")
    ] = None,
    bar_quantile: Annotated[
        float | None, typer.Option(help="By domain: of the labels active above this quantile (default: 0.95).")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="By modality: mean_max_attn_k, mean, ..., or mean=0.5,max=0.5 (default: mean_max_attn_k)."),
    ] = None,
    ratio: Annotated[float | None, typer.Option(help="By modality: the share of neurons picked (default: 0.02).")] = None,
    strategy: Annotated[
        Literal["adaptive", "adaptive_joint", "LA_MU", "LU_MA", "uniform", "random"] | None,
        typer.Option(help="By modality: how picks are shared out over layers and groups (default: LA_MU)."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="By modality: which are drawn, at random (default: 0).")] = None,
    out: Annotated[Path, typer.Option(help="The folder for the sets of neurons.")] = Path("mmlens-neurons"),
    config: Config = None,
) -> None:
    """Choose the neurons of each domain or modality, and write each set to a file that mmlens evaluate takes.

    Try it: mmlens stats pictoworld pictoworld --n 40 --groups image,text --site gate_act

    then: mmlens select mmlens-stats.safetensors --by domain --group image --rate 0.05

    By modality: mmlens stats pictoworld pictoworld --n 40 --groups image,text --by samples --attn --normalise

    In Python, mmlens.analysis.Selection.load("FOLDER/selection") is what came out.
    """
    of_domains = dict(rate=rate, filter_quantile=filter_quantile, bar_quantile=bar_quantile)
    of_modalities = dict(weights=weights, ratio=ratio, strategy=strategy, seed=seed)
    own, others = (of_domains, of_modalities) if by == "domain" else (of_modalities, of_domains)
    if wrong := [name.replace("_", "-") for name, value in others.items() if value is not None]:
        stop(f"--{wrong[0]} is of --by {'modality' if by == 'domain' else 'domain'}, this is by {by}: leave it out")
    options: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
    if weights is not None and "=" in weights:
        options["weights"] = _weights(weights)
    statistics = _statistics(file, by)
    try:
        found = _chosen(statistics, by, group, module=module, **options)
        writable(out)
        files = {label: f"{name}.safetensors" for label, name in zip(found.sets, safe(found.sets), strict=True)}
        for label, name in files.items():
            found[label].save(out / name)
        whole = found.save(out / WHOLE)
    except (ValueError, OSError) as error:
        stop(first_line(error))
    for line in lines_of(summary(found, files), left=2):
        typer.echo(line)
    typer.echo(f"saved to {whole}, and each set to its file beside it: mmlens evaluate --neurons NAME=FILE takes it")


def safe(labels: Iterable[str]) -> list[str]:
    """Return a name for each label's file: its letters, digits, dots and dashes, none twice, nor that of all together."""
    found: list[str] = []
    taken = {WHOLE}
    for label in labels:
        stem = re.sub(r"[^\w.-]+", "-", label).strip("-.")[:100] or "set"
        name, number = stem, 2
        while name.lower() in taken:  # there are file systems that do not tell A from a
            name, number = f"{stem}-{number}", number + 1
        taken.add(name.lower())
        found.append(name)
    return found


def summary(found: "Selection", files: dict[str, str]) -> list[tuple[str, ...]]:
    """Return a row for each label: its file, and how many neurons it has, in all and in each layer; last, all together."""
    counts = found.counts().tolist()
    rows = [
        (label, files[label], str(len(own)), *map(str, count))
        for (label, own), count in zip(found.sets.items(), counts, strict=True)
    ]
    union, depth = found.union(), range(len(counts[0]))
    layers = union.layer.tolist()
    together = ("any", "", str(len(union)), *(str(layers.count(layer)) for layer in depth))
    head = ("label", "file", "neurons", *(f"L{layer}" for layer in depth))
    return [head, *rows, together]


def _statistics(file: Path, by: str) -> "Statistics":
    """Return the statistics in a file that are weighted as is needed, or stop."""
    quiet()
    from mmlens import analysis, evaluation  # noqa: F401 (what they save is known then, and called by its name)
    from mmlens.results import Result
    from mmlens.stats import Statistics
    from mmlens.sweeps import Sweep

    try:
        saved = Result.load(file)
    except (ValueError, OSError) as error:
        stop(first_line(error))
    parts = saved.results if isinstance(saved, Sweep) else {"": saved}
    known = {name: part for name, part in parts.items() if isinstance(part, Statistics)}
    if not known:
        stop(f"neurons are chosen by what mmlens stats saved, {file} holds a {type(saved).__name__} without statistics")
    wanted = WEIGHTED[by]
    fitting = {name: part for name, part in known.items() if part.weighting == wanted}
    if not fitting:
        stop(f"--by {by} takes what mmlens stats --by {wanted} saved, {file} has none of that")
    if len(fitting) > 1:
        stop(f"{file} has several statistics by {wanted} ({', '.join(fitting)}): choose from one of them in Python")
    return next(iter(fitting.values()))


def _chosen(statistics: "Statistics", by: str, group: str | None, **options: Any) -> "Selection":
    """Return the selection. Raises ValueError for options that do not fit the statistics."""
    from mmlens.analysis import WEIGHTINGS, domain_neurons, modality_neurons

    if by == "domain":
        if len(statistics.labels) == 1:
            raise ValueError(
                "domains are the labels of examples, and these have one: run mmlens stats over several data sets"
            )
        if group is None and len(statistics.groups) > 1:
            raise ValueError(f"these statistics are of the groups {', '.join(statistics.groups)}: say which, by --group")
        return domain_neurons(statistics, group=group, **options)
    if statistics.provenance.parameters.get("normalise") != "minmax":
        raise ValueError("modalities are compared by statistics scaled to 0..1: give --normalise to mmlens stats")
    weights = options.get("weights", "mean_max_attn_k")
    wanted = set(WEIGHTINGS.get(weights, {}) if isinstance(weights, str) else weights) - set(statistics.totals)
    if wanted & {"attn_k", "attn_q"}:
        raise ValueError(f"these weights are of {', '.join(sorted(wanted))} too: give --attn to mmlens stats, or --weights")
    return modality_neurons(statistics, groups=None if group is None else names(group), **options)


def _weights(text: str) -> dict[str, float]:
    """Return the weight of each statistic that --weights names, or stop."""
    try:
        pairs = [one.split("=") for one in names(text)]
        return {name.strip(): float(weight) for name, weight in pairs}
    except ValueError:
        stop(f"--weights is a name, or a number for each statistic such as mean=0.5,max=0.5; got {text!r}")
