"""Examples by their places in a data set: in batches, from some place on, and known again by what some looked like."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, islice
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from mmlens.data.example import Example

Item = tuple[int, Callable[[], Any]]  # an example's place, from 0, and what reads it
NO_MARKS: Mapping[str, str] = MappingProxyType({})


@runtime_checkable
class Indexed(Protocol):
    """Examples by their place: a list, a `datasets.Dataset`, a torch Dataset that has a length."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __getitem__(self, place: int) -> Any:
        """Return one."""
        ...


def batches(examples: Iterable[Any] | Indexed, size: int, seen: int, marks: Mapping[str, str]) -> Iterator[list[Item]]:
    """Yield what is left of the examples behind the first `seen`, by `size`. Raises ValueError where `marks` are not met."""
    left = items(examples, seen, marks)
    while batch := list(islice(left, size)):
        if seen % size:
            raise ValueError(
                f"the sweep of the checkpoint was over, with {seen} examples, and now there are more: name another file for "
                "the rest, and merge the results"
            )
        yield batch


def items(examples: Iterable[Any] | Indexed, seen: int = 0, marks: Mapping[str, str] = NO_MARKS) -> Iterator[Item]:
    """Yield the examples behind the first `seen`. Raises ValueError where those at the places in `marks` look different."""
    everything: Iterable[Item]
    if isinstance(examples, Indexed):
        known = [int(place) for place in marks if int(place) < len(examples)]
        everything = ((place, partial(examples.__getitem__, place)) for place in chain(known, range(seen, len(examples))))
    else:
        everything = ((place, partial(_itself, example)) for place, example in enumerate(examples))
    met = 0
    for place, get in everything:
        if place >= seen:
            yield place, get
        elif str(place) in marks:
            met += 1
            if fingerprint((place, get)) != marks[str(place)]:
                raise ValueError(
                    f"the checkpoint is of other examples: number {place} is not the one that it was. Give the same ones in "
                    "the same order, or name another file"
                )
    if met < len(marks):
        raise ValueError(f"the checkpoint is of {seen} examples, and now there are fewer: name another file")


def _itself(example: Any) -> Any:
    return example


def fingerprint(item: Item) -> str:
    """Return a hash of an example's text, answers, label and id; its media are not read."""
    try:
        example = Example.of(item[1](), item[0])
    except Exception:
        return "unreadable"
    told = repr((example.text, example.answers, example.label, example.id))
    return hashlib.sha256(told.encode()).hexdigest()[:16]
