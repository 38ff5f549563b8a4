"""Tiny LLaVA models: a CLIP tower before Llama, a SigLIP tower before Qwen2."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from mmlens.testing.words import CHAT_TEMPLATE, WORDS, decoder, tokenizer


def _llava(
    *,
    vision: str,
    language: str,
    image_size: int = 30,
    patch_size: int = 6,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    d_model: int = 32,
    d_mlp: int = 48,
    d_tower: int = 24,
    vocabulary: Sequence[str] = WORDS,
    feature_layer: int = -2,
    dtype: torch.dtype = torch.float32,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    words = tokenizer(vocabulary)
    clip = vision == "clip"
    tower_size: dict[str, Any] = dict(
        hidden_size=d_tower,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=image_size,
        patch_size=patch_size,
    )
    language_size: dict[str, Any] = decoder(
        words, d_model=d_model, d_mlp=d_mlp, layers=layers, heads=heads, kv_heads=kv_heads
    )
    strategy = "default" if clip else "full"
    config_class: Any = LlavaConfig
    config = config_class(
        vision_config=(CLIPVisionConfig if clip else SiglipVisionConfig)(**tower_size),
        text_config=(LlamaConfig if language == "llama" else Qwen2Config)(**language_size),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy,
        image_seq_length=(image_size // patch_size) ** 2,
        pad_token_id=words.pad_token_id,
    )
    square = {"height": image_size, "width": image_size}
    images = (
        CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=square)
        if clip
        else SiglipImageProcessor(size=square)
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=words,
        patch_size=patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1 if clip else 0,
        chat_template=CHAT_TEMPLATE,
    )
    model: Any = LlavaForConditionalGeneration(config)
    return model.to(dtype).eval(), processor


BUILDERS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "llava-clip-llama": lambda **changes: _llava(vision="clip", language="llama", **changes),
    "llava-siglip-qwen2": lambda **changes: _llava(vision="siglip", language="qwen2", **changes),
}
