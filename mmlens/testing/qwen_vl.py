"""Tiny Qwen-VL models, with their own processors and pictures and videos in their own sizes."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from mmlens.families import qwen3_vl, qwen_processor, qwen_vl
from mmlens.testing.words import WORDS, tokenizer

SPECIAL = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}<|vision_start|><|{{ part['type'] }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %} {% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)


def _words() -> Any:
    return tokenizer([*WORDS, "seconds>", *(f"<{tenth / 10:.1f}" for tenth in range(100))], extra=SPECIAL)


def _ids(words: Any) -> dict[str, int]:
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {name: words.convert_tokens_to_ids(token) for name, token in zip(names, SPECIAL, strict=True)}


def _language(words: Any) -> dict[str, Any]:
    return dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(words),
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [2, 1, 1]},
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def _processor(words: Any, real: type, resize: Any, defaults: dict[str, Any], *, patch_size: int, budget: int) -> Any:
    sizes: dict[str, Any] = dict(patch_size=patch_size, temporal_patch_size=2, merge_size=2)
    most = 16 * (2 * patch_size) ** 2
    size = {"shortest_edge": 4 * (2 * patch_size) ** 2, "longest_edge": most}
    norm = dict(image_mean=defaults["image_mean"], image_std=defaults["image_std"])
    return qwen_processor.assemble(
        real,
        image_processor=Qwen2VLImageProcessorPil(size=dict(size), **sizes, **norm),
        tokenizer=words,
        frames=qwen_processor.Patches(resize, **{**defaults, **sizes, "size": {**size, "longest_edge": budget * most}}),
        chat_template=CHAT_TEMPLATE,
    )


def _qwen2(*, patch_size: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    vision = dict(depth=3, embed_dim=24, num_heads=3, mlp_ratio=2, hidden_size=32, patch_size=patch_size)
    return _built(Qwen2VLForConditionalGeneration, Qwen2VLProcessor, vision, dtype=dtype)


def _qwen2_5(*, patch_size: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    size = dict(depth=3, hidden_size=24, num_heads=3, intermediate_size=40, out_hidden_size=32, patch_size=patch_size)
    vision = dict(**size, window_size=4 * patch_size, fullatt_block_indexes=[1])
    return _built(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, vision, dtype=dtype)


def _qwen3(*, patch_size: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    size = dict(depth=3, hidden_size=24, num_heads=3, intermediate_size=40, out_hidden_size=32, patch_size=patch_size)
    vision = dict(**size, num_position_embeddings=36, deepstack_visual_indexes=[0, 1])
    return _built(
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        vision,
        resize=qwen3_vl.clip_size,
        defaults=qwen3_vl.DEFAULTS,
        budget=4,
        tied=True,
        dtype=dtype,
        head_dim=8,
    )


def _built(
    model_class: Any,
    real: type,
    vision: dict[str, Any],
    *,
    resize: Any = qwen_vl.frame_size,
    defaults: dict[str, Any] = qwen_vl.VIDEO_DEFAULTS,
    budget: int = 1,
    tied: bool = False,
    dtype: torch.dtype,
    **language: Any,
) -> tuple[Any, Any]:
    words = _words()
    config = model_class.config_class(
        vision_config=vision, text_config={**_language(words), **language}, tie_word_embeddings=tied, **_ids(words)
    )
    processor = _processor(words, real, resize, defaults, patch_size=vision["patch_size"], budget=budget)
    return model_class(config).to(dtype).eval(), processor


BUILDERS: dict[str, Callable[..., tuple[Any, Any]]] = {"qwen2-vl": _qwen2, "qwen2.5-vl": _qwen2_5, "qwen3-vl": _qwen3}
