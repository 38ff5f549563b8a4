"""Direct logit attribution as bars: which components raise the token's logit, and which lower it."""

from matplotlib.figure import Figure

from mmlens.analysis import DirectAttribution
from mmlens.plot.canvas import OURS, RANDOM, canvas, plain


def direct_attribution(result: DirectAttribution, *, k: int = 20, target: str | None = None) -> Figure:
    """Return the `k` components of largest mean over places, by size, in the order in which they enter the stream.

    The last bar is the sum of all others. `target` names the token on the axis.
    """
    mean, labels = result.parts.mean(-1), result.components.labels()
    chosen = sorted(mean.abs().argsort(descending=True, stable=True)[:k].tolist())
    left = [one for one in range(len(mean)) if one not in set(chosen)]
    names, values = [labels[one] for one in chosen], mean[chosen].tolist()
    if left:
        names.append(f"{len(left)} others")
        values.append(float(mean[left].sum()))
    figure = canvas(6.5, 0.26 * len(names) + 1.1)
    axes = figure.add_subplot()
    colors = [RANDOM if left and place == len(names) - 1 else OURS for place in range(len(names))]
    axes.barh(range(len(names)), values, color=colors)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    of = "the token's logit" if target is None else f"the logit of {plain(target)}"
    difference = "" if result.against is None else ", less the other's"
    places = f" (mean of {result.parts.shape[1]} places)" if result.parts.shape[1] != 1 else ""
    axes.set_xlabel(f"added to {of}{difference}{places}")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
