"""What an exercise is, what it makes of an answer, and the verdict that a reader sees."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import torch

from mmlens.teaching.reading import Unreadable

Status = Literal["right", "not yet", "not tried"]
COLOURS: dict[Status, str] = {"right": "#2e7d32", "not yet": "#b26a00", "not tried": "#757575"}


@dataclass(frozen=True, repr=False)
class Verdict:
    """What came of an answer: "right", "not yet" with a hint, or "not tried"."""

    exercise: str
    status: Status
    hint: str = ""

    def __repr__(self) -> str:
        return f"{self.exercise}: {self.status}" + (f": {self.hint}" if self.hint else "")

    def _repr_html_(self) -> str:
        colour, hint = COLOURS[self.status], f": {escape(self.hint)}" if self.hint else ""
        return f'{escape(self.exercise)}: <b style="color: {colour}">{self.status}</b>{hint}'


@dataclass(frozen=True)
class Exercise:
    """A question, how its answers are read, and what is said of one: None if it is right, else a hint."""

    name: str
    question: str
    read: Callable[[object], Any]
    judge: Callable[[Any], str | None]


EXERCISES: dict[str, Exercise] = {}


def exercise(name: str, read: Callable[[object], Any]) -> Callable[[Callable[[Any], str | None]], Exercise]:
    """Return the decorator that makes an exercise of a judge; its docstring is the question."""

    def made(judge: Callable[[Any], str | None]) -> Exercise:
        EXERCISES[name] = Exercise(name, " ".join((judge.__doc__ or "").split()), read, judge)
        return EXERCISES[name]

    return made


def exercises() -> dict[str, str]:
    """Return the question of every exercise by its name, `notebook/what it is about`, notebook by notebook."""
    return {name: EXERCISES[name].question for name in sorted(EXERCISES, key=lambda name: name.split("/")[0])}


@torch.no_grad()
def check(name: object, answer: object = None) -> Verdict:
    """Return what an answer to an exercise is: right, not yet, with a hint, or not tried (None and `...` are not).

    It never raises: whatever an answer is that cannot be read or compared, the hint says so.
    """
    found = EXERCISES.get(name) if isinstance(name, str) else None
    if found is None:
        told = str(name) if isinstance(name, str) else type(name).__name__
        return Verdict(told, "not yet", f"no exercise has this name; there are {', '.join(exercises())}")
    if answer is None or answer is ...:
        return Verdict(found.name, "not tried")
    try:
        hint = found.judge(found.read(answer))
    except Unreadable as said:
        hint = str(said)
    except Exception as error:
        hint = f"an answer of the type {type(answer).__name__} can't be compared here ({type(error).__name__})"
    return Verdict(found.name, "not yet", hint) if hint else Verdict(found.name, "right")


def compared(given: float, right: float, mistakes: Mapping[str, float], otherwise: str, within: float = 0.01) -> str | None:
    """Return None for a number that is right, else the hint of the mistake that gives it.

    Numbers are alike that differ by less than `within` of the larger, or by less than 0.0005.
    """

    def is_like(value: float) -> bool:
        return abs(given - value) <= max(within * max(abs(given), abs(value)), 5e-4)

    if is_like(right):
        return None
    named = next((hint for hint, value in mistakes.items() if is_like(value)), None)
    return named or ("the size is right, the sign is not" if is_like(-right) else otherwise)


def told_apart(given: Any, right: Any, mistakes: Mapping[str, Sequence[Any]], otherwise: str) -> str | None:
    """Return None for what is right (an index, a pair), else the hint of the mistake among whose values it is."""
    if given == right:
        return None
    return next((hint for hint, values in mistakes.items() if given in values), otherwise)
