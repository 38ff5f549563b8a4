"""What the rows of published data sets hold: what their prompts are filled with, media, gold answers and a name.

Pictures that lie in files, and videos, are given by their paths.
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from mmlens.data.unpacking import frames_of, picture_of, side_by_side, sound_of


def coco(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a picture's file and its captions."""
    return dict(images=row["filename"], answers=_texts(row["sentences"]), id=row.get("cocoid"))


def question(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question about a picture: TextVQA and DocVQA, and the others before their own answers are put in."""
    name = row.get("question_id", row.get("questionId"))
    return dict(question=row["question"].strip(), images=picture_of(row["image"]), answers=_texts(row["answers"]), id=name)


def vqav2(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question and the answers of ten people."""
    return question({**row, "answers": [one["answer"] for one in row["answers"] or ()]})


def vqav2_sure(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question and the answers whose authors were sure, each once."""
    sure = [one["answer"] for one in row["answers"] or () if one["answer_confidence"] == "yes"]
    return question({**row, "answers": list(dict.fromkeys(sure))})


def pope(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question with yes or no, labelled by how its object was chosen."""
    label = {"label": f"pope-{row['category']}"} if row.get("category") else {}
    return {**question({**row, "answers": [row["answer"]]}), "id": row.get("id"), **label}


def pmc_vqa(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question with four options: "A:..." as version 1 writes them, or bare; the letter and the text are right.

    Raises ValueError where the right option is no letter.
    """
    choices = [str(row[f"Choice {letter}"]).strip().removeprefix(f"{letter}:").strip() for letter in "ABCD"]
    right = (row.get("Answer_label") or row["Answer"]).strip().upper()
    if right not in list("ABCD"):
        raise ValueError(f"PMC-VQA's right option is a letter from A to D, got {right!r}: leave that row out")
    return dict(
        question=row["Question"].strip(),
        options=_options(choices),
        images=row["Figure_path"],
        answers=(right, choices["ABCD".index(right)]),
    )


def mmlu(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question of a subject with its options; the letter and the text are right."""
    choices, right = [choice.strip() for choice in row["choices"]], int(row["answer"])
    return dict(
        subject=row["subject"].replace("_", " "),
        question=row["question"].strip(),
        options=_options(choices),
        answers=("ABCD"[right], choices[right]),
    )


def lingoqa(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question about frames, which become one picture, and the answers of all people."""
    return dict(
        question=row["question"].strip(),
        images=side_by_side(row["images"]),
        answers=_texts(row["answer"]),
        id=row.get("question_id"),
    )


def rsvqa(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question about a picture's file."""
    return dict(question=row["question"].strip(), images=row["file"], answers=_texts(row["answers"]), id=row.get("id"))


def msvd(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question about a video, one frame a second."""
    return dict(
        question=row["question"].strip(), videos=frames_of(row["file"], 1.0), answers=(row["answer"],), id=row.get("id")
    )


def librispeech(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return an utterance and its words."""
    return dict(audio=sound_of(row["audio"]), answers=(row["text"],), id=row.get("id"))


def vocalsound(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sound and what it is, named by its file."""
    name = row["audio"].get("path")
    return dict(audio=sound_of(row["audio"]), answers=(row["answer"],), id=name and PurePath(name).name)


def _options(choices: list[str]) -> str:
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCDEFGH", choices, strict=False))


def _texts(answers: Any) -> tuple[str, ...]:
    """Return gold answers without the empty ones that stand for "none" in test splits."""
    return tuple(answer for answer in ([answers] if isinstance(answers, str) else answers or ()) if answer.strip())
