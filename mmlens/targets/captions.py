"""Every noun of a caption that the model itself wrote, token by token, where each was predicted."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from mmlens.inputs import Inputs
from mmlens.model import Generation, HookedMLLM
from mmlens.targets.lexicon import in_lexicon
from mmlens.targets.tokens import Targets
from mmlens.targets.written import WORD, continued, covered, without_end


def nouns(
    model: HookedMLLM,
    inputs: Inputs,
    written: Generation | Int[Tensor, "batch new"],
    *,
    is_noun: Callable[[str], bool] = in_lexicon,
) -> tuple[Inputs, Targets]:
    """Return `inputs` with what was written behind them, and the tokens of its nouns with the positions that predict them.

    One forward of these inputs has all of those positions: at each, the logits are those from which `generate` took the
    token. `written` is what `model.generate(inputs)` returned, or its new tokens; they are kept as they are, never
    tokenized again, and words are found in them by their characters. A noun is given each time that it occurs, with all
    of its pieces: `targets.first()` has the first one of each, `targets.mean` takes means over pieces. An end token and
    what pads a shorter row are left out.

    `is_noun` is asked about each word as it was written, without a possessive 's: a lexicon unless said (see `in_lexicon`),
    or a tagger (`nltk_nouns`, `spacy_nouns`). Raises ValueError for the tokens of another number of rows.

    Sources: Schwettmann et al. 2023 take the first noun's first token (methods A1), Pan et al. 2024 each noun's first token
    at that id's first occurrence, which may be in another word (methods B3, 2.d); `targets.first()` has the right one.
    """
    tokens = written.tokens[:, inputs.tokens.shape[1] :] if isinstance(written, Generation) else written
    if len(tokens) != len(inputs):
        raise ValueError(f"one row was written for each row, got {len(inputs)} rows of inputs and {len(tokens)} written")
    new = [without_end(model, row) for row in tokens]
    whole = continued(inputs, new, model=model)
    found: list[tuple[int, int, int, int]] = []  # row, position, token, word
    words: list[str] = []
    for row, own in enumerate(new):
        before = whole.tokens.shape[1] - len(own) - 1
        text, spans = covered(model, own)
        for word, start, stop in _words(text):
            if is_noun(word):
                pieces = [i for i, (begin, end) in enumerate(spans) if begin < end and begin < stop and end > start]
                found += [(row, before + piece, int(own[piece]), len(words)) for piece in pieces]
                words.append(word)
    row, position, token, word = torch.tensor(found, dtype=torch.long).reshape(-1, 4).T.contiguous()
    return whole, Targets(row=row, position=position, token=token, word=word, words=tuple(words))


def _words(text: str) -> list[tuple[str, int, int]]:
    """Return the words of a text, without a possessive 's, and where each begins and ends."""
    found: list[tuple[str, int, int]] = []
    for match in WORD.finditer(text):
        word = match.group()
        word = word[:-2] if word.lower().endswith(("'s", "’s")) else word
        found.append((word, match.start(), match.start() + len(word)))
    return found
