"""What caching every `mlp.hook_post` costs, against bare torch hooks on the plain transformers model.

    python tests/benchmarks/cache_posts.py [--threads 1] [--rounds 9] [--json FILE] [--small]

A LLaVA with random weights (6 layers, d_model 512, 8 heads, d_mlp 1376, 576 positions per image) runs the same inputs in
turns: the plain model (SDPA, no KV cache) with a pre-hook on every `down_proj` that keeps the detached tensor, then
`model.run_with_cache(inputs, "blocks.*.mlp.hook_post")`. Printed is the median of the rounds' ratios, and their quartiles.
"""

import statistics
from functools import partial

import torch
from measuring import (
    in_turns,
    llava,
    load_hooked,
    load_plain,
    machine,
    options_parser,
    picture,
    quartiles,
    ratios,
    write_json,
)


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


def cached(model, inputs):
    return model.run_with_cache(inputs, "blocks.*.mlp.hook_post")


def compare(model, plain, inputs, rounds):
    """Return the ratio of each round and the median seconds of the plain model, after checking that the numbers agree."""
    truth, kept = bare(plain, inputs)
    logits, cache = cached(model, inputs)
    torch.testing.assert_close(logits, truth, rtol=1e-4, atol=1e-4 * truth.abs().max().item())
    for layer, activation in kept.items():
        torch.testing.assert_close(cache[f"blocks.{layer}.mlp.hook_post"], activation, rtol=1e-4, atol=1e-4)
    error = (logits - truth).abs().max().item()
    del truth, kept, logits, cache
    slow, fast = in_turns(range(rounds), lambda _: bare(plain, inputs), lambda _: cached(model, inputs))
    return ratios(fast, slow), statistics.median(slow), error


def main(options):
    folder = llava(options.small)
    model, plain = load_hooked(folder), load_plain(folder)
    print(f"{machine(options.threads)}, {options.rounds} rounds\n")
    print("| positions | images | bare torch hooks (s) | mmlens / bare, median | quartiles | largest logit error |")
    print("|---|---|---|---|---|---|")
    table = []
    for images, words in ((1, 60), (4, 90)):
        inputs = model.to_inputs("the red car " * (words // 3), images=[picture(i) for i in range(images)])
        with torch.no_grad():
            found, seconds, error = compare(model, plain, inputs, options.rounds)
        low, median, high = quartiles(found)
        size = inputs.tokens.shape[1]
        print(
            f"| {size} | {images} | {seconds:.3f} | **{median:.3f}** | {low:.3f} to {high:.3f} | {error:.1e} |", flush=True
        )
        table.append(dict(positions=size, ratios=found, seconds=seconds, error=error, machine=machine(options.threads)))
    write_json(options.json, table)


if __name__ == "__main__":
    options = options_parser(__doc__, rounds=9).parse_args()
    torch.set_num_threads(options.threads)
    main(options)
