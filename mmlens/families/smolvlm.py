"""SmolVLM 2: Idefics3's tiles, and videos whose frames are pictures of one tile behind the time at which they are shown.

transformers loads the video part of its processor from torchvision alone. Where that is missing, the part is `Pictures`,
which does the same to a list of pictures; text and placeholders stay transformers' own code.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.utils.import_utils import is_torchvision_available
from transformers.video_utils import VideoMetadata

from mmlens.families import idefics3
from mmlens.families.family import Family, label, one_of, special_ids, tile_entries, with_placeholders
from mmlens.families.frames import Frames, WithFrames, written_settings
from mmlens.grid import Tiles
from mmlens.inputs import Modality, Row
from mmlens.media import Media, Video

RATE = 24  # frames a second, where neither the video nor the processor says: transformers' own
VIDEO: dict[str, Any] = {  # what transformers' video processor has where the files say nothing
    "video_processor_type": "SmolVLMVideoProcessor",
    "size": {"longest_edge": 4 * 364},
    "max_image_size": {"longest_edge": 364},
    "resample": 1,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "rescale_factor": 1 / 255,
    **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_pad"), True),
    "do_sample_frames": False,
    "num_frames": None,
    "fps": None,
}


class Pictures(Frames):
    """What resizes a video's frames, as transformers' own video processor does; `settings` are those that it has."""

    def __init__(self, **settings: Any) -> None:
        own = {name: value for name, value in settings.items() if name in VIDEO and value is not None}
        sampling = settings.get("video_sampling")
        if sampling:  # how published checkpoints say it
            own = {"size": sampling["video_size"], **own, "num_frames": sampling["max_frames"], "fps": sampling["fps"]}
        super().__init__({**VIDEO, **own, "video_processor_type": VIDEO["video_processor_type"]})

    def __call__(self, videos: Any, *, video_metadata: Sequence[Any], **options: Any) -> dict[str, Any]:
        """Return pixels [video, frame, channel, height, width], shorter videos filled up with zeros, and the metadata."""
        known = ("size", "max_image_size", "resample", "image_mean", "image_std", "rescale_factor")
        chosen = {name: self.settings[name] for name in (*known, "do_resize", "do_rescale", "do_normalize")}
        as_pictures: Any = SmolVLMImageProcessorPil(**chosen, do_image_splitting=False, do_pad=True)
        made = as_pictures([list(video) for video in videos], return_tensors="pt")
        return {
            "pixel_values": made["pixel_values"],
            "pixel_attention_mask": made["pixel_attention_mask"],
            "video_metadata": [VideoMetadata(**dict(metadata)) for metadata in video_metadata],
        }


class SmolVLMProcessor(WithFrames, processing_smolvlm.SmolVLMProcessor):
    """transformers' own processor with `Pictures` for its video part; it is saved under the same name."""


def load_processor(pretrained_model_name_or_path: str | Path, **source: Any) -> Any:
    """Return the processor in a folder or at a hub id: transformers' own where torchvision is installed, or ours."""
    path = str(pretrained_model_name_or_path)
    if is_torchvision_available():
        return AutoProcessor.from_pretrained(path, **source)
    written, video = written_settings(path, **source)
    made: Any = SmolVLMProcessor(
        AutoImageProcessor.from_pretrained(path, **source),
        AutoTokenizer.from_pretrained(path, **source),
        Pictures(**(video or {})),
        image_seq_len=written.get("image_seq_len", 169),
        chat_template=written.get("chat_template"),
    )
    return made


def settle(processor: Any, config: Any) -> None:
    """Do what `idefics3.settle` does, and raise UnsupportedModel unless frames have the size of a picture's tiles."""
    idefics3.settle(processor, config)
    frames, tile = processor.video_processor, dict(processor.image_processor.max_image_size)["longest_edge"]
    one_of("video_processor.do_resize", frames.do_resize, (True,))
    one_of("video_processor.max_image_size", dict(frames.max_image_size)["longest_edge"], (tile,))


