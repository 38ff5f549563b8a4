"""The tables of Huang et al. 2024, row by row: its four claims, and what its reviewers missed."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from math import isnan
from statistics import fmean
from typing import Any

from mmlens.analysis import group_geometry, last_token_convergence, probing_score, telomere_score
from mmlens.analysis.selectivity import Selection, stability
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.papers.intervals import number
from mmlens.papers.reproduction import Row
from mmlens.papers.tasks import Changes, Looked, depths, rows_of
from mmlens.stats import Statistics

HEADLINE = {"image": (0.56, 0.24), "audio": (0.69, 0.31)}
"""Mean accuracy of Qwen2-VL and Qwen2-Audio, as they are and without 2 % of neurons: the abstract's."""
ALL, ALL_BUT = "all sets", "all neurons but these"
I, II, III, IV = "claim I: tasks", "claim II: layers", "claim III: the last token", "claim IV: probing and telomeres"
Found = defaultdict[tuple[str, str, str], list[float]]


def counted(selection: Selection, n: int) -> list[Row]:
    """Return how many neurons each group has, any has, and every combination of groups has in common."""
    common = selection.overlaps().loc["all"]
    return [
        *(number("sets", "neurons", str(names), float(count), n) for names, count in common.items()),
        number("sets", "neurons", "of any group", float(len(selection.union())), n),
    ]


def stable(parts: Sequence[Statistics], select: Callable[[Statistics], Selection]) -> list[Row]:
    """Return what the sets of one half of the examples share with those of the other half, and of all."""
    found, step = stability(parts, select), len(parts) // 2 - 1
    conditions = {"as many other examples": found.to_others, "chance": found.chance, "all examples": found.to_all}
    return [
        number(
            "stability", f"Jaccard of {label} neurons with those of", name, float(values[step, place]), found.examples[step]
        )
        for place, label in enumerate(found.labels)
        for name, values in conditions.items()
    ]


def tasks(changes: Changes, names: Sequence[str], medium: str | None, n: int) -> list[Row]:
    """Return claim I: the mean score as it is, without all sets, without each and without all others; and task by task."""
    before, without = HEADLINE.get(medium or "", (None, None)) if changes.of_accuracy else (None, None)
    known: dict[str, Any] = {"baseline": before, ALL: without}
    rows = [
        number(
            I, f"mean {changes.metric}", arm, changes.score(arm), n, paper=paper, tag="none" if paper is None else "paper"
        )
        for name in ("baseline", *names)
        for arm in changes.arms(name)
        for paper in [known.get(arm)]
    ]
    rows += changes.baseline(I)
    return rows + [one for task in changes.tasks for name in names for one in changes.on(I, name, task)]


def shared(selection: Selection, n: int) -> list[Row]:
    """Return what every two groups' sets share in the lowest layer and in the highest, where either has neurons there."""
    by_layer = selection.jaccard_by_layer()
    return [
        number(II, f"Jaccard of {one} and {two} neurons", name, value, n)
        for (i, one), (j, two) in combinations(enumerate(selection.sets), 2)
        for name, layer in (("lowest layer", 0), ("highest layer", len(by_layer) - 1))
        if not isnan(value := float(by_layer[layer, i, j]))
    ]


def geometry(model: HookedMLLM, looked: Looked, groups: Sequence[str]) -> list[Row]:
    """Return how far apart groups of positions lie in the stream, in its first, middle and last row."""
    found = Found(list)
    for _, inputs in looked.having():
        own = [group for group in groups if inputs.mask(group).any()]
        if len(own) > 1:
            apart = group_geometry(model, inputs, groups=own)
            for name, layer in depths(len(apart.silhouette)).items():
                for (i, one), (j, two) in combinations(enumerate(own), 2):
                    found[II, f"cosine of {one} and {two} centroids", name].append(float(apart.cosine[layer, 0, i, j]))
                found[II, "silhouette of groups", name].append(float(apart.silhouette[layer, 0]))
    return rows_of(found)


def convergence(
    model: HookedMLLM, looked: Looked, groups: Sequence[str], neurons: Neurons, *, draws: int, seed: int
) -> list[Row]:
    """Return where the last position looks and points, as it is, without neurons and without random ones: layers' means."""
    found = Found(list)
    for _, inputs in looked.having():
        curves = last_token_convergence(model, inputs, groups=groups, neurons=neurons, draws=draws, seed=seed)
        arms = {"as it is": (curves.clean,), "without all sets": (curves.ablated,), "without random ones": curves.random}
        for condition, runs in arms.items():
            for place, group in enumerate(groups):
                if runs and inputs.mask(group).any():
                    mass, cosine = (
                        fmean([float(getattr(run, curve)[place].mean()) for run in runs]) for curve in ("mass", "centroids")
                    )
                    found[III, f"attention to {group}", condition].append(mass)
                    found[III, f"cosine with {group}", condition].append(cosine)
    return rows_of(found)


def reach(model: HookedMLLM, looked: Looked, groups: Sequence[str], *, draws: int, seed: int) -> list[Row]:
    """Return claim IV: which positions reach out to another group, and whether special ones are the ends of text."""
    found, options = Found(list), dict[str, Any](draws=draws, seed=seed)
    for medium in [group for group in groups if group in ("image", "video", "audio")]:
        for source, target in ((medium, "text"), ("text", medium)):
            for _, inputs in looked.having(medium, "text"):
                score = probing_score(model, inputs, source=source, target=target, **options)
                for name, layer in depths(len(score.share)).items():
                    item = f"{source} positions nearer to {target}, {name} row"
                    found[IV, item, "positions"].append(float(score.share[layer, 0]))
                    if draws:
                        found[IV, item, "shuffled groups"].append(float(score.random_share[:, layer, 0].mean()))
    for _, inputs in looked.having("special", "text"):
        if int(inputs.mask("special").sum()) < int(inputs.mask("text").sum()):
            score = telomere_score(model, inputs, **options)
            for name, layer in depths(len(score.outer)).items():
                for what, own, random in (
                    ("whose nearest is text", score.within[0], score.random_within[:, 0]),
                    ("further out than 90 % of text", score.outer, score.random_outer),
                ):
                    item = f"special positions {what}, {name} row"
                    found[IV, item, "special"].append(float(own[layer, 0]))
                    if draws:
                        found[IV, item, "random text"].append(float(random[:, layer, 0].mean()))
    return rows_of(found)
