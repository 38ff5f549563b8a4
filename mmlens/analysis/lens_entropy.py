"""How sure the stream already is of the next token, by label and modality: logit-lens entropy through depth."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlens.analysis.labelled import batches_of, numbered
from mmlens.analysis.logit_lens import Site, logit_lens, turning_points
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class LensEntropy(Result):
    """Mean logit-lens entropy (nats) over each example's positions of a group, by layer; rows as in `LogitLens` at `site`.

    `by_example` is NaN where an example lacks the group. `label` says which of `labels` an example has; `positions` counts
    what the means are over.
    """

    site: str
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    label: Int[Tensor, " example"]
    by_example: Float[Tensor, "example group layer"]
    positions: Int[Tensor, "label group"]

    def curve(self, label: str | None = None, *, group: str) -> Float[Tensor, " layer"]:
        """Return E_g[l]: the mean over the examples of a label (default: over all), each of which counts the same.

        Examples that lack the group are left out; NaN where all do. Raises KeyError for a label or group that is not there.
        """
        return self._examples(label)[:, _place(group, self.groups, "group")].nanmean(0)

    def mean(self) -> Float[Tensor, "label group layer"]:
        """Return the curves of every label and group."""
        return torch.stack([self._examples(label).nanmean(0) for label in self.labels])

    def turning_points(self, group: str, label: str | None = None) -> tuple[int, int]:
        """Return the two layers at which a curve turns, by the rule of `analysis.turning_points`: ours, not the paper's.

        Raises ValueError for a curve of fewer than five layers, and for a group that no such example has.
        """
        curve = self.curve(label, group=group)
        if bool(curve.isnan().any()):
            raise ValueError(f"no example{f' of {label}' if label else ''} has {group}, and so no curve: take another group")
        return turning_points(curve)

    def _examples(self, label: str | None) -> Float[Tensor, "own group layer"]:
        return self.by_example if label is None else self.by_example[self.label == _place(label, self.labels, "label")]


def lens_entropy(
    model: HookedMLLM,
    inputs: Inputs | Iterable[Inputs],
    labels: Sequence[str] | None = None,
    *,
    groups: Sequence[str] = ("image", "text"),
    site: Site = "resid",
) -> LensEntropy:
    """Return the mean logit-lens entropy of every example, by group of positions and layer.

    `labels` (the domain, for instance) are one for each row of all inputs, in order (default: "all" for each). `groups` and
    `site` are as in `Inputs.mask` and `logit_lens`. One run for each batch, of which only means are kept. Raises ValueError
    where there are more or fewer labels than rows.

    Source: the modality curves of Huo et al. 2024 (methods C10), which pool the positions of all samples; here every
    example counts the same, so that a large picture is no more than a small one.
    """
    means: list[Tensor] = []
    sizes: list[Tensor] = []
    digests: list[str] = []
    for batch in batches_of(inputs, labels):
        entropy = logit_lens(model, batch, site=site, top_k=1).entropy.double()
        masks = torch.stack([batch.mask(group) for group in groups]).cpu()
        sizes.append(masks.sum(-1).T)
        sums = torch.stack([entropy.where(mask, 0.0).sum(-1) for mask in masks])  # [group, layer, batch]
        means.append((sums.permute(2, 0, 1) / sizes[-1][..., None]).float())
        digests.append(batch.digest())
    by_example, held = torch.cat(means), torch.cat(sizes)
    names, label = numbered(["all"] * len(by_example) if labels is None else labels)
    return LensEntropy(
        site=site,
        labels=names,
        groups=tuple(groups),
        label=label,
        by_example=by_example,
        positions=torch.stack([held[label == index].sum(0) for index in range(len(names))]),
        provenance=Provenance.record(model, tuple(digests), analysis="lens_entropy", site=site, groups=list(groups)),
    )


def _place(name: str, names: Sequence[str], what: str) -> int:
    if name not in names:
        raise KeyError(f"these entropies have the {what}s {', '.join(names)}, got {name!r}: choose among those")
    return names.index(name)
