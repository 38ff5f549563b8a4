"""What the last position's attention of all layers costs, beside transformers' eager attention with `output_attentions`.

    python tests/benchmarks/attention_rows.py [--threads 1] [--rounds 3] [--json FILE]

A LLaVA with random weights (6 layers, d_model 512, 8 heads, d_mlp 1376, 576 positions per image, float32) reads five
pictures, 2,880 image positions, in turns: the plain model in eager attention, of whose patterns the last row is kept, then
`attention_rows`. Printed are the median of the rounds' ratios of time and, of one more run of each in a process of its own,
the ratio of how far memory grew above what it was before the run.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration

from mmlens import HookedMLLM
from mmlens.analysis import attention_rows
from mmlens.testing import tiny

SHAPE = dict(image_size=336, patch_size=14, layers=6, d_model=512, d_mlp=1376, heads=8, kv_heads=8)


@torch.no_grad()
def theirs(eager, inputs):
    """Return the last position's attention [layer, batch, head, 1, key] of transformers' own output."""
    said = eager(**inputs.kwargs(), use_cache=False, output_attentions=True)
    return torch.stack([pattern[:, :, -1:].clone() for pattern in said.attentions])


def ours(model, inputs):
    return attention_rows(model, inputs).pattern


def load(folder):
    """Return the hooked model, the plain eager one, and a prompt of five pictures."""
    model = HookedMLLM.from_pretrained(folder, device="cpu")
    eager = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (336, 336, 3), dtype=np.uint8)) for i in range(5)]
    return model, eager, model.to_inputs("the red car " * 10, images=pictures)


def grown(folder, which, threads):
    """Print by how many bytes the largest resident memory grew during one run, after a short one."""
    torch.set_num_threads(threads)
    model, eager, inputs = load(folder)
    short = model.to_inputs("the red car", images=inputs.media[0][0])
    run, subject = {"ours": (ours, model), "theirs": (theirs, eager)}[which]
    model.identity()
    run(subject, short)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(subject, inputs)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def timed(function):
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def main(threads, rounds, out):
    torch.set_num_threads(threads)
    folder = tiny("llava-clip-llama", tempfile.mkdtemp(), **SHAPE)
    told = []
    for which in ("ours", "theirs"):
        command = [sys.executable, __file__, "--threads", str(threads), "--grown", which, "--folder", str(folder)]
        told.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]))
    model, eager, inputs = load(folder)
    (found, _), (truth, _) = timed(lambda: ours(model, inputs)), timed(lambda: theirs(eager, inputs))
    difference = (found - truth).abs().max().item()
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-5)
    ratios, seconds = [], []
    for _ in range(rounds):
        seconds.append(timed(lambda: theirs(eager, inputs))[1])
        ratios.append(timed(lambda: ours(model, inputs))[1] / seconds[-1])
    time_ratio, memory_ratio = statistics.median(ratios), told[0] / told[1]
    machine = f"torch {torch.__version__}, {threads} thread(s), {platform.processor() or platform.machine()}"
    print(f"{machine}, {rounds} rounds\n")
    print("| positions | image positions | eager (s) | time, ours / eager | eager (MB) | memory | difference |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {inputs.tokens.shape[1]} | {int(inputs.mask('image').sum())} | {statistics.median(seconds):.2f} | "
        f"**{time_ratio:.3f}** ({min(ratios):.3f} to {max(ratios):.3f}) | {told[1] / 1e6:.0f} | **{memory_ratio:.3f}** | "
        f"{difference:.0e} |"
    )
    if out:
        measured = dict(time=time_ratio, memory=memory_ratio, ratios=ratios, bytes=told, seconds=seconds, machine=machine)
        Path(out).write_text(json.dumps(measured, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", default=None)
    parser.add_argument("--grown", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.grown:
        grown(options.folder, options.grown, options.threads)
    else:
        main(options.threads, options.rounds, options.json)
