"""The first analyses find what is planted, and on the unplanted twin no more than their own null predicts."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from mmlens import HookedMLLM, Neurons, metrics, top_k
from mmlens.analysis import (
    ablation_curve,
    activation_patching,
    attribution_patching,
    decode,
    direct_logit_attribution,
    grad_x_activation,
    last_token_convergence,
    logit_lens,
    receptive_field,
    residual,
)
from mmlens.hooks import ablate
from mmlens.testing import planted
from mmlens.testing.plants.layout import CARRIED, EITHER, NOTHING, NOUNS

CASES = [("image", 0), ("audio", 0)]


@pytest.fixture(scope="module", params=CASES, ids=lambda one: f"{one[0]}-{one[1]}")
def case(request, tmp_path_factory):
    """A planted model and its twin, and inputs that show each noun six times, all in one batch of rows of equal length."""
    modality, seed = request.param
    made = planted(tmp_path_factory.mktemp("planted"), modality=modality, seed=seed)
    model, twin = (HookedMLLM.from_pretrained(folder, device="cpu") for folder in (made.folder, made.twin))
    stimuli = [one for one in made.stimuli(54, seed=seed) if one.answer in NOUNS]
    inputs = model.to_inputs(**made.arguments(stimuli))
    assert len(stimuli) == 24
    return SimpleNamespace(
        made=made, key=made.key, model=model, twin=twin, stimuli=stimuli, inputs=inputs, modality=modality
    )


def tokens(case, words):
    return torch.tensor([case.model.to_token(word) for word in words])


def positions(case, stimuli, inputs):
    """Return where in the stream each stimulus shows its one thing."""
    media = inputs.mask(case.modality)[0].nonzero()[:, 0]
    return torch.stack([media[next(iter(one.shown))] for one in stimuli])


def f1(ours, truth):
    both = len(set(ours) & set(truth))
    return 2 * both / (len(ours) + len(truth))


def scores(case, model):
    """Return gradient x activation of each noun, [noun of the token, noun shown, layer, unit], meaned over stimuli."""
    shown = torch.tensor([NOUNS.index(one.answer) for one in case.stimuli])
    by_token = []
    for noun in NOUNS:
        found = grad_x_activation(model, case.inputs, tokens(case, [noun] * len(case.stimuli))).scores
        by_token.append(torch.stack([found[shown == index].mean(0) for index in range(len(NOUNS))]))
    return torch.stack(by_token)


@pytest.fixture(scope="module")
def attributed(case):
    return scores(case, case.model), scores(case, case.twin)


def reported(found):
    """Return the (noun, layer, unit) whose score for what is shown exceeds every score for a noun that is not shown."""
    own = torch.eye(len(NOUNS), dtype=torch.bool)
    bar = found[~own].max()
    return {tuple(one) for one in (found[own] > bar).nonzero().tolist()}


def test_gradient_times_activation_finds_the_concept_neurons(case, attributed):
    ours, truth = [], []
    for index, noun in enumerate(NOUNS):
        neurons = case.key.concepts[noun]
        best = top_k(attributed[0][index, index], len(neurons), widths=case.model.widths)
        ours += [(noun, *neuron) for neuron in best]
        truth += [(noun, *neuron) for neuron in neurons]
    assert f1(ours, truth) >= 0.95


def test_above_all_scores_of_its_null_stand_the_concept_neurons_and_in_the_twin_no_more_than_chance(case, attributed):
    # Where being shown makes no difference, a fourth of all scores are of the noun that is shown: that the five highest
    # are all of that kind has the probability 4 ** -5 < 0.001, so that at most four stand above the highest other one.
    truth = {(i, layer, unit) for i, noun in enumerate(NOUNS) for _, layer, unit in case.key.concepts[noun]}
    assert truth <= reported(attributed[0])
    own = {(i, *at): attributed[0][i, i][at].item() for i in range(len(NOUNS)) for at in np.ndindex(4, 96)}
    assert min(own[one] for one in truth) > 5 * max(score for one, score in own.items() if one not in truth)
    assert len(reported(attributed[1])) <= 4


def test_at_the_asking_position_it_finds_the_neurons_behind_the_head(case):
    stimuli = [one for one in case.made.stimuli(27, seed=1) if one.answer in CARRIED]
    inputs = case.model.to_inputs(**case.made.arguments(stimuli))
    found = grad_x_activation(case.model, inputs, tokens(case, [s.answer for s in stimuli]), where=inputs.last()).scores
    for noun in CARRIED:
        mean = found[[one.answer == noun for one in stimuli]].mean(0)
        assert set(top_k(mean, 2, widths=case.model.widths)) == set(case.key.carried[noun])


def test_gradients_do_not_see_a_pair_of_which_each_is_enough_but_removing_both_does(case):
    stimuli = [one for one in case.made.stimuli(27, seed=1) if one.answer == EITHER]
    inputs, lamp = case.model.to_inputs(**case.made.arguments(stimuli)), tokens(case, [EITHER] * len(stimuli))
    found = grad_x_activation(case.model, inputs, lamp).scores
    pair = case.key.pair
    full = metrics.log_prob(case.model(inputs), lamp)
    assert found[:, pair.layer, pair.unit].abs().max() < 1  # of the 12 logits that they are worth

    def without(neurons):
        return metrics.log_prob(case.model.run_with_hooks(inputs, fwd_hooks=ablate(neurons)), lamp)

    assert all((without(pair[[one]]) - full).abs().max() < 0.05 for one in (0, 1))
    assert (without(pair) - full).max() < -5


def test_decoding_reads_the_noun_and_in_the_twin_no_more_often_than_in_any_neuron(case):
    everyone = Neurons.of([n for neurons in case.key.concepts.values() for n in neurons], case.model.widths)
    nouns = [noun for noun, neurons in case.key.concepts.items() for _ in neurons]
    assert [words[0] for words in decode(case.model, everyone, k=1).words] == nouns
    others = [words[0] for words in decode(case.twin, everyone.complement(), k=1).words]
    rate = max(others.count(noun) for noun in NOUNS) / len(others)
    hits = sum(words[0] == noun for words, noun in zip(decode(case.twin, everyone, k=1).words, nouns, strict=True))
    assert hits <= binom.ppf(0.999, len(everyone), rate)


def shown_places(case):
    """Return a mask of where each stimulus shows its one thing."""
    here = torch.zeros_like(case.inputs.mask("all"))
    here[range(len(case.stimuli)), positions(case, case.stimuli, case.inputs)] = True
    return here


def test_direct_attribution_puts_the_writing_neurons_first_where_they_fire_and_in_the_twin_only_by_chance(case):
    hits = 0
    for model in (case.model, case.twin):
        words = tokens(case, [one.answer for one in case.stimuli])
        found = direct_logit_attribution(model, case.inputs, words, where=shown_places(case), by="neuron").scores("neuron")
        for noun, neurons in case.key.concepts.items():
            mean = found[..., [one.answer == noun for one in case.stimuli]].mean(-1)
            best = set(top_k(mean, len(neurons), widths=model.widths))
            if model is case.model:
                assert best == set(neurons)
            else:
                hits += len(best & set(neurons))
    assert hits <= binom.ppf(0.999, 16, 4 / sum(case.model.widths["language"]))


def test_direct_attribution_puts_the_head_first_that_brings_the_noun_and_in_the_twin_it_says_nothing(case):
    words = tokens(case, [one.answer for one in case.stimuli])
    other = tokens(case, [NOUNS[NOUNS.index(one.answer) - 1] for one in case.stimuli])
    layer, head = case.key.heads["speak"]
    ours, twins = (
        direct_logit_attribution(model, case.inputs, words, against=other, by="head") for model in (case.model, case.twin)
    )
    (label, value), (_, second) = ours.top(2)
    assert label == f"L{layer}H{head}"
    assert value > 5 * abs(second)
    assert twins.parts.mean(-1).abs().max() < 0.1 * value


def test_the_residual_shows_which_head_brings_what_is_said_and_when(case):
    directions = torch.zeros(case.model.cfg.d_model, 1)
    directions[case.key.layout["say:car"]] = 1.0
    rows = torch.tensor([one.answer == "car" for one in case.stimuli])
    found = residual(case.model, case.inputs, directions=directions)
    means = found.parts[:, rows, 0].mean(-1)
    layer, head = case.key.heads["speak"]
    assert found.components.labels()[int(means.argmax())] == f"L{layer}H{head}"
    assert means.max() > 0.9 * found.stream[rows].mean()
    assert found.parts[:, ~rows].mean(1).max() < 0.1 * means.max()


def test_the_logit_lens_reads_the_noun_where_it_is_shown_then_where_it_is_asked_for(case):
    rows, where = torch.arange(len(case.stimuli)), positions(case, case.stimuli, case.inputs)
    shown = torch.tensor([NOUNS.index(one.answer) for one in case.stimuli])
    targets = tokens(case, NOUNS).tolist()
    ranks = logit_lens(case.model, case.inputs, top_k=1, targets=targets).target_ranks
    there, asking = ranks[:, rows, where, shown], ranks[:, rows, -1, shown]  # [layer, batch]; row l enters block l
    assert (there[0] > 0).all()  # the picture says nothing yet
    assert (there[2:] == 0).all()
    speak = case.key.heads["speak"][0]
    assert (asking[: speak + 1] > 0).all()
    assert (asking[speak + 1 :] == 0).all()

    twins = logit_lens(case.twin, case.inputs, top_k=1, targets=targets).target_ranks[2:]
    for position in (where, -1):
        first = (twins[:, rows, position] == 0).any(0)  # [batch, target]
        null = first[torch.nn.functional.one_hot(shown, len(NOUNS)) == 0].double().mean()
        assert int(first[rows, shown].sum()) <= binom.ppf(0.999, len(rows), float(null))


def test_ablation_of_the_found_neurons_silences_the_noun_and_random_ones_do_not(case):
    for noun, neurons in case.key.concepts.items():
        stimuli = [one for one in case.stimuli if one.answer == noun][:2]
        inputs = case.model.to_inputs(**case.made.arguments(stimuli))
        curve = ablation_curve(case.model, inputs, tokens(case, [noun] * 2), neurons, ks=(0, 4), draws=2)
        assert (curve.log_prob.diff(dim=0) < 0).all()
        assert case.model.to_str_tokens(curve.predicted[-1]) == [NOTHING] * 2
        assert (curve.random_predicted == curve.predicted[0]).all()


def test_receptive_fields_lie_on_what_is_shown_and_in_the_twin_anywhere(case):
    hits = 0
    for noun, neurons in case.key.concepts.items():
        row = next(i for i, one in enumerate(case.stimuli) if one.answer == noun)
        index = next(iter(case.stimuli[row].shown))
        ours, twins = (fields(case, model, neurons, row) for model in (case.model, case.twin))
        assert (ours.argmax(-1) == index).all()
        hits += int((twins.argmax(-1) == index).sum())
        if case.modality == "image":
            cell = torch.zeros(30, 30, dtype=torch.bool)
            cell[6 * (index // 5) :, 6 * (index % 5) :][:6, :6] = True
            field = receptive_field(case.model, case.inputs, neurons, row=row)
            assert (field.iou(cell) > 0.6 * field.bound(cell)).all()
    assert hits <= binom.ppf(0.999, 16, 1 / 25)


def fields(case, model, neurons, row):
    """Return each neuron's activations over the medium's positions; those of sounds have no receptive field of their own."""
    if case.modality == "image":
        return receptive_field(model, case.inputs, neurons, row=row).activations
    _, cache = model.run_with_cache(case.inputs, "blocks.*.mlp.hook_post")
    here = case.inputs.mask("audio")[row]
    return torch.stack([cache[f"blocks.{layer}.mlp.hook_post"][row, here, unit] for _, layer, unit in neurons])


PLACES = {("bell", "drum"): "carry", ("car", "boat"): "speak"}


@pytest.fixture(scope="module", params=PLACES, ids="-".join)
def hops(case, request):
    """A clean and a corrupted run that show different things of one circuit, a metric, and where they are shown."""
    shown = [(3, {"domain": "noon", "seed": 5}), (20, {"domain": "dusk", "seed": 6})]
    clean, corrupted = (
        case.model.to_inputs(**case.made.arguments([case.made.stimulus({at: noun}, **rest) for at, rest in shown]))
        for noun in request.param
    )
    correct, wrong = (tokens(case, [noun] * len(shown)) for noun in request.param)
    media = clean.mask(case.modality)[0].nonzero()[:, 0]
    here = torch.zeros_like(clean.mask("all"))
    here[range(len(shown)), media[[at for at, _ in shown]]] = True
    return SimpleNamespace(
        runs=dict(clean=clean, corrupted=corrupted, metric=partial(metrics.logit_diff, correct=correct, wrong=wrong)),
        here=here,
        last=clean.last(),
        nouns=request.param,
        head=case.key.heads[PLACES[request.param]],
    )


def test_patching_finds_the_layers_and_positions_of_the_circuit(case, hops):
    every = hops.runs["clean"].mask(case.modality)
    sites = {"shown": hops.here, "asking": hops.last, "other media": every & ~hops.here, "other": ~every & ~hops.last}
    found = activation_patching(case.model, **hops.runs, sites=sites)
    layer, _ = hops.head
    expected = torch.zeros_like(found.effect)
    expected[: layer + 1, 0], expected[layer + 1 :, 1] = 1.0, 1.0
    assert (found.effect - expected).abs().max() < 0.1
    assert (found.clean_metric - found.corrupted_metric).min() > 15
    twins = [hops.runs["metric"](case.twin(hops.runs[run])) for run in ("clean", "corrupted")]
    assert (twins[0] - twins[1]).abs().max() < 1


@torch.no_grad()
def test_patching_position_by_position_finds_the_one_that_shows_it_and_then_the_one_that_is_asked(case, hops):
    found = activation_patching(case.model, **hops.runs).effect
    layer, length = hops.head[0], hops.last.shape[1]
    for row in range(2):
        expected = torch.zeros(case.model.cfg.n_layers, length)
        expected[: layer + 1, hops.here[row].nonzero()[0]], expected[layer + 1 :, length - 1] = 1.0, 1.0
        assert (found[..., row] - expected).abs().max() < 0.1


def test_patching_and_attribution_find_the_head_among_all_and_its_twin_has_none(case, hops):
    heads, site = range(case.model.cfg.n_heads), {"asking": hops.last}
    exact = activation_patching(case.model, **hops.runs, activation="z", sites=site, heads=heads)
    effect = exact.effect[:, 0]  # [layer, head, row]
    assert [tuple(one) for one in (effect.mean(-1) > 0.5).nonzero().tolist()] == [hops.head]
    others = effect.clone()
    others[hops.head] = 0
    assert (effect[hops.head] - 1).abs().max() < 0.1 and others.abs().max() < 0.1
    linear = attribution_patching(case.model, **hops.runs, activation="z", sites=site, heads=heads)
    change = (linear.metric - linear.corrupted_metric)[:, 0].mean(-1)
    assert tuple(map(int, np.unravel_index(int(change.argmax()), change.shape))) == hops.head
    assert change[hops.head] > 5 * change.flatten().sort().values[-2]
    twin = activation_patching(case.twin, **hops.runs, activation="z", sites=site, heads=heads)
    moved = (twin.metric - twin.corrupted_metric).abs().max()
    assert moved < 0.1 * (exact.clean_metric - exact.corrupted_metric).min()


def test_patching_the_concept_neurons_brings_the_noun_back_and_as_many_random_ones_do_not(case, hops):
    if PLACES[hops.nouns] != "speak":
        pytest.skip("of the other circuit, the neurons are behind the head: they are in the test of the asking position")
    neurons = case.key.concepts[hops.nouns[0]] | case.key.concepts[hops.nouns[1]]
    first, depth = min(neurons.layer.tolist()), max(neurons.layer.tolist()) + 1
    together = dict(activation="post", sites={"shown": hops.here}, layers=[first], window=depth - first)
    found = activation_patching(case.model, **hops.runs, units=neurons, **together)
    assert (found.effect - 1).abs().max() < 0.1
    for seed in range(3):
        random = activation_patching(case.model, **hops.runs, units=neurons.random_like(seed=seed), **together)
        assert random.effect.abs().max() < 0.1


def test_the_last_position_converges_behind_the_head_that_brings_the_noun(case):
    layer, _ = case.key.heads["speak"]
    cars = case.model.to_inputs(**case.made.arguments([one for one in case.stimuli if one.answer == "car"]))
    ours, twins = (last_token_convergence(model, cars, groups=(case.modality,)).clean for model in (case.model, case.twin))
    fall = -ours.kl.mean(-1).diff()
    assert int(fall.argmax()) == layer  # row l + 1 is behind block l
    assert ours.kl[layer].min() > 5 * ours.kl[layer + 1].max()
    assert twins.kl.max() < 0.1 * ours.kl[0].min()  # in the twin, there is nothing to converge to
