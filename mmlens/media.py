"""Pictures, sounds and videos as users have them, and which row of a batch each belongs to."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError


@dataclass(frozen=True, eq=False)
class Sound:
    """One channel of sound: `samples` (float32, in -1 to 1) at `rate` samples a second; None is the model's own rate."""

    samples: np.ndarray
    rate: int | None = None


@dataclass(frozen=True, eq=False)
class Video:
    """The `frames` that a model is shown, in order, at `fps` frames a second; None is the model's own rate."""

    frames: tuple[Image.Image, ...]
    fps: float | None = None


@dataclass(frozen=True, eq=False)
class Media:
    """What one row shows and plays, each kind in the order of its placeholders."""

    images: tuple[Image.Image, ...] = ()
    videos: tuple[Video, ...] = ()
    audio: tuple[Sound, ...] = ()

    def all(self) -> tuple[Any, ...]:
        """Return images, then videos, then sounds: `Inputs` numbers media in this order."""
        return (*self.images, *self.videos, *self.audio)


def media_per_row(rows: int, *, single: bool, images: Any = None, videos: Any = None, audio: Any = None) -> list[Media]:
    """Return the media of each of `rows` texts: each kind is one, a list for a `single` text, or one entry per row.

    Raises ValueError where entries and rows do not match, and what `read_image`, `read_video` and `read_sound` raise.
    """
    per_row = zip(
        _per_row(images, rows, single, "images", "image", read_image, _is_image),
        _per_row(videos, rows, single, "videos", "video", read_video, _is_video),
        _per_row(audio, rows, single, "audio", "sound", read_sound, _is_sound),
        strict=True,
    )
    return [Media(*row) for row in per_row]


def _per_row(
    media: Any, rows: int, single: bool, name: str, one: str, read: Callable[[Any], Any], is_one: Callable[[Any], bool]
) -> list[tuple[Any, ...]]:
    if media is None:
        return [()] * rows
    if single:
        several = isinstance(media, (list, tuple)) and not is_one(media)
        return [tuple(read(entry) for entry in media) if several else (read(media),)]
    if not isinstance(media, (list, tuple)) or is_one(media) or len(media) != rows:
        got = f"{len(media)} entries" if isinstance(media, (list, tuple)) and not is_one(media) else f"one {one}"
        raise ValueError(f"with {rows} texts, {name} is a list with one entry ({one}, list or None) per text; got {got}")
    return [entry for each in media for entry in _per_row(each, 1, True, name, one, read, is_one)]


def _is_image(source: Any) -> bool:
    return False


def _is_video(source: Any) -> bool:
    """Return whether a sequence is one video: its frames, or (frames, fps). A list of paths is a list of videos."""
    return _is_pair(source) or (
        isinstance(source, (list, tuple))
        and all(isinstance(one, Image.Image) or (isinstance(one, np.ndarray) and one.ndim <= 3) for one in source)
    )


def _is_sound(source: Any) -> bool:
    """Return whether a sequence is one sound: (samples, rate), or plain numbers."""
    return _is_pair(source) or (isinstance(source, (list, tuple)) and len(source) > 0 and isinstance(source[0], Real))


def _is_pair(source: Any) -> bool:
    """Return whether this is (frames, fps) or (samples, rate): a rate stands behind what is no number itself."""
    return isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], Real) and not isinstance(source[0], Real)


