"""Pictures, questions and hooked models that the tests share, and a check that no hook is left behind."""

from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

from mmlens import HookedMLLM

KINDS = ("one", "text", "padded", "mixed", "two")


def picture(seed, width=50, height=40):
    """Return a picture of coarse colour patches, different for every seed, wider than high."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.BILINEAR)


def ask(model, kind, first=0):
    """Return inputs of one kind; another `first` asks the same with other pictures."""
    one, two = picture(first), picture(first + 1)
    if kind == "one":
        return model.to_inputs("what is in the picture ?", images=one)
    if kind == "text":
        return model.to_inputs("a red car on the left")
    if kind == "padded":
        return model.to_inputs(["what", "which object is red and which object is blue"], images=[one, two])
    if kind == "mixed":
        return model.to_inputs(["the red car", "what is at the left of the blue tree ?", "a"], images=[one, None, two])
    token = model.processor.image_token
    return model.to_inputs(f"{token} and {token} show the", images=[one, two])


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
