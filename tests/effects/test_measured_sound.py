"""Pictosound's models answer from what they hear: exact answers on held-out clips, and with the sound taken away."""

import pytest
from examples import BATCH, interval, random_weights

from mmlens.organisms import pictosound

KINDS = ("order", "pitch", "rhythm", "after")


@pytest.fixture(scope="module")
def score(organisms, expectations):
    """Return a function that measures the share of exact answers: model, kind, source of the sound -> interval, n."""
    settings = expectations["sound_accuracy"]
    clips = pictosound.clips("held_out", n=settings["clips"], seed=settings["seed"])
    sounds = {
        "sound": [clip.audio for clip in clips],
        "shuffled": pictosound.shuffled(clips),
        "silence": [pictosound.silence()] * len(clips),
    }

    def measure(model, kind: str, source: str):
        rows = [(i, clip, q) for i, clip in enumerate(clips) for q in clip.questions if q.kind == kind]
        right: list[float] = []
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            if source == "notes":
                inputs = model.to_inputs([f"{clip.notes} {q.text}" for _, clip, q in batch])
            else:
                inputs = model.to_inputs([q.text for _, _, q in batch], audio=[sounds[source][i] for i, _, _ in batch])
            written = model.generate(inputs, max_new_tokens=8).text
            right += [float(ours == q.answer) for ours, (_, _, q) in zip(written, batch, strict=True)]
        return interval(right, [i for i, _, _ in rows], expectations), len(rows)

    return measure


@pytest.fixture
def check(score, organisms, report):
    """Return a function that measures, reports and returns a share of exact answers."""

    def measured(name: str, kind: str, source: str, model=None) -> float:
        (mean, low, high), n = score(model or organisms[name], kind, source)
        report(f"accuracy: {name}: {kind} from {source}", mean, low, high, n)
        return mean

    return measured


@pytest.mark.parametrize("kind", KINDS)
def test_the_tuned_model_answers_from_the_sound(check, expectations, kind):
    assert check("pictosound", kind, "sound") >= expectations["sound_accuracy"]["tuned_sound"][kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["silence", "shuffled"])
def test_without_the_right_sound_the_tuned_model_guesses(check, expectations, kind, source):
    settings = expectations["sound_accuracy"]
    assert check("pictosound", kind, source) <= settings["prior"][kind] + settings["margin"]


@pytest.mark.parametrize("kind", ["order", "pitch", "rhythm"])
def test_the_tuned_model_still_answers_from_notes_about_a_sound(check, expectations, kind):
    assert check("pictosound", kind, "notes") >= expectations["sound_accuracy"]["tuned_notes"][kind]


def test_the_frozen_model_hears_without_ever_having_been_trained_on_sounds(check, expectations):
    for kind in KINDS:
        found = check("pictosound-frozen", kind, "sound")
        assert found >= expectations["sound_accuracy"]["frozen_sound"][kind]
    for kind, source in (("order", "notes"), ("pitch", "notes"), ("pitch", "silence"), ("pitch", "shuffled")):
        check("pictosound-frozen", kind, source)


@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_weights_hear_nothing(check, expectations, kind):
    at_most = expectations["sound_accuracy"]["shuffled_weights_right_at_most"]
    assert check("pictosound, weights shuffled", kind, "sound", random_weights("pictosound")) <= at_most
