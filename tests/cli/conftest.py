"""A folder with tables to stand in, and the model as the command loads it."""

import pytest
from support import load, picture
from tables import rows, write


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to stand in, with two tables: one with labels, and one without."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/pictures").mkdir(parents=True)
    for place in range(6):
        picture(place).save(tmp_path / f"data/pictures/{place}.png")
    write(tmp_path / "data/six.jsonl", rows())
    write(tmp_path / "data/bare.jsonl", [{"text": row["text"], "images": row.get("images")} for row in rows(3)])
    return tmp_path


@pytest.fixture(scope="session")
def loaded(small_folder):
    """The model as the command loads it."""
    return load(small_folder)
