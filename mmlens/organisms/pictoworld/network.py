"""The untrained organism: a LLaVA of two million parameters, its tokenizer and its processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mmlens.organisms.pictoworld.text import TWO_PIECES, words
from mmlens.organisms.pictoworld.world import PATCH, SIZE

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
_WIDTH = 128
_HEADS = 4
_PREVIOUS_TOKEN_HEADS = {0: (1, 2, 3), 1: (1, 3)}


def vocabulary() -> dict[str, int]:
    """The id of every token: special tokens, whole words, then the pieces of two-piece nouns."""
    whole = [word for word in words() if word not in TWO_PIECES]
    pieces = [piece for pair in TWO_PIECES.values() for piece in pair]
    return {token: index for index, token in enumerate(dict.fromkeys([*SPECIAL, *whole, *pieces]))}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer in which a text is <s> and then its words; "lamppost" is "lamp" and "##post"."""
    tokens = vocabulary()
    core = Tokenizer(models.WordPiece(tokens, unk_token="<unk>", continuing_subword_prefix="##"))
    core.normalizer = normalizers.Lowercase()
    marks = pre_tokenizers.Split(Regex(r"[.,?:]"), behavior="isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marks])
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokens["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


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
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def build_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """The untrained model, initialised as its training needs it."""
    torch.manual_seed(seed)
    tokens = vocabulary()
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
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            _initialise_attention(layer.self_attn)
        _initialise_previous_token_heads(model.model.language_model.layers)
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


def _initialise_attention(attention: Any) -> None:
    # Mimetic initialisation (Trockman and Kolter 2023): queries and keys agree, values and outputs nearly undo each
    # other. Without it the lookups (which object is red?) stay at the level of guessing in the time there is.
    for head in range(_HEADS):
        rows = slice(head * _WIDTH // _HEADS, (head + 1) * _WIDTH // _HEADS)
        nn.init.orthogonal_(attention.q_proj.weight[rows])
        nn.init.orthogonal_(attention.v_proj.weight[rows])
    attention.k_proj.weight.copy_(attention.q_proj.weight)
    attention.o_proj.weight.copy_(0.12 * attention.v_proj.weight.T)


def _initialise_previous_token_heads(layers: Any) -> None:
    # A query bias b and a key bias that is b rotated by `offset` positions score highest where the key stands
    # `offset` before the query. Only the fast rotary frequencies tell neighbours apart, so only they are set.
    dim = _WIDTH // _HEADS
    half, fast, strength = dim // 2, 5, 5.5
    frequency = 10000.0 ** (-torch.arange(half) / half)
    for layer, offsets in _PREVIOUS_TOKEN_HEADS.items():
        attention = layers[layer].self_attn
        for head, offset in enumerate(offsets):
            start = head * dim
            angle = frequency[:fast] * offset
            attention.q_proj.bias[start : start + fast] = strength
            attention.k_proj.bias[start : start + fast] = strength * angle.cos()
            attention.k_proj.bias[start + half : start + half + fast] = strength * angle.sin()
            for projection in (attention.q_proj, attention.k_proj):
                projection.weight[start : start + dim] *= 0.2
