"""One gradient ranks heads as patching them one by one does, and finds neurons that carry part of the difference."""

from functools import partial

import pytest
import torch
from examples import interval, random_weights
from scipy.stats import spearmanr
from test_measured_patching import questions

from mmlens import metrics, top_k
from mmlens.analysis import activation_patching, attribution_patching
from mmlens.organisms import pictoworld

NAMES = ["pictoworld", "pictoworld-frozen"]


def usable(model, pairs):
    """Return the pairs whose nouns the model both gets right."""
    clean, corrupted, right, wrong = questions(model, pairs)
    with torch.no_grad():
        both = (model(clean)[:, -1].argmax(-1) == right) & (model(corrupted)[:, -1].argmax(-1) == wrong)
    return [pair for pair, kept in zip(pairs, both.tolist(), strict=True) if kept]


def runs(model, pairs):
    clean, corrupted, right, wrong = questions(model, pairs)
    return dict(clean=clean, corrupted=corrupted, metric=partial(metrics.logit_diff, correct=right, wrong=wrong))


def drawn(expectations):
    settings = expectations["attribution"]
    return pictoworld.pairs("held_out", n=settings["pairs"], seed=settings["seed"])


@pytest.mark.parametrize("name", NAMES)
def test_one_gradient_ranks_heads_as_patching_them_one_by_one_does(organisms, report, expectations, name):
    model, settings = organisms[name], expectations["attribution"]
    both = runs(model, pairs := usable(model, drawn(expectations)))
    heads = dict(activation="z", sites={"last": both["clean"].last()}, heads=range(model.cfg.n_heads))
    exact = activation_patching(model, **both, **heads)
    for how, steps, bar in (("one gradient", None, "head_rank"), ("integrated", settings["steps"], "integrated_head_rank")):
        found = attribution_patching(model, **both, **heads, steps=steps)
        rank = float(spearmanr(found.mean.flatten(), exact.mean.flatten()).statistic)
        report(f"attribution: {name}: heads, {how}: rank correlation with patching", rank, rank, rank, len(pairs))
        whole = interval(found.effect.sum((0, 1, 2)).tolist(), list(range(len(pairs))), expectations)
        report(f"attribution: {name}: heads, {how}: sum of effects", *whole, len(pairs))
        assert rank >= settings[bar]
    whole = interval(exact.effect.sum((0, 1, 2)).tolist(), list(range(len(pairs))), expectations)
    report(f"attribution: {name}: heads, patched one by one: sum of effects", *whole, len(pairs))


def restored(model, pairs, settings):
    """Return what chosen neurons, and the mean over draws of random ones, restore in each scored pair [pair]."""
    chosen, scored = runs(model, pairs[::2]), runs(model, pairs[1::2])
    units = range(model.widths["language"][0])
    image = {"image": chosen["clean"].mask("image")}
    scores = attribution_patching(model, **chosen, activation="post", sites=image, units=units)
    change = (scores.metric - scores.corrupted_metric)[:, 0].mean(-1)
    top = top_k(change, settings["neurons"], widths=model.widths)
    how = dict(activation="post", sites={"image": scored["clean"].mask("image")}, layers=[0], window=model.cfg.n_layers)
    ours = activation_patching(model, **scored, units=top, **how).effect[0, 0]
    draws = range(settings["random_draws"])
    randoms = [activation_patching(model, **scored, units=top.random_like(seed=s), **how).effect[0, 0] for s in draws]
    return ours, torch.stack(randoms).mean(0)


@pytest.mark.parametrize("name", NAMES)
def test_neurons_of_large_attribution_carry_more_of_the_difference_than_random_ones(organisms, report, expectations, name):
    model, settings = organisms[name], expectations["attribution"]
    ours, random = restored(model, usable(model, drawn(expectations)), settings)
    found = {}
    for which, effect in (("chosen", ours), ("random", random), ("chosen - random", ours - random)):
        found[which] = interval(effect.tolist(), list(range(len(effect))), expectations)
        report(f"attribution: {name}: {settings['neurons']} neurons, {which}: restored", *found[which], len(effect))
    assert found["chosen - random"][1] > 0
    assert found["chosen"][0] >= settings["times_random"] * found["random"][0]


def test_in_shuffled_weights_neurons_of_large_attribution_are_reported(report, expectations):
    settings = expectations["attribution"]
    ours, random = restored(random_weights("pictoworld-frozen"), drawn(expectations)[:100], settings)
    clear = ours.isfinite() & (ours.abs() < 10)  # where two nouns' logits hardly differ, shares are of nothing
    for which, effect in (("chosen", ours[clear]), ("random", random[clear])):
        found = interval(effect.tolist(), list(range(len(effect))), expectations)
        report(f"attribution: weights shuffled: {settings['neurons']} neurons, {which}: restored", *found, len(effect))
    assert clear.sum() > 25, "of most pairs there is something to say"
