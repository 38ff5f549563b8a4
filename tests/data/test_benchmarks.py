import dataclasses
import socket
from pathlib import Path

import datasets
import numpy as np
import pytest
import releases
from PIL import Image
from support import clip, picture, sound

from mmlens import HookedMLLM, data
from mmlens.metrics import METRICS
from mmlens.testing import tiny

SHORT = "Answer the question using a single word or phrase."
FIRST = {  # of each benchmark: how it is kept, the first example's text, answers and id, and the seeds of its media
    "coco-captions": (releases.coco, "Describe the image in one sentence.", ("A a 2.", "A b 2."), "2", [2]),
    "textvqa": (releases.textvqa, "what is the brand of this camera?", ("dakota",) * 9 + ("nous",), "34602", [0]),
    "vqav2": (
        releases.vqav2,
        f"What color is the car?\n{SHORT}",
        tuple(word for word, _ in releases.PEOPLE),
        "262148000",
        [0],
    ),
    "vqav2-sure": (releases.vqav2, f"What color is the car?\n{SHORT}", ("red", "reddish"), "262148000", [0]),
    "docvqa": (releases.docvqa, f"What is the 'actual value' per 1000?\n{SHORT}", ("0.28",), "49153", [0]),
    "pmc-vqa": (
        releases.pmc_vqa,
        "What is it?\nA. Diffuse uptake\nB. Focal uptake\nC. None\nD. NA\nAnswer with the letter of the right option.",
        ("B", "Focal uptake"),
        "0",
        [0],
    ),
    "lingoqa": (releases.lingoqa, "What is ahead 0?", ("A car.", "One car."), "q0", [0, 1, 2]),
    "rsvqa-hr": (releases.rsvqa, f"How many roads?\n{SHORT}", ("3",), "0", [0]),
    "mmlu": (
        releases.mmlu,
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        "What is 2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:",
        ("B", "4"),
        "0",
        [],
    ),
    "msvd-qa": (releases.msvd, f"what is a man doing 0?\n{SHORT}", ("ride",), "30933", [0]),
    "librispeech": (
        releases.librispeech,
        "Write down the words that are spoken, and nothing else.",
        ("CONCORD RETURNED TO ITS PLACE",),
        "6930-75918-0000",
        [0],
    ),
    "vocalsound": (
        releases.vocalsound,
        "Which of these sounds is it: laughter, sigh, cough, throat clearing, sneeze or sniff?",
        ("Throat clearing",),
        "f0000_0_cough.wav",
        [0],
    ),
    "pope": (releases.pope, "Is there a snowboard in the image?\nAnswer yes or no.", ("yes",), "0", [0]),
}


