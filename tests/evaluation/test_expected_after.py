"""What a perfect edit would make a model say is what it says, with one word for the other; edits are held to that."""

from dataclasses import replace

import numpy as np
import pytest

from mmlens import Example, HookedMLLM, evaluate
from mmlens.analysis import fit_edit
from mmlens.evaluation import expected_after
from mmlens.organisms import pictoworld
from mmlens.testing import planted
from mmlens.testing.plants.layout import NOUNS


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    made = planted(tmp_path_factory.mktemp("planted"))
    shown = [one for one in made.stimuli(90, seed=2) if one.answer in NOUNS]
    examples = [Example(one.text, images=one.medium, answers=(one.answer,), label=one.answer) for one in shown]
    return made, HookedMLLM.from_pretrained(made.folder, device="cpu"), shown, examples


def test_gold_answers_are_the_models_own_with_one_word_for_the_other(plant):
    _, model, _, examples = plant
    silent = [replace(one, answers=()) for one in examples]
    found = expected_after(model, silent, "CAR", "boat", max_new_tokens=1)
    assert [one.answers for one in found] == [("boat" if one.label == "car" else one.label,) for one in examples]
    assert [(one.text, one.label) for one in found] == [(one.text, one.label) for one in examples]
    assert [one.answers[0] for one in expected_after(model, silent, "ca", "boat", max_new_tokens=1)] == [
        one.label for one in examples
    ]
    with pytest.raises(ValueError, match="one word in the place of another"):
        expected_after(model, examples, "car", " ")


def test_a_planted_edit_scores_whole_and_the_unedited_model_only_where_nothing_was_to_change(plant):
    made, model, shown, examples = plant
    own = made.key.concepts["car"]
    scenes = [one for one in shown if one.answer == "car"][:4]
    edit = fit_edit(model, model.to_inputs(**made.arguments(scenes)), "car", "boat", own, lr=0.02, steps=80)
    golds = expected_after(model, examples, "car", "boat", max_new_tokens=1)
    arms = {"edit": edit.hooks(model)}
    table = evaluate(model, golds, "exact_match", arms, max_new_tokens=1, progress=False).matrix("mean", resamples=99)
    assert (table.loc["edit"] == 1).all() and set(table.columns) == set(NOUNS)
    before = evaluate(model, golds, "exact_match", {}, max_new_tokens=1, progress=False)
    assert before.scores[0].tolist() == [float(one.label != "car") for one in golds]


def test_mentions_ask_about_the_noun_and_about_everything_else_each_thing_once():
    scenes = pictoworld.scenes("held_out", n=200, seed=4)
    found = pictoworld.mentions(scenes, "star")
    with_it = [index for index, scene in enumerate(scenes) if "star" in {thing.noun for thing in scene.objects}]
    objects = sum(len(scene.objects) for scene in scenes)
    assert sum(len(found[f"{where}by place"]) for where in ("", "beside it ", "elsewhere ")) == objects
    assert [one.scene for one in found["by place"]] == with_it == [one.scene for one in found["in captions"]]
    assert len(found["captions elsewhere"]) == len(scenes) - len(with_it) and len(with_it) > 5
    for name, prompts in found.items():
        for one in prompts:
            about = name in ("by color", "by place", "in captions", "in notes", "defined")
            assert ("star" in one.answer.split()) == about, (name, one)
            assert (one.image is None) == (name in ("in notes", "defined"))
            assert name == "defined" or (one.scene in with_it) == ("elsewhere" not in name)
    assert [one.answer for one in found["defined"]] == ["the star"]
    for note, color in zip(found["in notes"], found["by color"], strict=True):
        assert note.text == f"{scenes[note.scene].notes} {color.text}" and note.answer == color.answer
    assert np.array_equal(found["by color"][0].image, scenes[found["by color"][0].scene].image)
    with pytest.raises(ValueError, match="nouns of this world"):
        pictoworld.mentions(scenes, "zebra")
