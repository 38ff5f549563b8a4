"""Patching as a heat map of layer by site or head, and position by position on the picture itself."""

import math
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mmlens.analysis import Patching
from mmlens.inputs import Inputs
from mmlens.plot.canvas import canvas, focus, grid_lines, height, picture, pictures, plain

NUMBERED = 14  # columns side by side in which a number can still be read
EFFECT = "share of the clean run restored"
STREAM = ("resid_pre", "resid_mid", "resid_post")
COLORS: dict[str, Any] = dict(cmap="RdBu", vmin=-1, vmax=1)


def patching(result: Patching, *, counts: Mapping[str, int] | None = None, tokens: Sequence[str] | None = None) -> Figure:
    """Return the mean effect by layer and site: 1 (blue) is the clean run, 0 (white) the corrupted one.

    Heads or units that were patched one by one are columns, in one panel for each site. Colours run from -1 to 1 whatever
    the numbers. Up to 14 columns have their numbers written in, with the 95 % interval over rows where there are several
    (rows whose two metrics are equal are left out; a cell is empty where no row is left). `counts` adds to a site's label
    how many positions it has, `tokens` (one for each site) what is there.
    """
    mean, rows = result.mean, int((result.clean_metric != result.corrupted_metric).sum())
    low, high = result.interval() if rows > 1 else (mean, mean)
    if result.parts:
        panels = [(plain(site), mean[:, index], low[:, index], high[:, index]) for index, site in enumerate(result.sites)]
        letter = "H" if result.activation in ("q", "k", "v", "z", "pattern") else "u"
        labels = [f"{letter}{part}" for part in result.parts]
    else:
        panels = [("", mean, low, high)]
        labels = [_label(site, counts, None if tokens is None else tokens[i]) for i, site in enumerate(result.sites)]
    numbers, layers = len(labels) <= NUMBERED, len(mean)
    wide = (1.1 if result.parts else 1.9) * len(labels) if numbers else min(14.0, 0.22 * len(labels) + 2)
    tall = (0.62 if numbers and rows > 1 else 0.42) * layers
    figure = canvas(wide * len(panels) + 1.8, tall + 1.7)
    cells = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    image: Any = None
    for axes, (title, values, lower, upper) in zip(cells, panels, strict=True):
        image = axes.imshow(values, aspect="auto", origin="lower", **COLORS)
        if numbers:
            _numbers(axes, values, lower, upper, several=rows > 1)
        step = 1 if numbers else max(1, len(labels) // 24)
        upright = not numbers and tokens is not None
        axes.set_xticks(list(range(len(labels)))[::step], labels[::step], rotation=90 if upright else 0)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel(_across(result))
    names = [str(first) if stop == first + 1 else f"{first}-{stop - 1}" for first, stop in result.windows]
    step = max(1, layers // 24)
    cells[0].set_yticks(list(range(layers))[::step], names[::step])
    cells[0].set_ylabel("before which layer" if result.activation == "resid_pre" else "layer")
    bar = figure.colorbar(image, ax=list(cells), ticks=[-1, -0.5, 0, 0.5, 1])
    bar.set_label(EFFECT + (f"\n(mean of {rows} rows)" if rows != 1 else ""))
    return figure


def patching_on_picture(
    result: Patching, inputs: Inputs, *, row: int = 0, image: int = 0, layers: Sequence[int] | None = None
) -> Figure:
    """Return the picture with the effect of each of its positions, by layer (default: all up to six, or four of them).

    `result` is of `inputs` patched position by position (`positions=`, at least those of the picture). Raises ValueError for
    one that is not, and for a row without such a picture.
    """
    drawn = pictures(inputs, row)
    if not 0 <= image < len(drawn):
        raise ValueError(f"row {row} has {len(drawn)} picture(s), there is no image {image}")
    picked, grid = drawn[image]
    here = inputs.mask(f"image:{image}")[row].nonzero()[:, 0].tolist()
    missing = [position for position in here if str(position) not in result.sites]
    if missing or result.parts:
        raise ValueError(
            "a picture shows effects position by position: patch all positions of the picture one by one (no heads or "
            f"units); this result lacks position {missing[0] if missing else here[0]}"
        )
    effect = result.effect[:, [result.sites.index(str(position)) for position in here], row]
    depth = len(effect)
    every = range(depth) if depth <= 6 else sorted({round(i * (depth - 1) / 3) for i in range(4)})
    chosen = list(every if layers is None else layers)
    columns = min(3 if len(chosen) == 6 else 5, len(chosen))
    lines = math.ceil(len(chosen) / columns)
    figure = canvas(3.1 * columns + 1.0, (height(grid, 2.9) + 0.4) * lines + 0.3)
    cells = figure.subplots(lines, columns, squeeze=False).flatten()
    shown: Any = None
    for axes, at in zip(cells, chosen, strict=False):
        picture(axes, picked, faded=0.35)
        for tile, shades in grid.painted(effect[at]):
            left, upper, right, lower = tile.region
            shown = axes.imshow(shades, extent=(left, right, lower, upper), alpha=0.6, interpolation="nearest", **COLORS)
        grid_lines(axes, grid, width=0.4)
        axes.set_title(f"{'before ' if result.activation == 'resid_pre' else ''}layer {result.windows[at][0]}", fontsize=11)
        focus(axes, grid)
    for axes in cells[len(chosen) :]:
        axes.set_axis_off()
    figure.colorbar(shown, ax=list(cells), ticks=[-1, 0, 1], shrink=0.8).set_label(EFFECT)
    return figure


def _numbers(axes: Axes, mean: Float[Tensor, "row column"], low: Tensor, high: Tensor, *, several: bool) -> None:
    for row, line in enumerate(mean.tolist()):
        for column, value in enumerate(line):
            text = "no difference" if value != value else f"{value:+.2f}" if round(value, 2) else "0.00"
            if several and value == value:
                ends = (round(float(end[row, column]), 2) + 0.0 for end in (low, high))  # no -0.00
                text += "\n" + " to ".join(f"{end:.2f}" for end in ends)
            color = "white" if abs(value) > 0.6 else "black"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8 if several else 10)


def _across(result: Patching) -> str:
    if result.parts:
        return f"{'units' if result.activation in ('pre', 'post') else 'heads'} that get the clean {result.activation}"
    what = "stream" if result.activation in STREAM else result.activation
    return f"positions that get the clean {what}"


def _label(site: str, counts: Mapping[str, int] | None, token: str | None) -> str:
    positions = (counts or {}).get(site)
    count = "" if positions is None else f"\n({positions} position{'' if positions == 1 else 's'})"
    return "\n".join(wrap(plain(site), 16)) + count + ("" if token is None else f" {plain(token, 12)}")
