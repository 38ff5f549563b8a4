"""The table of families, made of what `mmlens verify` measures on every tiny one, and never by hand.

python tests/families/table.py                      measure all, write measured.json, print the table
python tests/families/table.py --write README.md    the same, and put it between the README's two markers
python tests/families/table.py --only-write README.md    no measuring: what measured.json holds
"""

import json
import sys
import tempfile
from pathlib import Path

MEASURED = Path(__file__).parent / "measured.json"
BEGIN, END = "<!-- families: python tests/families/table.py --write README.md -->", "<!-- /families -->"
COLUMNS = ("image", "several", "video", "audio", "hooks", "generation", "attention edits", "grid", "real weights")


def measure(families=None):
    """Return, for every tiny family, its model type and the lines of its verification."""
    from mmlens.testing import FAMILIES, tiny
    from mmlens.verify import verify

    rows = {}
    for family in families or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            found = verify(tiny(family, folder), device="cpu", layers="all")
        lines = [{name: line[name] for name in ("check", "passed", "said")} for line in found.lines]
        rows[family] = {"model_type": found.model_type, "versions": found.provenance.versions, "lines": lines}
        print(family, "passed" if found.passed else "FAILED", file=sys.stderr)
    return rows


def cells(lines):
    """Return a family's cell for each column: yes, FAILED, or - where there is nothing of the kind."""

    def of(*beginnings, containing=""):
        told = [line["passed"] for line in lines if line["check"].startswith(beginnings) and containing in line["check"]]
        judged = [passed for passed in told if passed is not None]
        return "-" if not judged else "yes" if all(judged) else "FAILED"

    live = next((line["said"] for line in lines if line["check"] == "liveness"), "")
    hooks = of("liveness", "raw hooks", "gradient")
    return {
        "image": of("logits", containing="one image"),
        "several": of("logits", containing="two "),
        "video": of("logits", containing="one video"),
        "audio": of("logits", containing="one audio"),
        "hooks": f"{live.split(', ')[1].split()[0]} live" if hooks == "yes" and ", " in live else hooks,
        "generation": of("generation"),
        "attention edits": of("attention edits"),
        "grid": of("positions"),
        "real weights": "not yet",
    }


def markdown(rows):
    """Return the table, a row for each tiny family."""
    lines = [f"| family | model type | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for family, row in rows.items():
        found = cells(row["lines"])
        lines.append(f"| {family} | `{row['model_type']}` | {' | '.join(found[column] for column in COLUMNS)} |")
    return "\n".join(lines)


def written(text, rows):
    """Return a README's text with the table between its markers. Raises ValueError where it has none."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"the table goes between two lines: {BEGIN} and {END}; put them where it belongs")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{markdown(rows)}\n{END}{rest.split(END)[1]}"


def main(arguments):
    rows = json.loads(MEASURED.read_text()) if arguments[:1] == ["--only-write"] else measure()
    MEASURED.write_text(json.dumps(rows, indent=1) + "\n")
    print(markdown(rows))
    if arguments:
        readme = Path(arguments[1])
        readme.write_text(written(readme.read_text(), rows))


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main(sys.argv[1:])
