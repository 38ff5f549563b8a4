"""How many examples a selection needs: what it shares with that of all examples, and with that of as many others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmlens.analysis.selectivity.selection import Selection
from mmlens.neurons import Neurons
from mmlens.results import Storable
from mmlens.stats import Statistics


@dataclass(frozen=True, eq=False)
class Stability(Storable):
    """Jaccard similarities of a label's neurons, as examples are added part by part; step i has the first i + 1 parts.

    `to_all` is with the selection of all parts, of which the step's are a part themselves: it ends at 1. `to_others` is with
    that of the next i + 1 parts, other examples altogether (NaN where there are not as many left): what a repetition would
    find. `chance` is what random sets with as many neurons in each layer as both of these would share. `examples` are the
    step's.
    """

    labels: tuple[str, ...]
    examples: tuple[int, ...]
    to_all: Float[Tensor, "step label"]
    to_others: Float[Tensor, "step label"]
    chance: Float[Tensor, "step label"]

    def __repr__(self) -> str:
        last = int((~self.to_others.isnan().any(1)).sum()) - 1
        shown = "" if last < 0 else f", with as many others {self.to_others[last].mean():.2f} at {self.examples[last]}"
        return f"Stability of {', '.join(self.labels)} at {', '.join(map(str, self.examples))} examples{shown}"


def stability(parts: Sequence[Statistics], select: Callable[[Statistics], Selection]) -> Stability:
    """Return how stable `select`'s sets are as the examples of `parts`, none of which are in two of them, are added up.

    `select` is `domain_neurons` or `modality_neurons`, with its options by `functools.partial`. Huang et al. 2024 look at 10
    to 10,000 examples (methods 4.d), compared with all. Raises ValueError for fewer than two parts, and for one that lacks a
    label or group which others have.
    """
    if len(parts) < 2:
        raise ValueError(
            f"stability is of two parts or more, got {len(parts)}: sweep over several stretches of the examples"
        )
    sets = [select(Statistics.joined(*parts[: step + 1])).sets for step in range(len(parts))]
    other = [select(Statistics.joined(*parts[n : 2 * n])).sets for n in range(1, len(parts) // 2 + 1)]
    labels = tuple(sets[-1])
    if missing := [label for label in labels if not all(label in one for one in (*sets, *other))]:
        raise ValueError(
            f"every part has examples of {', '.join(labels)}, one has none of {missing[0]}: mix them beforehand"
        )
    none = torch.full((len(parts) - len(other), len(labels)), torch.nan)

    def compare(one: dict[str, Neurons], two: dict[str, Neurons], of: Callable[[Neurons, Neurons], float]) -> Tensor:
        return torch.tensor([of(one[label], two[label]) for label in labels])

    pairs = list(zip(sets, other, strict=False))
    return Stability(
        labels=labels,
        examples=tuple(_examples(parts[: step + 1]) for step in range(len(parts))),
        to_all=torch.stack([compare(one, sets[-1], Neurons.jaccard) for one in sets]),
        to_others=torch.cat([*(compare(a, b, Neurons.jaccard)[None] for a, b in pairs), none]),
        chance=torch.cat([*(compare(a, b, _chance)[None] for a, b in pairs), none]),
    )


def _examples(parts: Sequence[Statistics]) -> int:
    return sum(int(next(iter(part.samples.values())).amax(1).sum()) for part in parts)


def _chance(a: Neurons, b: Neurons) -> float:
    """Return the expected intersection of random sets of these sizes in each layer, over the union that it leaves."""
    ours, theirs = a.by_layer(), b.by_layer()
    both = sum(len(units) * len(theirs[key]) / a.widths[key[0]][key[1]] for key, units in ours.items() if key in theirs)
    return both / (len(a) + len(b) - both) if len(a) + len(b) else 1.0
