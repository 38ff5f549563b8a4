"""A tiny LLaVA-OneVision model: a SigLIP tower whose tiles leave a rest at their edge, before Qwen2."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    Qwen2Config,
    SiglipVisionConfig,
)

from mmlens.families.llava_onevision import OnevisionProcessor
from mmlens.testing.words import decoder, tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : "
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}<{{ part['type'] }}> {% endif %}{% endfor %} {% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)


def _onevision(
    *,
    image_size: int = 20,
    patch_size: int = 6,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    d_model: int = 32,
    d_mlp: int = 48,
    feature_layer: int = -1,
    most: int = 4,
    dtype: torch.dtype = torch.float32,
) -> tuple[LlavaOnevisionForConditionalGeneration, OnevisionProcessor]:
    words = tokenizer(extra=("<image>", "<video>"))
    pinpoints = [[image_size * rows, image_size * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
    tower_size: dict[str, Any] = dict(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=image_size,
        patch_size=patch_size,
        vision_use_head=False,
    )
    language_size: dict[str, Any] = decoder(
        words, d_model=d_model, d_mlp=d_mlp, layers=layers, heads=heads, kv_heads=kv_heads
    )
    config_class: Any = LlavaOnevisionConfig
    config = config_class(
        vision_config=SiglipVisionConfig(**tower_size),
        text_config=Qwen2Config(**language_size),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        vision_feature_layer=feature_layer,
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio=f"anyres_max_{most}",
        pad_token_id=words.pad_token_id,
    )
    square = {"height": image_size, "width": image_size}
    half = (0.5, 0.5, 0.5)
    images: Any = LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=pinpoints, image_mean=half, image_std=half)
    processor = OnevisionProcessor(
        images,
        words,
        video=dict(size=square, image_mean=half, image_std=half),
        num_image_tokens=(image_size // patch_size) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=f"anyres_max_{most}",
        chat_template=CHAT_TEMPLATE,
    )
    model: Any = LlavaOnevisionForConditionalGeneration(config)
    return model.to(dtype).eval(), processor


BUILDERS: dict[str, Callable[..., tuple[Any, Any]]] = {"llava-onevision-siglip-qwen2": _onevision}
