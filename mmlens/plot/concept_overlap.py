"""How well neurons find objects on pictures, concept by concept, beside random neurons and the most that is possible."""

import numpy as np
from matplotlib.figure import Figure

from mmlens.analysis import ConceptOverlap
from mmlens.plot.canvas import OURS, RANDOM, canvas, plain


def concept_overlap(result: ConceptOverlap) -> Figure:
    """Return the mean overlap (IoU) of each concept's neurons with its object, concepts in order of it, all of them below.

    A small dot is one example. The grey bar is the range of the random draws' means, its line their mean; the black mark is
    the largest overlap that the objects' sizes allow.
    """
    table = result.table()
    order = ["all", *sorted(dict.fromkeys(result.concepts), key=lambda name: table.loc[name, "iou"])]
    figure = canvas(7.6, 1.5 + 0.34 * len(order))
    axes = figure.add_subplot()
    concepts = np.asarray(result.concepts)
    for level, name in enumerate(order):
        row, last = table.loc[name], level == 0
        axes.barh(level, row["random_high"] - row["random_low"], 0.62, row["random_low"], color=RANDOM, alpha=0.4)
        axes.vlines(row["random"], level - 0.31, level + 0.31, color=RANDOM, linewidth=2.0, label="random" if last else "")
        if not last:
            examples = result.iou[np.flatnonzero(concepts == name)]
            axes.plot(examples, np.full(len(examples), level), ".", color=OURS, markersize=4, alpha=0.6)
        axes.plot([row["iou"]], [level], "o", color=OURS, label="these neurons" if last else "")
        axes.vlines(row["bound"], level - 0.31, level + 0.31, color="black", label="most possible" if last else "")
    axes.axhline(0.5, color="black", linewidth=0.6)
    axes.set_yticks(range(len(order)), [f"{plain(name)} (n = {table.loc[name, 'n']:.0f})" for name in order])
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlim(left=0)
    draws = f"random: {len(result.random_iou)} draws in the same layers, lowest mean to highest"
    axes.set_xlabel(f"mean overlap (IoU) with the object\n{draws}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure
