"""Answers as readers give them: numbers, words, masks, neurons, from whatever type they come in."""

import math
import re

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from mmlens.neurons import Neurons


class Unreadable(Exception):
    """An answer is not of the kind that is asked for; the message is the hint."""


def number(answer: object) -> float:
    """Return a finite number, of a Python or numpy number or a tensor of one element."""
    value = _only(answer, "a number")
    if not math.isfinite(value):
        raise Unreadable(f"the answer is {value}: look for a mean over nothing, or a logarithm of 0")
    return value


def whole(answer: object) -> int:
    """Return a whole number, which may come as a float or as a tensor of one element."""
    value = _only(answer, "a whole number")
    if not math.isfinite(value) or value != round(value):
        raise Unreadable(f"a whole number is asked for, got {value:g}")
    return round(value)


def pair(answer: object) -> tuple[int, int]:
    """Return two whole numbers: (layer, head)."""
    if isinstance(answer, Tensor | np.ndarray):
        answer = answer.tolist()
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise Unreadable(
            f"two whole numbers are asked for, (layer, head), got {_kind(answer)}: divmod takes a flat index apart"
        )
    return whole(answer[0]), whole(answer[1])


def word(answer: object) -> str:
    """Return a word in small letters, without spaces around it or an article."""
    if not isinstance(answer, str):
        raise Unreadable(f"a word is asked for, as text, got {_kind(answer)}")
    return re.sub(r"^(the|an|a) +", "", answer.strip().lower())


def mask(answer: object) -> Bool[Tensor, "..."]:
    """Return a mask of positions, of any shape."""
    if not isinstance(answer, Tensor | np.ndarray | list | tuple):
        raise Unreadable(f"a mask of positions is asked for, a tensor of booleans, got {_kind(answer)}")
    found = torch.as_tensor(answer).detach().cpu()
    if found.dtype != torch.bool:
        raise Unreadable(f"a mask holds booleans, got {found.dtype}: compare with something, as in `values > 0.5`")
    return found


def neuron(answer: object) -> tuple[int, int]:
    """Return (layer, unit) of one neuron of the language model, from a label, a tuple or `Neurons` of one."""
    if isinstance(answer, Neurons):
        if len(answer) != 1:
            raise Unreadable(f"one neuron is asked for, got {len(answer)}: neurons[[i]] is the i-th alone")
        answer = next(iter(answer))
    if isinstance(answer, str):
        found = re.fullmatch(r"L(\d{1,9})\.u(\d{1,9})", answer.strip())
        if found is None:
            raise Unreadable("a neuron is asked for; its label reads as L0.u12 does: layer and unit, both from 0")
        return int(found[1]), int(found[2])
    if isinstance(answer, tuple | list) and len(answer) in (2, 3):
        return whole(answer[-2]), whole(answer[-1])
    raise Unreadable(f"a neuron is asked for, as a label ('L0.u12') or as (layer, unit), got {_kind(answer)}")


def _only(answer: object, wanted: str) -> float:
    """Return the one number that an answer is, or raise Unreadable."""
    if isinstance(answer, Tensor | np.ndarray | np.generic):
        shape = list(answer.shape)
        if math.prod(shape) != 1:
            raise Unreadable(
                f"{wanted} is asked for, got a tensor of shape {shape}: which axis is still there, batch or pos?"
            )
        answer = answer.item()
    if isinstance(answer, bool):
        raise Unreadable(f"{wanted} is asked for, got {answer}: a comparison says yes or no")
    if isinstance(answer, str | bytes) or not hasattr(answer, "__float__"):
        raise Unreadable(f"{wanted} is asked for, got {_kind(answer)}")
    return float(answer)  # pyright: ignore[reportArgumentType]


def _kind(answer: object) -> str:
    return "text" if isinstance(answer, str) else f"something of the type {type(answer).__name__}"
