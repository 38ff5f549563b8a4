"""What the benchmarks share: a LLaVA with random weights, rounds in turns, memory of a process of its own."""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration

from mmlens import HookedMLLM
from mmlens.testing import tiny
from mmlens.testing.words import WORDS

SHAPE = dict(image_size=336, patch_size=14, layers=6, d_model=512, d_mlp=1376, heads=8, kv_heads=8)
"""576 positions per image, as LLaVA-1.5 has them."""
SMALL = dict(layers=3, kv_heads=4)
"""25 positions per image and 32 dimensions: seconds, to see that a benchmark runs."""


def options_parser(doc: str, *, rounds: int) -> argparse.ArgumentParser:
    """Return a parser of the options that every benchmark has; `grown` and `folder` are for its own processes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--small", action="store_true", help="a toy model, for seconds instead of minutes")
    parser.add_argument("--json", default=None, metavar="FILE")
    parser.add_argument("--grown", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser


def llava(small: bool = False, **changes: Any) -> Path:
    """Return a folder with a LLaVA of `SHAPE` (or `SMALL`) and `changes`, in random weights and float32."""
    return tiny("llava-clip-llama", tempfile.mkdtemp(), **{**(SMALL if small else SHAPE), **changes})


def vocabulary(size: int) -> list[str]:
    """Return words for a vocabulary of `size` tokens, with the special ones; never fewer than the tiny models know."""
    special = 5
    return [*WORDS, *(f"word{place}" for place in range(size - len(WORDS) - special))]


def load_hooked(folder: str | Path) -> HookedMLLM:
    return HookedMLLM.from_pretrained(folder, device="cpu")


def load_plain(folder: str | Path, attention: str = "sdpa") -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation=attention).eval()


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (336, 336, 3), dtype=np.uint8))


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def in_turns(rounds: Iterable[Any], *sides: Callable[[Any], Any]) -> list[list[float]]:
    """Return the seconds of every side in every round, run one after the other; a side is given what its round is about."""
    seconds: list[list[float]] = [[] for _ in sides]
    for this in rounds:
        for side, taken in zip(sides, seconds, strict=True):
            taken.append(timed(partial(side, this))[1])
    return seconds


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    return [fast / slow for fast, slow in zip(ours, theirs, strict=True)]


def quartiles(values: list[float]) -> list[float]:
    """Return the lower quartile, the median and the upper quartile."""
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


def grown(run: Callable[[], Any]) -> int:
    """Return by how many bytes resident memory rose at most while `run()` ran, above what it was before (Linux).

    A page at least: a ratio can be taken.
    """
    Path("/proc/self/clear_refs").write_text("5")  # forgets the largest resident memory so far
    before = _resident("VmRSS")
    run()
    return max(_resident("VmHWM") - before, 4096)


def grown_alone(options: argparse.Namespace, which: str, folder: str | Path) -> int:
    """Return the bytes that this script prints in a process of its own when it is asked for `--grown which`."""
    command = [sys.executable, sys.argv[0], "--threads", str(options.threads), "--grown", which, "--folder", str(folder)]
    if options.small:
        command.append("--small")
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def machine(threads: int) -> str:
    return f"torch {torch.__version__}, {threads} thread(s), {platform.processor() or platform.machine()}"


def write_json(file: str | None, measured: Any) -> None:
    """Write what was measured as JSON where a file was asked for."""
    if file:
        Path(file).write_text(json.dumps(measured, indent=1))


def _resident(which: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024
