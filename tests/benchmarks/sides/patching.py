"""The effect of each layer's stream at chosen positions, put from the clean run into the corrupted one.

The slow sides patch a few of the sixteen positions and are compared by the patch. Ours has the clean and the corrupted run
in its time; theirs has neither, and they are given the clean run's streams.
"""

import torch
from task import Task
from worker import Run

POSITIONS, FEW = 16, 4


class Job:
    """Two prompts that differ in their pictures, a metric, and the positions."""

    def __init__(self, task: Task):
        from mmlens.metrics import logit_diff

        self.model, right, wrong = task.hooked(), task.token("right"), task.token("wrong")
        self.model.identity()
        self.clean, self.corrupted = (task.inputs(self.model, which) for which in ("clean", "corrupted"))
        self.metric = lambda logits: logit_diff(logits, right, wrong)
        self.names = [f"blocks.{layer}.hook_resid_pre" for layer in range(self.model.cfg.n_layers)]
        self.every = torch.linspace(0, self.clean.tokens.shape[1] - 1, POSITIONS).round().int().tolist()
        self.few = self.every[:: POSITIONS // FEW]

    def given(self):
        """Return the clean run's streams, and turn metrics [layer x position] into effects: 0 corrupted, 1 clean."""
        with torch.no_grad():
            logits, cache = self.model.run_with_cache(self.clean, self.names)
            best, worst = self.metric(logits), self.metric(self.model(self.corrupted))
        return cache, lambda found: {"effect": ((found - worst) / (best - worst)).view(len(self.names), -1)}

    def mask(self, position):
        here = torch.zeros_like(self.clean.tokens, dtype=torch.bool)
        here[:, position] = True
        return here


def ours(task: Task) -> Run:
    from mmlens.analysis import activation_patching

    job = Job(task)
    sites = {str(position): job.mask(position) for position in job.every}
    kept = [job.every.index(position) for position in job.few]

    def run(turn: int):
        done = activation_patching(job.model, clean=job.clean, corrupted=job.corrupted, metric=job.metric, sites=sites)
        return {"effect": done.effect[:, kept].mean(-1)}

    return run


def transformer_lens(task: Task) -> Run:
    """`transformer_lens.patching` on TransformerLens' own bridge around an eager model."""
    from sides.caching import bridge_of

    job = Job(task)
    own, tokens = bridge_of(task.plain("eager"), task.kwargs("corrupted"))
    return patched_by(job, lambda run: run(own, tokens))


def through_bind(task: Task) -> Run:
    """The same, with the images bound by mmlens."""
    job = Job(task)

    def bound(run):
        with job.model.bind(job.corrupted) as bridge:
            return run(bridge, job.corrupted.tokens)

    return patched_by(job, bound)


def patched_by(job: Job, within) -> Run:
    import pandas as pd
    from transformer_lens.patching import get_act_patch_resid_pre

    cache, effect = job.given()
    rows = pd.DataFrame([(layer, position) for layer in range(len(job.names)) for position in job.few])
    how = dict(index_axis_names=None, index_df=rows)

    def patched(bridge, tokens):
        with torch.no_grad():
            return get_act_patch_resid_pre(bridge, tokens, cache, lambda logits: job.metric(logits)[0], **how)

    return lambda turn: effect(within(patched))


def hook_loop(task: Task) -> Run:
    """A loop over layers and positions, one run with one hook each."""
    from mmlens import hooks

    job = Job(task)
    cache, effect = job.given()

    def run(turn: int):
        found = []
        with torch.no_grad():
            for name in job.names:
                for position in job.few:
                    patch = hooks.replace(cache[name], where=job.mask(position))
                    found.append(job.metric(job.model.run_with_hooks(job.corrupted, fwd_hooks=[(name, patch)])))
        return effect(torch.cat(found))

    return run
