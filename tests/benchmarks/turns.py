"""Sides of a row in turns: each in a process of its own, A B A B, and the check that they come to the same numbers."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from task import Task
from works import Peer, Work

ROUNDING = {"float32": 1.0, "bfloat16": 50.0, "float16": 50.0}
"""How much farther than float32 a dtype's numbers may lie apart."""


class Cannot(RuntimeError):
    """A side can't do the work; the message is its error."""


class Process:
    """A worker that is told what to do, a line at a time."""

    def __init__(self, python: str, threads: int) -> None:
        script = Path(__file__).with_name("worker.py")
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [python, str(script), str(threads)], stdin=pipe, stdout=pipe, stderr=self._said, text=True
        )

    def ask(self, do: str, **asked: Any) -> dict[str, Any]:
        """Return the worker's answer. Raises Cannot with its error."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"do": do, **asked}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        if not (line := self._process.stdout.readline()):
            self._said.seek(0)
            last = self._said.read().decode(errors="replace").strip().splitlines()[-1:]
            raise Cannot(" ".join(last) or "the process ended")
        answer = json.loads(line)
        if "error" in answer:
            raise Cannot(answer["error"])
        return answer

    def load(self, side: str, task: Task) -> None:
        self.ask("load", side=side, folder=str(task.folder), device=task.device, dtype=task.dtype)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._said.close()


@dataclass
class Measured:
    """What a side took: seconds of each round, bytes that memory rose by, what it came to; or why it can't."""

    seconds: list[float] = field(default_factory=list)
    bytes: int = 0
    found: Mapping[str, Any] = field(default_factory=dict)
    cannot: str = ""


@dataclass(frozen=True)
class Compared:
    """One line of the table. Ratios are ours / theirs, of time by the round; `difference` is relative to the largest."""

    work: str
    call: str
    beside: str
    size: str
    positions: int
    goal_time: float | None
    goal_memory: float | None
    ratios: list[float]
    memory: float | None
    seconds: float
    difference: float | None
    cannot: str = ""

    @property
    def time(self) -> float:
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, _, high = statistics.quantiles(self.ratios, n=4) if len(self.ratios) > 1 else self.ratios * 3
        return low, high

    @property
    def met(self) -> bool | None:
        """Whether the goals are met; None where there is none."""
        if self.cannot or (self.goal_time is None and self.goal_memory is None):
            return None
        good = self.goal_time is None or self.time <= self.goal_time
        return good and (self.goal_memory is None or (self.memory or 0) <= self.goal_memory)

    def as_json(self) -> dict[str, Any]:
        low, high = (None, None) if self.cannot else self.quartiles
        return asdict(self) | dict(time=None if self.cannot else self.time, quartiles=[low, high], met=self.met)


def compare(work: Work, task: Task, size: str, *, rounds: int, threads: int, pythons: Mapping[str, str]) -> list[Compared]:
    """Return a work's lines. Raises AssertionError where two sides that should come to the same numbers do not."""
    with ExitStack() as stack:
        sides, processes = {work.ours: Measured()}, {}
        for peer in work.peers:
            sides[peer.side] = Measured()
        needs = {peer.side: peer.needs for peer in work.peers}
        for side, measured in sides.items():
            python = pythons.get(needs.get(side) or "", sys.executable)
            process = Process(python, threads)
            stack.callback(process.close)
            try:
                process.load(side, task)
                file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "found.safetensors"
                process.ask("check", file=str(file))
                measured.found = load_file(file)
                processes[side] = process
            except Cannot as error:
                measured.cannot = str(error)
        if sides[work.ours].cannot:
            raise Cannot(f"{work.name}: {sides[work.ours].cannot}")
        for turn in range(rounds):
            for side, process in processes.items():
                sides[side].seconds.append(process.ask("time", turn=turn)["seconds"])
        for side, process in processes.items():
            sides[side].bytes = process.ask("memory")["bytes"]
    positions = task.facts["positions"]
    return [
        line(work, peer, sides[work.ours], sides[peer.side], size, positions, ROUNDING[task.dtype]) for peer in work.peers
    ]


def line(work: Work, peer: Peer, ours: Measured, theirs: Measured, size: str, positions: int, rounding: float) -> Compared:
    """Return one line of the table."""
    difference = None
    if not theirs.cannot and peer.same:
        difference = largest_difference(ours.found, theirs.found)
        if not difference <= peer.within * rounding:
            raise AssertionError(f"{work.name} beside {peer.what}: the numbers differ by {difference:.1e} of the largest")
    return Compared(
        work=work.name,
        call=work.call,
        beside=peer.what,
        size=size,
        positions=positions,
        goal_time=peer.time,
        goal_memory=peer.memory,
        ratios=[mine * peer.share / other for mine, other in zip(ours.seconds, theirs.seconds, strict=False)],
        memory=None if theirs.cannot else ours.bytes / theirs.bytes,
        seconds=statistics.median(theirs.seconds) if theirs.seconds else 0.0,
        difference=difference,
        cannot=theirs.cannot,
    )


def largest_difference(found: Mapping[str, Any], truth: Mapping[str, Any]) -> float:
    """Return the largest difference between two sides' tensors, of each relative to the largest value in it."""
    assert found.keys() == truth.keys() and found, f"the sides say {sorted(found)} and {sorted(truth)}"
    return max(
        float((found[name] - other).abs().max() / other.abs().max().clamp(min=1e-30)) for name, other in truth.items()
    )
