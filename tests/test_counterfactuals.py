"""The same question about another picture or sound: positions line up, and only what was changed is changed."""

import numpy as np
import pytest
import torch
from PIL import Image
from support import ask, medium, picture, sound

from mmlens.corruption import corrupt, splice


def test_the_same_media_make_the_same_inputs_in_every_family(model):
    for kind in ("padded", "two"):
        inputs = ask(model, kind)
        media = [list(row) for row in inputs.media]
        given = media[0] if len(inputs) == 1 else media
        again = model.with_images(inputs, given) if "image" in model.family.takes else model.with_audio(inputs, given)
        assert again.digest() == inputs.digest()
        assert torch.equal(again.modality, inputs.modality) and torch.equal(again.medium, inputs.medium)


def test_other_media_are_what_the_model_sees_then(model):
    """As if the question had been asked about them from the start, the answer's tokens behind it."""
    name, one = medium(model, 0)
    _, two = medium(model, 1)
    inputs = model.to_inputs("what is in the picture ?", **{name: one}, answer="the red car")
    asked = model.to_inputs("what is in the picture ?", **{name: two}, answer="the red car")
    swapped = model.with_images(inputs, two) if name == "images" else model.with_audio(inputs, two)
    assert swapped.digest() == asked.digest() != inputs.digest()
    assert torch.equal(swapped.tokens, inputs.tokens) and torch.equal(swapped.answer, inputs.answer)
    with torch.no_grad():
        assert torch.equal(model(swapped), model(asked))


def test_a_row_may_keep_its_picture(small):
    inputs = small.to_inputs(["what", "which object is red"], images=[picture(0), picture(1)])
    swapped = small.with_images(inputs, [None, picture(2)])
    assert swapped.digest() == small.to_inputs(["what", "which object is red"], images=[picture(0), picture(2)]).digest()


def test_media_of_a_kind_that_the_model_does_not_take_are_refused(small):
    inputs = small.to_inputs("what", images=picture(0))
    with pytest.raises(ValueError, match="a llava model takes image, got audio"):
        small.with_audio(inputs, sound(0))


def test_media_that_do_not_line_up_are_refused(small, tmp_path):
    inputs = small.to_inputs("what", images=picture(0))
    with pytest.raises(ValueError, match="every <image> in the text stands for one image"):
        small.with_images(inputs, [picture(1), picture(2)])
    from mmlens import HookedMLLM
    from mmlens.testing import tiny

    qwen = HookedMLLM.from_pretrained(tiny("qwen2-vl", tmp_path), device="cpu")
    inputs = qwen.to_inputs("what", images=picture(0, 56, 56))
    with pytest.raises(ValueError, match="so that positions line up; with other media row 0 has"):
        qwen.with_images(inputs, picture(1, 112, 56))


@pytest.mark.parametrize("how", ["blur", "grey", "shuffle"])
@pytest.mark.parametrize("area", ["mask", "box"])
def test_only_the_area_is_corrupted(how, area):
    image = picture(3, 40, 30)
    box = (10, 5, 25, 20)
    mask = torch.zeros(30, 40, dtype=torch.bool)
    mask[5:20, 10:25] = True
    before, after = np.array(image), np.array(corrupt(image, mask if area == "mask" else box, how=how, radius=3))
    inside = mask.numpy()
    np.testing.assert_array_equal(after[~inside], before[~inside])
    assert (after[inside] != before[inside]).mean() > 0.5
    if how == "shuffle":
        assert sorted(map(tuple, after[inside].tolist())) == sorted(map(tuple, before[inside].tolist()))
    if how == "grey":
        assert (after[inside] == 128).all()
    if how == "blur":
        assert (
            np.abs(np.diff(after[5:20, 10:25].astype(int), axis=1)).sum()
            < np.abs(np.diff(before[5:20, 10:25].astype(int), axis=1)).sum()
        )


def test_all_of_a_picture_can_be_corrupted_and_a_seed_says_how():
    image = picture(4)
    assert corrupt(image, how="shuffle", seed=1).tobytes() == corrupt(image, how="shuffle", seed=1).tobytes()
    assert corrupt(image, how="shuffle", seed=1).tobytes() != corrupt(image, how="shuffle", seed=2).tobytes()
    assert np.unique(np.array(corrupt(image, how="grey"))).tolist() == [128]
    assert isinstance(corrupt(np.array(image)), Image.Image)


def test_a_splice_has_the_seconds_of_the_other_sound():
    one, two = sound(0, 1.0), sound(1, 1.0)
    spliced = splice(one, two, 0.25, 0.5)
    expected = np.concatenate([one[0][:4000], two[0][4000:8000], one[0][8000:]])
    np.testing.assert_array_equal(spliced.samples, expected)
    assert spliced.rate == 16_000


def test_areas_and_seconds_that_are_not_there_are_refused():
    image = picture(0, 40, 30)
    with pytest.raises(ValueError, match=r"30 high and 40 wide; got a mask \[40, 30\]"):
        corrupt(image, torch.ones(40, 30, dtype=torch.bool))
    with pytest.raises(ValueError, match="with 0 in it"):
        corrupt(image, (50, 0, 60, 10))
    with pytest.raises(ValueError, match="a radius above 0"):
        corrupt(image, radius=0)
    with pytest.raises(ValueError, match="box"):
        corrupt(image, (1, 2, 3))
    with pytest.raises(ValueError, match=r"0 to 0\.5, the first before the last; got 0\.4 to 0\.6"):
        splice(sound(0, 1.0), sound(1, 0.5), 0.4, 0.6)
    with pytest.raises(ValueError, match="at one rate"):
        splice(sound(0), sound(0, rate=8000), 0, 0.1)
