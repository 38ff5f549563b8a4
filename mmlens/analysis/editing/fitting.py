"""Fits an edit: the smallest change of what some neurons write that makes the model say one word in place of another."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import kl_div
from tqdm.auto import tqdm

from mmlens.analysis.editing.edit import Edit, delta_hooks
from mmlens.analysis.editing.rows import check_neurons
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.prompts import check_length
from mmlens.results import Provenance
from mmlens.targets import Targets, continued

WRITERS = ("language", "projector")  # the modules whose neurons write into the stream


def fit_edit(
    model: HookedMLLM,
    inputs: Inputs,
    source: str | Sequence[int],
    target: str | Sequence[int],
    neurons: Neurons,
    *,
    lr: float = 5e-3,
    steps: int = 50,
    gamma: float = 0.1,
    alpha: float = 1.0,
    beta: float = 10.0,
    stop: float | None = 0.9,
    budget: float | None = None,
    locality: Inputs | None = None,
    progress: bool = False,
) -> Edit:
    """Return the change of the neurons' output rows that makes the model say `target` where it says `source`.

    `inputs` are the edit scenes, a row each, answered up to the word (`model.to_inputs(text, images=..., answer="the")`);
    `source` and `target` are words, or tokens where a tokenizer splits words by what stands before. Only `delta` is
    optimised (Adam from zero, `lr`, at most `steps` steps), through hooks: the model is as it was afterwards.

    The loss, in nats: the mean over rows of the largest negative log-likelihood among the target's tokens, each after the
    right ones before it; + `gamma` x Frobenius norm; + `alpha` x KL(before || after), the mean over all real positions
    before the one that predicts the word; + `beta` x the mean over rows of the largest -log(1 - P) of a target token behind
    the whole target (so that it is not said again). It stops when every row gives every token of the target more than
    `stop` (None: never). `locality` are inputs whose outputs are kept as they were: alpha x KL over all of their real
    positions. After each step `delta` is scaled back to `budget` where its norm is above it, so that edits of different
    neurons compare at equal norms; to compare at equal steps, give the others the first one's `edit.steps`.

    An edit holds for questions of the kind that it was fitted on, and for others in part: let the scenes ask in every way
    that it should hold in (rows may differ in all but the word). Success on them says little, since random neurons come to
    it as well, with a larger norm: try it on other scenes, with `evaluation.expected_after`.

    Raises ValueError for neurons of a tower (they do not write into the stream), words that are the same, and settings that
    mean nothing. Source: Pan et al. 2024 edit neurons so (methods B9), but their editing code was never released; the recipe
    and its numbers are those of FiNE (Pan et al. 2025, methods E2), which edits one text at a time: several rows, the
    budget and locality on inputs of your own are ours.
    """
    words = _Words.of(model, source, target)
    _check(model, neurons, lr=lr, steps=steps, stop=stop, budget=budget)
    task = _Task.of(model, inputs, words)
    kept = None if locality is None else _Kept.of(model, locality, locality.mask("all"))
    weight = model.W_out(int(neurons.layer[0]), neurons.module[0])
    wide = torch.promote_types(weight.dtype, torch.float32)
    delta = torch.zeros(len(neurons), model.cfg.d_model, dtype=wide, device=weight.device, requires_grad=True)
    adam, points = torch.optim.Adam([delta], lr=lr), list[Terms]()
    bar = None if stop is None else -torch.tensor(stop).log()
    reached, hooks = False, delta_hooks(model, neurons, delta)
    with torch.enable_grad(), _frozen(model), tqdm(total=steps, desc="editing", disable=not progress) as bar_shown:
        while True:
            found = task.terms(model.run_with_hooks(task.inputs, fwd_hooks=hooks), delta)
            if kept is not None:
                found = replace(found, locality=kept.divergence(model.run_with_hooks(kept.inputs, fwd_hooks=hooks)))
            loss = found.total(gamma, alpha, beta)
            points.append(found.detached(loss))
            reached = bar is not None and bool((found.nll.detach() < bar.to(found.nll)).all())
            if reached or len(points) > steps:
                break
            adam.zero_grad()
            (delta.grad,) = torch.autograd.grad(loss, [delta])
            adam.step()
            _shrink(delta, budget)
            bar_shown.update()
    return Edit(
        neurons=neurons,
        delta=delta.detach().cpu(),
        source=words.source,
        target=words.target,
        words=words.text,
        reached=reached,
        **{field.name: torch.stack([getattr(one, field.name) for one in points]).cpu() for field in fields(Terms)},
        provenance=Provenance.record(
            model,
            (inputs.digest(), *([] if locality is None else [locality.digest()])),
            analysis="fit_edit",
            lr=lr,
            steps=steps,
            gamma=gamma,
            alpha=alpha,
            beta=beta,
            stop=stop,
            budget=budget,
        ),
    )


@dataclass(frozen=True)
class Terms:
    """The terms of the loss at one point, before their weights, and their sum."""

    nll: Float[Tensor, " row"]
    source_nll: Float[Tensor, " row"]
    kl: Float[Tensor, ""]
    repetition: Float[Tensor, ""]
    size: Float[Tensor, ""]
    locality: Float[Tensor, ""]
    loss: Float[Tensor, ""]

    def total(self, gamma: float, alpha: float, beta: float) -> Float[Tensor, ""]:
        """Return the weighted sum."""
        return self.nll.mean() + gamma * self.size + alpha * (self.kl + self.locality) + beta * self.repetition

    def detached(self, loss: Float[Tensor, ""]) -> "Terms":
        """Return the same numbers, with their sum, without what they were computed from."""
        return Terms(**{field.name: getattr(replace(self, loss=loss), field.name).detach() for field in fields(self)})


@dataclass(frozen=True)
class _Words:
    """Both words as tokens and as text."""

    source: tuple[int, ...]
    target: tuple[int, ...]
    text: tuple[str, str]

    @classmethod
    def of(cls, model: HookedMLLM, source: str | Sequence[int], target: str | Sequence[int]) -> "_Words":
        found = [_tokens(model, one) for one in (source, target)]
        if found[0][0] == found[1][0]:
            raise ValueError(
                f"an edit turns one word into another, and {source!r} and {target!r} begin with the same token "
                f"{found[0][0]}: the model can't tell them apart where the word begins"
            )
        text = [one if isinstance(one, str) else model.tokenizer.decode(list(one)).strip() for one in (source, target)]
        return cls(found[0], found[1], (text[0], text[1]))


@dataclass(frozen=True)
class _Kept:
    """Inputs, and what the unedited model predicts at some of their positions."""

    inputs: Inputs
    where: Bool[Tensor, "batch pos"]
    log_probs: Float[Tensor, "place d_vocab"]

    @classmethod
    def of(cls, model: HookedMLLM, inputs: Inputs, where: Tensor) -> "_Kept":
        with torch.no_grad():
            return cls(inputs, where, _log_softmax(model(inputs)[where]))

    def divergence(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, ""]:
        """Return KL(before || after), the mean over the positions."""
        return kl_div(_log_softmax(logits[self.where]), self.log_probs, log_target=True, reduction="batchmean")


@dataclass(frozen=True)
class _Task:
    """The edit scenes with the target behind them, where each of its tokens is predicted, and what must not change."""

    inputs: Inputs
    targets: Targets
    source: int
    kept: _Kept

    @classmethod
    def of(cls, model: HookedMLLM, inputs: Inputs, words: _Words) -> "_Task":
        rows, length, new = len(inputs), inputs.tokens.shape[1], len(words.target)
        longer = continued(inputs, [torch.tensor(words.target)] * rows, model=model)
        check_length(longer, model.hf_model.config)
        before = longer.mask("all")
        before[:, length - 1 :] = False
        targets = Targets(
            row=torch.arange(rows).repeat_interleave(new),
            position=(torch.arange(new) + length - 1).repeat(rows),
            token=torch.tensor(words.target).repeat(rows),
            word=torch.arange(rows).repeat_interleave(new),
            words=(words.text[1],) * rows,
        )
        return cls(longer, targets, words.source[0], _Kept.of(model, longer, before))

    def terms(self, logits: Float[Tensor, "batch pos d_vocab"], delta: Float[Tensor, "neuron d_model"]) -> Terms:
        """Return the terms of the loss, but for the locality of other inputs."""
        rows, targets = len(self.inputs), self.targets
        said = _log_softmax(logits[targets.row, targets.position])
        nll = -said[torch.arange(len(targets)), targets.token].view(rows, -1)
        nothing = nll.new_zeros(())
        return Terms(
            nll=nll.amax(1),
            source_nll=-said.view(rows, nll.shape[1], -1)[:, 0, self.source],
            kl=self.kept.divergence(logits),
            repetition=_not_again(_wide(logits[:, -1]), targets.token.view(rows, -1)).amax(1).mean(),
            size=delta.norm(),
            locality=nothing,
            loss=nothing,
        )


def _not_again(logits: Float[Tensor, "row d_vocab"], tokens: Tensor) -> Float[Tensor, "row token"]:
    """Return -log(1 - P) of each row's `tokens`, as the other tokens' share, which stays finite where P is 1."""
    everything = logits.logsumexp(-1)
    others = [logits.scatter(1, tokens[:, [one]].to(logits.device), -torch.inf) for one in range(tokens.shape[1])]
    return torch.stack([everything - one.logsumexp(-1) for one in others], dim=1)


def _shrink(delta: Tensor, budget: float | None) -> None:
    """Scale `delta` back to the largest norm that it may have."""
    with torch.no_grad():
        if budget is not None and delta.norm() > budget:
            delta.mul_(budget / delta.norm())


@contextmanager
def _frozen(model: HookedMLLM) -> Iterator[None]:
    """Let no weight ask for a gradient, for the length of a `with`: a run then keeps only what `delta` needs."""
    weights = [weight for weight in model.hf_model.parameters() if weight.requires_grad]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def _tokens(model: HookedMLLM, word: str | Sequence[int]) -> tuple[int, ...]:
    """Return the tokens of a word, or those that were given. Raises ValueError for none and for unknown ones."""
    if isinstance(word, str):
        model.to_token(word)
        return tuple(model.tokenizer(word, add_special_tokens=False)["input_ids"])
    tokens = tuple(int(token) for token in word)
    if not tokens or not all(0 <= token < model.cfg.d_vocab for token in tokens):
        raise ValueError(f"a word is text, or tokens from 0 to {model.cfg.d_vocab - 1}, got {list(tokens)}")
    return tokens


def _check(model: HookedMLLM, neurons: Neurons, *, lr: float, steps: int, stop: float | None, budget: float | None) -> None:
    check_neurons(model, neurons)
    if outside := sorted(set(neurons.module) - set(WRITERS)):
        raise ValueError(f"only neurons that write into the stream are edited, got neurons of {', '.join(outside)}")
    if lr <= 0 or steps < 0:
        raise ValueError(f"a fit takes 0 steps or more, at a rate above 0, got steps={steps} and lr={lr}")
    if stop is not None and not 0 < stop < 1:
        raise ValueError(f"stop is a probability between 0 and 1, or None to take every step, got {stop}")
    if budget is not None and budget <= 0:
        raise ValueError(f"a budget is the largest norm that delta may have, above 0, got {budget}")


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(_wide(logits), -1)
