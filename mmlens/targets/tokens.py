"""Tokens that an analysis is about: where each is predicted, and which word it is a piece of."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Storable


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
        return self._those(new)

    def leading(self) -> "Targets":
        """Return the first word of each row only, with all of its tokens.

        Schwettmann et al. 2023 take `leading().first()` (methods A1).
        """
        begun = self.word.new_full((int(self.row.max()) + 1 if len(self) else 0,), len(self.words))
        begun.scatter_reduce_(0, self.row, self.word, "amin")
        chosen = self._those(self.word == begun[self.row])
        kept, word = chosen.word.unique(return_inverse=True)
        return replace(chosen, word=word, words=tuple(self.words[index] for index in kept.tolist()))

    def _those(self, chosen: Bool[Tensor, " target"]) -> "Targets":
        return replace(self, **{name: getattr(self, name)[chosen] for name in ("row", "position", "token", "word")})

    def mean(self, scores: Float[Tensor, "target *rest"]) -> Float[Tensor, "word *rest"]:
        """Return the mean of each word's tokens' scores."""
        sums = scores.new_zeros(len(self.words), *scores.shape[1:]).index_add_(0, self.word.to(scores.device), scores)
        counts = torch.bincount(self.word, minlength=len(self.words)).to(sums)
        return sums / counts.view(-1, *[1] * (scores.ndim - 1))
