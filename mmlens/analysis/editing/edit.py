"""An edit of what neurons write, as a value: put on as hooks, or into the weights and out of them again, bit by bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from mmlens.analysis.editing.rows import Rows, added, by_layer, check_neurons, check_writable, read_rows, write_rows
from mmlens.hooks import Hook, feed, neuron_hook
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.results import Result, hash_weights


@dataclass(frozen=True, kw_only=True, repr=False)
class Edit(Result):
    """What is added to the output rows (`W_out[layer, unit]`) of some neurons, so that `target` is said for `source`.

    `source` and `target` are tokens, `words` both as text. Curves are of the fit: point 0 is the model as it was, the last
    point the edit as it is. For each row of the inputs `nll` is that of its least likely target token (nats) and
    `source_nll` that of the source's first token, at the same position. `kl` (nats a position), `repetition` (nats),
    `size` (the Frobenius norm) and `locality` (nats a position) are the other terms before their weights, `loss` their sum
    with `nll`'s mean. `reached` says whether every row's target passed `stop`.
    """

    neurons: Neurons
    delta: Float[Tensor, "neuron d_model"]
    source: tuple[int, ...]
    target: tuple[int, ...]
    words: tuple[str, str]
    loss: Float[Tensor, " point"]
    nll: Float[Tensor, "point row"]
    source_nll: Float[Tensor, "point row"]
    kl: Float[Tensor, " point"]
    repetition: Float[Tensor, " point"]
    size: Float[Tensor, " point"]
    locality: Float[Tensor, " point"]
    reached: bool

    @property
    def steps(self) -> int:
        """How many steps the fit took."""
        return len(self.loss) - 1

    @property
    def norm(self) -> float:
        """The Frobenius norm of `delta`, in the units of the weights."""
        return float(self.delta.norm())

    def __repr__(self) -> str:
        source, target = self.words
        ended = "reached" if self.reached else "not reached"
        return f"Edit({source} -> {target}: {len(self.neurons)} neurons, {self.steps} steps, norm {self.norm:.2f}, {ended})"

    def hooks(self, model: HookedMLLM, *, other_model: bool = False) -> list[Hook]:
        """Return the hooks that do what the edit does to the weights, without touching them.

        They read the neurons at `hook_post` and add to what the output weights return, before any norm or sum behind it.
        Hooks run in order: put these behind others that edit `hook_post`. Raises ValueError for a model with other weights
        than it was made on (unless `other_model`), and for one of another shape.
        """
        self._check(model, other_model)
        return delta_hooks(model, self.neurons, self.delta)

    def apply(self, model: HookedMLLM, *, other_model: bool = False) -> None:
        """Add the edit to the model's own weights. `model.identity()` then shows other ones; `undo` takes it away.

        Edits made on the same weights may follow each other. Raises ValueError for packed or offloaded weights, an edit
        that is applied already, and, as `hooks`, another model.
        """
        self._check(model, other_model)
        check_writable(model)
        applied = _APPLIED.setdefault(model, {})
        if self._digest() in applied:
            raise ValueError(f"an edit is applied once, and {self!r} is in {model.name} already: undo it first")
        before, kept = str(model.identity()["weights"]), read_rows(model, self.neurons)
        written = added(kept, by_layer(self.neurons, self.delta))
        write_rows(model, self.neurons, written)
        applied[self._digest()] = _Applied(before, kept, written)

    def undo(self, model: HookedMLLM) -> None:
        """Put the rows back that `apply` found: the weights are then bit by bit what they were.

        Raises ValueError for an edit that was not applied to this very model object (a model that was saved with an edit
        and loaded again keeps it), and where the rows have been changed since, by a later edit for instance.
        """
        found = _APPLIED.get(model, {}).get(self._digest())
        if found is None:
            raise ValueError(
                f"an edit is undone where it was applied, and {self!r} was not applied to this {model.name}: call "
                "edit.apply(model) first, or load the model anew"
            )
        now = read_rows(model, self.neurons)
        if not all(torch.equal(now[key], rows) for key, rows in found.written.items()):
            raise ValueError(
                f"an edit is undone from the rows that it left, and those of {self!r} have been changed since in "
                f"{model.name}: undo what came later first"
            )
        write_rows(model, self.neurons, found.kept)
        del _APPLIED[model][self._digest()]

    @contextmanager
    def applied(self, model: HookedMLLM, *, other_model: bool = False) -> Iterator[HookedMLLM]:
        """Yield the model with the edit in its weights, for the length of a `with`; see `apply`."""
        self.apply(model, other_model=other_model)
        try:
            yield model
        finally:
            self.undo(model)

    def _check(self, model: HookedMLLM, other_model: bool) -> None:
        """Raise ValueError where the edit is not of this model, as it is or was before the edits that are in it."""
        check_neurons(model, self.neurons)
        if self.delta.shape[1] != model.cfg.d_model:
            raise ValueError(
                f"an edit fits a model of its width: its rows have {self.delta.shape[1]} numbers, those of {model.name} "
                f"{model.cfg.d_model}"
            )
        known = {model.identity()["weights"], *(one.before for one in _APPLIED.get(model, {}).values())}
        if not other_model and self.provenance.weights not in known:
            raise ValueError(
                f"an edit is for the weights it was made on, {self.provenance.model} ({self.provenance.weights}); "
                f"{model.name} has {model.identity()['weights']}: fit it anew, or pass other_model=True if you mean it"
            )

    def _digest(self) -> str:
        rows = {"delta": self.delta, "layer": self.neurons.layer, "unit": self.neurons.unit}
        return f"{','.join(self.neurons.module)}:{hash_weights(rows)}"


@dataclass(frozen=True)
class _Applied:
    """The model's weights before an edit (their hash), and the edit's rows before and behind it."""

    before: str
    kept: Rows
    written: Rows


_APPLIED: WeakKeyDictionary[HookedMLLM, dict[str, _Applied]] = WeakKeyDictionary()


def delta_hooks(model: HookedMLLM, neurons: Neurons, delta: Float[Tensor, "neuron d_model"]) -> list[Hook]:
    """Return the hooks that add `post @ delta` to what the output weights of the neurons' layers return.

    Their point is the output of that linear map itself, so that what follows (a norm, where a family has one, DeepStack,
    the sum) sees the change as it would see one of the weights. Gradients reach `delta`.
    """
    hooks: list[Hook] = []
    for (module, layer), indices in neurons.indices_by_layer().items():
        post = neuron_hook(module, layer, "post")
        out = model.points.canonical[f"{model.points.owner(post)}.hook_out"]
        read, add = _addition(neurons.unit[indices], delta, indices)
        hooks += [(post, feed(read)), (out, add)]
    return hooks


def _addition(units: Tensor, delta: Tensor, indices: list[int]) -> tuple[Any, Any]:
    """Return a sink for `post`, and the function that adds what the neurons write more to the map's output."""
    seen: list[Tensor] = []

    def read(post: Tensor, hook: Any) -> None:
        seen[:] = [post[..., units.to(post.device)]]

    def add(out: Tensor, hook: Any) -> Tensor:
        post = seen.pop()
        wide = torch.promote_types(post.dtype, delta.dtype)
        more = post.to(wide) @ delta[indices].to(post.device, wide)  # sliced here: each run has a graph of its own
        return out + more.reshape(out.shape).to(out)

    return read, add
