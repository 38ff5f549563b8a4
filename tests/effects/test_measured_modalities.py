"""What a modality's most important neurons do (MINER, Huang et al. 2024), chosen and scored on different scenes."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from examples import MEDIUM, interval, scenes_of

from mmlens import Ablation, Evaluation, Example, SampleStats, evaluate, sweep
from mmlens.analysis import importance, modality_neurons
from mmlens.data import question_examples
from mmlens.organisms import pictosound, pictoworld
from mmlens.organisms.pictosound import Clip
from mmlens.organisms.pictoworld import Scene
from mmlens.stats import Statistics
from mmlens.stats.samples import ALL

NAMES = ("pictoworld", "pictosound")
TASKS = ("seen", "read", "caption")
ASKED = {"pictoworld": "color", "pictosound": "pitch"}
FORMS = {"ours": dict(renorm="l1", causal=True), "paper": dict(renorm="softmax", causal=False)}
Row = tuple[float, float, float, int]


def tasks(name: str, n: int, seed: int) -> list[Example]:
    """Return `n` questions about a medium ("seen"), and as many about notes ("read"), which one noun answers."""
    found: list[Example] = []
    for label, notes in (("seen", False), ("read", True)):
        kept = [one for scene in scenes_of(name, 2 * n, seed) for one in first(scene, ASKED[name], notes)][:n]
        for one in kept:
            head, _, noun = one.answers[0].rpartition(" ")
            found.append(replace(one, text=f"{one.text} {head}", answers=(noun,), label=label))
    return found


def captioned(scene: Scene | Clip) -> Example:
    """Return the prompt for a caption with the right words up to its first noun, which is the answer."""
    heard = isinstance(scene, Clip)
    nouns = {thing.noun for thing in (scene.events if heard else scene.objects)}
    words = scene.caption.split()
    place = next(number for number, word in enumerate(words) if word in nouns)
    media = {"audio": scene.audio} if heard else {"images": scene.image}
    text = " ".join([(pictosound if heard else pictoworld).CAPTION_PROMPT, *words[:place]])
    return Example(text, **media, answers=(words[place],), label="caption", id="/".join(map(str, scene.seed)))


def first(scene: Scene | Clip, kind: str, notes: bool) -> Sequence[Example]:
    """Return the first question of a kind about a scene, if there is one."""
    if not any(question.kind == kind for question in scene.questions):
        return []
    return question_examples([scene], kind, notes=notes)[:1]  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def statistics(organisms, expectations):
    """Return a function of a model's name: its statistics by either form of attention."""
    settings = expectations["modalities"]

    @cache
    def gather(name: str) -> dict[str, Statistics]:
        model, how = organisms[name], dict(statistics=ALL, normalise="minmax", site="gate_act")
        forms = {
            form: SampleStats(model.widths, groups=(MEDIUM[name], "text"), **how, **options)  # pyright: ignore
            for form, options in FORMS.items()
        }
        examples = tasks(name, settings["scenes"], settings["chosen_seed"])
        return sweep(model, examples, forms, batch_size=50, progress=False).results  # pyright: ignore

    return gather


@pytest.fixture(scope="module")
def measure(organisms, statistics, expectations):
    """Return a function of a model's name, a ratio and a value: the evaluation of its modalities' sets."""
    settings = expectations["modalities"]

    @cache
    def run(name: str, ratio: float, value: float | str) -> Evaluation:
        model, n, seed = organisms[name], settings["scenes"], settings["scored_seed"]
        scored = tasks(name, n, seed) + [captioned(scene) for scene in scenes_of(name, n, seed)]
        sets = modality_neurons(statistics(name)["ours"], ratio=ratio).sets
        found = evaluate(
            model,
            scored,
            "margin",
            {group: Ablation(own, value=value) for group, own in sets.items()},  # pyright: ignore
            draws=settings["draws"],
            reference=tasks(name, settings["scenes"], settings["chosen_seed"]),
            batch_size=50,
            progress=False,
        )
        assert not found.failures and len(found.ids) == 3 * settings["scenes"]
        return found

    return lambda name, ratio, value=0.0: run(name, ratio, value)  # a cache tells a default from the same value given


@pytest.fixture
def rows(measure, report, expectations):
    """Return a function that measures, puts the rows in the table, and returns them by set, task, and what is less."""

    def table(name: str, ratio: float, value: float | str = 0.0) -> dict[tuple[str, str], Row]:
        found = measure(name, ratio, value)
        held, rows = "" if value == 0.0 else f", held at {value}", {}
        for group in found.random:
            for task in TASKS:
                change, random = changes(found, group, task)
                for label, values in (("", change), (" less random", change - random)):
                    row = *interval(values.tolist(), range(len(values)), expectations), len(values)
                    report(f"modalities: {name}: {task}, {group} {ratio:.0%}{held}{label}", *row)
                    rows[group, task] = row
        return rows

    return table


