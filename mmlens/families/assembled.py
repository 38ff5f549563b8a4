"""A processor put together from a tokenizer and an image processor, where transformers' own needs torchvision."""

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, SiglipImageProcessor
from transformers.utils.import_utils import is_torchvision_available

from mmlens.families.family import UnsupportedModel, one_of
from mmlens.families.frames import written_settings

SETTINGS = "processor_config.json"


class Assembled:
    """What `encode` needs of a processor, without torchvision: video frames go through an image processor one by one.

    Both ways of loading read what either saved. `name` and `video_name` are transformers' classes, `defaults` their
    settings and `video_defaults` those of the video part, where a folder does not say.
    """

    name: ClassVar[str]
    video_name: ClassVar[str]
    defaults: ClassVar[dict[str, Any]]
    video_defaults: ClassVar[dict[str, Any]]

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        *,
        video: dict[str, Any] | None = None,
        chat_template: Any = None,
        **settings: Any,
    ) -> None:
        self.image_processor, self.tokenizer, self.chat_template = image_processor, tokenizer, chat_template
        self.settings = {name: settings.get(name, default) for name, default in self.defaults.items()}
        for name, value in self.settings.items():
            setattr(self, name, value)
        self.video = {**self.video_defaults, **{name: value for name, value in (video or {}).items() if value is not None}}

    @classmethod
    def load(cls, pretrained_model_name_or_path: str | Path, **source: Any) -> Any:
        """Return transformers' own processor where torchvision is installed, and one of ours where it is not."""
        if is_torchvision_available():
            return AutoProcessor.from_pretrained(pretrained_model_name_or_path, **source)
        return cls.from_pretrained(pretrained_model_name_or_path, **source)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **source: Any) -> "Assembled":
        """Return the processor that a folder or a hub id describes."""
        path = str(pretrained_model_name_or_path)
        settings, video = written_settings(path, **source)
        return cls(
            AutoImageProcessor.from_pretrained(path, **source),
            AutoTokenizer.from_pretrained(path, **source),
            video=video,
            chat_template=settings.get("chat_template"),
            **{name: settings[name] for name in cls.defaults if name in settings},
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that transformers' own processor reads as well."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        settings = {
            **self.settings,
            "processor_class": self.name,
            "image_processor": self.image_processor.to_dict(),
            "video_processor": {**self.video, "video_processor_type": self.video_name},
        }
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        if isinstance(self.chat_template, str):
            (folder / "chat_template.jinja").write_text(self.chat_template)

    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> str:
        """Return a conversation as the chat template writes it."""
        return self.tokenizer.apply_chat_template(
            conversation, **{"chat_template": self.chat_template, "tokenize": False, **options}
        )

    def frames(self, video: list[Any]) -> Tensor:
        """Return the pixels of a video's frames [frame, channel, height, width], each resized and normalized on its own.

        Raises UnsupportedModel for a way of making them that is not understood.
        """
        one_of("video_processor.do_center_crop", bool(self.video.get("do_center_crop")), (False,))
        one_of("video_processor.do_pad", bool(self.video.get("do_pad")), (False,))
        if set(self.video["size"]) != {"height", "width"}:
            raise UnsupportedModel(f"mmlens knows frames of a fixed height and width; these are {self.video['size']}")
        names = ("size", "resample", "do_resize", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        made = SiglipImageProcessor(**{name: self.video[name] for name in names})(images=video, return_tensors="pt")
        return made["pixel_values"]

    def expand(self, text: str, instead: dict[str, list[str]]) -> str:
        """Return `text` with each placeholder, in order, as what the model reads in its place."""
        waiting = {token: iter(pieces) for token, pieces in instead.items()}
        return re.sub("|".join(map(re.escape, waiting)), lambda found: next(waiting[found[0]]), text)

    def tokens(self, text: str) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask` of one text."""
        made = self.tokenizer(text)
        return {name: torch.tensor([made[name]]) for name in ("input_ids", "attention_mask")}
