"""How far apart the modalities lie in the residual stream, layer by layer, and which positions reach from one to another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlens.analysis.logit_lens import stream_points
from mmlens.analysis.planes import Projection, on_plane, silhouette
from mmlens.hooks import feed
from mmlens.inputs import Inputs
from mmlens.model import HookedMLLM
from mmlens.results import Provenance, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class GroupGeometry(Result):
    """Where groups of positions lie in the stream: row l of the layer axis enters block l, the last row leaves the last.

    `cosine` is that of the groups' centroids, each the mean of its positions' directions (NaN for a group that a row has
    not). `silhouette` (-1 to 1, by cosine distance) says how well the groups separate: near 1, each lies by itself; near 0,
    they overlap; NaN where a row has one group. `plane` has the coordinates of all positions of these groups on two axes,
    layer by layer: principal components of their directions (with `explained`, the share of variance), t-SNE or UMAP. `row`
    and `group` say whose they are.
    """

    groups: tuple[str, ...]
    cosine: Float[Tensor, "layer batch group group"]
    silhouette: Float[Tensor, "layer batch"]
    plane: Float[Tensor, "layer position 2"]
    explained: Float[Tensor, "layer 2"]
    row: Int[Tensor, " position"]
    group: Int[Tensor, " position"]


@dataclass(frozen=True, kw_only=True, repr=False)
class ProbingScore(Result):
    """How far the positions of `source` reach towards `target`, layer by layer (rows as in `GroupGeometry`).

    Of a position t, d = cos(h, centroid of target) - cos(h, centroid of source). `share` is that of source positions with
    d > 0, `tail` the 95 % quantile of d less its median, in interquartile ranges: how long the few reach that do. `random_*`
    are the same with the two groups' labels shuffled, `draw` by `draw`.
    """

    source: str
    target: str
    share: Float[Tensor, "layer batch"]
    tail: Float[Tensor, "layer batch"]
    random_share: Float[Tensor, "draw layer batch"]
    random_tail: Float[Tensor, "draw layer batch"]


@dataclass(frozen=True, kw_only=True, repr=False)
class TelomereScore(Result):
    """Whether the positions of `ends` sit at the outer end of those of `of`, layer by layer (rows as in `GroupGeometry`).

    `within` is the share of them whose `k` nearest other positions (by cosine, of any group) are all of `of`; `outer` the
    share that is further from the centroid of `of` than 90 % of its own positions are. `random_*` are the same of as many
    positions of `of`, drawn at random and taken out of it.
    """

    ends: str
    of: str
    ks: tuple[int, ...]
    within: Float[Tensor, "k layer batch"]
    outer: Float[Tensor, "layer batch"]
    random_within: Float[Tensor, "draw k layer batch"]
    random_outer: Float[Tensor, "draw layer batch"]


def group_geometry(
    model: HookedMLLM,
    inputs: Inputs,
    *,
    groups: Sequence[str] = ("image", "text"),
    projection: Projection = "pca",
    seed: int = 0,
) -> GroupGeometry:
    """Return how groups of positions lie to each other in the stream before every block, and behind the last.

    `groups` are as in `Inputs.mask`, and share no position. `seed` is t-SNE's and UMAP's. Raises ValueError for groups that
    overlap, ImportError for UMAP where it is not installed.
    Source: claim II of Huang et al. 2024 (methods 4.h), whose code for it was not released; the definitions are ours, on
    directions, as lengths grow with depth.
    """
    masks = torch.stack([inputs.mask(name) for name in groups])
    if (masks.sum(0) > 1).any():
        raise ValueError(f"groups share no position, got {', '.join(groups)}, of which some do: give disjoint ones")
    member = torch.where(masks.any(0), masks.int().argmax(0), -1).cpu()
    rows, _ = (member >= 0).nonzero(as_tuple=True)

    def measure(directions: Tensor) -> tuple[Tensor, ...]:
        cosines, scores = zip(*(_apart(d, own, len(groups)) for d, own in zip(directions, member, strict=True)), strict=True)
        plane, explained = on_plane(directions[member >= 0], projection, seed)
        return torch.stack(cosines), torch.stack(scores), plane, explained

    cosine, separate, plane, explained = _by_layer(model, inputs, measure)
    return GroupGeometry(
        groups=tuple(groups),
        cosine=cosine,
        silhouette=separate,
        plane=plane,
        explained=explained,
        row=rows,
        group=member[member >= 0].long(),
        provenance=_record(model, inputs, seed, "group_geometry", projection=projection),
    )


def probing_score(
    model: HookedMLLM, inputs: Inputs, *, source: str, target: str, draws: int = 10, seed: int = 0
) -> ProbingScore:
    """Return how far the positions of `source` reach towards those of `target`, beside shuffled labels.

    Ask for the reverse too: a pair that overlaps reaches both ways. Raises ValueError for a row that has not both groups.
    The definition is ours; Huang et al. 2024 only describe that audio tokens reach out towards text (methods 4.h, IV-a).
    """
    one, two = _both(inputs, source, target)
    generator = torch.Generator().manual_seed(seed)
    labels = [_shuffled(one, two, generator) for _ in range(draws)]

    def measure(directions: Tensor) -> tuple[Tensor, ...]:
        found = [_reach(directions, own, other) for own, other in [(one, two), *labels]]
        share, tail = (torch.stack(part) for part in zip(*found, strict=True))
        return share, tail

    share, tail = _by_layer(model, inputs, measure)
    return ProbingScore(
        source=source,
        target=target,
        share=share[:, 0],
        tail=tail[:, 0],
        random_share=share[:, 1:].transpose(0, 1).contiguous(),
        random_tail=tail[:, 1:].transpose(0, 1).contiguous(),
        provenance=_record(model, inputs, seed, "probing_score", draws=draws),
    )


def telomere_score(
    model: HookedMLLM,
    inputs: Inputs,
    *,
    ends: str = "special",
    of: str = "text",
    ks: Sequence[int] = (1, 5),
    draws: int = 10,
    seed: int = 0,
) -> TelomereScore:
    """Return whether the positions of `ends` lie among those of `of`, at their outer end, beside random positions of `of`.

    Raises ValueError for a row that has not both groups, or more of `ends` than of `of`. The definition is ours; Huang et
    al. 2024 only describe that special tokens anchor themselves to text (methods 4.h, IV-b).
    """
    tips, body = _both(inputs, ends, of)
    if (tips.sum(1) >= body.sum(1)).any():
        raise ValueError(f"the ends are fewer than what they are ends of, got more of {ends} than of {of}: swap them")
    generator = torch.Generator().manual_seed(seed)
    drawn = [_part(body, tips.sum(1), generator) for _ in range(draws)]
    pairs = [(tips, body), *((some, body & ~some) for some in drawn)]
    real = inputs.mask("all").cpu()

    def measure(directions: Tensor) -> tuple[Tensor, ...]:
        found = [_terminal(directions, own, rest, real, tuple(ks)) for own, rest in pairs]
        within, outer = (torch.stack(part) for part in zip(*found, strict=True))
        return within, outer

    within, outer = _by_layer(model, inputs, measure)  # [layer, 1 + draw, k, batch], [layer, 1 + draw, batch]
    within, outer = within.permute(1, 2, 0, 3).contiguous(), outer.transpose(0, 1).contiguous()
    return TelomereScore(
        ends=ends,
        of=of,
        ks=tuple(ks),
        within=within[0],
        outer=outer[0],
        random_within=within[1:],
        random_outer=outer[1:],
        provenance=_record(model, inputs, seed, "telomere_score", draws=draws),
    )


@torch.no_grad()
def _by_layer(
    model: HookedMLLM, inputs: Inputs, measure: Callable[[Float[Tensor, "batch pos d_model"]], tuple[Tensor, ...]]
) -> list[Tensor]:
    """Return what `measure` makes of the directions of the stream before every block, and behind the last, stacked."""
    found: list[tuple[Tensor, ...]] = []

    def read(resid: Tensor, hook: Any) -> None:
        found.append(measure(torch.nn.functional.normalize(resid.float(), dim=-1).cpu()))

    model.next_logits(inputs, fwd_hooks=[(name, feed(read)) for name in stream_points(model)])
    return [torch.stack(part) for part in zip(*found, strict=True)]


def _apart(directions: Float[Tensor, "pos d_model"], member: Int[Tensor, " pos"], groups: int) -> tuple[Tensor, Tensor]:
    """Return the cosines of the groups' centroids, and their silhouette."""
    centroids = torch.stack([directions[member == group].mean(0) for group in range(groups)])  # NaN for an empty group
    unit = torch.nn.functional.normalize(centroids, dim=-1)
    own = member >= 0
    return unit @ unit.T, silhouette(directions[own], member[own])


