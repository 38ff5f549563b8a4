"""The table of the README, out of what `python tests/benchmarks --json FILE` wrote.

    python tests/benchmarks/table.py tests/benchmarks/measured.json [--write README.md]

Between its two marks in the file, `--write` puts the table; without it, the table is printed.
"""

import argparse
import json
from pathlib import Path

from works import WORKS

HEAD = "| work, ours | beside | time, ours / beside | memory | goal |\n|---|---|---|---|---|"
MARK = "benchmarks: python tests/benchmarks/table.py tests/benchmarks/measured.json --write README.md"
COMMANDS = (
    "python tests/benchmarks --peers peers/bin/python --json tests/benchmarks/measured.json",
    "python tests/benchmarks --size 250m --rounds 3 --peers peers/bin/python --json tests/benchmarks/measured.json",
)


def rendered(measured: dict) -> str:
    """Return the table of the 25 M model, with the larger one's ratio behind it where a row was measured there too."""
    small, large = ({key(row): row for row in measured["rows"] if row["size"] == size} for size in ("25m", "250m"))
    lines, before = [], None
    for work in WORKS:
        for peer in work.peers:
            if (row := small.get((work.name, peer.what))) is None:
                continue
            name = "" if work is before else f"{work.name}: `{work.call}`"
            before = work
            if row["cannot"]:
                lines.append(f"| {name} | {peer.what} | cannot: {row['cannot'].splitlines()[0]} | | |")
                continue
            low, high = row["quartiles"]
            ratio = f"**{row['time']:.2f}** ({low:.2f} to {high:.2f})"
            if (larger := large.get((work.name, peer.what))) and not larger["cannot"]:
                ratio += f"; 250 M: {larger['time']:.2f}"
            lines.append(f"| {name} | {peer.what} | {ratio} | {row['memory']:.2f} | {goal(row, peer.missed)} |")
    return "\n".join([HEAD, *lines])


def key(row: dict) -> tuple[str, str]:
    return row["work"], row["beside"]


def goal(row: dict, why: str) -> str:
    """Return the goals, and whether they are met; where not, why."""
    goals = [] if row["goal_time"] is None else [f"{row['goal_time']:g}"]
    goals += [] if row["goal_memory"] is None else [f"memory {row['goal_memory']:g}"]
    if not goals:
        return ""
    return f"{', '.join(goals)}: {'met' if row['met'] else f'missed; {why}'}"


def about(measured: dict) -> str:
    """Return what was run, where and when."""
    versions = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    commands = "\n".join(COMMANDS)
    return f"{measured['date']}, {measured['machine']}; {versions}.\n\n```bash\n{commands}\n```"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured")
    parser.add_argument("--write", default=None, metavar="FILE")
    options = parser.parse_args()
    measured = json.loads(Path(options.measured).read_text())
    text = f"{about(measured)}\n\n{rendered(measured)}"
    if options.write is None:
        print(text)
        return
    file = Path(options.write)
    before, mark, rest = file.read_text().partition(f"<!-- {MARK} -->\n")
    assert mark, f"{file} has no mark: <!-- {MARK} -->"
    file.write_text(before + mark + text + "\n<!-- /benchmarks -->" + rest.partition("<!-- /benchmarks -->")[2])


if __name__ == "__main__":
    main()
