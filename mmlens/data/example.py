"""One example of a data set: a prompt, what it shows and plays, and what is right to answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from mmlens.data.unpacking import picture_of, sound_of


@dataclass(frozen=True, eq=False)
class Example:
    """One prompt with its media and its gold answers, as `HookedMLLM.to_inputs` and the metrics take them.

    `text` is the whole prompt. `images`, `audio` and `videos` are what `to_inputs` takes for one text: one medium, a list
    of them, or None. `answers` are the gold answers, as many as there are. `label` is what statistics and tables are kept
    apart by (a domain, a data set, a task). `id` names the example in what is reported about it.
    """

    text: str
    images: Any = None
    audio: Any = None
    videos: Any = None
    answers: tuple[str, ...] = ()
    label: str | None = None
    id: str | None = None

    @classmethod
    def of(cls, row: "Mapping[str, Any] | Example", index: int) -> "Example":
        """Return the example that a row holds: a mapping with the names above, as a row of a `datasets.Dataset` is.

        One answer may be given as a string. An `id` that is missing becomes `index`. Pictures and sounds that `datasets`
        has not decoded (their bytes or path) are read; cast sounds to `Audio(decode=False)`, which needs no torchcodec.
        Raises TypeError for what is no row, KeyError for a row without a text and for names that no example has.
        """
        if isinstance(row, Example):
            given = {field.name: getattr(row, field.name) for field in fields(row)}
        elif isinstance(row, Mapping):
            given = dict(row)
        else:
            raise TypeError(
                f"an example is an Example or a mapping with its names, example {index} is a {type(row).__name__}: give "
                'Example(text, ...) or {"text": ...}'
            )
        known = [field.name for field in fields(cls)]
        unknown = [name for name in given if name not in known]
        if unknown or "text" not in given:
            what = f"has {', '.join(map(repr, unknown))} beside them" if unknown else f"has only {sorted(given)}"
            raise KeyError(
                f"a row has a 'text', and of {', '.join(known[1:])} what there is; example {index} {what}: rename those "
                "columns, take away the others, or map the row to an Example yourself"
            )
        answers = given.get("answers")
        answers = () if answers is None else (answers,) if isinstance(answers, str) else tuple(answers)
        wrong = [value for value in (given["text"], *answers) if not isinstance(value, str)]
        if wrong:
            raise TypeError(f"a text and its answers are strings, example {index} has {wrong[0]!r}: write it out")
        name, label = given.get("id"), given.get("label")
        return cls(
            images=_read(picture_of, given.get("images")),
            audio=_read(sound_of, given.get("audio")),
            videos=given.get("videos"),
            text=given["text"],
            answers=answers,
            label=None if label is None else str(label),
            id=str(index if name is None else name),
        )


def _read(read: Callable[[Any], Any], cells: Any) -> Any:
    """Return one medium or a list of them, those read that are kept as mappings."""
    if isinstance(cells, list):
        return [_read(read, cell) for cell in cells]
    return read(cells) if isinstance(cells, Mapping) else cells