def encode(processor: Any, text: str, media: Media) -> Row:
    """Return `text` with its images and videos as one row; missing placeholders are put in front, the images' first."""
    images, videos = list(media.images), list(media.videos)
    text = with_placeholders(text, len(videos), kind="video", token=processor.video_token)
    text = with_placeholders(text, len(images), kind="image", token=processor.image_token)
    shown: dict[str, Any] = {"images": [images]} if images else {}
    if videos:
        shown["videos"] = [list(video.frames) for video in videos]
        shown |= dict(do_sample_frames=False, video_metadata=[_metadata(processor, video) for video in videos])
    encoded = processor(text=[text], return_tensors="pt", **shown)
    places = (
        *(idefics3.tiles(processor, image.size) for image in images),
        *(video_tiles(processor, video) for video in videos),
    )
    tokens = encoded["input_ids"][0].tolist()
    order = _order(processor, text, len(images))
    modality, number = label(
        tokens,
        placeholders={processor.image_token_id: "image"},  # a video's frames have it too
        lengths={"image": [len(places[medium]) for medium in order]},
        special=special_ids(processor.tokenizer),
    )
    medium = [order[index] if index >= 0 else -1 for index in number]
    held: list[Modality] = ["video" if own >= len(images) else kind for own, kind in zip(medium, modality, strict=True)]
    tower = _tower(processor, encoded, images, places, order)
    entries = tile_entries(medium, places)
    kinds: list[Modality] = ["video" if own >= len(images) else "image" for own in order for _ in places[own].grids]
    inside = idefics3.seen(processor, tower, kinds)
    return Row(text, tokens, held, medium, tower, places, media.all(), entries=entries, inside=inside)


def video_tiles(processor: Any, video: Video) -> Tiles:
    """Return where the positions of a video lie: each frame is shown whole, in one tile."""
    size = video.frames[0].size
    whole = (0.0, 0.0, 1.0, 1.0)
    frames = [(index, index + 1) for index in range(len(video.frames))]
    return Tiles(tuple(idefics3.part(processor, whole, size, frames=one) for one in frames), size)


def _metadata(processor: Any, video: Video) -> dict[str, Any]:
    """Return what transformers is told of a video: every frame is shown, at the processor's rate unless it has its own."""
    rate = video.fps or getattr(processor.video_processor, "fps", None) or RATE
    count = len(video.frames)
    return {"total_num_frames": count, "fps": rate, "frames_indices": list(range(count))}


def _order(processor: Any, text: str, images: int) -> list[int]:
    """Return the numbers of the media in the order of their placeholders: images are numbered before videos."""
    tokens = (processor.image_token, processor.video_token)
    found = re.findall("|".join(map(re.escape, tokens)), text)
    waiting = {tokens[0]: iter(range(images)), tokens[1]: iter(range(images, len(found)))}
    return [next(waiting[token]) for token in found]


def _tower(processor: Any, encoded: Any, images: list[Any], places: Sequence[Tiles], order: list[int]) -> dict[str, Any]:
    """Return the pixels of all tiles and frames in the order of the text, which is the order that the model takes them in.

    transformers' processor gives a text's pictures or its videos, and where it has both the videos only.
    """
    if not order:
        return {}
    of_images = encoded
    if images and len(images) < len(places):
        of_images = processor.image_processor([images], return_tensors="pt")
    tower = {}
    for name in ("pixel_values", "pixel_attention_mask"):
        if name not in encoded:
            continue
        counts = [len(place.grids) for place in places]
        parts = list(of_images[name][0].split(counts[: len(images)])) if images else []
        parts += [frames[:count] for frames, count in zip(encoded[name], counts[len(images) :], strict=False)]
        tower[name] = torch.cat([parts[medium] for medium in order])[None]
    return tower


FAMILY = Family(
    model_type="smolvlm",
    model_class="SmolVLMForConditionalGeneration",
    takes=("image", "video"),
    adapter=lambda config: idefics3.Idefics3Adapter,
    renames=idefics3.FAMILY.renames,
    dead=idefics3.FAMILY.dead,
    check=idefics3.check,
    settle=settle,
    encode=encode,
    live_layers=idefics3.FAMILY.live_layers,
    load_processor=load_processor,
)
