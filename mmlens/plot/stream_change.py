"""How far held neurons move the stream, layer by layer, beside random sets of as many."""

from matplotlib.figure import Figure

from mmlens.analysis import StreamChange
from mmlens.plot.canvas import OURS, canvas, plain
from mmlens.plot.curves import layer_axis, mean_curve, random_curves

MEASURES = {
    "relative": "relative change\n||h' - h|| / ||h||",
    "turned": "change of direction\n1 - cos(h', h)",
}


def stream_change(result: StreamChange) -> Figure:
    """Return, by layer, how far the neurons move the stream: relative to its length above, its direction below, a column
    for each group of positions, beside every random set of as many neurons and their mean (grey).

    Curves are means over the rows that have the group, the band their 95 % interval where there are several. Each measure
    has one scale for all groups. Groups that no row has are left out. Raises ValueError where that leaves none.
    """
    held = [index for index in range(len(result.groups)) if not bool(result.relative[index].isnan().all())]
    if not held:
        raise ValueError(f"no row has any of {', '.join(result.groups)}: ask stream_change for groups that are there")
    figure = canvas(max(4.1 * len(held) + 0.6, 6.4), 6.0)
    cells = figure.subplots(len(MEASURES), len(held), squeeze=False, sharey="row")
    for line, (measure, label) in zip(cells, MEASURES.items(), strict=True):
        own, random = getattr(result, measure), getattr(result, f"random_{measure}")
        for axes, group in zip(line, held, strict=True):
            random_curves(axes, random[:, group], label=f"random set{'' if len(random) == 1 else 's'} of as many")
            mean_curve(axes, own[group], color=OURS, label="these neurons")
            layer_axis(axes, own.shape[1], label="layer" if line is cells[-1] else "")
        line[0].set_ylabel(label)
        line[0].set_ylim(bottom=-0.04 * line[0].get_ylim()[1])  # below 0 is nothing, but room for what lies on it
    for axes, group in zip(cells[0], held, strict=True):
        rows = int((~result.relative[group].isnan().all(0)).sum())
        several = f"mean of {rows} rows, 95 % band" if rows > 1 else "one row"
        axes.set_title(f"{plain(result.groups[group])} positions\n({several})", fontsize=10)
    figure.supxlabel("Layer l is the stream that enters block l; the last is the output", fontsize=9)
    figure.legend(*cells[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure
