"""Media as data sets keep them, made into what `HookedMLLM.to_inputs` takes."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmlens.media import Sound, Video, read_image, read_sound, read_video


def picture_of(value: Any) -> Any:
    """Return a picture, or its file, of a data set's cell: those themselves, or a mapping with its bytes or its path."""
    if isinstance(value, dict):
        return Image.open(BytesIO(value["bytes"])) if value.get("bytes") else value["path"]
    return value


def sound_of(value: Any) -> Sound:
    """Return the sound of a cell: a mapping with a file's bytes or path (not decoded), or with its samples and rate.

    Raises ValueError where it cannot be read.
    """
    if not isinstance(value, dict):
        return read_sound(value)
    if value.get("array") is not None:
        return read_sound((np.asarray(value["array"]), value["sampling_rate"]))
    if value.get("bytes") is None:
        return read_sound(value["path"])
    import soundfile  # half a second for what most users never hear

    try:
        samples, rate = soundfile.read(BytesIO(value["bytes"]), dtype="float32")
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"the sound {value.get('path')} is damaged ({error}): leave its row out, or download it again"
        ) from error
    return read_sound((samples, rate))


def frames_of(path: Path, fps: float) -> Video:
    """Return the frames that a video shows every 1 / `fps` seconds, and all where its own rate is not known or lower."""
    video = read_video(path)
    if video.fps is None or video.fps <= fps:
        return video
    count = max(1, int(np.ceil(len(video.frames) * fps / video.fps)))
    return Video(tuple(video.frames[int(step * video.fps / fps)] for step in range(count)), fps)


def side_by_side(pictures: Sequence[Any]) -> Image.Image:
    """Return several pictures as one, from left to right, each as high as the first."""
    read = [read_image(picture) for picture in pictures]
    height = read[0].height
    scaled = [one if one.height == height else one.resize((round(one.width * height / one.height), height)) for one in read]
    whole = Image.new("RGB", (sum(one.width for one in scaled), height))
    left = 0
    for one in scaled:
        whole.paste(one, (left, 0))
        left += one.width
    return whole
