"""Every edge between what enters, heads, MLPs and logits, by the gradient of a logit difference."""

from functools import partial

import torch
from task import Task
from worker import Run

from sides.scores import beginning


def ours(task: Task) -> Run:
    from mmlens.analysis import circuit
    from mmlens.metrics import logit_diff

    model, metric = task.hooked(), partial(logit_diff, correct=task.token("right"), wrong=task.token("wrong"))
    clean, corrupted = (task.inputs(model, which) for which in ("clean", "corrupted"))
    model.identity()

    def run(turn: int):
        found = circuit(model, clean=clean, corrupted=corrupted, metric=metric)
        return {"metric": torch.stack([found.clean_metric, found.corrupted_metric])}

    return run


def floor(task: Task) -> Run:
    """Two forwards of the plain model and one backward from the metric to the first block's input."""
    plain, clean, corrupted = task.plain(), task.kwargs("clean"), task.kwargs("corrupted")
    right, wrong = task.token("right")[:, None], task.token("wrong")[:, None]
    first = plain.model.language_model.layers[0]

    def metric(given):
        last = plain(**given, use_cache=False).logits[:, -1]
        return (last.gather(1, right) - last.gather(1, wrong))[:, 0]

    def run(turn: int):
        with torch.no_grad():
            best = metric(clean)
        starts = []
        handle = first.register_forward_pre_hook(beginning(starts), with_kwargs=True)
        worst = metric(corrupted)
        handle.remove()
        torch.autograd.grad(worst.sum(), starts[0])
        return {"metric": torch.stack([best, worst.detach()])}

    return run
