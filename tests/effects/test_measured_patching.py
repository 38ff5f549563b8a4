"""The difference between two pictures travels from the object's image positions to the last position."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from examples import interval, random_weights

from mmlens import metrics
from mmlens.analysis import activation_patching
from mmlens.organisms import pictoworld

SITES = ("object", "other image positions", "question", "last")


@pytest.mark.parametrize("name", ["pictoworld", "pictoworld-frozen"])
def test_patching_follows_the_object_from_its_image_positions_to_the_last_position(organisms, report, expectations, name):
    settings = expectations["patching"]
    found = patched(organisms[name], settings["pairs"], expectations)
    means = table(name, found, found.usable, report, expectations)
    on_object, others, _, last = means.T
    if name == "pictoworld":
        assert found.usable.sum() >= settings["usable_pairs"]
        assert on_object[:2].min() > settings["object_before_layers_0_1"]
        assert on_object[-1] < settings["object_before_last_at_most"]
        assert others.abs().max() < settings["other_positions_at_most"]
        assert last[:2].abs().max() < settings["last_before_layers_0_1_at_most"]
        assert last[-1] > settings["last_before_last"]


def test_shuffled_weights_carry_the_difference_between_two_pictures_but_hardly_into_the_answer(
    organisms, report, expectations
):
    settings = expectations["shuffled_weights"]
    found = patched(random_weights("pictoworld-frozen"), settings["pairs"], expectations)
    trained = patched(organisms["pictoworld-frozen"], settings["pairs"], expectations)
    everything = torch.ones_like(found.usable)
    table("weights shuffled", found, everything, report, expectations)
    gaps = {"weights shuffled": found, "pictoworld-frozen": trained}
    means = {}
    for name, row in gaps.items():
        means[name] = interval(row.gap.tolist(), list(range(len(row.gap))), expectations)
        report(f"patching: {name}: logit difference, clean - corrupted", *means[name], len(row.gap))
    usable = found.usable.double().mean().item()
    report("patching: weights shuffled: pairs with both nouns right", usable, usable, usable, len(found.usable))
    assert usable <= settings["usable_pairs_at_most"]
    assert means["weights shuffled"][0] <= settings["metric_gap_at_most"] * means["pictoworld-frozen"][0]


@dataclass(frozen=True)
class Patched:
    """The effect [layer, site, pair], which pairs are answered correctly in both pictures, and the metric's gap."""

    effect: torch.Tensor
    usable: torch.Tensor
    gap: torch.Tensor


def patched(model, n, expectations) -> Patched:
    settings = expectations["patching"]
    pairs = pictoworld.pairs("held_out", n=n, seed=settings["seed"])
    effects, usable, gaps = [], [], []
    for start in range(0, len(pairs), 40):
        batch = pairs[start : start + 40]
        clean, corrupted, right, wrong = questions(model, batch)
        with torch.no_grad():
            usable.append((model(clean)[:, -1].argmax(-1) == right) & (model(corrupted)[:, -1].argmax(-1) == wrong))
        found = activation_patching(
            model,
            clean=clean,
            corrupted=corrupted,
            metric=partial(metrics.logit_diff, correct=right, wrong=wrong),
            sites=sites(clean, batch, settings["seed"] + start),
        )
        effects.append(found.effect)
        gaps.append(found.clean_metric - found.corrupted_metric)
    return Patched(torch.cat(effects, dim=-1), torch.cat(usable), torch.cat(gaps))


def table(name, found: Patched, which, report, expectations):
    """Return the mean effect [layer, site] over the pairs that count, and put it in the table."""
    effect, images = found.effect[:, :, which], which.nonzero()[:, 0].tolist()
    means = torch.zeros(effect.shape[:2])
    for layer in range(effect.shape[0]):
        for site, label in enumerate(SITES):
            found_interval = interval(effect[layer, site].tolist(), images, expectations)
            means[layer, site] = found_interval[0]
            report(f"patching: {name}: recovery before layer {layer}, {label}", *found_interval, len(images))
    return means


def questions(model, pairs):
    """Return both runs of "what is at the PLACE ? answer : a COLOUR", and the first token of either noun."""
    objects = [pair.clean.objects[pair.index] for pair in pairs]
    texts = [f"what is at the {o.place} ? answer :" for o in objects]
    heads = [f"a {o.color}" for o in objects]
    clean, corrupted = (
        model.to_inputs(texts, images=[half.image for half in halves], answer=heads)
        for halves in ([p.clean for p in pairs], [p.corrupted for p in pairs])
    )
    right = torch.tensor([model.to_token(o.noun) for o in objects])
    wrong = torch.tensor([model.to_token(pair.corrupted.objects[pair.index].noun) for pair in pairs])
    return clean, corrupted, right, wrong


def sites(inputs, pairs, seed):
    """Return the masks: the object (in either picture), as many other image positions, the question, the last position."""
    generator = np.random.default_rng(seed)
    image = inputs.mask("image")
    on_object, other = torch.zeros_like(image), torch.zeros_like(image)
    for row, pair in enumerate(pairs):
        mask = torch.from_numpy(pair.clean.objects[pair.index].mask | pair.corrupted.objects[pair.index].mask)
        inside = inputs.grids[row][0].overlap(mask) > 0
        positions = image[row].nonzero()[:, 0]
        outside = positions[~inside]
        drawn = generator.choice(len(outside), size=min(int(inside.sum()), len(outside)), replace=False)
        on_object[row, positions[inside]] = True
        other[row, outside[torch.from_numpy(drawn)]] = True
    last = inputs.last()
    return dict(zip(SITES, (on_object, other, inputs.mask("all") & ~image & ~last, last), strict=True))
