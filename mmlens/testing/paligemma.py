"""Tiny PaliGemma models: over Gemma, and (PaliGemma 2) over Gemma 2 with its soft caps and local layers."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from mmlens.testing.words import decoder, tokenizer


def _paligemma(
    *,
    generation: int,
    image_size: int = 24,
    patch_size: int = 6,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    d_model: int = 32,
    d_head: int = 12,
    d_mlp: int = 48,
    dtype: torch.dtype = torch.float32,
) -> tuple[PaliGemmaForConditionalGeneration, PaliGemmaProcessor]:
    images: Any = SiglipImageProcessor(size={"height": image_size, "width": image_size})
    images.image_seq_length = (image_size // patch_size) ** 2
    words: Any = tokenizer(lines=True)
    processor = PaliGemmaProcessor(image_processor=images, tokenizer=words)  # it adds words for places and segments
    config_class: Any = PaliGemmaConfig
    tower_class: Any = SiglipVisionConfig
    text_class: Any = GemmaConfig if generation == 1 else Gemma2Config
    second: dict[str, Any] = dict(
        query_pre_attn_scalar=d_head,
        sliding_window=8,
        layer_types=["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)],
        attn_logit_softcapping=2.0,  # low enough to matter at these sizes
        final_logit_softcapping=3.0,
    )
    config = config_class(
        vision_config=tower_class(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=3,
            image_size=image_size,
            patch_size=patch_size,
            vision_use_head=False,
        ),
        text_config=text_class(
            **decoder(words, d_model=d_model, d_mlp=d_mlp, layers=layers, heads=heads, kv_heads=kv_heads),
            head_dim=d_head,
            **(second if generation == 2 else {}),
        ),
        image_token_index=processor.image_token_id,
        projection_dim=d_model,
        hidden_size=d_model,
    )
    model: Any = PaliGemmaForConditionalGeneration(config)
    return model.to(dtype).eval(), processor


BUILDERS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "paligemma": lambda **changes: _paligemma(generation=1, **changes),
    "paligemma2": lambda **changes: _paligemma(generation=2, **changes),
}
