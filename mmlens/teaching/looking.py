"""Exercises of 01_first_look and 11_every_model: layers, masks and positions."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from mmlens.analysis import grad_x_activation, logit_lens
from mmlens.hooks import ablate
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons, top_k
from mmlens.organisms import pictoworld
from mmlens.teaching.exercise import compared, exercise, told_apart
from mmlens.teaching.reading import mask, number, whole
from mmlens.teaching.shared import organism
from mmlens.testing import tiny


@cache
def asked() -> tuple[HookedMLLM, Inputs, int]:
    """Return the model of the first notebook, its question up to "the", and the token of the wheel."""
    model, scene = organism("pictoworld"), pictoworld.scenes("held_out", n=5)[4]
    wheel = next(thing for thing in scene.objects if thing.noun == "wheel")
    inputs = model.to_inputs(f"which object is {wheel.color} ? answer :", images=scene.image, answer="the")
    return model, inputs, model.to_token("wheel")


@exercise("01/first-layer", whole)
def first_layer(given: int) -> str | None:
    """Which is the first row of the lens (row 0 is what enters block 0, the last one the output) in which `wheel` is the
    top token at the *last* position? `lens.target_ranks` is [layer, batch, pos, target].
    """
    model, inputs, token = asked()
    ranks = logit_lens(model, inputs, top_k=1, targets=[token]).target_ranks[:, 0, :, 0]
    right = int((ranks[:, -1] == 0).nonzero()[0])
    mistakes = {
        "one too many: rows are counted from 0": [right + 1],
        "one too few: look at what is on top there; it is a disc in another kind of picture": [right - 1],
        "it is on top there, and was before: look for the first row": [len(ranks) - 1],
    }
    return told_apart(given, right, mistakes, "rank 0 is the top; positions are the third axis, and -1 is the last of them")


@cache
def top_twenty() -> tuple[Neurons, Neurons]:
    """Return the first twenty and the fifty neurons of the first notebook."""
    model, inputs, token = asked()
    fifty = top_k(grad_x_activation(model, inputs, torch.tensor([token])).scores[0], 50, widths=model.widths)
    return fifty[:20], fifty


@exercise("01/fewer-neurons", number)
def fewer_neurons(given: float) -> str | None:
    """Are fewer than fifty enough? Hold the first twenty neurons of `top` at 0, at the image positions of `asked`. What is
    then the logit of `wheel` less the logit of `stamp`, at the last position?
    """
    model, inputs, token = asked()
    stamp, image, (twenty, fifty) = model.to_token("stamp"), inputs.mask("image"), top_twenty()
    runs = {
        name: model.run_with_hooks(inputs, fwd_hooks=hooks)[0, -1]
        for name, hooks in {
            "right": ablate(twenty, where=image),
            "everywhere": ablate(twenty),
            "fifty": ablate(fifty, where=image),
            "none": [],
        }.items()
    }
    differ = {name: (logits[token] - logits[stamp]).item() for name, logits in runs.items()}
    shares = runs["right"].softmax(-1)
    mistakes = {
        "these neurons were held at 0 at every position: `where=` keeps it to the image": differ["everywhere"],
        "that is with all fifty off: top[:20] is the first twenty": differ["fifty"],
        "that is the model as it is: give the hooks to run_with_hooks": differ["none"],
        "that is a difference of probabilities: logits are what the model returns": (shares[token] - shares[stamp]).item(),
    }
    return compared(given, differ["right"], mistakes, "logits[0, -1] are those of the last position; model.to_token(word)")


@exercise("01/bottom-left", mask)
def bottom_left(given: Bool[Tensor, "..."]) -> str | None:
    """Make a mask of the positions of `asked` that show the bottom left quarter of the picture (a boolean for every
    position of the stream, as `asked.mask("image")` has). `asked.overlap(box)` takes (left, top, right, bottom) in pixels.
    """
    _, inputs, _ = asked()
    (left, top, right, bottom), image = inputs.grids[0][0].region, inputs.mask("image")  # pyright: ignore
    x, y = (left + right) / 2, (top + bottom) / 2
    if given.shape != image.shape:
        more = ": that is the image alone, the stream has a start mark and words as well" if given.numel() == 64 else ""
        more = more or (": the batch axis is missing" if given.shape == image.shape[1:] else "")
        return f"the mask is to be {list(image.shape)} (batch, pos), got {list(given.shape)}{more}"
    areas = {
        "": (left, y, x, bottom),
        "that is the top left: pixels are counted from the top": (left, top, x, y),
        "that is the bottom right: x comes first in a box": (x, y, right, bottom),
        "that is the top right": (x, top, right, y),
        "that is the whole left half": (left, top, x, bottom),
        "that is the whole lower half": (left, y, right, bottom),
    }
    for hint, area in areas.items():
        if torch.equal(given, inputs.overlap(area) > 0.5):
            return hint or None
    if torch.equal(given.roll(1, 1), inputs.overlap(areas[""]) > 0.5):
        return "one position too early: the stream begins with a start mark"
    if (given & ~image).any():
        return f"{int((given & ~image).sum())} of the chosen positions hold no piece of the picture"
    return f"{int(given.sum())} positions are chosen; a quarter of 8 x 8 is 16"


@cache
def untrained(family: str) -> HookedMLLM:
    """Return the tiny model that the second notebook makes of a family."""
    with tempfile.TemporaryDirectory() as folder:
        return HookedMLLM.from_pretrained(tiny(family, Path(folder) / family))


@exercise("11/left-half", whole)
def left_half(given: int) -> str | None:
    """At how many positions of `untrained("llava-next-clip-mistral")` does the stream show the left half of `picture`, so
    that more than half of the position's piece lies in it? `inputs.overlap` takes a box (left, top, right, bottom), too.
    """
    picture = pictoworld.scenes("held_out", n=1)[0].image.resize((192, 96))
    inputs = untrained("llava-next-clip-mistral").to_inputs("what is in the picture ?", images=picture)
    seen, overview = inputs.overlap((0, 0, 96, 96)) > 0.5, inputs.mask("image:0/tile:0")
    low = inputs.overlap((0, 0, 192, 48)) > 0.5
    mistakes = {
        "that is the overview alone: the finer tiles show the picture a second time": [int((seen & overview).sum())],
        "those are the finer tiles alone: the overview shows it too": [int((seen & ~overview).sum())],
        "that is where any of it is seen: more than half of the piece, overlap > 0.5": [
            int((inputs.overlap((0, 0, 96, 96)) > 0).sum())
        ],
        "that is the upper half: a box is (left, top, right, bottom)": [int(low.sum())],
        "those are all image positions": [int(inputs.mask("image").sum())],
    }
    return told_apart(given, int(seen.sum()), mistakes, "the picture is 192 wide and 96 high; inputs.overlap(box) > 0.5")


@exercise("11/half-a-second", whole)
def half_a_second(given: int) -> str | None:
    """At which position of the stream of `untrained("qwen2-audio")` is the sound of the notebook after 0.5 seconds? (0.6
    seconds of it are in `np.sin(2 * np.pi * 440 * time)`; positions are counted as `inputs.tokens` has them.)
    """
    model = untrained("qwen2-audio")
    rate = model.processor.feature_extractor.sampling_rate
    inputs = model.to_inputs("what is that ?", audio=(np.zeros(int(0.6 * rate), np.float32), rate))
    right, first = int(inputs.overlap((0.499, 0.501))[0].argmax()), int(inputs.mask("audio")[0].nonzero()[0])
    mistakes = {
        "that is the place within the sound: the stream holds other positions before it": [right - first],
        "one off: which position's 0.04 seconds hold 0.5?": [right - 1, right + 1],
        "that is the last position of the sound": [int(inputs.mask("audio")[0].nonzero()[-1])],
    }
    return told_apart(given, right, mistakes, "inputs.overlap((start, stop)) takes seconds; take a short time around 0.5")
