"""Attention knock-out as curves over layer windows, one for each source."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from mmlens.analysis import KnockOutEffect
from mmlens.plot.canvas import RANDOM, canvas, plain


def knock_out_effect(result: KnockOutEffect, *, metric: str = "metric", controls: Sequence[str] = ()) -> Figure:
    """Return the mean change of the metric by layer window, one curve for each source that may not be attended to.

    Bands are the standard error over rows, where there are several. `metric` is how the axis calls it; `controls` are the
    sources that were drawn at random, and are grey. Raises ValueError for a control that is no source.
    """
    if unknown := [name for name in controls if name not in result.sources]:
        raise ValueError(
            f"controls are among the sources {', '.join(result.sources)}, got {unknown[0]!r}: name some of those"
        )
    change, rows = result.change, result.change.shape[-1]
    figure = canvas(8.0, 3.8)
    axes = figure.add_subplot()
    axes.axhline(0, color="black", linewidth=1)
    places = range(len(result.windows))
    for index, source in enumerate(result.sources):
        mean = change[:, index].mean(-1)
        color = RANDOM if source in controls else None
        (line,) = axes.plot(places, mean, marker="o", color=color, label=plain(source))
        if rows > 1:
            error = change[:, index].std(-1) / rows**0.5
            axes.fill_between(places, mean - error, mean + error, color=line.get_color(), alpha=0.2, linewidth=0)
    labels = [str(start) if stop == start + 1 else f"{start}-{stop - 1}" for start, stop in result.windows]
    every = max(1, len(labels) // 16)
    axes.set_xticks(list(places)[::every], labels[::every])
    axes.set_xlabel("layers in which attention is blocked")
    axes.set_ylabel(f"change of the {plain(metric)}" + (f"\n(mean of {rows} rows)" if rows != 1 else ""))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="hidden from the query")
    return figure
