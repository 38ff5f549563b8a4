"""Scores of all neurons: activation x gradient, summed over image positions, and what each writes into a noun's logit."""

import torch
from task import Task
from worker import Run


def gradient(task: Task) -> Run:
    from mmlens.analysis import grad_x_activation

    model, token = task.hooked(), task.token()
    inputs = task.inputs(model)
    model.identity()
    return lambda turn: {"scores": grad_x_activation(model, inputs, token, reduce="sum").scores}


def floor(task: Task) -> Run:
    """One forward and one backward of the plain model under bare hooks, from the logit to each layer's activations."""
    plain, given, token, where = task.plain(), task.kwargs(), task.token(), task.where()
    blocks = plain.model.language_model.layers

    def run(turn: int):
        kept = []
        handles = [blocks[0].register_forward_pre_hook(beginning([]), with_kwargs=True)]
        handles += [block.mlp.down_proj.register_forward_pre_hook(lambda _, args: kept.append(args[0])) for block in blocks]
        logits = plain(**given, use_cache=False).logits[:, -1]
        gradients = torch.autograd.grad(logits.gather(1, token[:, None]).sum(), kept)
        for handle in handles:
            handle.remove()
        return {"scores": torch.stack([summed(a.detach() * g, where) for a, g in zip(kept, gradients, strict=True)], dim=1)}

    return run


def captum(task: Task) -> Run:
    """LayerGradientXActivation, given all layers at once; it wants an input that asks for a gradient, the pixels."""
    from captum.attr import LayerGradientXActivation

    plain, given, token, where = task.plain(), task.kwargs(), task.token(), task.where()
    pixels = given.pop("pixel_values").requires_grad_(True)
    downs = [block.mlp.down_proj for block in plain.model.language_model.layers]
    score = LayerGradientXActivation(
        lambda pixels: plain(**given, pixel_values=pixels, use_cache=False).logits[:, -1], downs
    )

    def run(turn: int):
        found = score.attribute(pixels, target=token.tolist(), attribute_to_layer_input=True)
        each = [one[0] if isinstance(one, tuple) else one for one in found]
        return {"scores": torch.stack([summed(one.detach(), where) for one in each], dim=1)}

    return run


def nnsight(task: Task) -> Run:
    """One trace with a backward in it; the pixels' embedding is cut off where the language model begins, as ours is."""
    from nnsight import NNsight

    traced, given, token, where = NNsight(task.plain()), task.kwargs(), task.token(), task.where()

    def run(turn: int):
        blocks = traced.model.language_model.layers
        with traced.trace(**given, use_cache=False):
            blocks[0].input = blocks[0].input.detach().requires_grad_(True)
            kept = []
            for block in blocks:
                kept.append(block.mlp.down_proj.input)
            target = traced.output.logits[:, -1].gather(1, token[:, None]).sum()
            gradients = torch.autograd.grad(target, kept)
            scores = torch.stack([summed(a.detach() * g, where) for a, g in zip(kept, gradients, strict=True)], dim=1).save()
        return {"scores": scores}

    return run


def contribution(task: Task) -> Run:
    from mmlens.analysis import logit_contribution

    model, token = task.hooked(), task.token()
    inputs = task.inputs(model)
    model.identity()
    return lambda turn: {"scores": logit_contribution(model, inputs, token).scores}


def table(task: Task) -> Run:
    """The whole W_out W_U, as Pan et al.'s release prepares it, layer by layer: ten tokens of each neuron, no forward."""
    plain = task.plain()
    columns = plain.lm_head.weight.T

    def run(turn: int):
        with torch.no_grad():
            downs = [block.mlp.down_proj.weight.T for block in plain.model.language_model.layers]
            return {"tokens": torch.stack([(rows @ columns).topk(10, dim=-1).indices for rows in downs])}

    return run


def beginning(starts):
    """Return a pre-hook with which the gradient begins at a block's input, which is put into `starts`."""

    def begin(module, args, kwargs):
        starts.append((args[0] if args else kwargs["hidden_states"]).detach().requires_grad_(True))
        return ((*starts, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": starts[0]})

    return begin


def summed(scores, where):
    return (scores * where[..., None]).sum(1)
