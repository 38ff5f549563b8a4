import json
import os
import tomllib
from pathlib import Path

import pytest
import torch

from mmlens import HookedMLLM
from mmlens.organisms import CHECKPOINTS

HERE = Path(__file__).parent
ROWS: dict[str, dict] = {}


@pytest.fixture(scope="session")
def expectations() -> dict:
    return tomllib.loads((HERE / "expectations.toml").read_text())


@pytest.fixture(scope="session")
def organisms() -> dict[str, HookedMLLM]:
    torch.set_grad_enabled(True)
    return {name: HookedMLLM.from_pretrained(name, device="cpu") for name in CHECKPOINTS}


@pytest.fixture
def report():
    """Return a function that puts a measured row (mean, low, high, n) in the table printed at the end."""

    def add(name: str, mean: float, low: float, high: float, n: int) -> None:
        ROWS[name] = {"mean": round(mean, 4), "low": round(low, 4), "high": round(high, 4), "n": n}

    return add


def pytest_terminal_summary(terminalreporter) -> None:
    if not ROWS:
        return
    terminalreporter.section("measured effects (95 % interval over images)")
    for name, row in ROWS.items():
        terminalreporter.write_line(f"{name:<86} {row['mean']:8.3f}  [{row['low']:.3f}, {row['high']:.3f}]  n={row['n']}")
    if os.environ.get("MMLENS_RECORD"):
        path = HERE / "measured.json"
        rows = (json.loads(path.read_text()) if path.exists() else {}) | ROWS
        path.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if HERE in Path(item.fspath).parents:
            item.add_marker(pytest.mark.effects)
