"""What the logit lens costs at all layers and positions, beside a dense tensor of all logits, and nnsight.

    python tests/benchmarks/logit_lens.py [--threads 1] [--rounds 5] [--json FILE] [--small] [--beside dense nnsight]

A LLaVA with random weights (6 layers, d_model 512, 8 heads, d_mlp 1376, 576 positions per image, a vocabulary of 32,000,
float32) reads one picture and a few words in turns; wanted of every layer and position are the ten most probable tokens,
their log-probabilities, and the entropy. "dense" keeps the residual streams of the plain transformers model under bare torch
hooks, and takes the final norm, the unembedding, `log_softmax`, `topk` and the entropy of all of them in one tensor [layer,
batch, pos, d_vocab]. "nnsight" reads layer after layer inside one trace, of which nothing but the result is saved, and stops
behind the last. Neither computes the model's own logits, which the lens does not need. Printed are the median of the
rounds' ratios of time, their quartiles, and, of one more run of each in a process of its own, the ratio of how far memory
grew above what it was before the run.

nnsight is left out where it is not installed. It goes into an environment of its own, with this package beside it; nnterp
(1.3), which stands on nnsight, does not import beside its 0.8 and reads the last position only:

    python -m venv peers && peers/bin/pip install torch==2.13.0 nnsight==0.8.1 -e .
    peers/bin/python tests/benchmarks/logit_lens.py
"""

import statistics
from importlib.util import find_spec

import torch
from measuring import (
    grown,
    grown_alone,
    in_turns,
    llava,
    load_hooked,
    load_plain,
    machine,
    options_parser,
    picture,
    quartiles,
    ratios,
    vocabulary,
    write_json,
)
from torch import log_softmax

from mmlens.analysis import logit_lens

TOP = 10
VOCABULARY = 32_000


def ours(model, inputs):
    lens = logit_lens(model, inputs, top_k=TOP)
    return lens.tokens, lens.log_probs, lens.entropy


@torch.no_grad()
def dense(plain, inputs):
    """Return tokens, their log-probabilities and the entropy, out of one tensor of all layers' and positions' logits."""
    language, streams = plain.model.language_model, []
    handles = [language.layers[0].register_forward_pre_hook(lambda module, args: streams.append(args[0]))]
    handles += [layer.register_forward_hook(lambda module, args, out: streams.append(out)) for layer in language.layers]
    plain.model(**inputs.kwargs(), use_cache=False)
    for handle in handles:
        handle.remove()
    return read(log_softmax(plain.lm_head(language.norm(torch.stack(streams))), dim=-1))


def traced(subject, inputs):
    """Return the same by nnsight, which hands the streams over while the model runs."""
    language = subject.model.language_model
    with torch.no_grad(), subject.trace(**inputs.kwargs(), use_cache=False) as tracer:
        found = [].save()
        found.append(read(log_softmax(subject.lm_head(language.norm(language.layers[0].input)), dim=-1)))
        for layer in language.layers:
            found.append(read(log_softmax(subject.lm_head(language.norm(layer.output)), dim=-1)))
        tracer.stop()
    return tuple(torch.stack(part) for part in zip(*found, strict=True))


def read(log_probs):
    best = log_probs.topk(TOP)
    return best.indices, best.values, -(log_probs.exp() * log_probs).sum(-1)


def load(folder, which):
    """Return the run of one side and the model that it runs."""
    if which == "ours":
        model = load_hooked(folder)
        model.identity()
        return ours, model
    plain = load_plain(folder)
    if which == "dense":
        return dense, plain
    from nnsight import NNsight

    return traced, NNsight(plain)


def growth(folder, which):
    """Return by how many bytes memory grows during one run, after one on a few words."""
    model, (run, subject) = load_hooked(folder), load(folder, which)
    short = model.to_inputs("the red car")
    inputs = prompt(model)
    run(subject, short)
    return grown(lambda: run(subject, inputs))


def prompt(model):
    return model.to_inputs("the red car " * 10, images=picture(0))


def agree(found, truth):
    """Return the largest difference, after checking that two lenses read the same: tokens but for ties, numbers to 1e-4."""
    for mine, other in zip(found[1:], truth[1:], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    assert (found[0] == truth[0]).float().mean() > 0.999, "other tokens are on top"
    return max((mine - other).abs().max().item() for mine, other in zip(found[1:], truth[1:], strict=True))


def main(options):
    beside = list(options.beside)
    if "nnsight" in beside and find_spec("nnsight") is None:
        beside.remove("nnsight")
        print("nnsight is not installed in this environment, and left out: see the head of this file\n")
    folder = llava(options.small, vocabulary=vocabulary(0 if options.small else VOCABULARY))
    told = {which: grown_alone(options, which, folder) for which in ("ours", *beside)}
    sides = {which: load(folder, which) for which in ("ours", *beside)}
    inputs = prompt(sides["ours"][1])
    found = {which: run(subject, inputs) for which, (run, subject) in sides.items()}
    differences = {which: agree(found["ours"], found[which]) for which in beside}
    layers, _, positions = found.pop("ours")[2].shape
    del found
    turns = [lambda _, run=run, subject=subject: run(subject, inputs) for run, subject in sides.values()]
    seconds = dict(zip(sides, in_turns(range(options.rounds), *turns), strict=True))
    print(f"{machine(options.threads)}, {options.rounds} rounds\n")
    print("| rows x positions | beside | beside (s) | time, ours / beside | quartiles | beside (MB) | memory | difference |")
    print("|---|---|---|---|---|---|---|---|")
    table = []
    for which in beside:
        times, memory = ratios(seconds["ours"], seconds[which]), told["ours"] / told[which]
        low, median, high = quartiles(times)
        print(
            f"| {layers} x {positions} | {which} | {statistics.median(seconds[which]):.2f} | **{median:.3f}** | "
            f"{low:.3f} to {high:.3f} | {told[which] / 1e6:.0f} | **{memory:.3f}** | {differences[which]:.0e} |"
        )
        row = dict(beside=which, time=median, memory=memory, ratios=times, seconds=seconds[which])
        table.append(row | dict(bytes=[told["ours"], told[which]], difference=differences[which]))
    write_json(options.json, [row | dict(machine=machine(options.threads)) for row in table])


if __name__ == "__main__":
    parser = options_parser(__doc__, rounds=5)
    parser.add_argument("--beside", nargs="*", choices=("dense", "nnsight"), default=("dense", "nnsight"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.grown:
        print(growth(options.folder, options.grown))
    else:
        main(options)
