"""The circuit from an object's image positions, or an event's, to its noun: how few edges are enough, on other pairs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import numpy as np
import pytest
import torch
from examples import MEDIUM, covered, inputs_of, interval, things_of, world_of
from examples import Example as Asked

from mmlens import HookedMLLM, Inputs, metrics
from mmlens.analysis import Circuit, circuit, faithfulness
from mmlens.organisms import pictosound, pictoworld

Method = Literal["eap", "eap-ig"]
Ablation = Literal["resample", "mean"]
NAMES = ("pictoworld", "pictoworld-frozen", "pictosound")
AT_ONCE = 25


@dataclass(frozen=True)
class Pairs:
    """Some counterfactual pairs as a model reads them, with the metric and the sites of both."""

    clean: Inputs
    corrupted: Inputs
    metric: Callable
    sites: dict[str, torch.Tensor]


def asked(name: str, n: int, seed: int) -> list[tuple[Asked, Asked]]:
    """Return `n` pairs of questions by colour, or by pitch, about the thing in which two scenes differ."""
    found: list[tuple[Asked, Asked]] = []
    heard = world_of(name) == "pictosound"
    made = (pictosound if heard else pictoworld).pairs("held_out", n=6 * n, seed=seed)
    for number, pair in enumerate(made):
        both = []
        for scene in (pair.clean, pair.corrupted):
            things = things_of(scene)
            every = [Asked(scene, q, number) for q in scene.questions if q.kind == ("pitch" if heard else "color")]
            both += [one for one in every if one.asked is things[pair.index]]
        if len(both) == 2 and both[0].question.text == both[1].question.text and (not heard or len(things) == 2):
            found.append((both[0], both[1]))
    return found[:n]


def pairs_of(model: HookedMLLM, name: str, n: int, seed: int) -> Iterator[Pairs]:
    every = asked(name, n, seed)
    assert len(every) == n
    for start in range(0, n, AT_ONCE):
        clean, corrupted = zip(*every[start : start + AT_ONCE], strict=True)
        (here, right), (there, wrong) = inputs_of(model, clean), inputs_of(model, corrupted)
        medium = here.mask(MEDIUM[world_of(name)])
        thing = torch.zeros_like(medium)
        for row, (one, other) in enumerate(zip(clean, corrupted, strict=True)):
            thing[row] = (covered(here, row, one.asked) > 0) | (covered(there, row, other.asked) > 0)
        sites = {"thing": thing & medium, "other": medium & ~thing, "last": here.last()}
        yield Pairs(here, there, partial(metrics.logit_diff, correct=right, wrong=wrong), sites)


@pytest.fixture(scope="module")
def found(organisms, expectations):
    """Return a function of a model's name, a method and a seed: the circuit of its pairs."""
    settings = expectations["circuits"]

    @cache
    def run(name: str, method: Method, seed: int) -> Circuit:
        parts = [
            circuit(organisms[name], clean=p.clean, corrupted=p.corrupted, metric=p.metric, sites=p.sites, method=method)
            for p in pairs_of(organisms[name], name, settings["pairs"], seed)
        ]
        return Circuit.joined(*parts)

    return run


@pytest.fixture(scope="module")
def tested(organisms, found, expectations):
    """Return a function of a model's name, a method, and draws: sizes, and what is kept alone, without, and by controls."""
    settings = expectations["circuits"]

    @cache
    def run(name: str, method: Method, draws: int, ablation: Ablation = "resample"):
        own, model = found(name, method, settings["found_seed"]), organisms[name]
        rows = [
            faithfulness(
                model,
                own,
                clean=p.clean,
                corrupted=p.corrupted,
                metric=p.metric,
                sites=p.sites,
                sizes=settings["sizes"],
                draws=draws,
                ablation=ablation,
            )
            for p in pairs_of(model, name, settings["pairs"], settings["scored_seed"])
        ]
        values = {"alone": torch.cat([one.alone for one in rows], 1), "without": torch.cat([one.without for one in rows], 1)}
        for control in rows[0].controls:
            values[control] = torch.cat([one.controls[control].nanmean(0) for one in rows], 1)
        return rows[0].sizes.tolist(), values

    return run


@pytest.fixture
def rows(tested, report, expectations):
    """Return a function that puts what is kept in the table, and returns it by what is measured and asked size."""

    def table(name: str, method: Method, draws: int, ablation: Ablation = "resample"):
        sizes, values = tested(name, method, draws, ablation)
        found = {}
        for what, own in values.items():
            for asked, size, row in zip(expectations["circuits"]["sizes"], sizes, own.numpy(), strict=True):
                if not np.isnan(row).any():
                    found[what, asked] = measured = interval(row.tolist(), range(len(row)), expectations)
                    report(f"circuits: {name}: {method}, {ablation}: {what}, {size} edges", *measured, len(row))
        return found

    return table


@pytest.mark.parametrize("name", NAMES)
def test_a_few_edges_alone_keep_most_of_the_answer_and_without_them_nothing_is_left(name, rows, expectations):
    settings = expectations["circuits"]
    enough, measured = settings["enough"][name], rows(name, "eap-ig", settings["draws"])
    assert measured["alone", enough][1] >= settings["alone_at_least"], measured["alone", enough]
    assert measured["without", enough][0] <= settings["without_at_most"]
    for control in ("random", "matched"):
        assert measured[control, enough][2] <= settings["controls_at_most"], (control, measured[control, enough])


@pytest.mark.parametrize("name", NAMES[:1])
def test_one_gradient_finds_edges_that_keep_no_more(name, rows, expectations):
    settings = expectations["circuits"]
    one, many = rows(name, "eap", 0), rows(name, "eap-ig", settings["draws"])
    for size in settings["sizes"]:
        assert one["alone", size][0] <= many["alone", size][0] + 0.05, size


@pytest.mark.parametrize("name", NAMES)
def test_other_pairs_have_most_of_the_largest_edges_in_common(name, found, report, expectations):
    settings = expectations["circuits"]
    one, two = (found(name, "eap-ig", settings[which]).top(100) for which in ("found_seed", "scored_seed"))
    same = len(one & two) / len(one | two)
    report(f"circuits: {name}: Jaccard of the 100 largest edges of two sets of pairs", same, same, same, settings["pairs"])
    assert same >= settings["same_100_edges_at_least"]


def test_under_mean_ablation_it_is_reported(rows):
    assert rows("pictoworld", "eap-ig", 0, "mean")
