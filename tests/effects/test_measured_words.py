"""The organisms know their words without a picture, and name by domain what looks the same in all."""

import numpy as np
import pytest
from examples import BATCH, batches, interval, random_weights

from mmlens.organisms import pictoworld
from mmlens.organisms.pictoworld import text

NAMES = ("pictoworld", "pictoworld-frozen")


def answers(model, prompts, images=None) -> list[str]:
    said: list[str] = []
    for start in range(0, len(prompts), BATCH):
        chosen = slice(start, start + BATCH)
        inputs = model.to_inputs(prompts[chosen], images=None if images is None else images[chosen])
        said += model.generate(inputs, max_new_tokens=8).text
    return said


def exact(said, expected) -> list[float]:
    return [float(ours == theirs) for ours, theirs in zip(said, expected, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_definitions_are_completed_with_their_nouns(organisms, report, expectations, name):
    asked = [text.facts_of(noun)[1] for noun in pictoworld.NOUNS]
    right = exact(answers(organisms[name], [prompt for prompt, _ in asked]), [answer for _, answer in asked])
    found = interval(right, list(range(len(right))), expectations)
    report(f"text only: {name}: definition -> noun", *found, len(right))
    assert found[0] >= expectations["text_only"]["definitions"]


@pytest.mark.parametrize("name", NAMES)
def test_the_domain_that_notes_mention_turns_a_bare_shape_into_a_noun(organisms, report, expectations, name):
    settings = expectations["text_only"]
    scenes = pictoworld.scenes("held_out", n=settings["scenes"], seed=settings["seed"])
    asked = [(i, scene, q) for i, scene in enumerate(scenes) for q in scene.questions if renamed(q)]
    means = {}
    for given in ("with the domain", "without it"):
        prompts = []
        for index, scene, question in asked:
            rng = np.random.default_rng(index)
            notes = text.notes_of(scene.domain, scene.objects, rng, simple=1.0, renamed=1.0)
            said = f"this is a {scene.domain} ."
            assert notes.count(said) == 1 and question.object.noun not in notes.split()
            notes = notes if given == "with the domain" else notes.replace(said, "").strip()
            prompts.append(f"{notes} {question.text}")
        right = exact(answers(organisms[name], prompts), [q.answer for *_, q in asked])
        found = interval(right, [index for index, *_ in asked], expectations)
        report(f"text only: {name}: bare shape -> noun, {given}", *found, len(right))
        means[given] = found[0]
    assert means["with the domain"] >= settings["bare_shape"]
    assert means["without it"] <= settings["bare_shape_without_domain_at_most"]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_pixels_are_named_by_the_domain_around_them(organisms, report, expectations, name):
    settings = expectations["domain_naming"]
    own, other = named_by_domain(organisms[name], name, settings["pairs"], report, expectations)
    if name == "pictoworld":
        assert own >= settings["own_noun"]
        assert other <= settings["other_noun_at_most"]


def test_shuffled_weights_know_no_words(report, expectations):
    model, settings = random_weights("pictoworld"), expectations["shuffled_weights"]
    asked = [text.facts_of(noun)[1] for noun in pictoworld.NOUNS]
    right = exact(answers(model, [prompt for prompt, _ in asked]), [answer for _, answer in asked])
    report("text only: weights shuffled: definition -> noun", *interval(right, range(len(right)), expectations), len(right))
    assert np.mean(right) <= settings["exact_at_most"]
    own, _ = named_by_domain(model, "weights shuffled", settings["pairs"], report, expectations)
    assert own <= settings["exact_at_most"]


def named_by_domain(model, name, n, report, expectations):
    """Return how often a renamed silhouette gets the noun of its picture's domain, and that of the other picture's."""
    pairs = pictoworld.domain_pairs("held_out", n=n, seed=expectations["domain_naming"]["seed"])
    own: list[float] = []
    other: list[float] = []
    images: list[int] = []
    for start, batch in zip(range(0, len(pairs), BATCH), batches(pairs), strict=True):
        for mine, theirs in (("clean", "corrupted"), ("corrupted", "clean")):
            halves = [(getattr(pair, mine), getattr(pair, theirs), pair.index) for pair in batch]
            prompts = [f"what is at the {scene.objects[i].place} ? answer :" for scene, _, i in halves]
            said = answers(model, prompts, [scene.image for scene, *_ in halves])
            for values, column in ((own, 0), (other, 1)):
                objects = [half[column].objects[half[2]] for half in halves]
                values += exact(said, [f"a {o.color} {o.noun}" for o in objects])
            images += range(start, start + len(batch))
    for label, values in (("its own domain's noun", own), ("the other domain's noun", other)):
        report(f"domain naming: {name}: same pixels, {label}", *interval(values, images, expectations), len(values))
    return np.mean(own), np.mean(other)


def renamed(question):
    nouns = {noun for names in pictoworld.RENAMED.values() for noun in names.values()}
    return question.kind in ("place", "color") and question.object.noun in nouns
