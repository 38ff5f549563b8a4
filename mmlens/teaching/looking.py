"""Exercises of 01_first_look, 02_image_lens and 11_every_model: layers, masks and positions."""

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
from mmlens.organisms import pictosound, pictoworld
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
def named() -> tuple[dict[str, float], float]:
    """Return how often places of objects say a name: by what counts as it, the mean over objects, and over all places."""
    model, scenes = organism("pictoworld"), pictoworld.scenes("held_out", n=40)
    inputs = model.to_inputs(["what is in the image ?"] * len(scenes), images=[scene.image for scene in scenes])
    read = logit_lens(model, inputs).tokens  # [layer, batch, pos, k]
    hits: dict[str, list[Tensor]] = {"any": [], "first": [], "output": [], "ten": [], "last": []}
    for row, scene in enumerate(scenes):
        for thing in scene.objects:
            here = inputs.overlap(torch.from_numpy(thing.mask), row=row)[row] > 0.5
            if not here.any():
                continue
            pieces = torch.tensor(model.tokenizer(thing.noun, add_special_tokens=False)["input_ids"])
            own = read[:, row, here]  # [layer, place, k]
            hits["any"].append(torch.isin(own[4, :, 0], pieces))
            hits["first"].append(own[4, :, 0] == pieces[0])
            hits["last"].append(own[4, :, 0] == pieces[-1])
            hits["output"].append(torch.isin(own[5, :, 0], pieces))
            hits["ten"].append(torch.isin(own[4], pieces).any(-1))
    means = {name: torch.stack([one.double().mean() for one in found]).mean().item() for name, found in hits.items()}
    return means, torch.cat(hits["any"]).double().mean().item()


@exercise("02/any-piece", number)
def any_piece(given: float) -> str | None:
    """A name of several tokens was counted by the first one. How often, in layer 4, is the top word at an object's places
    *any* token of its name (the mean over `objects`, as in `says`)? Its tokens are
    `model.tokenizer(noun, add_special_tokens=False)["input_ids"]`.
    """
    means, pooled = named()
    mistakes = {
        "that is the first token alone, as in the notebook": means["first"],
        "that is the last token alone": means["last"],
        "that is the output; layer 4 is the row before it": means["output"],
        "that is any of the ten words: the top one is asked for, tokens[..., 0]": means["ten"],
        "that is the share of all places: take each object's share first, then the mean of objects": pooled,
        "in per cent; a share lies between 0 and 1": 100 * means["any"],
    }
    return compared(given, means["any"], mistakes, 'torch.isin(lenses["own"].tokens[4, row, here, 0], torch.tensor(pieces))')


@exercise("02/second-picture", whole)
def second_picture(given: int) -> str | None:
    """Only the first picture of `two` has a tree. At how many positions of the *second* one is `tree` the top word in layer
    4?
    """
    model, scenes = organism("pictoworld"), pictoworld.scenes("held_out", n=11)
    text = "<image> and <image> which object is red ? answer :"
    two = model.to_inputs(text, images=[scenes[0].image, scenes[10].image])
    says = logit_lens(model, two, top_k=1).tokens[..., 0] == model.to_token("tree")
    first, second = ((says & two.mask(f"image:{n}"))[:, 0].sum(-1).tolist() for n in (0, 1))
    mistakes = {
        "those are both pictures: mask them by image:1": [first[4] + second[4]],
        "that is the first picture: image:1 is the second": [first[4]],
        "that is the output; layer 4 is the row before it": [second[5]],
        "that is layer 3: rows are counted from 0": [second[3]],
    }
    return told_apart(given, second[4], mistakes, 'two.mask("image:1"), and the lens of `two`, tokens[4, 0, :, 0]')


@exercise("02/first-bell", number)
def first_bell(given: float) -> str | None:
    """After how many seconds of `heard` begins the first position that says `bell` in layer 4?
    `heard.grids[0][0].seconds(i)` are the beginning and the end of the sound's i-th position.
    """
    model, clip = organism("pictosound"), pictosound.clips("held_out", n=7)[6]
    inputs = model.to_inputs("what is second ? answer :", audio=clip.audio, answer="a")
    sound, timeline = inputs.mask("audio")[0], inputs.grids[0][0]
    says = logit_lens(model, inputs, top_k=1).tokens[:, 0, :, 0] == model.to_token("bell")
    place = int(says[4, sound].nonzero()[0, 0])
    begin, end = timeline.seconds(place)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    first = int(sound.nonzero()[0, 0])
    output = says[5, sound].nonzero()[:, 0].tolist()[:1]
    mistakes = {
        "that is when the position ends": end,
        "that is its number within the sound: seconds(i) says when that is": float(place),
        "that is its number in the stream: the sound begins behind two marks": float(place + first),
        "that counts the marks before the sound as if they lasted": timeline.step * (place + first),  # pyright: ignore
        "that is when the bell begins to sound: places say so only later": clip.events[1].start,
        "that is the output; layer 4 is the row before it": output[0] * timeline.step if output else -1.0,  # pyright: ignore
    }
    return compared(
        given, begin, mistakes, 'among the positions of heard.mask("audio"), the first whose tokens[4, ...] is bell'
    )


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
