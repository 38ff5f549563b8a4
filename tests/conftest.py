"""What the tests share: every tiny family and every organism that is there, hooked, and the same weights left plain."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import raw
import torch
from pictures import picture
from transformers import LlavaForConditionalGeneration

from mmlens import HookedMLLM
from mmlens.organisms import CHECKPOINTS
from mmlens.testing import FAMILIES, tiny

torch.set_num_threads(1)  # the models are tiny: threads would only wait for each other

KINDS = ("one", "text", "padded", "mixed", "two")


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


@pytest.fixture(scope="session", params=[*FAMILIES, *CHECKPOINTS])
def folder(request, tmp_path_factory):
    target = tmp_path_factory.mktemp(request.param)
    if request.param in FAMILIES:
        return tiny(request.param, target)
    source = CHECKPOINTS[request.param]
    if not (source / "model.safetensors").is_file():
        pytest.skip(f"{request.param} has not been trained yet")
    return Path(shutil.copytree(source, target, dirs_exist_ok=True))


def load(folder):
    model = HookedMLLM.from_pretrained(folder, device="cpu")
    with torch.no_grad():
        model(ask(model, "one"))  # at a first run, transformers and TransformerLens put on hooks of their own, for good
    return model


@pytest.fixture(scope="session")
def model(folder):
    return load(folder)


@pytest.fixture(scope="session")
def plain(folder):
    """The same weights in a model that mmlens never touches, with transformers' SDPA."""
    return LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa").eval()


@pytest.fixture(scope="session")
def reference(folder):
    """The same weights once more, with the attention that is written out in raw.py."""
    return LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation=raw.REFERENCE).eval()


@pytest.fixture(scope="session")
def batches(model):
    return {kind: ask(model, kind) for kind in KINDS}


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
    return tiny("llava-clip-llama", tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def small(small_folder):
    """One tiny model, for what does not depend on the family."""
    return load(small_folder)


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
