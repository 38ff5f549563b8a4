"""Tiny BLIP models: a ViT tower and a Q-Former before Llama (InstructBLIP) or OPT (BLIP-2)."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaConfig,
    OPTConfig,
)

from mmlens.testing.words import tokenizer


def _blip(
    *,
    instruct: bool,
    image_size: int = 12,
    patch_size: int = 6,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    d_model: int = 32,
    d_mlp: int = 48,
    queries: int = 5,
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, Any]:
    words = tokenizer()
    vision = dict(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=image_size,
        patch_size=patch_size,
        initializer_range=0.05,
    )
    qformer = dict(
        hidden_size=16,
        intermediate_size=28,
        num_hidden_layers=3,
        num_attention_heads=2,
        cross_attention_frequency=2,
        encoder_hidden_size=24,
        vocab_size=len(words),
        max_position_embeddings=64,
        initializer_range=0.05,
    )
    size: dict[str, Any] = dict(
        hidden_size=d_model,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=len(words),
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    if instruct:
        language: Any = LlamaConfig(
            **size, intermediate_size=d_mlp, num_key_value_heads=kv_heads, max_position_embeddings=4096
        )
    else:
        language = OPTConfig(**size, ffn_dim=d_mlp, word_embed_proj_dim=d_model, max_position_embeddings=256)
    config_class: Any = InstructBlipConfig if instruct else Blip2Config
    model_class: Any = InstructBlipForConditionalGeneration if instruct else Blip2ForConditionalGeneration
    config = config_class(
        vision_config=vision,
        qformer_config=qformer,
        text_config=language,
        num_query_tokens=queries,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        initializer_range=0.05,
    )
    images = BlipImageProcessor(size={"height": image_size, "width": image_size})
    if instruct:  # the Q-Former's own words, which know nothing of images
        processor: Any = InstructBlipProcessor(images, words, tokenizer(extra=()), num_query_tokens=queries)
    else:
        processor = Blip2Processor(images, words, num_query_tokens=queries)
    model = model_class(config)
    torch.nn.init.normal_(model.query_tokens)  # transformers leaves them at zero
    return model.to(dtype).eval(), processor


BUILDERS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "instructblip-llama": lambda **changes: _blip(instruct=True, **changes),
    "blip2-opt": lambda **changes: _blip(instruct=False, **changes),
}
