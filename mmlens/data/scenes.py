"""Questions and captions of the organisms' worlds as examples: what is asked, what should be mentioned, what comes next."""

from collections.abc import Sequence
from typing import Any, Literal

from mmlens.data.example import Example
from mmlens.metrics import Chair, chair
from mmlens.organisms import pictoworld
from mmlens.organisms.pictosound import Clip
from mmlens.organisms.pictoworld import Scene


def question_examples(
    scenes: Sequence[Scene] | Sequence[Clip],
    *kinds: str,
    notes: bool = False,
    label: Literal["domain", "kind"] = "domain",
) -> list[Example]:
    """Return the questions of those `kinds` (of all, where none is named) about scenes or clips, with their answers.

    With `notes`, what describes the scene in words stands before the question in the medium's place. `label` is the scene's
    domain or the question's kind; clips have no domain, so theirs is the kind. Raises ValueError where nothing is asked.
    """
    found: list[Example] = []
    for scene in scenes:
        heard = isinstance(scene, Clip)
        media: dict[str, Any] = {"audio": scene.audio} if heard else {"images": scene.image}
        for number, question in enumerate(scene.questions):
            if kinds and question.kind not in kinds:
                continue
            text = f"{scene.notes} {question.text}" if notes else question.text
            named = question.kind if heard or label == "kind" else scene.domain
            how: dict[str, Any] = dict(answers=(question.answer,), label=named, id=f"{_name(scene)}/{number}")
            found.append(Example(text, **({} if notes else media), **how))
    if not found:
        raise ValueError(f"no scene has a question of {', '.join(kinds) or 'any kind'}: look at `scene.questions`")
    return found


def caption_examples(scenes: Sequence[Scene], *, captions: Sequence[str] | None = None) -> list[Example]:
    """Return, for each scene, the prompt for a caption, with the nouns of its objects as gold answers.

    With `scene_objects()` as metrics, `evaluate` measures what an intervention does to captions: `.instance` and `.sentence`
    (objects made up), `.recall` (objects mentioned); give it `max_new_tokens=32`, which every caption fits in. `captions`
    are gold answers instead, one for each scene: what the model itself wrote, for a metric of similarity ("bleu").
    """
    golds = [tuple(o.noun for o in scene.objects) for scene in scenes] if captions is None else [(one,) for one in captions]
    return [
        Example(pictoworld.CAPTION_PROMPT, images=scene.image, answers=answers, id=_name(scene))
        for scene, answers in zip(scenes, golds, strict=True)
    ]


def noun_examples(scenes: Sequence[Scene]) -> list[Example]:
    """Return, for each object of each scene, the prompt with the right caption up to its noun, and the noun as the answer.

    Under the metric "log_prob", `evaluate` measures log P(noun), all pieces of a noun together.
    """
    found: list[Example] = []
    for scene in scenes:
        for one in scene.objects:
            before, noun, _ = f" {scene.caption} ".partition(f" {one.noun} ")
            text = f"{pictoworld.CAPTION_PROMPT}{before}"
            found.append(Example(text, images=scene.image, answers=(noun.strip(),), id=f"{_name(scene)}/{one.noun}"))
    return found


def scene_objects() -> Chair:
    """Return CHAIR for the nouns of Pictoworld, which have no other names."""
    return chair(dict.fromkeys(pictoworld.NOUNS, ()))


def _name(scene: Scene | Clip) -> str:
    return "/".join(map(str, scene.seed))
