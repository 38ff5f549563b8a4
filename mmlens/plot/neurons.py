"""Neurons side by side: what they write, and where on the picture they fire."""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from mmlens.analysis import Decoding, ReceptiveField
from mmlens.plot.canvas import OBJECT, OURS, RANDOM, canvas, focus, height, outline, picture, plain

ACROSS, WORDS = 3, 4


def neurons(
    decoding: Decoding,
    field: ReceptiveField,
    image: Image.Image,
    mask: Bool[Tensor, "height width"] | None = None,
    *,
    control: ReceptiveField | None = None,
    unit: str = "logits",
) -> Figure:
    """Return a panel per neuron of `decoding`: label, score (in `unit`), its words with the logits that a unit of
    activation adds, and its receptive field on the picture, black-edged where it is in its top 5 %.

    Blue is where it fires with the sign that `field` was given, red where against it, each neuron on its own scale. `mask`
    outlines an object (cyan) and adds the overlap (IoU) of each neuron's top 5 % with it; `control` (random neurons' fields)
    stands beside these overlaps. Raises ValueError where decoding and field hold different neurons.
    """
    if len(field.neurons) < len(decoding.neurons) or field.neurons[: len(decoding.neurons)] != decoding.neurons:
        raise ValueError(
            f"the field is of the decoded neurons or begins with them; decoded are {decoding.neurons}, the field has "
            f"{field.neurons}: make both from the same neurons"
        )
    shown = len(decoding.neurons)
    lines = math.ceil(shown / ACROSS)
    tall = height(field.grid, 3.2, most=5.0) + 1.4
    compare = mask is not None and control is not None
    figure = canvas(10.6, tall * lines + (1.9 if compare else 0))
    parts: Any = figure.subfigures(2, 1, height_ratios=[tall * lines, 1.9]) if compare else [figure]
    cells = parts[0].subplots(lines, min(ACROSS, shown), squeeze=False).flatten()
    heat, fires = field.heat().numpy(), field.mask()
    overlap = field.iou(mask) if mask is not None else None
    for index, axes in enumerate(cells):
        if index >= shown:
            axes.set_axis_off()
            continue
        picture(axes, image, faded=0.2)
        largest = float(np.nanmax(np.abs(heat[index]))) or 1.0
        axes.imshow(
            heat[index],
            extent=(0, image.size[0], image.size[1], 0),
            cmap="RdBu",
            vmin=-largest,
            vmax=largest,
            alpha=0.6,
            interpolation="nearest",
        )
        outline(axes, fires[index], "black", width=2.0)
        if mask is not None:
            outline(axes, mask, OBJECT)
        focus(axes, field.grid)
        axes.set_title(_title(decoding, index, unit), fontsize=11, loc="left")
        where = f"IoU with the object {float(overlap[index]):.2f}\n" if overlap is not None else ""
        axes.set_xlabel(where + _words(decoding, index), fontsize=10, loc="left")
    if mask is not None and control is not None:
        _overlaps(parts[1].subplots(), field, control, mask)
    return figure


def _title(decoding: Decoding, index: int, unit: str) -> str:
    score = decoding.neurons.score
    label = decoding.neurons.labels()[index]
    return label if score is None else f"{label}   score {float(score[index]):.2g} {unit}"


def _words(decoding: Decoding, index: int) -> str:
    pairs = list(zip(decoding.words[index], decoding.effects[index].tolist(), strict=True))[:WORDS]
    written = [f"{plain(word, 12)} {effect:+.1f}" for word, effect in pairs]
    return (
        "writes "
        + ",  ".join(written[:2])
        + "".join(f",\n{' ' * 12}{w}" if i == 0 else f",  {w}" for i, w in enumerate(written[2:]))
    )


def _overlaps(axes: Axes, field: ReceptiveField, control: ReceptiveField, mask: Bool[Tensor, "height width"]) -> None:
    """Draw every neuron's overlap as a dot and each group's mean as a line: ours above, random ones below."""
    groups = [("these neurons", field, OURS), ("random neurons", control, RANDOM)]
    for level, (_, fields, color) in enumerate(reversed(groups)):
        overlap = fields.iou(mask)
        spread = np.linspace(-0.18, 0.18, len(overlap))
        axes.scatter(overlap, level + spread, color=color, s=14, alpha=0.7)
        axes.vlines(float(overlap.mean()), level - 0.35, level + 0.35, color=color, linewidth=2.5)
    axes.set_yticks(
        [1, 0],
        [f"{name} ({len(fields.neurons)})\nmean IoU {float(fields.iou(mask).mean()):.2f}" for name, fields, _ in groups],
    )
    bound = field.bound(mask)
    axes.axvline(bound, color="black", linestyle="dotted", linewidth=1)
    axes.text(bound, 1.55, f"most possible {bound:.2f} ", ha="right", va="center", fontsize=9)
    axes.set_ylim(-0.5, 1.75)
    axes.set_xlim(-0.02, max(bound, 0.1) * 1.05)
    axes.set_xlabel("overlap (IoU) of a neuron's top 5 % of the picture with the object")
    axes.spines[["top", "right"]].set_visible(False)