def changes(found: Evaluation, group: str, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Return how a set changes each example's margin, and how its random sets do on average."""
    here = np.array([own == task for own in found.tasks])
    scores = {arm: row[here] for arm, row in zip(found.arms, found.scores.numpy(), strict=True)}
    drawn = np.mean([scores[one] for one in found.random[group]], axis=0)
    return scores[group] - scores["baseline"], drawn - scores["baseline"]


def test_the_image_set_lowers_what_is_seen_more_than_random_sets_and_than_what_is_read(measure, rows, report, expectations):
    settings = expectations["modalities"]
    mean, _, high, _ = rows("pictoworld", settings["ratio"])["image", "seen"]
    found = measure("pictoworld", settings["ratio"])
    (seen, random_seen), (read, random_read) = (changes(found, "image", task) for task in ("seen", "read"))
    both = interval(((seen - random_seen) - (read - random_read)).tolist(), range(len(seen)), expectations)
    report("modalities: pictoworld: image 2%: seen less read, each less random", *both, len(seen))
    assert mean <= settings["image_set_on_seen_less_random_at_most"] and high < 0
    assert both[0] <= settings["image_set_on_seen_less_on_read_at_most"] and both[2] < 0


def test_the_image_set_lowers_captions_nouns_more_than_random_sets(rows, expectations):
    settings = expectations["modalities"]
    mean, low, high, n = rows("pictoworld", settings["ratio"])["image", "caption"]
    assert n >= 500
    assert mean <= settings["image_set_on_captions_less_random_at_most"] and high < 0, (mean, low, high)


def test_corrected_over_the_table_the_image_set_lowers_what_is_seen(measure, report, expectations):
    settings = expectations["modalities"]
    table = measure("pictoworld", settings["ratio"]).table(resamples=1999)
    row = table.loc[("image", "seen")]
    p = float(row["p_corrected"])
    report("modalities: pictoworld: seen, image 2%: p, corrected over sets and tasks", p, p, p, int(row["n"]))
    assert p < settings["image_set_corrected_below"] and row["difference"] < 0


def test_the_text_set_does_no_more_than_random_ones(rows, expectations):
    settings = expectations["modalities"]
    found = rows("pictoworld", settings["ratio"])
    for task in ("seen", "read"):
        assert abs(found["text", task][0]) <= settings["text_set_less_random_within"]


def test_sets_of_the_model_that_hears_do_no_more_than_random_ones(rows, expectations):
    settings = expectations["modalities"]
    for row in rows("pictosound", settings["ratio"]).values():
        assert abs(row[0]) <= settings["sound_sets_less_random_within"]


@pytest.mark.parametrize("name", NAMES)
def test_two_per_cent_of_neurons_cost_hardly_an_answer(name, measure, report, expectations):
    settings = expectations["modalities"]
    found = measure(name, settings["ratio"])
    for task in ("seen", "read"):
        right = found.scores.numpy()[:, [own == task for own in found.tasks]] > 0
        for group in found.random:
            kept = right[found.arms.index(group)][right[0]]
            low, high = interval(kept.astype(float).tolist(), range(len(kept)), expectations)[1:]
            report(f"modalities: {name}: {task}, answers that survive {group} 2%", kept.mean(), low, high, len(kept))
            assert kept.mean() >= settings["right_at_least"]


@pytest.mark.parametrize("value", ["mean", "resample"])
def test_held_at_their_mean_or_another_examples_values_the_image_set_is_no_random_one(value, rows, expectations):
    mean, low, high, _ = rows("pictoworld", expectations["modalities"]["ratio"], value)["image", "seen"]
    assert high < 0, (mean, low, high)


def test_ten_per_cent_of_neurons_are_reported(rows, expectations):
    assert rows("pictoworld", expectations["modalities"]["wide_ratio"])


@pytest.mark.parametrize("name", NAMES)
def test_as_the_paper_weighs_attention_its_scores_are_next_to_the_mean_and_by_causal_shares_they_are_less(
    name, statistics, report, expectations
):
    settings, found = expectations["modalities"], {}
    for form, of_form in statistics(name).items():
        for group in (MEDIUM[name], "text"):
            mean = of_form.scores("mean", group=group).flatten()
            for score in ("attn_k", "attn_q"):
                other = of_form.scores(score, group=group).flatten()
                found[form, group, score] = value = float(torch.corrcoef(torch.stack([mean, other]))[0, 1])
                report(
                    f"modalities: {name}: correlation of {score} with mean, {group}, {form}", value, value, value, len(mean)
                )
    for group in (MEDIUM[name], "text"):
        assert found["paper", group, "attn_k"] >= settings["paper_attn_k_with_mean_at_least"]
        assert found["ours", group, "attn_k"] <= settings["ours_attn_k_with_mean_at_most"]


@pytest.mark.parametrize("name", NAMES)
def test_which_neurons_are_chosen_hardly_depends_on_the_form_and_both_modalities_share_some(name, statistics, report):
    by_form = {form: modality_neurons(of_form) for form, of_form in statistics(name).items()}
    medium = MEDIUM[name]
    for group in (medium, "text"):
        same = by_form["ours"][group].jaccard(by_form["paper"][group])
        report(f"modalities: {name}: Jaccard of the {group} sets by our form and the paper's", same, same, same, 2)
    shared = float(by_form["ours"].jaccard()[0, 1])
    report(f"modalities: {name}: Jaccard of the {medium} and the text set", shared, shared, shared, 2)
    scores = importance(statistics(name)["ours"])
    assert scores.shape[0] == 2 and float(scores.min()) >= 0 and float(scores.max()) <= 1
