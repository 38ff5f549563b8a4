"""Intervals and p-values are of clusters, not of examples: numpy loops, full enumerations and hand counts say the same."""

from itertools import product

import numpy as np
import pytest
import torch

from mmlens.evaluation import Evaluation
from mmlens.evaluation.uncertainty import interval, sign_flip
from mmlens.results import Provenance


def made(scores, tasks, *, clusters=None, random=None):
    """Return an evaluation of scores that are given, by arm."""
    n = len(tasks)
    names = [name for name in scores if name != "baseline" and "(random" not in name]
    return Evaluation(
        metric="exact_match",
        arms=tuple(scores),
        random={name: tuple(one for one in scores if one.startswith(f"{name} (random")) for name in names},
        scores=torch.tensor(list(scores.values()), dtype=torch.float64),
        said=torch.full((len(scores), n), -1),
        texts=(),
        golds=((),) * n,
        ids=tuple(map(str, range(n))),
        places=tuple(range(n)),
        tasks=tuple(tasks),
        clusters=torch.arange(n) if clusters is None else torch.tensor(clusters),
        failures=(),
        provenance=Provenance("tiny", None, "0", (), {}, 0, {}, "now"),
    )


@pytest.fixture
def clustered():
    """Scores of 60 examples in 20 clusters of different sizes, which differ more from each other than inside."""
    random = np.random.default_rng(0)
    clusters = random.integers(0, 20, 60)
    return random.normal(0.3, 1, 20)[clusters] + random.normal(0, 0.2, 60), clusters


def test_the_interval_is_that_of_a_loop_that_draws_clusters(clustered):
    values, clusters = clustered
    random, own, means = np.random.default_rng(1), np.unique(clusters), []
    for _ in range(4000):
        drawn = np.concatenate([values[clusters == one] for one in random.choice(own, len(own))])
        means.append(drawn.mean())
    low, high = interval(values, clusters)
    assert (low, high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.03)
    naive = interval(values, np.arange(60))
    assert naive[1] - naive[0] < 0.8 * (high - low)


def test_the_same_pictures_once_more_make_no_interval_narrower_and_no_p_smaller(clustered):
    values, clusters = clustered
    again, same = np.tile(values, 5), np.tile(clusters, 5)
    assert interval(again, same) == pytest.approx(interval(values, clusters), abs=1e-12)
    assert sign_flip(again, same) == pytest.approx(sign_flip(values, clusters), abs=0.005)
    assert sign_flip(again, np.arange(300)) < sign_flip(values, clusters)


def test_p_is_the_share_of_all_signs_of_clusters_that_reach_as_far():
    away, clusters = np.array([0.5, 0.25, -1, 1.5, 0, 2, 1]), np.array([0, 0, 1, 2, 3, 4, 4])
    sums = np.array([0.75, -1, 1.5, 0, 3])
    reached = [abs((sums * signs).sum()) >= abs(sums.sum()) for signs in product((-1, 1), repeat=5)]
    assert sign_flip(away, clusters) == pytest.approx(np.mean(reached))


def test_many_clusters_are_drawn_and_the_p_of_no_effect_is_spread_evenly():
    random = np.random.default_rng(0)
    ps = [sign_flip(random.normal(size=40), np.arange(40), resamples=199) for _ in range(200)]
    assert np.mean(np.array(ps) < 0.1) == pytest.approx(0.1, abs=0.06)
    assert sign_flip(random.normal(1, 1, 40), np.arange(40)) < 0.001


def test_where_nothing_differs_p_is_one_and_of_one_cluster_nothing_is_known():
    assert sign_flip(np.zeros(5), np.arange(5)) == 1
    assert sign_flip(np.array([0.0, 3.0]), np.arange(2)) == 1
    assert np.isnan(interval(np.array([1.0, 2.0]), np.zeros(2, dtype=int))).all()
    assert interval(np.full(4, 0.1), np.arange(4)) == (pytest.approx(0.1), pytest.approx(0.1))


@pytest.fixture
def evaluation():
    random = np.random.default_rng(3)
    tasks = ["see"] * 10 + ["hear"] * 6
    scores = {"baseline": random.integers(0, 2, 16)}
    for name in ("a", "a (random 0)", "a (random 1)", "a (random 2)", "b"):
        scores[name] = random.integers(0, 2, 16)
    return made({name: row.tolist() for name, row in scores.items()}, tasks)


def test_the_table_has_the_means_and_paired_differences_of_every_task(evaluation):
    table, scores = evaluation.table(resamples=500), dict(zip(evaluation.arms, evaluation.scores.numpy(), strict=True))
    rows = ["baseline", "a", "a (random)", "b"]
    assert list(table.index) == [(name, task) for name in rows for task in ("see", "hear")]
    drawn = np.mean([scores[f"a (random {draw})"] for draw in range(3)], axis=0)
    for (name, task), row in table.iterrows():
        here = slice(0, 10) if task == "see" else slice(10, 16)
        own = drawn[here] if name == "a (random)" else scores[name][here]
        assert (row.n, row.clusters, row["mean"]) == (len(own), len(own), pytest.approx(own.mean()))
        assert row.low <= row["mean"] <= row.high
        if name != "baseline":
            away = own - scores["baseline"][here]
            assert row.difference == pytest.approx(away.mean())
            assert row.p == pytest.approx(sign_flip(away, np.arange(len(away)), resamples=500))
    assert evaluation.matrix(resamples=99).loc["b", "hear"] == pytest.approx(table.loc[("b", "hear"), "difference"])


def test_a_random_control_shows_its_spread_and_where_the_intervention_stands_in_it(evaluation):
    table, scores = evaluation.table(resamples=99), evaluation.scores.numpy()
    means = scores[2:5, :10].mean(1)
    for name in ("a", "a (random)"):
        row = table.loc[(name, "see")]
        assert (row.draws, row.draw_low, row.draw_high) == (3, pytest.approx(means.min()), pytest.approx(means.max()))
    own = scores[1, :10].mean()
    assert table.loc[("a", "see"), "to_random"] == pytest.approx(own - means.mean())
    below, same = (means < own).sum(), (means == own).sum()
    assert table.loc[("a", "see"), "rank"] == 1 + below + same / 2
    assert table.loc[("b", "see"), ["draws", "rank"]].isna().all()


def test_ps_are_corrected_over_the_whole_table_by_benjamini_and_hochberg(evaluation):
    table = evaluation.table(resamples=500)
    p = np.sort(table.p.dropna().to_numpy())
    assert len(p) == 6
    by_hand = {one: min(p[rank] * len(p) / (rank + 1) for rank in range(index, len(p))) for index, one in enumerate(p)}
    for _, row in table.iterrows():
        if not np.isnan(row.p):
            assert row.p_corrected == pytest.approx(by_hand[row.p])
    assert np.isnan(table.loc["baseline"].p_corrected).all()


def test_a_control_that_changes_nothing_has_no_difference_whatever_the_scores():
    baseline = [0.1, 0.7, 0.3, 0.9]
    scores = {"baseline": baseline, "a": baseline, **{f"a (random {draw})": baseline for draw in range(10)}}
    row = made(scores, ["t"] * 4).table().loc[("a (random)", "t")]
    assert (row.difference, row.p) == (0, 1)


def test_it_reads_as_a_table(evaluation):
    lines = evaluation.markdown(resamples=99).splitlines()
    assert len(lines) == 2 + 8
    assert len({line.count("|") for line in lines}) == 1
    assert "exact_match" in lines[0]
    assert "| a | see | 10 |" in lines[4]
    assert repr(evaluation).startswith("Evaluation: mean exact_match of 16 examples")
