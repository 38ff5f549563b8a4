"""A tiny Gemma 3 model: local and global layers, patches pooled two by two."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from mmlens.testing.words import CHAT_TEMPLATE, decoder, tokenizer


def _gemma3(
    *,
    image_size: int = 24,
    patch_size: int = 4,
    pooled: int = 3,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    d_model: int = 32,
    d_head: int = 12,
    d_mlp: int = 48,
    sliding_window: int = 6,
    dtype: torch.dtype = torch.float32,
) -> tuple[Gemma3ForConditionalGeneration, Gemma3Processor]:
    marks = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    words: Any = tokenizer(extra=marks, lines=True)
    config_class: Any = Gemma3Config
    text_class: Any = Gemma3TextConfig
    tower_class: Any = SiglipVisionConfig
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
            query_pre_attn_scalar=d_head,
            sliding_window=sliding_window,
            layer_types=["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)],
        ),
        image_token_index=words.image_token_id,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        mm_tokens_per_image=pooled**2,
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": image_size, "width": image_size}),
        tokenizer=words,
        chat_template="{{ bos_token }}" + CHAT_TEMPLATE.replace("<image>", words.boi_token),
        image_seq_length=pooled**2,
    )
    model: Any = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.05)  # it starts as zeros
    return model.to(dtype).eval(), processor


BUILDERS: dict[str, Callable[..., tuple[Any, Any]]] = {"gemma3": _gemma3}
