import numpy as np
import pytest
from support import picture, sound

from mmlens.data.unpacking import frames_of, picture_of, side_by_side, sound_of


@pytest.mark.parametrize("milliseconds", [100, 300, 500, 1000, 2000])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_of_a_video_the_frame_of_every_second_is_shown_and_none_twice(milliseconds, length, tmp_path):
    shades = [picture(0, 8, 8).point([5 * frame] * 768) for frame in range(1, length + 1)]
    shades[0].save(tmp_path / "a.gif", save_all=True, append_images=shades[1:], duration=milliseconds)
    video = frames_of(tmp_path / "a.gif", 1.0)
    seconds = range(0, length * milliseconds, 1000)  # in milliseconds; what is on the screen then
    shown = [
        frame for time in seconds for frame in range(length) if frame * milliseconds <= time < (frame + 1) * milliseconds
    ]
    shown = shown if milliseconds < 1000 else list(range(length))
    assert [np.asarray(frame)[0, 0, 0] // 5 - 1 for frame in video.frames] == shown


def test_pictures_stand_side_by_side_at_the_height_of_the_first():
    whole = side_by_side([picture(0, 50, 40), picture(1, 60, 80)])
    assert whole.size == (50 + 30, 40)
    assert np.array_equal(np.asarray(whole)[:, :50], np.asarray(picture(0, 50, 40)))
    assert np.array_equal(np.asarray(whole)[:, 50:], np.asarray(picture(1, 60, 80).resize((30, 40))))


def test_a_cell_is_a_file_or_what_was_decoded_of_it(tmp_path):
    picture(0).save(tmp_path / "a.png")
    assert picture_of({"bytes": None, "path": str(tmp_path / "a.png")}) == str(tmp_path / "a.png")
    cell = {"bytes": (tmp_path / "a.png").read_bytes(), "path": "a.png"}
    assert np.array_equal(np.asarray(picture_of(cell)), np.asarray(picture(0)))
    samples, rate = sound(0)
    decoded = sound_of({"array": samples.tolist(), "sampling_rate": rate, "path": "a.wav"})
    assert decoded.rate == rate and np.array_equal(decoded.samples, samples)
    assert np.array_equal(sound_of((samples, rate)).samples, samples)
