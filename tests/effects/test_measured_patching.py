"""The difference between two pictures travels from the object's image positions to the last position."""

from functools import partial

import numpy as np
import pytest
import torch
from examples import interval

from mmlens import metrics
from mmlens.analysis import activation_patching
from mmlens.organisms import pictoworld

SITES = ("object", "other image positions", "question", "last")


@pytest.mark.parametrize("name", ["pictoworld", "pictoworld-frozen"])
def test_patching_follows_the_object_from_its_image_positions_to_the_last_position(organisms, report, expectations, name):
    settings, model = expectations["patching"], organisms[name]
    pairs = pictoworld.pairs("held_out", n=settings["pairs"], seed=settings["seed"])
    effects, images = [], []
    for start in range(0, len(pairs), 40):
        batch = pairs[start : start + 40]
        clean, corrupted, right, wrong = questions(model, batch)
        with torch.no_grad():
            usable = (model(clean)[:, -1].argmax(-1) == right) & (model(corrupted)[:, -1].argmax(-1) == wrong)
        found = activation_patching(
            model,
            clean=clean,
            corrupted=corrupted,
            metric=partial(metrics.logit_diff, correct=right, wrong=wrong),
            sites=sites(clean, batch, settings["seed"] + start),
        )
        effects.append(found.effect[:, :, usable])
        images += [start + i for i in usable.nonzero()[:, 0].tolist()]
    effect = torch.cat(effects, dim=-1)
    means = torch.zeros(effect.shape[:2])
    for layer in range(effect.shape[0]):
        for site, label in enumerate(SITES):
            found_interval = interval(effect[layer, site].tolist(), images, expectations)
            means[layer, site] = found_interval[0]
            report(f"patching: {name}: recovery before layer {layer}, {label}", *found_interval, len(images))
    on_object, others, _, last = means.T
    if name == "pictoworld":
        assert len(images) >= settings["usable_pairs"]
        assert on_object[:2].min() > settings["object_before_layers_0_1"]
        assert on_object[-1] < settings["object_before_last_at_most"]
        assert others.abs().max() < settings["other_positions_at_most"]
        assert last[:2].abs().max() < settings["last_before_layers_0_1_at_most"]
        assert last[-1] > settings["last_before_last"]


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
