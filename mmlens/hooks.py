"""Hook functions: read, replace, add and scale activations; ablate neurons; knock out attention.

A hook is TransformerLens' pair `(name, function)`; an intervention is a list of hooks, and lists add. A function returns
a new tensor, or None if it only reads; nothing is edited in place. `where` is a mask `[batch, pos]` of the prompt's
positions (None: every position at every step), so during generation it acts at prefill only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlens.neurons import Neurons

HookFn = Callable[..., Tensor | None]
Hook = tuple[str, HookFn]
Site = Literal["pre", "gate_act", "post"]
LANGUAGE = ("blocks.", "embed.", "hook_", "pos_embed.", "rotary_emb", "ln_final.", "unembed.")
STEP: ContextVar[int] = ContextVar("step", default=0)
"""Which run of a generation this is: 0 is the prompt, whose positions masks are about."""


def feed(sink: Callable[[Tensor, Any], None], *, where: Bool[Tensor, "batch pos"] | None = None) -> HookFn:
    """Return a function that hands `sink` the activation (with `where`: only those positions, [n, ...]), editing nothing."""

    def read(activation: Tensor, hook: Any) -> Tensor | None:
        if where is None:
            sink(activation, hook)
        elif (here := _at(where, activation, hook)) is not None:
            sink(activation[here], hook)
        return activation if activation.requires_grad else None  # a None under gradients would hand out a dead view

    return read


def replace(
    value: Float[Tensor, "..."] | float,
    *,
    where: Bool[Tensor, "batch pos"] | None = None,
    units: Sequence[int] | Int[Tensor, " unit"] | None = None,
    heads: Sequence[int] | None = None,
) -> HookFn:
    """Return a function that puts `value` (anything that broadcasts) in place of the activation.

    `units` chooses along the last axis, `heads` along the head axis of `hook_q/k/v/z`, `hook_pattern` and
    `hook_attn_scores`; `value` then has the chosen entries only, or broadcasts to them.
    """
    return _edit(lambda chosen: _like(value, chosen), where=where, units=units, heads=heads)


def add(
    direction: Float[Tensor, "..."] | float, *, scale: float = 1.0, where: Bool[Tensor, "batch pos"] | None = None
) -> HookFn:
    """Return a function that adds `scale * direction` to the activation (steering)."""
    return _edit(lambda chosen: chosen + scale * _like(direction, chosen), where=where)


def scale(
    factor: Float[Tensor, "..."] | float,
    *,
    where: Bool[Tensor, "batch pos"] | None = None,
    units: Sequence[int] | Int[Tensor, " unit"] | None = None,
    heads: Sequence[int] | None = None,
) -> HookFn:
    """Return a function that multiplies the activation by `factor`."""
    return _edit(lambda chosen: chosen * _like(factor, chosen), where=where, units=units, heads=heads)


def ablate(
    neurons: Neurons,
    *,
    value: float | Float[Tensor, "... neuron"] = 0.0,
    site: Site = "post",
    where: Bool[Tensor, "batch pos"] | None = None,
) -> list[Hook]:
    """Return the hooks that hold `neurons` at `value`: a number, one per neuron, or `[batch, pos, neuron]`.

    At `post` (what enters W_out) and `pre` (before the nonlinearity) the value is set there. `gate_act` has no hook point:
    a constant there is that constant times the linear branch at `post`, which is what is done (gated MLPs only; at 0 it
    equals `post`). A `where` is about the stream's positions, so it can't be given for neurons of a tower.
    """
    if isinstance(value, Tensor) and value.ndim and value.shape[-1] != len(neurons):
        raise ValueError(f"one value per neuron: {len(neurons)} neurons, got values {list(value.shape)}")
    if where is not None and any(module != "language" for module in neurons.module):
        raise ValueError(
            "`where` is a mask of the language model's positions, but these neurons are also in "
            f"{sorted(set(neurons.module) - {'language'})}: ablate those in a call of their own, without `where`"
        )
    hooks: list[Hook] = []
    for (module, layer), indices in neurons.indices_by_layer().items():
        units = neurons.unit[indices]
        held = value[..., indices] if isinstance(value, Tensor) and value.ndim else value
        if site == "gate_act" and (isinstance(held, Tensor) or held != 0):
            hooks += _hold_gate(module, layer, units, held, where)
        else:
            name = neuron_hook(module, layer, "post" if site == "gate_act" else site)
            hooks.append((name, replace(held, where=where, units=units)))
    return hooks


def knock_out(
    queries: Bool[Tensor, "batch pos"],
    keys: Bool[Tensor, "batch pos"],
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> list[Hook]:
    """Return the hooks that keep `queries` from attending to `keys`: scores to -inf, so that the rest of a row sums to 1.

    `layers=None` is every layer of the language model, `heads=None` every head. Raises ValueError when it runs, if a
    query would be left with nothing to attend to (a first position that may not see itself).
    """

    def block(scores: Tensor, hook: Any) -> Tensor | None:
        rows, columns = _at(queries, scores, hook, axis=2), keys.to(scores.device)
        if rows is None:
            return None
        if columns.shape != (scores.shape[0], scores.shape[3]) or columns.dtype != torch.bool:
            raise ValueError(
                f"keys are a mask [{scores.shape[0]}, {scores.shape[3]}] of booleans, got {columns.dtype} "
                f"{list(columns.shape)}: make it from the inputs of this run, for instance inputs.mask('image')"
            )
        blocked = (rows[:, :, None] & columns[:, None, :])[:, None].expand_as(scores)
        if heads is not None:
            chosen = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
            chosen[_within(heads, scores.shape[1], "head", hook)] = True
            blocked = blocked & chosen[None, :, None, None]
        seen = scores > torch.finfo(scores.dtype).min / 2
        blocked = blocked & seen  # a padded position sees nothing: leave its row as it is
        starved = blocked.any(-1) & ~(seen & ~blocked).any(-1)
        if starved.any():
            row, _, position = starved.nonzero()[0].tolist()
            raise ValueError(
                f"{hook.name}: position {position} of row {row} would have nothing left to attend to; leave it at least one "
                "key (itself, for example)"
            )
        return scores.masked_fill(blocked, -torch.inf)

    names = ["blocks.*.attn.hook_attn_scores"] if layers is None else [f"blocks.{l}.attn.hook_attn_scores" for l in layers]
    return [(name, block) for name in names]


def permute(where: Bool[Tensor, "batch pos"], *, seed: int) -> HookFn:
    """Return a function that shuffles the activations of the `where` positions among each other, row by row.

    At `blocks.0.hook_resid_pre` this shuffles image features while positions and rotary angles stay (Pan et al. 2024, B6).
    """
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(int(row.sum()), generator=generator) for row in where]

    def shuffle(activation: Tensor, hook: Any) -> Tensor | None:
        here = _at(where, activation, hook)
        if here is None:
            return None
        edited = activation.clone()
        for row, order in enumerate(orders):
            edited[row, here[row]] = activation[row, here[row]][order.to(activation.device)]
        return edited

    return shuffle


@contextmanager
def counted_runs(first_block: nn.Module) -> Iterator[None]:
    """Tell hooks, for the length of a generation, which of its runs this is: masks are about the first, the prompt's."""
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        STEP.set(runs)
        runs += 1

    before = STEP.set(0)
    handle = first_block.register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()
        STEP.reset(before)


