"""What every accumulator is: states that read hooks fill batch by batch, that add up, and that save and load."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_sum

from mmlens.hooks import Hook, Site, neuron_hook
from mmlens.inputs import MODALITIES, Inputs
from mmlens.results import Result

EVERYTHING = "all"


class NotFinite(ValueError):
    """An activation that is NaN or infinite, in an example that is named."""


@runtime_checkable
class Hooked(Protocol):
    """What an accumulator asks of a model: `HookedMLLM` has it."""

    def identity(self) -> dict[str, str | None]:
        """Return `model`, `revision` and `weights`."""
        ...

    @property
    def live_layers(self) -> Mapping[str, int]:
        """How many layers of each module, from the first, reach the output."""
        ...

    def act(self, layer: int, module: str = "language") -> Callable[[Tensor], Tensor]:
        """Return the nonlinearity of a layer's neurons."""
        ...

    def is_gated(self, layer: int, module: str = "language") -> bool:
        """Return whether a neuron's value is its nonlinearity times a linear branch."""
        ...


@dataclass(frozen=True, eq=False)
class Batch:
    """A few examples as a model reads them: `inputs`, and each row's label, name and place in the data set (from 0)."""

    inputs: Inputs
    labels: tuple[str | None, ...]
    ids: tuple[str, ...]
    places: tuple[int, ...]
    examples: tuple[Any, ...] = ()
    _held: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def held(self, module: str, shape: Sequence[int]) -> tuple[Int[Tensor, " position"], Int[Tensor, " position"]]:
        """Return the row and the modality of every position of an activation of that shape, laid out flat (-1: none)."""
        key = (module, tuple(shape))
        if key not in self._held:
            rows, kinds = self.inputs.held(module, shape)
            self._held[key] = rows.flatten(), kinds.flatten()
        return self._held[key]

    @cached_property
    def digest(self) -> int:
        """A number of 60 bits that says what the model was shown."""
        return int(self.inputs.digest()[:15], 16)


