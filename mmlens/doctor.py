"""The doctor: every hook point of a model measured, beside what mmlens promises of it."""

import dataclasses
import json
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance, Result
from mmlens.testing.media import given

QUESTION = "what is there ?"
SIZES = (0.3, 3.0)  # of the noise, in standard deviations of the activation: the second where the first shows nothing
_BLOCK = re.compile(r"(?P<prefix>.*\bblocks\.)(?P<layer>\d+)(?P<point>\..*)")


@dataclass(frozen=True, kw_only=True, repr=False)
class Liveness(Result):
    """What each hook point did, beside what mmlens promises: `live`, `read only` or `dead`.

    `fires`: a run reached it. `change`: the largest change of any logit when noise is put there, over the largest logit (0:
    the model does not see an edit; NaN: it never fired). `gradient`: the largest gradient of the last logits' squares there
    (NaN where there was none to measure). `notes` says what an edit raised, where it did.
    """

    names: tuple[str, ...]
    promised: tuple[str, ...]
    fires: Bool[Tensor, " point"]
    change: Float[Tensor, " point"]
    gradient: Float[Tensor, " point"]
    notes: tuple[str, ...]

    @property
    def measured(self) -> tuple[str, ...]:
        """What each point turned out to be: `live`, `read only` or `dead`."""
        seen = zip(self.fires.tolist(), self.change.tolist(), strict=True)
        return tuple("dead" if not fires else "live" if change > 0 else "read only" for fires, change in seen)

    @property
    def failures(self) -> tuple[str, ...]:
        """The points that do less than is promised: listed and never firing, editable and without effect."""
        both = zip(self.names, self.promised, self.measured, strict=True)
        return tuple(name for name, promised, measured in both if does_less(measured, promised))

    def json(self) -> str:
        """Return every point as JSON, with what was promised, what was measured, and where it comes from."""
        points = [
            {"name": name, "promised": promised, "measured": measured, "change": _number(change), "gradient": _number(slope)}
            for name, promised, measured, change, slope in zip(
                self.names, self.promised, self.measured, self.change.tolist(), self.gradient.tolist(), strict=True
            )
        ]
        told = {"points": points, "failures": self.failures, "provenance": dataclasses.asdict(self.provenance)}
        return json.dumps(told, indent=1)

    def table(self, *, every: bool = False) -> list[tuple[str, str, str, str]]:
        """Return lines (point, promised, measured, change): blocks of like points as one line, or `every` point."""
        lines: dict[tuple[str, str, str], list[tuple[str, float]]] = {}
        for name, promised, measured, change in zip(
            self.names, self.promised, self.measured, self.change.tolist(), strict=True
        ):
            block = None if every else _BLOCK.fullmatch(name)
            point = name if block is None else f"{block['prefix']}{{}}{block['point']}"
            lines.setdefault((point, promised, measured), []).append(("" if block is None else block["layer"], change))
        return [
            (point.replace("{}", ",".join(layer for layer, _ in found)), promised, measured, _span([c for _, c in found]))
            for (point, promised, measured), found in lines.items()
        ]


def doctor(
    model: HookedMLLM,
    inputs: Inputs | Sequence[Inputs] | None = None,
    *,
    layers: Sequence[int] | Literal["all"] | None = None,
    gradients: bool = True,
    progress: bool = False,
) -> Liveness:
    """Return what every hook point of a model does on `inputs`: whether it fires, and whether an edit reaches the logits.

    `inputs` default to one made-up medium of each kind that the model takes. `layers` of each tower and of the language
    model: the first, the middle and the last unless said, so that a large model is feasible (one run for each point).
    Raises IndexError for a layer that no module has.
    """
    runs = list(samples(model)) if inputs is None else [inputs] if isinstance(inputs, Inputs) else list(inputs)
    names = chosen_names(list(model.points.by_name), layers)
    fired = [_fired(model, names, each) for each in runs]
    slopes = _gradients(model, names, runs) if gradients else {}
    change, notes = [], []
    for name in tqdm(names, "points", disable=not progress):
        reached = [each for each, met in zip(runs, fired, strict=True) if name in met]
        most, note = (0.0 if reached else float("nan")), ""
        for each in reached:
            found, note = _effect(model, name, each)
            most = max(most, found)
            if most > 0:
                break
        change.append(most)
        notes.append(note)
    return Liveness(
        names=tuple(names),
        promised=tuple(model.points.promise(name) for name in names),
        fires=torch.tensor([any(name in met for met in fired) for name in names]),
        change=torch.tensor(change),
        gradient=torch.tensor([slopes.get(name, float("nan")) for name in names]),
        notes=tuple(notes),
        provenance=Provenance.record(
            model, tuple(each.digest() for each in runs), analysis="doctor", layers="sampled" if layers is None else layers
        ),
    )


def does_less(one: str, other: str) -> bool:
    """Return whether a point that is `one` (live, read only, dead) does less than one that is `other`."""
    order = ("dead", "read only", "live")
    return order.index(one) < order.index(other)


