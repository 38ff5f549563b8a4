"""A paper's numbers beside ours: what every `reproduce` returns."""

from dataclasses import asdict, dataclass
from typing import Literal

import pandas as pd

from mmlens.results import Result, Storable

Tag = Literal["paper", "code", "secondary source", "memory", "none"]


@dataclass(frozen=True)
class Row(Storable):
    """One number: the paper's `table` and `item`, under a `condition`; theirs, how sure that is (`tag`), and ours.

    `low` and `high` are the 95 % interval of `value` over `n` examples, None where there is none. `paper` is None where the
    paper has no such number, or where it is not known (`tag` "none"). Theirs is about their models and data, never ours.
    """

    table: str
    item: str
    condition: str
    paper: float | None
    tag: Tag
    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, kw_only=True, repr=False)
class Reproduction(Result):
    """A paper's tables, row by row, and `notes` on what differs from the paper here."""

    paper: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """Return all rows as a data frame, in the paper's order."""
        return pd.DataFrame([asdict(row) for row in self.rows])

    def markdown(self) -> str:
        """Return the tables as Markdown, with the notes below."""
        lines = [
            f"**{self.paper}**",
            "",
            "| table | item | condition | paper (how sure) | here | 95 % | n |",
            "|" + "---|" * 7,
        ]
        for row in self.rows:
            theirs = "-" if row.paper is None else f"{row.paper:g} ({row.tag})"
            ends = "-" if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}"
            lines.append(f"| {row.table} | {row.item} | {row.condition} | {theirs} | {row.value:.3f} | {ends} | {row.n} |")
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)])

    def value(self, item: str, condition: str = "") -> float:
        """Return our number of an item. Raises KeyError where there is none."""
        for row in self.rows:
            if row.item == item and condition in ("", row.condition):
                return row.value
        raise KeyError(f"rows are {', '.join(f'{row.item} ({row.condition})' for row in self.rows)}; got {item!r}")
