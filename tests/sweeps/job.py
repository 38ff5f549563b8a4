"""A sweep as a user's script runs it: python job.py FOLDER OUT [options], or under torchrun or accelerate launch."""

import argparse
import os
import signal
import time

import torch
from support import picture

import mmlens
from mmlens.stats import SampleStats, TokenStats, TopExamples

LABELS = ("photo", "drawing", "sketch")
WORDS = "a red car on the left of the blue tree".split()


def examples(count, *, broken=()):
    """Return as many examples of several lengths, with and without pictures; at `broken` there is no such file."""
    found = []
    for place in range(count):
        shown = {} if place % 5 == 4 else {"images": picture(place)}
        if place in broken:
            shown = {"images": "no such picture.png"}
        text = " ".join(WORDS[: 1 + place % len(WORDS)])
        found.append(mmlens.Example(text, **shown, answers=("car",), label=LABELS[place % 3], id=f"e{place}"))
    return found


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
            statistics=("probability", "mean", "max"),
            normalise="minmax",
        ),
        "top": TopExamples(model.widths, **parts, k=3),
    }


def load(folder):
    torch.set_num_threads(1)
    return mmlens.HookedMLLM.from_pretrained(folder, device="cpu")


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
        Slowly(examples(asked.count, broken=(7,)), asked.pause, killed_at),
        accumulators(model),
        batch_size=4,
        every=12,
        checkpoint=asked.checkpoint,
    )
    found.save(f"{asked.out}-{os.environ.get('RANK', '0')}")


if __name__ == "__main__":
    main()