def module_of(name: str) -> str:
    """Return which module a hook point belongs to: `language`, or the tower or projector that its name begins with."""
    return "language" if name.startswith(LANGUAGE) else name.partition(".")[0]


def neuron_hook(module: str, layer: int, site: Literal["pre", "pre_linear", "post"]) -> str:
    """Return the name of the hook point that holds the neurons of a module's layer at `site`."""
    prefixes = {"language": f"blocks.{layer}.mlp", "projector": "projector", "deepstack": f"deepstack.{layer}"}
    return f"{prefixes.get(module, f'{module}.blocks.{layer}.mlp')}.hook_{site}"


def _hold_gate(module: str, layer: int, units: Tensor, held: float | Tensor, where: Tensor | None) -> list[Hook]:
    seen: list[Tensor] = []

    def keep(linear: Tensor, hook: Any) -> None:
        seen[:] = [linear]

    def hold(post: Tensor, hook: Any) -> Tensor | None:
        linear = seen.pop()[..., units.to(post.device)]
        return replace(_like(held, linear) * linear, where=where, units=units)(post, hook=hook)

    return [(neuron_hook(module, layer, "pre_linear"), feed(keep)), (neuron_hook(module, layer, "post"), hold)]


def _edit(
    change: Callable[[Tensor], Tensor],
    *,
    where: Tensor | None,
    units: Sequence[int] | Int[Tensor, " unit"] | None = None,
    heads: Sequence[int] | None = None,
) -> HookFn:
    """Return a function that applies `change` to the chosen heads and units, at the chosen positions."""
    known: dict[tuple[int, torch.device], Tensor] = {}

    def chosen_units(activation: Tensor, hook: Any) -> Tensor:
        """Return the units as an index, which a generation asks for at every step."""
        key = activation.shape[-1], activation.device
        if key not in known:
            known[key] = torch.as_tensor(_within(units, key[0], "unit", hook), device=key[1])  # pyright: ignore[reportArgumentType]
        return known[key]

    def edit(activation: Tensor, hook: Any) -> Tensor | None:
        here = None
        if where is not None and (here := _at(where, activation, hook, axis=_position_axis(hook))) is None:
            return None
        index: list[Any] = [slice(None)] * activation.ndim
        if heads is not None:
            axis = _head_axis(activation, hook)
            index[axis] = _within(heads, activation.shape[axis], "head", hook)
        if units is not None:
            index[-1] = chosen_units(activation, hook)
        if heads is not None and units is not None:
            raise ValueError(f"a hook edits heads or units, got both at {hook.name}: make two hooks")
        chosen = activation[tuple(index)]
        new = change(chosen).expand_as(chosen)
        if here is not None:
            shape = [1] * activation.ndim
            shape[0], shape[_position_axis(hook)] = here.shape[0], here.shape[1]
            new = torch.where(here.view(shape), new, chosen)
        edited = activation.clone()
        edited[tuple(index)] = new
        return edited

    return edit


