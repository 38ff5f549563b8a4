"""A tokenizer of a few words, and what makes random weights worth testing with."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AddedToken, PreTrainedTokenizerFast

WORDS = (
    "a the red blue green car boat tree sun is at what which object top left right of on in and . , ? : answer "
    "question picture image photo one two three user assistant describe see here there word"
).split()

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %} {% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)


def tokenizer(
    words: Sequence[str] = WORDS, *, extra: Sequence[str] | Mapping[str, str] = ("<image>",), lines: bool = False
) -> PreTrainedTokenizerFast:
    """Return a whitespace tokenizer over `words` with <s>, </s>, <pad>, <unk> and the `extra` tokens, that prepends <s>.

    Special tokens need no space around them; `extra` may name them (`{"image_token": "<image>"}`). With `lines`, line ends
    are words too.
    """
    named = dict(extra) if isinstance(extra, Mapping) else {}
    extra = list(named.values() or extra)
    special = ["<pad>", "<s>", "</s>", "<unk>", *extra]
    vocab = {token: index for index, token in enumerate([*special, *words])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=named or extra,
        clean_up_tokenization_spaces=False,
    )
    if lines:
        made.add_tokens([AddedToken("\n", normalized=False), AddedToken("\n\n", normalized=False)])
    return made


def decoder(words: Any, *, d_model: int, d_mlp: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    """Return the sizes of a language model, as transformers' configurations name them, and the special tokens of `words`."""
    return dict(
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


def roughen(model: torch.nn.Module) -> None:
    """Make what random initialisation leaves trivial (norm gains of 1, biases and tables of 0) differ: effects are seen."""
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    gains = {id(norm.weight) for norm in norms if isinstance(getattr(norm, "weight", None), torch.Tensor)}
    with torch.no_grad():
        for parameter in model.parameters():
            if id(parameter) in gains:
                parameter.uniform_(0.5, 1.5)
            elif parameter.ndim == 1 or not parameter.any():
                parameter.normal_(std=0.1)
            else:
                parameter.mul_(4.0)
