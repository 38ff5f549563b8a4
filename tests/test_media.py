"""Pictures, videos and sounds are read from whatever users have them in, and what can't be shown or played is refused."""

import sys
import wave
import zlib

import numpy as np
import pytest
from PIL import Image
from support import clip, picture, sound

from mmlens.media import Media, Sound, Video, media_per_row, read_image, read_sound, read_video

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
PIXELS[0, 0] = 0, 255, 99


def pixels(image):
    return np.asarray(image)


# ---------------------------------------------------------------- pictures


def test_an_array_becomes_the_picture_of_its_numbers():
    for source in (PIXELS, PIXELS / 255, (PIXELS / 255).astype(np.float32), np.dstack([PIXELS, PIXELS[..., 0]])):
        image = read_image(source)
        assert image.mode == "RGB" and image.size == (9, 7)
        np.testing.assert_array_equal(pixels(image), PIXELS)
    for source in (PIXELS[..., 0], PIXELS[..., :1], PIXELS[..., 0] / 255):
        np.testing.assert_array_equal(pixels(read_image(source)), np.repeat(PIXELS[..., :1], 3, axis=-1))


def test_fractions_are_rounded_to_the_nearest_of_256():
    levels = np.linspace(0, 1, 1001).reshape(7, 143)
    truth = np.array([[int(255 * level + 0.5) for level in row] for row in levels])
    assert np.abs(pixels(read_image(levels))[..., 0] - truth).max() <= (levels * 255 % 1 == 0.5).any()


def test_every_kind_of_pil_image_becomes_rgb():
    grey = picture(0).convert("L")
    for mode in ("RGBA", "L", "P", "CMYK", "1", "RGB"):
        assert read_image(picture(0).convert(mode)).mode == "RGB"
    np.testing.assert_array_equal(pixels(read_image(grey)), np.repeat(pixels(grey)[..., None], 3, axis=-1))


@pytest.mark.parametrize("name", ["image.png", "image.bmp", "image.webp"])
def test_a_files_path_is_read_as_string_or_path(tmp_path, name):
    picture(0).save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    for source in (tmp_path / name, str(tmp_path / name)):
        np.testing.assert_array_equal(pixels(read_image(source)), pixels(picture(0)))


def test_a_home_folder_is_found_by_its_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    picture(0).save(tmp_path / "image.png")
    assert read_image("~/image.png").size == (50, 40)


