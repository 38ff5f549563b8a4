"""Model cards: tables of what was measured on the shipped training seed, with the range over all seeds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmlens.organisms.asking import Rates

SHIPPED = 0
Measured = dict[str, Any]
"""What one training seed was measured to do; `exact_match` holds Rates by what the model was given."""


def main(
    checkpoints: Sequence[Path],
    *,
    measure: Callable[[Path, int, int], Measured],
    card: Callable[[Path], str],
    description: str | None,
    examples: int,
) -> None:
    """Parses the command line, measures every checkpoint with `measure(folder, examples, seed)`, and writes its `card`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="what train wrote for the other training seeds, a folder each")
    parser.add_argument("--examples", type=int, default=examples, help=f"held-out examples to measure on ({examples})")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the held-out examples")
    arguments = parser.parse_args()
    about = {"split": "held_out", "examples": arguments.examples, "seed": arguments.seed}
    for folder in checkpoints:
        measure_seeds(folder, arguments.runs, lambda made: measure(made, about["examples"], about["seed"]), about)
        (folder / "README.md").write_text(card(folder))


def measure_seeds(folder: Path, runs: Sequence[Path], measure: Callable[[Path], Measured], about: Mapping[str, Any]) -> None:
    """Writes what `measure` finds in the shipped folder and in the same checkpoint of every run, by training seed.

    The runs' logs join the shipped one's. What is there of other seeds, measured on the same examples (`about`), stays.
    """
    kept = read_measurements(folder) if (folder / "measurements.json").exists() else {}
    measured = kept["measured"] if all(kept.get(key) == value for key, value in about.items()) else {}
    logs = read_log(folder)
    for made in [folder, *(run / folder.name for run in runs)]:
        seed, stages = next(iter(read_log(made).items()))
        measured[seed], logs[seed] = measure(made), stages
    by_seed = {"measured": {str(seed): measured[seed] for seed in sorted(measured)}}
    (folder / "measurements.json").write_text(json.dumps({**about, **by_seed}, indent=1) + "\n")
    lines = [entry for seed in sorted(logs) for entry in logs[seed].values()]
    (folder / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_measurements(folder: Path) -> dict[str, Any]:
    """What a folder's measurements.json holds; `measured` is by training seed."""
    kept = json.loads((folder / "measurements.json").read_text())
    return {**kept, "measured": {int(seed): found for seed, found in kept["measured"].items()}}


def read_log(folder: Path, name: str = "training.jsonl") -> dict[int, dict[str, dict]]:
    """The entries of a folder's training log, by training seed and stage, the shipped seed first."""
    logs: dict[int, dict[str, dict]] = {}
    for line in (folder / name).read_text().splitlines():
        entry = json.loads(line)
        logs.setdefault(entry["seed"], {})[entry["stage"]] = entry
    return dict(sorted(logs.items(), key=lambda item: item[0] != SHIPPED))


def accuracy_table(measured: Mapping[int, Measured], given: Mapping[str, str]) -> str:
    """Exact-match rates by question (rows) and by what the model was given (columns), with the range over seeds."""
    rates: dict[int, dict[str, Rates]] = {seed: found["exact_match"] for seed, found in measured.items()}
    shown = rates[SHIPPED]
    rows = [["question", "n", *given.values()]]
    for question, cell in shown[next(iter(given))].items():
        values = [
            {seed: r[name][question]["rate"] for seed, r in rates.items() if question in r[name]} if name in shown else {}
            for name in given
        ]
        rows.append([question, str(cell["n"]), *(percent(v) if v else "" for v in values)])
    return markdown(rows)


def stage_table(logs: Mapping[int, Mapping[str, dict]], stages: Sequence[str], recipe: Mapping[str, str]) -> str:
    """What each stage trained, for how long, and its last loss, with the range over seeds."""
    rows = [["stage", "what", "steps", "rows per step", "minutes", "threads", "last loss"]]
    for stage in stages:
        entries = {seed: log[stage] for seed, log in logs.items() if stage in log}
        shown = entries[SHIPPED]
        minutes = {seed: entry["seconds"] / 60 for seed, entry in entries.items()}
        losses = {seed: entry["losses"][-1] for seed, entry in entries.items()}
        counts = [str(shown["steps"]), str(shown["batch"])]
        rows.append(
            [stage, recipe[stage], *counts, spread(minutes, "{:.1f}"), str(shown["threads"]), spread(losses, "{:.3f}")]
        )
    return markdown(rows)


def seeds(measured: Mapping[int, Measured]) -> str:
    """Which training seeds the numbers are about, in words."""
    if len(measured) == 1:
        return f"One training seed, {SHIPPED}."
    return f"Training seed {SHIPPED}; in brackets, the lowest and the highest of {len(measured)} training seeds."


def percent(rates: Mapping[int, float]) -> str:
    """A rate by training seed, in percent."""
    return spread({seed: 100 * rate for seed, rate in rates.items()}, "{:.1f}", unit=" %")


def spread(values: Mapping[int, float], form: str, *, unit: str = "") -> str:
    """The shipped seed's value and, in brackets, the lowest and the highest over all training seeds, if there are more."""
    shown = form.format(values[SHIPPED]) + unit
    if len(values) == 1:
        return shown
    return f"{shown} ({form.format(min(values.values()))} to {form.format(max(values.values()))})"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The rows as a table, the first of them its head."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])
