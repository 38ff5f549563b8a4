import dataclasses
from io import BytesIO

import datasets
import numpy as np
import pytest
import soundfile
from support import picture, sound

from mmlens.data import Example


def test_a_row_of_a_dataset_becomes_the_example_with_its_names():
    rows = datasets.Dataset.from_dict(
        {"text": ["what ?", "who ?"], "images": [picture(0), picture(1)], "answers": [["a", "b"], []], "id": [7, None]},
        features=datasets.Features(
            text=datasets.Value("string"),
            images=datasets.Image(),
            answers=datasets.List(datasets.Value("string")),
            id=datasets.Value("int64"),
        ),
    )
    first, second = (Example.of(row, index) for index, row in enumerate(rows))
    assert (first.text, first.answers, first.label, first.id) == ("what ?", ("a", "b"), None, "7")
    assert (second.answers, second.id, second.audio, second.videos) == ((), "1", None, None)
    assert np.array_equal(np.asarray(second.images), np.asarray(picture(1)))


def test_an_example_stays_itself_and_gets_an_id_where_it_has_none():
    image = picture(0)
    example = Example("what ?", images=image, answers=("a",), label="vqa")
    again = Example.of(example, 12)
    assert again.images is image
    assert again.id == "12"
    assert dataclasses.replace(example, id="x").id == Example.of(dataclasses.replace(example, id="x"), 3).id == "x"
    assert (again.text, again.answers, again.label) == (example.text, example.answers, example.label)


def test_media_that_datasets_has_not_decoded_are_read():
    file = BytesIO()
    soundfile.write(file, sound(3)[0], 16_000, format="FLAC")
    rows = datasets.Dataset.from_dict({"text": ["what ?"], "images": [[picture(0), picture(1)]]})
    rows = rows.add_column("audio", [{"bytes": file.getvalue(), "path": None}])
    rows = rows.cast_column("images", datasets.List(datasets.Image(decode=False)))
    example = Example.of(rows.cast_column("audio", datasets.Audio(decode=False))[0], 0)
    assert example.audio.rate == 16_000
    np.testing.assert_allclose(example.audio.samples, sound(3)[0], atol=1e-4)
    for number, image in enumerate(example.images):
        assert np.array_equal(np.asarray(image), np.asarray(picture(number)))


def test_one_answer_may_be_a_string_and_is_not_taken_letter_by_letter():
    assert Example.of({"text": "what ?", "answers": "yes"}, 0).answers == ("yes",)


@pytest.mark.parametrize(
    ("row", "error", "says"),
    [
        ({"question": "what ?"}, KeyError, "example 4 has 'question' beside them"),
        ({"images": None}, KeyError, "has a 'text'"),
        ("what ?", TypeError, "example 4 is a str"),
        ({"text": "how many ?", "answers": [2]}, TypeError, "has 2: write"),
        ({"text": None}, TypeError, "has None"),
        ({"text": "how many ?", "answers": [0]}, TypeError, "has 0"),
    ],
)
def test_a_row_that_is_no_example_is_refused_by_its_number(row, error, says):
    with pytest.raises(error, match=says):
        Example.of(row, 4)
