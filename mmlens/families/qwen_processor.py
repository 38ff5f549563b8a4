"""Qwen-VL's processors where torchvision is missing: transformers' own, with the frames of a video prepared by Pillow.

transformers' processor loads its video part from torchvision alone. Here it is given `Patches` instead, which does the same
to a list of pictures; text, placeholders, timestamps and token types stay transformers' own code. Where torchvision is
installed, transformers' whole processor is used.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.utils.import_utils import is_torchvision_available
from transformers.video_utils import VideoMetadata

from mmlens.families.frames import Frames, WithFrames, written_settings

Resize = Callable[["Patches", int, int, int], tuple[int, int]]


class Patches(Frames):
    """What makes patches of a video's frames; `resize(self, frames, height, width)` says which size they are shown in."""

    def __init__(self, resize: Resize, **settings: Any) -> None:
        super().__init__(settings)
        self._resize = resize

    def __call__(
        self, videos: Any, *, video_metadata: Sequence[Any], do_sample_frames: bool = False, **options: Any
    ) -> dict[str, Any]:
        """Return patches [patch, colours of a patch], the grid (time, height, width) of each video, and its metadata.

        Raises ValueError where frames would have to be chosen, and for other options of transformers' video processor.
        """
        unknown = sorted(set(options) - {"return_metadata", "return_tensors"}) + ["do_sample_frames"] * bool(
            do_sample_frames
        )
        if unknown:
            raise ValueError(
                "without torchvision every frame that is given is shown, by the processor's own settings; got "
                f"{', '.join(unknown)}: choose the frames before, or change processor.video_processor.settings"
            )
        made = [self._patches(video) for video in videos]
        return {
            "pixel_values_videos": torch.cat([patches for patches, _ in made]),
            "video_grid_thw": torch.tensor([grid for _, grid in made]),
            "video_metadata": [VideoMetadata(**dict(metadata)) for metadata in video_metadata],
        }

    def _patches(self, video: Sequence[Image.Image]) -> tuple[torch.Tensor, list[int]]:
        width, height = video[0].size
        if self.do_resize:
            height, width = self._resize(self, len(video), height, width)
        filters = Image.Resampling(self.resample)
        frames = [frame if frame.size == (width, height) else frame.resize((width, height), filters) for frame in video]
        pixels = np.stack([np.asarray(frame.convert("RGB"), dtype=np.float32) for frame in frames])
        if self.do_rescale:
            pixels = pixels * np.float32(self.rescale_factor)
        if self.do_normalize:
            pixels = (pixels - np.float32(self.image_mean)) / np.float32(self.image_std)
        together, patch, merge = self.temporal_patch_size, self.patch_size, self.merge_size
        pixels = np.concatenate([pixels, np.repeat(pixels[-1:], -len(pixels) % together, axis=0)])
        grid = [len(pixels) // together, height // patch, width // patch]
        cut = (grid[0], together, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch, 3)
        patches = pixels.reshape(cut).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
        return torch.from_numpy(patches.reshape(math.prod(grid), -1).copy()), grid


def assemble(real: type, *, image_processor: Any, tokenizer: Any, frames: Frames, chat_template: str | None) -> Any:
    """Return a processor that is `real` in all but its video part, and is saved under its name."""
    made: Any = type(real.__name__, (WithFrames, real), {"__doc__": real.__doc__, "__init__": real.__init__})
    return made(image_processor, tokenizer, frames, chat_template=chat_template)


def load(real: type, resize: Resize, defaults: dict[str, Any], **source: Any) -> Any:
    """Return the processor that lies in a folder or at a hub id: transformers' own, or, without torchvision, ours.

    `defaults` are what transformers' video processor has where the files say nothing.
    """
    if is_torchvision_available():
        return AutoProcessor.from_pretrained(**source)
    path = source.pop("pretrained_model_name_or_path")
    written, settings = written_settings(path, **source)
    if settings is None:
        raise OSError(f"no video settings at {path}: expected processor_config.json or preprocessor_config.json")
    for edge, old in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
        if settings.get(old) is not None:  # as files said it before transformers 5
            settings["size"] = {**defaults["size"], **(settings.get("size") or {}), edge: settings[old]}
    known = {name: value for name, value in settings.items() if not name.startswith(("image_processor", "processor_class"))}
    return assemble(
        real,
        image_processor=AutoImageProcessor.from_pretrained(path, **source),
        tokenizer=AutoTokenizer.from_pretrained(path, **source),
        frames=Patches(resize, **{**defaults, **known, "video_processor_type": defaults["video_processor_type"]}),
        chat_template=written.get("chat_template"),
    )
