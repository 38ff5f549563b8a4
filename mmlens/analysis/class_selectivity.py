"""Do the neurons that a class's pictures share fire for that class? Sets of neurons by class, and their matrix."""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmlens.hooks import Hook, feed, neuron_hook
from mmlens.inputs import MEDIA, Inputs
from mmlens.model import HookedMLLM
from mmlens.neurons import Neuron, Neurons
from mmlens.results import Provenance, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class ClassSelectivity(Result):
    """The mean activation of each class's set over the media of each picture, and that of random sets of the same layers.

    `classes` are those of the sets, `labels` those of the pictures.
    """

    classes: tuple[str, ...]
    labels: tuple[str, ...]
    activation: Float[Tensor, "set example"]
    random_activation: Float[Tensor, "draw set example"]

    def matrix(self) -> Float[Tensor, "set label"]:
        """Return E[c, c']: the mean activation of the set of class c over the pictures of class c', `classes` both."""
        return _by_label(self.activation, self.labels, self.classes)

    def selectivity(self) -> Float[Tensor, "set label"]:
        """Return E[c, c'] / max over c' of E[c, c'], which is 1 on the diagonal where every set is most active on its class.

        Activations may be negative (gated MLPs); a row whose maximum is not above 0 has no such share, and is NaN.
        """
        return _by_maximum(self.matrix())

    def on_diagonal(self) -> float:
        """Return the fraction of sets that are most active on their own class; of 10 classes, 0.1 by chance."""
        return float(_hits(self.matrix()).float().mean())

    def random_on_diagonal(self) -> Float[Tensor, " draw"]:
        """Return the same fraction for each random draw."""
        drawn = [_by_label(one, self.labels, self.classes) for one in self.random_activation]
        return torch.stack([_hits(one).float().mean() for one in drawn]) if drawn else torch.zeros(0)


def class_sets(
    rankings: Mapping[str, Sequence[Neurons]],
    *,
    k: int = 100,
    size: int = 20,
    keep: Container[Neuron] | None = None,
) -> dict[str, Neurons]:
    """Return, for each class, the `size` neurons that are among the first `k` in most of its rankings, one per picture.

    `score` is in how many. Ties are in (module, layer, unit) order. `keep` takes only neurons in it, the interpretable ones
    for instance. Raises ValueError for a class with fewer than `size` such neurons.

    Source: Schwettmann et al. 2023, S.4 (methods A10): 200 pictures per class, k = 100, size = 20, interpretable ones.
    """
    found: dict[str, Neurons] = {}
    for name, ours in rankings.items():
        counts = Counter(neuron for one in ours for neuron in one[:k] if keep is None or neuron in keep)
        if len(counts) < size:
            raise ValueError(f"a set has {size} neurons, the pictures of {name!r} have {len(counts)}: give a smaller size")
        chosen = sorted(counts, key=lambda neuron: (-counts[neuron], neuron))[:size]
        score = torch.tensor([float(counts[neuron]) for neuron in chosen])
        plain = Neurons.of(chosen, ours[0].widths)
        found[name] = Neurons(plain.module, plain.layer, plain.unit, plain.widths, score)
    return found


@torch.no_grad()
def class_selectivity(
    model: HookedMLLM,
    sets: Mapping[str, Neurons],
    pictures: Iterable[tuple[str, Inputs]],
    *,
    draws: int = 10,
    seed: int = 0,
) -> ClassSelectivity:
    """Return how active each class's set is on pictures of every class: site `post`, the mean over all media positions.

    `pictures` are classes with inputs, each row of which is one picture; take others than those that the sets are from. One
    forward for each of them; `draws` random sets of the same layers are read in the same runs. Raises ValueError for
    neurons of another module, a class without pictures, and a row without media.

    Source: Schwettmann et al. 2023, S.4 (methods A10). The random sets are ours.
    """
    if other := {module for one in sets.values() for module in one.module} - {"language"}:
        raise ValueError(f"sets are of the language model's neurons, got some of {', '.join(sorted(other))}")
    every = [*sets.values()]
    every += [one.random_like(seed=seed * 1000 + draw) for draw in range(draws) for one in sets.values()]
    labels: list[str] = []
    digests: list[str] = []
    means: list[Tensor] = []
    for label, inputs in pictures:
        means.append(_means(model, inputs, every))
        labels += [label] * len(inputs)
        digests.append(inputs.digest())
    if missing := [name for name in sets if name not in labels]:
        raise ValueError(f"every class needs pictures to be compared on, {missing[0]!r} has none")
    values = torch.cat(means, dim=1).unflatten(0, (draws + 1, len(sets)))
    return ClassSelectivity(
        classes=tuple(sets),
        labels=tuple(labels),
        activation=values[0],
        random_activation=values[1:],
        provenance=Provenance.record(model, tuple(digests), seed=seed, analysis="class_selectivity", draws=draws),
    )


def _means(model: HookedMLLM, inputs: Inputs, sets: Sequence[Neurons]) -> Float[Tensor, "set batch"]:
    """Return each set's mean activation over the media of each row; one layer's activations are held at a time."""
    where = inputs.mask(*MEDIA)
    if not bool(where.any(-1).all()):
        raise ValueError("activations are means over media, and a row has none: leave it out")
    sums = torch.zeros(len(sets), len(inputs), dtype=torch.float64)
    layers = [one.by_layer() for one in sets]

    def hook(layer: int) -> Hook:
        def add(activation: Tensor, hook: Any) -> None:
            here = where.to(activation.device)[..., None]
            mean = (activation.double() * here).sum(1) / here.sum(1)
            for row, units in enumerate(layers):
                if ("language", layer) in units:
                    sums[row] += mean[:, units["language", layer].to(mean.device)].sum(-1).cpu()

        return neuron_hook("language", layer, "post"), feed(add)

    model.next_logits(inputs, fwd_hooks=[hook(layer) for layer in sorted({layer for one in layers for _, layer in one})])
    return (sums / torch.tensor([len(one) for one in sets])[:, None]).float()


def _by_label(values: Tensor, labels: Sequence[str], classes: Sequence[str]) -> Float[Tensor, "set label"]:
    own = [torch.tensor([label == name for label in labels]) for name in classes]
    return torch.stack([values[:, here].mean(1) for here in own], dim=1)


def _by_maximum(matrix: Float[Tensor, "set label"]) -> Float[Tensor, "set label"]:
    most = matrix.amax(1, keepdim=True)
    return torch.where(most > 0, matrix / most, torch.nan)


def _hits(matrix: Float[Tensor, "set label"]) -> Bool[Tensor, " set"]:
    return matrix.argmax(1) == torch.arange(len(matrix))
