"""Activation patching as a heat map of layer by site."""

from textwrap import wrap

import torch
from matplotlib.figure import Figure

from mmlens.analysis import Patching
from mmlens.plot.canvas import canvas, plain


def patching(result: Patching, *, counts: dict[str, int] | None = None) -> Figure:
    """Return the mean effect by layer and site with its numbers: 1 (blue) is the clean run, 0 (white) the corrupted one.

    Colours run from -1 to 1 whatever the numbers. Rows whose two metrics are equal are left out of the mean; a cell is
    empty where no row is left. `counts` adds to a site's label how many positions it has.
    """
    mean = result.effect.nanmean(-1)
    rows = int((~result.effect.isnan()).all(1).all(0).sum())
    layers, sites = mean.shape
    figure = canvas(1.9 * sites + 1.8, 0.42 * layers + 1.7)
    axes = figure.add_subplot()
    image = axes.imshow(mean, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", origin="lower")
    for layer in range(layers):
        for site in range(sites):
            value = float(mean[layer, site])
            text = "no difference" if value != value else f"{value:+.2f}" if round(value, 2) else "0.00"
            color = "white" if abs(value) > 0.6 else "black"
            axes.text(site, layer, text, ha="center", va="center", color=color, fontsize=10)
    labels = ["\n".join(wrap(plain(site), 16)) + _count((counts or {}).get(site)) for site in result.sites]
    axes.set_xticks(torch.arange(sites).tolist(), labels)
    step = max(1, layers // 24)
    axes.set_yticks(range(0, layers, step))
    axes.set_xlabel("positions that get the clean stream")
    axes.set_ylabel("before which layer")
    bar = figure.colorbar(image, ax=axes, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.set_label("share of the clean run restored" + (f"\n(mean of {rows} rows)" if rows != 1 else ""))
    return figure


def _count(positions: int | None) -> str:
    return "" if positions is None else f"\n({positions} position{'' if positions == 1 else 's'})"
