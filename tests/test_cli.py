"""What a user can get wrong ends in one line that says so, and a status that is not zero."""

import shutil
import subprocess
import sys

import pytest
from support import picture
from typer.testing import CliRunner

import mmlens
from mmlens.cli import app
from mmlens.organisms import CHECKPOINTS

BROKEN = {
    "no such picture": (["--image", "nowhere.png"], "no picture at"),
    "a folder as picture": (["--image", "empty"], "that is a folder"),
    "text as picture": (["--image", "text.txt"], "not a picture"),
    "half a JPEG": (["--image", "half.jpg"], "damaged"),
    "half a PNG": (["--image", "half.png"], "damaged"),
    "no such model": (["--model", "./nowhere"], "no model folder"),
    "an empty model folder": (["--model", "empty"], "config.json"),
    "a config of nothing": (["--model", "nothing"], "cannot load"),
    "another kind of model": (["--model", "gpt"], "gpt2"),
    "half of the weights": (["--model", "half"], "cannot load"),
    "a hub id without network": (["--model", "mmlens/nowhere"], "cannot load"),
    "out is a file": (["--out", "text.txt"], "under) a file"),
    "out lies under a file": (["--out", "text.txt/deep"], "under) a file"),
    "out can't be written": (["--out", "/proc/mmlens"], "must be writable"),
    "a word that is not in the answer": (["--word", "zebra"], "'zebra'"),
    "an empty word": (["--word", " "], "--word is empty"),
    "an empty question": (["--question", " "], "--question is empty"),
    "two placeholders for one picture": (["--question", "<image> <image> ?"], "one image"),
}


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """A folder of broken things, to stand in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "text.txt").write_text("no picture")
    for name, content in {"nothing": "{}", "gpt": '{"model_type": "gpt2"}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    (tmp_path / "empty").mkdir()
    shutil.copytree(CHECKPOINTS["pictoworld-frozen"], "half")
    weights = tmp_path / "half/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    for kind in ("jpg", "png"):
        picture(0, 200, 150).save(f"whole.{kind}")
        whole = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"half.{kind}").write_bytes(whole[: len(whole) // 2])
    return tmp_path


@pytest.mark.parametrize("case", BROKEN)
def test_a_mistake_is_told_in_one_line(somewhere, case):
    arguments, said = BROKEN[case]
    if case.startswith("out can't") and not sys.platform.startswith("linux"):
        pytest.skip("only Linux has a folder that even root can't write into")
    result = run("tour", *arguments)
    assert result.exit_code == 1 and not result.stdout
    assert result.stderr.count("\n") == 1 and said in result.stderr and result.stderr.startswith("mmlens: ")
    assert "Traceback" not in result.output and isinstance(result.exception, SystemExit)


@pytest.mark.slow
def test_a_tour_prints_its_sentence_and_where_its_page_lies(somewhere, small_folder):
    result = run("tour", "--model", str(small_folder), "--image", "whole.jpg", "--out", "deep/er")
    assert result.exit_code == 0 and not result.stderr
    sentence, beside, path = result.stdout.splitlines()
    assert sentence.startswith("Without") and "rate" in beside and path == "deep/er/index.html"
    assert (somewhere / path).is_file() and len(list((somewhere / "deep/er/results").iterdir())) >= 6


@pytest.mark.parametrize("command", ["tour", "doctor", "verify", "stats", "evaluate"])
def test_help_names_what_there_is(command):
    result = run(command, "--help")
    assert result.exit_code == 0 and command in result.stdout and command in run("--help").stdout


@pytest.mark.parametrize("command", ["doctor", "verify"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["./nowhere"], "no model folder"),
        (["half"], "half"),
        (["gpt"], "gpt2"),
        (["mmlens/nowhere"], "hf download mmlens/nowhere"),
        (["pictoworld", "--device", "cpu", "--device-map", "auto"], "leave one out"),
        (["pictoworld", "--layers", "two"], "--layers"),
    ],
)
def test_a_mistake_in_a_check_is_told_in_one_line(somewhere, command, arguments, said):
    result = run(command, *arguments)
    assert result.exit_code == 1 and said in result.stderr and result.stderr.count("\n") == 1
    assert "Traceback" not in result.output and isinstance(result.exception, SystemExit)


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert run("--version").stdout == f"mmlens {version('mmlens')}\n"


def test_help_imports_nothing_heavy():
    heavy = {"torch", "transformers", "matplotlib", "PIL", "numpy", "datasets", "yaml"}
    code = f"import sys, mmlens.cli; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_package_has_what_it_promises():
    assert all(getattr(mmlens, name) is not None for name in [*mmlens.__all__, "plot", "analysis", "organisms", "testing"])
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = mmlens.nothing_of_the_kind
