"""The last position's attention of all layers: [layer, batch, head, 1, key]."""

import torch
from task import Task
from worker import Run


def ours(task: Task) -> Run:
    from mmlens.analysis import attention_rows

    model = task.hooked()
    inputs = task.inputs(model)
    model.identity()
    return lambda turn: {"pattern": attention_rows(model, inputs).pattern}


def eager(task: Task) -> Run:
    """Transformers' own `output_attentions`, of which the last row is kept."""
    plain, given = task.plain("eager"), task.kwargs()

    def run(turn: int):
        with torch.no_grad():
            said = plain(**given, use_cache=False, output_attentions=True)
        return {"pattern": torch.stack([pattern[:, :, -1:].clone() for pattern in said.attentions])}

    return run
