"""The words of a small world as tokens: what its tokenizer reads, and the same ids for training, faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")


@dataclass(frozen=True)
class Lexicon:
    """Every word of a world; those in `two_pieces` are two tokens long, so that methods meet words that are.

    `placeholders` are special tokens beyond `SPECIAL`: those that stand for an image or a sound.
    """

    words: tuple[str, ...]
    two_pieces: Mapping[str, tuple[str, str]]
    placeholders: tuple[str, ...]

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of every token: special tokens, whole words, then the pieces of words of two."""
        whole = [word for word in self.words if word not in self.two_pieces]
        pieces = [piece for pair in self.two_pieces.values() for piece in pair]
        return {token: index for index, token in enumerate(dict.fromkeys([*SPECIAL, *self.placeholders, *whole, *pieces]))}

    def encode(self, text: str) -> list[int]:
        """The token ids of a text of the world, without <s>; the same as the tokenizer's, and faster."""
        return [self.ids[piece] for word in text.split() for piece in self.two_pieces.get(word, (word,))]

    def first_token(self, word: str) -> str:
        """The first token of a word: the word itself, or its first piece."""
        return self.two_pieces.get(word, (word,))[0]

    def tokenizer(self, named: Mapping[str, str] | Sequence[str] | None = None) -> PreTrainedTokenizerFast:
        """A WordPiece tokenizer in which a text is <s> and then its words; "lamppost" is "lamp" and "##post".

        named: the placeholders, as transformers' processors look for them (`{"image_token": "<image>"}`).
        """
        core = Tokenizer(models.WordPiece(self.ids, unk_token="<unk>", continuing_subword_prefix="##"))
        core.normalizer = normalizers.Lowercase()
        marks = pre_tokenizers.Split(Regex(r"[.,?:]"), behavior="isolated")
        core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marks])
        core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", self.ids["<s>"])])
        return PreTrainedTokenizerFast(
            tokenizer_object=core,
            pad_token="<pad>",
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            extra_special_tokens=dict(named) if isinstance(named, Mapping) else list(named or self.placeholders),
            padding_side="left",
            clean_up_tokenization_spaces=False,
            model_max_length=512,
        )
