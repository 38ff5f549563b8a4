"""`mmlens select` comes to what Python comes to, from `mmlens stats` and on to `mmlens evaluate`."""

import pytest
import torch
from tables import examples, run

import mmlens
from mmlens import Neurons
from mmlens.analysis import Selection, domain_neurons, modality_neurons
from mmlens.cli.selecting import safe
from mmlens.stats import SampleStats, TokenStats
from mmlens.sweeps import Sweep

EVERY = ("probability", "mean", "max", "attn_k", "attn_q")


@pytest.fixture(scope="module")
def swept(small_folder, tmp_path_factory):
    """A folder with what `mmlens stats` may have saved: by tokens and by samples, scaled or not, and of one label."""
    folder = tmp_path_factory.mktemp("swept")
    model = mmlens.HookedMLLM.from_pretrained(str(small_folder), device="cpu")
    both = dict(labels=("drawing", "photo"), groups=("image", "text"), modules=("language", "vision"))
    samples = dict(groups=("image", "text"), statistics=EVERY)
    for name, accumulators in {
        "tokens": {"tokens": TokenStats(model.widths, **both)},
        "samples": {"samples": SampleStats(model.widths, normalise="minmax", **samples)},
        "unscaled": {"samples": SampleStats(model.widths, **samples)},
        "unattended": {"samples": SampleStats(model.widths, groups=("image", "text"), normalise="minmax")},
        "one": {"tokens": TokenStats(model.widths)},
        "two": {name: TokenStats(model.widths, labels=("drawing", "photo")) for name in "ab"},
    }.items():
        mmlens.sweep(model, examples(), accumulators, progress=False).save(folder / name)
    return folder


def assert_same(found, expected):
    assert found.module == expected.module and list(found.sets) == list(expected.sets)
    for label, own in expected.sets.items():
        assert found[label] == own and torch.equal(found[label].score, own.score)
    assert torch.equal(found.score.nan_to_num(7), expected.score.nan_to_num(7))
    assert found.provenance.parameters == expected.provenance.parameters


def test_pictoworlds_domains_are_measured_chosen_and_evaluated_in_three_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = "pictoworld pictoworld --n 20 --groups image,text --site gate_act --batch-size 20 --out stats".split()
    assert run("stats", *flags).exit_code == 0
    result = run("select", "stats", "--by", "domain", "--group", "image", "--rate", 0.05, "--out", "sets")
    assert result.exit_code == 0 and not result.stderr, result.output
    statistics = Sweep.load("stats")["tokens"]
    expected = domain_neurons(statistics, group="image", rate=0.05)
    assert len(expected.sets) == 5 and min(map(len, expected.sets.values())) > 0, "or nothing would be compared"
    assert_same(Selection.load("sets/selection"), expected)
    head, *rows, together, saved = (line.split() for line in result.stdout.splitlines())
    assert head == ["label", "file", "neurons", *(f"L{layer}" for layer in range(5))]
    files = {label: f"sets/{label.replace(' ', '-')}.safetensors" for label in expected.sets}
    for row, (label, path), counts in zip(rows, files.items(), expected.counts().tolist(), strict=True):
        assert Neurons.load(path) == expected[label]
        assert row == [*label.split(), path.removeprefix("sets/"), str(sum(counts)), *map(str, counts)]
    assert together[:2] == ["any", str(len(expected.union()))] and saved[:3] == [
        "saved",
        "to",
        "sets/selection.safetensors,",
    ]
    held = [part for label, path in files.items() for part in ("--neurons", f"{label}={path}")]
    more = "--n 6 --metric log_prob --draws 1 --no-off-diagonal --out found".split()
    result = run("evaluate", "pictoworld", "pictoworld", *held, *more)
    assert result.exit_code == 0, result.output
    assert set(mmlens.Evaluation.load("found").random) == set(expected.sets)


def test_modalities_are_chosen_from_scaled_statistics(here, small_folder, loaded):
    flags = "--groups image,text --by samples --attn --normalise --site pre --out stats".split()
    result = run("stats", small_folder, "data/six.jsonl", *flags)
    assert result.exit_code == 0 and result.stdout.splitlines()[0].endswith(
        "neurons ever above the least  mean scaled activity"
    )
    statistics = Sweep.load("stats")["samples"]
    accumulator = SampleStats(
        loaded.widths,
        labels=("drawing", "photo"),
        groups=("image", "text"),
        statistics=EVERY,
        normalise="minmax",
        site="pre",
    )
    expected = mmlens.sweep(loaded, examples(), {"it": accumulator}, progress=False)["it"]
    for name in EVERY:
        assert torch.equal(statistics.totals[name]["language"], expected.totals[name]["language"])
    assert run("select", "stats", "--by", "modality", "--ratio", 0.1, "--strategy", "adaptive").exit_code == 0
    found = Selection.load("mmlens-neurons/selection")
    assert_same(found, modality_neurons(expected, ratio=0.1, strategy="adaptive"))
    assert Neurons.load("mmlens-neurons/text") == found["text"]


