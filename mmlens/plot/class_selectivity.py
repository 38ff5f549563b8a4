"""Which class's pictures each class's neurons are most active on: a matrix that is to be full on its diagonal."""

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mmlens.analysis import ClassSelectivity
from mmlens.plot.canvas import canvas, plain

NUMBERED = 14  # classes of which a number can still be read


def class_selectivity(result: ClassSelectivity) -> Figure:
    """Return the mean activation of each class's set on the pictures of each class, as a share of its row's maximum.

    The diagonal is framed, each row's maximum has a dot. The title says how many sets are most active on their own class,
    beside the random sets of the same layers (mean and range of the draws) and chance. Red is below 0; a row without an
    activation above 0 has no share, and says so.
    """
    shares, names = result.selectivity(), [plain(name) for name in result.classes]
    count, highest = len(names), result.matrix().argmax(1).tolist()
    figure = canvas(0.56 * count + 3.4, 0.5 * count + 2.4)
    axes = figure.add_subplot()
    shown = axes.imshow(shares, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for row in range(count):
        axes.add_patch(Rectangle((row - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.6))
        for column in range(count) if count <= NUMBERED else ():
            share = float(shares[row, column])
            if share == share:
                color = "white" if abs(share) > 0.7 else "black"
                axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=7, color=color)
        if bool(shares[row].isnan().all()):
            axes.text((count - 1) / 2, row, "nowhere above 0", ha="center", va="center", fontsize=7)
        axes.plot([highest[row]], [row - 0.38], "o", color="black", markersize=2.5)
    axes.set_xticks(range(count), names, rotation=45, ha="right")
    axes.set_yticks(range(count), names)
    axes.set_xlabel("pictures of")
    axes.set_ylabel("neurons of")
    axes.set_title(_title(result), fontsize=10)
    figure.colorbar(shown, ax=axes, label="mean activation, share of the row's maximum", extend="min")
    return figure


def _title(result: ClassSelectivity) -> str:
    drawn = result.random_on_diagonal()
    chance = f"chance {1 / len(result.classes):.0%}"
    if len(drawn):
        mean, low, high = (float(value) for value in (drawn.mean(), drawn.min(), drawn.max()))
        chance = f"random sets {mean:.0%} ({low:.0%} to {high:.0%}), {chance}"
    return f"most active on their own class: {result.on_diagonal():.0%} of the sets\n{chance}"
