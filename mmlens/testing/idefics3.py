"""A tiny Idefics3 model: a tower that sees tiles of 4 x 4 patches, four of them to a position, before Llama."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Regex, pre_tokenizers
from transformers import (
    AddedToken,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from mmlens.testing.words import WORDS, decoder, tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %} {{ part['text'] }}{% else %}<{{ part['type'] }}>"
    "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
NAMED = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")


def tile_tokenizer(words: Sequence[str] = (), *, prepends: bool = True) -> PreTrainedTokenizerFast:
    """Return a tokenizer that keeps line ends and punctuation, with the tokens that stand around and between tiles."""
    made = tokenizer([*WORDS, "User", "Assistant", *words, "\n"], extra=NAMED)
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\d|[^\W\d]+|[^\w\s]"), "removed", invert=True)
    if not prepends:
        made.backend_tokenizer.post_processor = None
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    added: list[str | AddedToken] = [
        AddedToken(token, special=True, normalized=False) for token in ("<global-img>", *places)
    ]
    made.add_tokens(added, special_tokens=True)
    return made


def sizes(
    words: PreTrainedTokenizerFast,
    *,
    image_size: int = 26,
    patch_size: int = 6,
    scale_factor: int = 2,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    d_model: int = 32,
    d_mlp: int = 48,
) -> dict[str, Any]:
    """Return the arguments of a tiny configuration."""
    tower = dict(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=image_size,
        patch_size=patch_size,
    )
    language: dict[str, Any] = decoder(words, d_model=d_model, d_mlp=d_mlp, layers=layers, heads=heads, kv_heads=kv_heads)
    return dict(
        vision_config=tower,
        text_config=LlamaConfig(**language),
        scale_factor=scale_factor,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        pad_token_id=words.pad_token_id,
    )


def _idefics3(
    *, dtype: torch.dtype = torch.float32, splits: bool = True, longest_edge: int | None = None, **changes: Any
) -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    words = tile_tokenizer()
    made = sizes(words, **changes)
    tower = made["vision_config"]
    images: Any = Idefics3ImageProcessor(
        size={"longest_edge": longest_edge or 2 * tower["image_size"]},
        max_image_size={"longest_edge": tower["image_size"]},
        do_image_splitting=splits,
    )
    positions = (tower["image_size"] // tower["patch_size"] // made["scale_factor"]) ** 2
    processor = Idefics3Processor(images, words, image_seq_len=positions, chat_template=CHAT_TEMPLATE)
    config_class: Any = Idefics3Config
    model: Any = Idefics3ForConditionalGeneration(config_class(**made))
    return model.to(dtype).eval(), processor


BUILDERS: dict[str, Callable[..., tuple[Any, Any]]] = {"idefics3": _idefics3}
