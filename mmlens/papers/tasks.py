"""What the last two papers do with neurons that statistics chose: tasks without them, beside random ones and each other."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor
from torch.utils.data import Subset

from mmlens.data import Example
from mmlens.evaluation import Evaluation
from mmlens.evaluation.scores import shown
from mmlens.evaluation.scoring import OF_LOGITS
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.papers.intervals import number, row
from mmlens.papers.reproduction import Row
from mmlens.sweeps import encoded

RESAMPLES = 1999
"""Draws behind every interval of a task: `evaluation.table(resamples=RESAMPLES)`."""


def by_label(examples: Sequence[Any], what: str, *, labels: int = 1) -> dict[str, list[int]]:
    """Return the places of each label's examples. Raises ValueError for an example without one, and too few labels."""
    found: dict[str, list[int]] = {}
    for place, one in enumerate(examples):
        label = Example.of(one, place).label
        if label is None:
            raise ValueError(f"every {what} example has a label, number {place} has none: give Example(..., label=...)")
        found.setdefault(label, []).append(place)
    if len(found) < labels:
        least = "a label" if labels == 1 else f"{labels} labels"
        raise ValueError(f"{what} examples are of {least} or more, got {len(found)}: {', '.join(found) or 'none'}")
    return found


def in_turn(places: Mapping[str, Sequence[int]]) -> list[int]:
    """Return all places, one of each label after the other, so that any first few are of all labels."""
    return [place for turn in zip_longest(*places.values()) for place in turn if place is not None]


def chosen(examples: Sequence[Any], places: Sequence[int]) -> Any:
    """Return the examples at some places, each read when it is asked for."""
    return Subset(examples, list(places))  # pyright: ignore[reportArgumentType] (what has a length and places will do)


@dataclass(frozen=True, eq=False)
class Looked:
    """A few examples that are looked at one by one: read, and as the model reads them."""

    examples: tuple[Example, ...]
    inputs: tuple[Inputs, ...]

    @classmethod
    def first(
        cls, model: HookedMLLM, examples: Sequence[Any], places: Sequence[int], number: int, *, chat: bool
    ) -> "Looked":
        """Return the first `number` of the examples at some places that show different media (fewer, if there are).

        Raises ValueError for a number below 1.
        """
        if number < 1:
            raise ValueError(f"one example or more is looked at, got looked_at={number}")
        found: dict[str, tuple[Example, Inputs]] = {}
        for place in places:
            if len(found) == number:
                break
            example = Example.of(examples[place], place)
            inputs = encoded(model, [example], chat=chat)
            found.setdefault(shown(inputs, 0), (example, inputs))
        read, inputs = zip(*found.values(), strict=True)
        return cls(read, inputs)

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of each."""
        return tuple(str(one.label) for one in self.examples)

    def having(self, *groups: str) -> Iterator[tuple[str, Inputs]]:
        """Yield the label and the inputs of those that have every one of some groups of positions."""
        for label, inputs in zip(self.labels, self.inputs, strict=True):
            if all(bool(inputs.mask(group).any()) for group in groups):
                yield label, inputs

    def present(self, groups: Sequence[str]) -> tuple[str, ...]:
        """Return those of the groups that any of them has."""
        return tuple(group for group in groups if any(bool(one.mask(group).any()) for one in self.inputs))


def depths(layers: int) -> dict[str, int]:
    """Return the first, the middle and the last row of a layer axis."""
    return {"first": 0, "middle": layers // 2, "last": layers - 1}


def finite(values: Tensor | Sequence[Any]) -> list[float]:
    """Return the numbers among values: a group that an example has not is NaN."""
    return [float(value) for value in values if value == value]


def rows_of(found: Mapping[tuple[str, str, str], Sequence[float]]) -> list[Row]:
    """Return the mean of each (table, item, condition), of those of its values that are numbers, where any is."""
    return [row(*key, numbers) for key, values in found.items() if (numbers := finite(values))]


@dataclass(frozen=True, eq=False)
class Changes:
    """An evaluation's table as rows of a paper's: what each intervention, and its random controls, change on each task."""

    table: pd.DataFrame
    tasks: tuple[str, ...]
    metric: str

    @classmethod
    def of(cls, evaluation: Evaluation) -> "Changes":
        """Return the changes of an evaluation."""
        return cls(evaluation.table(resamples=RESAMPLES), tuple(dict.fromkeys(evaluation.tasks)), evaluation.metric)

    @property
    def of_accuracy(self) -> bool:
        """Whether scores are shares of what is right, as the papers' are."""
        return self.metric not in OF_LOGITS

    def baseline(self, table: str) -> list[Row]:
        """Return what the model scores as it is, task by task."""
        return [self._row(table, f"{self.metric} on {task}", "baseline", task, "mean") for task in self.tasks]

    def on(self, table: str, name: str, task: str, *, item: str | None = None) -> list[Row]:
        """Return the change of one task by an intervention, and by its random controls, where it has any."""
        item = f"change on {task}" if item is None else item
        return [self._row(table, item, one, task, "difference") for one in self.arms(name)]

    def mean(self, table: str, item: str, names: Mapping[str, Sequence[str]], condition: str) -> list[Row]:
        """Return the mean change over some tasks of each of some interventions, and of their random controls."""
        found: list[Row] = []
        for random in ("", " (random)"):
            pairs = [(f"{name}{random}", task) for name, tasks in names.items() for task in tasks]
            pairs = [pair for pair in pairs if pair in self.table.index]
            if pairs:
                value = float(self.table.loc[pairs, "difference"].mean())
                found.append(number(table, item, f"{condition}{random}", value, self.examples({task for _, task in pairs})))
        return found

    def score(self, name: str) -> float:
        """Return the mean over tasks of what an intervention, or the baseline, scores; each task counts the same."""
        return float(self.table.loc[name]["mean"].mean())

    def examples(self, tasks: Iterable[str]) -> int:
        """Return how many examples some tasks have."""
        return sum(int(self.table.loc[("baseline", task), "n"]) for task in tasks)  # pyright: ignore[reportArgumentType]

    def arms(self, name: str) -> list[str]:
        """Return the name of an intervention, and that of its random controls, where it has any."""
        return [one for one in (name, f"{name} (random)") if one in self.table.index]

    def _row(self, table: str, item: str, condition: str, task: str, what: str) -> Row:
        own: Any = self.table.loc[(condition, task)]
        low, high = ("low", "high") if what == "mean" else ("difference_low", "difference_high")
        ends = (None, None) if np.isnan(own[low]) else (float(own[low]), float(own[high]))
        return Row(table, item, condition, None, "none", float(own[what]), *ends, int(own["n"]))
