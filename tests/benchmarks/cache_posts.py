"""What caching every `mlp.hook_post` costs, against bare torch hooks on the plain transformers model.

    python tests/benchmarks/cache_posts.py [--threads 1] [--rounds 9]

A LLaVA with random weights (6 layers, d_model 512, 8 heads, d_mlp 1376, 576 positions per image) runs the same inputs in
turns: the plain model (SDPA, no KV cache) with a pre-hook on every `down_proj` that keeps the detached tensor, then
`model.run_with_cache(inputs, "blocks.*.mlp.hook_post")`. Printed is the median of the rounds' ratios, and their quartiles.
"""

import argparse
import platform
import statistics
import tempfile
import time
from functools import partial

import numpy as np
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration

from mmlens import HookedMLLM
from mmlens.testing import tiny

SHAPE = dict(image_size=336, patch_size=14, layers=6, d_model=512, d_mlp=1376, heads=8, kv_heads=8)


def bare(plain, inputs):
    """Return logits and activations of the plain model under bare torch hooks."""
    kept, handles = {}, []
    for layer, block in enumerate(plain.model.language_model.layers):
        keep = partial(lambda layer, module, args: kept.__setitem__(layer, args[0].detach()), layer)
        handles.append(block.mlp.down_proj.register_forward_pre_hook(keep))
    logits = plain(**inputs.kwargs(), use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits, kept


def timed(function):
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def compare(model, plain, inputs, rounds):
    """Return the ratio of each round and the median seconds of the plain model, after checking that the numbers agree."""
    (truth, kept), _ = timed(lambda: bare(plain, inputs))
    (logits, cache), _ = timed(lambda: model.run_with_cache(inputs, "blocks.*.mlp.hook_post"))
    torch.testing.assert_close(logits, truth, rtol=1e-4, atol=1e-4 * truth.abs().max().item())
    for layer, activation in kept.items():
        torch.testing.assert_close(cache[f"blocks.{layer}.mlp.hook_post"], activation, rtol=1e-4, atol=1e-4)
    error = (logits - truth).abs().max().item()
    del truth, kept, logits, cache
    ratios, seconds = [], []
    for _ in range(rounds):
        theirs = timed(lambda: bare(plain, inputs))[1]
        ours = timed(lambda: model.run_with_cache(inputs, "blocks.*.mlp.hook_post"))[1]
        ratios.append(ours / theirs)
        seconds.append(theirs)
    return ratios, statistics.median(seconds), error


def main(threads, rounds):
    torch.set_num_threads(threads)
    folder = tiny("llava-clip-llama", tempfile.mkdtemp(), **SHAPE)
    model = HookedMLLM.from_pretrained(folder, device="cpu")
    plain = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa").eval()
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (336, 336, 3), dtype=np.uint8)) for i in range(4)]
    print(f"torch {torch.__version__}, {threads} thread(s), {platform.processor() or platform.machine()}, {rounds} rounds\n")
    print("| positions | images | bare torch hooks (s) | mmlens / bare, median | quartiles | largest logit error |")
    print("|---|---|---|---|---|---|")
    for images, words in ((1, 60), (4, 90)):
        inputs = model.to_inputs("the red car " * (words // 3), images=pictures[:images])
        with torch.no_grad():
            ratios, seconds, error = compare(model, plain, inputs, rounds)
        low, median, high = statistics.quantiles(ratios, n=4)
        size = inputs.tokens.shape[1]
        print(
            f"| {size} | {images} | {seconds:.3f} | **{median:.3f}** | {low:.3f} to {high:.3f} | {error:.1e} |", flush=True
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    main(options.threads, options.rounds)
