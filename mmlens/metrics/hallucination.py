"""Metrics of what a model makes up: CHAIR for captions, POPE for questions about objects."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from mmlens.metrics.answers import said_yes, yes_no

_NAMES = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie,
suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket,
bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut,
cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave,
oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"""
_IRREGULAR = {"person": ("people",), "mouse": ("mice",)}

COCO_OBJECTS: Mapping[str, tuple[str, ...]] = {
    name: _IRREGULAR.get(name, ()) for name in _NAMES.replace("\n", " ").split(", ")
}
"""COCO's 80 categories by name, without synonyms ("man", "sofa"): bring your own for numbers that compare with others'."""


@dataclass(frozen=True)
class ChairScores:
    """How much a set of captions makes up: CHAIR_s and CHAIR_i (lower is better), and the counts behind them."""

    sentence: float
    instance: float
    captions: int
    mentions: int
    made_up: int


@dataclass(frozen=True)
class Chair:
    """CHAIR (Rohrbach et al. 2018): which objects a caption mentions that the picture does not hold.

    `objects` maps an object's name to what else it is called. Of every name the usual plurals are known too, and the
    longest name wins ("hot dog" is no dog). What a picture holds is given as `answers`: names of objects, gold captions, or
    both (the paper takes both); objects are looked up in them as in the caption. The methods are metrics: 1 is all made up.
    """

    objects: Mapping[str, Sequence[str]]
    _named: Mapping[str, str] = field(init=False, repr=False)
    _pattern: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        named: dict[str, str] = {}
        for name, synonyms in self.objects.items():
            if isinstance(synonyms, str):
                raise TypeError(
                    f"an object's other names are a sequence, {name!r} has the string {synonyms!r}: put it in a list"
                )
            for form in (form for word in (name, *synonyms) for form in forms(_spaced(word))):
                if named.setdefault(form, name) != name:
                    raise ValueError(f"a word names one object, {form!r} names {named[form]!r} and {name!r}: take one away")
        if not named:
            raise ValueError("CHAIR looks for objects, got none: give {name: other names}")
        longest = sorted(named, key=len, reverse=True)
        object.__setattr__(self, "_named", named)
        object.__setattr__(self, "_pattern", re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)"))

    def mentioned(self, text: str) -> list[str]:
        """Return the objects that a text mentions, by name, in order, as often as it mentions them."""
        return [self._named[found] for found in self._pattern.findall(_spaced(text))]

    def made_up(self, answer: str, answers: Sequence[str]) -> list[str]:
        """Return the mentions in `answer` of objects that none of `answers` mentions."""
        if isinstance(answers, str):
            raise TypeError(f"what a picture holds is a list of strings, got the string {answers!r}: put it into one")
        if not answers:
            raise ValueError('what the picture holds is names or captions, got none: give them, and [""] where it is empty')
        held = {name for gold in answers for name in self.mentioned(gold)}
        return [name for name in self.mentioned(answer) if name not in held]

    def sentence(self, answer: str, answers: Sequence[str]) -> float:
        """Return 1 where the caption mentions an object that is not there: its mean is CHAIR_s."""
        return float(bool(self.made_up(answer, answers)))

    def instance(self, answer: str, answers: Sequence[str]) -> float:
        """Return the fraction of mentions that are made up, 0 for a caption without any.

        Its mean weighs captions alike: CHAIR_i is a ratio of totals, see `corpus`.
        """
        return len(self.made_up(answer, answers)) / max(len(self.mentioned(answer)), 1)

    def recall(self, answer: str, answers: Sequence[str]) -> float:
        """Return the fraction of the objects that the picture holds which the caption mentions, each counted once.

        It is no part of CHAIR, and says whether a model that makes up less also says less. Raises ValueError where `answers`
        name no object.
        """
        held = {name for gold in answers for name in self.mentioned(gold)}
        if isinstance(answers, str) or not held:
            raise ValueError(f"recall is of the objects that a picture holds, and none is named in {answers!r}")
        return len(held & set(self.mentioned(answer))) / len(held)

    def corpus(self, captions: Sequence[str], answers: Sequence[Sequence[str]]) -> ChairScores:
        """Return CHAIR_s and CHAIR_i of captions and what their pictures hold: made-up mentions by all mentions.

        CHAIR_i is NaN where no caption mentions an object.
        """
        made_up = [self.made_up(*pair) for pair in zip(captions, answers, strict=True)]
        if not made_up:
            raise ValueError("CHAIR needs one caption or more, got none")
        mentions = sum(len(self.mentioned(caption)) for caption in captions)
        total = sum(map(len, made_up))
        return ChairScores(
            sentence=sum(map(bool, made_up)) / len(made_up),
            instance=total / mentions if mentions else float("nan"),
            captions=len(made_up),
            mentions=mentions,
            made_up=total,
        )


def chair(objects: Mapping[str, Sequence[str]] = COCO_OBJECTS) -> Chair:
    """Return CHAIR for objects and their other names: `chair().sentence` and `chair().instance` are metrics."""
    return Chair(objects)


@dataclass(frozen=True)
class PopeScores:
    """How well yes-no questions were answered, "yes" being the positive class, and the fraction of yes.

    `unclear` of the `n` answers have neither word: they are wrong, and no yes. Precision and F1 are 0 where they have no
    meaning.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_rate: float
    n: int
    unclear: int


def pope(answers: Sequence[str], golds: Sequence[str]) -> PopeScores:
    """Return POPE's scores (Li et al. 2023) of answers and their gold "yes" or "no".

    An answer is what `yes_no` reads in it; the authors' script counts every answer without a "no" or "not" as a yes.
    """
    from torchmetrics.functional import classification  # seconds, that most users of metrics need not wait for

    if not answers or len(answers) != len(golds):
        raise ValueError(f"POPE needs one gold answer for each answer, got {len(answers)} answers and {len(golds)} golds")
    right = [yes_no(*pair) for pair in zip(answers, ([gold] for gold in golds), strict=True)]
    said = [said_yes(answer) for answer in answers]
    yes = torch.tensor([one is True for one in said])
    truth = torch.tensor([said_yes(gold) is True for gold in golds])
    return PopeScores(
        accuracy=sum(right) / len(right),
        precision=float(classification.binary_precision(yes, truth)),
        recall=float(classification.binary_recall(yes, truth)),
        f1=float(classification.binary_f1_score(yes, truth)),
        yes_rate=float(yes.double().mean()),
        n=len(said),
        unclear=said.count(None),
    )


def forms(word: str) -> list[str]:
    """Return a word and what its plural may look like: s, es, -ies, -ves."""
    forms = [word, f"{word}s", f"{word}es"]
    if word.endswith("y"):
        forms.append(f"{word[:-1]}ies")
    stem = word.removesuffix("e")
    if stem.endswith("f"):
        forms.append(f"{stem[:-1]}ves")
    return forms


def _spaced(text: str) -> str:
    """Return a text in lower case, with single spaces for spaces, hyphens and underscores."""
    return " ".join(re.split(r"[\s_-]+", text.lower().strip()))
