"""Overlap, rank correlation and their null, against scipy, a loop and a closed form."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from mmlens.analysis import Agreement, agreement

WIDTHS = (30, 12, 30)


def tables(seed=0):
    """Return three scores of layers of unequal width, the second tied in many places and the third like the first."""
    random = np.random.default_rng(seed)
    first = random.normal(size=(3, 30))
    made = {"first": first, "tied": random.integers(0, 4, (3, 30)), "alike": first + random.normal(size=(3, 30)) / 4}
    return {name: torch.tensor(score, dtype=torch.float32) for name, score in made.items()}


def highest(score, k):
    flat = [(-float(score[layer, unit]), layer, unit) for layer in range(3) for unit in range(WIDTHS[layer])]
    return {(layer, unit) for _, layer, unit in sorted(flat)[:k]}


def test_overlap_and_rank_correlation_are_those_of_a_loop_and_of_scipy():
    scores = tables()
    found = agreement(scores, k=8, widths=WIDTHS, draws=2)
    for i, one in enumerate(scores.values()):
        for j, other in enumerate(scores.values()):
            shared = len(highest(one, 8) & highest(other, 8)) / 8
            assert found.overlap[i, j].item() == pytest.approx(shared)
            for layer, width in enumerate(WIDTHS):
                truth = spearmanr(one[layer, :width], other[layer, :width]).statistic
                assert found.spearman[i, j, layer].item() == pytest.approx(truth, abs=1e-12)
    assert found.overlap[0, 2] > found.overlap_bar[0, 2] and (found.spearman[0, 2] > found.spearman_bar[0, 2]).all()


def test_the_null_of_an_overlap_is_the_hypergeometric_one_of_each_layers_share():
    scores, k, draws = tables(), 8, 4000
    found = agreement(scores, k=k, widths=WIDTHS, draws=draws)
    chosen = [highest(score, k) for score in scores.values()]
    for i in range(3):
        for j in range(3):
            mean = variance = 0.0
            for layer, width in enumerate(WIDTHS):
                a, b = (sum(at == layer for at, _ in chosen[one]) for one in (i, j))
                mean += a * b / width / k
                variance += a * b / width * (1 - a / width) * (width - b) / (width - 1) / k**2
            deviation = variance**0.5
            assert abs(found.overlap_null[i, j].item() - mean) <= 5 * deviation / draws**0.5 + 1e-12
            assert found.overlap_bar[i, j] >= found.overlap_null[i, j]


def test_two_scores_that_know_nothing_of_each_other_lie_within_the_null():
    inside, trials = 0, 40
    for seed in range(trials):
        random = torch.Generator().manual_seed(seed)
        one, other = (torch.rand(2, 200, generator=random) for _ in range(2))
        found = agreement({"one": one, "other": other}, k=40, draws=60, seed=seed)
        inside += int((found.spearman[0, 1].abs() <= found.spearman_bar[0, 1]).sum())
        assert abs(found.overlap_null[0, 1] - 0.1) < 0.03
    assert 2 * trials * 0.85 <= inside <= 2 * trials  # 76 of 80 expected


def test_a_score_agrees_with_itself_and_with_all_that_ranks_alike():
    score = tables()["first"]
    found = agreement({"score": score, "rising": score.exp() * 3, "falling": -score}, k=5, widths=WIDTHS, draws=3)
    assert found.overlap[0].tolist() == [1, 1, 0]
    expected = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)[:, None].expand(3, 3)
    torch.testing.assert_close(found.spearman[0], expected)


def test_what_is_beyond_a_layers_width_does_not_count_and_a_constant_layer_has_no_order():
    scores = tables()
    before = agreement(scores, k=8, widths=WIDTHS, draws=3)
    for score in scores.values():
        score[1, 12:] = 1e6
    after = agreement(scores, k=8, widths=WIDTHS, draws=3)
    for name in ("overlap", "overlap_bar", "spearman", "spearman_null"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    scores["tied"][2] = 1.0
    assert agreement(scores, k=8, widths=WIDTHS, draws=3).spearman[1, :, 2].isnan().all()


def test_it_is_the_same_with_the_same_seed_and_loads_as_it_was_saved(tmp_path):
    found = agreement(tables(), k=8, widths=WIDTHS, draws=5, seed=3)
    again = agreement(tables(), k=8, widths=WIDTHS, draws=5, seed=3)
    assert torch.equal(found.spearman_bar, again.spearman_bar)
    loaded = Agreement.load(found.save(tmp_path / "agreement"))
    assert loaded.scores == ("first", "tied", "alike") and torch.equal(loaded.overlap_bar, found.overlap_bar)


def test_scores_that_can_not_be_compared_are_refused():
    scores = tables()
    with pytest.raises(ValueError, match="of the same neurons"):
        agreement({**scores, "short": torch.zeros(3, 29)}, k=8)
    with pytest.raises(ValueError, match="tied has others"):
        agreement({**scores, "tied": torch.full((3, 30), torch.nan)}, k=8)
    with pytest.raises(ValueError, match="72 neurons, got k = 80"):
        agreement(scores, k=80, widths=WIDTHS)
    with pytest.raises(ValueError, match="1 draw or more"):
        agreement(scores, k=8, draws=0)