def _at(where: Tensor, activation: Tensor, hook: Any, axis: int = 1) -> Tensor | None:
    """Return `where` on the activation's device, or None at a decoding step, whose one position is not the prompt's."""
    batch, length = activation.shape[0], activation.shape[axis]
    if STEP.get():
        return None
    if where.shape == (batch, length) and where.dtype == torch.bool:
        return where.to(activation.device)
    multiplied = where.shape[-1:] == (length,) and len(where) and batch % len(where) == 0 and batch > len(where)
    raise ValueError(
        f"{hook.name} has [batch, pos] = [{batch}, {length}], the mask is {where.dtype} {list(where.shape)}: make it from "
        "the inputs of this run, for instance inputs.mask('image')"
        + (" (beams and several answers multiply the rows: generate without them)" if multiplied else "")
    )


def _within(chosen: Sequence[int] | Int[Tensor, " n"], count: int, what: str, hook: Any) -> list[int]:
    """Return the chosen indices. Raises IndexError for one that is not 0 to `count` - 1."""
    indices = chosen.tolist() if isinstance(chosen, Tensor) else [int(index) for index in chosen]
    if outside := [index for index in indices if not 0 <= index < count]:
        raise IndexError(f"{hook.name} has the {what}s 0 to {count - 1}, got {outside[0]}: choose among those")
    return indices


def _is_matrix(hook: Any) -> bool:
    return str(hook.name).endswith(("hook_pattern", "hook_attn_scores"))


def _position_axis(hook: Any) -> int:
    return 2 if _is_matrix(hook) else 1


def _head_axis(activation: Tensor, hook: Any) -> int:
    if activation.ndim != 4:
        raise ValueError(f"{hook.name} has no head axis (it is {list(activation.shape)}): leave `heads` out")
    return 1 if _is_matrix(hook) else 2


def _like(value: Tensor | float, activation: Tensor) -> Tensor:
    return torch.as_tensor(value, device=activation.device, dtype=activation.dtype)
