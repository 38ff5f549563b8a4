"""What interventions do to tasks, beside what random sets of as many neurons do."""

import numpy as np
from matplotlib.figure import Figure

from mmlens.evaluation import Evaluation
from mmlens.plot.canvas import OURS, RANDOM, canvas, plain


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
