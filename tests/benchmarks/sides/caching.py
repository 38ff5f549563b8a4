"""Logits, and every neuron of every layer at every position."""

from functools import partial

import torch
from task import Task
from worker import Run


def ours(task: Task) -> Run:
    model = task.hooked()
    inputs = task.inputs(model)

    def run(turn: int):
        with torch.no_grad():
            logits, cache = model.run_with_cache(inputs, "blocks.*.mlp.hook_post")
        return {"logits": logits} | {str(layer): cache["post", layer] for layer in range(model.cfg.n_layers)}

    return run


def bare(task: Task) -> Run:
    """Torch's own pre-hooks on `down_proj`, which keep the detached tensor."""
    plain, given = task.plain(), task.kwargs()

    def run(turn: int):
        kept, handles = {}, []
        for layer, block in enumerate(plain.model.language_model.layers):
            keep = partial(lambda layer, module, args: kept.__setitem__(str(layer), args[0].detach()), layer)
            handles.append(block.mlp.down_proj.register_forward_pre_hook(keep))
        with torch.no_grad():
            logits = plain(**given, use_cache=False).logits
        for handle in handles:
            handle.remove()
        return {"logits": logits} | kept

    return run


def bridge(task: Task) -> Run:
    """TransformerLens' bridge around the same model, given the pictures with each call."""
    own, given = bridge_of(task.plain(), task.kwargs())
    names = [f"blocks.{layer}.mlp.hook_post" for layer in range(own.cfg.n_layers)]

    def run(turn: int):
        with torch.no_grad():
            logits, cache = own.run_with_cache(given, names_filter=lambda name: name in names)
        return {"logits": logits} | {str(layer): cache[name] for layer, name in enumerate(names)}

    return run


def nnsight(task: Task) -> Run:
    """One trace that saves what enters each `down_proj`."""
    from nnsight import NNsight

    traced, given = NNsight(task.plain()), task.kwargs()

    def run(turn: int):
        with torch.no_grad(), traced.trace(**given, use_cache=False):
            kept = {}.save()
            for layer, block in enumerate(traced.model.language_model.layers):
                kept[str(layer)] = block.mlp.down_proj.input
            kept["logits"] = traced.output.logits
        return dict(kept)

    return run


def bridge_of(plain, given):
    """Return TransformerLens' bridge as it ships, fed with the media of `given` at every call, and the tokens."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    own = build_bridge_from_module(plain, type(plain).__name__, hf_config=plain.config, model_name="llava")
    media = {name: value for name, value in given.items() if name != "input_ids"}
    forward = type(own).forward
    object.__setattr__(own, "forward", lambda tokens, *args, **others: forward(own, tokens, *args, **media, **others))
    return own, given["input_ids"]
