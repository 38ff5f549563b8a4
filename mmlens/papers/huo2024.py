"""Huo et al. 2024 (arXiv 2406.11193), MMNeuron: domain-specific neurons, their deactivation, and the logit lens by modality.

Theirs are LLaVA-NeXT and InstructBLIP on LingoQA, PMC-VQA, RS-VQA, VQAv2 and DocVQA (`mmlens.data.BENCHMARKS`), mined with
the prompt "<image>\\n{question}" and no chat template; code was released, the accuracies are not known to us. What differs
from the release is said at `reproduce`, and undone by `legacy=True`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any

from mmlens.analysis import domain_neurons
from mmlens.analysis.selectivity import Selection
from mmlens.data import Example
from mmlens.evaluation import evaluate
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.papers import domain_rows
from mmlens.papers.reproduction import Reproduction
from mmlens.papers.tasks import Changes, Looked, by_label, chosen, in_turn
from mmlens.results import Provenance
from mmlens.stats import Statistics, TokenStats
from mmlens.sweeps import encoded, sweep

STATISTICS: dict[str, Any] = dict(site="gate_act", groups=("all",), statistics=("count",))
"""`TokenStats(model.widths, labels=domains, **STATISTICS)`: as released (methods C1, C2)."""
SELECTION: dict[str, Any] = dict(rate=0.01, filter_quantile=0.95, bar_quantile=0.95)
"""`domain_neurons(statistics, **SELECTION)`: as released (methods C4 to C6)."""
LENS: dict[str, Any] = dict(top_k=10)
"""`logit_lens(model, inputs, **LENS)`: as released (methods C10)."""

__all__ = ["LENS", "SELECTION", "STATISTICS", "reproduce"]


def reproduce(
    model: HookedMLLM,
    mining: Sequence[Any],
    test: Sequence[Any],
    *,
    metric: str | Callable[..., Any] = "exact_match",
    modules: Sequence[str] | None = None,
    group: str = "image",
    draws: int = 10,
    looked_at: int = 20,
    max_new_tokens: int = 16,
    batch_size: int = 8,
    chat: bool = False,
    seed: int = 0,
    legacy: bool = False,
    progress: bool = False,
) -> Reproduction:
    """Return the paper's tables for this model: domain neurons of `mining`, and what `test` scores without them.

    Examples' labels are their domains. Each of `modules` (None: all that have neurons) has its own sets, each of which, and
    those of all modules together, is held at 0 on every domain of `test`, beside `draws` random sets: 1 + domains x (modules
    + 1) x (1 + draws) runs of each example. `looked_at` test examples, of all domains in turn and of different pictures, are
    for the lens, the stream and the tower. `chat` asks the test's questions in the model's template.

    The release mixes all positions of the language model, so that how a domain's questions are worded counts too; here, its
    positions of `group` do, as many of each domain: as many examples (the first), and of each as many positions as the one
    with the fewest has. In other modules all positions count. The release counts a tower's layers that the model never
    reads, and holds the tower's neurons only with the projector's; here, neither. `legacy=True` is as released in all that.

    Raises ValueError for examples without a label, fewer than two domains, and pictures that are missing.
    """
    domains, tasks = by_label(mining, "mining", labels=2), by_label(test, "test")
    if not domains.keys() & tasks.keys():
        raise ValueError(f"domains are in both, got {', '.join(domains)} for mining and {', '.join(tasks)} for the test")
    modules = tuple(model.widths if modules is None else modules)
    size = None if legacy else min(map(len, domains.values()))
    mined = chosen(mining, in_turn({domain: places[:size] for domain, places in domains.items()}))
    looked = Looked.first(model, test, in_turn(tasks), looked_at, chat=chat)
    found = _statistics(model, mined, tuple(domains), modules, group, batch_size, legacy=legacy, progress=progress)
    selections = {
        module: domain_neurons(statistics, module=module, unread=legacy, **SELECTION) for module, statistics in found.items()
    }
    sets = deactivated(selections, legacy=legacy)
    given = {name: own for parts in sets.values() for name, own in parts.items() if len(own)}
    options: dict[str, Any] = dict(max_new_tokens=max_new_tokens, batch_size=batch_size, chat=chat, progress=progress)
    changes = Changes.of(evaluate(model, test, metric, given, draws=draws, seed=seed, **options))
    rows = [
        *(one for module in modules for one in domain_rows.counted(selections[module], found[module], unread=legacy)),
        *domain_rows.accuracy(changes, sets),
        *domain_rows.perturbation(model, looked, list(sets.values())[-1], draws=draws, seed=seed),
        *domain_rows.entropy(model, looked),
        *domain_rows.tower(model, looked, draws=draws, seed=seed),
    ]
    empty = [name for parts in sets.values() for name, own in parts.items() if not len(own)]
    return Reproduction(
        paper=f"Huo et al. 2024{' (as released)' * legacy}",
        rows=tuple(rows),
        notes=(
            f"{len(mined)} of {len(mining)} mining examples count: {'all' if size is None else f'{size} of each domain'}; "
            f"neurons are those of {'all positions' if legacy else f'{group} positions (elsewhere, of all)'}.",
            "That 1 % of neurons are domain-specific is how many are chosen, not a finding.",
            *([f"Empty sets, which are not tested: {', '.join(empty)}."] if empty else []),
            "Answers are greedy, where the release samples (temperature 0.9), which alone moves accuracy. Its random mask, "
            "unused and not matched, is not reproduced: random sets match by module and layer.",
            "Domains' own sets are tested on every domain; the paper tests them on their own only.",
            "The stream's change, turning points and silhouettes are defined by us; the paper's accuracies are not known.",
        ),
        provenance=Provenance.record(
            model,
            tuple(one.digest() for one in looked.inputs),
            seed=seed,
            paper="huo2024",
            legacy=legacy,
            mined=found[modules[0]].provenance.inputs,
            metric=changes.metric,
            draws=draws,
            group="all" if legacy else group,
            **SELECTION,
        ),
    )


def _statistics(
    model: HookedMLLM,
    mined: Any,
    domains: tuple[str, ...],
    modules: tuple[str, ...],
    group: str,
    batch_size: int,
    *,
    legacy: bool,
    progress: bool,
) -> dict[str, Statistics]:
    """Return each module's statistics, from one sweep."""
    how = {module: dict(STATISTICS, labels=domains, modules=(module,)) for module in modules}
    if not legacy and "language" in modules:
        sizes = [int(encoded(model, [Example.of(one, 0)]).mask(group).sum()) for one in mined]
        if not min(sizes):
            raise ValueError(f"domains are mined at {group} positions, example {sizes.index(0)} has none: leave it out")
        how["language"] |= dict(groups=(group,), budget=min(sizes))
    counts = {module: TokenStats(model.widths, **options) for module, options in how.items()}
    return dict(sweep(model, mined, counts, batch_size=batch_size, progress=progress).results)  # pyright: ignore


def deactivated(selections: Mapping[str, Selection], *, legacy: bool = False) -> dict[str, dict[str, Neurons]]:
    """Return the sets that are held at 0, called "domain: modules", by modules: each by itself, and at last all together.

    With `legacy`, the vision tower goes with the projector, which is never by itself.
    """
    parts: dict[str, tuple[str, ...]] = {module: (module,) for module in selections}
    if legacy and {"vision", "projector"} <= parts.keys():
        parts["vision"] += parts.pop("projector")
    named = {"+".join(part): part for part in parts.values()}
    if len(selections) > 1:
        named["all modules"] = tuple(selections)
    domains = list(next(iter(selections.values())).sets)
    return {
        name: {f"{domain}: {name}": reduce(or_, [selections[one][domain] for one in part]) for domain in domains}
        for name, part in named.items()
    }
