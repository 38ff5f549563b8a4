"""The top neurons fire where the object is."""

import pytest
import torch
from examples import color_examples, correct_ones, inputs_of, interval, random_weights

from mmlens import top_k
from mmlens.analysis import grad_x_activation, receptive_field
from mmlens.organisms import pictoworld


@pytest.mark.parametrize("name", ["pictoworld", "pictoworld-frozen"])
def test_receptive_fields_of_top_neurons_lie_on_the_queried_object(organisms, report, expectations, name):
    settings, model = expectations["fields"], organisms[name]
    scenes = pictoworld.scenes("held_out", n=settings["scenes"], seed=settings["seed"])
    means = overlaps(model, name, correct_ones(model, color_examples(scenes)), report, expectations)
    assert means["queried object"] >= settings["times_random"] * means["random neurons"]
    assert means["top, two objects"] >= settings["times_other_object"] * means["other objects"]


def test_receptive_fields_under_shuffled_weights_miss_that_bar(report, expectations):
    """Nothing is answered correctly there, so all examples count."""
    settings, model = expectations["fields"], random_weights("pictoworld")
    scenes = pictoworld.scenes("held_out", n=expectations["shuffled_weights"]["scenes"], seed=settings["seed"])
    means = overlaps(model, "weights shuffled", color_examples(scenes), report, expectations)
    assert means["queried object"] < settings["times_random"] * means["random neurons"]


def overlaps(model, name, examples, report, expectations):
    """Return the mean overlap of the top neurons' receptive fields with what is asked about, and of the controls'."""
    settings = expectations["fields"]
    overlap: dict[str, list[float]] = {
        "queried object": [],
        "random neurons": [],
        "other objects": [],
        "top, two objects": [],
    }
    images: list[int] = []
    crowded: list[int] = []
    for example in examples:
        inputs, tokens = inputs_of(model, [example])
        found = grad_x_activation(model, inputs, tokens)
        top = top_k(found.scores[0], settings["neurons"], widths=model.widths)
        drawn = top.random_like(seed=settings["seed"] + example.image)
        field = fields(model, inputs, found, top | drawn)
        target = torch.from_numpy(example.question.object.mask)
        ours, theirs = field.iou(target, settings["quantile"]).split(len(top))
        on_target = ours.mean().item()
        overlap["queried object"].append(on_target)
        overlap["random neurons"].append(theirs.mean().item())
        images.append(example.image)
        others = [torch.from_numpy(o.mask) for o in example.scene.objects if o.noun != example.noun]
        if others:
            ious = [field.iou(other, settings["quantile"])[: len(top)].mean().item() for other in others]
            overlap["other objects"].append(sum(ious) / len(ious))
            overlap["top, two objects"].append(on_target)
            crowded.append(example.image)
    means = {}
    for key, values in overlap.items():
        found_interval = interval(values, images if len(values) == len(images) else crowded, expectations)
        means[key] = found_interval[0]
        report(f"receptive fields: {name}: overlap (IoU), {key}", *found_interval, len(values))
    return means


def fields(model, inputs, found, neurons):
    """Return the receptive fields, each neuron turned by the sign it acts with where its score is largest."""
    sign = torch.stack([found.activation[0, layer, unit] for _, layer, unit in neurons])
    return receptive_field(model, inputs, neurons, sign=sign)
