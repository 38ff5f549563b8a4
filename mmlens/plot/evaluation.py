"""What interventions do to tasks, beside what random sets of as many neurons do."""

import math
from itertools import product
from typing import Literal, get_args

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mmlens.evaluation import Evaluation
from mmlens.evaluation.result import control
from mmlens.metrics import METRICS
from mmlens.plot.canvas import OURS, RANDOM, canvas, plain

Change = Literal["difference", "to_random"]
UNITS = {"log_prob": " (nats)", **dict.fromkeys(METRICS, " (0 to 1)")}  # not of a metric of one's own


def evaluation(found: Evaluation, *, resamples: int = 9999, seed: int = 0) -> Figure:
    """Return a panel for each task: the change of its mean score under each intervention, with its 95 % interval.

    The grey bar behind it reaches from the lowest to the highest mean of its random controls. A filled dot is one whose
    p-value, corrected over the whole table, is below .05. `resamples` and `seed` are those of `Evaluation.table`.
    """
    table = found.table(resamples=resamples, seed=seed)
    tasks = list(dict.fromkeys(found.tasks))
    names = list(found.random)[::-1]
    figure = canvas(1.6 + 2.4 * len(tasks), 1.2 + 0.42 * len(names))
    panels = figure.subplots(1, len(tasks), squeeze=False, sharex=True, sharey=True)[0]
    for axes, task in zip(panels, tasks, strict=True):
        baseline = table.loc[("baseline", task)]
        for height, name in enumerate(names):
            if (name, task) not in table.index:
                continue
            row = table.loc[(name, task)]
            low, high = row["draw_low"] - baseline["mean"], row["draw_high"] - baseline["mean"]
            if not np.isnan(low):
                axes.plot([low, high], [height, height], color=RANDOM, linewidth=7, alpha=0.35, solid_capstyle="butt")
            axes.plot([row["difference_low"], row["difference_high"]], [height, height], color=OURS, linewidth=1.5)
            filled = row["p_corrected"] < 0.05
            axes.plot([row["difference"]], [height], "o", color=OURS, markerfacecolor=OURS if filled else "white")
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set_title(f"{plain(task)} (n = {baseline['n']:.0f})", fontsize=9)
        axes.tick_params(labelsize=8)
    panels[0].set_ylim(-0.6, len(names) - 0.4)
    panels[0].set_ylabel("intervention", fontsize=8)
    panels[0].set_yticks(range(len(names)), [plain(name) for name in names])
    unit = f"{found.metric} (nats)" if found.metric == "log_prob" else found.metric
    figure.supxlabel(f"Change of mean {plain(unit)}; 95 % interval; grey: range of random controls", fontsize=8)
    return figure


def evaluation_matrix(found: Evaluation, *, what: Change = "difference", resamples: int = 9999, seed: int = 0) -> Figure:
    """Return the change of the mean score, intervention x task: blue where it rises, red where it falls.

    `what` is the "difference" to the baseline, with that of the random controls' mean small below it, or the difference
    "to_random" controls. A cell is framed where the intervention is called as the task, has a dot where the p-value of the
    difference to the baseline, corrected over the whole table, is below .05, and is grey where nothing was run. Tasks that
    an intervention is called as come first, in the order of these. `resamples` and `seed` are those of `Evaluation.table`.
    Raises ValueError for another `what`, and where the table has none of it.
    """
    if what not in get_args(Change):
        raise ValueError(f"a matrix around zero is of {' or '.join(get_args(Change))}, got {what!r}")
    table, names = found.table(resamples=resamples, seed=seed), list(found.random)
    tasks = sorted(dict.fromkeys(found.tasks), key=lambda task: names.index(task) if task in names else len(names))
    values = found.matrix(what, resamples=resamples, seed=seed).reindex(index=names, columns=tasks)
    if bool(values.isna().to_numpy().all()):
        raise ValueError(f"there is no {what} in this table: evaluate interventions, with random draws, and draw that")
    largest = float(np.nanmax(np.abs(values.to_numpy()))) or 1.0
    digits = min(max(2, 1 - math.floor(math.log10(largest))), 5)
    figure = canvas(3.5 + 1.0 * len(tasks), 2.0 + 0.62 * len(names))
    axes = figure.add_subplot()
    colors = colormaps["RdBu"].with_extremes(bad="#e6e6e6")
    shown = axes.imshow(values, cmap=colors, vmin=-largest, vmax=largest, aspect="auto")
    for (row, name), (column, task) in product(enumerate(names), enumerate(tasks)):
        if name == task:
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=1.8, clip_on=False))
        if np.isnan(value := float(values.iloc[row, column])):
            continue
        ink, pale = ("white", "#e6e6e6") if abs(value) > 0.6 * largest else ("black", "#444444")
        below = what == "difference" and (control(name), task) in table.index
        axes.text(column, row, _signed(value, digits), ha="center", va="bottom" if below else "center", color=ink)
        if below:
            drawn = _signed(table.loc[(control(name), task)][what], digits)
            axes.text(column, row + 0.08, drawn, ha="center", va="top", color=pale, fontsize=7)
        if table.loc[(name, task)]["p_corrected"] < 0.05:
            axes.plot([column + 0.4], [row - 0.33], "o", color=ink, markersize=3.5)
    axes.set_xticks(range(len(tasks)), [plain(task) for task in tasks], rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.set_xlabel("task")
    axes.set_ylabel("intervention")
    than = "" if what == "difference" else ",\nless that of its random controls"
    axes.set_title(f"change of mean {plain(found.metric)}{UNITS.get(found.metric, '')}{than}", fontsize=11)
    figure.colorbar(shown, ax=axes)
    controls = "\nsmall: mean of random controls" if what == "difference" and any(found.random.values()) else ""
    figure.supxlabel(f"dot: corrected p < .05 (to the baseline); frame: the task of that name{controls}", fontsize=8)
    return figure


def _signed(value: float, digits: int) -> str:
    """Return a number with its sign, but for one that is 0 when rounded."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else text[1:]
