"""Metrics of answers: how right a model's text is, given the gold answers, from 0 (wrong) to 1 (right).

Each is a function `metric(answer, answers) -> float` of what the model wrote and of the gold answers. A judge (a second
model, a person) is any callable of that form. Case never counts. All raise ValueError where there is no gold answer.
Libraries are imported where they are used: torchmetrics takes seconds, and `mmlens.metrics` is imported by most rooms.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Metric = Callable[[str, Sequence[str]], float]

_NUMBERS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())}
_NUMBERS["none"] = "0"
_LETTER = re.compile(r"\W*([a-z])(?!\w)", re.IGNORECASE)


def exact_match(answer: str, answers: Sequence[str]) -> float:
    """Return 1 where the answer is one of `answers`, beside case, spaces and a full stop at its end (RS-VQA)."""
    return float(_plain(answer) in {_plain(gold) for gold in _golds(answers)})


def any_exact(answer: str, answers: Sequence[str]) -> float:
    """Return 1 where the answer is one of `answers`, as VQA compares words: no punctuation, no articles, numbers as digits.

    With the answers that their authors were sure of, this is VQAv2 as in MMNeuron (Huo et al. 2024), not its official score.
    """
    return float(_vqa(answer) in {_vqa(gold) for gold in _golds(answers)})


def vqa_score(answer: str, answers: Sequence[str]) -> float:
    """Return VQA's official soft score: the mean over people left out of min(1, as many others as said it / 3).

    `answers` has one entry per person (ten in VQAv2), repeated where they agree. Words are compared as by `any_exact`; the
    official script leaves them as they are where all people agree, and knows more contractions. (Antol et al. 2015.)
    """
    golds = _golds(answers)
    if len(golds) < 4:
        raise ValueError(
            f"the soft VQA score needs the answers of four people or more (VQAv2 has ten), got {len(golds)}: use any_exact"
        )
    said = [_vqa(gold) == _vqa(answer) for gold in golds]
    others = [sum(said) - own for own in said]
    return sum(min(1.0, count / 3) for count in others) / len(said)


def contains_any(answer: str, answers: Sequence[str]) -> float:
    """Return 1 where the answer holds one of `answers`, inside of a word too (TextVQA, MSVD-QA in Huang et al. 2024)."""
    return float(any(gold.strip().lower() in answer.lower() for gold in _golds(answers)))


def first_letter(answer: str, answers: Sequence[str]) -> float:
    """Return 1 where the letter that the answer begins with is the right option: "B", "(B)", "B. the liver", "b: liver".

    The letter stands alone ("Because" is no B). An answer that is one of `answers` word for word is right too: give the
    option's text beside its letter. (MMLU and PMC-VQA; MMNeuron counts every character that is the right letter.)
    """
    golds = _golds(answers)
    found = _LETTER.match(answer)
    letters = {gold.strip().lower() for gold in golds if len(gold.strip()) == 1}
    return float(found is not None and found[1].lower() in letters) or exact_match(answer, golds)


def label_in(answer: str, answers: Sequence[str]) -> float:
    """Return 1 where the answer holds one of `answers` as whole words; hyphens and underscores are spaces (VocalSound).

    An answer that lists every label is right too, as in Huang et al. 2024.
    """
    said = f" {' '.join(_words(answer))} "
    return float(any(f" {gold} " in said for gold in _spoken(answers)))


def word_accuracy(answer: str, answers: Sequence[str]) -> float:
    """Return 1 - WER against the gold text that fits best, and 0 where there are more errors than words (LibriSpeech).

    Case and punctuation do not count. Huang et al. 2024 call a text right as soon as it holds the gold text: here, words
    too many are errors.
    """
    from torchmetrics.functional.text import word_error_rate

    rates = (word_error_rate(" ".join(_words(answer)), gold) for gold in _spoken(answers))
    return max(0.0, 1.0 - min(float(rate) for rate in rates))


def anls(answer: str, answers: Sequence[str], *, threshold: float = 0.5) -> float:
    """Return 1 - the edit distance per letter of the longer text, for the gold answer that fits best (DocVQA).

    A distance of `threshold` or more counts as 0. (Biten et al. 2019; MMNeuron's code accepts any distance below 1.)
    """
    from torchmetrics.functional.text import edit_distance

    said = _spaced(answer)
    golds = [_spaced(gold) for gold in _golds(answers)]
    distances = (int(edit_distance(said, gold, reduction="sum")) / max(len(said), len(gold)) for gold in golds)
    best = min(distances)
    return 1.0 - best if best < threshold else 0.0


def bleu(answer: str, answers: Sequence[str]) -> float:
    """Return the BLEU-4 of one sentence against `answers` as its references (COCO captions).

    Counts of 0 are smoothed by a constant, as in Huang et al. 2024: an answer of fewer than four words has less than 1 even
    where it is right. Punctuation does not count. (Papineni et al. 2002; Chen and Cherry 2014, method 1.)
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    references = [_words(gold) for gold in _golds(answers)]
    score: Any = sentence_bleu(references, _words(answer), smoothing_function=SmoothingFunction().method1)
    return float(score)


def tfidf_cosine(answer: str, answers: Sequence[str]) -> float:
    """Return the largest cosine of TF-IDF vectors with one of `answers`, words' weights being of just these texts.

    This is what Huang et al. 2024 call CIDEr on COCO captions (scikit-learn's `TfidfVectorizer` on the answer and its gold
    captions), of whose n-grams and corpus it knows nothing: do not compare it with CIDEr. Words have two letters or more.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    golds, vectorizer = _golds(answers), TfidfVectorizer()
    if not any(vectorizer.build_analyzer()(gold) for gold in golds):
        raise ValueError(f"this metric compares words of two letters or more, {golds} have none: take exact_match")
    found: Any = vectorizer.fit_transform([answer, *golds])
    return round(float((found[1:] @ found[0].T).max()), 12)  # equal texts have 1, and not a rounding error less


def embedding_cosine(embed: Callable[[list[str]], Any]) -> Metric:
    """Return a metric: the largest cosine (-1 to 1) of the answer's embedding with that of one of `answers`.

    `embed` returns an array [text, d] of a list of texts: `SentenceTransformer("paraphrase-MiniLM-L6-v2").encode` is that of
    Huang et al. 2024. An embedding of zeros has cosine 0. The metric raises ValueError for another shape.
    """

    def similarity(answer: str, answers: Sequence[str]) -> float:
        texts = [answer, *_golds(answers)]
        vectors = np.asarray(embed(texts), dtype=np.float64)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ValueError(f"embeddings of {len(texts)} texts are [{len(texts)}, d], got {list(vectors.shape)}")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = vectors / np.where(lengths > 0, lengths, 1)
        return float((unit[1:] @ unit[0]).max())

    return similarity


def yes_no(answer: str, answers: Sequence[str]) -> float:
    """Return 1 where the answer's first yes or no is the gold one; an answer with neither is wrong (POPE)."""
    return float(said_yes(answer) in {_gold_yes(gold) for gold in _golds(answers)})


def said_yes(answer: str) -> bool | None:
    """Return whether the first yes or no in a text is a yes, and None where it has neither."""
    return next((word == "yes" for word in _words(answer) if word in ("yes", "no")), None)


def _gold_yes(gold: str) -> bool:
    said = said_yes(gold)
    if said is None:
        raise ValueError(f"a gold answer to a yes-no question is yes or no, got {gold!r}: take another metric")
    return said


def _golds(answers: Sequence[str]) -> list[str]:
    """Return the gold answers that have text. Raises TypeError for one string, ValueError where there is none."""
    if isinstance(answers, str):
        raise TypeError(f"gold answers are a sequence of strings, got the string {answers!r}: put it into a list")
    golds = [gold for gold in answers if gold.strip()]
    if not golds:
        raise ValueError(f"a metric compares with gold answers, got {list(answers)}: leave this example out")
    return golds


def _spoken(answers: Sequence[str]) -> list[str]:
    """Return the words of the gold answers that have any, with single spaces. Raises ValueError where none has."""
    spoken = [" ".join(words) for gold in _golds(answers) if (words := _words(gold))]
    if not spoken:
        raise ValueError(f"this metric compares words, and none of {list(answers)} has any: take exact_match")
    return spoken


def _spaced(text: str) -> str:
    """Return a text in lower case, with single spaces."""
    return " ".join(text.lower().split())


def _plain(text: str) -> str:
    return _spaced(text).rstrip(".").rstrip()


def _words(text: str) -> list[str]:
    """Return a text's words in lower case, apostrophes inside of them kept; hyphens and underscores part words."""
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower().replace("’", "'"))


def _vqa(text: str) -> str:
    """Return a text as VQA compares it: words without punctuation, number words as digits, no articles beside others."""
    words = re.sub(r"[^\w\s.:]|(?<!\d)[.:]|[.:](?!\d)", "", text.lower()).split()
    named = [word for word in words if word not in ("a", "an", "the")]
    return " ".join(_NUMBERS.get(word, word) for word in named or words)  # the answer "A" may be a letter on a sign


METRICS: Mapping[str, Metric] = {
    metric.__name__: metric
    for metric in (
        exact_match,
        any_exact,
        vqa_score,
        contains_any,
        first_letter,
        label_in,
        word_accuracy,
        anls,
        bleu,
        tfidf_cosine,
        yes_no,
    )
}