def _both(inputs: Inputs, one: str, two: str) -> tuple[Bool[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Return the masks of two groups. Raises ValueError where they share a position, or a row has not both."""
    masks = inputs.mask(one).cpu(), inputs.mask(two).cpu()
    if (masks[0] & masks[1]).any():
        raise ValueError(f"two groups share no position, {one} and {two} do: give disjoint ones")
    for name, mask in zip((one, two), masks, strict=True):
        if len(missing := (~mask.any(1)).nonzero()):
            raise ValueError(f"every row has both groups, row {int(missing[0])} has no {name}: leave it out")
    return masks


def _shuffled(one: Tensor, two: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two masks of the same sizes, of the same positions, dealt out at random row by row."""
    first = _part(one | two, one.sum(1), generator)
    return first, (one | two) & ~first


def _part(mask: Tensor, sizes: Tensor, generator: torch.Generator) -> Tensor:
    """Return a mask of `sizes[row]` of the positions of each row of `mask`, drawn at random."""
    drawn = torch.zeros_like(mask)
    for row, size in enumerate(sizes.tolist()):
        positions = mask[row].nonzero()[:, 0]
        drawn[row, positions[torch.randperm(len(positions), generator=generator)[:size]]] = True
    return drawn


def _reach(directions: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of each row's source positions that are nearer to the target's centroid, and how far the tail is."""
    shares, tails = [], []
    for points, own, other in zip(directions, source, target, strict=True):
        centroids = torch.nn.functional.normalize(torch.stack([points[other].mean(0), points[own].mean(0)]), dim=-1)
        towards = points[own] @ centroids.T
        d = towards[:, 0] - towards[:, 1]
        low, middle, high, far = torch.quantile(d, torch.tensor([0.25, 0.5, 0.75, 0.95]))
        shares.append((d > 0).float().mean())
        tails.append((far - middle) / (high - low) if high > low else torch.tensor(torch.nan))
    return torch.stack(shares), torch.stack(tails)


def _terminal(
    directions: Tensor, ends: Tensor, of: Tensor, real: Tensor, ks: tuple[int, ...]
) -> tuple[Float[Tensor, "k batch"], Float[Tensor, " batch"]]:
    """Return the share of ends whose nearest k are all of `of`, and the share that is further out than 90 % of it."""
    within, outer = [], []
    for points, own, body, there in zip(directions, ends, of, real, strict=True):
        near = points[own] @ points.T
        near[:, ~there] = -torch.inf
        near[torch.arange(len(near)), own.nonzero()[:, 0]] = -torch.inf  # not itself
        order = near.argsort(dim=-1, descending=True, stable=True)
        within.append(torch.stack([body[order[:, :k]].all(-1).float().mean() for k in ks]))
        centre = torch.nn.functional.normalize(points[body].mean(0), dim=-1)
        distances = 1 - points[body] @ centre
        rank = ((1 - points[own] @ centre)[:, None] > distances).float().mean(-1)
        outer.append((rank >= 0.9).float().mean())
    return torch.stack(within, 1), torch.stack(outer)


def _record(model: HookedMLLM, inputs: Inputs, seed: int, analysis: str, **parameters: Any) -> Provenance:
    return Provenance.record(model, (inputs.digest(),), seed=seed, analysis=analysis, **parameters)
