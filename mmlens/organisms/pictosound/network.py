"""The untrained organism: a Qwen2-Audio of under two million parameters, its tokenizer and its processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    WhisperFeatureExtractor,
)

from mmlens.organisms.initialisation import initialise
from mmlens.organisms.pictosound.text import AUDIO, BEGIN, END, LEXICON
from mmlens.organisms.pictosound.world import RATE, SECONDS

MELS = 32
POSITIONS = 25 * SECONDS
_WIDTH = 128
_TOWER_WIDTH = 96
_HEADS = 4


def build_processor() -> Qwen2AudioProcessor:
    """The processor: "<|AUDIO|>" in a text becomes 50 audio tokens, a sound of 2 s becomes 200 frames of 32 mel bands."""
    return Qwen2AudioProcessor(
        feature_extractor=WhisperFeatureExtractor(feature_size=MELS, chunk_length=SECONDS, sampling_rate=RATE),
        tokenizer=LEXICON.tokenizer(),
        audio_token=AUDIO,
        audio_bos_token=BEGIN,
        audio_eos_token=END,
    )


def build_model(seed: int = 0) -> Qwen2AudioForConditionalGeneration:
    """The untrained model, initialised as its training needs it."""
    torch.manual_seed(seed)
    tokens = LEXICON.ids
    special: dict[str, Any] = {
        "pad_token_id": tokens["<pad>"],
        "bos_token_id": tokens["<s>"],
        "eos_token_id": tokens["</s>"],
    }
    text = Qwen2Config(
        vocab_size=len(tokens),
        hidden_size=_WIDTH,
        intermediate_size=4 * _WIDTH,
        num_hidden_layers=5,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        initializer_range=0.05,
        tie_word_embeddings=True,
        **special,
    )
    audio = Qwen2AudioEncoderConfig(
        num_mel_bins=MELS,
        d_model=_TOWER_WIDTH,
        encoder_layers=3,
        encoder_attention_heads=_HEADS,
        encoder_ffn_dim=3 * _TOWER_WIDTH,
        max_source_positions=2 * POSITIONS,
        initializer_range=0.05,
    )
    config_class: Any = Qwen2AudioConfig
    config = config_class(
        audio_config=audio,
        text_config=text,
        audio_token_index=tokens[AUDIO],
        tie_word_embeddings=True,
        **special,
    )
    model = Qwen2AudioForConditionalGeneration(config)
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=32, **special)
    initialise(model.model.language_model.layers, width=_WIDTH, heads=_HEADS)
    with torch.no_grad():
        model.model.audio_tower.embed_positions.weight.copy_(_sinusoids())
    return model


def save(model: Qwen2AudioForConditionalGeneration, folder: Path) -> None:
    """Writes model and processor so that transformers loads them by the folder alone."""
    model.save_pretrained(folder)
    processor: Any = build_processor()
    processor.chat_template = None  # transformers' own speaks in tokens that this vocabulary lacks
    processor.save_pretrained(folder)


def _sinusoids() -> torch.Tensor:
    # Whisper's fixed positions (transformers leaves them random in this family): sines, then cosines.
    half = _TOWER_WIDTH // 2
    frequency = 10000.0 ** (-torch.arange(half) / (half - 1))
    angle = torch.arange(2 * POSITIONS)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)
