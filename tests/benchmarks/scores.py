"""What the neurons' scores cost, beside the runs that they can't do without, Captum, and the table of the paper's release.

    python tests/benchmarks/scores.py [--threads 1] [--rounds 5] [--json FILE] [--small] [--wide]

A LLaVA with random weights (6 layers, d_model 512, 8 heads, d_mlp 1376, a vocabulary of 5,900: 25 M weights in the language
model; 576 positions per image, float32) reads one picture, in turns: `grad_x_activation` of all neurons at image positions,
beside the floor (one forward of the plain model with each layer's activations kept, and one backward from the logit to
them), and Captum's LayerGradientXActivation where it is installed; `logit_contribution` of one word, beside the plain
forward, `grad_x_activation`, and the whole `W_out W_U` that Pan et al.'s release prepares (every layer's product and its
ten highest tokens, without any forward). Printed are the median of the rounds' ratios of time, their quartiles, and the
largest difference where both sides come to the same numbers. `--wide` takes 32 layers of 11,008 units, as a 7B model has
them, at d_model 256 (279 M weights in the blocks; minutes), and leaves out the table.
"""

import statistics

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
    vocabulary,
    write_json,
)

from mmlens.analysis import grad_x_activation, logit_contribution

WIDE = dict(layers=32, d_model=256, d_mlp=11_008, heads=4, kv_heads=4)


class Task:
    """One prompt, one token, both models, and the plain model's modules."""

    def __init__(self, folder):
        self.model, self.plain = load_hooked(folder), load_plain(folder)
        for weight in self.plain.parameters():
            weight.requires_grad_(False)
        self.inputs = self.model.to_inputs("the red car " * 10, images=picture(0))
        self.token = torch.tensor([self.model.to_token("car")])
        self.where = self.inputs.mask("image")
        self.downs = [layer.mlp.down_proj for layer in self.plain.model.language_model.layers]


def ours_gradient(task):
    return grad_x_activation(task.model, task.inputs, task.token, reduce="sum").scores[0]


def floor(task):
    """Return activation x gradient, summed over image positions, in one forward and one backward under bare hooks."""
    kept, first = [], task.plain.model.language_model.layers[0]

    def begin(module, args, kwargs):
        given = args[0] if args else kwargs["hidden_states"]
        start = given.detach().requires_grad_(True)
        return ((start, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": start})

    handles = [first.register_forward_pre_hook(begin, with_kwargs=True)]
    handles += [down.register_forward_pre_hook(lambda module, args: kept.append(args[0])) for down in task.downs]
    logits = task.plain(**task.inputs.kwargs(), use_cache=False).logits
    gradients = torch.autograd.grad(logits[0, -1, task.token], kept)
    for handle in handles:
        handle.remove()
    return torch.stack([(a[0] * g[0])[task.where[0]].sum(0) for a, g in zip(kept, gradients, strict=True)]).detach()


def captum_gradient(task):
    """Return the same of Captum, which goes forward and backward once for each list of layers that it is given."""
    from captum.attr import LayerGradientXActivation

    def last(pixels):
        return task.plain(**{**task.inputs.kwargs(), "pixel_values": pixels}, use_cache=False).logits[:, -1]

    score = LayerGradientXActivation(last, task.downs)
    pixels = task.inputs.tower["pixel_values"].clone().requires_grad_(True)
    found = score.attribute(pixels, target=int(task.token), attribute_to_layer_input=True)
    return torch.stack([(one[0] if isinstance(one, tuple) else one)[0][task.where[0]].sum(0) for one in found]).detach()


def ours_contribution(task):
    return logit_contribution(task.model, task.inputs, task.token).scores[0]


@torch.no_grad()
def forward(task):
    return task.plain(**task.inputs.kwargs(), use_cache=False).logits


@torch.no_grad()
def table(task):
    """Return every neuron's ten highest tokens: layer by layer, so that only one layer's product is in memory."""
    columns = task.plain.lm_head.weight.T
    return torch.stack([(down.weight.T @ columns).topk(10, dim=-1).indices for down in task.downs])


def captum_is_there():
    try:
        import captum  # noqa: F401
    except ImportError:
        print("captum is not installed here (pip install captum): its row is left out\n")
        return False
    return True


def main(options):
    words = vocabulary(0 if options.small else 5_900)
    task = Task(llava(options.small, vocabulary=words, **(WIDE if options.wide else {})))
    sides = {"grad": ours_gradient, "floor": floor, "contribution": ours_contribution, "forward": forward}
    rows = [("grad_x_activation", "grad", "1 forward + 1 backward", "floor")]
    if captum_is_there():
        sides["captum"] = captum_gradient
        rows.append(("grad_x_activation", "grad", "Captum", "captum"))
    rows += [
        ("logit_contribution", "contribution", "1 forward", "forward"),
        ("logit_contribution", "contribution", "grad_x_activation", "grad"),
    ]
    if not options.wide:
        sides["table"] = table
        rows.append(("logit_contribution", "contribution", "the whole W_out W_U", "table"))
    truth, scores = floor(task), {"floor": ours_gradient(task)}
    scores |= {"captum": captum_gradient(task)} if "captum" in sides else {}
    differences = {
        "floor": float((scores["floor"] - truth).abs().max() / truth.abs().max()),
        **({"captum": float((scores["captum"] - truth).abs().max() / truth.abs().max())} if "captum" in sides else {}),
    }
    assert max(differences.values()) < 1e-3, differences
    seconds = dict(zip(sides, in_turns([task] * options.rounds, *sides.values()), strict=True))
    print(
        f"{machine(options.threads)}, {options.rounds} rounds, {task.inputs.tokens.shape[1]} positions, "
        f"{' x '.join(map(str, truth.shape))} units\n"
    )
    print("| ours | beside | beside, s | time, ours / beside | quartiles | difference |")
    print("|---|---|---|---|---|---|")
    measured = []
    for name, own, label, other in rows:
        times = ratios(seconds[own], seconds[other])
        low, median, high = quartiles(times)
        said = f"{differences[other]:.0e}" if other in differences else "-"
        print(
            f"| `{name}` | {label} | {statistics.median(seconds[other]):.3f} | **{median:.3f}** | {low:.3f} to {high:.3f} | "
            f"{said} |"
        )
        measured.append(dict(ours=name, beside=label, time=median, ratios=times, seconds=seconds[other]))
    write_json(options.json, [row | dict(machine=machine(options.threads)) for row in measured])


if __name__ == "__main__":
    parser = options_parser(__doc__, rounds=5)
    parser.add_argument("--wide", action="store_true", help="32 layers of 11,008 units, at d_model 256")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    main(options)
