"""The README's table of families is what was measured: nothing in it is written by hand."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import table

README = Path(__file__).parents[2] / "README.md"
ROWS = {
    "one": {
        "model_type": "toy",
        "lines": [
            {"check": "logits: one image", "passed": True, "said": ""},
            {"check": "logits: two images in one prompt", "passed": None, "said": "skipped: one only"},
            {"check": "generation: one image", "passed": True, "said": ""},
            {"check": "generation: text", "passed": False, "said": ""},
            {"check": "raw hooks: one image", "passed": True, "said": ""},
            {"check": "liveness", "passed": True, "said": "105 points, 80 live"},
        ],
    }
}


def test_a_cell_says_what_the_lines_say():
    assert table.cells(ROWS["one"]["lines"]) == {
        "image": "yes",
        "several": "-",
        "video": "-",
        "audio": "-",
        "hooks": "80 live",
        "generation": "FAILED",
        "attention edits": "-",
        "grid": "-",
        "real weights": "not yet",
    }


def test_the_table_goes_between_the_markers_and_again():
    text = f"before\n{table.BEGIN}\nold\n{table.END}\nafter"
    once = table.written(text, ROWS)
    assert "old" not in once and once.startswith("before\n") and once.endswith("\nafter") and table.markdown(ROWS) in once
    assert table.written(once, ROWS) == once
    with pytest.raises(ValueError, match="between two lines"):
        table.written("no markers", ROWS)


def test_the_readme_shows_what_was_measured():
    if table.BEGIN not in README.read_text() or not table.MEASURED.is_file():
        pytest.skip("the README has no table of families yet")
    rows = json.loads(table.MEASURED.read_text())
    assert table.written(README.read_text(), rows) == README.read_text()
    assert not any("FAILED" in table.cells(row["lines"]).values() for row in rows.values())


def test_every_tiny_family_was_measured():
    from mmlens.testing import FAMILIES

    if not table.MEASURED.is_file():
        pytest.skip("nothing was measured yet: python tests/families/table.py")
    assert set(json.loads(table.MEASURED.read_text())) == set(FAMILIES)
