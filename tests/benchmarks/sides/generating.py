"""Sixty-four tokens, written greedily."""

import torch
from task import Task
from worker import Run

NEW, SHARE = 64, 0.02


def ours(task: Task) -> Run:
    """With 2 % of all neurons held at 0, at every position and step; compared is what is written with none of them."""
    from mmlens import hooks, top_k

    model = task.hooked()
    inputs = task.inputs(model)
    widths = model.widths["language"]
    drawn = torch.rand(len(widths), max(widths), generator=torch.Generator().manual_seed(0))
    some = top_k(drawn, max(1, round(SHARE * sum(widths))), widths=model.widths)
    written = model.generate(inputs, max_new_tokens=NEW, min_new_tokens=NEW).tokens

    def run(turn: int):
        model.generate(inputs, max_new_tokens=NEW, min_new_tokens=NEW, fwd_hooks=hooks.ablate(some))
        return {"tokens": written}

    return run


def plain(task: Task) -> Run:
    """Transformers' `generate`, nothing attached."""
    model, given = task.plain(), task.kwargs()
    options = dict(do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=model.config.pad_token_id)

    def run(turn: int):
        with torch.no_grad():
            return {"tokens": model.generate(**given, **options)}

    return run
