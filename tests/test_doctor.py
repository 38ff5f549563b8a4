"""The doctor finds what a hook point does by itself: it agrees with what is promised, and sees a broken promise."""

import dataclasses
import json

import pytest
import torch
from support import ask
from typer.testing import CliRunner

from mmlens import HookedMLLM
from mmlens.cli import app
from mmlens.doctor import Liveness, chosen_names, doctor
from mmlens.families import FAMILIES
from mmlens.testing.media import given


@pytest.fixture(scope="module")
def found(small):
    return doctor(small, layers=[1])


def test_a_healthy_model_is_as_promised(small, found):
    assert not found.failures and not any(found.notes)
    assert set(found.measured) == {"live", "read only", "dead"}
    names = set(found.names)
    assert {"blocks.1.mlp.hook_post", "vision.blocks.1.attn.hook_pattern", "projector.hook_out"} <= names
    assert not any(name.startswith(("blocks.0.", "blocks.2.", "vision.blocks.2.")) for name in names)
    live = dict(zip(found.names, found.measured, strict=True))
    assert live["blocks.1.attn.hook_pattern"] == "live" and live["blocks.1.attn.hook_rot_q"] == "dead"
    assert live["vision.hook_vision_out"] == "read only"
    slopes = dict(zip(found.names, found.gradient.tolist(), strict=True))
    assert slopes["projector.hook_out"] > 0 and slopes["vision.blocks.1.hook_resid_pre"] > 0


def test_layers_are_sampled_chosen_or_all(small):
    names = list(small.points.by_name)

    def layers(chosen):
        return {int(name.split(".")[1]) for name in chosen_names(names, chosen) if name.startswith("blocks.")}

    assert layers([2]) == {2} and layers("all") == layers(None) == {0, 1, 2}
    deep = [f"blocks.{layer}.hook_resid_post" for layer in range(32)] + ["hook_embed"]
    assert chosen_names(deep, None) == [deep[0], deep[16], deep[31], "hook_embed"]
    with pytest.raises(IndexError, match=r"0 to 2.*\[7\]"):
        doctor(small, layers=[7])


def test_text_alone_reaches_no_tower(small):
    found = doctor(small, ask(small, "text"), layers=[1], gradients=False)
    assert all(name.startswith(("vision.", "projector.")) for name in found.failures) and found.failures


def test_what_was_found_is_saved_and_loaded(found, small, tmp_path):
    again = Liveness.load(found.save(tmp_path / "found"), model=small)
    assert again.names == found.names and again.measured == found.measured and torch.equal(again.fires, found.fires)


# ---------------------------------------------------------------- planted faults

PLANTED = {
    "a dead point that the family forgot": (dict(dead={}), ["vision.hook_patch_embed", "vision.hook_pos_embed"]),
    "a point that is read too early": (dict(read_only={}), ["vision.hook_vision_out"]),
}


@pytest.fixture(params=PLANTED)
def forgetful(request, monkeypatch):
    """A family whose table forgets some points, and the points."""
    changes, points = PLANTED[request.param]
    monkeypatch.setitem(FAMILIES, "llava", dataclasses.replace(FAMILIES["llava"], **changes))
    return points


def test_a_promise_that_is_broken_is_a_failure(forgetful, small_folder):
    found = doctor(HookedMLLM.from_pretrained(small_folder, device="cpu"), layers=[1], gradients=False)
    assert set(forgetful) <= set(found.failures)


@pytest.mark.slow
def test_the_command_fails_where_a_promise_is_broken(forgetful, small_folder):
    result = CliRunner().invoke(app, ["doctor", str(small_folder), "--layers", "1", "--device", "cpu"])
    assert result.exit_code == 1 and forgetful[0] in result.stderr and result.stderr.startswith("mmlens: ")
    marked = [line for line in result.stdout.splitlines() if line.startswith("!")]
    assert any(forgetful[0] in line for line in marked)
    assert not any("blocks.1.mlp.hook_post" in line for line in marked)


def test_an_edit_that_is_taken_off_again_is_no_edit(small):
    """A point whose value the model replaces behind it fires, and an edit there does nothing."""
    name, inputs = "blocks.1.hook_mlp_out", ask(small, "one")
    module = small.hf_model.model.language_model.layers[1].mlp
    kept = []
    first = small.points.by_name[name].register_forward_pre_hook(lambda point, args: kept.append(args[0]))
    last = module.register_forward_hook(lambda module, args, output: kept.pop() if kept else None)
    try:
        found = doctor(small, inputs, layers=[1], gradients=False)
    finally:
        first.remove()
        last.remove()
    assert name in found.failures and dict(zip(found.names, found.measured, strict=True))[name] == "read only"


# ---------------------------------------------------------------- the command


@pytest.mark.slow
def test_the_command_prints_one_line_for_like_points_and_writes_json(small_folder, tmp_path):
    out = tmp_path / "found.json"
    result = CliRunner().invoke(app, ["doctor", str(small_folder), "--json", str(out), "--layers", "0,2", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert any(line.split()[:3] == ["blocks.0,2.mlp.hook_post", "live", "live"] for line in lines)
    assert lines[-1].endswith("0 failed")
    told = json.loads(out.read_text())
    assert len(told["points"]) == int(lines[-1].split()[0]) and told["provenance"]["weights"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--layers", "one"], "--layers"), (["--layers", "9"], "0 to 2"), (["--dtype", "int3"], "int3")],
)
def test_a_mistake_is_told_in_one_line(small_folder, arguments, says):
    result = CliRunner().invoke(app, ["doctor", str(small_folder), "--device", "cpu", *arguments])
    assert result.exit_code == 1 and says in result.stderr and result.stderr.count("\n") == 1


def test_made_up_media_are_the_same_for_the_same_seed():
    import numpy as np

    for kind in ("image", "video", "audio"):
        one, same, other = (next(iter(given(kind, [seed]).values())) for seed in (0, 0, 1))
        if kind == "image":
            one, same, other = [one], [same], [other]

        def numbers(medium):
            return np.concatenate([np.asarray(part, dtype=float).ravel() for part in medium])

        assert np.array_equal(numbers(one), numbers(same)) and not np.array_equal(numbers(one), numbers(other))
