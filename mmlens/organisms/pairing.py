"""Pairs of examples that differ in one thing: what a method compares when it asks what that thing changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

Example = TypeVar("Example")


def draw_pairs(
    world: Any,
    split: str,
    n: int,
    seed: int,
    *,
    change: Callable[[Any, np.random.Generator], tuple[Any, int] | None],
    compose: Callable[[Any, np.random.Generator, tuple[str, int, int]], Example],
) -> list[tuple[Example, Example, int]]:
    """n times a clean example, a corrupted one and the index of what differs, worded alike.

    world: what has `layout_at(split, seed, index)`, a layout and the generator that drew it, and `split_of(layout)`.
    change: a layout changed in one place, and which; None where this layout does not have what is to be changed.
    compose: the example of a layout.
    """
    found, index = [], 0
    while len(found) < n:
        layout, rng = world.layout_at(split, seed, index)
        # Both halves must belong to the split, so changes are drawn until one does; a few layouts are given up.
        for corrupted, position in filter(None, (change(layout, rng) for _ in range(20))):
            if world.split_of(corrupted) == split:
                wording = int(rng.integers(2**31))
                clean, other = (
                    compose(half, np.random.default_rng(wording), (split, seed, index)) for half in (layout, corrupted)
                )
                found.append((clean, other, position))
                break
        index += 1
    return found
