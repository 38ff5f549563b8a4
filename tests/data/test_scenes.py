"""Captions of scenes under an intervention score what a loop over generated captions and the scenes' objects comes to."""

import re

import numpy as np
import pytest
import torch

from mmlens import Ablation, HookedMLLM, Neurons, evaluate, hooks
from mmlens.data import caption_examples, noun_examples, question_examples, scene_objects
from mmlens.organisms import pictosound, pictoworld

N = 5
VALUE = 3.0  # at 0, half of these neurons change no caption


@pytest.fixture(scope="module")
def organism():
    return HookedMLLM.from_pretrained("pictoworld", device="cpu")


@pytest.fixture(scope="module")
def scenes():
    return pictoworld.scenes(n=N)


@pytest.fixture(scope="module")
def neurons(organism):
    return Neurons.of([(layer, unit) for layer in (1, 2, 3) for unit in range(0, 512, 2)], organism.widths)


@pytest.fixture(scope="module")
def written(organism, scenes, neurons):
    """What the model writes about each scene, as it is and with the neurons held."""
    inputs = organism.to_inputs([pictoworld.CAPTION_PROMPT] * N, images=[scene.image for scene in scenes])
    hooked = [[], hooks.ablate(neurons, value=VALUE)]
    return [organism.generate(inputs, max_new_tokens=32, fwd_hooks=one).text for one in hooked]


def mentioned(text):
    return [word for word in re.findall(r"[a-z]+", text) if word in pictoworld.NOUNS]


def test_objects_made_up_and_objects_mentioned_are_those_of_a_loop_over_captions(organism, scenes, neurons, written):
    objects = scene_objects()
    for metric in (objects.instance, objects.sentence, objects.recall):
        found = evaluate(
            organism,
            caption_examples(scenes),
            metric,
            {"off": Ablation(neurons, value=VALUE)},
            draws=1,
            max_new_tokens=32,
            progress=False,
        )
        assert found.arms[:2] == ("baseline", "off") and list(found.answers["off"]) == written[1]
        for arm, texts in enumerate(written):
            expected = []
            for text, scene in zip(texts, scenes, strict=True):
                said, held = mentioned(text), {one.noun for one in scene.objects}
                wrong = [noun for noun in said if noun not in held]
                shares = {
                    "instance": len(wrong) / max(len(said), 1),
                    "sentence": bool(wrong),
                    "recall": len(held & set(said)) / len(held),
                }
                expected.append(float(shares[metric.__name__]))
            np.testing.assert_allclose(found.scores[arm].numpy(), expected)
    assert written[0] != written[1]


def test_likeness_to_the_models_own_captions_is_one_until_something_changes(organism, scenes, neurons, written):
    examples = caption_examples(scenes, captions=written[0])
    found = evaluate(
        organism, examples, "bleu", {"off": Ablation(neurons, value=VALUE)}, draws=0, max_new_tokens=32, progress=False
    )
    changed = np.array([own != other for own, other in zip(*written, strict=True)])
    np.testing.assert_allclose(found.scores[0].numpy(), 1)
    assert ((found.scores[1].numpy() < 1) == changed).all() and changed.any()


def test_the_log_probability_of_a_noun_is_that_of_all_its_pieces_behind_the_caption_before_it(organism, scenes, neurons):
    examples = noun_examples(scenes)
    assert [one.id.rpartition("/")[2] for one in examples] == [o.noun for scene in scenes for o in scene.objects]
    found = evaluate(organism, examples, "log_prob", {"off": Ablation(neurons, value=VALUE)}, draws=0, progress=False)
    pieces = 0
    for index, one in enumerate(examples):
        inputs = organism.to_inputs(one.text, images=one.images, answer=one.answers[0])
        own = inputs.answer[0]
        pieces = max(pieces, int(own.sum()))
        for arm, fwd_hooks in enumerate(([], hooks.ablate(neurons, value=VALUE))):
            with torch.no_grad():
                logits = organism.run_with_hooks(inputs, fwd_hooks=fwd_hooks)[0].log_softmax(-1)
            by_hand = sum(logits[p - 1, inputs.tokens[0, p]].item() for p in own.nonzero()[:, 0].tolist())
            assert found.scores[arm, index].item() == pytest.approx(by_hand, abs=1e-3)
    assert pieces == 2


def test_the_text_before_a_noun_and_the_noun_are_the_right_caption(scenes):
    for scene in scenes:
        for example in noun_examples([scene]):
            whole = f"{example.text} {example.answers[0]}"
            assert f"{pictoworld.CAPTION_PROMPT} {scene.caption} ".startswith(f"{whole} ")


def test_recall_of_a_picture_without_known_objects_is_refused():
    with pytest.raises(ValueError, match="none is named"):
        scene_objects().recall("a tree", ["nothing"])


@pytest.mark.parametrize("world", ["seen", "heard"])
@pytest.mark.parametrize("notes", [False, True])
@pytest.mark.parametrize("label", ["domain", "kind"])
@pytest.mark.parametrize("kinds", [(), ("first", "last")])
def test_questions_are_those_of_a_loop_over_scenes(scenes, world, notes, label, kinds):
    things = scenes if world == "seen" else pictosound.clips(n=N)
    asked = [question.kind for thing in things for question in thing.questions]
    chosen = {{"first": asked[0], "last": asked[-1]}[one] for one in kinds} or set(asked)
    expected = []
    for thing in things:
        for number, question in enumerate(thing.questions):
            if question.kind in chosen:
                text = f"{thing.notes} {question.text}" if notes else question.text
                named = thing.domain if world == "seen" and label == "domain" else question.kind
                expected.append((text, (question.answer,), named, f"held_out/0/{thing.seed[2]}/{number}"))
    found = question_examples(things, *(chosen if kinds else ()), notes=notes, label=label)
    assert [(one.text, one.answers, one.label, one.id) for one in found] == expected and len(chosen) > 1
    assert len({one.id for one in found}) == len(found)
    for one in found:
        thing = things[int(one.id.split("/")[2])]
        assert one.images is (None if notes or world == "heard" else thing.image)
        assert (one.audio is None) == (notes or world == "seen") and (one.audio is None or one.audio[0] is thing.samples)


def test_questions_of_no_kind_are_refused(scenes):
    for some, kinds, said in [(scenes, ("smell",), "no scene has a question of smell"), ([], (), "of any kind")]:
        with pytest.raises(ValueError, match=said):
            question_examples(some, *kinds)
