"""What activation patching of the residual stream costs, beside TransformerLens' own and a plain loop over hooks.

    python tests/benchmarks/patching.py [--threads 1] [--rounds 5] [--few 4] [--vocabulary N] [--json FILE] [--small]

A LLaVA with random weights (6 layers, d_model 512, 8 heads, d_mlp 1376, 576 positions per image, float32) reads the same
words with two pictures; the clean run's stream before a block is put into the corrupted run, at one position at a time. In
turns: `transformer_lens.patching.get_act_patch_resid_pre` on TransformerLens' own bridge, which has its own (eager)
attention, with the corrupted picture bound to it by hand; the same tool through `model.bind`, whose attention is ours; a
loop over `model.run_with_hooks` with `hooks.replace`; and `activation_patching`. The last patches all layers x 16 evenly
spaced positions; the others, each of whose patches costs one whole run, all layers x `few` of these. Its time has the clean
and the corrupted run in it; theirs has neither, and they are given the clean run's streams. Printed are the median of the
rounds' ratios of time per patch, their quartiles, the largest difference between effects relative to the largest effect,
and, of one more run of each in a process of its own, both runs included, the ratio of how far memory grew above what it was
before.
By default the language model has 25 M weights with its vocabulary of 5,900. What a whole run spends on the unembedding at
all positions, `activation_patching` spends at one: with `--vocabulary 0` (a few words) it gains nothing there, as in a 7B
model, where that is 2 % of a run; with LLaVA's own 32,000 it is nearly half of so narrow a model's run.
"""

import statistics

import pandas as pd
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
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.patching import get_act_patch_resid_pre

from mmlens import hooks
from mmlens.analysis import activation_patching
from mmlens.metrics import logit_diff

POSITIONS = 16


class Task:
    """Two prompts that differ in their picture, the metric, and what the slow sides are given: the clean run's streams."""

    def __init__(self, model, folder):
        self.model = model
        self.clean, self.corrupted = (self.model.to_inputs("the red car " * 10, images=picture(seed)) for seed in (0, 1))
        right, wrong = (torch.tensor([self.model.to_token(word)]) for word in ("car", "boat"))
        self.metric = lambda logits: logit_diff(logits, right, wrong)
        self.names = [f"blocks.{layer}.hook_resid_pre" for layer in range(self.model.cfg.n_layers)]
        with torch.no_grad():
            logits, self.cache = self.model.run_with_cache(self.clean, self.names)
            self.best, self.worst = self.metric(logits), self.metric(self.model(self.corrupted))
        self.theirs = own_bridge(model, folder, self.corrupted)
        last = self.clean.tokens.shape[1] - 1
        self.positions = torch.linspace(0, last, POSITIONS).round().int().tolist()

    def mask(self, position):
        here = torch.zeros_like(self.clean.tokens, dtype=torch.bool)
        here[:, position] = True
        return here

    def effect(self, metric):
        """Return metrics [layer, position] as effects: 0 is the corrupted run, 1 the clean one."""
        return ((metric - self.worst) / (self.best - self.worst)).view(len(self.names), -1)


def ours(task, positions):
    sites = {str(position): task.mask(position) for position in positions}
    done = activation_patching(task.model, clean=task.clean, corrupted=task.corrupted, metric=task.metric, sites=sites)
    return done.effect[..., 0]


@torch.no_grad()
def patched_by(bridge, task, positions):
    """Return the same effects from TransformerLens, told which (layer, position) to patch."""
    rows = pd.DataFrame([(layer, position) for layer in range(len(task.names)) for position in positions])
    metric = get_act_patch_resid_pre(
        bridge,
        task.corrupted.tokens,
        task.cache,
        lambda logits: task.metric(logits)[0],
        index_axis_names=None,
        index_df=rows,
    )
    return task.effect(metric)


def transformer_lens(task, positions):
    return patched_by(task.theirs, task, positions)


def through_bind(task, positions):
    with task.model.bind(task.corrupted) as bridge:
        return patched_by(bridge, task, positions)


