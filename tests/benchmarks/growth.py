"""How time and memory of ours grow with positions, layers and samples: one figure, with the exponent of each."""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from task import SIZES, Task, make
from turns import Process
from works import Work

AXES = {"positions": ("images", (1, 2, 4)), "layers": ("layers", (1, 2, 4)), "samples": ("rows", (1, 2, 4))}
"""What is varied, the argument of `make` that varies it, and how often; layers are so many times half of the model's."""
WHAT = {"seconds": "time (s)", "bytes": "memory above what it was (MB)"}


def grow(works: Sequence[Work], figure: Path, options) -> dict[str, dict]:
    """Measure each work, draw the figure, and write the numbers beside it as JSON. Returns them."""
    size = options.size[0]
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        tasks: dict[tuple, Task] = {}
        for work in (work for work in works if work.grows):
            process = Process(sys.executable, options.threads)
            try:
                found[work.call] = grown(work, process, size, tasks, Path(folder), options)
            finally:
                process.close()
            print(told(work, found[work.call]), flush=True)
    figure.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    drawn(found, figure)
    return found


def grown(work: Work, process: Process, size: str, tasks: dict[tuple, Task], folder: Path, options) -> dict:
    """Return, by axis, what was varied (`at`), `seconds`, `bytes`, and the exponents of both."""
    measured: dict[tuple, dict] = {}
    axes = {}
    for axis in work.grows:
        name, values = AXES[axis]
        at, points = [], []
        depth = SIZES[size]["layers"]
        for value in values:
            value = value * depth // 2 if name == "layers" else value
            change = {"images": 1, "rows": 1, "layers": depth, name: value}
            key = tuple(change.values())
            if key not in tasks:
                tasks[key] = Task(make(folder / "-".join(map(str, key)), size, **change), options.device, options.dtype)
            if key not in measured:
                process.load(work.ours, tasks[key])
                process.ask("memory")  # a first run, which is slower
                measured[key] = process.ask("memory")
            at.append(tasks[key].facts["positions"] if axis == "positions" else value)
            points.append(measured[key])
        columns = {what: [point[what] for point in points] for what in WHAT}
        slopes = {what: float(np.polyfit(np.log(at), np.log(column), 1)[0]) for what, column in columns.items()}
        axes[axis] = {"at": at, **columns, "exponents": slopes}
    return axes


def told(work: Work, axes: dict) -> str:
    each = (
        f"{axis}: time ^{found['exponents']['seconds']:.2f}, memory ^{found['exponents']['bytes']:.2f}"
        for axis, found in axes.items()
    )
    return f"{work.call}: {'; '.join(each)}"


def drawn(found: dict[str, dict], file: Path) -> None:
    """Draw time above and memory below, a panel for each axis, on logarithmic scales; exponents stand behind the names."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 6.5), layout="constrained")
    panels = figure.subplots(2, len(AXES), sharex="col", sharey="row")
    colors = dict(zip(found, colormaps["tab20"].colors, strict=False))
    for column, axis in enumerate(AXES):
        for panel, (what, label) in zip(panels[:, column], WHAT.items(), strict=True):
            for call, axes in found.items():
                if axis in axes:
                    y = np.array(axes[axis][what]) / (1e6 if what == "bytes" else 1)
                    name = f"{call}  ^{axes[axis]['exponents'][what]:.2f}"
                    panel.loglog(axes[axis]["at"], y, "o-", color=colors[call], label=name, ms=3, lw=1)
            ticks = next(axes[axis]["at"] for axes in found.values() if axis in axes)
            panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks], minor=False)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            panel.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0)
            panel.set_ylabel(label if column == 0 else "")
        panels[-1, column].set_xlabel(axis)
    figure.savefig(file, dpi=110)
