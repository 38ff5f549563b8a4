"""Qwen3-VL (dense): as Qwen2-VL, with learned positions in the tower, norms of queries and keys, timestamps and DeepStack.

`vision.hook_embed` has the patches before their learned positions are added.

DeepStack: what some of the tower's blocks make of each position, through a merger of its own (`deepstack.{i}.*`), is added
to the stream behind the language model's block `i`, so that at positions of pictures and videos
`blocks.{i+1}.hook_resid_pre` is `blocks.{i}.hook_resid_post` plus `deepstack.{i}.hook_out`. A video's frames stand apart,
two at a time, each pair behind its time in words.
"""

import math
from functools import partial
from typing import Any

from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from mmlens.families import qwen_processor
from mmlens.families.family import Family, UnsupportedModel, one_of
from mmlens.families.parts import Projector, mlp
from mmlens.families.qwen_vl import READ_ONLY, RENAMES, VIDEO_DEFAULTS, QwenVLAdapter, block, encode, join


class Mergers(Projector):
    """The mergers of DeepStack, one for each block of the language model behind which features are added."""

    is_list_item = True


def adapter(config: Any) -> type[QwenVLAdapter]:
    """Return the adapter for a model of this configuration."""
    vision = config.vision_config

    class Adapter(QwenVLAdapter):
        def __init__(self, cfg: Any) -> None:
            tower = block(vision, vision.hidden_size, mlp(None, "linear_fc1", "linear_fc2"))
            maps = dict(into="linear_fc1", out="linear_fc2")
            super().__init__(cfg, tower=tower, projector=Projector("model.visual.merger", **maps))
            components: Any = self.component_mapping
            norms = {name: GeneralizedComponent(name=name) for name in ("q_norm", "k_norm")}
            components["blocks"].submodules["attn"].submodules.update(norms)
            components["deepstack"] = Mergers("model.visual.deepstack_merger_list", **maps)
            self.weight_processing_conversions = {**self._qkvo_weight_conversions()}

    return Adapter


def check(config: Any) -> None:
    """Raise UnsupportedModel, naming the setting, for a Qwen3-VL configuration that is not understood."""
    one_of("vision_config.model_type", config.vision_config.model_type, ("qwen3_vl_vision", "qwen3_vl"))
    one_of("text_config.model_type", config.text_config.model_type, ("qwen3_vl_text",))
    levels, depth = list(config.vision_config.deepstack_visual_indexes), config.text_config.num_hidden_layers
    if levels != sorted(set(levels)) or len(levels) >= depth:
        raise UnsupportedModel(
            f"mmlens knows deepstack_visual_indexes that rise, fewer than the language model's {depth} layers; got {levels}"
        )


def clip_size(frames: Any, count: int, height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) in which a video's frames are shown: all of them together have a budget of pixels."""
    factor, together = frames.patch_size * frames.merge_size, frames.temporal_patch_size
    least, most = frames.size["shortest_edge"], frames.size["longest_edge"]
    if count < together:
        raise ValueError(f"this model's videos have at least {together} frames, got {count}: show a picture as an image")
    if frames.cap_pixels_per_frame:
        each = min(frames.max_video_tokens * factor * factor, most // count)
        most = max(each, int(least * 1.05)) * count
    if min(height, width) < factor:
        grown = max(factor / height, factor / width)
        height, width = int(height * grown), int(width * grown)
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"a frame's sides differ 200 times at most, got {width} x {height}: crop it")
    shown = round(count / together) * together * round(height / factor) * round(width / factor) * factor**2
    if shown > most:
        shrunk = math.sqrt(count * height * width / most)
        return tuple(max(factor, math.floor(side / shrunk / factor) * factor) for side in (height, width))
    if shown < least:
        grown = math.sqrt(least / (count * height * width))
        return tuple(math.ceil(side * grown / factor) * factor for side in (height, width))
    return round(height / factor) * factor, round(width / factor) * factor


DEFAULTS: dict[str, Any] = {
    **VIDEO_DEFAULTS,
    "video_processor_type": "Qwen3VLVideoProcessor",
    "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "patch_size": 16,
    "max_video_tokens": 768,
}
FAMILY = Family(
    model_type="qwen3_vl",
    model_class="Qwen3VLForConditionalGeneration",
    takes=("image", "video"),
    adapter=adapter,
    renames=RENAMES,
    read_only=READ_ONLY,
    check=check,
    encode=encode,
    live_layers=lambda config: {},
    load_processor=partial(qwen_processor.load, Qwen3VLProcessor, clip_size, DEFAULTS),
    join=join,
    first_position=None,
)
