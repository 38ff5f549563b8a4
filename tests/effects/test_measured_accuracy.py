"""The organisms answer from the picture: exact answers on held-out scenes, and with the picture taken away."""

import pytest
from examples import BATCH, interval, random_weights

from mmlens.organisms import pictoworld


@pytest.fixture(scope="module")
def scenes(expectations):
    return pictoworld.scenes("held_out", n=expectations["accuracy"]["scenes"], seed=expectations["accuracy"]["seed"])


@pytest.fixture(scope="module")
def score(organisms, scenes, expectations):
    """Return a function that measures the share of exact answers: name, kind, source of the picture -> interval, n."""
    others = pictoworld.shuffled(scenes)
    renamed = {noun for nouns in pictoworld.RENAMED.values() for noun in nouns.values()}

    def measure(name: str, kind: str, source: str, only_renamed: bool = False):
        model, rows = organisms[name] if name in organisms else random_weights("pictoworld"), []
        for index, scene in enumerate(scenes):
            picture = {"image": scene.image, "blank": pictoworld.blank(), "shuffled": others[index], "notes": None}[source]
            for question in scene.questions:
                if question.kind == kind and not (only_renamed and question.object.noun not in renamed):
                    text = f"{scene.notes} {question.text}" if source == "notes" else question.text
                    rows.append((text, picture, question.answer, index))
        right: list[float] = []
        for start in range(0, len(rows), BATCH):
            texts, pictures, answers, _ = zip(*rows[start : start + BATCH], strict=True)
            inputs = model.to_inputs(texts, images=None if source == "notes" else list(pictures))
            written = model.generate(inputs, max_new_tokens=8).text
            right += [float(ours == theirs) for ours, theirs in zip(written, answers, strict=True)]
        return interval(right, [row[3] for row in rows], expectations), len(rows)

    return measure


def check(score, report, name, kind, source, **options):
    (mean, low, high), n = score(name, kind, source, **options)
    suffix = ", named by domain" if options else ""
    report(f"accuracy: {name}: {kind} from {source}{suffix}", mean, low, high, n)
    return mean


@pytest.mark.parametrize("kind", ["place", "color"])
def test_the_tuned_model_answers_from_the_picture(score, report, expectations, kind):
    assert check(score, report, "pictoworld", kind, "image") >= expectations["accuracy"]["tuned_image"][kind]


@pytest.mark.parametrize("kind", ["place", "color"])
def test_the_tuned_model_still_answers_from_notes_in_words(score, report, expectations, kind):
    assert check(score, report, "pictoworld", kind, "notes") >= expectations["accuracy"]["tuned_notes"][kind]


@pytest.mark.parametrize("kind", ["place", "color"])
@pytest.mark.parametrize("source", ["blank", "shuffled"])
def test_the_tuned_model_needs_the_right_picture(score, report, expectations, kind, source):
    assert check(score, report, "pictoworld", kind, source) <= expectations["accuracy"][f"{source}_at_most"][kind]


def test_the_tuned_model_names_by_domain_what_looks_the_same_in_all(score, report, expectations):
    found = check(score, report, "pictoworld", "color", "image", only_renamed=True)
    assert found >= expectations["accuracy"]["renamed_image"]["color"]


def test_the_frozen_model_names_objects_by_colour(score, report, expectations):
    assert check(score, report, "pictoworld-frozen", "color", "image") >= expectations["accuracy"]["frozen_image"]["color"]
    for kind, source in [
        ("place", "image"),
        ("place", "notes"),
        ("color", "notes"),
        ("color", "blank"),
        ("color", "shuffled"),
    ]:
        check(score, report, "pictoworld-frozen", kind, source)


@pytest.mark.parametrize("kind", ["place", "color"])
def test_shuffled_weights_answer_nothing(score, report, expectations, kind):
    assert check(score, report, "weights shuffled", kind, "image") <= expectations["shuffled_weights"]["exact_at_most"]
