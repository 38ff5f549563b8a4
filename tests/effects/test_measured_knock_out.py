"""What the last position reads and in which layers: the question first, then the place of what was asked about."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cache, partial

import pytest
import torch
from examples import (
    MEDIUM,
    NAMES,
    SHUFFLED,
    Example,
    batches,
    correct_ones,
    covered,
    examples_of,
    inputs_of,
    inside_and_as_many_others,
    interval,
    model_of,
    things_of,
    world_of,
)

from mmlens import metrics
from mmlens.analysis import knock_out_effect
from mmlens.organisms import pictosound, pictoworld

Blocked = tuple[str, str, tuple[int, int]]  # which queries, from which keys, in which layers (first, behind the last)


@dataclass(frozen=True)
class Found:
    """The mean change of the logit difference by what is blocked, that of the log-probability, and the clean difference."""

    change: dict[Blocked, float]
    nats: dict[Blocked, float]
    clean: float
    depth: int

    def lost(self, queries: str, keys: str, layers: tuple[int, int] | None = None) -> float:
        """Return the share of the clean difference that is lost, in all layers unless said."""
        return -self.change[queries, keys, layers or (0, self.depth)] / self.clean

    def windows(self, queries: str, keys: str) -> list[float]:
        """Return the shares that are lost by window of layers, in order."""
        layers = sorted(at for one, other, at in self.change if (one, other) == (queries, keys) and at != (0, self.depth))
        return [self.lost(queries, keys, at) for at in layers]


@pytest.fixture(scope="module")
def measure(organisms, expectations):
    """Return a function that measures a model once: its name -> what was found, and rows of the table."""
    return cache(lambda name: measured(name, model_of(name, organisms), expectations))


@pytest.fixture
def found_for(measure, report):
    """Return a function from a model's name to what was found, which is then in the table."""

    def found(name: str) -> Found:
        result, rows = measure(name)
        for label, row in rows.items():
            report(f"knock-out: {name}: {label}", *row)
        return result

    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_last_position_reads_the_medium_itself_and_not_by_way_of_the_question(found_for, expectations, name):
    found, settings = found_for(name), expectations["knock_out"]
    assert found.lost("last", "medium") >= settings["medium_in_all_layers"]
    assert found.nats["last", "medium", (0, found.depth)] <= -settings["medium_nats_at_least"]
    assert abs(found.lost("question", "medium")) <= settings["question_reads_medium_at_most"]
    control = [found.lost("last", "other positions"), *found.windows("last", "other positions")]
    assert max(map(abs, control)) <= settings["other_positions_at_most"]


@pytest.mark.parametrize("name", NAMES)
def test_the_last_position_reads_the_question_in_the_first_layers_and_the_medium_in_those_behind(
    found_for, expectations, name
):
    found, settings = found_for(name), expectations["knock_out"]
    first, *later = found.windows("last", "question")
    assert first >= settings["question_in_first_window"][world_of(name)]
    assert max(map(abs, later)) <= settings["question_in_later_windows_at_most"]
    medium = found.windows("last", "medium")
    assert medium[1] >= settings["medium_in_second_window"]
    assert abs(medium[-1]) <= settings["medium_in_last_window_at_most"]


@pytest.mark.parametrize("name", [name for name in NAMES if world_of(name) == "pictoworld"])
def test_an_object_is_read_at_its_own_image_positions(found_for, expectations, name):
    found, settings = found_for(name), expectations["knock_out"]
    assert found.lost("last", "asked") >= settings["asked_object_in_all_layers"]
    assert found.lost("all others", "asked") >= settings["asked_for_all_others"]


@pytest.mark.parametrize("name", [name for name in NAMES if world_of(name) == "pictosound"])
def test_an_event_is_read_at_its_own_positions_or_from_a_copy_at_those_behind_it(found_for, expectations, name):
    found, settings = found_for(name), expectations["knock_out"]
    assert found.lost("last", "asked") <= settings["asked_event_in_all_layers_at_most"]
    assert abs(found.lost("last", "behind")) <= settings["behind_the_event_at_most"]
    assert found.lost("last", "asked and behind") >= settings["asked_event_and_behind"]
    assert found.lost("all others", "asked") >= settings["asked_for_all_others"]