def read_image(source: Any) -> Image.Image:
    """Return a picture in RGB: of a PIL image, an array [height, width, channel], or a file's path (turned upright).

    Raises TypeError for another kind of thing, FileNotFoundError where there is no file, ValueError where it is no
    picture, damaged, or too large to be safe, and for an array of other numbers.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        try:
            return _rgb(source)
        except (OSError, SyntaxError) as error:  # Pillow reads a file's pixels when they are first asked for
            raise ValueError(f"this picture's file is damaged ({error}): save it again") from error
    if not isinstance(source, (str, Path)):
        raise TypeError(
            f"an image is a PIL image, an array [height, width, 3] or a file's path, got a {type(source).__name__}: "
            "give one of those (a tensor by .numpy())"
        )
    path = _file(source, "picture")
    try:
        with Image.open(path) as opened:
            return _rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture that Pillow can read: give a PNG, JPEG, WebP or the like") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"the picture {path} is damaged or too large ({error}): save it again") from error


def _rgb(picture: Image.Image) -> Image.Image:
    """Return a picture in RGB. Raises ValueError for one without pixels."""
    if 0 in picture.size:
        raise ValueError(f"a picture has pixels, got one of {picture.width} x {picture.height}: give another")
    return picture.convert("RGB")


def _from_array(pixels: np.ndarray) -> Image.Image:
    """Return a picture of an array of uint8, or of numbers from 0 to 1."""
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4)) or 0 in pixels.shape:
        channels_first = pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and 0 not in pixels.shape
        raise ValueError(
            f"pixels are [height, width] or [height, width, 3 or 4], got {list(pixels.shape)}: "
            + ("put the channels last, by pixels.transpose(1, 2, 0)" if channels_first else "give one picture in that shape")
        )
    if np.issubdtype(pixels.dtype, np.floating):
        if not np.isfinite(pixels).all():
            count = int((~np.isfinite(pixels)).sum())
            raise ValueError(
                f"pixels are finite numbers, got {count} that are NaN or infinite: look at where they came from"
            )
        if pixels.min() < 0 or pixels.max() > 1:
            raise ValueError(
                f"pixels are uint8 (0 to 255) or fractions (0 to 1), got numbers from {pixels.min():g} to {pixels.max():g}: "
                "scale them, or make them uint8"
            )
        pixels = (pixels * 255).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(
            f"pixels are uint8 (0 to 255) or fractions (0 to 1), got {pixels.dtype}: make them uint8 by .astype(np.uint8)"
        )
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 and pixels.ndim == 3 else pixels).convert("RGB")


def read_video(source: Any) -> Video:
    """Return a video: of a `Video`, a list of pictures, an array [frame, height, width, channel], (either, fps), or a file.

    A GIF, WebP or PNG animation is read by Pillow, other files by PyAV (`pip install av`). Every frame that is given is
    shown: choose frames before. Raises what `read_image` raises, and ValueError for a video without frames.
    """
    fps = None
    if isinstance(source, Video):
        source, fps = source.frames, source.fps
    elif _is_pair(source):
        source, fps = source
    if fps is not None and not 0 < fps < np.inf:
        raise ValueError(f"a video's second entry is its frames a second, above 0; got {fps}: give (frames, fps)")
    if isinstance(source, (str, Path)):
        frames, own = _read_frames(_file(source, "video"))
        fps = own if fps is None else fps
    elif isinstance(source, np.ndarray) and source.ndim != 4:
        raise ValueError(
            f"a video's array is [frame, height, width, channel], got {list(source.shape)}: give a list of frames where "
            "they have no channels, or images= for one picture"
        )
    elif isinstance(source, (list, tuple, np.ndarray)):
        frames = tuple(read_image(frame) for frame in source)
    else:
        raise TypeError(
            f"a video is a list of pictures, an array [frame, height, width, channel] or a file's path, got a "
            f"{type(source).__name__}: give its frames"
        )
    if not frames:
        raise ValueError("a video has at least one frame, got none: give the frames that the model shall see")
    if len({frame.size for frame in frames}) > 1:
        sizes = sorted({frame.size for frame in frames})
        raise ValueError(f"a video's frames have one size, got {sizes}: resize them to one")
    return Video(frames, None if fps is None else float(fps))


def _read_frames(path: Path) -> tuple[tuple[Image.Image, ...], float | None]:
    try:
        with Image.open(path) as opened:
            frames = tuple(frame.convert("RGB") for frame in ImageSequence.Iterator(opened))
            milliseconds = opened.info.get("duration")
            return frames, 1000 / milliseconds if milliseconds else None
    except UnidentifiedImageError:
        pass
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"the video {path} is damaged or too large ({error}): save it again") from error
    try:
        import av  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError as error:
        raise ValueError(f"{path} is no animation that Pillow can read: pip install av, or give its frames") from error
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate) if stream.average_rate else None
            return tuple(frame.to_image() for frame in container.decode(stream)), rate
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} is not a video that PyAV can read ({error}): give its frames") from error


def read_sound(source: Any) -> Sound:
    """Return a sound: of a `Sound`, samples (an array of fractions), (samples, rate), or a file's path.

    Several channels are averaged. Files are read by soundfile (`pip install soundfile`). Raises FileNotFoundError and
    ValueError as `read_image` does, and ValueError for samples that are empty, not finite, or no fractions.
    """
    rate = None
    if isinstance(source, Sound):
        source, rate = source.samples, source.rate
    elif _is_pair(source):
        source, rate = source
    elif isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], Real) and not isinstance(source[1], Real):
        raise ValueError(
            f"a sound with its rate is (samples, rate), got (rate, samples) with a rate of {source[0]}: swap them"
        )
    if rate is not None and (not 0 < rate < np.inf or rate != int(rate)):
        raise ValueError(f"a sound's second entry is its samples a second, a whole number above 0; got {rate}")
    if isinstance(source, (str, Path)):
        source, own = _read_samples(_file(source, "sound"))
        rate = own if rate is None else rate
    return Sound(_one_channel(source), None if rate is None else int(rate))


def _read_samples(path: Path) -> tuple[np.ndarray, int]:
    try:
        import soundfile  # an extra, and half a second for what most users never hear
    except (ImportError, OSError) as error:  # OSError: it is there, and libsndfile is not
        raise ValueError(f"{path} is read by soundfile: pip install soundfile, or give (samples, rate)") from error
    try:
        return soundfile.read(path, dtype="float32")
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} is not a sound that libsndfile can read ({error}): give a WAV, FLAC or MP3") from error


def _one_channel(source: Any) -> np.ndarray:
    """Return samples as one row of float32, the mean of the channels where there are several."""
    if not isinstance(source, (list, tuple)) and not hasattr(source, "__array__"):
        raise TypeError(
            f"a sound is an array of samples, (samples, rate) or a file's path, got a {type(source).__name__}: give one of "
            "those"
        )
    try:
        samples = np.asarray(source)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of different lengths, a tensor that wants a gradient
        raise ValueError(f"samples are one row of numbers, got something else ({error}): give one sound") from error
    if samples.ndim not in (1, 2) or not samples.size:
        raise ValueError(
            f"samples are one row of numbers (or one per channel), got {list(samples.shape)}: give at least one sample"
        )
    if not np.issubdtype(samples.dtype, np.floating) or samples.dtype == np.longdouble:
        raise ValueError(
            f"samples are fractions (-1 to 1), got {samples.dtype}: divide by the full scale, as in "
            "samples.astype(np.float32) / 32768 for 16 bits"
        )
    if not np.isfinite(samples).all():
        count = int((~np.isfinite(samples)).sum())
        raise ValueError(f"samples are finite numbers, got {count} that are NaN or infinite: look at where they came from")
    if samples.ndim == 2:
        samples = samples.mean(int(np.argmin(samples.shape)))
    if np.abs(samples).max() > 8:
        raise ValueError(f"samples are fractions (-1 to 1), got up to {np.abs(samples).max():g}: divide by the full scale")
    return samples.astype(np.float32)


def _file(source: str | Path, kind: str) -> Path:
    if str(source).startswith(("http://", "https://", "data:")):
        raise ValueError(
            f"a {kind} is a file here or what it holds, got the address {str(source)[:80]!r}: download it first"
        )
    path = Path(source).expanduser()
    if not path.is_file():
        got = ": that is a folder, give a file in it" if path.is_dir() else ": look at the path"
        raise FileNotFoundError(f"no {kind} at {path}{got}")
    return path
