"""What the tests share: every tiny family and every organism that is there, hooked, and the same weights left plain."""

import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the workers, notebooks and commands that inherit it


import pytest
import raw
import torch
from support import KINDS, ask, load, unhooked

from mmlens.organisms import CHECKPOINTS
from mmlens.testing import FAMILIES, tiny

torch.set_num_threads(1)  # the models are tiny: threads would only wait for each other


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Measure effects in one process, which then prints their table and records it."""
    if "effects" in config.option.markexpr.replace("not effects", ""):
        config.option.numprocesses, config.option.dist = 0, "no"


ORGANISMS = ("pictoworld-frozen",)  # the tuned one is of the same shape, and Pictosound a Qwen2-Audio, as is a tiny model


ALIKE = (  # each has a sister in the test command, whose mechanisms are its own: `-m slow` runs these
    "idefics3",
    "internvl-normed-qwen2",
    "llava-next-clip-mistral",
    "llava-siglip-qwen2",
    "paligemma",
    "prefix-llama",
    "prefix-opt",
    "qwen2-vl",
    "qwen2.5-vl",
)
OWN_WAYS = (  # each family here does something in a way of its own; what is dear is asked of these in the test command
    "blip2-opt",
    "gemma3",
    "llava-clip-llama",
    "pictoworld-frozen",
    "prefix-gpt2",
    "prefix-gptj",
    "qwen2-audio",
    "qwen3-vl",
)


def pytest_collection_modifyitems(items):
    """Leave tests that are `dear` to `-m slow` for families that differ from others in nothing that they look at.

    `dear("gemma3", "qwen3-vl")` is so dear that only these are asked in the test command.
    """
    for item in items:
        family = getattr(item, "callspec", None) and item.callspec.params.get("folder")
        dear = item.get_closest_marker("dear")
        if family is not None and dear is not None and family not in (dear.args or OWN_WAYS):
            item.add_marker(pytest.mark.slow)


SHARED = [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in (*FAMILIES, *ORGANISMS)]


@pytest.fixture(scope="session", params=SHARED)
def folder(request, tmp_path_factory):
    target = tmp_path_factory.mktemp(request.param)
    if request.param in FAMILIES:
        return tiny(request.param, target)
    source = CHECKPOINTS[request.param]
    if not (source / "model.safetensors").is_file():
        pytest.skip(f"{request.param} has not been trained yet")
    return Path(shutil.copytree(source, target, dirs_exist_ok=True))


@pytest.fixture(scope="session")
def model(folder):
    return load(folder)


@pytest.fixture(scope="session")
def plain(folder):
    """The same weights in a model that mmlens never touches, with transformers' own choice of attention: SDPA, if it can."""
    return unhooked(folder)


@pytest.fixture(scope="session")
def reference(folder):
    """The same weights once more, with the attention that is written out in raw.py."""
    model = unhooked(folder, attn_implementation=raw.REFERENCE)
    raw.route(model)
    return model


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


@pytest.fixture
def plain_small(small_folder):
    """The same weights in a model that mmlens never touches."""
    return unhooked(small_folder)
