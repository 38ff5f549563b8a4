"""The ten most probable tokens of every layer and position, their log-probabilities, and the entropy.

No side computes the model's own logits, which the lens does not need.
"""

import torch
from task import Task
from torch import log_softmax
from worker import Run

TOP = 10


def ours(task: Task) -> Run:
    from mmlens.analysis import logit_lens

    model = task.hooked()
    inputs = task.inputs(model)
    model.identity()

    def run(turn: int):
        lens = logit_lens(model, inputs, top_k=TOP)
        return {"log_probs": lens.log_probs, "entropy": lens.entropy}

    return run


def dense(task: Task) -> Run:
    """Bare hooks keep the streams; norm, unembedding, softmax, top k and entropy in one tensor of all of them."""
    plain, given = task.plain(), task.kwargs()
    language = plain.model.language_model

    def run(turn: int):
        streams = []
        handles = [language.layers[0].register_forward_pre_hook(lambda module, args: streams.append(args[0]))]
        handles += [layer.register_forward_hook(lambda module, args, out: streams.append(out)) for layer in language.layers]
        with torch.no_grad():
            plain.model(**given, use_cache=False)
            for handle in handles:
                handle.remove()
            best, entropy = read(log_softmax(plain.lm_head(language.norm(torch.stack(streams))).float(), dim=-1))
        return {"log_probs": best, "entropy": entropy}

    return run


def nnsight(task: Task) -> Run:
    """Layer after layer inside one trace, of which nothing but the result is saved, stopped behind the last."""
    from nnsight import NNsight

    traced, given = NNsight(task.plain()), task.kwargs()

    def run(turn: int):
        language = traced.model.language_model
        with torch.no_grad(), traced.trace(**given, use_cache=False) as tracer:
            found = [].save()
            found.append(read(log_softmax(traced.lm_head(language.norm(language.layers[0].input)).float(), dim=-1)))
            for layer in language.layers:
                found.append(read(log_softmax(traced.lm_head(language.norm(layer.output)).float(), dim=-1)))
            tracer.stop()
        best, entropy = (torch.stack(part) for part in zip(*found, strict=True))
        return {"log_probs": best, "entropy": entropy}

    return run


def nnterp(task: Task) -> Run:
    """Its logit lens over a standardized model."""
    from nnterp import StandardizedTransformer
    from nnterp.interventions import logit_lens

    model = StandardizedTransformer(str(task.folder))
    return lambda turn: {"log_probs": logit_lens(model, [" ".join(["the red car"] * 10)]).topk(TOP).values.log()}


def read(log_probs):
    return log_probs.topk(TOP).values, -(log_probs.exp() * log_probs).sum(-1)
