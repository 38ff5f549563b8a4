"""Huang et al. 2024: each number is that of the function behind it, and `legacy` is as released in what it says."""

from functools import partial

import numpy as np
import pytest

from mmlens import HookedMLLM
from mmlens.analysis import (
    group_geometry,
    last_token_convergence,
    modality_neurons,
    probing_score,
    stability,
    telomere_score,
)
from mmlens.data import Example, question_examples
from mmlens.evaluation import Ablation, evaluate
from mmlens.organisms import pictosound, pictoworld
from mmlens.papers import Reproduction, huang2024
from mmlens.papers.huang2024 import LEGACY_SELECTION, LEGACY_STATISTICS, PARTITIONS, SELECTION, STATISTICS, WEIGHTS
from mmlens.stats import SampleStats
from mmlens.sweeps import encoded, sweep

DATA_SETS = ("order", "count")
GROUPS = ("text", "special", "audio")
SMALL = dict(metric="log_prob", draws=2, looked_at=2, parts=2, seed=3)
DEPTHS = {"first": 0, "middle": 3, "last": 5}


@pytest.fixture(scope="module")
def model():
    return HookedMLLM.from_pretrained("pictosound", device="cpu")


@pytest.fixture(scope="module")
def asked():
    """Four questions of each kind for mining, in turn, two of each for the test."""
    found = question_examples(pictosound.clips("held_out", n=8, seed=1))
    order, count = ([one for one in found if one.label == kind] for kind in DATA_SETS)
    mining = [one for pair in zip(order[:4], count[:4], strict=True) for one in pair]
    return mining, [*order[-2:], *count[-2:]]


def gathered(model, examples, **how):
    counts = SampleStats(model.widths, labels=DATA_SETS, groups=PARTITIONS["modality"], **STATISTICS | how)
    return sweep(model, examples, {"importance": counts}, progress=False)["importance"]


@pytest.fixture(scope="module")
def selection(model, asked):
    return modality_neurons(gathered(model, asked[0]), weights=WEIGHTS, **SELECTION)


@pytest.fixture(scope="module")
def found(model, asked):
    return huang2024.reproduce(model, *asked, **SMALL)


@pytest.fixture(scope="module")
def looked(model, asked):
    return [encoded(model, [one]) for one in (asked[1][0], asked[1][2])]


def same(found, item, condition, values):
    assert found.value(item, condition) == pytest.approx(float(np.mean([float(one) for one in values])), abs=1e-6)


def test_sets_overlaps_and_stability_are_those_of_the_selection(found, selection, model, asked):
    common = selection.overlaps().loc["all"]
    assert {one.condition: one.value for one in found.rows if one.table == "sets"} == {
        **common.to_dict(),
        "of any group": len(selection.union()),
    }
    assert sum(len(selection[group]) for group in GROUPS) == int(0.02 * 5 * 512)
    halves = [gathered(model, [asked[0][place] for place in (own, own + 1, own + 4, own + 5)]) for own in (0, 2)]
    stable = stability(halves, partial(modality_neurons, weights=WEIGHTS, **SELECTION))
    for place, group in enumerate(stable.labels):
        item = f"Jaccard of {group} neurons with those of"
        same(found, item, "as many other examples", [stable.to_others[0, place]])
        same(found, item, "chance", [stable.chance[0, place]])
        same(found, item, "all examples", [stable.to_all[0, place]])
    by_layer = selection.jaccard_by_layer()
    same(found, "Jaccard of text and audio neurons", "highest layer", [by_layer[-1, 0, 2]])


def test_scores_without_neurons_are_those_of_the_evaluation(found, selection, model, asked):
    everyone = selection.union()
    given = {"all sets": everyone, "all neurons but these": Ablation(everyone, complement=True)}
    given |= {f"{group} neurons": selection[group] for group in GROUPS}
    table = evaluate(model, asked[1], "log_prob", given, draws=2, seed=3, progress=False).table(resamples=99)
    arms = ["baseline", *(arm for name in given for arm in (name, f"{name} (random)"))]
    for arm in arms:
        same(found, "mean log_prob", arm, table.loc[arm]["mean"])
    for task in DATA_SETS:
        for arm in arms[1:]:
            same(found, f"change on {task}", arm, [table.loc[arm, task]["difference"]])
    assert not any(one.tag == "paper" for one in found.rows), "log_prob is no accuracy"


def test_claims_two_and_three_are_those_of_the_functions(found, selection, model, looked):
    apart = [group_geometry(model, own, groups=GROUPS) for own in looked]
    for name, layer in DEPTHS.items():
        same(found, "silhouette of groups", name, [one.silhouette[layer, 0] for one in apart])
        same(found, "cosine of text and audio centroids", name, [one.cosine[layer, 0, 0, 2] for one in apart])
    how = dict(groups=GROUPS, neurons=selection.union(), draws=2, seed=3)
    curves = [last_token_convergence(model, own, **how) for own in looked]
    for place, group in enumerate(GROUPS):
        for condition, runs in {
            "as it is": [one.clean for one in curves],
            "without all sets": [one.ablated for one in curves],
            "without random ones": [run for one in curves for run in one.random],
        }.items():
            same(found, f"attention to {group}", condition, [run.mass[place].mean() for run in runs])
            same(found, f"cosine with {group}", condition, [run.centroids[place].mean() for run in runs])
    assert {one.n for one in found.rows if one.table.startswith("claim III")} == {2}


