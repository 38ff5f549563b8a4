"""One side of a row, in a process of its own: it loads, runs and measures when it is told to, a line of JSON at a time."""

import ctypes
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from task import Task
from torch import Tensor

Run = Callable[[int], dict[str, Tensor]]
"""One measured run, given the number of its round; what it returns is compared with what the other sides return."""


class Worker:
    """What the lines of JSON ask for: `load`, then `check`, `run` and `memory`."""

    task: Task
    run: Run

    def load(self, side: str, folder: str, device: str, dtype: str) -> dict[str, Any]:
        """Make a side ("module.function") ready."""
        self.run = lambda _: {}
        tidied()
        self.task = Task(Path(folder), device, dtype)
        self.run = side_of(side)(self.task)
        return {}

    def check(self, file: str) -> dict[str, Any]:
        """Run once, and write what came out."""
        found = self.run(0)
        save_file({name: value.detach().float().cpu().contiguous() for name, value in found.items()}, file)
        return {"shape": {name: list(value.shape) for name, value in found.items()}}

    def time(self, turn: int) -> dict[str, Any]:
        """Return the seconds of one run."""
        self._wait()
        start = time.perf_counter()
        found = self.run(turn)
        self._wait()
        seconds = time.perf_counter() - start
        del found
        return {"seconds": seconds}

    def memory(self) -> dict[str, Any]:
        """Return the seconds of one run more, and by how many bytes memory rose above what it was: a page or more."""
        tidied()
        if self.task.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            taken = self.time(0)
            return taken | {"bytes": max(torch.cuda.max_memory_allocated() - before, 4096)}
        Path("/proc/self/clear_refs").write_text("5")  # forgets the largest resident memory so far
        before = resident("VmRSS")
        taken = self.time(0)
        return taken | {"bytes": max(resident("VmHWM") - before, 4096)}

    def _wait(self) -> None:
        if self.task.device.startswith("cuda"):
            torch.cuda.synchronize()


def side_of(name: str) -> Callable[[Task], Run]:
    module, function = name.split(".")
    return getattr(importlib.import_module(f"sides.{module}"), function)


def tidied() -> None:
    """Hand freed memory back, so that a run's growth is its own."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)


def resident(which: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    worker = Worker()
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = getattr(worker, asked.pop("do"))(**asked)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".strip()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