class Accumulator(Metric):
    """Numbers gathered over a data set: read hooks fill it batch by batch, and `result(model)` returns what they come to.

    A batch counts whole or not at all: `hooks(model, batch)` starts it, `observe(model, batch)` may run the model once more,
    `update()` adds what was gathered, `forget()` drops it. The states are `torchmetrics.Metric` states: two accumulators of
    equal parameters are merged by `merge_state`, and those of several processes by `reduce()`.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        self.labels: tuple[str, ...] = (EVERYTHING,)
        self._state("shown", (2,), torch.int64)  # examples, and the sum of what they looked like
        self._gathered: list[Callable[[], None]] = []

    def recipe(self) -> dict[str, Any]:
        """Return the parameters: two accumulators add up, and a checkpoint is gone on with, only where they are equal."""
        raise NotImplementedError

    def hooks(self, model: Hooked, batch: Batch) -> list[Hook]:
        """Return the read hooks that gather from the run of `batch`."""
        self.forget()
        self._gathered.append(lambda: self._show(batch))
        return []

    def observe(self, model: Hooked, batch: Batch) -> None:
        """Gather what takes more than one run: nothing, unless an accumulator says otherwise."""

    def update(self) -> None:
        """Add what was gathered of one batch."""
        for add in self._gathered:
            add()
        self.forget()

    def forget(self) -> None:
        """Drop what was gathered of a batch that failed."""
        self._gathered.clear()

    def compute(self) -> dict[str, Tensor]:
        """Return the states, for torchmetrics' own tools: what they come to is `result(model)`."""
        return self.states

    @property
    def states(self) -> dict[str, Tensor]:
        """What was added up so far, by name."""
        return {name: state for name, state in self.metric_state.items() if isinstance(state, Tensor)}

    def result(self, model: Hooked) -> Result:
        """Return the result so far. Raises ValueError where no example was shown."""
        raise NotImplementedError

    def merge_state(self, incoming_state: "dict[str, Any] | Metric") -> None:
        """Add what another accumulator gathered. Raises ValueError where it was made with other parameters."""
        if isinstance(incoming_state, Accumulator) and incoming_state.recipe() != self.recipe():
            raise ValueError(
                f"accumulators add up where their parameters are equal, got {self.recipe()} and {incoming_state.recipe()}: "
                "make both alike"
            )
        super().merge_state(incoming_state)

    def saved(self) -> dict[str, Any]:
        """Return the states, as a checkpoint holds them."""
        return dict(self.states)

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `saved` returned. Raises ValueError where states are missing or of another shape or dtype."""
        for name, mine in self.states.items():
            theirs = saved.get(name)
            if not isinstance(theirs, Tensor) or theirs.shape != mine.shape or theirs.dtype != mine.dtype:
                got = f"{theirs.dtype} {list(theirs.shape)}" if isinstance(theirs, Tensor) else "nothing"
                raise ValueError(
                    f"{name} of {type(self).__name__} is {mine.dtype} {list(mine.shape)}, the checkpoint has {got}"
                )
            setattr(self, name, theirs.to(mine.device))

    def reduce(self, group: Any = None) -> None:
        """Add up the states of all processes, in place and in every one of them, by `torch.distributed.all_reduce`."""
        for name, state in self.states.items():
            total = self._reductions[name] is dim_zero_sum
            distributed.all_reduce(state, distributed.ReduceOp.SUM if total else distributed.ReduceOp.MAX, group)

    def others(self, group: Any = None) -> Iterator[dict[str, Tensor]]:
        """Yield the states of every other process, one process after the other: for those that do not just add up."""
        mine = {name: state.clone() for name, state in self.states.items()}
        for rank in range(distributed.get_world_size(group)):
            theirs = {name: state.clone() for name, state in mine.items()}
            for state in theirs.values():
                distributed.broadcast(state, rank, group)
            if rank != distributed.get_rank(group):
                yield theirs

    @property
    def examples(self) -> int:
        """How many examples were shown."""
        return int(self.shown[0])  # pyright: ignore[reportIndexIssue, reportArgumentType]

    def _state(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, *, empty: int | float = 0, keep: str = "sum"
    ) -> None:
        """Add a state of `empty` numbers, of two of which the "sum" or the "max" is kept."""
        nothing = torch.full((), empty, dtype=dtype).expand(shape)  # torchmetrics keeps it for `reset`: one number
        self.add_state(name, nothing, dist_reduce_fx=keep, persistent=True)
        setattr(self, name, nothing.clone(memory_format=torch.contiguous_format))

    def _show(self, batch: Batch) -> None:
        self.shown += torch.tensor([len(batch.inputs), batch.digest])

    def _label(self, batch: Batch, row: int) -> int:
        """Return the number of a row's label. Raises ValueError for one that was not named."""
        if self.labels == (EVERYTHING,):
            return 0
        if batch.labels[row] not in self.labels:
            raise ValueError(
                f"an example's label is one of {', '.join(self.labels)}, got {batch.labels[row]!r} in example "
                f"{batch.ids[row]!r}: name it in `labels`, or leave the example out"
            )
        return self.labels.index(str(batch.labels[row]))

    @property
    def inputs(self) -> tuple[str, ...]:
        """What was shown, as a result's provenance has it. Raises ValueError where that is nothing."""
        if not self.examples:
            raise ValueError("statistics are of examples, and none was counted yet: run a sweep first")
        return (f"{self.examples} examples, sum of digests {int(self.shown[1]) % 2**64:016x}",)  # pyright: ignore


class OfNeurons(Accumulator):
    """What accumulators have that are of every neuron of some modules, by the examples' labels and groups of positions."""

    def __init__(
        self,
        widths: Mapping[str, tuple[int, ...]],
        *,
        labels: Sequence[str],
        groups: Sequence[str],
        modules: Sequence[str],
        site: Site,
    ) -> None:
        super().__init__()
        self.layers = Layers.of(widths, modules, site)
        self.labels, self.groups = tuple(labels), check_groups(groups)
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"labels are named once each, at least one; got {list(labels)}")

    def recipe(self) -> dict[str, Any]:
        """Return the parameters, as a checkpoint compares them."""
        return {
            "is": type(self).__name__,
            "widths": {module: list(widths) for module, widths in self.layers.widths.items()},
            "site": self.layers.site,
            "labels": list(self.labels),
            "groups": list(self.groups),
        }

    def by_module(self, name: str) -> dict[str, Tensor]:
        """Return a copy of one state of every module."""
        return {module: getattr(self, f"{module}_{name}").clone() for module in self.layers.widths}


