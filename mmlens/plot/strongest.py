"""The pictures that neurons answer to most."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from mmlens.media import read_image
from mmlens.neurons import Neurons
from mmlens.plot.canvas import canvas, picture, plain
from mmlens.stats import StrongestExamples


def strongest(
    found: StrongestExamples,
    examples: Sequence[Any],
    neurons: Neurons,
    *,
    label: str | None = None,
    group: str | None = None,
) -> Figure:
    """Return a row of pictures for each of `neurons`: the examples in which it is strongest, with its highest activation.

    `examples` are those that were swept, by their place in the data set; of several pictures the first is shown. `label` and
    `group` may be left out where there is one. Raises ValueError where they can't, or an example has no picture.
    """
    row = _only(label, found.labels, "label")
    column = _only(group, found.groups, "group")
    k = next(iter(found.value.values())).shape[-1]
    figure = canvas(1.0 + 1.35 * k, 0.5 + 1.6 * len(neurons))
    grid = figure.subplots(len(neurons), k, squeeze=False)
    for line, (name, (module, layer, unit)) in enumerate(zip(neurons.labels(), neurons, strict=True)):
        values, places = (part[module][row, column, layer, unit].tolist() for part in (found.value, found.place))
        for axes, value, place in zip(grid[line], values, places, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            if place < 0:
                axes.set_visible(False)
                continue
            picture(axes, _picture(examples[place], place))
            axes.set_title(f"{value:.2f}", fontsize=8)
            axes.set_xlabel(plain(f"example {place}"), fontsize=7)
        grid[line][0].set_ylabel(name, fontsize=8)
    where = "" if found.groups == ("all",) else f" at {found.groups[column]} positions"
    figure.suptitle(f"Highest activation ({found.site}){where}, strongest example first", fontsize=9)
    return figure


def _picture(example: Any, place: int) -> Any:
    images = example.images
    if isinstance(images, (list, tuple)):
        images = images[0] if images else None
    if images is None:
        raise ValueError(
            f"this draws pictures, and example {place} has none: choose a group of positions that pictures have"
        )
    return read_image(images)


def _only(name: str | None, names: tuple[str, ...], what: str) -> int:
    if name is None and len(names) > 1:
        raise ValueError(f"these examples are of the {what}s {', '.join(names)}: say which, by {what}=")
    if name is not None and name not in names:
        raise ValueError(f"these examples are of the {what}s {', '.join(names)}, got {name!r}: choose among those")
    return 0 if name is None else names.index(name)
