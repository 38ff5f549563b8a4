"""What processors without torchvision share: transformers loads the video part of its processors from torchvision alone."""

import json
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin
from transformers.processing_utils import VideosKwargs
from transformers.utils.hub import cached_file


class Frames:
    """Stands for the video part of a processor; `settings` are those of transformers' own, and read as its attributes."""

    _auto_class = None
    valid_kwargs = VideosKwargs

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def __getattr__(self, name: str) -> Any:
        if name == "settings" or name not in self.settings:
            raise AttributeError(f"the video processor has no setting {name!r}")
        return self.settings[name]

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, as transformers' own video processor saves them."""
        return dict(self.settings)


class WithFrames(ProcessorMixin):
    """The part of a processor that lets `Frames` be its video processor; it is saved as transformers' own."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Return the class that an argument must have; `Frames` stands for any video processor."""
        if isinstance(argument, Frames):
            return Frames
        return super().check_argument_for_proper_class(argument_name, argument)

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved, which transformers' own processor loads too."""
        return {**super().to_dict(), "video_processor": self.video_processor.to_dict()}


def written_settings(path: str | Path, **source: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return what the files of a processor say, and what they say of its video part (None: nothing).

    The video part has a section, a file of its own, or, in older folders, the image part's file.
    """
    written, _ = ProcessorMixin.get_processor_dict(str(path), **source)
    video = written.get("video_processor")
    for file in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if video is None and (found := cached_file(path, file, _raise_exceptions_for_missing_entries=False, **source)):
            video = json.loads(Path(found).read_text())
    return written, video
