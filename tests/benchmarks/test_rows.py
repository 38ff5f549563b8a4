"""Every row of the table runs, on a toy, and both its sides come to the same numbers; no time is asserted."""

import json
import runpy
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from growth import grow
from task import Task, make
from turns import Measured, largest_difference, line
from worker import side_of
from works import WORKS

HERE = Path(__file__).parent
as_row = runpy.run_path(str(HERE / "__main__.py"), run_name="benchmarks")["as_row"]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    @cache
    def made(images, rows):
        return Task(make(tmp_path_factory.mktemp("toy"), "toy", images=images, rows=rows))

    return made


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.ours)
def test_both_sides_of_a_row_come_to_the_same_numbers(work, task):
    toy = task(work.images, min(work.rows, 5))
    ours = Measured([2.0, 3.0], 50, side_of(work.ours)(toy)(0))
    assert all(torch.isfinite(value.float()).all() for value in ours.found.values())
    for peer in work.peers:
        if peer.needs is None or find_spec(peer.needs):
            theirs = Measured([4.0, 4.0], 100, side_of(peer.side)(toy)(0))
            told = line(work, peer, ours, theirs, "toy", toy.facts["positions"], rounding=1.0)
            assert told.time == 0.625 * peer.share and told.memory == 0.5 and f"| {peer.what} |" in as_row(told)
            if peer.same:
                wrong = {name: value.float() * 1.01 + 0.01 for name, value in ours.found.items()}
                with pytest.raises(AssertionError, match="the numbers differ"):
                    line(work, peer, Measured([1.0], 1, wrong), theirs, "toy", 56, rounding=1.0)


def test_sides_that_differ_are_told_from_those_that_agree():
    one = {"a": torch.tensor([1.0, 4.0])}
    assert largest_difference(one, {"a": torch.tensor([1.0, 5.0])}) == pytest.approx(0.2)
    with pytest.raises(AssertionError, match="the sides say"):
        largest_difference(one, {"b": one["a"]})


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_what_it_measured(tmp_path):
    file = tmp_path / "table.json"
    command = [sys.executable, str(HERE), "--size", "toy", "--only", "attention", "--rounds", "2", "--json", str(file)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (row,) = json.loads(file.read_text())["rows"]
    assert row["work"] in said and row["goal_memory"] == 0.15 and len(row["ratios"]) == 2
    assert row["time"] > 0 and row["memory"] > 0 and row["difference"] < 1e-3


@pytest.mark.slow
@pytest.mark.skipif(find_spec("nnsight") is not None, reason="nnsight is installed here, so it can")
def test_a_peer_that_is_not_there_cannot_and_says_why(tmp_path):
    command = [sys.executable, str(HERE), "--size", "toy", "--only", "`mlp", "--rounds", "1", "--peers", sys.executable]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "cannot: ModuleNotFoundError: No module named 'nnsight'" in said


@pytest.mark.slow
def test_growth_is_measured_along_each_axis_and_drawn(tmp_path):
    class Options:
        size, threads, device, dtype = ["toy"], 1, "cpu", "float32"

    works = [work for work in WORKS if work.call in ("model(inputs)", "from_pretrained")]
    found = grow(works, tmp_path / "growth.png", Options)
    assert set(found["model(inputs)"]) == {"positions", "layers", "samples"}
    assert set(found["from_pretrained"]) == {"positions", "layers"}
    assert found["model(inputs)"]["samples"]["at"] == [1, 2, 4] and (tmp_path / "growth.png").stat().st_size > 20_000
