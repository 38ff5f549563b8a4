"""A tiny SmolVLM model, for pictures in tiles and videos of frames, with its processor's text for both."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessor

from mmlens.families.smolvlm import Pictures, SmolVLMProcessor
from mmlens.testing.idefics3 import CHAT_TEMPLATE, sizes, tile_tokenizer

WORDS = (
    "You are provided the following series of frames from a video Frame H M S [ ] - 0 1 2 3 4 5 6 7 8 9 four five".split()
)


def _smolvlm(
    *, dtype: torch.dtype = torch.float32, splits: bool = True, image_size: int = 24, **changes: Any
) -> tuple[SmolVLMForConditionalGeneration, SmolVLMProcessor]:
    words = tile_tokenizer([word for word in WORDS if word not in ("the", "of", "a")], prepends=False)
    made = sizes(words, image_size=image_size, **changes)
    tower, tile = made["vision_config"], {"longest_edge": image_size}
    images: Any = SmolVLMImageProcessor(
        size={"longest_edge": 2 * image_size}, max_image_size=tile, do_image_splitting=splits
    )
    positions = (image_size // tower["patch_size"] // made["scale_factor"]) ** 2
    frames: Any = Pictures(size=tile, max_image_size=tile, video_sampling=dict(fps=1, max_frames=64, video_size=tile))
    processor = SmolVLMProcessor(images, words, frames, image_seq_len=positions, chat_template=CHAT_TEMPLATE)
    config_class: Any = SmolVLMConfig
    model: Any = SmolVLMForConditionalGeneration(config_class(**made))
    return model.to(dtype).eval(), processor


BUILDERS: dict[str, Callable[..., tuple[Any, Any]]] = {"smolvlm": _smolvlm}
