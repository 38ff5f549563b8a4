"""Tiny prefix models: four text-only language models, each behind a vision tower and one linear map."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BeitConfig,
    BeitImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    OPTConfig,
    SiglipImageProcessor,
    SiglipVisionConfig,
    ViTConfig,
    ViTImageProcessor,
)

from mmlens.families.prefix_model import PrefixConfig, PrefixModel, PrefixProcessor
from mmlens.testing.words import tokenizer


def _prefix(
    *,
    language: str,
    vision: str,
    image_size: int = 30,
    patch_size: int = 6,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    d_model: int = 32,
    d_mlp: int = 48,
    feature_layer: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[PrefixModel, PrefixProcessor]:
    words = tokenizer(extra=())
    size: dict[str, Any] = dict(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=image_size,
        patch_size=patch_size,
    )
    special: dict[str, Any] = dict(
        vocab_size=len(words),
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    short = dict(n_embd=d_model, n_inner=d_mlp, n_layer=layers, n_head=heads, n_positions=256)
    long: dict[str, Any] = dict(hidden_size=d_model, num_hidden_layers=layers, num_attention_heads=heads)
    texts: dict[str, Callable[[], Any]] = {
        "gpt2": lambda: GPT2Config(**short, **special),
        "gptj": lambda: GPTJConfig(**short, **special, rotary_dim=4),
        "opt": lambda: OPTConfig(**long, **special, ffn_dim=d_mlp, word_embed_proj_dim=d_model, max_position_embeddings=256),
        "llama": lambda: LlamaConfig(**long, **special, intermediate_size=d_mlp, num_key_value_heads=kv_heads),
    }
    square = {"height": image_size, "width": image_size}
    towers: dict[str, Callable[[], tuple[Any, Any]]] = {
        "beit": lambda: (
            BeitConfig(**size, use_relative_position_bias=True, use_mean_pooling=False),
            BeitImageProcessor(size=square, do_center_crop=False),
        ),
        "clip": lambda: (
            CLIPVisionConfig(**size),
            CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=square),
        ),
        "vit": lambda: (ViTConfig(**size), ViTImageProcessor(size=square)),
        "siglip": lambda: (SiglipVisionConfig(**size, vision_use_head=False), SiglipImageProcessor(size=square)),
    }
    vision_config, images = towers[vision]()
    processor = PrefixProcessor(images, words, patch_size=patch_size)
    config: Any = PrefixConfig(
        text_config=texts[language](),
        vision_config=vision_config,
        feature_layer=feature_layer,
        drop_cls=vision != "siglip",
    )
    config.image_token_id = processor.image_token_id
    model: Any = PrefixModel(config)
    return model.to(dtype).eval(), processor


def _builder(language: str, vision: str, **own: Any) -> Callable[..., tuple[PrefixModel, PrefixProcessor]]:
    return lambda **changes: _prefix(**{"language": language, "vision": vision, **own, **changes})


BUILDERS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "prefix-gptj": _builder("gptj", "beit"),
    "prefix-gpt2": _builder("gpt2", "clip", feature_layer=-2),
    "prefix-opt": _builder("opt", "vit"),
    "prefix-llama": _builder("llama", "siglip"),
}