def test_options_are_those_of_python(swept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokens, samples = Sweep.load(swept / "tokens")["tokens"], Sweep.load(swept / "samples")["samples"]
    domain = ["--by", "domain", "--group", "image", "--module", "vision", "--rate", 0.3]
    more = ["--filter-quantile", 0.5, "--bar-quantile", 0.7]
    assert run("select", swept / "tokens", *domain, *more).exit_code == 0
    options = dict(rate=0.3, filter_quantile=0.5, bar_quantile=0.7)
    expected = domain_neurons(tokens, group="image", module="vision", **options)
    assert_same(Selection.load("mmlens-neurons/selection"), expected)
    assert len(expected.union())
    modality = ["--by", "modality", "--group", "text", "--weights", "mean=0.3, max=0.7"]
    assert run("select", swept / "samples", *modality, "--out", "text").exit_code == 0
    assert_same(
        Selection.load("text/selection"), modality_neurons(samples, groups=["text"], weights={"mean": 0.3, "max": 0.7})
    )
    drawn = ["--by", "modality", "--strategy", "random", "--seed", 3, "--ratio", 0.2, "--weights", "mean"]
    assert run("select", swept / "unattended", *drawn, "--out", "random").exit_code == 0
    statistics = Sweep.load(swept / "unattended")["samples"]
    own = modality_neurons(statistics, weights="mean", strategy="random", seed=3, ratio=0.2)
    assert Neurons.load("random/random") == own["random"]


def test_a_yaml_file_says_what_flags_say(swept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("by: modality\nweights: {mean: 0.3, max: 0.7}\nratio: 0.1\nstrategy: uniform\n")
    flags = ["--by", "modality", "--weights", "mean=0.3,max=0.7", "--strategy", "uniform", "--ratio", 0.1]
    assert run("select", swept / "samples", *flags, "--out", "flags").exit_code == 0
    assert run("select", swept / "samples", "--config", "run.yaml", "--out", "yaml").exit_code == 0
    assert_same(Selection.load("yaml/selection"), Selection.load("flags/selection"))


def test_a_label_without_neurons_has_a_file_too_and_evaluate_takes_it(here, small_folder, swept):
    result = run("select", swept / "tokens", "--by", "domain", "--group", "image", "--rate", 0, "--out", "none")
    assert result.exit_code == 0 and not len(Neurons.load("none/photo"))
    held = "--neurons photo=none/photo --metric log_prob --draws 1 --n 2".split()
    assert run("evaluate", small_folder, "data/six.jsonl", *held).exit_code == 0


def test_names_of_files_are_safe_and_none_is_taken_twice():
    labels = ["vqa", "VQA", "a/b c", "a b/c", "../up", "selection", "?", "中 文", "x" * 300]
    names = safe(labels)
    assert names[:8] == ["vqa", "VQA-2", "a-b-c", "a-b-c-2", "up", "selection-2", "set", "中-文"] and len(names[8]) == 100


MISTAKES = {
    "no such file": (["none", "--by", "domain"], "no saved result at none.safetensors"),
    "a file that is something else": (["broken", "--by", "domain"], "not a whole safetensors file"),
    "a result without statistics": (["neurons", "--by", "domain"], "holds a Neurons"),
    "domains by samples": (["samples", "--by", "domain"], "takes what mmlens stats --by tokens saved"),
    "modalities by tokens": (["tokens", "--by", "modality"], "takes what mmlens stats --by samples saved"),
    "several statistics": (["two", "--by", "domain"], "several statistics by tokens (a, b)"),
    "one label": (["one", "--by", "domain"], "these have one"),
    "no group": (["tokens", "--by", "domain"], "of the groups image, text: say which, by --group"),
    "a group that is none": (["tokens", "--by", "domain", "--group", "audio"], "got 'audio'"),
    "a module that is none": (["tokens", "--by", "domain", "--group", "image", "--module", "ear"], "got 'ear'"),
    "a rate that is none": (["tokens", "--by", "domain", "--group", "image", "--rate", "2"], "rate is from 0 to 1"),
    "an option of the other": (["samples", "--by", "modality", "--bar-quantile", ".5"], "--bar-quantile is of --by domain"),
    "statistics that are not scaled": (["unscaled", "--by", "modality"], "give --normalise to mmlens stats"),
    "statistics without attention": (["unattended", "--by", "modality"], "give --attn to mmlens stats"),
    "weights that are none": (["samples", "--by", "modality", "--weights", "all"], "weights are one of"),
    "a weight that is no number": (["samples", "--by", "modality", "--weights", "mean=a"], "--weights is a name, or"),
    "a ratio that is too much": (["samples", "--by", "modality", "--ratio", "3"], "the ratio is from 0 to 1"),
    "a folder that is a file": (
        ["samples", "--by", "modality", "--out", "broken.safetensors"],
        "--out is a folder to write into",
    ),
    "a name that is no flag": (["samples", "--by", "modality", "--config", "run.yaml"], "did you mean 'weights'?"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_in_one_line(swept, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    arguments, said = MISTAKES[case]
    (tmp_path / "broken.safetensors").write_text("six")
    (tmp_path / "run.yaml").write_text("weight: mean")
    Neurons.of([(0, 1)], {"language": (4,)}).save("neurons")
    name = swept / arguments[0] if (swept / f"{arguments[0]}.safetensors").is_file() else arguments[0]
    result = run("select", name, *arguments[1:])
    assert result.exit_code == 1 and not result.stdout, result.output
    assert result.stderr.startswith("mmlens: ") and result.stderr.count("\n") == 1 and said in result.stderr
    assert isinstance(result.exception, SystemExit) and not (tmp_path / "mmlens-neurons").exists()


def test_scaling_is_of_statistics_by_samples(here, small_folder):
    result = run("stats", small_folder, "data/six.jsonl", "--normalise")
    assert result.exit_code == 1 and "give --normalise with --by samples" in result.stderr


def test_help_lists_every_flag():
    flags = "by group module rate filter-quantile bar-quantile weights ratio strategy seed out config"
    shown = run("select", "--help").stdout
    assert all(f"--{flag} " in shown for flag in flags.split())
    assert "--normalise " in run("stats", "--help").stdout
