"""Every score of neurons finds what is planted where it acts, with its sign, and on the twin no more than its own null."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from mmlens import HookedMLLM, Neurons, top_k
from mmlens.analysis import (
    activation_score,
    agreement,
    causal_score,
    grad_x_activation,
    integrated_gradients,
    logit_contribution,
)
from mmlens.targets import Targets
from mmlens.testing import planted
from mmlens.testing.plants.layout import CARRIED, EITHER, NOUNS, SILENCED, VEIL

SCORES = ("contribution", "integrated gradients", "causal")
HEARD = SCORES[:1]  # the others are dear, and go through blocks of the same kind


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Planted models and their twins, and inputs that show each noun once, in rows of equal length."""

    def make(modality):
        made = planted(tmp_path_factory.mktemp("planted"), modality=modality)
        model, twin = (HookedMLLM.from_pretrained(folder, device="cpu") for folder in (made.folder, made.twin))
        stimuli = [made.stimulus({7 * index: noun}, seed=index) for index, noun in enumerate(NOUNS)]
        inputs = model.to_inputs(**made.arguments(stimuli))
        every = Neurons.of([(layer, unit) for layer in range(4) for unit in range(96)], model.widths)
        return SimpleNamespace(made=made, key=made.key, model=model, twin=twin, stimuli=stimuli, inputs=inputs, every=every)

    return {modality: make(modality) for modality in ("image", "audio")}


@pytest.fixture
def case(cases):
    """The one that sees."""
    return cases["image"]


def token(case, word):
    return case.model.to_token(word)


def shown(case, stimuli, inputs):
    """Return a mask of where each stimulus shows its one thing."""
    media = inputs.mask(case.key.modality)
    here = torch.zeros_like(media)
    for row, one in enumerate(stimuli):
        here[row, media[row].nonzero()[:, 0][list(one.shown)]] = True
    return here


def measure(case, model, score, word):
    """Return how every neuron scores for a word, [row, layer, unit]: gradients and ablation over the medium's positions."""
    inputs, media = case.inputs, case.inputs.mask(case.key.modality)
    tokens = torch.full((len(inputs),), token(case, word))
    if score == "contribution":  # it knows the position that writes only
        row, position = shown(case, case.stimuli, inputs).nonzero().T
        targets = Targets(row=row, position=position, token=tokens, word=row, words=(word,) * len(inputs))
        return logit_contribution(model, inputs, targets, norm="frozen").scores
    if score == "causal":
        return causal_score(model, inputs, tokens, case.every, where=media).scores()
    return integrated_gradients(model, inputs, tokens, where=media, steps=4).scores


@pytest.fixture(
    scope="module", params=[*(("image", one) for one in SCORES), *(("audio", one) for one in HEARD)], ids=" ".join
)
def measured(request, cases):
    """A case, and the scores [noun of the token, noun shown, layer, unit] in the model and in its twin."""
    modality, score = request.param
    case = cases[modality]
    ours, twins = (torch.stack([measure(case, model, score, noun) for noun in NOUNS]) for model in (case.model, case.twin))
    return SimpleNamespace(case=case, ours=ours, twins=twins)


def reported(found):
    """Return the (noun, layer, unit) whose score for what is shown exceeds every score for a noun that is not shown."""
    own = torch.eye(len(NOUNS), dtype=torch.bool)
    return {tuple(one) for one in (found[own] > found[~own].max()).nonzero().tolist()}


def test_the_highest_for_a_noun_are_its_concept_neurons(measured):
    hits = total = 0
    for index, noun in enumerate(NOUNS):
        neurons = measured.case.key.concepts[noun]
        best = top_k(measured.ours[index, index], len(neurons), widths=measured.case.model.widths)
        hits, total = hits + len(set(best) & set(neurons)), total + len(neurons)
    assert hits / total >= 0.95  # as many are found as are planted, so that this is F1


def test_above_its_own_null_stand_the_concept_neurons_and_in_the_twin_no_more_than_chance(measured):
    # Where being shown makes no difference, a fourth of all scores are of the noun that is shown: that the five highest
    # are all of that kind has the probability 4 ** -5 < 0.001, so that at most four stand above the highest other one.
    truth = {(i, layer, unit) for i, noun in enumerate(NOUNS) for _, layer, unit in measured.case.key.concepts[noun]}
    assert truth <= reported(measured.ours)
    own = {(i, *at): measured.ours[i, i][at].item() for i in range(len(NOUNS)) for at in np.ndindex(4, 96)}
    assert min(own[one] for one in truth) > 3 * max(score for one, score in own.items() if one not in truth)
    assert len(reported(measured.twins)) <= 4


