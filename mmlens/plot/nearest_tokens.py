"""How near the stream's vectors lie to words, beside random vectors."""

import numpy as np
from matplotlib.figure import Figure

from mmlens.analysis import NearestTokens
from mmlens.plot.canvas import OURS, RANDOM, canvas

KINDS = {"norm": ("random directions", "solid"), "gaussian": ("drawn like the embeddings", "dashed")}


def nearest_tokens(result: NearestTokens) -> Figure:
    """Return the share of vectors whose nearest token is no nearer than each cosine, beside that of both controls.

    Curves that lie on each other are of vectors that mean words no more than random ones do; the legend has the
    Kolmogorov-Smirnov test's D (the largest distance between ours and a control's) and p.
    """
    figure = canvas(6.0, 3.6)
    axes = figure.add_subplot()
    for kind, best in result.controls.items():
        name, style = KINDS[kind]
        label = f"{name}, n = {len(best)} (D = {result.ks_statistic[kind]:.2f}, p = {result.ks_p[kind]:.2g})"
        axes.ecdf(np.asarray(best), color=RANDOM, linestyle=style, label=label)
    axes.ecdf(np.asarray(result.cosines[:, 0]), color=OURS, label=f"these vectors, n = {len(result.cosines)}")
    axes.set_xlabel("cosine with the nearest token")
    axes.set_ylabel("share of vectors")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", frameon=False)
    return figure
