"""A tiny Qwen2-Audio: a Whisper-like tower with a window of one second, before Qwen2."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    WhisperFeatureExtractor,
)

from mmlens.testing.words import WORDS, decoder, tokenizer

TOKENS = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|im_start|>", "<|im_end|>")


def _qwen2_audio(
    *,
    seconds: int = 1,
    mels: int = 16,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    d_model: int = 32,
    d_mlp: int = 48,
    d_tower: int = 24,
    vocabulary: Sequence[str] = WORDS,
    dtype: torch.dtype = torch.float32,
) -> tuple[Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor]:
    words = tokenizer(vocabulary, extra=TOKENS)
    hears = WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds, hop_length=160)
    tower_size: dict[str, Any] = dict(
        num_mel_bins=mels,
        encoder_layers=3,
        encoder_attention_heads=3,
        encoder_ffn_dim=40,
        d_model=d_tower,
        max_source_positions=hears.nb_max_frames // 2,
    )
    language_size: dict[str, Any] = decoder(
        words, d_model=d_model, d_mlp=d_mlp, layers=layers, heads=heads, kv_heads=kv_heads
    )
    config_class: Any = Qwen2AudioConfig
    config = config_class(
        audio_config=Qwen2AudioEncoderConfig(**tower_size),
        text_config=Qwen2Config(**language_size),
        audio_token_index=words.convert_tokens_to_ids("<|AUDIO|>"),
    )
    processor = Qwen2AudioProcessor(feature_extractor=hears, tokenizer=words)
    model: Any = Qwen2AudioForConditionalGeneration(config)
    return model.to(dtype).eval(), processor


BUILDERS: dict[str, Callable[..., tuple[Any, Any]]] = {"qwen2-audio": _qwen2_audio}
