"""`mmlens stats` comes to what mmlens.sweep comes to, and says what goes wrong in one line."""

import json
import subprocess
import sys

import pytest
import torch
from tables import WORDS, examples, rows, run, write

import mmlens
from mmlens.stats import SampleStats, TokenStats
from mmlens.sweeps import Checkpoint, Sweep


def assert_same(found, expected):
    """Every tensor of two results is equal."""
    for name in ("labels", "groups", "site", "weighting", "widths"):
        assert getattr(found, name) == getattr(expected, name)
    assert found.totals.keys() == expected.totals.keys()
    for theirs, mine in zip(found.totals.values(), expected.totals.values(), strict=True):
        assert all(torch.equal(theirs[module], mine[module]) for module in mine)
    for name in ("tokens", "samples", "short"):
        theirs, mine = getattr(found, name), getattr(expected, name)
        assert all(torch.equal(theirs[module], mine[module]) for module in mine)


def test_statistics_by_tokens_are_those_of_a_sweep(here, small_folder, loaded):
    flags = "--groups image,text --modules language,vision --site pre --budget 2 --batch-size 4 --out found".split()
    result = run("stats", small_folder, "data/six.jsonl", *flags)
    assert result.exit_code == 0 and not result.stderr, result.output
    parts = dict(groups=("image", "text"), modules=("language", "vision"), labels=("drawing", "photo"))
    expected = mmlens.sweep(
        loaded, examples(), {"it": TokenStats(loaded.widths, **parts, site="pre", budget=2)}, batch_size=4, progress=False
    )
    assert_same(Sweep.load("found")["tokens"], expected["it"])
    *table, saved = result.stdout.splitlines()
    assert saved == "saved to found.safetensors"
    told = [line for line in table if "drawing" in line and "image" in line and "language" in line]
    statistics = expected["it"]
    share = (statistics.totals["count"]["language"][0, 0] > 0).double().mean()
    mean = statistics.totals["sum"]["language"][0, 0].mean() / statistics.tokens["language"][0, 0]
    assert told[0].split() == ["drawing", "image", "language", "2", "4", f"{share:.1%}", f"{mean:.3g}"]
    assert not [line for line in table if "text" in line and "vision" in line]


def test_statistics_by_samples_are_weighted_by_attention_and_in_a_chat_where_asked(here, small_folder, loaded):
    flags = "--n 4 --by samples --attn --chat --out found".split()
    assert run("stats", small_folder, "data/six.jsonl", *flags).exit_code == 0
    statistics = ("probability", "mean", "max", "attn_k", "attn_q")
    accumulator = SampleStats(loaded.widths, labels=("drawing", "photo"), statistics=statistics)
    expected = mmlens.sweep(loaded, examples(4), {"it": accumulator}, chat=True, progress=False)
    assert_same(Sweep.load("found")["samples"], expected["it"])


def test_of_several_data_sets_those_without_labels_are_labelled_by_their_names(here, small_folder, loaded):
    assert run("stats", small_folder, "data/six.jsonl", "data/bare.jsonl", "--n", 3, "--out", "found").exit_code == 0
    labels = ("drawing", "photo", "bare")
    both = [*examples(3), *examples(3, label="bare")]
    expected = mmlens.sweep(loaded, both, {"it": TokenStats(loaded.widths, labels=labels)}, progress=False)
    assert_same(Sweep.load("found")["tokens"], expected["it"])
    assert run("stats", small_folder, "data/bare.jsonl", "--out", "found").exit_code == 0
    assert Sweep.load("found")["tokens"].labels == ("all",)


def test_a_table_that_datasets_reads_is_the_same_as_json(here, small_folder):
    import datasets

    table = datasets.Dataset.from_list(rows())
    table.save_to_disk("data/saved")
    (here / "data/saved/pictures").symlink_to(here / "data/pictures")
    table.to_parquet("data/table.parquet")
    whole = json.dumps(rows())
    (here / "data/list.json").write_text(whole)
    assert run("stats", small_folder, "data/six.jsonl", "--out", "found").exit_code == 0
    for name in ("saved", "table.parquet", "list.json"):
        result = run("stats", small_folder, f"data/{name}", "--out", "other")
        assert result.exit_code == 0 and not result.stderr, result.output
        assert_same(Sweep.load("other")["tokens"], Sweep.load("found")["tokens"])


def test_benchmarks_in_local_folders_are_read_by_their_names(here, small_folder, loaded):
    questions = [{"question": f"is there a {word} ?", "answer": "yes", "image": None} for word in WORDS[:3]]
    (here / "pope").mkdir()
    kinds = ["random", "popular", "random"]
    write(here / "pope/test.jsonl", [{**one, "category": kind} for one, kind in zip(questions, kinds, strict=True)])
    result = run("stats", small_folder, "pope", "--folder", "pope=pope", "--out", "found")
    assert result.exit_code == 0, result.output
    asked = [
        mmlens.Example(f"{one['question']}\nAnswer yes or no.", label=label)
        for one, label in zip(questions, [f"pope-{kind}" for kind in kinds], strict=True)
    ]
    accumulator = TokenStats(loaded.widths, labels=("pope-random", "pope-popular"))
    assert_same(Sweep.load("found")["tokens"], mmlens.sweep(loaded, asked, {"it": accumulator}, progress=False)["it"])


