"""The processes that share a job: which one this is, and what they tell each other. One process is the ordinary case."""

import atexit
import json
import os
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from torch import distributed

TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Processes:
    """This process is number `rank` of `size`; `group` is what they talk through (None: torch's default group)."""

    rank: int = 0
    size: int = 1
    group: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return every process' `value` (numbers, text, lists and dictionaries of them), in order, in every process."""
        if self.size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(text)
        distributed.all_reduce(sizes, group=self.group)
        padded = torch.zeros(int(sizes.max()), dtype=torch.uint8)
        padded[: len(text)] = text
        rows = [torch.zeros_like(padded) for _ in range(self.size)]
        distributed.all_gather(rows, padded, group=self.group)
        return [json.loads(row[:size].numpy().tobytes()) for row, size in zip(rows, sizes.tolist(), strict=True)]

    def agree(self, what: str, value: Any) -> None:
        """Raise RuntimeError, in every process, where the processes do not have the same `value`."""
        values = self.gather(value)
        if any(other != values[0] for other in values):
            raise RuntimeError(
                f"all processes do one job, with equal arguments, on the same examples in the same order; their {what} "
                f"differ: {values}. Give each the same"
            )


def launched() -> int:
    """Return how many processes `accelerate launch` or `torchrun` started, 1 where neither did."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return which of the processes on this machine this is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def processes() -> Processes:
    """Return this process' place among those that `accelerate launch` or `torchrun` started, which meet here.

    They talk by gloo, whatever they compute on: what they add up lies in memory. A process group that is there is used,
    with a gloo group of its members where it can't reduce what lies in memory.
    """
    if launched() > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=TIMEOUT)
        atexit.register(distributed.destroy_process_group)
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return Processes()
    reaches_memory = distributed.get_backend() == "gloo" or "cpu:" in str(distributed.get_backend_config())
    return Processes(distributed.get_rank(), distributed.get_world_size(), None if reaches_memory else _group_in_memory())


@cache
def _group_in_memory() -> Any:
    return distributed.new_group(backend="gloo", timeout=TIMEOUT)
