"""Which word of an answer an analysis is about, and which token of what the model wrote begins it."""

import re
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlens.inputs import MODALITIES, Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Storable

SHORT = 4
FUNCTION_WORDS = frozenset(
    "a an the this that these those it its there here is are was were be been being am do does did has have had i you he "
    "she we they my your his her our their of in on at to for from by with as and or but not no yes so if then than into "
    "over under image picture photo shows show showing appears can see which what who where".split()
)
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


@dataclass(frozen=True, eq=False)
class Targets(Storable):
    """Tokens that are to be predicted, and where: the position at which each is predicted is the one before it.

    `row`, `position` and `token` are parallel. `word` says which of `words` a token is a piece of; the pieces of a word
    stand side by side and in order.
    """

    row: Int[Tensor, " target"]
    position: Int[Tensor, " target"]
    token: Int[Tensor, " target"]
    word: Int[Tensor, " target"]
    words: tuple[str, ...]

    @classmethod
    def last(cls, model: HookedMLLM, inputs: Inputs, tokens: Int[Tensor, " batch"]) -> "Targets":
        """Return one target for each row: its token, which the last position predicts."""
        rows = torch.arange(len(inputs))
        return cls(
            row=rows,
            position=torch.full_like(rows, inputs.tokens.shape[1] - 1),
            token=tokens.cpu(),
            word=rows,
            words=tuple(text.strip() for text in model.to_str_tokens(tokens)),
        )

    def __len__(self) -> int:
        return len(self.token)

    def __repr__(self) -> str:
        return f"Targets({len(self)} tokens of {len(self.words)} words: {', '.join(self.words[:6])})"

    def first(self) -> "Targets":
        """Return the first token of each word only."""
        new = torch.ones_like(self.word, dtype=torch.bool)
        new[1:] = self.word[1:] != self.word[:-1]
        return replace(self, **{name: getattr(self, name)[new] for name in ("row", "position", "token", "word")})

    def mean(self, scores: Float[Tensor, "target *rest"]) -> Float[Tensor, "word *rest"]:
        """Return the mean of each word's tokens' scores."""
        sums = scores.new_zeros(len(self.words), *scores.shape[1:]).index_add_(0, self.word.to(scores.device), scores)
        counts = torch.bincount(self.word, minlength=len(self.words)).to(sums)
        return sums / counts.view(-1, *[1] * (scores.ndim - 1))


def answer_word(answer: str, word: str | None = None) -> tuple[str, str]:
    """Return the answer up to a word (without trailing space), and that word: `("the", "tree")` for "the tree".

    `word` is looked up in the answer, whatever its case. None is the last word of an answer of up to four words, else the
    first word that is no function word (else the first). Raises ValueError for a word that the answer does not have, and
    for an answer without words.
    """
    if word is not None:
        if not word.strip():
            raise ValueError("the word to look at holds at least one letter, got an empty one")
        pattern = rf"(?<!\w){re.escape(word.strip())}(?!\w)"
        found = re.search(pattern, answer, flags=re.IGNORECASE)
        if found is None:
            raise ValueError(f"the word to look at occurs in the answer; the answer is {answer!r}, the word {word!r}")
        return answer[: found.start()].rstrip(), found.group()
    words = list(_WORD.finditer(answer)) or list(re.finditer(r"\S+", answer))
    if not words:
        raise ValueError("an answer with words has one to look at; this answer is empty")
    content = (found for found in words if found.group().lower() not in FUNCTION_WORDS)
    chosen = words[-1] if len(words) <= SHORT else next(content, words[0])
    return answer[: chosen.start()].rstrip(), chosen.group()


def first_token(model: HookedMLLM, new: Int[Tensor, " new"], start: int) -> int:
    """Return which of the `new` tokens brings the first character of the text's word that begins at `start`.

    It is found in the tokens that the model itself wrote, so that no text is tokenized a second time and differently.
    Raises ValueError where the text ends before `start`.
    """
    lead = len(whole := _text(model, new)) - len(whole.lstrip())
    for index in range(len(new)):
        if len(_text(model, new[: index + 1])) > lead + start:
            return index
    raise ValueError(f"the text {whole.strip()!r} has no character {start}")


def continued(inputs: Inputs, tokens: Int[Tensor, " new"]) -> Inputs:
    """Return `inputs` (one row) with `tokens` behind them, as the group `answer`: what the model has written so far."""
    if len(inputs) != 1:
        raise ValueError(f"tokens are put behind one row, got {len(inputs)} rows")

    def longer(values: Tensor, fill: Tensor | int | bool) -> Tensor:
        new = torch.as_tensor(fill, dtype=values.dtype, device=values.device).expand(1, len(tokens))
        return torch.cat([values, new], dim=1)

    return replace(
        inputs,
        tokens=longer(inputs.tokens, tokens.to(inputs.tokens)),
        attention_mask=longer(inputs.attention_mask, 1),
        modality=longer(inputs.modality, MODALITIES.index("text")),
        medium=longer(inputs.medium, -1),
        answer=longer(inputs.answer, True),
    )


def _text(model: HookedMLLM, tokens: Tensor) -> str:
    return model.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
