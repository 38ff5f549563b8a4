"""`mmlens evaluate` comes to what mmlens.evaluate comes to, and says what goes wrong in one line."""

import pandas
import pytest
import torch
from tables import WORDS, examples, run, write

import mmlens
from mmlens.sweeps import Checkpoint

QUICK = ("--draws", 2, "--max-new-tokens", 3)


@pytest.fixture
def chosen(here, loaded):
    """Two sets of neurons, saved beside the tables; one is called as a task."""
    widths = loaded.widths
    sets = {
        "photo": mmlens.Neurons(("language",) * 4, torch.tensor([0, 0, 1, 1]), torch.tensor([3, 7, 1, 9]), widths),
        "other": mmlens.Neurons(("language",) * 2, torch.tensor([1, 2]), torch.tensor([0, 5]), widths),
    }
    for name, neurons in sets.items():
        neurons.save(f"{name}.safetensors")
    return sets


def assert_same(found, expected):
    for name in ("metric", "arms", "random", "texts", "golds", "ids", "tasks", "failures"):
        assert getattr(found, name) == getattr(expected, name), name
    assert torch.equal(found.scores.nan_to_num(7), expected.scores.nan_to_num(7))
    assert torch.equal(found.said, expected.said) and torch.equal(found.clusters, expected.clusters)


def test_an_evaluation_is_that_of_python(here, small_folder, loaded, chosen):
    held = "--neurons photo=photo.safetensors --neurons other=other --metric log_prob --value mean --where image".split()
    more = "--draws 3 --seed 5 --batch-size 4 --out found --csv table.csv".split()
    result = run("evaluate", small_folder, "data/six.jsonl", *held, *more)
    assert result.exit_code == 0 and not result.stderr, result.output
    ablations = {name: mmlens.Ablation(one, value="mean", where=("image",), seed=5) for name, one in chosen.items()}
    expected = mmlens.evaluate(loaded, examples(), "log_prob", ablations, draws=3, seed=5, batch_size=4, progress=False)
    assert_same(mmlens.Evaluation.load("found"), expected)
    assert len({score for row in expected.scores.tolist() for score in row}) > 12, "or nothing would be compared"
    pandas.testing.assert_frame_equal(pandas.read_csv("table.csv", index_col=[0, 1]), expected.table())
    *table, saved = result.stdout.splitlines()
    assert saved == "saved to found.safetensors, the table to table.csv"
    assert [line.split() for line in table] == [" ".join(cells).split() for cells in expected.cells()]


def test_all_but_some_neurons_are_held_on_the_task_of_their_name(here, small_folder, loaded, chosen):
    flags = "--neurons photo=photo --metric contains_any --value layer_min --site gate_act --complement --no-off-diagonal"
    assert run("evaluate", small_folder, "data/six.jsonl", *flags.split(), *QUICK, "--chat", "--out", "found").exit_code == 0
    ablation = mmlens.Ablation(chosen["photo"], value="layer_min", site="gate_act", complement=True)
    expected = mmlens.evaluate(
        loaded,
        examples(),
        "contains_any",
        {"photo": ablation},
        draws=2,
        off_diagonal=False,
        max_new_tokens=3,
        chat=True,
        progress=False,
    )
    assert_same(mmlens.Evaluation.load("found"), expected)
    assert expected.scores.isnan().any()


def test_a_yaml_file_says_what_flags_say(here, small_folder, chosen):
    (here / "run.yaml").write_text(
        "neurons: {photo: photo, other: other}\nmetric: exact_match\nvalue: 0.5\ndraws: 2\nmax-new-tokens: 3\n"
        "off-diagonal: true\nwhere: [image, text]\nn: 4\n"
    )
    both = ["--neurons", "photo=photo", "--neurons", "other=other", "--value", "0.5", "--where", "image,text", "--n", 4]
    flags = [small_folder, "data/six.jsonl", *both, "--metric", "exact_match", *QUICK, "--out", "flags"]
    assert run("evaluate", *flags).exit_code == 0
    assert run("evaluate", small_folder, "data/six.jsonl", "--config", "run.yaml", "--out", "yaml").exit_code == 0
    assert_same(mmlens.Evaluation.load("yaml"), mmlens.Evaluation.load("flags"))