def samples(model: HookedMLLM) -> list[Inputs]:
    """Return one made-up prompt for each kind of media that the model takes."""
    return [model.to_inputs(QUESTION, **given(kind, [0])) for kind in model.family.takes] or [model.to_inputs(QUESTION)]


# ---------------------------------------------------------------- inside


def chosen_names(names: list[str], layers: Sequence[int] | str | None) -> list[str]:
    """Return the names outside of blocks, and those of the chosen layers."""
    if layers == "all":
        return names
    blocks = [found for name in names if (found := _BLOCK.fullmatch(name))]
    depth: dict[str, int] = {}
    for found in blocks:
        depth[found["prefix"]] = max(depth.get(found["prefix"], 0), int(found["layer"]) + 1)
    if layers is not None and (beyond := [layer for layer in layers if not 0 <= int(layer) < max(depth.values())]):
        raise IndexError(f"layers are numbers from 0 to {max(depth.values()) - 1}, got {beyond}")
    keep = {
        prefix: {0, count // 2, count - 1} if layers is None else {int(layer) for layer in layers}
        for prefix, count in depth.items()
    }
    return [name for name in names if not (found := _BLOCK.fullmatch(name)) or int(found["layer"]) in keep[found["prefix"]]]


@torch.no_grad()
def _fired(model: HookedMLLM, names: list[str], inputs: Inputs) -> set[str]:
    """Return the points that a run reached."""
    fired: set[str] = set()
    _run(model, inputs, {name: lambda activation, hook: fired.add(hook.name) for name in names})
    return fired


@torch.no_grad()
def _effect(model: HookedMLLM, name: str, inputs: Inputs) -> tuple[float, str]:
    """Return the largest change of a logit when noise is put at a point, over the largest logit, and what went wrong."""
    real = inputs.mask("all")
    same: Callable[[Tensor, Any], Tensor] = lambda activation, hook: activation.clone()  # noqa: E731
    # A hook on attention turns SDPA off: compare with a run in which one is there too.
    before = _run(model, inputs, {name: same})[real]
    largest = before.float().abs().max().item()
    for size in SIZES:
        try:
            after = _run(model, inputs, {name: _noise(model, size)})[real]
        except Exception as error:  # the edit broke the run: the model uses what is there, and that is worth knowing
            return 1.0, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        change = (after.float() - before.float()).abs().max().item() / max(largest, 1e-30)
        if change > 0 or change != change:
            return (1.0 if change != change else change), ""
    return 0.0, ""


def _noise(model: HookedMLLM, size: float) -> Callable[[Tensor, Any], Tensor]:
    def shake(activation: Tensor, hook: Any) -> Tensor:
        if activation.dtype == torch.bool:
            return ~activation
        if not activation.is_floating_point():  # token ids
            return (activation + 1) % model.cfg.d_vocab
        visible = activation > torch.finfo(activation.dtype).min / 2  # what a mask hides stays hidden
        seen = activation[visible].float()
        spread = max(seen.std().item() if seen.numel() > 1 else 0.0, seen.abs().mean().item() * 0.1, 1e-6)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(activation.shape, generator=generator).to(activation) * (spread * size)
        return torch.where(visible, activation + noise, activation)

    return shake


def _gradients(model: HookedMLLM, names: list[str], runs: Sequence[Inputs]) -> dict[str, float]:
    """Return the largest gradient at each point that has one, from one backward for each input."""
    largest: dict[str, float] = {}
    for inputs in runs:
        met: dict[str, Tensor] = {}

        def meet(activation: Tensor, hook: Any, met: dict[str, Tensor] = met) -> Tensor:
            if activation.requires_grad:
                met[hook.name] = activation
            return activation

        with torch.enable_grad():
            logits = _run(model, inputs, dict.fromkeys(names, meet))
            if not met or not logits.requires_grad:
                continue
            loss = logits[:, -1].float().square().sum()
            slopes = torch.autograd.grad(loss, list(met.values()), allow_unused=True)
        for name, slope in zip(met, slopes, strict=True):
            if slope is not None:
                largest[name] = max(largest.get(name, 0.0), slope.abs().max().item())
    return largest


def _run(model: HookedMLLM, inputs: Inputs, hooks: dict[str, Callable[..., Any]]) -> Tensor:
    """Return the logits with hooks on any points, those that mmlens would refuse included."""
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A forward hook edited hook_scale")  # TransformerLens says so of every such edit
        for name, fn in hooks.items():
            model.points.put(stack, name, fn)
        return model(inputs)


def _number(value: float) -> float | None:
    return None if value != value else value


def _span(changes: list[float]) -> str:
    known = [change for change in changes if change == change]
    if not known:
        return "-"
    low, high = min(known), max(known)
    return f"{low:.1e}" if len(known) == 1 or low == high else f"{low:.1e} to {high:.1e}"