@pytest.fixture(autouse=True)
def no_network_and_no_cache_of_the_users(monkeypatch, tmp_path_factory):
    def refuse(*_, **__):
        raise AssertionError("a local benchmark asks the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=FIRST)
def kept(request, tmp_path):
    name = request.param
    FIRST[name][0](tmp_path)
    return name, data.load(name, folder=tmp_path)


def pixels(image):
    """Return a picture, or a picture's file, as numbers that can be subtracted."""
    return np.asarray((Image.open(image) if isinstance(image, Path) else image).convert("RGB")).astype(int)


def test_a_row_of_the_real_schema_becomes_the_example_that_it_is(kept):
    name, examples = kept
    _, text, answers, identity, seeds = FIRST[name]
    assert len(examples) == 2
    first, second = examples
    assert (first.text, first.answers, first.id) == (text, answers, identity)
    assert first.label == ("pope-adversarial" if name == "pope" else name)
    assert second.id != first.id and second.answers
    media = [kind for kind in ("images", "audio", "videos") if getattr(first, kind) is not None]
    if "Audio" in str(examples.rows.features):
        assert media == ["audio"] and first.audio.rate == 16_000
        np.testing.assert_allclose(first.audio.samples, sound(seeds[0])[0], atol=1e-4)
    elif name == "msvd-qa":
        assert media == ["videos"] and len(first.videos.frames) == 3 and first.videos.fps == 1
        for frame, own in zip(first.videos.frames, clip(0, frames=5)[::2], strict=True):
            assert np.abs(pixels(frame) - pixels(own)).mean() < 12  # a GIF has 256 colours
    elif name == "mmlu":
        assert media == []
    else:
        assert media == ["images"]
        own = np.concatenate([pixels(picture(seed)) for seed in seeds], axis=1)
        assert np.abs(pixels(first.images) - own).mean() < 12  # some are JPEG


def test_the_metric_of_a_benchmark_finds_its_own_answers_right(kept):
    name, examples = kept
    metric = data.BENCHMARKS[name].metric
    if metric is None:
        assert "judge" in data.BENCHMARKS[name].note
        return
    first = examples[0]
    right = "A cow and a dog." if metric == "bleu" else first.answers[0]
    golds = (right,) if metric == "bleu" else first.answers
    assert METRICS[metric](right, golds) == 1
    assert METRICS[metric]("quite something else", golds) == 0


def test_every_benchmark_is_tested_and_tabled():
    table = data.table()
    assert list(table.index) == list(data.BENCHMARKS) and set(FIRST) == set(data.BENCHMARKS)
    assert table.licence.str.len().min() > 2 and table.source.str.len().min() > 2 and table.gated.dtype == bool
    assert all(one.metric is None or one.metric in METRICS for one in data.BENCHMARKS.values())


@pytest.mark.parametrize(
    ("name", "write", "like"),
    [
        ("coco-captions", releases.coco_table, releases.coco),
        ("pmc-vqa", releases.pmc_vqa_2, releases.pmc_vqa),
        ("vocalsound", releases.vocalsound_files, releases.vocalsound),
    ],
)
def test_another_way_to_keep_a_benchmark_gives_the_same_example(name, write, like, tmp_path):
    for folder, each in (("one", write), ("other", like)):
        (tmp_path / folder).mkdir()
        each(tmp_path / folder)
    split = "all" if write is releases.vocalsound_files else None
    ours = data.load(name, folder=tmp_path / "one", split=split)[0]
    theirs = data.load(name, folder=tmp_path / "other")[0]
    assert (ours.text, ours.answers, ours.label) == (theirs.text, theirs.answers, theirs.label)
    if name == "vocalsound":
        assert np.array_equal(ours.audio.samples, theirs.audio.samples)
        with pytest.raises(ValueError, match="split='all'"):
            data.load(name, folder=tmp_path / "one")
    else:
        assert np.array_equal(pixels(ours.images), pixels(theirs.images))


@pytest.mark.parametrize(
    ("name", "family", "kind"),
    [("vqav2", "llava-clip-llama", "image"), ("msvd-qa", "qwen2-vl", "video"), ("librispeech", "qwen2-audio", "audio")],
)
def test_a_model_takes_the_examples(name, family, kind, tmp_path):
    FIRST[name][0](tmp_path)
    model = HookedMLLM.from_pretrained(tiny(family, tmp_path / "model"), device="cpu")
    for example in data.load(name, folder=tmp_path):
        inputs = model.to_inputs(example.text, images=example.images, audio=example.audio, videos=example.videos)
        assert inputs.mask(kind).any()


def test_splits_without_answers_give_examples_without_answers(tmp_path):
    releases.vqav2(tmp_path)
    assert [one.answers for one in data.load("vqav2", folder=tmp_path, split="test")] == [(), ()]
    row = dict(question_id=1, question="what?", image=picture(0), answers=[""] * 10)
    assert data.BENCHMARKS["textvqa"].example(row, 0).answers == ()


# ---------------------------------------------------------------- which rows


def numbered(folder, rows=20):
    (folder / ".cache").mkdir(exist_ok=True)
    (folder / ".cache" / "test.json").write_text("{}")  # what the hub's client leaves behind
    questions = [f"{number}?" for number in range(rows)]
    columns = dict(question=questions, subject=["x"] * rows, choices=[["a", "b"]] * rows, answer=[0] * rows)
    datasets.Dataset.from_dict(columns).to_parquet(folder / "test.parquet")
    return folder


def test_a_sample_is_drawn_by_its_seed_and_a_smaller_one_is_part_of_a_larger(tmp_path):
    folder = numbered(tmp_path)
    every = [one.id for one in data.load("mmlu", folder=folder)]
    assert every == [str(number) for number in range(20)]
    assert [one.id for one in data.load("mmlu", folder=folder, n=3)] == every[:3]
    drawn = [one.id for one in data.load("mmlu", folder=folder, n=8, seed=1)]
    assert drawn[:3] == [one.id for one in data.load("mmlu", folder=folder, n=3, seed=1)]
    assert drawn != [one.id for one in data.load("mmlu", folder=folder, n=8, seed=2)]
    assert len(set(drawn)) == 8
    assert sorted(one.id for one in data.load("mmlu", folder=folder, seed=1)) == sorted(every)
    for one in data.load("mmlu", folder=folder, n=8, seed=1):
        assert f"\n{one.id}?\n" in one.text


def test_a_slice_goes_on_where_a_run_stopped_and_reads_nothing_before_it(tmp_path, monkeypatch):
    examples = data.load("mmlu", folder=numbered(tmp_path), seed=0)
    whole = [one.id for one in examples]
    asked = []
    read = datasets.Dataset.__getitem__
    monkeypatch.setattr(datasets.Dataset, "__getitem__", lambda self, key: asked.append(key) or read(self, key))
    assert [one.id for one in examples[15:][1:]] == whole[16:]
    assert [str(key) for key in asked] == whole[16:]
    assert examples[-1].id == whole[-1]
    with pytest.raises(IndexError):
        examples[20]


def test_a_prompt_of_ones_own_is_filled_with_what_the_row_holds(tmp_path):
    folder = numbered(tmp_path)
    assert data.load("mmlu", folder=folder, prompt="{subject}: {question}")[3].text == "x: 3?"
    with pytest.raises(KeyError, match=r"filled with \{subject\}, \{question\}, \{options\}, got '\{picture\}'"):
        data.load("mmlu", folder=folder, prompt="{picture}")[0]


def test_a_benchmark_of_ones_own_is_read_like_the_others(tmp_path):
    ours = dataclasses.replace(data.BENCHMARKS["mmlu"], name="ours", read=lambda row: {"q": row["question"]}, prompt="{q}!")
    example = data.load(ours, folder=numbered(tmp_path))[2]
    assert (example.text, example.label, example.answers) == ("2?!", "ours", ())


def test_what_save_to_disk_wrote_is_read_with_its_sounds(tmp_path):
    releases.librispeech(tmp_path)
    rows = data.load("librispeech", folder=tmp_path).rows.cast_column("audio", datasets.Audio())
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "saved")
    rows.save_to_disk(tmp_path / "alone")
    for folder in ("saved", "alone"):
        example = data.load("librispeech", folder=tmp_path / folder)[1]
        assert example.answers == ("HE HOPED",)
        np.testing.assert_allclose(example.audio.samples, sound(1)[0], atol=1e-4)
    with pytest.raises(ValueError, match="has the splits test, and no 'train'"):
        data.load("librispeech", folder=tmp_path / "saved", split="train")


