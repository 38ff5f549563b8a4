"""A plain forward, and the time from disk to first logits."""

import torch
from task import TEXT, Task, pictures
from worker import Run


def ours(task: Task) -> Run:
    model = task.hooked()
    inputs = task.inputs(model)

    def run(turn: int):
        with torch.no_grad():
            return {"logits": model(inputs)}

    return run


def plain(task: Task) -> Run:
    model, given = task.plain(), task.kwargs()

    def run(turn: int):
        with torch.no_grad():
            return {"logits": model(**given, use_cache=False).logits}

    return run


def from_disk(task: Task) -> Run:
    def run(turn: int):
        model = task.hooked()
        with torch.no_grad():
            return {"logits": model(task.inputs(model))}

    return run


def from_disk_plain(task: Task) -> Run:
    from transformers import AutoProcessor

    def run(turn: int):
        model, processor = task.plain(), AutoProcessor.from_pretrained(task.folder)
        said = processor(images=pictures(1), text=f"<image>{TEXT}", return_tensors="pt").to(task.device, task.type)
        with torch.no_grad():
            return {"logits": model(**said, use_cache=False).logits}

    return run