@dataclass(frozen=True)
class Layers:
    """Which neurons are read, at which site: every layer of some modules of one model."""

    widths: dict[str, tuple[int, ...]]
    site: Site

    @classmethod
    def of(cls, widths: Mapping[str, tuple[int, ...]], modules: Sequence[str], site: Site) -> "Layers":
        """Return the layers of `modules`. Raises ValueError for one that the model has not."""
        if unknown := [module for module in modules if module not in widths]:
            raise ValueError(f"this model has neurons in {', '.join(widths)}, got {unknown[0]!r}: choose among those")
        if not modules:
            raise ValueError(f"statistics are of at least one module, got none: choose among {', '.join(widths)}")
        return cls({module: tuple(widths[module]) for module in modules}, site)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return ((module, layer) for module, widths in self.widths.items() for layer in range(len(widths)))

    def shape(self, module: str) -> tuple[int, int]:
        """Return the number of layers of a module, and of the units of its widest one."""
        return len(self.widths[module]), max(self.widths[module])

    def hook(
        self, model: Hooked, module: str, layer: int, read: Callable[[Tensor], None], *, sign_only: bool = False
    ) -> Hook:
        """Return the hook that hands `read` the neurons' values [..., unit] of one layer.

        `gate_act` has no hook point: it is what the nonlinearity makes of `pre`, and where an MLP has no gate, `post`. Where
        only the sign is asked for it is `pre` itself: ReLU, GELU, SiLU and QuickGELU are above 0 exactly where that is.
        """
        at_gate = self.site == "gate_act" and model.is_gated(layer, module)
        site: Literal["pre", "post"] = "pre" if at_gate or self.site == "pre" else "post"
        act = model.act(layer, module) if at_gate and not sign_only else None

        def fn(activation: Tensor, hook: Any) -> None:
            with torch.no_grad():
                read(activation.detach() if act is None else act(activation.detach()))

        return neuron_hook(module, layer, site), fn


def members(batch: Batch, module: str, kinds: Tensor, rows: Tensor, group: str) -> Tensor:
    """Return which of an activation's positions, laid out flat, are of a group: parts joined by `+` are a union.

    In the language model a group is what `Inputs.mask` takes. A tower's positions have modalities; all are of the prompt.
    """
    found = torch.zeros_like(rows, dtype=torch.bool)
    for part in group.split("+"):
        if part in MODALITIES:
            found |= kinds == MODALITIES.index(part)
        elif module == "language":
            found |= batch.inputs.mask(part).flatten()
        elif part in (EVERYTHING, "prompt"):
            found |= rows >= 0
    return found & (rows >= 0)


def check_groups(groups: Sequence[str]) -> tuple[str, ...]:
    """Return `groups`. Raises ValueError for one that is no group of positions, or that is named twice."""
    known = (*MODALITIES[:-1], "answer", "prompt", EVERYTHING)
    for group in groups:
        if any(part not in known for part in group.split("+")):
            raise ValueError(f"a group is one of {', '.join(known)}, or several joined by '+'; got {group!r}")
    if not groups or len(set(groups)) < len(groups):
        raise ValueError(f"groups are named once each, at least one; got {list(groups)}")
    return tuple(groups)


def finite(
    values: Float[Tensor, "position unit"], batch: Batch, rows: Int[Tensor, " position"], where: str
) -> Float[Tensor, "position unit"]:
    """Return the values of an activation. Raises NotFinite, naming the examples, where one is NaN or infinite.

    Padding may hold anything: it is returned as 0 where it is not finite.
    """
    if torch.isfinite(values.sum(dtype=torch.promote_types(values.dtype, torch.float32))):
        return values
    broken = ~values.isfinite()
    rows = rows.to(values.device)
    names = [batch.ids[row] for row in rows[broken.any(-1) & (rows >= 0)].unique().tolist()]
    if names:
        raise NotFinite(
            f"activations are finite numbers, got NaN or infinity at {where} in the example(s) {', '.join(names)}: run the "
            "model in float32 or bfloat16, or look at that input"
        )
    return values.masked_fill(broken, 0)