def test_a_benchmarks_own_metric_is_taken_where_none_is_asked_for(here, small_folder):
    (here / "pope").mkdir()
    write(here / "pope/test.jsonl", [{"question": f"a {word} ?", "answer": "no", "image": None} for word in WORDS[:2]])
    own = [small_folder, "pope", "--folder", "pope=pope", "--max-new-tokens", 2]
    result = run("evaluate", *own)
    assert result.exit_code == 0 and "yes_no" in result.stdout.splitlines()[0]
    assert mmlens.Evaluation.load("mmlens-evaluation").arms == ("baseline",)
    mixed = run("evaluate", *own, "data/six.jsonl")
    assert mixed.exit_code == 1 and "pope: yes_no, data/six.jsonl: none" in mixed.stderr


def test_one_example_has_no_interval(here, small_folder, chosen):
    held = ["--neurons", "photo=photo", "--metric", "exact_match", "--n", 1, *QUICK]
    result = run("evaluate", small_folder, "data/six.jsonl", *held)
    assert result.exit_code == 0 and "nan" not in result.stdout
    assert result.stdout.splitlines()[1].split() == ["baseline", "drawing", "1", "0.000"]


def test_an_evaluation_that_was_stopped_goes_on_from_its_checkpoints(here, small_folder, chosen, monkeypatch):
    """Ctrl-C is pressed at the fifth example, first as the mean is taken, then as the arms are run."""
    from mmlens.cli.examples import Part

    read, reads = Part.example, []

    def stopped(self, place):
        reads.append(place)
        if place == 4 and reads.count(4) == stopped.at:
            raise KeyboardInterrupt
        return read(self, place)

    held = ["--neurons", "photo=photo", "--metric", "log_prob", "--value", "mean", "--draws", 1, "--batch-size", 2]
    command = ["evaluate", small_folder, "data/six.jsonl", *held]
    monkeypatch.setattr(Part, "example", stopped)
    kept = ["--checkpoint", "state", "--out", "found"]
    for at, beside in ((1, 4), (2, None)):
        stopped.at = at
        reads.clear()
        result = run(*command, *kept)
        assert result.exit_code == 130 and result.stderr.count("\n") == 1
        if beside:
            assert "stopped: state.reference.safetensors holds 4 examples." in result.stderr
    assert "state.safetensors holds 4 examples and state.reference.safetensors holds 6 examples" in result.stderr
    assert Checkpoint.load("state").seen == 4
    monkeypatch.setattr(Part, "example", read)
    assert run(*command, *kept, "--no-resume").exit_code == 1
    assert run(*command, *kept).exit_code == 0 and run(*command, "--out", "whole").exit_code == 0
    assert_same(mmlens.Evaluation.load("found"), mmlens.Evaluation.load("whole"))


MISTAKES = {
    "neurons without a name": (["--neurons", "photo.safetensors"], "NAME=FILE"),
    "no such neurons": (["--neurons", "a=none"], "no saved result at none.safetensors"),
    "neurons that are something else": (["--neurons", "a=data/six"], "not a whole safetensors file"),
    "two of one name": (["--neurons", "a=photo", "--neurons", "a=other"], "two are called 'a'"),
    "a name that is taken": (["--neurons", "baseline=photo"], "a name of its own"),
    "a metric that is none": (["--metric", "accuracy"], "--metric is one of"),
    "a value that is none": (["--neurons", "a=photo", "--value", "zero"], "--value is a number"),
    "a group that is none": (["--neurons", "a=photo", "--where", "picture"], "a group is one of"),
    "a task that is none": (["--neurons", "other=other", "--no-off-diagonal"], "tasks are drawing, photo, neurons other"),
    "a table that can't be written": (["--csv", "data"], "--csv is a file"),
    "a checkpoint that is the result": (["--checkpoint", "x", "--out", "x"], "two files"),
    "a name that is no flag": (["--config", "run.yaml"], "did you mean 'neurons'?"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_in_one_line(here, small_folder, chosen, case):
    arguments, said = MISTAKES[case]
    (here / "data/six.safetensors").write_text("six")
    (here / "run.yaml").write_text("neuron: a=photo")
    metric = [] if "--metric" in arguments else ["--metric", "exact_match"]
    result = run("evaluate", small_folder, "data/six.jsonl", *metric, *arguments)
    assert result.exit_code == 1 and not result.stdout, result.output
    assert result.stderr.startswith("mmlens: ") and result.stderr.count("\n") == 1 and said in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_help_lists_every_flag():
    flags = "neurons metric n split folder value site where complement draws no-off-diagonal seed max-new-tokens batch-size"
    flags += " chat checkpoint every no-resume out csv config device dtype device-map"
    shown = run("evaluate", "--help").stdout
    assert all(f"--{flag} " in shown for flag in flags.split())
