"""What an analysis is about: the word of an answer, the nouns of a caption, and the tokens that wrote them."""

from mmlens.targets.answers import FUNCTION_WORDS, answer_word, first_token
from mmlens.targets.captions import nouns
from mmlens.targets.lexicon import NOUNS, in_lexicon, nltk_nouns, spacy_nouns
from mmlens.targets.tokens import Targets
from mmlens.targets.written import continued

__all__ = [
    "FUNCTION_WORDS",
    "NOUNS",
    "Targets",
    "answer_word",
    "continued",
    "first_token",
    "in_lexicon",
    "nltk_nouns",
    "nouns",
    "spacy_nouns",
]
