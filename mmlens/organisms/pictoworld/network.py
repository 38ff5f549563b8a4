"""The untrained organism: a LLaVA of two million parameters, its tokenizer and its processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mmlens.organisms.initialisation import initialise
from mmlens.organisms.pictoworld.text import LEXICON
from mmlens.organisms.pictoworld.world import PATCH, SIZE

_WIDTH = 128
_HEADS = 4


def build_processor() -> LlavaProcessor:
    """The processor: "<image>" in a text becomes 64 image tokens, images become 64 by 64 pixels in [-1, 1]."""
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=LEXICON.tokenizer({"image_token": "<image>"}),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def build_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """The untrained model, initialised as its training needs it."""
    torch.manual_seed(seed)
    tokens = LEXICON.ids
    special: dict[str, Any] = {
        "pad_token_id": tokens["<pad>"],
        "bos_token_id": tokens["<s>"],
        "eos_token_id": tokens["</s>"],
    }
    text = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=_WIDTH,
        intermediate_size=4 * _WIDTH,
        num_hidden_layers=5,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS,
        attention_bias=True,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        initializer_range=0.05,
        tie_word_embeddings=True,
        **special,
    )
    vision = CLIPVisionConfig(
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=4,
        num_attention_heads=_HEADS,
        image_size=SIZE,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokens["<image>"],
        image_seq_length=(SIZE // PATCH) ** 2,
        projector_hidden_act="linear",
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        **special,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=32, **special)
    initialise(model.model.language_model.layers, width=_WIDTH, heads=_HEADS)
    return model


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Writes model and processor so that transformers loads them by the folder alone."""
    model.save_pretrained(folder)
    build_processor().save_pretrained(folder)


def parts(name: str = "pictoworld-frozen") -> dict[str, Any]:
    """The checkpoint `name` as the parts that `HookedMLLM.from_parts` takes: its Llama, its tower, and the map between.

    Its projector is two linear maps with nothing between them, so one.
    """
    folder = Path(__file__).parent / "checkpoints" / name
    whole: Any = LlavaForConditionalGeneration.from_pretrained(folder)
    processor: Any = LlavaProcessor.from_pretrained(folder)
    language = LlamaForCausalLM(whole.config.text_config)
    language.model, language.lm_head = whole.model.language_model, whole.lm_head
    first, second = whole.model.multi_modal_projector.linear_1, whole.model.multi_modal_projector.linear_2
    return {
        "language_model": language.eval(),
        "vision_tower": whole.model.vision_tower,
        "projector": (second.weight @ first.weight, second.weight @ first.bias + second.bias),
        "tokenizer": processor.tokenizer,
        "image_processor": processor.image_processor,
        "feature_layer": whole.config.vision_feature_layer,
    }
