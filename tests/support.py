"""Pictures, questions and hooked models that the tests share, and a check that no hook is left behind."""

from contextlib import contextmanager

import numpy as np
import torch
import transformers
from PIL import Image

from mmlens import HookedMLLM
from mmlens.families import family_of

KINDS = ("one", "text", "padded", "mixed", "two")


def picture(seed, width=50, height=40):
    """Return a picture of coarse colour patches, different for every seed, wider than high."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.BILINEAR)


def sound(seed, seconds=0.5, rate=16_000):
    """Return (samples, rate) of a few tones and noise, different for every seed."""
    random, time = np.random.default_rng(seed), np.arange(int(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * pitch * time) for pitch in random.uniform(200, 3000, 3)) / 6
    return (tones + random.normal(0, 0.02, time.shape)).astype(np.float32), rate


def clip(seed, frames=4, width=50, height=40):
    """Return the frames of a video that fades from one picture to another."""
    first, last = picture(seed, width, height), picture(seed + 100, width, height)
    return [Image.blend(first, last, step / max(frames - 1, 1)) for step in range(frames)]


def medium(model, seed, kind=None):
    """Return one medium that the model takes (its first kind unless said), behind the argument of `to_inputs` that it is."""
    kind = kind or model.family.takes[0]
    name, make = {"image": ("images", picture), "video": ("videos", clip), "audio": ("audio", sound)}[kind]
    return name, make(seed)


def placeholder(model, kind=None):
    """Return the text that stands for a medium of that kind (its first kind unless said) in a prompt."""
    kind = kind or model.family.takes[0]
    return getattr(model.processor, f"{kind}_token")


def questions(model, kind, first=0):
    """Return, for each row of inputs of one kind, the text and the media that `to_inputs` takes."""
    name, one = medium(model, first)
    two = medium(model, first + 1)[1]
    if kind == "one":
        return [("what is in the picture ?", {name: one})]
    if kind == "text":
        return [("a red car on the left", {})]
    if kind == "padded":
        return [("what", {name: one}), ("which object is red and which object is blue", {name: two})]
    if kind == "mixed":
        return [("the red car", {name: one}), ("what is at the left of the blue tree ?", {}), ("a", {name: two})]
    token = placeholder(model)
    return [(f"{token} and {token} show the", {name: [one, two]})]


def ask(model, kind, first=0):
    """Return inputs of one kind; another `first` asks the same with other media."""
    rows = questions(model, kind, first)
    if len(rows) == 1:
        return model.to_inputs(rows[0][0], **rows[0][1])
    name = medium(model, first)[0]
    return model.to_inputs([text for text, _ in rows], **{name: [media.get(name) for _, media in rows]})


def load(folder):
    model = HookedMLLM.from_pretrained(folder, device="cpu")
    with torch.no_grad():
        model(ask(model, "one"))  # at a first run, transformers and TransformerLens put on hooks of their own, for good
    return model


def hook_count(model):
    """Return how many hooks lie on all of the model's points, as TransformerLens and as torch count them."""
    points = list(model.bridge.hook_dict.values())
    lens = sum(len(p.fwd_hooks) + len(p.bwd_hooks) for p in points)
    torches = sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.hf_model.modules()
    )
    return lens, torches + sum(len(p._forward_hooks) + len(p._backward_hooks) for p in points)


@contextmanager
def leaves_no_hooks(model):
    before = hook_count(model)
    yield
    assert hook_count(model) == before


def unhooked(folder, **options):
    """Return transformers' own model of the weights in a folder."""
    config = transformers.AutoConfig.from_pretrained(folder)
    return family_of(config.model_type).loads.from_pretrained(folder, **options).eval()
