"""A published data set as examples: its source, its terms, and how a row becomes an example."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from mmlens.data.example import Example


@dataclass(frozen=True)
class Benchmark:
    """A published data set as examples: its source, its terms, and what is read of a row.

    `source` is a hub id, or an address where it is to be fetched by hand; `config` and `split` are what is read unless
    told. `columns` are those that a row must have. `files` is the column that names media files, which then lie in a local
    folder beside the table; `sound` is the column that holds sounds. `prompt` is formatted with what `read` returns.
    `metric` names one of `mmlens.metrics.METRICS`, and is None where only a judge will do. `gated` says whether the source
    asks for a registration.
    """

    name: str
    source: str
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    prompt: str
    metric: str | None
    licence: str
    config: str | None = None
    split: str = "test"
    files: str | None = None
    sound: str | None = None
    gated: bool = False
    note: str = ""

    def example(self, row: Mapping[str, Any], index: int) -> Example:
        """Return the example that a row of this data set is; `index` names it where the row has no name of its own.

        Raises KeyError for a row without the columns, and for a prompt that asks for more than a row has.
        """
        self.check(tuple(row), f"row {index}")
        found = self.read(row)
        given = {field.name: found.pop(field.name) for field in fields(Example) if field.name in found}
        try:
            text = self.prompt.format_map(found)
        except (KeyError, IndexError, ValueError) as error:
            known = ", ".join(f"{{{name}}}" for name in found) or "nothing"
            raise KeyError(f"a prompt of {self.name} is filled with {known}, got {self.prompt!r}: take those") from error
        return Example.of({"label": self.name, **given, "text": text}, index)

    def check(self, columns: tuple[str, ...], what: str) -> None:
        """Raise KeyError where `columns` lack one that is read."""
        missing = [name for name in self.columns if name not in columns]
        if missing:
            raise KeyError(
                f"{self.name} is read from the columns {', '.join(self.columns)}; {what} has {', '.join(columns)} and lacks "
                f"{', '.join(missing)}: rename columns to those, or map the rows to Examples yourself"
            )