def test_rows_stream_from_the_hub_one_after_the_other_and_again(monkeypatch):
    asked = []

    def load_dataset(*source, **options):
        asked.append((source, options))
        rows = dict(question=["1?", "2?", "3?"], subject=["x"] * 3, choices=[["a", "b"]] * 3, answer=[1] * 3)
        return datasets.Dataset.from_dict(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    examples = data.load("mmlu", streaming=True, n=2)
    assert [one.id for one in examples] == [one.id for one in examples] == ["0", "1"]
    assert next(iter(examples)).answers == ("B", "b")
    assert asked == [(("cais/mmlu", "all"), {"split": "test", "streaming": True})]


# ---------------------------------------------------------------- what is refused


def without(folder, **columns):
    datasets.Dataset.from_dict({"question": ["?"], **columns}).to_parquet(folder / "test.parquet")


def twice(folder):
    numbered(folder)
    (folder / "more").mkdir()
    numbered(folder / "more")


@pytest.mark.parametrize(
    ("write", "options", "error", "says"),
    [
        (
            lambda folder: without(folder, topic=["x"]),
            {},
            KeyError,
            "has question, topic and lacks subject, choices, answer",
        ),
        (numbered, {"split": "validation"}, FileNotFoundError, "these tables: test.parquet"),
        (lambda folder: None, {}, FileNotFoundError, "these tables: none"),
        (twice, {}, ValueError, "has several: more/test.parquet, test.parquet"),
        (numbered, {"n": 21}, ValueError, "has 20 examples in 'test', asked for 21"),
        (numbered, {"n": 0}, ValueError, "at least 1"),
        (numbered, {"streaming": True}, ValueError, "leave out folder"),
    ],
)
def test_a_folder_that_does_not_hold_the_rows_is_refused(write, options, error, says, tmp_path):
    write(tmp_path)
    with pytest.raises(error, match=says):
        data.load("mmlu", folder=tmp_path, **options)


def test_a_benchmark_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(KeyError, match=r"a benchmark is one of coco-captions, .* got 'coco'"):
        data.load("coco")
    with pytest.raises(ValueError, match=r"rsvqa-hr keeps its media in files.*zenodo.*CC BY 4.0.*folder="):
        data.load("rsvqa-hr")
    with pytest.raises(FileNotFoundError, match="is none"):
        data.load("mmlu", folder=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"USGS_split_dev_questions.json"):
        data.load("rsvqa-hr", folder=tmp_path, split="dev")


def test_media_that_are_missing_doubled_or_outside_of_the_folder_are_refused(tmp_path):
    releases.pmc_vqa(tmp_path)
    (tmp_path / "images" / "PMC1_F1.jpg").unlink()
    releases.save(tmp_path, "figures/PMC1_F0.jpg", picture(0))
    examples = data.load("pmc-vqa", folder=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"found none for 'PMC1_F1.jpg'"):
        examples[1]
    with pytest.raises(FileNotFoundError, match="found 2 "):
        examples[0]
    table = tmp_path / "test.csv"
    table.write_text(table.read_text().replace("PMC1_F0.jpg", "../secret.jpg"))
    with pytest.raises(ValueError, match=r"media lie below the folder, a row names '../secret.jpg'"):
        data.load("pmc-vqa", folder=tmp_path)[0]


def test_a_damaged_sound_and_a_letter_that_is_no_option_are_named(tmp_path):
    releases.librispeech(tmp_path)
    row = data.load("librispeech", folder=tmp_path).rows[0]
    broken = {**row, "audio": {"bytes": b"nothing", "path": "a.flac"}}
    with pytest.raises(ValueError, match=r"the sound a.flac is damaged"):
        data.BENCHMARKS["librispeech"].example(broken, 0)
    (tmp_path / "pmc").mkdir()
    releases.pmc_vqa(tmp_path / "pmc")
    row = data.load("pmc-vqa", folder=tmp_path / "pmc").rows[0]
    with pytest.raises(ValueError, match="a letter from A to D, got 'E'"):
        data.BENCHMARKS["pmc-vqa"].example({**row, "Answer_label": "e"}, 0)
