"""How stable a selection is, is that of a loop over parts that are added up by hand; chance is what random sets share."""

from functools import partial

import numpy as np
import pytest
import rules
import torch

from mmlens import Neurons
from mmlens.analysis.selectivity import Stability, domain_neurons, modality_neurons, stability
from mmlens.analysis.selectivity.stability import _chance

LABELS, WIDTHS = ("a", "b", "c"), {"language": (7, 4, 9)}
RULE = dict(rate=0.4, filter_quantile=0.5, bar_quantile=0.7)
QUOTA = dict(ratio=0.3, strategy="LA_MU")


def by_domain(parts):
    count, tokens = (sum(one.numpy() for one in of) for of in zip(*map(counts, parts), strict=True))
    sets = rules.low_entropy(count[:, 0] / tokens[:, 0, None, None], WIDTHS["language"], **RULE)
    return dict(zip(LABELS, map(set, sets), strict=True))


def counts(part):
    return part.totals["count"]["language"], part.tokens["language"]


def by_modality(parts):
    """The rule "mean" on sums over examples: an average within each data set, and then over those that have the group."""
    total = sum(part.totals["mean"]["language"].numpy() for part in parts)
    samples = sum(part.samples["language"].numpy() for part in parts)
    groups = range(samples.shape[1])
    scores = [
        np.mean([total[label, group] / n for label, n in enumerate(samples[:, group]) if n], axis=0) for group in groups
    ]
    sets = rules.by_quota(np.stack(scores), WIDTHS["language"], **QUOTA)
    return {name: {tuple(place) for place in own} for name, own in zip(("image", "all"), sets, strict=True)}


def jaccard(a, b):
    return len(a & b) / len(a | b) if a | b else 1


def chance(a, b):
    """Of sets of as many neurons in each layer: sum_l a_l b_l / N_l, over a + b less that."""
    both = 0
    for layer, width in enumerate(WIDTHS["language"]):
        both += sum(one == layer for one, _ in a) * sum(one == layer for one, _ in b) / width
    return both / (len(a) + len(b) - both) if len(a) + len(b) else 1


@pytest.mark.parametrize("parts", [2, 3, 5, 6])
@pytest.mark.parametrize("which", ["domain", "modality"])
def test_stability_is_that_of_a_loop_over_parts_added_up(which, parts, tmp_path):
    if which == "domain":
        of = [rules.by_tokens(seed, LABELS, ["all"], WIDTHS) for seed in range(parts)]
        select, by_hand = partial(domain_neurons, **RULE), by_domain
    else:
        of = [rules.by_samples(seed, LABELS, ["image", "all"], WIDTHS) for seed in range(parts)]
        select, by_hand = partial(modality_neurons, weights="mean", **QUOTA), by_modality
    found = stability(of, select)
    for step in range(parts):
        ours, others, every = by_hand(of[: step + 1]), of[step + 1 : 2 * step + 2], by_hand(of)
        assert found.labels == tuple(every) and any(every.values())
        np.testing.assert_allclose(found.to_all[step], [jaccard(ours[name], every[name]) for name in every], rtol=1e-6)
        if len(others) == step + 1:
            theirs = by_hand(others)
            np.testing.assert_allclose(
                found.to_others[step], [jaccard(ours[name], theirs[name]) for name in every], rtol=1e-6
            )
            np.testing.assert_allclose(found.chance[step], [chance(ours[name], theirs[name]) for name in every], rtol=1e-6)
        else:
            assert found.to_others[step].isnan().all() and found.chance[step].isnan().all()
    assert (found.to_all[-1] == 1).all()
    shown = [sum(int(row.max()) for row in part.samples["language"]) for part in of]
    assert found.examples == tuple(np.cumsum(shown).tolist())
    again = Stability.load(found.save(tmp_path / "stability"))
    assert repr(again) == repr(found) and torch.equal(again.to_all, found.to_all)


def test_chance_is_about_what_random_sets_of_these_sizes_share():
    widths = (60, 40, 80)
    a = Neurons.of([(layer, unit) for layer, size in enumerate((30, 5, 0)) for unit in range(size)], {"language": widths})
    b = Neurons.of([(layer, unit) for layer, size in enumerate((20, 10, 9)) for unit in range(size)], {"language": widths})
    random, shares = np.random.default_rng(0), []
    for _ in range(2000):
        one, other = (
            {
                (layer, unit)
                for layer, (n, w) in enumerate(zip(sizes, widths, strict=True))
                for unit in random.permutation(w)[:n]
            }
            for sizes in ((30, 5, 0), (20, 10, 9))
        )
        shares.append(jaccard(one, other))
    assert _chance(a, b) == pytest.approx(np.mean(shares), rel=0.03)
    assert _chance(a[:0], a[:0]) == 1 and _chance(a, a[:0]) == 0


def test_the_same_examples_again_are_as_stable_as_can_be():
    part = rules.by_tokens(1, LABELS, ["all"], WIDTHS)
    found = stability([part] * 4, partial(domain_neurons, **RULE))
    assert (found.to_all == 1).all() and (found.to_others[:2] == 1).all() and (found.chance[:2] < 1).all()


def test_fewer_than_two_parts_and_parts_without_a_group_are_refused():
    with pytest.raises(ValueError, match="two parts or more, got 1: sweep over several stretches"):
        stability([rules.by_tokens(1, LABELS, ["all"], WIDTHS)], domain_neurons)
    parts = [rules.by_samples(seed, LABELS, ["image", "all"], WIDTHS) for seed in range(3)]
    for part in parts[1:]:
        part.samples["language"][:, 0] = 0
    with pytest.raises(
        ValueError, match="every part has examples of image, all, one has none of image: mix them beforehand"
    ):
        stability(parts, partial(modality_neurons, weights="mean"))