def test_a_benchmark_that_cannot_be_downloaded_may_lie_in_a_folder(here, small_folder, monkeypatch):
    def load(*_, **__):
        raise ConnectionError("no network\nfar and wide")

    monkeypatch.setattr("mmlens.data.load", load)
    said = run("stats", small_folder, "textvqa").stderr
    asked = "If it lies on this machine, give --folder textvqa=PATH"
    assert said == f"mmlens: cannot read the data 'textvqa': no network. {asked}\n"


def test_pictoworlds_held_out_scenes_are_examples_labelled_by_domain(here):
    result = run("stats", "pictoworld-frozen", "pictoworld", "--n", 5, "--groups", "image")
    found = Sweep.load("mmlens-stats.safetensors")
    from mmlens.organisms.pictoworld import scenes

    assert result.exit_code == 0 and found.examples == 5
    assert set(found["tokens"].labels) == {scene.domain for scene in scenes("held_out", 5)}


def test_a_yaml_file_says_what_flags_say_and_flags_win(here, small_folder):
    (here / "run.yaml").write_text(
        f"model: {small_folder}\ndata: [data/six.jsonl, data/bare.jsonl]\nn: 2\ngroups: [image, text]\nmodules: vision\n"
        "site: pre\nbatch_size: 3\nbudget:\nno-resume: true\nout: from-yaml\n"
    )
    assert run("stats", "--config", "run.yaml").exit_code == 0
    flags = "data/six.jsonl data/bare.jsonl --n 2 --groups image,text --modules vision --site pre --batch-size 3".split()
    assert run("stats", small_folder, *flags, "--out", "from-flags").exit_code == 0
    assert_same(Sweep.load("from-yaml")["tokens"], Sweep.load("from-flags")["tokens"])
    result = run("stats", small_folder, "data/bare.jsonl", "--config", "run.yaml", "--site", "post", "--n", 1)
    assert result.exit_code == 0
    won = Sweep.load("from-yaml")
    assert won.examples == 1 and won["tokens"].site == "post" and won["tokens"].groups == ("image", "text")


def test_what_fails_is_left_out_and_told(here, small_folder):
    broken = [
        {**row, "images": "pictures/none.png"} if place in (1, 2, 3, 4, 5, 0) else row for place, row in enumerate(rows())
    ]
    write(here / "data/broken.jsonl", [*broken, *rows()])
    result = run("stats", small_folder, "data/broken.jsonl", "--out", "found")
    lines = result.stderr.splitlines()
    assert result.exit_code == 0 and len(lines) == 6
    assert lines[0].startswith("mmlens: left out example '0' (number 0): ") and "none.png" in lines[0]
    assert lines[-1] == "mmlens: left out 1 more: all are in the failures of found.safetensors"
    assert len(Sweep.load("found").failures) == 6 and Sweep.load("found").examples == 6


def test_a_sweep_that_was_stopped_goes_on_from_its_checkpoint(here, small_folder, monkeypatch):
    """The first command is stopped by Ctrl-C as it reads the fifth example."""
    from mmlens.cli.examples import Part

    read = Part.example

    def stopped(self, place):
        if place == 4:
            raise KeyboardInterrupt
        return read(self, place)

    command = ["stats", small_folder, "data/six.jsonl", "--batch-size", 2, "--checkpoint", "state", "--out", "found"]
    monkeypatch.setattr(Part, "example", stopped)
    result = run(*command)
    assert result.exit_code == 130 and not (here / "found.safetensors").exists()
    assert result.stderr == "mmlens: stopped: state.safetensors holds 4 examples. The same command goes on from there\n"
    assert Checkpoint.load("state").seen == 4
    assert run(*command[:5], "--out", "found").stderr == (
        "mmlens: stopped: nothing is kept. With --checkpoint FILE, the same command goes on where it stopped\n"
    )
    seen = []
    monkeypatch.setattr(Part, "example", lambda self, place: seen.append(place) or read(self, place))
    refused = run(*command, "--no-resume")
    assert refused.exit_code == 1 and "leave --no-resume out" in refused.stderr
    assert run(*command).exit_code == 0 and set(seen) <= {0, 3, 4, 5}
    assert run(*command[:5], "--out", "whole").exit_code == 0
    assert_same(Sweep.load("found")["tokens"], Sweep.load("whole")["tokens"])


