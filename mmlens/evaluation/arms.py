"""What is run on every batch: the model as it is, with each intervention, and with each intervention's random controls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mmlens.evaluation.ablation import Ablation, digest
from mmlens.hooks import Hook
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons

BASELINE = "baseline"
Intervention = Neurons | Ablation | Sequence[Hook] | Callable[[Inputs], list[Hook]]


@dataclass(frozen=True)
class Arm:
    """One way of running the model: what it is called, of which intervention (None: the baseline), and what it does."""

    name: str
    intervention: str | None
    does: Ablation | Sequence[Hook] | Callable[[Inputs], list[Hook]]

    def recipe(self) -> str:
        """Return a hash of what it does, functions by their names, as a checkpoint compares it."""
        if isinstance(self.does, Ablation):
            return digest(self.does.recipe())
        return digest(named(self.does) if callable(self.does) else [[point, named(fn)] for point, fn in self.does])

    def hooks(self, model: HookedMLLM, inputs: Inputs, places: Sequence[int]) -> list[Hook]:
        """Return the hooks for these inputs, whose rows have those places in the data set."""
        if isinstance(self.does, Ablation):
            return self.does.hooks(model, inputs, places=places)
        return list(self.does(inputs) if callable(self.does) else self.does)


def told(name: str, does: Any) -> str:
    """Return what an intervention does, in a line. Raises TypeError for what is none."""
    if isinstance(does, Ablation):
        value = does.value if isinstance(does.value, str | float | int) else "values of their own"
        held = f"{'all but ' * does.complement}{len(does.neurons)} neurons held at {value}"
        return f"{name}: {held} at {does.site}{', at ' + does.group if does.where else ''}"
    if callable(does):
        return f"{name}: hooks by {named(does)}"
    if isinstance(does, Sequence) and all(isinstance(one, tuple) and len(one) == 2 for one in does):
        return f"{name}: {len(does)} hooks"
    raise TypeError(
        "an intervention is Neurons, an Ablation, a list of hooks or a function of inputs that returns one; "
        f"{name!r} is a {type(does).__name__}"
    )


def named(fn: Any) -> str:
    """Return the name of a function, which is how a checkpoint knows it."""
    if isinstance(fn, partial):
        return f"partial of {named(fn.func)}"
    return f"{getattr(fn, '__module__', '')}.{getattr(fn, '__qualname__', type(fn).__qualname__)}"


def as_ablations(interventions: Mapping[str, Any], widths: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return `interventions` with every set of neurons as an `Ablation`. Raises ValueError for another model's neurons."""
    found: dict[str, Any] = {}
    for name, one in interventions.items():
        found[name] = one = Ablation(one) if isinstance(one, Neurons) else one
        if isinstance(one, Ablation):
            for module in dict.fromkeys(one.neurons.module):
                if one.neurons.widths[module] != widths.get(module):
                    raise ValueError(
                        f"neurons are of the model that is evaluated, but those of {name!r} are of one with "
                        f"{one.neurons.widths[module]} units in the layers of {module}, this one has {widths.get(module)}"
                    )
    return found


def controls(ablations: Mapping[str, Ablation], draws: int | Mapping[str, int], seed: int) -> dict[str, dict[str, Ablation]]:
    """Return the random controls of each ablation, by the names of their arms.

    Raises ValueError for numbers of draws below 0, for those of an ablation that is none, and where a layer is too small.
    """
    given = draws if isinstance(draws, Mapping) else dict.fromkeys(ablations, draws)
    if unknown := [name for name in given if name not in ablations]:
        raise ValueError(f"random controls are of sets of neurons, {', '.join(ablations)}; got draws for {unknown[0]!r}")
    found: dict[str, dict[str, Ablation]] = {}
    for name, one in ablations.items():
        number = given.get(name, 10)
        if number < 0:
            raise ValueError(f"a control is drawn 0 times or more, got {number} for {name!r}: leave it at 10")
        try:
            drawn = [one.random(seed * 1000 + draw) for draw in range(number)]
        except ValueError as error:
            raise ValueError(
                f"{name!r} has no random control: {error}. To evaluate it without one, give draws={{{name!r}: 0}}"
            ) from error
        found[name] = {f"{name} (random {draw})": control for draw, control in enumerate(drawn)}
    return found
