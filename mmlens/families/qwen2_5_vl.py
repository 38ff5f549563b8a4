"""Qwen2.5-VL: as Qwen2-VL, with a gated MLP in the tower, most of whose blocks attend within windows, and videos in seconds.

In the blocks of the tower (and at the points of the projector) patches lie window by window; `vision.hook_embed` has them
in the order of the picture, and the model puts the projector's rows back in that order before they enter the stream.
"""

from functools import partial
from typing import Any

from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor

from mmlens.families import qwen_processor
from mmlens.families.family import Family, one_of
from mmlens.families.parts import Projector, mlp
from mmlens.families.qwen_vl import READ_ONLY, RENAMES, VIDEO_DEFAULTS, QwenVLAdapter, block, encode, frame_size, join


def adapter(config: Any) -> type[QwenVLAdapter]:
    """Return the adapter for a model of this configuration."""
    vision = config.vision_config

    class Adapter(QwenVLAdapter):
        def __init__(self, cfg: Any) -> None:
            tower = block(vision, vision.hidden_size, mlp(None, "up_proj", "down_proj", gate="gate_proj"))
            super().__init__(cfg, tower=tower, projector=Projector("model.visual.merger", into="mlp.0", out="mlp.2"))

    return Adapter


def check(config: Any) -> None:
    """Raise UnsupportedModel, naming the setting, for a Qwen2.5-VL configuration that is not understood."""
    one_of("vision_config.model_type", config.vision_config.model_type, ("qwen2_5_vl_vision", "qwen2_5_vl"))
    one_of("text_config.model_type", config.text_config.model_type, ("qwen2_5_vl_text",))
    one_of("text_config.use_sliding_window", config.text_config.use_sliding_window, (False, None))


FAMILY = Family(
    model_type="qwen2_5_vl",
    model_class="Qwen2_5_VLForConditionalGeneration",
    takes=("image", "video"),
    adapter=adapter,
    renames=RENAMES,
    read_only=READ_ONLY,
    check=check,
    encode=encode,
    live_layers=lambda config: {},
    load_processor=partial(qwen_processor.load, Qwen2_5_VLProcessor, frame_size, VIDEO_DEFAULTS),
    join=join,
    first_position=None,
)