def test_a_file_is_turned_as_its_camera_says_and_an_image_that_was_opened_stays_as_it_is(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # the top of the scene is at the right
    picture(0).save(tmp_path / "image.png", exif=turned)
    np.testing.assert_array_equal(pixels(read_image(tmp_path / "image.png")), np.rot90(pixels(picture(0)), -1))
    with Image.open(tmp_path / "image.png") as opened:
        np.testing.assert_array_equal(pixels(read_image(opened)), pixels(picture(0)))


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        (PIXELS.transpose(2, 0, 1), ValueError, r"\[height, width, 3 or 4\], got \[3, 7, 9\].*transpose\(1, 2, 0\)"),
        (PIXELS[None], ValueError, r"got \[1, 7, 9, 3\]: give one picture"),
        (PIXELS[..., :2], ValueError, r"got \[7, 9, 2\]"),
        (PIXELS[0, 0], ValueError, r"got \[3\]"),
        (PIXELS[:0], ValueError, r"got \[0, 9, 3\]"),
        (PIXELS.astype(np.int64), ValueError, r"uint8 .* got int64: make them uint8"),
        (PIXELS > 9, ValueError, "uint8 .* got bool"),
        (PIXELS.astype(float), ValueError, r"fractions \(0 to 1\), got numbers from 0 to 255: scale"),
        (PIXELS / 255 - 0.5, ValueError, "got numbers from -0.5 to"),
        (np.where(PIXELS > 250, np.nan, PIXELS / 255), ValueError, r"finite numbers, got \d+ that are NaN"),
        (np.full((2, 2), np.inf), ValueError, "finite numbers, got 4 that are NaN or infinite"),
        (Image.new("RGB", (0, 5)), ValueError, "has pixels, got one of 0 x 5"),
        (None, TypeError, "got a NoneType: give"),
        (b"bytes", TypeError, "got a bytes"),
        (3.5, TypeError, "got a float"),
        ("https://example.org/cat.png", ValueError, "got the address 'https://example.org/cat.png': download"),
        ("data:image/png;base64,AAAA", ValueError, "download it first"),
        ("missing.png", FileNotFoundError, "no picture at missing.png: look at the path"),
        (".", FileNotFoundError, "that is a folder, give a file in it"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_picture_is_refused(source, error, says):
    with pytest.raises(error, match=says):
        read_image(source)


def bomb(path):
    """Write a PNG of a hundred bytes that says it is 60,000 x 60,000."""

    def chunk(name, data):
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )
    return path


def test_a_file_that_is_damaged_no_picture_or_dangerously_large_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png is not a picture that Pillow can read: give"):
        read_image(tmp_path / "text.png")
    picture(0).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    with pytest.raises(ValueError, match=r"half\.png is damaged or too large .*: save it again"):
        read_image(tmp_path / "half.png")
    with Image.open(tmp_path / "half.png") as opened, pytest.raises(ValueError, match=r"damaged .*: save it again"):
        read_image(opened)
    with pytest.raises(ValueError, match=r"bomb\.png is damaged or too large .*3600000000 pixels"):
        read_image(bomb(tmp_path / "bomb.png"))


# ---------------------------------------------------------------- videos


def test_a_video_is_its_frames_however_they_are_given():
    frames = clip(0)
    stacked = np.stack([pixels(frame) for frame in frames])
    for source, fps in [
        (frames, None),
        (tuple(frames), None),
        (stacked, None),
        (list(stacked), None),
        (stacked / 255, None),
        ((frames, 5), 5.0),
        ((stacked, 2.5), 2.5),
        ((stacked, np.float32(2.5)), 2.5),
        (Video(tuple(frames), 4.0), 4.0),
        (Video(tuple(frames)), None),
    ]:
        video = read_video(source)
        assert video.fps == fps and len(video.frames) == 4
        np.testing.assert_array_equal(np.stack([pixels(frame) for frame in video.frames]), stacked)


@pytest.mark.parametrize("name", ["clip.gif", "clip.webp", "clip.png"])
def test_an_animation_is_read_with_its_own_rate(tmp_path, name):
    flat = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if name.endswith("webp") else {}
    flat[0].save(tmp_path / name, save_all=True, append_images=flat[1:], duration=200, **options)
    video = read_video(str(tmp_path / name))
    assert video.fps == 5.0
    np.testing.assert_array_equal([pixels(f) for f in video.frames], [pixels(f) for f in flat])
    assert read_video((tmp_path / name, 2)).fps == 2.0


def test_a_still_picture_is_a_video_of_one_frame_without_a_rate(tmp_path):
    picture(0).save(tmp_path / "image.png")
    video = read_video(tmp_path / "image.png")
    assert len(video.frames) == 1 and video.fps is None


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ([], ValueError, "at least one frame, got none"),
        (np.zeros((0, 4, 4, 3), dtype=np.uint8), ValueError, "at least one frame, got none"),
        (PIXELS, ValueError, r"\[frame, height, width, channel\], got \[7, 9, 3\].*images= for one picture"),
        ([picture(0), picture(0, 30, 30)], ValueError, r"one size, got \[\(30, 30\), \(50, 40\)\]: resize"),
        ((clip(0), 0), ValueError, "frames a second, above 0; got 0"),
        ((clip(0), -1.5), ValueError, "above 0; got -1.5"),
        ((clip(0), float("nan")), ValueError, "above 0; got nan"),
        (Video(tuple(clip(0)), 0.0), ValueError, "above 0; got 0"),
        (picture(0), TypeError, "got a Image"),
        (5, TypeError, "got a int: give its frames"),
        ([picture(0), None], TypeError, "got a NoneType"),
        ("missing.mp4", FileNotFoundError, "no video at missing.mp4"),
        ("https://example.org/clip.mp4", ValueError, "got the address"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_video_is_refused(source, error, says):
    with pytest.raises(error, match=says):
        read_video(source)


def test_a_damaged_animation_is_refused(tmp_path):
    frames = [picture(seed) for seed in range(3)]
    frames[0].save(tmp_path / "whole.png", save_all=True, append_images=frames[1:], duration=100)
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"video .*half\.png is damaged or too large"):
        read_video(tmp_path / "half.png")


def test_a_film_without_pyav_is_refused_and_says_what_helps(tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(64))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match="pip install av, or give its frames"):
        read_video(tmp_path / "clip.mp4")


