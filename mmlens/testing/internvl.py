"""Tiny InternVL models: a tower with layer scale that sees tiles of 4 x 4 patches, before Qwen3, Qwen2 or Llama."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from mmlens.families.internvl import InternVLProcessor
from mmlens.testing.words import WORDS, tokenizer

LANGUAGE: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% elif part['type'] == 'video' %}<video>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)


def _internvl(
    *,
    language: str,
    image_size: int = 24,
    patch_size: int = 6,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    d_model: int = 32,
    d_head: int | None = None,
    d_mlp: int = 48,
    feature_layer: int = -1,
    norms: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[InternVLForConditionalGeneration, InternVLProcessor]:
    names = dict(start_image="<img>", end_image="</img>", context_image="<IMG_CONTEXT>", video="<video>")
    named = {f"{name}_token": token for name, token in names.items()}
    words = tokenizer([*WORDS, *(f"Frame{number}:" for number in range(1, 9))], extra=named, lines=True)
    language_size: dict[str, Any] = dict(
        hidden_size=d_model,
        intermediate_size=d_mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=len(words),
        max_position_embeddings=4096,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    if language == "qwen3":
        language_size["head_dim"] = d_head or 12
    tower_size: dict[str, Any] = dict(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=image_size,
        patch_size=patch_size,
        attention_bias=not norms,
        use_qk_norm=norms,
        norm_type="rms_norm" if norms else "layer_norm",
    )
    config_class: Any = InternVLConfig
    length = (image_size // patch_size) ** 2 // 4
    config = config_class(
        vision_config=InternVLVisionConfig(**tower_size),
        text_config=LANGUAGE[language](**language_size),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=length,
        vision_feature_layer=feature_layer,
        pad_token_id=words.pad_token_id,
    )
    square = {"height": image_size, "width": image_size}
    images: Any = GotOcr2ImageProcessor(size=square, max_patches=6)
    processor = InternVLProcessor(
        images, words, video=dict(size=square), image_seq_length=length, chat_template=CHAT_TEMPLATE
    )
    model: Any = InternVLForConditionalGeneration(config)
    return model.to(dtype).eval(), processor


BUILDERS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "internvl-qwen3": lambda **changes: _internvl(**{"language": "qwen3", **changes}),
    "internvl-normed-qwen2": lambda **changes: _internvl(**{"language": "qwen2", "norms": True, **changes}),
}