def test_a_full_disk_is_warned_about_and_the_sweep_goes_on(here, small_folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoint, "save", full)
    result = run("stats", small_folder, "data/six.jsonl", "--batch-size", 3, "--every", 3, "--checkpoint", "state")
    assert result.exit_code == 0 and result.stdout.endswith("saved to mmlens-stats.safetensors\n")
    lines = result.stderr.splitlines()
    assert len(lines) == 3 and all("could not be written (No space left on device)" in line for line in lines)


MISTAKES = {
    "no such data": (["data/none.jsonl"], "there is nothing at data/none.jsonl"),
    "a name that is none": (["textvqu"], "one of pictoworld, coco-captions"),
    "a line that is no JSON": (["data/half.jsonl"], "line 2 is not JSON"),
    "rows that are no objects": (["data/list.jsonl"], "is a list"),
    "columns of other names": (["data/other.jsonl"], "'prompt'"),
    "no examples": (["data/empty.jsonl"], "there are no examples"),
    "another kind of file": (["data/pictures/0.png"], "a table is a file of"),
    "a folder without a table": (["data/pictures"], "has these tables: none"),
    "more than there are": (["data/six.jsonl", "--n", "7"], "there are 6 examples, asked for 7"),
    "a benchmark that takes a folder": (["coco-captions"], "give --folder coco-captions=PATH"),
    "a folder for something else": (["data/six.jsonl", "--folder", "textvqa=x"], "'textvqa' is none"),
    "a folder without a name": (["textvqa", "--folder", "x"], "NAME=PATH"),
    "the same data twice": (["data/six.jsonl", "data/six.jsonl"], "two are called 'six'"),
    "a group that is none": (["data/six.jsonl", "--groups", "picture"], "a group is one of"),
    "a module that is none": (["data/six.jsonl", "--modules", "audio"], "this model has neurons in"),
    "attention by tokens": (["data/six.jsonl", "--attn"], "--by samples"),
    "a budget by samples": (["data/six.jsonl", "--budget", "3", "--by", "samples"], "--by tokens"),
    "out is a folder": (["data/six.jsonl", "--out", "data/dir.safetensors"], "is a folder"),
    "out and checkpoint are one": (["data/six.jsonl", "--out", "a", "--checkpoint", "a"], "two files"),
    "a checkpoint of something else": (["data/six.jsonl", "--checkpoint", "data/half"], "was left as it is"),
    "no such config": (["--config", "none.yaml"], "can't be read"),
    "a config that is no YAML": (["--config", "data/half.yaml"], "line 1"),
    "a config that is a list": (["--config", "data/list.yaml"], "names and values"),
    "a name that is no flag": (["--config", "data/unknown.yaml"], "did you mean 'groups'?"),
    "a switch that is a number": (["--config", "data/switch.yaml"], "true or false"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_in_one_line(here, small_folder, case):
    arguments, said = MISTAKES[case]
    (here / "data/dir.safetensors").mkdir()
    texts = {
        "half.jsonl": '{"text": "a"}\n{"text": \n',
        "list.jsonl": "[1]\n",
        "other.jsonl": '{"prompt": "a"}\n',
        "empty.jsonl": "",
        "half.safetensors": "half",
        "half.yaml": "a: [",
        "list.yaml": "- a",
        "unknown.yaml": "group: image",
        "switch.yaml": "attn: 3",
    }
    for name, text in texts.items():
        (here / "data" / name).write_text(text)
    result = run("stats", small_folder, *arguments)
    assert result.exit_code == 1 and not result.stdout, result.output
    assert result.stderr.startswith("mmlens: ") and result.stderr.count("\n") == 1 and said in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_help_lists_every_flag():
    flags = "n split folder groups modules site by attn budget batch-size chat checkpoint every no-resume out config device"
    shown = run("stats", "--help").stdout
    assert all(f"--{flag} " in shown for flag in f"{flags} dtype device-map".split())


@pytest.mark.slow
def test_under_torchrun_one_process_prints_and_writes(here, small_folder):
    command = [
        sys.executable,
        "-m",
        "mmlens.cli",
        "stats",
        str(small_folder),
        "data/six.jsonl",
        "--batch-size",
        "2",
        "--n",
        "5",
    ]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--no-python", "--"]
    together = subprocess.run([*launch, *command, "--out", "together"], capture_output=True, text=True, check=True)
    alone = subprocess.run([*command, "--out", "alone"], capture_output=True, text=True, check=True)
    assert together.stdout.replace("together", "alone") == alone.stdout
    one, other = Sweep.load("alone")["tokens"], Sweep.load("together")["tokens"]
    for name in ("count", "max"):
        assert torch.equal(one.totals[name]["language"], other.totals[name]["language"])
    torch.testing.assert_close(one.totals["sum"]["language"], other.totals["sum"]["language"], rtol=1e-9, atol=1e-9)
