"""Huang et al. 2024 (arXiv 2410.04819), MINER: modality-specific neurons, and four claims about them.

Theirs are Qwen2-VL and Qwen2-Audio on TextVQA, COCO captions, MMLU, MSVD-QA, LibriSpeech and VocalSound
(`mmlens.data.BENCHMARKS`). Selection and deactivation were released, the analyses behind claims II to IV were not, and of
the tables only the abstract's numbers are known to us. What differs from the release is said at `reproduce`, and undone by
`legacy=True`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from mmlens.analysis import modality_neurons
from mmlens.evaluation import Ablation, evaluate
from mmlens.model import HookedMLLM
from mmlens.papers import modality_rows
from mmlens.papers.modality_rows import ALL, ALL_BUT, HEADLINE
from mmlens.papers.reproduction import Reproduction
from mmlens.papers.tasks import Changes, Looked, by_label, chosen, in_turn
from mmlens.results import Provenance
from mmlens.stats import SampleStats, Statistics
from mmlens.sweeps import sweep

STATISTICS: dict[str, Any] = dict(
    site="gate_act",
    statistics=("probability", "mean", "max", "attn_k", "attn_q"),
    normalise="minmax",
    renorm="l1",
    causal=True,
)
"""`SampleStats(model.widths, labels=data_sets, groups=groups, **STATISTICS)` (methods 4.c)."""
LEGACY_STATISTICS: dict[str, Any] = dict(renorm="softmax", causal=False)
"""As released: a softmax of probabilities, which leaves weights near 1, of attention without the causal mask."""
WEIGHTS = "mean_max_attn_k"
SELECTION: dict[str, Any] = dict(ratio=0.02, strategy="LA_MU", exact=True)
"""`modality_neurons(statistics, weights=WEIGHTS, **SELECTION)` (methods 4.e)."""
LEGACY_SELECTION: dict[str, Any] = dict(exact=False, absent_as_zero=True, replacement=True)
"""As released: rests of divisions are dropped, examples without a group count as zeros, "random" draws may repeat."""
PARTITIONS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt",),
    "special_text": ("special+text", "image", "video", "audio"),
    "modality": ("text", "special", "image", "video", "audio"),
}
"""How positions are parted into groups (methods 4.b); those that no example has are dropped."""

__all__ = [
    "HEADLINE",
    "LEGACY_SELECTION",
    "LEGACY_STATISTICS",
    "PARTITIONS",
    "SELECTION",
    "STATISTICS",
    "WEIGHTS",
    "reproduce",
]


def reproduce(
    model: HookedMLLM,
    mining: Sequence[Any],
    test: Sequence[Any],
    *,
    metric: str | Callable[..., Any] = "exact_match",
    partition: str = "modality",
    weights: str | Mapping[str, float] = WEIGHTS,
    selection: Mapping[str, Any] = SELECTION,
    draws: int = 10,
    looked_at: int = 20,
    parts: int = 4,
    max_new_tokens: int = 16,
    batch_size: int = 8,
    chat: bool = False,
    seed: int = 0,
    legacy: bool = False,
    progress: bool = False,
) -> Reproduction:
    """Return the paper's four claims about this model: neurons of `mining`'s modalities, and what `test` is without them.

    Labels of `mining` are data sets, each of which counts once; labels of `test` are tasks. Every group's set, all sets
    together and all neurons but these are held at 0 on every task, beside `draws` random ones: 1 + (groups + 2) x (1 +
    draws) runs of each example. Claims II to IV are of the first `looked_at` test examples, of all tasks in turn and of
    different media, and stability of the mining examples in `parts` (1: none). `chat` asks everything in the model's
    template.

    Attention has its mask and weights sum to 1, examples without a group do not count for it, picks are as many as the ratio
    says, and random sets match layer by layer; `legacy=True` undoes the first three, and draws with replacement where the
    strategy is "random" (`LEGACY_STATISTICS`, `LEGACY_SELECTION`).

    Raises ValueError for a partition that is none, examples without a label, and more parts than a data set has examples.
    """
    if partition not in PARTITIONS:
        raise ValueError(f"positions are parted by {', '.join(PARTITIONS)}, got {partition!r}")
    data_sets, tasks = by_label(mining, "mining"), by_label(test, "test")
    if not 1 <= parts <= (most := max(map(len, data_sets.values()))):
        raise ValueError(f"mining examples come in 1 part or more, up to {most} (those of a data set); got parts={parts}")
    looked = Looked.first(model, test, in_turn(tasks), looked_at, chat=chat)
    options: dict[str, Any] = dict(batch_size=batch_size, chat=chat, progress=progress)
    gathered = gather(model, mining, data_sets, partition, parts, legacy=legacy, **options)
    whole = Statistics.joined(*gathered)
    how: dict[str, Any] = {**selection, **(LEGACY_SELECTION if legacy else {})}
    select = partial(modality_neurons, weights=weights, seed=seed, **how)
    found, groups = select(whole), looked.present(PARTITIONS["modality"])
    sets: dict[str, Any] = {f"{group} neurons": own for group, own in found.sets.items() if len(own)}
    given = {ALL: found.union(), ALL_BUT: Ablation(found.union(), complement=True), **(sets if len(sets) > 1 else {})}
    evaluation = evaluate(model, test, metric, given, draws=draws, seed=seed, max_new_tokens=max_new_tokens, **options)
    changes, medium = Changes.of(evaluation), next((group for group in groups if group in HEADLINE), None)
    rows = [
        *modality_rows.counted(found, len(mining)),
        *(modality_rows.stable(gathered, select) if parts > 1 else []),
        *modality_rows.tasks(changes, list(given), medium, len(evaluation.ids)),
        *modality_rows.shared(found, len(mining)),
        *modality_rows.geometry(model, looked, groups),
        *modality_rows.convergence(model, looked, groups, found.union(), draws=draws, seed=seed),
        *modality_rows.reach(model, looked, groups, draws=draws, seed=seed),
    ]
    return Reproduction(
        paper=f"Huang et al. 2024{' (as released)' * legacy}",
        rows=tuple(rows),
        notes=(
            f"{len(mining)} mining examples of {', '.join(data_sets)}; groups of positions: {', '.join(found.sets)}.",
            "The paper's means are of Qwen2-VL (0.56 to 0.24) and Qwen2-Audio (0.69 to 0.31); over which data sets is not "
            "known. Ours are over tasks, each of which counts the same. Answers are greedy.",
            "Being important to a modality is not being specific to it: look at each set on each task, beside random sets.",
            "Code for claims II to IV was not released: probing, telomeres and the other measures are defined by us. Their "
            "rows are of the stream: the first enters the first block, the last leaves the last one.",
        ),
        provenance=Provenance.record(
            model,
            tuple(one.digest() for one in looked.inputs),
            seed=seed,
            paper="huang2024",
            legacy=legacy,
            mined=whole.provenance.inputs,
            metric=changes.metric,
            partition=partition,
            weights=weights if isinstance(weights, str) else str(dict(weights)),
            draws=draws,
            parts=parts,
            **how,
        ),
    )


def gather(
    model: HookedMLLM,
    mining: Sequence[Any],
    data_sets: Mapping[str, Sequence[int]],
    partition: str,
    parts: int,
    *,
    legacy: bool = False,
    **options: Any,
) -> list[Statistics]:
    """Return the statistics of every part of the mining examples, in each of which all data sets have their share."""
    how = {**STATISTICS, **(LEGACY_STATISTICS if legacy else {})}
    found: list[Statistics] = []
    for part in range(parts):
        places = in_turn({name: own[part::parts] for name, own in data_sets.items()})
        counts = SampleStats(model.widths, labels=tuple(data_sets), groups=PARTITIONS[partition], **how)
        found.append(sweep(model, chosen(mining, places), {"importance": counts}, **options)["importance"])
    return found
