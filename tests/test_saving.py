"""A saved model is transformers' own, and says what it said."""

import pytest
import raw
import torch
from safetensors.torch import load_file
from support import ask, unhooked
from test_loading import EVERYTHING_ON_DISK

from mmlens import HookedMLLM, hooks


@torch.no_grad()
def test_a_saved_model_has_the_files_and_the_weights_that_it_was_loaded_from(model, folder, tmp_path):
    inputs = ask(model, "mixed")
    logits = model(inputs)
    model.save_pretrained(tmp_path)
    first, second = (load_file(path / "model.safetensors") for path in (folder, tmp_path))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    again = HookedMLLM.from_pretrained(tmp_path, device="cpu")
    raw.same(again(ask(again, "mixed")), logits, relative=0)
    real = inputs.mask("all")
    raw.same(raw.logits(unhooked(tmp_path), inputs)[real], logits[real])
    assert again.identity()["weights"] == model.identity()["weights"]
    raw.same(model(inputs), logits, relative=0)  # and the model is as it was


@torch.no_grad()
def test_an_edited_weight_is_saved_and_a_hook_is_not(small_folder, tmp_path):
    model = HookedMLLM.from_pretrained(small_folder, device="cpu")
    model.W_out(1)[3] *= 2
    inputs = ask(model, "one")
    with model.hooks(fwd_hooks=[("projector.hook_out", hooks.replace(0.0))]):
        model(inputs)
        model.save_pretrained(tmp_path)
    again = HookedMLLM.from_pretrained(tmp_path, device="cpu")
    raw.same(again(inputs), model(inputs), relative=0)
    raw.differs(again(inputs), HookedMLLM.from_pretrained(small_folder, device="cpu")(inputs))


def test_a_model_that_is_not_in_memory_is_not_saved(small_folder, tmp_path):
    model = HookedMLLM.from_pretrained(small_folder, device_map=EVERYTHING_ON_DISK, offload_folder=tmp_path / "away")
    with pytest.raises(ValueError, match="packed or offloaded"):
        model.save_pretrained(tmp_path / "saved")
