"""Sets of neurons: ordered, unique (module, layer, unit) with scores, and the controls that match them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlens.results import Storable

Neuron = tuple[str, int, int]


@dataclass(frozen=True, eq=False)
class Neurons(Storable):
    """An ordered set of neurons: parallel `module`, `layer`, `unit`, and a `score` each where there is one.

    `widths` says how many units each layer of each module has; controls and complements are drawn from it. A neuron is
    shown as `L3.u120` in the language model and `vision.L3.u120` elsewhere. Raises ValueError for a unit that does not
    exist and for a neuron given twice.
    """

    module: tuple[str, ...]
    layer: Int[Tensor, " neuron"]
    unit: Int[Tensor, " neuron"]
    widths: dict[str, tuple[int, ...]]
    score: Float[Tensor, " neuron"] | None = None

    def __post_init__(self) -> None:
        seen: set[Neuron] = set()
        for neuron in self:
            module, layer, unit = neuron
            layers = self.widths.get(module)
            if layers is None:
                raise ValueError(f"this model has the modules {sorted(self.widths)}, got {module!r}: choose among those")
            if not 0 <= layer < len(layers) or not 0 <= unit < layers[layer]:
                raise ValueError(
                    f"{label(neuron)} does not exist: {module} has {len(layers)} layers"
                    + (f" and layer {layer} has {layers[layer]} units" if 0 <= layer < len(layers) else "")
                    + ": choose one that does"
                )
            if neuron in seen:
                raise ValueError(f"a set holds a neuron once, got {label(neuron)} twice: leave one out")
            seen.add(neuron)

    @classmethod
    def of(cls, neurons: Iterable[Neuron | tuple[int, int]], widths: Mapping[str, tuple[int, ...]]) -> "Neurons":
        """Return the set of (module, layer, unit), or (layer, unit) of the language model, in the order given."""
        full = [n if len(n) == 3 else ("language", *n) for n in neurons]
        return cls(
            module=tuple(n[0] for n in full),
            layer=torch.tensor([n[1] for n in full], dtype=torch.long),
            unit=torch.tensor([n[2] for n in full], dtype=torch.long),
            widths=dict(widths),
        )

    def __len__(self) -> int:
        return len(self.module)

    def __iter__(self) -> Iterator[Neuron]:
        return iter(zip(self.module, self.layer.tolist(), self.unit.tolist(), strict=True))

    def __getitem__(self, index: slice | list[int]) -> "Neurons":
        """Return a subset by position, in that order: `neurons[:20]` are the first twenty."""
        chosen = list(range(len(self)))[index] if isinstance(index, slice) else list(index)
        return Neurons(
            module=tuple(self.module[i] for i in chosen),
            layer=self.layer[chosen],
            unit=self.unit[chosen],
            widths=self.widths,
            score=None if self.score is None else self.score[chosen],
        )

    def __contains__(self, neuron: object) -> bool:
        return neuron in set(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Neurons) and list(self) == list(other)

    def __and__(self, other: "Neurons") -> "Neurons":
        keep = set(other)
        return self[[i for i, neuron in enumerate(self) if neuron in keep]]

    def __sub__(self, other: "Neurons") -> "Neurons":
        drop = set(other)
        return self[[i for i, neuron in enumerate(self) if neuron not in drop]]

    def __or__(self, other: "Neurons") -> "Neurons":
        """Return this set, then what `other` adds to it. Scores are kept only where both have them."""
        new = other - self
        scores = None if self.score is None or new.score is None else torch.cat([self.score, new.score])
        return Neurons(
            module=self.module + new.module,
            layer=torch.cat([self.layer, new.layer]),
            unit=torch.cat([self.unit, new.unit]),
            widths=self.widths | new.widths,
            score=scores,
        )

    def __repr__(self) -> str:
        shown = ", ".join(self.labels()[:6])
        return f"Neurons({len(self)}: {shown}{', ...' if len(self) > 6 else ''})"

    def labels(self) -> list[str]:
        """Return how each neuron is shown: `L3.u120`, `vision.L3.u120`."""
        return [label(neuron) for neuron in self]

    def by_layer(self) -> dict[tuple[str, int], Int[Tensor, " unit"]]:
        """Return the units of each (module, layer) that has any, in this set's order."""
        return {key: self.unit[indices] for key, indices in self.indices_by_layer().items()}

    def indices_by_layer(self) -> dict[tuple[str, int], list[int]]:
        """Return, for each (module, layer) that has any, where in this set its neurons stand."""
        indices: dict[tuple[str, int], list[int]] = {}
        for index, (module, layer, _) in enumerate(self):
            indices.setdefault((module, layer), []).append(index)
        return indices

    def random_like(self, *, seed: int, exclude: "Neurons | None" = None) -> "Neurons":
        """Return as many random neurons in each module and layer as this set has there, none of them in this set.

        `exclude` names further neurons that must not be drawn. Raises ValueError where a layer has too few left.
        """
        generator = torch.Generator().manual_seed(seed)
        barred = set(self) | set(exclude or ())
        drawn: list[Neuron] = []
        for (module, layer), units in self.by_layer().items():
            free = [u for u in range(self.widths[module][layer]) if (module, layer, u) not in barred]
            if len(free) < len(units):
                raise ValueError(
                    f"a matched control needs {len(units)} other units in layer {layer} of {module}, only {len(free)} of "
                    f"{self.widths[module][layer]} are left: take a smaller set"
                )
            order = torch.randperm(len(free), generator=generator)[: len(units)]
            drawn += [(module, layer, free[i]) for i in order.tolist()]
        return Neurons.of(drawn, self.widths)

    def within(self, *modules: str) -> "Neurons":
        """Return those of some modules, in this set's order."""
        return self[[index for index, module in enumerate(self.module) if module in modules]]

    def complement(self) -> "Neurons":
        """Return every other neuron of the modules that this set has neurons in."""
        own, modules = set(self), dict.fromkeys(self.module)
        everything = (
            (module, layer, unit)
            for module in modules
            for layer, width in enumerate(self.widths[module])
            for unit in range(width)
        )
        return Neurons.of((n for n in everything if n not in own), self.widths)

    def jaccard(self, other: "Neurons") -> float:
        """Return the size of the intersection over that of the union; 1 for two empty sets."""
        union = len(set(self) | set(other))
        return len(set(self) & set(other)) / union if union else 1.0


