"""A small table of examples, as a file and as Examples, and the command run on it."""

import json

from support import picture
from typer.testing import CliRunner

import mmlens
from mmlens.cli import app

WORDS = "a red car on the left of the blue tree".split()


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def rows(count=6):
    """Return rows of a table: most with a picture beside it, of two labels."""
    found = []
    for place in range(count):
        row = {"text": " ".join(WORDS[: 2 + place]), "answers": ["car"], "label": "photo" if place % 2 else "drawing"}
        found.append(row if place == 4 else {**row, "images": f"pictures/{place}.png"})
    return found


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def examples(count=6, **changes):
    """Return the same as Examples."""
    return [
        mmlens.Example(
            row["text"],
            images=None if place == 4 else picture(place),
            **{"label": row["label"], **changes},
            answers=("car",),
            id=str(place),
        )
        for place, row in enumerate(rows(count))
    ]
