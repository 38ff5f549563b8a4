"""Means over pictures with their intervals, as rows of a paper's table."""

from collections.abc import Sequence

import numpy as np

from mmlens.evaluation.uncertainty import interval
from mmlens.papers.reproduction import Row, Tag


def row(
    table: str, item: str, condition: str, values: Sequence[float], *, paper: float | None = None, tag: Tag = "none"
) -> Row:
    """Return the mean of one value for each picture, with its 95 % interval over pictures."""
    numbers = np.asarray(values, dtype=float)
    low, high = interval(numbers, np.arange(len(numbers))) if len(numbers) else (float("nan"), float("nan"))
    ends = (None, None) if np.isnan(low) else (low, high)
    mean = float(numbers.mean()) if len(numbers) else float("nan")
    return Row(table, item, condition, paper, tag, mean, *ends, len(numbers))


def number(
    table: str, item: str, condition: str, value: float, n: int, *, paper: float | None = None, tag: Tag = "none"
) -> Row:
    """Return one number without an interval, of `n` examples together."""
    return Row(table, item, condition, paper, tag, float(value), None, None, n)
