"""Every way in which scenes are asked about a noun, and about everything else: what an edit of the noun is tried on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from mmlens.organisms.pictoworld.facts import DEFINITIONS
from mmlens.organisms.pictoworld.scenes import Scene
from mmlens.organisms.pictoworld.text import CAPTION_PROMPT, Described


@dataclass(frozen=True)
class Prompt:
    """One prompt with its picture (None: words alone), its right answer, and the object asked about, where there is one.

    `scene` counts the scenes that the prompts were made from.
    """

    text: str
    image: Image.Image | None
    answer: str
    object: Described | None
    scene: int


def mentions(scenes: Sequence[Scene], noun: str) -> dict[str, list[Prompt]]:
    """The prompts about scenes by what they ask for, in the order of the scenes. Raises ValueError for an unknown noun.

    About the noun: "by color" and "by place" (questions whose answer it is), "in captions" (of scenes with it), "in notes"
    (the question by color about the scene's description, without its picture) and "defined" (one, in words). About all
    else: "beside it by color", "beside it by place" (other objects of scenes with it), "elsewhere by color", "elsewhere by
    place" and "captions elsewhere" (scenes without it).
    """
    if noun not in DEFINITIONS:
        raise ValueError(f"nouns of this world are {', '.join(DEFINITIONS)}, got {noun!r}")
    found: dict[str, list[Prompt]] = {}

    def put(name: str, *prompt) -> None:
        found.setdefault(name, []).append(Prompt(*prompt))

    for index, scene in enumerate(scenes):
        there = any(thing.noun == noun for thing in scene.objects)
        for question in scene.questions:
            if question.object is None:
                continue
            how = "by color" if question.kind == "color" else "by place"
            own = question.object.noun == noun
            where = "" if own else "beside it " if there else "elsewhere "
            put(where + how, question.text, scene.image, question.answer, question.object, index)
            if own and question.kind == "color":
                notes = f"{scene.notes} {question.text}"
                put("in notes", notes, None, question.answer, question.object, index)
        caption = "in captions" if there else "captions elsewhere"
        put(caption, CAPTION_PROMPT, scene.image, scene.caption, None, index)
    put("defined", f"which object {DEFINITIONS[noun]} ? answer :", None, f"the {noun}", None, len(scenes))
    return found
