"""The one table: what each analysis costs beside what a user would take instead, on the same work, in turns.

    python tests/benchmarks [--size 25m] [--only WORDS] [--rounds 5] [--threads 1] [--json FILE] [--growth FIGURE]

Each row runs a LLaVA with random weights on pictures of noise (`--size`: 25 M weights in the language model and 576
positions a picture; 250m; 7b). Each side is a process of its own; they take turns, A B A B. Printed are, for each peer, the
median of the rounds' ratios of time (ours / theirs) with quartiles, the ratio of how far memory rose in one more run, what
the peer took, and the largest difference between the numbers that both came to, relative to the largest of them.

Peers that are not this package's own dependencies are run by an interpreter that holds them, and torch, transformers and
safetensors (`--peers`); without one they cannot, and say so:

    python -m venv peers && peers/bin/pip install torch==2.13.0 transformers pillow nnsight==0.8.1 captum==0.9
    python tests/benchmarks --peers peers/bin/python

`--nnterp` names another one, with nnterp and the nnsight that it asks for; today that is the same one, and nnterp does not
import beside it.

On a GPU, in the shapes of a 7B model: `python tests/benchmarks --size 7b --device cuda --dtype bfloat16 --rounds 5`.
Rows that are in FILE already stay, but for those that are measured anew.

`--size 3m --growth FIGURE.png` draws instead how time and memory of ours grow with positions, layers and samples.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch
from task import SIZES, Task, make
from turns import ROUNDING, Cannot, Compared, compare
from works import WORKS

PEERS = ("nnsight", "captum", "nnterp")


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["25m"])
    parser.add_argument(
        "--only", nargs="*", default=[""], metavar="WORDS", help="rows whose name or call has one of these in it"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=ROUNDING)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="the interpreter that has the peers")
    parser.add_argument("--nnterp", default=None, metavar="PYTHON", help="another one, for nnterp")
    parser.add_argument("--json", default=None, metavar="FILE")
    parser.add_argument("--growth", default=None, metavar="FIGURE")
    return parser.parse_args(arguments)


def main() -> None:
    options = options_of()
    works = [work for work in WORKS if any(part.lower() in f"{work.name} {work.call}".lower() for part in options.only)]
    if not works:
        sys.exit(f"no row has {' or '.join(options.only)} in its name or call: {', '.join(work.call for work in WORKS)}")
    if options.growth:
        from growth import grow

        grow(works, Path(options.growth), options)
        return
    pythons = dict.fromkeys(PEERS, options.peers) | ({"nnterp": options.nnterp} if options.nnterp else {})
    print(f"{machine(options)}\n\n{HEAD}", flush=True)
    told = dict(machine=machine(options), versions=versions(pythons), date=str(date.today()))
    rows, wrong = kept(options.json), []
    for size, work in ((size, work) for size in options.size for work in works if size in work.sizes):
        try:
            lines = measured(work, size, options, pythons)
        except (Cannot, AssertionError) as error:
            wrong.append(str(error))
            continue
        rows = [row for row in rows if (row["size"], row["work"]) != (size, work.name)]
        for line in lines:
            print(as_row(line), flush=True)
            rows.append(line.as_json())
        if options.json:  # after each row: a run that is stopped leaves what it has
            Path(options.json).write_text(json.dumps(told | dict(rows=rows), indent=1) + "\n")
    if wrong:
        sys.exit("\n".join(["", "without a row:", *wrong]))


def kept(file: str | None) -> list[dict]:
    """Return the rows that an earlier run wrote: those of other work stay."""
    return json.loads(Path(file).read_text())["rows"] if file and Path(file).exists() else []


def measured(work, size, options, pythons) -> list[Compared]:
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = None if size == "toy" else work.vocabulary
        make(Path(folder), size, images=work.images, rows=work.rows, vocabulary=vocabulary, dtype=options.dtype)
        task = Task(Path(folder), options.device, options.dtype)
        how = dict(rounds=options.rounds, threads=options.threads, pythons=pythons)
        return compare(work, task, size, **how)


HEAD = (
    "| work | ours | beside | model, positions | time, ours / beside | memory | goal | beside, s | difference |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def as_row(line: Compared) -> str:
    head = f"| {line.work} | `{line.call}` | {line.beside} | {line.size.upper()}, {line.positions:,} |"
    if line.cannot:
        return f"{head} cannot: {line.cannot.splitlines()[0][:160]} | | | | |"
    low, high = line.quartiles
    memory = "" if line.memory is None else f"{line.memory:.2f}"
    goals = [] if line.goal_time is None else [f"<= {line.goal_time:g}"]
    goals += [] if line.goal_memory is None else [f"memory <= {line.goal_memory:g}"]
    reached = "" if line.size == "toy" else {True: "met", False: "**missed**", None: ""}[line.met]
    same = "" if line.difference is None else f"{line.difference:.0e}"
    ratio = f"**{line.time:.2f}** ({low:.2f} to {high:.2f})"
    return f"{head} {ratio} | {memory} | {', '.join(goals)} {reached} | {line.seconds:.2f} | {same} |"


def machine(options) -> str:
    if options.device.startswith("cuda"):
        return f"torch {torch.__version__}, {torch.cuda.get_device_name()}, {options.dtype}"
    told = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((row.split(":")[1].strip() for row in told if row.startswith("model name")), "")
    where = model or platform.machine()
    return f"torch {torch.__version__}, {where}, {options.threads} thread(s), {options.dtype}, {os.cpu_count()} CPUs seen"


def versions(pythons) -> dict[str, str]:
    """Return the version of each package that a row runs, in the environment in which it runs."""
    asked = dict.fromkeys(("mmlens", "transformer-lens", "transformers"), sys.executable) | dict(pythons)
    found = {}
    for name, python in asked.items():
        code = f"from importlib.metadata import version; print(version({name!r}))"
        said = subprocess.run([python, "-c", code], capture_output=True, text=True)
        found[name] = said.stdout.strip() or "not installed"
    return found


if __name__ == "__main__":
    main()
