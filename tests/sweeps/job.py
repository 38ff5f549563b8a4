"""A sweep as a user's script runs it: python job.py FOLDER OUT [options], or under torchrun or accelerate launch."""

import argparse
import json
import os
import resource
import signal
import socket
import time
import traceback
from pathlib import Path

import accelerate
import torch
from support import picture

import mmlens
from mmlens.processes import processes
from mmlens.stats import SampleStats, TokenStats, TopExamples

LABELS = ("photo", "drawing", "sketch")
WORDS = "a red car on the left of the blue tree".split()


def example(place, *, broken=()):
    """Return one example: texts of several lengths, most with a picture; at `broken` there is no such file."""
    shown = {} if place % 5 == 4 else {"images": picture(place)}
    if place in broken:
        shown = {"images": "no such picture.png"}
    text = " ".join(WORDS[: 1 + place % len(WORDS)])
    return mmlens.Example(text, **shown, answers=("car",), label=LABELS[place % 3], id=f"e{place}")


def examples(count, *, broken=()):
    return [example(place, broken=broken) for place in range(count)]


def accumulators(model):
    """Return one of each kind, over language model, tower and projector."""
    parts = {"modules": ("language", "vision", "projector"), "labels": LABELS, "groups": ("image", "text", "all")}
    return {
        "tokens": TokenStats(model.widths, **parts),
        "gates": TokenStats(model.widths, labels=LABELS, site="gate_act", statistics=("count",), budget=2),
        "samples": SampleStats(
            model.widths,
            labels=LABELS,
            groups=("image", "all"),
            statistics=("probability", "mean", "max", "attn_k", "attn_q"),
            normalise="minmax",
        ),
        "top": TopExamples(model.widths, **parts, k=3),
    }


def load(folder):
    torch.set_num_threads(1)
    return mmlens.HookedMLLM.from_pretrained(folder, device="cpu")


class Made:
    """Examples that are made when they are read: nothing of them is kept."""

    def __init__(self, count, broken=()):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        return example(place, broken=self.broken)


class Slowly:
    """Examples that are read with a pause, and that kill this process when a certain one is read."""

    def __init__(self, items, pause=0.0, killed_at=None):
        self.items, self.pause, self.killed_at = items, pause, killed_at

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        if place == self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.pause)
        return self.items[place]


def forked(size, work):
    """Run `work` in as many forks of this process, as torchrun would start them, and return their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            code = 1
            try:
                here = {
                    "RANK": rank,
                    "LOCAL_RANK": rank,
                    "WORLD_SIZE": size,
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                }
                os.environ.update({name: str(value) for name, value in here.items()})
                work(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--count", type=int, default=101)
    parser.add_argument("--checkpoint")
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--kill", type=int, nargs=2, help="which process is killed, when it reads which example")
    asked = parser.parse_args()
    model = load(asked.folder)
    killed_at = asked.kill[1] if asked.kill and int(os.environ.get("RANK", "0")) == asked.kill[0] else None
    print("ready", flush=True)
    found = mmlens.sweep(
        model,
        Slowly(Made(asked.count, broken=(7,)), asked.pause, killed_at),
        accumulators(model),
        batch_size=4,
        every=12,
        checkpoint=asked.checkpoint,
    )
    rank = processes().rank
    found.save(f"{asked.out}-{rank}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes
    Path(f"{asked.out}-{rank}.json").write_text(json.dumps({"peak": peak}))


def main_with_accelerator():
    """The same where the script has made an Accelerator, and so a process group, before."""
    assert accelerate.Accelerator(cpu=True).num_processes == 2
    main()


if __name__ == "__main__":
    main()
