"""What a sweep's statistics cost, beside the same forwards with nothing attached, and MINER's scores written plainly.

    python tests/benchmarks/sweeps.py [--threads 1] [--samples 64] [--rounds 4] [--json FILE] [--small]

A LLaVA with random weights (8 layers, d_model 512, 8 heads, d_mlp 1376: 25 M weights in the language model; 576 positions
per image, float32) reads the same examples in turns: nothing attached, then a sweep, `samples / rounds` at a time. "DAPE" is
the count of active positions of every neuron of language model, tower and projector, by five labels; "MINER" its five
scores of the language model at image and text positions, with attention as the model has it, or without its causal mask,
as their code takes it. "Plainly" is their procedure on transformers' eager attention: all heads' attention once more
without the mask, and products [position, position] x [position, unit]. Printed are the median of the rounds' ratios of time,
their quartiles, and the largest difference between what both came to.
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
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from mmlens import Example, SampleStats, TokenStats, sweep

LABELS = ("ad", "com", "doc", "med", "rs")
FIVE = ("probability", "mean", "max", "attn_k", "attn_q")
GROUPS = ("image", "text")


def example(place):
    return Example("the red car " * 8, images=picture(place), label=LABELS[place % len(LABELS)])


def nothing(model, examples, batch_size):
    """Run the model over the examples, and let it be."""
    with torch.no_grad():
        for start in range(0, len(examples), batch_size):
            batch = examples[start : start + batch_size]
            model(model.to_inputs([one.text for one in batch], images=[one.images for one in batch]))


def dape(model, examples, batch_size):
    counts = TokenStats(
        model.widths, labels=LABELS, modules=("language", "vision", "projector"), site="gate_act", statistics=("count",)
    )
    return sweep(model, examples, {"counts": counts}, batch_size=batch_size, progress=False)["counts"]


def miner(model, examples, batch_size, causal=True):
    scores = SampleStats(
        model.widths, groups=GROUPS, site="gate_act", statistics=FIVE, normalise="minmax", renorm="softmax", causal=causal
    )
    return sweep(model, examples, {"scores": scores}, batch_size=batch_size, progress=False)["scores"]


def unmasked(attention, hidden_states, position_embeddings, **others):
    """Return the mean over heads of the softmax over all keys, the causal mask left out."""
    shape = (*hidden_states.shape[:-1], -1, attention.head_dim)
    query, key = (part(hidden_states).view(shape).transpose(1, 2) for part in (attention.q_proj, attention.k_proj))
    query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
    return torch.softmax(query @ key.transpose(2, 3) * attention.scaling, dim=-1)[0].mean(0)


def plainly(eager, model, examples):
    """Return MINER's scores [score, group, layer, unit], one example at a time, as their text has them (methods.md 4.c)."""
    layers = eager.model.language_model.layers
    seen, total = {}, torch.zeros(len(FIVE), len(GROUPS), len(layers), layers[0].mlp.down_proj.in_features)
    handles = []
    for layer, block in enumerate(layers):
        see = partial(lambda layer, module, args, kwargs: seen.__setitem__(("s", layer), unmasked(module, **kwargs)), layer)
        act = partial(lambda layer, module, args, out: seen.__setitem__(("a", layer), out), layer)
        handles.append(block.self_attn.register_forward_pre_hook(see, with_kwargs=True))
        handles.append(block.mlp.act_fn.register_forward_hook(act))
    with torch.no_grad():
        for one in examples:
            inputs = model.to_inputs(one.text, images=one.images)
            eager(**inputs.kwargs(), use_cache=False)
            for layer in range(len(layers)):
                pattern = seen["s", layer]
                for column, group in enumerate(GROUPS):
                    where = inputs.mask(group)[0]
                    a, s = seen["a", layer][0][where], pattern[where][:, where]
                    scores = torch.stack(
                        [
                            (a > 0).float().mean(0),
                            a.mean(0),
                            a.amax(0),
                            (torch.softmax(s, 0).T @ a).sum(0),
                            (torch.softmax(s, 1) @ a).sum(0),
                        ]
                    )
                    low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
                    total[:, column, layer] += (scores - low) / (high - low)
    for handle in handles:
        handle.remove()
    return total / len(examples)


def alternate(rounds, ours, theirs):
    """Return what both came to in the last round, and the rounds' seconds of each, one after the other."""
    last = {}
    ours(rounds[0][:2]), theirs(rounds[0][:2])
    slow, fast = in_turns(rounds, lambda part: last.update(theirs=theirs(part)), lambda part: last.update(ours=ours(part)))
    return last["ours"], last["theirs"], fast, slow


def main(options):
    batch_size, rounds, size = options.batch_size, options.rounds, options.samples // options.rounds
    folder = llava(options.small, **({} if options.small else dict(layers=8)))
    model, eager = load_hooked(folder), load_plain(folder, "eager")
    parts = [[example(place) for place in range(start, start + size)] for start in range(0, size * rounds, size)]
    print(f"{machine(options.threads)}, {size * rounds} samples in {rounds} rounds, batches of {batch_size}\n")
    print("| ours | beside | beside, s per sample | ours / beside, median | quartiles | largest difference |")
    print("|---|---|---|---|---|---|")
    table = []
    rows = {
        ("DAPE's counts", "the same forwards"): (
            lambda x: dape(model, x, batch_size),
            lambda x: nothing(model, x, batch_size),
        ),
        ("MINER's scores", "the same forwards"): (
            lambda x: miner(model, x, batch_size),
            lambda x: nothing(model, x, batch_size),
        ),
        ("MINER's scores, unmasked", "the same forwards"): (
            lambda x: miner(model, x, batch_size, causal=False),
            lambda x: nothing(model, x, batch_size),
        ),
        ("MINER's scores, unmasked", "MINER's, plainly"): (
            lambda x: miner(model, x, 1, causal=False),
            lambda x: plainly(eager, model, x),
        ),
    }
    for (name, beside), (ours, theirs) in rows.items():
        mine, other, fast, slow = alternate(parts, ours, theirs)
        difference = "-"
        if other is not None:
            found = torch.stack([mine.table(score)[0] for score in FIVE]).float()
            difference = f"{(found - other).abs().max():.0e}"
            torch.testing.assert_close(found, other, rtol=0, atol=2e-3)
        low, median, high = quartiles(ratios(fast, slow))
        each = statistics.median(slow) / size
        print(f"| {name} | {beside} | {each:.3f} | **{median:.3f}** | {low:.3f} to {high:.3f} | {difference} |", flush=True)
        where = machine(options.threads)
        table.append(dict(ours=name, beside=beside, ratio=median, quartiles=[low, high], seconds=each, machine=where))
    write_json(options.json, table)


if __name__ == "__main__":
    parser = options_parser(__doc__, rounds=4)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    main(options)
