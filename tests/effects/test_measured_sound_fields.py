"""The neurons that an answer depends on fire in the seconds of the event that was asked about."""

from dataclasses import dataclass

import pytest
import torch
from examples import BATCH, batches, interval, random_weights

from mmlens import HookedMLLM, Inputs, Neurons, top_k
from mmlens.analysis import grad_x_activation
from mmlens.hooks import neuron_hook
from mmlens.organisms import pictosound
from mmlens.organisms.pictosound import Clip, Event


@dataclass(frozen=True)
class Asked:
    """A question about the one event of a clip that has some pitch."""

    clip: Clip
    event: Event
    index: int


@pytest.mark.parametrize("name", ["pictosound", "pictosound-frozen"])
def test_top_neurons_fire_in_the_seconds_of_the_event_that_was_asked_about(organisms, report, expectations, name):
    settings, model = expectations["sound_fields"], organisms[name]
    means = shares_of_time(model, name, heard_right(model, questions(settings)), report, expectations)
    assert means["asked event"] >= settings["times_random"][name] * means["random neurons"]
    assert means["asked event"] >= settings["times_another_clip"] * means["another clip's event"]
    assert means["asked event, of several"] >= settings["times_other_event"] * means["other events"]


def test_under_shuffled_weights_it_makes_no_difference_which_event_was_asked_about(report, expectations):
    """Nothing is answered correctly there, so all questions count."""
    settings = expectations["sound_fields"]
    means = shares_of_time(
        random_weights("pictosound"), "pictosound, weights shuffled", questions(settings), report, expectations
    )
    at_most = settings["shuffled_times_other_event_below"]
    assert means["asked event, of several"] < at_most * means["other events"]


def questions(settings) -> list[Asked]:
    clips = pictosound.clips("held_out", n=settings["clips"], seed=settings["seed"])
    return [Asked(clip, q.event, i) for i, clip in enumerate(clips) for q in clip.questions if q.kind == "pitch"]


def shares_of_time(model: HookedMLLM, name: str, asked: list[Asked], report, expectations) -> dict[str, float]:
    """Return the mean share of the top neurons' fields in what was asked about, and in the controls."""
    settings = expectations["sound_fields"]
    shares: dict[str, list[float]] = {"asked event": [], "random neurons": [], "another clip's event": []}
    crowded: dict[str, list[float]] = {"other events": [], "asked event, of several": []}
    for position, example in enumerate(asked):
        inputs, tokens = inputs_of(model, [example])
        found = grad_x_activation(model, inputs, tokens)
        top = top_k(found.scores[0], settings["neurons"], widths=model.widths)
        drawn = top.random_like(seed=settings["seed"] + position)
        field = loudest(model, inputs, found, top | drawn, settings["positions"])
        ours, theirs = field[: len(top)], field[len(top) :]
        on_event = share(inputs, ours, example.event)
        shares["asked event"].append(on_event)
        shares["random neurons"].append(share(inputs, theirs, example.event))
        shares["another clip's event"].append(share(inputs, ours, asked[position - 1].event))
        others = [share(inputs, ours, event) for event in example.clip.events if event is not example.event]
        if others:
            crowded["other events"].append(sum(others) / len(others))
            crowded["asked event, of several"].append(on_event)
    images = [example.index for example in asked]
    several = [example.index for example in asked if len(example.clip.events) > 1]
    means = {}
    for group, rows in ((shares, images), (crowded, several)):
        for key, values in group.items():
            found_interval = interval(values, rows, expectations)
            means[key] = found_interval[0]
            report(f"receptive fields: {name}: share of the field's time, {key}", *found_interval, len(values))
    return means


def inputs_of(model: HookedMLLM, asked: list[Asked]) -> tuple[Inputs, torch.Tensor]:
    """Return the questions with "the high" already answered, and the first token of each noun."""
    texts = [f"which sound is {a.event.pitch} ? answer :" for a in asked]
    inputs = model.to_inputs(texts, audio=[a.clip.audio for a in asked], answer=[f"the {a.event.pitch}" for a in asked])
    return inputs, torch.tensor([model.to_token(a.event.noun) for a in asked])


def heard_right(model: HookedMLLM, asked: list[Asked]) -> list[Asked]:
    kept: list[Asked] = []
    for batch in batches(asked, BATCH):
        inputs, tokens = inputs_of(model, list(batch))
        with torch.no_grad():
            right = model(inputs)[:, -1].argmax(-1) == tokens
        kept += [example for example, ok in zip(batch, right.tolist(), strict=True) if ok]
    return kept


@torch.no_grad()
def loudest(model: HookedMLLM, inputs: Inputs, found, neurons: Neurons, count: int) -> torch.Tensor:
    """Return at which of the sound's positions each neuron fires most, [neuron, count], turned by the sign it acts with."""
    names = {layer: neuron_hook("language", layer, "post") for _, layer, _ in neurons}
    _, cache = model.run_with_cache(inputs, list(names.values()))
    here = inputs.mask("audio")[0]
    values = torch.stack([cache[names[layer]][0, here, unit] for _, layer, unit in neurons])
    sign = torch.stack([found.activation[0, layer, unit] for _, layer, unit in neurons]).sign()
    return (values * sign[:, None]).topk(count, dim=1).indices


def share(inputs: Inputs, field: torch.Tensor, event: Event) -> float:
    """Return how much of the field's time lies between the event's onset and its end."""
    return inputs.grids[0][0].overlap(event.start, event.stop)[field].mean().item()