def test_a_film_is_read_by_pyav(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for level in (20, 120, 220):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), level, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    video = read_video(tmp_path / "clip.mp4")
    assert video.fps == 5.0 and [round(pixels(frame).mean(), -1) for frame in video.frames] == [20, 120, 220]
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(ValueError, match="not a video that PyAV can read"):
        read_video(tmp_path / "text.mp4")


# ---------------------------------------------------------------- sounds


def wav(path, channels, rate):
    """Write [sample, channel] fractions as 16 bits, by the standard library."""
    with wave.open(str(path), "wb") as file:
        file.setparams((channels.shape[1], 2, rate, len(channels), "NONE", ""))
        file.writeframes(np.round(channels * 32768).clip(-32768, 32767).astype("<i2").tobytes())
    return path


def test_a_sound_is_its_samples_and_its_rate_however_they_are_given():
    samples, rate = sound(0, seconds=0.02)
    for source, truth in [
        (samples, None),
        (samples.astype(np.float64), None),
        (samples.tolist(), None),
        ((samples, rate), rate),
        ((samples, np.int64(rate)), rate),
        ((samples, float(rate)), rate),
        ((samples.tolist(), rate), rate),
        (Sound(samples, rate), rate),
        (Sound(samples), None),
    ]:
        heard = read_sound(source)
        assert heard.rate == truth and heard.samples.dtype == np.float32
        np.testing.assert_array_equal(heard.samples, samples)


def test_a_tensor_is_an_array_of_samples():
    torch = pytest.importorskip("torch")
    samples, rate = sound(0, seconds=0.02)
    np.testing.assert_array_equal(read_sound((torch.tensor(samples)[None], rate)).samples, samples)
    with pytest.raises(ValueError, match="got something else"):
        read_sound(torch.tensor(samples, requires_grad=True))


def test_channels_are_averaged_whichever_axis_they_are_on():
    left, right = sound(0, seconds=0.02)[0], sound(1, seconds=0.02)[0]
    truth = np.array([(a + b) / 2 for a, b in zip(left.tolist(), right.tolist(), strict=True)])
    for source in (np.stack([left, right]), np.stack([left, right], axis=1), [left.tolist(), right.tolist()]):
        np.testing.assert_allclose(read_sound(source).samples, truth, atol=1e-7)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_wav_file_is_read_with_its_own_rate(tmp_path, channels):
    pytest.importorskip("soundfile")
    fractions = np.stack([sound(seed, seconds=0.02)[0] for seed in range(channels)], axis=1)
    fractions = np.round(fractions * 32768) / 32768
    path = wav(tmp_path / "sound.wav", fractions, 22_050)
    for source, rate in ((path, 22_050), (str(path), 22_050), ((path, 8_000), 8_000)):
        heard = read_sound(source)
        assert heard.rate == rate
        np.testing.assert_allclose(heard.samples, fractions.mean(1), atol=1e-7)


def test_a_file_without_soundfile_is_refused_and_says_what_helps(tmp_path, monkeypatch):
    path = wav(tmp_path / "sound.wav", np.zeros((9, 1)), 8_000)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ValueError, match=r"pip install soundfile, or give \(samples, rate\)"):
        read_sound(path)


