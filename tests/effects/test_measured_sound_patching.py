"""The difference between two sounds is where its seconds are, until the last position has it."""

from functools import partial

import numpy as np
import pytest
import torch
from examples import batches, interval, random_weights

from mmlens import HookedMLLM, Inputs, metrics
from mmlens.analysis import activation_patching
from mmlens.organisms import pictosound
from mmlens.organisms.pictosound import Pair

SITES = ("event", "other audio positions", "last")


@pytest.mark.parametrize("name", ["pictosound", "pictosound-frozen"])
def test_patching_follows_the_event_from_its_seconds_to_the_last_position(organisms, report, expectations, name):
    settings = expectations["sound_patching"]
    effect, usable = patched(organisms[name], settings)
    event, others, last = table(name, effect, usable, report, expectations).T
    if name == "pictosound":
        assert usable.sum() >= settings["usable_pairs"]
        assert event[0] > settings["event_before_layer_0"]
        assert others[0].abs() < settings["other_positions_at_most"]
        assert last[0].abs() < settings["last_before_layer_0_at_most"]
        assert last[-1] > settings["last_before_last"]


def test_shuffled_weights_hardly_ever_tell_two_sounds_apart(report, expectations):
    settings = expectations["sound_patching"]
    _, usable = patched(random_weights("pictosound"), settings)
    found = interval(usable.double().tolist(), list(range(len(usable))), expectations)
    report("patching: pictosound, weights shuffled: pairs with both nouns right", *found, len(usable))
    assert found[0] <= settings["shuffled_usable_pairs_at_most"]


def patched(model: HookedMLLM, settings) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the effect [layer, site, pair], and which pairs are answered correctly with both sounds."""
    pairs = pictosound.pairs("held_out", n=settings["pairs"], seed=settings["seed"])
    effects, usable = [], []
    for number, batch in enumerate(batches(pairs, 40)):
        clean, corrupted, right, wrong = questions(model, list(batch))
        with torch.no_grad():
            usable.append((model(clean)[:, -1].argmax(-1) == right) & (model(corrupted)[:, -1].argmax(-1) == wrong))
        found = activation_patching(
            model,
            clean=clean,
            corrupted=corrupted,
            metric=partial(metrics.logit_diff, correct=right, wrong=wrong),
            sites=sites(clean, list(batch), settings["seed"] + number),
        )
        effects.append(found.effect)
    return torch.cat(effects, dim=-1), torch.cat(usable)


def table(name: str, effect: torch.Tensor, which: torch.Tensor, report, expectations) -> torch.Tensor:
    """Return the mean effect [layer, site] over the pairs that count, and put it in the table."""
    effect, kept = effect[:, :, which], which.nonzero()[:, 0].tolist()
    means = torch.zeros(effect.shape[:2])
    for layer in range(effect.shape[0]):
        for site, label in enumerate(SITES):
            found_interval = interval(effect[layer, site].tolist(), kept, expectations)
            means[layer, site] = found_interval[0]
            report(f"patching: {name}: recovery before layer {layer}, {label}", *found_interval, len(kept))
    return means


def questions(model: HookedMLLM, pairs: list[Pair]) -> tuple[Inputs, Inputs, torch.Tensor, torch.Tensor]:
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


def sites(inputs: Inputs, pairs: list[Pair], seed: int) -> dict[str, torch.Tensor]:
    """Return the masks: the positions in the event's seconds, as many others of the sound, and the last position."""
    generator = np.random.default_rng(seed)
    audio = inputs.mask("audio")
    in_event, other = torch.zeros_like(audio), torch.zeros_like(audio)
    for row, pair in enumerate(pairs):
        event = pair.clean.events[pair.index]
        inside = inputs.grids[row][0].overlap(event.start, event.stop) > 0
        positions = audio[row].nonzero()[:, 0]
        outside = positions[~inside]
        drawn = generator.choice(len(outside), size=min(int(inside.sum()), len(outside)), replace=False)
        in_event[row, positions[inside]] = True
        other[row, outside[torch.from_numpy(drawn)]] = True
    return dict(zip(SITES, (in_event, other, inputs.last()), strict=True))
