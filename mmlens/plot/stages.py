"""Curves by layer with the two layers at which each of them turns: three stages, if there are any."""

from collections.abc import Mapping

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from mmlens.analysis import turning_points
from mmlens.plot.canvas import canvas, plain
from mmlens.plot.curves import colors_of, layer_axis


def stages(curves: Mapping[str, Float[Tensor, " layer"]], *, quantity: str = "mean entropy (nats)") -> Figure:
    """Return curves by layer in one panel, with a vertical line of the curve's colour at each of its two turning points.

    `curves` are named by modality, or as you like: `{name: lens.mean_entropy(inputs.mask(name)) for name in (...)}`;
    `quantity` is what they measure. Lines of curves that turn at the same layer alternate in colour. Every curve gets two
    turning points, a straight one too: they are those of `turning_points`, whose rule is ours; Huo et al. 2024 read three
    stages off such curves and give none. Raises ValueError for fewer than five layers.
    """
    figure = canvas(9.4, 3.8)
    axes = figure.add_subplot()
    dash, gap = 5.0, 5.0 * (len(curves) - 1)  # so that lines at the same layer show by turns
    for index, ((name, curve), color) in enumerate(zip(curves.items(), colors_of(list(curves)), strict=True)):
        first, second = turning_points(curve)
        axes.plot(range(len(curve)), curve, marker="o", color=color, label=f"{plain(name)}: turns at {first} and {second}")
        for turn in (first, second):
            axes.axvline(turn, color=color, linewidth=1.5, linestyle=(index * dash, (dash, gap)) if gap else "solid")
    layer_axis(axes, max(map(len, curves.values())))
    axes.set_ylabel(plain(quantity))
    title = "vertical lines: turning points\n(our rule, not the paper's)"
    figure.legend(loc="outside right upper", frameon=False, title=title)
    return figure