def test_claim_four_is_that_of_the_functions(found, model, looked):
    for source, target in (("audio", "text"), ("text", "audio")):
        scores = [probing_score(model, own, source=source, target=target, draws=2, seed=3) for own in looked]
        for name, layer in DEPTHS.items():
            item = f"{source} positions nearer to {target}, {name} row"
            same(found, item, "positions", [one.share[layer, 0] for one in scores])
            same(found, item, "shuffled groups", [one.random_share[:, layer, 0].mean() for one in scores])
    ends = [telomere_score(model, own, draws=2, seed=3) for own in looked]
    for name, layer in DEPTHS.items():
        item = f"special positions whose nearest is text, {name} row"
        same(found, item, "special", [one.within[0, layer, 0] for one in ends])
        same(found, item, "random text", [one.random_within[:, 0, layer, 0].mean() for one in ends])
        item = f"special positions further out than 90 % of text, {name} row"
        same(found, item, "special", [one.outer[layer, 0] for one in ends])
        same(found, item, "random text", [one.random_outer[:, layer, 0].mean() for one in ends])


def test_the_abstracts_numbers_stand_beside_mean_accuracy(model, asked, tmp_path):
    how = dict(metric=lambda answer, answers: 1.0, max_new_tokens=1, draws=0, looked_at=1, parts=1)
    heard = huang2024.reproduce(model, *asked, partition="prompt", **how)
    theirs = {one.condition: (one.paper, one.value) for one in heard.rows if one.tag == "paper"}
    assert theirs == {"baseline": (0.69, 1), "all sets": (0.31, 1)}
    assert {one.condition for one in heard.rows if one.table == "sets"} == {"prompt", "of any group"}
    assert not any(one.table == "stability" or "random" in one.condition for one in heard.rows)
    assert Reproduction.load(heard.save(tmp_path / "tables")).markdown() == heard.markdown()
    world = HookedMLLM.from_pretrained("pictoworld", device="cpu")
    examples = question_examples(pictoworld.scenes("held_out", n=2, seed=1), "place", "count", label="kind")
    seen = huang2024.reproduce(world, examples, examples[:2], partition="special_text", **how)
    assert {one.paper for one in seen.rows if one.tag == "paper"} == {0.56, 0.24}
    assert {one.condition for one in seen.rows if one.table == "sets"} >= {"special+text", "image", "special+text & image"}


def test_legacy_is_as_released_in_statistics_and_selection(model, asked):
    how = dict(metric="log_prob", draws=0, looked_at=1, parts=1, seed=3)
    released = huang2024.reproduce(model, *asked, legacy=True, **how)
    chosen = modality_neurons(
        gathered(model, asked[0], **LEGACY_STATISTICS), weights=WEIGHTS, **SELECTION | LEGACY_SELECTION
    )
    common = chosen.overlaps().loc["all"]
    assert {one.condition: one.value for one in released.rows if one.table == "sets"} == {
        **common.to_dict(),
        "of any group": len(chosen.union()),
    }
    k = int(0.02 * 5 * 512)
    assert {len(chosen[group]) for group in GROUPS} == {k // 3}
    table = evaluate(model, asked[1], "log_prob", {"all sets": chosen.union()}, draws=0, progress=False).table(resamples=9)
    same(released, "mean log_prob", "all sets", table.loc["all sets"]["mean"])


def test_random_neurons_are_drawn_with_replacement_as_released(model, asked):
    how = dict(metric="log_prob", draws=0, looked_at=1, parts=1, selection=dict(ratio=0.5, strategy="random"))
    k = int(0.5 * 5 * 512)
    found = huang2024.reproduce(model, *asked, legacy=True, **how).value("neurons", "random")
    assert found == pytest.approx(5 * 512 * (1 - (1 - 1 / (5 * 512)) ** k), rel=0.05) and found < k


def test_what_is_no_data_for_the_tables_is_said_in_words(model, asked):
    mining, test = asked
    with pytest.raises(ValueError, match="parted by prompt, special_text, modality, got 'words'"):
        huang2024.reproduce(model, mining, test, partition="words")
    with pytest.raises(ValueError, match="every mining example has a label, number 0 has none"):
        huang2024.reproduce(model, [Example("what ?")], test)
    with pytest.raises(ValueError, match="of a label or more, got 0: none"):
        huang2024.reproduce(model, mining, [])
    with pytest.raises(ValueError, match=r"up to 1 \(those of a data set\); got parts=4"):
        huang2024.reproduce(model, mining[:2], test)
