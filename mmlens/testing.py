"""Tiny random models of every supported family: real transformers classes, saved as real folders, no downloads."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

WORDS = (
    "a the red blue green car boat tree sun is at what which object top left right of on in and . , ? : answer "
    "question picture image photo one two three user assistant describe see here there word"
).split()

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %} {% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)


def tiny(family: str, folder: str | Path, *, seed: int = 0, **changes: Any) -> Path:
    """Return `folder`, in which a tiny random model of `family` and its processor now lie.

    `changes` reach the family's own builder (for LLaVA: `image_size`, `patch_size`, `layers`, `heads`, `kv_heads`,
    `d_model`, `d_mlp`, `dtype`). Raises KeyError for a family that is not in `FAMILIES`.
    """
    if family not in FAMILIES:
        raise KeyError(f"testing.tiny knows the families {sorted(FAMILIES)}, got {family!r}")
    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = FAMILIES[family](**changes)
        _roughen(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """Return a whitespace tokenizer over `words` with <s>, </s>, <pad>, <unk> and <image>, that prepends <s>."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    vocab = {token: index for index, token in enumerate([*special, *words])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        clean_up_tokenization_spaces=False,
    )


def _llava(
    *,
    vision: str,
    language: str,
    image_size: int = 30,
    patch_size: int = 6,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    d_model: int = 32,
    d_mlp: int = 48,
    feature_layer: int = -2,
    dtype: torch.dtype = torch.float32,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    words = tokenizer()
    clip = vision == "clip"
    tower_size: dict[str, Any] = dict(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=image_size,
        patch_size=patch_size,
    )
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
    strategy = "default" if clip else "full"
    config_class: Any = LlavaConfig
    config = config_class(
        vision_config=(CLIPVisionConfig if clip else SiglipVisionConfig)(**tower_size),
        text_config=(LlamaConfig if language == "llama" else Qwen2Config)(**language_size),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy,
        image_seq_length=(image_size // patch_size) ** 2,
        pad_token_id=words.pad_token_id,
    )
    square = {"height": image_size, "width": image_size}
    images = (
        CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=square)
        if clip
        else SiglipImageProcessor(size=square)
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=words,
        patch_size=patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1 if clip else 0,
        chat_template=CHAT_TEMPLATE,
    )
    model: Any = LlavaForConditionalGeneration(config)
    return model.to(dtype).eval(), processor


def _roughen(model: torch.nn.Module) -> None:
    """Make what random initialisation leaves trivial (norm gains of 1, zero biases) differ, and effects visible."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            elif parameter.ndim == 1:
                parameter.normal_(std=0.1)
            else:
                parameter.mul_(4.0)


FAMILIES: dict[str, Callable[..., tuple[Any, Any]]] = {
    "llava-clip-llama": lambda **changes: _llava(vision="clip", language="llama", **changes),
    "llava-siglip-llama": lambda **changes: _llava(vision="siglip", language="llama", **changes),
    "llava-clip-qwen2": lambda **changes: _llava(vision="clip", language="qwen2", **changes),
    "llava-siglip-qwen2": lambda **changes: _llava(vision="siglip", language="qwen2", **changes),
}
