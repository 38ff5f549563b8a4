"""The tables of Huo et al. 2024, row by row: where domain neurons are, what is lost without them, and the lens."""

from collections.abc import Mapping
from typing import Any

from mmlens.analysis import lens_entropy, media_geometry, stream_change, turning_points
from mmlens.analysis.selectivity import Selection
from mmlens.model import HookedMLLM
from mmlens.neurons import Neurons
from mmlens.papers.intervals import number, row
from mmlens.papers.reproduction import Row
from mmlens.papers.tasks import Changes, Looked, depths, finite
from mmlens.stats import Statistics

SHARE: dict[str, Any] = dict(paper=0.01, tag="secondary source")
"""Less than 1 % of neurons are domain-specific: which is the rate at which they are chosen."""
LARGEST: dict[str, Any] = dict(paper=0.1, tag="paper")
"""Manipulating them changes accuracy by at most about 10 %, says the abstract."""
SHOWN = ("image", "video", "audio", "text")
TOWERS = {"vision": ("image", "video"), "audio": ("audio",)}


def counted(selection: Selection, statistics: Statistics, *, unread: bool = False) -> list[Row]:
    """Return how many neurons of a module are a domain's, in how many domains they are, and in which layers."""
    module, by_layer, widths = selection.module, selection.counts(), statistics.widths[selection.module]
    n, title, own = int(statistics.samples[module].sum()), f"neurons of {module}", f"domain neurons of {module}"
    share = len(selection.union()) / sum(widths if unread else widths[: statistics.live[module]])
    positions = statistics.tokens[module][:, 0]
    rows = [
        number(title, f"positions of {module} that count", "fewest of a domain", float(positions.min()), n),
        number(title, f"positions of {module} that count", "most of a domain", float(positions.max()), n),
        number(title, f"share of {module} that is domain-specific", "any domain", share, n, **SHARE),
        *(number(title, own, domain, float(len(neurons)), n) for domain, neurons in selection.sets.items()),
    ]
    for domains, count in enumerate(selection.memberships().double().tolist(), 1):
        rows.append(number(title, own, f"of exactly {domains} domain{'s' * (domains > 1)}", count, n))
    for layer, count in enumerate(by_layer.sum(0).double().tolist()):
        rows.append(number(title, f"{own}, domains added up", f"layer {layer}", count, n))
    if by_layer.shape[1] >= 5:
        for name, layer in zip(("first", "second"), turning_points(by_layer.sum(0).float()), strict=True):
            rows.append(number(title, f"layer at which the counts of {module} turn", f"{name} (ours)", float(layer), n))
    return rows


def accuracy(changes: Changes, sets: Mapping[str, Mapping[str, Neurons]]) -> list[Row]:
    """Return what each domain scores, and by how much its own sets, others and random ones change that.

    `sets` are by modules, then by "domain: modules".
    """
    rows, title = changes.baseline("accuracy"), "accuracy without neurons"
    diagonal: list[Row] = []
    for modules, parts in sets.items():
        tested = {name: name.removesuffix(f": {modules}") for name in parts if changes.arms(name)}
        own = {name: [domain] for name, domain in tested.items() if domain in changes.tasks}
        others = {name: [task for task in changes.tasks if task != domain] for name, domain in tested.items()}
        for name, (domain,) in own.items():
            diagonal += changes.on(title, name, domain, item=f"change on {domain}")
        rows += changes.mean(title, "mean change on the own domain", own, modules)
        rows += changes.mean(title, "mean change on the other domains", others, modules)
        if modules == list(sets)[-1]:
            for name, rest in others.items():
                rows += changes.mean(title, "mean change on the other domains", {name: rest}, name)
    for random, known in ((False, LARGEST if changes.of_accuracy else {}), (True, {})):
        if sizes := [abs(one.value) for one in diagonal if one.condition.endswith(" (random)") == random]:
            named = "random sets, mean of draws" if random else "own sets"
            n = changes.examples(changes.tasks)
            rows.append(number(title, "largest change on the own domain", named, max(sizes), n, **known))
    return [*rows, *diagonal]


def perturbation(model: HookedMLLM, looked: Looked, sets: Mapping[str, Neurons], *, draws: int, seed: int) -> list[Row]:
    """Return how far the stream that leaves the last block moves without the neurons of the example's domain."""
    found: dict[tuple[str, str], list[float]] = {}
    by_domain = {name.partition(": ")[0]: neurons for name, neurons in sets.items() if len(neurons)}
    for domain, inputs in looked.having():
        if domain in by_domain:
            groups = [group for group in SHOWN if inputs.mask(group).any()]
            moved = stream_change(model, inputs, by_domain[domain], groups=groups, draws=draws, seed=seed)
            for place, group in enumerate(groups):
                found.setdefault((group, "its domain's neurons"), []).append(float(moved.relative[place, -1, 0]))
                if draws:
                    found.setdefault((group, "random"), []).append(float(moved.random_relative[:, place, -1, 0].mean()))
    return [
        row("hidden states", f"relative change of the last stream at {group} positions", condition, values)
        for (group, condition), values in found.items()
    ]


def entropy(model: HookedMLLM, looked: Looked) -> list[Row]:
    """Return how open the next token still is at each modality's positions, through the logit lens."""
    groups = looked.present(SHOWN)
    by_example = lens_entropy(model, looked.inputs, looked.labels, groups=groups).by_example
    return [
        row("logit lens", f"entropy at {group} positions (nats)", f"{name} layer", finite(by_example[:, place, layer]))
        for place, group in enumerate(groups)
        for name, layer in depths(by_example.shape[2]).items()
    ]


def tower(model: HookedMLLM, looked: Looked, *, draws: int, seed: int) -> list[Row]:
    """Return how well domains lie apart in each tower, beside shuffled domains; nothing where no two have an example."""
    rows: list[Row] = []
    for module, groups in TOWERS.items():
        media = [one for group in groups for one in looked.having(group)] if module in model.widths else []
        labels = [label for label, _ in media]
        if 1 < len(set(labels)) < len(labels):
            inputs = [own for _, own in media]
            apart = media_geometry(model, inputs, labels, module=module, draws=draws, seed=seed)
            item, n = f"silhouette of domains in {module}", len(labels)
            rows.append(number("tower", item, "domains", float(apart.silhouette), n))
            if draws:
                rows.append(number("tower", item, "shuffled", float(apart.random_silhouette.mean()), n))
    return rows
