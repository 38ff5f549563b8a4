"""What the last position's attention of all layers costs, beside transformers' eager attention with `output_attentions`.

    python tests/benchmarks/attention_rows.py [--threads 1] [--rounds 3] [--json FILE] [--small]

A LLaVA with random weights (6 layers, d_model 512, 8 heads, d_mlp 1376, 576 positions per image, float32) reads five
pictures, 2,880 image positions, in turns: the plain model in eager attention, of whose patterns the last row is kept, then
`attention_rows`. Printed are the median of the rounds' ratios of time and, of one more run of each in a process of its own,
the ratio of how far memory grew above what it was before the run.
"""

import statistics

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
    ratios,
    write_json,
)

from mmlens.analysis import attention_rows


@torch.no_grad()
def theirs(eager, inputs):
    """Return the last position's attention [layer, batch, head, 1, key] of transformers' own output."""
    said = eager(**inputs.kwargs(), use_cache=False, output_attentions=True)
    return torch.stack([pattern[:, :, -1:].clone() for pattern in said.attentions])


def ours(model, inputs):
    return attention_rows(model, inputs).pattern


def load(folder):
    """Return the hooked model, the plain eager one, and a prompt of five pictures."""
    model = load_hooked(folder)
    return model, load_plain(folder, "eager"), model.to_inputs("the red car " * 10, images=[picture(i) for i in range(5)])


def growth(folder, which):
    """Return by how many bytes memory grows during one run, after a short one."""
    model, eager, inputs = load(folder)
    short = model.to_inputs("the red car", images=inputs.media[0][0])
    run, subject = {"ours": (ours, model), "theirs": (theirs, eager)}[which]
    model.identity()
    run(subject, short)
    return grown(lambda: run(subject, inputs))


def main(options):
    folder = llava(options.small)
    told = [grown_alone(options, which, folder) for which in ("ours", "theirs")]
    model, eager, inputs = load(folder)
    found, truth = ours(model, inputs), theirs(eager, inputs)
    difference = (found - truth).abs().max().item()
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-5)
    slow, fast = in_turns(range(options.rounds), lambda _: theirs(eager, inputs), lambda _: ours(model, inputs))
    times = ratios(fast, slow)
    time_ratio, memory_ratio = statistics.median(times), told[0] / told[1]
    print(f"{machine(options.threads)}, {options.rounds} rounds\n")
    print("| positions | image positions | eager (s) | time, ours / eager | eager (MB) | memory | difference |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {inputs.tokens.shape[1]} | {int(inputs.mask('image').sum())} | {statistics.median(slow):.2f} | "
        f"**{time_ratio:.3f}** ({min(times):.3f} to {max(times):.3f}) | {told[1] / 1e6:.0f} | **{memory_ratio:.3f}** | "
        f"{difference:.0e} |"
    )
    measured = dict(time=time_ratio, memory=memory_ratio, ratios=times, bytes=told, seconds=slow)
    write_json(options.json, measured | dict(machine=machine(options.threads)))


if __name__ == "__main__":
    options = options_parser(__doc__, rounds=3).parse_args()
    torch.set_num_threads(options.threads)
    if options.grown:
        print(growth(options.folder, options.grown))
    else:
        main(options)