def label(neuron: Neuron) -> str:
    """Return how a neuron is shown: `L3.u120` in the language model, `vision.L3.u120` elsewhere."""
    module, layer, unit = neuron
    return f"{'' if module == 'language' else module + '.'}L{layer}.u{unit}"


def top_k(
    scores: Float[Tensor, "layer unit"],
    k: int,
    *,
    widths: Mapping[str, tuple[int, ...]],
    module: str = "language",
    largest: bool = True,
) -> Neurons:
    """Return the `k` neurons of `module` with the highest (or lowest) score, best first; ties in (layer, unit) order.

    Raises ValueError when the scores do not have the module's layers and units, hold NaN, or `k` is larger than they.
    """
    if module not in widths:
        raise ValueError(f"this model has the modules {sorted(widths)}, got {module!r}: choose among those")
    layers = widths[module]
    if scores.shape != (len(layers), max(layers)):
        raise ValueError(f"scores of {module} are [{len(layers)}, {max(layers)}] (layer, unit), got {list(scores.shape)}")
    if scores.isnan().any():
        raise ValueError("scores must be numbers, got NaN: look at the activations that they were made from")
    exists = torch.arange(max(layers)) < torch.tensor(layers)[:, None]
    flat = scores.detach().cpu().where(exists, torch.tensor(-torch.inf if largest else torch.inf)).flatten()
    if not 0 <= k <= int(exists.sum()):
        raise ValueError(f"{module} has {int(exists.sum())} neurons, got k = {k}: take from 0 to all of them")
    order = torch.argsort(flat, descending=largest, stable=True)[:k]
    return Neurons(
        module=(module,) * k,
        layer=order // max(layers),
        unit=order % max(layers),
        widths=dict(widths),
        score=flat[order].float(),
    )
