"""A verification passes for the model as it is, fails where something is wrong, and its file says what was measured."""

import json

import pytest
from typer.testing import CliRunner

import mmlens.verify
from mmlens import HookedMLLM
from mmlens.cli import app
from mmlens.testing import tiny
from mmlens.verify import Verification, digest, verify


def failed(found):
    return [line["check"] for line in found.lines if line["passed"] is False]


@pytest.fixture(scope="module")
def found(small_folder):
    return verify(small_folder, device="cpu", layers=[1])


def test_a_healthy_model_passes_every_kind_of_check(found, small):
    assert found.passed and not failed(found)
    checks = {line["check"].split(":")[0] for line in found.lines if line["passed"]}
    wanted = {
        "logits",
        "generation",
        "positions",
        "raw hooks",
        "gradient",
        "patching",
        "widths",
        "liveness",
        "attention edits",
    }
    assert wanted < checks
    assert found.provenance.weights == small.identity()["weights"] and found.dtype == "float32"
    reads = next(line for line in found.lines if line["check"] == "raw hooks: one image")
    assert int(reads["said"].split()[0]) > 100


def test_the_file_is_signed_by_its_own_hash_and_a_change_shows(found):
    told = json.loads(found.json())
    assert told["sha256"] == digest(told) and {"torch", "transformers", "mmlens"} <= set(told["versions"])
    assert set(told["inputs"]) == {"text", "one image", "two images in one prompt", "padded batch of images"}
    told["lines"][1]["error"] = 0.5
    assert told["sha256"] != digest(told)


def test_a_verification_is_saved_and_loaded(found, tmp_path):
    assert Verification.load(found.save(tmp_path / "found")).lines == found.lines


@pytest.mark.slow
def test_in_half_precision_what_needs_float32_says_that_it_was_skipped(tmp_path):
    found = verify(tiny("llava-siglip-qwen2", tmp_path), device="cpu", layers=[1], dtype="bfloat16")
    skipped = [line for line in found.lines if line["passed"] is None]
    assert found.passed and any("bfloat16" in line["said"] for line in skipped)
    assert {line["tolerance"] for line in found.lines if line["check"].startswith("logits")} == {5e-2}


@pytest.mark.parametrize("part", ["multi_modal_projector", pytest.param("language_model.norm", marks=pytest.mark.slow)])
def test_a_wrapping_that_changes_what_the_model_computes_fails(small_folder, monkeypatch, part):
    def wrong(hf_model, processor, **options):
        owner, _, name = f"model.{part}".rpartition(".")
        parent = hf_model.get_submodule(owner)
        model = HookedMLLM(hf_model, processor, **options)
        component = parent.get_submodule(name)
        component.register_forward_hook(lambda module, args, output: output * 1.01)
        return model

    monkeypatch.setattr(mmlens.verify, "_wrap", lambda loaded: wrong(loaded.model, loaded.processor, name=loaded.name))
    found = verify(small_folder, device="cpu", layers=[1])
    assert not found.passed and "logits: one image" in failed(found)


@pytest.mark.slow
def test_the_command_prints_a_line_for_each_check_and_writes_the_file(small_folder, tmp_path):
    out = tmp_path / "verified.json"
    result = CliRunner().invoke(app, ["verify", str(small_folder), "--layers", "1", "--device", "cpu", "--out", str(out)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    told = json.loads(out.read_text())
    assert len(lines) == len(told["lines"]) + 1 and "0 failed" in lines[-1]
    assert told["sha256"] == digest(told) and told["passed"] is True


def test_a_mistake_is_told_in_one_line(tmp_path):
    result = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert result.exit_code == 1 and "config.json" in result.stderr and result.stderr.count("\n") == 1
