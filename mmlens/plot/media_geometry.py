"""Where whole pictures or sounds lie in a tower, in the colour of their label, beside how well shuffled labels separate."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmlens.analysis import MediaGeometry
from mmlens.plot.canvas import OURS, RANDOM, canvas, plain
from mmlens.plot.curves import PROJECTIONS, colors_of

MARKERS = "osD^vPX"  # beside colours, of which there is one fewer: where a colour comes again, its marker is another


def media_geometry(result: MediaGeometry) -> Figure:
    """Return the plane, a point for each example in its label's colour, beside the silhouette (red) and that of every
    shuffling of the labels (grey), with their mean.

    Of t-SNE and UMAP only who is near whom counts: their axes have no unit.
    """
    figure = canvas(9.6, 5.0)
    axes, beside = figure.subplots(1, 2, width_ratios=[5.2, 1.3])
    colors = colors_of(result.labels)
    for index, (name, color) in enumerate(zip(result.labels, colors, strict=True)):
        here = result.plane[result.label == index]
        marker = MARKERS[index % len(MARKERS)]
        size = min(36.0, max(8.0, 6000 / len(result.plane)))
        label = f"{plain(name)} ({len(here)})"
        axes.scatter(here[:, 0], here[:, 1], color=color, marker=marker, s=size, alpha=0.75, linewidth=0, label=label)
    for write, axis in ((axes.set_xlabel, 0), (axes.set_ylabel, 1)):
        share = float(result.explained[axis])
        name = PROJECTIONS.get(result.projection)
        write(f"{name} {axis + 1} (no unit)" if name else f"component {axis + 1} ({share:.0%} of the variance)")
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"output of {result.module} block {result.layer}, n = {len(result.label)}", fontsize=11)
    _silhouette(beside, result)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
    return figure


def _silhouette(axes: Axes, result: MediaGeometry) -> None:
    """Draw the silhouette as a red line, every shuffling as a grey dot, and their mean as a grey line."""
    own, drawn = float(result.silhouette), result.random_silhouette
    defined = own == own  # NaN for one label, or no two examples of one
    if defined and len(drawn):
        mean = float(drawn.mean())
        axes.plot([0] * len(drawn), drawn, "o", color=RANDOM, markersize=5, alpha=0.6, label="one shuffling of labels each")
        axes.plot([-1, 1], [mean, mean], color=RANDOM, linewidth=2.6, label=f"mean of {len(drawn)}: {mean:.2f}")
    axes.plot(
        [-1, 1],
        [own, own],
        color=OURS,
        linewidth=2.6,
        label=f"these labels: {own:.2f}" if defined else "these labels: not defined",
    )
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_ylim(min([0.0, own, *drawn.tolist()]) - 0.08 if defined else -0.08, 1.03)
    axes.set_xticks([])
    axes.set_ylabel("silhouette\n(0: they overlap, 1: apart)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.01), fontsize=9)
