"""The difference between two pictures travels from the object's image positions to the last position."""

import pytest
import torch
from examples import Patched, inside_and_as_many_others, interval, patched, random_weights, recoveries

from mmlens.organisms import pictoworld

SITES = ("object", "other image positions", "question", "last")


@pytest.mark.parametrize("name", ["pictoworld", "pictoworld-frozen"])
def test_patching_follows_the_object_from_its_image_positions_to_the_last_position(organisms, report, expectations, name):
    settings = expectations["patching"]
    found = measured(organisms[name], settings["pairs"], expectations)
    means = recoveries(name, found.effect, found.usable, SITES, report, expectations)
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
    found = measured(random_weights("pictoworld-frozen"), settings["pairs"], expectations)
    trained = measured(organisms["pictoworld-frozen"], settings["pairs"], expectations)
    everything = torch.ones_like(found.usable)
    recoveries("weights shuffled", found.effect, everything, SITES, report, expectations)
    gaps = {"weights shuffled": found, "pictoworld-frozen": trained}
    means = {}
    for name, row in gaps.items():
        means[name] = interval(row.gap.tolist(), list(range(len(row.gap))), expectations)
        report(f"patching: {name}: logit difference, clean - corrupted", *means[name], len(row.gap))
    usable = found.usable.double().mean().item()
    report("patching: weights shuffled: pairs with both nouns right", usable, usable, usable, len(found.usable))
    assert usable <= settings["usable_pairs_at_most"]
    assert means["weights shuffled"][0] <= settings["metric_gap_at_most"] * means["pictoworld-frozen"][0]


def measured(model, n, expectations) -> Patched:
    seed = expectations["patching"]["seed"]
    return patched(model, pictoworld.pairs("held_out", n=n, seed=seed), questions, sites, seed)


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
    image, last, inside = inputs.mask("image"), inputs.last(), []
    for row, pair in enumerate(pairs):
        mask = torch.from_numpy(pair.clean.objects[pair.index].mask | pair.corrupted.objects[pair.index].mask)
        inside.append(inputs.grids[row][0].overlap(mask) > 0)
    on_object, other = inside_and_as_many_others(image, inside, seed)
    return dict(zip(SITES, (on_object, other, inputs.mask("all") & ~image & ~last, last), strict=True))