def at_the_end(case, model, score, inputs, words):
    """Return how every neuron scores for each row's word at the asking position, [row, layer, unit]."""
    tokens, last = torch.tensor([token(case, word) for word in words]), inputs.last()
    if score == "contribution":
        return logit_contribution(model, inputs, tokens).scores
    if score == "causal":
        return causal_score(model, inputs, tokens, case.every, where=last).scores()
    if score == "gradient":
        return grad_x_activation(model, inputs, tokens, where=last).scores
    return integrated_gradients(model, inputs, tokens, where=last, steps=4).scores


@pytest.mark.parametrize("score", SCORES)
def test_at_the_asking_position_it_finds_the_neurons_behind_the_head_and_in_the_twin_only_by_chance(case, score):
    stimuli = [case.made.stimulus({5 + turn: noun}, seed=turn) for noun in CARRIED for turn in (0, 1)]
    inputs, hits = case.model.to_inputs(**case.made.arguments(stimuli)), 0
    for model in (case.model, case.twin):
        found = at_the_end(case, model, score, inputs, [one.answer for one in stimuli]).unflatten(0, (2, 2)).mean(1)
        for noun, scores in zip(CARRIED, found, strict=True):
            best = set(top_k(scores, 2, widths=model.widths))
            if model is case.model:
                assert best == set(case.key.carried[noun])
            else:
                hits += len(best & set(case.key.carried[noun]))
    assert hits <= binom.ppf(0.999, 4, 2 / len(case.every))


@pytest.mark.parametrize("score", ["gradient", *SCORES])
def test_the_inhibitor_has_the_lowest_score_of_all_and_in_the_twin_only_by_chance(case, score):
    stimuli = [case.made.stimulus({3: SILENCED, 11 + turn: VEIL}, seed=turn) for turn in (0, 1)]
    inputs = case.model.to_inputs(**case.made.arguments(stimuli))
    ours, twins = (at_the_end(case, model, score, inputs, [SILENCED] * 2).mean(0) for model in (case.model, case.twin))
    lowest = top_k(ours, 2, widths=case.model.widths, largest=False)
    assert lowest[:1] == case.key.inhibitor
    assert lowest.score[0] < -10 and lowest.score[0] < 5 * lowest.score[1]  # of the 24 logits that it takes away
    at = int(case.key.inhibitor.layer), int(case.key.inhibitor.unit)
    assert twins[at] > 0.1 * lowest.score[0]


def test_integrated_gradients_see_a_pair_of_which_each_is_enough_and_single_ablation_does_not(case):
    stimuli = [case.made.stimulus({4 + turn: EITHER}, seed=turn) for turn in (0, 1)]
    inputs, pair = case.model.to_inputs(**case.made.arguments(stimuli)), case.key.pair
    tokens, media = torch.full((2,), token(case, EITHER)), inputs.mask(case.key.modality)
    alone = causal_score(case.model, inputs, tokens, pair, where=media)
    assert alone.fall.abs().max() < 0.5  # of the 12 logits that they are worth
    way = integrated_gradients(case.model, inputs, tokens, steps=16).scores
    assert pair.layer.tolist() == [0, 0] and set(way[:, 0].mean(0).topk(2).indices.tolist()) == set(pair.unit.tolist())
    assert (way[:, pair.layer, pair.unit].sum(-1) > 5).all()


def test_gradients_integrated_and_ablation_agree_and_activation_knows_nothing_of_the_word(case):
    scores = {name: measure(case, case.model, name, "car")[0] for name in ("integrated gradients", "causal")}
    scores["activation"] = activation_score(case.model, case.inputs)[0]
    found = agreement(scores, k=4, draws=50)
    assert found.overlap[0, 1] == 1 and found.overlap[0, 1] > found.overlap_bar[0, 1]
    assert (found.spearman[0, 1, :3] > found.spearman_bar[0, 1, :3]).all()
