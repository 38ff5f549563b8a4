"""What a model answers under some hooks, and how right that is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmlens.data import Example
from mmlens.evaluation.arms import named
from mmlens.hooks import Hook
from mmlens.inputs import Inputs
from mmlens.metrics import METRICS
from mmlens.model import HookedMLLM
from mmlens.sweeps import encoded

LOG_PROB, MARGIN = OF_LOGITS = ("log_prob", "margin")  # for these, nothing is written


@dataclass(frozen=True)
class Scorer:
    """How examples are asked and scored: by `metric` of what is written, or, without one, by logits."""

    name: str
    metric: Callable[[str, Sequence[str]], float] | None
    max_new_tokens: int
    chat: bool

    @classmethod
    def of(cls, metric: str | Callable[..., Any], *, max_new_tokens: int, chat: bool) -> "Scorer":
        """Return the scorer of a metric or of its name. Raises ValueError for a name that is none."""
        if isinstance(metric, str) and metric not in (*METRICS, *OF_LOGITS):
            known = ", ".join((*METRICS, *OF_LOGITS))
            raise ValueError(f"a metric is a function, or one of {known}; got {metric!r}")
        if isinstance(metric, str):
            return cls(metric, METRICS.get(metric), max_new_tokens, chat)
        return cls(named(metric), metric, max_new_tokens, chat)

    def recipe(self) -> dict[str, Any]:
        """Return the parameters, as a checkpoint compares them."""
        tokens = None if self.metric is None else self.max_new_tokens
        return {"metric": self.name, "max_new_tokens": tokens, "chat": self.chat}

    def inputs(self, model: HookedMLLM, examples: Sequence[Example], *, given: Inputs | None) -> Inputs:
        """Return what the model reads, `given` where that is only the prompts, and these were encoded already.

        Raises ValueError where an answer is needed and an example has none.
        """
        if self.metric is not None:
            return encoded(model, examples, chat=self.chat) if given is None else given
        for example in examples:
            if not example.answers or not example.answers[0].strip():
                raise ValueError(f"{self.name} is that of the first gold answer, and this example has none: leave it out")
        return encoded(model, examples, chat=self.chat, answer=[example.answers[0] for example in examples])

    def scores(
        self, model: HookedMLLM, inputs: Inputs, examples: Sequence[Example], hooks: Sequence[Hook]
    ) -> tuple[list[float], list[str | None]]:
        """Return each row's score and what was written. Raises ValueError for a score that is not finite."""
        said: list[str | None] = [None] * len(examples)
        if self.metric is None:
            scores = _of_answers(model, inputs, hooks, margin=self.name == MARGIN)
        else:
            written = model.generate(inputs, max_new_tokens=self.max_new_tokens, fwd_hooks=hooks).text
            scores = [float(self.metric(*pair)) for pair in zip(written, (one.answers for one in examples), strict=True)]
            said = list(written)
        if wrong := [one.id for one, score in zip(examples, scores, strict=True) if not abs(score) < float("inf")]:
            raise ValueError(f"a score is a finite number; that of example {wrong[0]!r} is not: look at the metric")
        return scores, said


def _of_answers(model: HookedMLLM, inputs: Inputs, hooks: Sequence[Hook], *, margin: bool) -> list[float]:
    """Return the log-probability (nats) of each row's answer, or its tokens' mean margin, each token after those before."""
    length = int(inputs.answer.sum(1).max())
    logits = model.run_with_hooks(inputs, fwd_hooks=hooks)[:, -length - 1 : -1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    tokens, own = inputs.tokens[:, -length:, None].to(logits.device), inputs.answer[:, -length:].to(logits.device)
    if not margin:
        return torch.log_softmax(logits, -1).gather(-1, tokens)[..., 0].double().where(own, 0).sum(1).tolist()
    ahead = logits.gather(-1, tokens)[..., 0] - logits.scatter(-1, tokens, -torch.inf).amax(-1)
    return (ahead.double().where(own, 0).sum(1) / own.sum(1)).tolist()
