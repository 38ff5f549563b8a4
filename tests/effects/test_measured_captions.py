"""Captions give a noun less probability, and some leave it out, without neurons that other captions chose."""

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from examples import batches, interval
from torch.nn.functional import pad

from mmlens import hooks, top_k
from mmlens.analysis import ablation_conditions, ablation_curve, decode, grad_x_activation, interpretable, logit_contribution
from mmlens.organisms import pictoworld
from mmlens.targets import nouns

NAMES = ("pictoworld", "pictoworld-frozen")
ALL, READABLE, RANDOM, GRADIENT, GRADIENT_RANDOM = (
    "contribution, all positions",
    "contribution, only those that read as words, all positions",
    "random, matched by layer, all positions",
    "gradient x activation, image positions",
    "random, matched by layer, image positions",
)
P, KEPT, OTHERS = "relative change of P(noun)", "captions that keep the noun", "other nouns of the captions that stay"
LONGEST = 24  # tokens of a caption


@pytest.mark.parametrize("name", NAMES)
def test_captions_give_a_noun_less_probability_without_its_neurons(organisms, report, expectations, name):
    settings, shown = expectations["captions"], {}
    scenes = pictoworld.scenes("held_out", n=settings["scenes"], seed=settings["seed"])
    found = captions(organisms[name], scenes, settings)
    for (what, which), pairs in found.items():
        values, images = zip(*pairs, strict=True)
        shown[what, which] = interval(values, images, expectations)
        report(f"captions: {name}: {what}, {which}", *shown[what, which], len(values))
    for own, random, bar in ((ALL, RANDOM, "contribution_at_most"), (GRADIENT, GRADIENT_RANDOM, "gradient_at_most")):
        both = zip(found[P, own], found[P, random], strict=True)
        values, images = zip(*((a - b, image) for (a, image), (b, _) in both), strict=True)
        difference = interval(values, images, expectations)
        report(f"captions: {name}: {P}, {own}, own - random", *difference, len(values))
        assert len(values) >= settings["scored_at_least"]
        assert shown[P, own][0] <= settings[bar][name]
        assert abs(shown[P, random][0]) <= settings["random_within"]
        assert difference[2] < 0
    if name == "pictoworld-frozen":
        assert shown[KEPT, GRADIENT][0] <= settings["gradient_keeps_the_noun_at_most"]


def captioned(model, scenes):
    """Return the caption that the model writes for each scene: its tokens, padded, and its text."""
    tokens, texts = [], []
    for batch in batches(scenes):
        inputs = model.to_inputs([pictoworld.CAPTION_PROMPT] * len(batch), images=[scene.image for scene in batch])
        out = model.generate(inputs, max_new_tokens=LONGEST)
        new = out.tokens[:, inputs.tokens.shape[1] :]
        tokens += pad(new, (0, LONGEST - new.shape[1]), value=model.tokenizer.pad_token_id)
        texts += out.text
    return tokens, texts


def mentioned(model, scenes, tokens, noun, chosen):
    """Return the captions of chosen scenes as inputs, and the first token of a noun in each."""
    inputs = model.to_inputs([pictoworld.CAPTION_PROMPT] * len(chosen), images=[scenes[i].image for i in chosen])
    whole, found = nouns(model, inputs, torch.stack([tokens[i] for i in chosen]))
    first, seen, kept = found.first(), set(), []
    for index, (row, word) in enumerate(zip(first.row.tolist(), first.word.tolist(), strict=True)):
        if first.words[word] == noun and row not in seen:
            seen.add(row)
            kept.append(index)
    assert len(kept) == len(chosen)
    return whole, replace(first, **{key: getattr(first, key)[kept] for key in ("row", "position", "token", "word")})


def captions(model, scenes, settings):
    """Return what becomes of nouns in captions without neurons that other captions chose: (value, scene) by row's name."""
    tokens, texts = captioned(model, scenes)
    k, found = settings["ablated"], defaultdict(list)
    for noun in pictoworld.NOUNS:
        there = [i for i, scene in enumerate(scenes) if noun in {o.noun for o in scene.objects} and noun in texts[i].split()]
        chosen_on, scored = ([i for i in there if i % 2 == half] for half in (0, 1))
        if min(len(chosen_on), len(scored)) < settings["captions_per_half"]:
            continue
        ranking, sign = contributing(model, *mentioned(model, scenes, tokens, noun, chosen_on), settings["ranked"])
        gradient = attributed(model, scenes, texts, noun, chosen_on, k)
        whole, targets = mentioned(model, scenes, tokens, noun, scored)
        how = dict(ks=(0, k), draws=settings["random_draws"], seed=settings["seed"])
        readable = interpretable(decode(model, ranking, sign=sign))
        both = ablation_conditions(model, whole, targets, ranking, readable, where=whole.mask("all"), **how)
        curve = ablation_curve(model, whole, targets, gradient, where=whole.mask("image"), **how)
        changes = {
            ALL: both.all.change()[1],
            READABLE: both.interpretable.change()[1],
            RANDOM: both.all.random_change()[:, 1].mean(0),
            GRADIENT: curve.change()[1],
            GRADIENT_RANDOM: curve.random_change()[:, 1].mean(0),
        }
        rows = [scored[row] for row in targets.row.tolist()]
        for label, change in changes.items():
            found[P, label] += zip(change.tolist(), rows, strict=True)
        inputs = model.to_inputs([pictoworld.CAPTION_PROMPT] * len(scored), images=[scenes[i].image for i in scored])
        sets = {
            ALL: hooks.ablate(ranking[:k]),
            RANDOM: hooks.ablate(ranking[:k].random_like(seed=settings["seed"])),
            GRADIENT: hooks.ablate(gradient, where=inputs.mask("image")),
        }
        for label, off in sets.items():
            for i, text in zip(scored, model.generate(inputs, max_new_tokens=LONGEST, fwd_hooks=off).text, strict=True):
                found[KEPT, label].append((float(noun in text.split()), i))
                others = [o.noun for o in scenes[i].objects if o.noun != noun and o.noun in texts[i].split()]
                found[OTHERS, label] += [(float(other in text.split()), i) for other in others]
    return found


def contributing(model, whole, targets, k):
    """Return the k neurons with the highest mean contribution to a noun of captions, and their mean activation there."""
    found = logit_contribution(model, whole, targets)
    ranking = top_k(found.scores.mean(0), k, widths=model.widths)
    return ranking, found.activation.mean(0)[ranking.layer, ranking.unit]


def attributed(model, scenes, texts, noun, chosen, k):
    """Return the k neurons with the highest mean gradient x activation at image positions, for a noun of captions."""
    inputs = model.to_inputs(
        [pictoworld.CAPTION_PROMPT] * len(chosen),
        images=[scenes[i].image for i in chosen],
        answer=[texts[i].partition(f" {noun}")[0] for i in chosen],
    )
    tokens = torch.full((len(chosen),), model.to_token(noun))
    return top_k(grad_x_activation(model, inputs, tokens).scores.mean(0), k, widths=model.widths)
