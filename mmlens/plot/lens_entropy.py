"""How sure each modality is of the next token, layer by layer, for each label."""

import torch
from matplotlib.figure import Figure

from mmlens.analysis import LensEntropy
from mmlens.plot.canvas import canvas, plain
from mmlens.plot.curves import STREAM, colors_of, layer_axis, mean_curve


def lens_entropy(result: LensEntropy) -> Figure:
    """Return the mean logit-lens entropy (nats) by layer: a panel for each group of positions with a curve for each label,
    or, where there is one label, one panel with a curve for each group.

    Curves are means over the examples that have the group, each of which counts the same; bands are their 95 % interval
    where there are several. Groups that no example has are left out. Raises ValueError where that leaves none.
    """
    held = [index for index in range(len(result.groups)) if int(result.positions[:, index].sum())]
    if not held:
        raise ValueError(f"no example has any of {', '.join(result.groups)}: ask lens_entropy for groups that are there")
    groups = [result.groups[index] for index in held]
    curves = {
        (group, label): result.by_example[result.label == own, index].T
        for index, group in zip(held, groups, strict=True)
        for own, label in enumerate(result.labels)
        if int(result.positions[own, index])
    }
    single = len(result.labels) == 1
    panels = [None] if single else groups
    names = groups if single else result.labels
    colors = dict(zip(names, colors_of(names), strict=True))
    figure = canvas(max(4.3 * len(panels) + 0.6, 7.0), 4.4)
    cells = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    shown = {}
    for axes, panel in zip(cells, panels, strict=True):
        own = {(group if single else label): curve for (group, label), curve in curves.items() if panel in (None, group)}
        for name, curve in own.items():
            mean_curve(axes, curve, color=colors[name], label=plain(name))
        n = int((~torch.cat(list(own.values()), 1)[0].isnan()).sum())
        axes.set_title(_title(panel, n if panel else len(result.label)), fontsize=10)
        layer_axis(axes, result.by_example.shape[2], label="")
        shown |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    cells[0].set_ylabel("mean entropy (nats)")
    figure.supxlabel(STREAM if result.site == "resid" else f"layer (its {result.site})", fontsize=10)
    figure.legend(shown.values(), shown, loc="outside upper center", ncols=min(5, 2 * len(panels) + 1), frameon=False)
    return figure


def _title(group: str | None, n: int) -> str:
    counted = f"n = {n} example{'s' * (n != 1)}" + ", 95 % bands" * (n > 1)
    return counted if group is None else f"{plain(group)} positions ({counted})"
