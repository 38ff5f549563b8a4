"""Qwen2-VL: a packed tower, a merger of two linear maps, and a Qwen2 language model with positions in three axes."""

from functools import partial
from typing import Any

from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

from mmlens.families import qwen_processor
from mmlens.families.family import Family, one_of
from mmlens.families.parts import Projector, mlp
from mmlens.families.qwen_vl import READ_ONLY, RENAMES, VIDEO_DEFAULTS, QwenVLAdapter, block, encode, frame_size, join


def adapter(config: Any) -> type[QwenVLAdapter]:
    """Return the adapter for a model of this configuration."""
    vision = config.vision_config

    class Adapter(QwenVLAdapter):
        def __init__(self, cfg: Any) -> None:
            tower = block(vision, vision.embed_dim, mlp(None, "fc1", "fc2"))
            super().__init__(cfg, tower=tower, projector=Projector("model.visual.merger", into="mlp.0", out="mlp.2"))

    return Adapter


def check(config: Any) -> None:
    """Raise UnsupportedModel, naming the setting, for a Qwen2-VL configuration that is not understood."""
    one_of("vision_config.model_type", config.vision_config.model_type, ("qwen2_vl_vision", "qwen2_vl"))
    one_of("text_config.model_type", config.text_config.model_type, ("qwen2_vl_text",))
    one_of("text_config.use_sliding_window", config.text_config.use_sliding_window, (False, None))


FAMILY = Family(
    model_type="qwen2_vl",
    model_class="Qwen2VLForConditionalGeneration",
    takes=("image", "video"),
    adapter=adapter,
    renames=RENAMES,
    read_only=READ_ONLY,
    check=check,
    encode=encode,
    live_layers=lambda config: {},
    load_processor=partial(qwen_processor.load, Qwen2VLProcessor, frame_size, VIDEO_DEFAULTS),
    join=join,
    first_position=None,
)
