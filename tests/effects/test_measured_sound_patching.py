"""The difference between two sounds is where its seconds are, until the last position has it."""

from collections.abc import Sequence

import pytest
import torch
from examples import Patched, inside_and_as_many_others, interval, patched, random_weights, recoveries

from mmlens import HookedMLLM, Inputs
from mmlens.organisms import pictosound
from mmlens.organisms.pictosound import Pair

SITES = ("event", "other audio positions", "last")


@pytest.mark.parametrize("name", ["pictosound", "pictosound-frozen"])
def test_patching_follows_the_event_from_its_seconds_to_the_last_position(organisms, report, expectations, name):
    settings = expectations["sound_patching"]
    found = measured(organisms[name], settings)
    event, others, last = recoveries(name, found.effect, found.usable, SITES, report, expectations).T
    if name == "pictosound":
        assert found.usable.sum() >= settings["usable_pairs"]
        assert event[0] > settings["event_before_layer_0"]
        assert others[0].abs() < settings["other_positions_at_most"]
        assert last[0].abs() < settings["last_before_layer_0_at_most"]
        assert last[-1] > settings["last_before_last"]


def test_shuffled_weights_hardly_ever_tell_two_sounds_apart(report, expectations):
    settings = expectations["sound_patching"]
    usable = measured(random_weights("pictosound"), settings).usable
    found = interval(usable.double().tolist(), list(range(len(usable))), expectations)
    report("patching: pictosound, weights shuffled: pairs with both nouns right", *found, len(usable))
    assert found[0] <= settings["shuffled_usable_pairs_at_most"]


def measured(model: HookedMLLM, settings) -> Patched:
    pairs = pictosound.pairs("held_out", n=settings["pairs"], seed=settings["seed"])
    return patched(model, pairs, questions, sites, settings["seed"])


def questions(model: HookedMLLM, pairs: Sequence[Pair]) -> tuple[Inputs, Inputs, torch.Tensor, torch.Tensor]:
    """Return both runs of "what is ORDER ? answer : a RHYTHM PITCH", and the first token of either noun."""
    events = [pair.clean.events[pair.index] for pair in pairs]
    texts = [f"what is {event.order} ? answer :" for event in events]
    heads = [f"a {event.rhythm} {event.pitch}" for event in events]
    clean, corrupted = (
        model.to_inputs(texts, audio=[half.audio for half in halves], answer=heads)
        for halves in ([p.clean for p in pairs], [p.corrupted for p in pairs])
    )
    right = torch.tensor([model.to_token(event.noun) for event in events])
    wrong = torch.tensor([model.to_token(pair.corrupted.events[pair.index].noun) for pair in pairs])
    return clean, corrupted, right, wrong


def sites(inputs: Inputs, pairs: Sequence[Pair], seed: int) -> dict[str, torch.Tensor]:
    """Return the masks: the positions in the event's seconds, as many others of the sound, and the last position."""
    inside = []
    for row, pair in enumerate(pairs):
        event = pair.clean.events[pair.index]
        inside.append(inputs.grids[row][0].overlap(event.start, event.stop) > 0)
    chosen = inside_and_as_many_others(inputs.mask("audio"), inside, seed)
    return dict(zip(SITES, (*chosen, inputs.last()), strict=True))
