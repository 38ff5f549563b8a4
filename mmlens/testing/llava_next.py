"""Tiny LLaVA-NeXT models: a CLIP tower that sees tiles of 3 x 3 patches, before Mistral, Llama or Qwen2."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    MistralConfig,
    Qwen2Config,
)

from mmlens.testing.words import CHAT_TEMPLATE, decoder, tokenizer

LANGUAGE: dict[str, Any] = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}


def _llava_next(
    *,
    language: str,
    image_size: int = 18,
    patch_size: int = 6,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    d_model: int = 32,
    d_mlp: int = 48,
    feature_layer: int = -2,
    dtype: torch.dtype = torch.float32,
) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    words = tokenizer()
    one, two, three = image_size, 2 * image_size, 3 * image_size
    pinpoints = [[one, two], [two, one], [two, two], [three, one], [one, three]]
    tower_size: dict[str, Any] = dict(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=image_size,
        patch_size=patch_size,
    )
    language_size: dict[str, Any] = decoder(
        words, d_model=d_model, d_mlp=d_mlp, layers=layers, heads=heads, kv_heads=kv_heads
    )
    if language == "mistral":
        language_size["sliding_window"] = None
    config_class: Any = LlavaNextConfig
    config = config_class(
        vision_config=CLIPVisionConfig(**tower_size),
        text_config=LANGUAGE[language](**language_size),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=feature_layer,
        image_grid_pinpoints=pinpoints,
        pad_token_id=words.pad_token_id,
    )
    images: Any = LlavaNextImageProcessor(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_grid_pinpoints=pinpoints,
    )
    processor = LlavaNextProcessor(
        image_processor=images,
        tokenizer=words,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    model: Any = LlavaNextForConditionalGeneration(config)
    return model.to(dtype).eval(), processor


BUILDERS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "llava-next-clip-mistral": lambda **changes: _llava_next(**{"language": "mistral", **changes}),
}
