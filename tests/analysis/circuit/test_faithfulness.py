"""How much a circuit carries alone and how much is left without it: ends of the scale, planted circuits, controls."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from stories import STORIES, kept
from support import ask

from mmlens import metrics
from mmlens.analysis.circuit import Circuit, Faithfulness, circuit, faithfulness


@pytest.fixture(scope="module")
def runs(llava):
    clean, corrupted = (ask(llava, "padded", first=first) for first in (0, 5))
    metric = partial(metrics.logit_diff, correct=torch.tensor([3, 4]), wrong=torch.tensor([9, 11]))
    return dict(clean=clean, corrupted=corrupted, metric=metric)


@pytest.fixture(scope="module")
def found(llava, runs):
    return circuit(llava, **runs, method="eap-ig", steps=3)


def without_controls(model, found, **options):
    return faithfulness(model, found, **{"controls": (), **options})


def test_all_edges_are_the_clean_run_and_none_the_corrupted_one(llava, runs, found):
    measured = without_controls(llava, found, **runs, sizes=[0, len(found)])
    ones = torch.ones(2)
    torch.testing.assert_close(measured.alone, torch.stack([0 * ones, ones]), atol=2e-4, rtol=0)
    torch.testing.assert_close(measured.without, torch.stack([ones, 0 * ones]), atol=2e-4, rtol=0)
    assert measured.sizes.tolist() == [0, len(found)] and measured.ablation == "resample" and measured.controls == {}


def test_where_other_edges_carry_the_mean_of_their_rows_the_ends_are_the_mean_run_and_the_clean_one(llava, runs, found):
    measured = without_controls(llava, found, **runs, sizes=[0, len(found)], ablation="mean")
    torch.testing.assert_close(measured.alone[0], torch.zeros(2), atol=2e-4, rtol=0)
    torch.testing.assert_close(measured.alone[1], torch.ones(2), atol=2e-4, rtol=0)
    resampled = without_controls(llava, found, **runs, sizes=[40])
    assert (without_controls(llava, found, **runs, sizes=[40], ablation="mean").alone - resampled.alone).abs().max() > 1e-3


def test_sizes_are_those_left_without_dead_ends(llava, runs, found):
    measured = without_controls(llava, found, **runs, sizes=[10, 100])
    assert measured.sizes.tolist() == [len(found.top(10)), len(found.top(100))]
    free = without_controls(llava, found, **runs)
    assert int(free.sizes[-1]) == len(found) and (free.sizes.diff() >= 0).all()


def test_it_is_enough_from_the_size_on_from_which_it_stays_enough(found):
    alone = torch.tensor([[0.1, 0.3], [0.9, 0.9], [0.5, 0.5], [0.8, float("nan")], [1.0, 0.9]])
    sizes, origin = torch.tensor([1, 2, 5, 8, 20]), found.provenance
    made = partial(Faithfulness, ablation="mean", sizes=sizes, without=1 - alone, controls={}, provenance=origin)
    assert made(alone=alone).size_for() == 8
    assert made(alone=alone).size_for(0.1) == 1
    assert made(alone=alone).size_for(0.95) == 20
    assert made(alone=alone).size_for(0.99) is None


def test_sites_are_named_as_where_the_circuit_was_found(llava, runs, found):
    with pytest.raises(ValueError, match="sites of the same names"):
        faithfulness(llava, found, **runs, sites={"picture": runs["clean"].mask("image")})
    with pytest.raises(ValueError, match="line up"):
        faithfulness(llava, found, **(runs | {"clean": ask(llava, "one")}))


def test_it_loads_as_it_was_saved_and_controls_are_the_same_for_the_same_seed(llava, runs, found, tmp_path):
    measured = faithfulness(llava, found, **runs, sizes=[30, len(found)], draws=2, seed=3)
    assert set(measured.controls) == {"random", "matched"} and measured.controls["random"].shape == (2, 2, 2)
    assert measured.controls["matched"][:, 1].isnan().all()  # there are no other edges
    assert measured.controls["matched"][:, 0].isfinite().all()
    loaded = Faithfulness.load(measured.save(tmp_path / "measured"))
    again = faithfulness(llava, found, **runs, sizes=[30], draws=2, seed=3)
    for name, values in again.controls.items():
        torch.testing.assert_close(loaded.controls[name][:, :1], values)
    assert loaded.size_for(0.9) == measured.size_for(0.9)


# ---------------------------------------------------------------- planted circuits


@pytest.mark.parametrize("name", STORIES)
def test_the_planted_edges_alone_bring_the_answer_back_and_random_ones_do_not(picture_case, name):
    """Where a pair is, one of them is enough: alone, the circuit does it; without it, neither is left."""
    case, runs = picture_case, picture_case.runs(STORIES[name])
    found = case.find(STORIES[name])
    truth = kept(found.graph, case.edges(name))
    planted = replace(found, kept=truth)
    measured = faithfulness(case.model, planted, **runs, sizes=[len(planted)], draws=2, controls=("random",))
    assert int(measured.sizes) == int(truth.sum())  # none of them is a dead end
    assert (measured.alone > 0.9).all() and (measured.alone < 1.1).all()
    assert (measured.without.abs() < 0.1).all()
    assert measured.controls["random"].abs().max() < 0.1


def test_without_one_of_the_pair_nothing_is_lost_so_that_a_circuit_of_the_other_alone_does_it_and_is_not_complete(
    picture_case,
):
    case, runs = picture_case, picture_case.runs(STORIES["pair"])
    found = case.find(STORIES["pair"])
    one = [edge for edge in case.edges("pair") if "L0.second" not in edge]
    half: Circuit = replace(found, kept=kept(found.graph, one))
    measured = without_controls(case.model, half, **runs, sizes=[len(one)])
    assert (measured.alone > 0.9).all()
    extra = replace(found, kept=kept(found.graph, [edge for edge in one if "L0.first" in edge]))
    assert len(extra) == 2
    lost = without_controls(case.model, replace(half, kept=half.kept & ~extra.kept), **runs, sizes=[2])
    assert int(lost.sizes) == 0  # nothing leads to the clamp any more
