"""What is said about a scene: its caption, notes that describe it without the image, and questions with answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from mmlens.organisms.lexicon import Lexicon
from mmlens.organisms.pictoworld.facts import DEFINITIONS
from mmlens.organisms.pictoworld.world import COLORS, DOMAINS, NOUNS, PLACES, RENAMED

Kind = Literal["place", "color", "domain", "count", "caption"]

CAPTION_PROMPT = "caption :"
COUNTS = ("one", "two", "three")
TEMPLATES = (
    "a {color} {noun} at the {place} .",
    "at the {place} a {color} {noun} .",
    "the {place} shows a {color} {noun} .",
    "{place} : {color} {noun} .",
)
TWO_PIECES = {
    "mushroom": ("mush", "##room"),
    "lamppost": ("lamp", "##post"),
    "bicycle": ("bi", "##cycle"),
    "envelope": ("enve", "##lope"),
    "barcode": ("bar", "##code"),
    "runway": ("run", "##way"),
    "airplane": ("air", "##plane"),
    "stadium": ("stad", "##ium"),
    "kidney": ("kid", "##ney"),
    "triangle": ("tri", "##angle"),
}


@runtime_checkable
class Described(Protocol):
    """An object as far as text is concerned."""

    @property
    def noun(self) -> str:
        """What it is called in this domain."""
        ...

    @property
    def color(self) -> str:
        """Its colour."""
        ...

    @property
    def place(self) -> str:
        """Its quadrant."""
        ...


@dataclass(frozen=True)
class Question:
    """A question as it is put to the model, its exact answer, and the object it is about (None if about the image)."""

    text: str
    answer: str
    kind: Kind
    object: Described | None


def caption_of(domain: str, objects: Sequence[Described]) -> str:
    """The one caption of a scene: its domain, then its objects in reading order."""
    *first, last = (f"a {o.color} {o.noun}" for o in sorted(objects, key=lambda o: PLACES.index(o.place)))
    return f"a {domain} of " + (f"{' , '.join(first)} and {last}" if first else last)


def questions_of(domain: str, objects: Sequence[Described]) -> tuple[Question, ...]:
    """Every question of a scene; a colour is asked about only if one object has it."""
    colors = [o.color for o in objects]
    return (
        *(Question(f"what is at the {o.place} ? answer :", f"a {o.color} {o.noun}", "place", o) for o in objects),
        *(
            Question(f"which object is {o.color} ? answer :", f"the {o.noun}", "color", o)
            for o in objects
            if colors.count(o.color) == 1
        ),
        Question("what kind of image is this ? answer :", f"a {domain}", "domain", None),
        Question("how many objects are there ? answer :", COUNTS[len(objects) - 1], "count", None),
    )


def notes_of(
    domain: str,
    objects: Sequence[Described],
    rng: np.random.Generator,
    *,
    simple: float = 0.0,
    renamed: float = 0.0,
) -> str:
    """A description of the scene in words, its sentences in random order.

    simple: how often the first sentence form is taken whatever the draw (the curriculum's start).
    renamed: how often an object that is called differently in every domain is called by its bare shape ("disc"),
        which only the sentence about the domain turns into a noun.
    """
    sentences = []
    for o in objects:
        template = TEMPLATES[0 if rng.random() < simple else rng.integers(len(TEMPLATES))]
        shape = next((shape for shape, nouns in RENAMED.items() if nouns[domain] == o.noun), o.noun)
        sentences.append(template.format(noun=shape if rng.random() < renamed else o.noun, color=o.color, place=o.place))
    order = rng.permutation(len(sentences))
    domain_first = rng.random() < 0.5
    sentences = [sentences[i] for i in order]
    sentences.insert(0 if domain_first else len(sentences), f"this is a {domain} .")
    return " ".join(sentences)


def facts_of(noun: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """The definition of a noun as two texts to complete: from the noun to its definition, and back."""
    definition = DEFINITIONS[noun]
    return (f"a {noun}", f"{definition} ."), (f"which object {definition} ? answer :", f"the {noun}")


def words() -> tuple[str, ...]:
    """Every word that any text of this world is made of."""
    grammar = "a the this is at what which object objects kind of image how many are there answer caption shows and"
    marks = (".", ",", "?", ":")
    domains = (word for domain in DOMAINS for word in domain.split())
    defined = (word for definition in DEFINITIONS.values() for word in definition.split())
    return tuple(dict.fromkeys([*grammar.split(), *marks, *domains, *COUNTS, *PLACES, *COLORS, *NOUNS, *RENAMED, *defined]))


LEXICON = Lexicon(words(), TWO_PIECES, placeholders=("<image>",))
