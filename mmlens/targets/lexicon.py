"""Which words are nouns: a lexicon that ships, and taggers whose data a user has."""

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from mmlens.metrics import COCO_OBJECTS
from mmlens.metrics.hallucination import forms
from mmlens.organisms import pictosound, pictoworld
from mmlens.targets.written import WORD

NOUNS: frozenset[str] = frozenset(
    form
    for name in (
        *pictoworld.NOUNS,
        *pictosound.NOUNS,
        *(name.split()[-1] for name in COCO_OBJECTS),
        *(other for others in COCO_OBJECTS.values() for other in others),
    )
    for form in forms(name)
)
"""The nouns of the organisms' worlds and of COCO's 80 categories, with what their plurals may look like.

Of a category of several words ("traffic light") it is the last, which names the thing; other nouns are not in it.
"""
_MARKED = re.compile(rf"{WORD.pattern}|[^\w\s]")


def in_lexicon(word: str) -> bool:
    """Return whether a word, in any case, is in `NOUNS`."""
    return word.lower() in NOUNS


def nltk_nouns(texts: Sequence[str]) -> Callable[[str], bool]:
    """Return whether a word is one that NLTK's `pos_tag` takes for a noun anywhere in these texts (tags NN to NNPS).

    `nouns(model, inputs, written, is_noun=nltk_nouns(written.text))`. A word that is a noun in one place and none in another
    counts as one in both. Raises LookupError where NLTK has no data, which it does not come with.
    """
    from nltk import pos_tag

    try:
        tagged = [pair for text in texts for pair in pos_tag(_MARKED.findall(text))]
    except LookupError as error:
        raise LookupError(
            "NLTK's tagger needs its data, which is no package: run "
            "`python -m nltk.downloader averaged_perceptron_tagger_eng` once (it goes to ~/nltk_data or $NLTK_DATA)"
        ) from error
    return frozenset(word for word, tag in tagged if tag.startswith("NN")).__contains__


def spacy_nouns(texts: Sequence[str], *, model: str = "en_core_web_sm") -> Callable[[str], bool]:
    """Return whether a word is one that a spaCy pipeline takes for a noun anywhere in these texts (NOUN or PROPN).

    spaCy splits words at hyphens, so a hyphenated word counts by its last part. Raises ImportError without spaCy, and
    OSError where the pipeline `model` is not installed.
    """
    try:
        spacy: Any = import_module("spacy")
    except ImportError as error:
        raise ImportError(
            "this tagger is spaCy's: run `pip install 'mmlens[taggers]'`, or take in_lexicon or nltk_nouns"
        ) from error
    try:
        pipeline = spacy.load(model)
    except OSError as error:
        raise OSError(
            f"spaCy's pipeline {model!r} is not installed, and is no package on PyPI: run `python -m spacy download {model}`"
        ) from error
    found = {token.text for text in texts for token in pipeline(text) if token.pos_ in ("NOUN", "PROPN")}
    return lambda word: word in found or word.rpartition("-")[2] in found