def test_a_file_that_is_no_sound_is_refused(tmp_path):
    pytest.importorskip("soundfile")
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(ValueError, match=r"text\.wav is not a sound that libsndfile can read .*: give a WAV"):
        read_sound(tmp_path / "text.wav")
    with pytest.raises(FileNotFoundError, match="no sound at"):
        read_sound(tmp_path)


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ((16_000, np.zeros(9)), ValueError, r"got \(rate, samples\) with a rate of 16000: swap"),
        ((np.zeros(9), 0), ValueError, "whole number above 0; got 0"),
        ((np.zeros(9), -8000), ValueError, "whole number above 0; got -8000"),
        ((np.zeros(9), 44_100.5), ValueError, "whole number above 0; got 44100.5"),
        ((np.zeros(9), float("inf")), ValueError, "whole number above 0; got inf"),
        (np.zeros(0), ValueError, r"got \[0\]: give at least one sample"),
        (np.zeros((0, 2)), ValueError, r"got \[0, 2\]"),
        (np.zeros((2, 2, 2)), ValueError, r"got \[2, 2, 2\]"),
        (np.zeros(9, dtype=np.int16), ValueError, r"fractions \(-1 to 1\), got int16: divide by the full scale"),
        (np.array(["a", "b"]), ValueError, "fractions"),
        (np.full(9, 3000.0), ValueError, "got up to 3000: divide"),
        (np.array([0.0, np.nan, np.inf]), ValueError, "finite numbers, got 2 that"),
        ([[0.1, 0.2], [0.1]], ValueError, "got something else"),
        (Sound(np.zeros(0, dtype=np.float32)), ValueError, "at least one sample"),
        (None, TypeError, "got a NoneType"),
        (5, TypeError, "got a int"),
        ("https://example.org/a.wav", ValueError, "got the address"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_sound_is_refused(source, error, says):
    with pytest.raises(error, match=says):
        read_sound(source)


# ---------------------------------------------------------------- which row a medium belongs to

A, B = picture(0), picture(1)
HEARD = sound(0, seconds=0.02)


def shapes(rows):
    return [tuple(len(kind) for kind in (row.images, row.videos, row.audio)) for row in rows]


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ({}, (0, 0, 0)),
        (dict(images=A), (1, 0, 0)),
        (dict(images=[A, B]), (2, 0, 0)),
        (dict(images=PIXELS), (1, 0, 0)),
        (dict(images=[]), (0, 0, 0)),
        (dict(videos=clip(0)), (0, 1, 0)),
        (dict(videos=[clip(0), clip(1)]), (0, 2, 0)),
        (dict(videos=(clip(0), 2)), (0, 1, 0)),
        (dict(videos=[(clip(0), 2)]), (0, 1, 0)),
        (dict(videos=[np.stack([PIXELS] * 3)] * 2), (0, 2, 0)),
        (dict(videos=[PIXELS] * 2), (0, 1, 0)),
        (dict(audio=HEARD), (0, 0, 1)),
        (dict(audio=HEARD[0]), (0, 0, 1)),
        (dict(audio=HEARD[0].tolist()), (0, 0, 1)),
        (dict(audio=[HEARD, HEARD[0]]), (0, 0, 2)),
        (dict(images=A, videos=clip(0), audio=HEARD), (1, 1, 1)),
    ],
)
def test_a_single_text_has_one_medium_of_a_kind_or_a_list(given, counts):
    assert shapes(media_per_row(1, single=True, **given)) == [counts]


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ({}, [0, 0, 0]),
        (dict(images=[A, None, [A, B]]), [1, 0, 2]),
        (dict(images=[[], PIXELS, B]), [0, 1, 1]),
        (dict(videos=[clip(0), None, [clip(0), (clip(1), 2)]]), [1, 0, 2]),
        (dict(audio=[HEARD, None, [HEARD, HEARD[0]]]), [1, 0, 2]),
        (dict(audio=(HEARD[0], HEARD, None)), [1, 1, 0]),
    ],
)
def test_several_texts_have_one_entry_each(given, counts):
    assert [sum(row) for row in shapes(media_per_row(3, single=False, **given))] == counts


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (dict(images=[A]), "with 2 texts, images is a list with one entry .* per text; got 1 entries"),
        (dict(images=A), "got one image"),
        (dict(images=[A, B, A]), "got 3 entries"),
        (dict(videos=clip(0)), r"videos is a list .* \(video, list or None\) .*; got one video"),
        (dict(audio=HEARD), r"audio is a list .* \(sound, list or None\) .*; got one sound"),
        (dict(audio=HEARD[0]), "got one sound"),
    ],
)
def test_entries_that_do_not_match_the_texts_are_refused(given, says):
    with pytest.raises(ValueError, match=says):
        media_per_row(2, single=False, **given)


def test_media_are_counted_images_first_then_videos_then_sounds():
    row = media_per_row(1, single=True, images=[A, B], videos=clip(0), audio=HEARD)[0]
    assert row.all() == (*row.images, *row.videos, *row.audio) and len(row.all()) == 4
    assert Media().all() == ()