@pytest.mark.parametrize("name", SHUFFLED)
def test_under_shuffled_weights_no_attention_carries_an_answer(found_for, expectations, name):
    """Nothing is answered correctly there, so any pair counts."""
    assert max(map(abs, found_for(name).change.values())) <= expectations["knock_out"]["shuffled_logits_at_most"]


def measured(name, model, expectations) -> tuple[Found, dict[str, tuple]]:
    settings, depth = expectations["knock_out"], model.cfg.n_layers
    examples, others = asked_halves(name, settings)
    examples = correct_ones(model, examples) if name in NAMES else examples[: settings["usable_pairs"]]
    assert len(examples) >= settings["usable_pairs"]
    change: dict[Blocked, list[float]] = defaultdict(list)
    nats: dict[Blocked, list[float]] = defaultdict(list)
    clean: list[float] = []
    for start, batch in enumerate(batches(examples)):
        inputs, right = inputs_of(model, batch)
        wrong = torch.tensor([model.to_token(others[example.image]) for example in batch])
        difference, said = partial(metrics.logit_diff, correct=right, wrong=wrong), partial(metrics.log_prob, token=right)
        masks = masks_of(inputs, batch, MEDIUM[world_of(name)], settings["seed"][world_of(name)] + start)
        short, main = settings["window"], ("medium", "asked", "other positions")
        for queries, keys, window, metric, kept in (
            ("last", (*main, "question"), short, difference, change),
            ("last", (*main, "behind", "asked and behind", "question"), depth, difference, change),
            ("last", main, depth, said, nats),
            ("question", ("medium",), depth, difference, change),
            ("all others", ("asked",), depth, difference, change),
        ):
            asking, sources = masks[queries], {key: masks[key] for key in keys}
            effect = knock_out_effect(model, inputs, metric, sources=sources, queries=asking, window=window)
            for at, layers in enumerate(effect.windows):
                for source, key in enumerate(effect.sources):
                    kept[queries, key, layers] += effect.change[at, source].tolist()
            if (queries, window, metric) == ("last", depth, difference):
                clean += effect.clean_metric.tolist()
    images = [example.image for example in examples]
    rows = {"logit difference, clean": (*interval(clean, images, expectations), len(images))}
    means = []
    for kind, found in (("logit difference", change), ("log-probability", nats)):
        means.append({})
        for (queries, keys, (first, behind)), values in found.items():
            row = (*interval(values, images, expectations), len(images))
            rows[f"{kind}, {queries} <- {keys}, layers {first} to {behind - 1}"] = row
            means[-1][queries, keys, (first, behind)] = row[0]
    return Found(*means, rows["logit difference, clean"][0], depth), rows


def asked_halves(name, settings) -> tuple[list[Example], dict[int, str]]:
    """Return the questions about what differs in the clean half of each pair, and the other half's noun by pair."""
    world = world_of(name)
    pairs = (pictosound if world == "pictosound" else pictoworld).pairs(
        "held_out", n=settings["pairs"][world], seed=settings["seed"][world]
    )
    changed = [things_of(pair.clean)[pair.index] for pair in pairs]
    asked = [e for e in examples_of(name, [pair.clean for pair in pairs]) if e.asked is changed[e.image]]
    return asked, {i: things_of(pair.corrupted)[pair.index].noun for i, pair in enumerate(pairs)}


def masks_of(inputs, examples, medium: str, seed: int) -> dict[str, torch.Tensor]:
    """Return the masks: queries and keys by name. What lies "behind" is the medium after the last position of the thing."""
    everything, last = inputs.mask(medium), inputs.last()
    inside = [covered(inputs, row, example.asked)[everything[row]] > 0 for row, example in enumerate(examples)]
    asked, others = inside_and_as_many_others(everything, inside, seed)
    behind = everything & (asked.flip(1).cumsum(1).flip(1) == 0)
    return {
        "last": last,
        "question": inputs.mask("text") & ~last,
        "all others": inputs.mask("all") & ~asked,
        "medium": everything,
        "asked": asked,
        "other positions": others,
        "behind": behind,
        "asked and behind": asked | behind,
    }
