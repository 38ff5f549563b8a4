"""Which word of an answer an analysis is about, and which token of what the model wrote begins it."""

import re

from jaxtyping import Int
from torch import Tensor

from mmlens.model import HookedMLLM
from mmlens.targets.written import WORD, covered

SHORT = 4
FUNCTION_WORDS = frozenset(
    "a an the this that these those it its there here is are was were be been being am do does did has have had i you he "
    "she we they my your his her our their of in on at to for from by with as and or but not no yes so if then than into "
    "over under image picture photo shows show showing appears can see which what who where".split()
)


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
    words = list(WORD.finditer(answer)) or list(re.finditer(r"\S+", answer))
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
    text, spans = covered(model, new)
    lead = len(text) - len(text.lstrip())
    for index, (_, stop) in enumerate(spans):
        if stop > lead + start:
            return index
    raise ValueError(f"the text {text.strip()!r} has no character {start}")