def own_bridge(model, folder, inputs):
    """Return TransformerLens' bridge as it ships, around a plain eager model, fed with the media of `inputs`."""
    plain = load_plain(folder, "eager")
    bridge = build_bridge_from_module(plain, type(plain).__name__, hf_config=plain.config, model_name="llava")
    bridge.tokenizer = model.tokenizer
    media = {name: value for name, value in inputs.kwargs().items() if name != "input_ids"}
    forward = type(bridge).forward
    object.__setattr__(bridge, "forward", lambda tokens, *args, **given: forward(bridge, tokens, *args, **media, **given))
    return bridge


@torch.no_grad()
def hook_loop(task, positions):
    found = []
    for name in task.names:
        for position in positions:
            patch = hooks.replace(task.cache[name], where=task.mask(position))
            found.append(task.metric(task.model.run_with_hooks(task.corrupted, fwd_hooks=[(name, patch)])))
    return task.effect(torch.cat(found))


SIDES = {
    "transformer_lens.patching": transformer_lens,
    "the same through model.bind": through_bind,
    "a loop over hooks": hook_loop,
    "ours": ours,
}


def growth(folder, which):
    """Return by how many bytes memory grows while a side runs, from the clean run on, after a run on a few words."""
    model = load_hooked(folder)
    model.identity()
    with torch.no_grad():
        model(model.to_inputs("the red car"))

    def run():
        task = Task(model, folder)
        SIDES[which](task, task.positions if which == "ours" else task.positions[:1])

    return grown(run)


def main(options):
    folder = llava(options.small, vocabulary=vocabulary(0 if options.small else options.vocabulary))
    told = {which: grown_alone(options, which, folder) for which in SIDES}
    task = Task(load_hooked(folder), folder)
    few = task.positions[:: max(1, POSITIONS // options.few)][: options.few]
    patched = {which: task.positions if which == "ours" else few for which in SIDES}
    found = {which: side(task, patched[which]) for which, side in SIDES.items()}
    fewer = found.pop("ours")[:, [task.positions.index(position) for position in few]]
    differences = {which: ((fewer - effect).abs().max() / effect.abs().max()).item() for which, effect in found.items()}
    assert max(differences.values()) < 1e-4, differences
    turns = [lambda _, which=which, side=side: side(task, patched[which]) for which, side in SIDES.items()]
    seconds = dict(zip(SIDES, in_turns(range(options.rounds), *turns), strict=True))
    layers = len(task.names)
    each = {which: [taken / (layers * len(patched[which])) for taken in seconds[which]] for which in SIDES}
    print(f"{machine(options.threads)}, {options.rounds} rounds, {task.clean.tokens.shape[1]} positions\n")
    print("| beside | patches, ours; theirs | beside, s per patch | time, ours / beside | quartiles | memory | difference |")
    print("|---|---|---|---|---|---|---|")
    table = []
    for which in found:
        times, memory = ratios(each["ours"], each[which]), told["ours"] / told[which]
        low, median, high = quartiles(times)
        print(
            f"| {which} | {layers} x {POSITIONS}; {layers} x {len(few)} | {statistics.median(each[which]):.3f} | "
            f"**{median:.3f}** | {low:.3f} to {high:.3f} | {memory:.3f} | {differences[which]:.0e} |"
        )
        row = dict(beside=which, time=median, memory=memory, ratios=times, seconds_per_patch=each[which])
        table.append(row | dict(bytes=[told["ours"], told[which]], difference=differences[which]))
    write_json(options.json, [row | dict(machine=machine(options.threads)) for row in table])


if __name__ == "__main__":
    parser = options_parser(__doc__, rounds=5)
    parser.add_argument("--vocabulary", type=int, default=5_900, help="tokens; 0: as few as there are words")
    parser.add_argument("--few", type=int, default=4, help="positions of the slow sides")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.grown:
        print(growth(options.folder, options.grown))
    else:
        main(options)
