"""Whether projected pictures and sounds are words already: colours mostly, nouns in part, a domain's nouns hardly."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from examples import MEDIUM, NAMES, SHUFFLED, covered, interval, media_of, model_of, scenes_of, things_of, world_of

from mmlens.analysis import nearest_tokens
from mmlens.organisms import pictoworld

KINDS = {"pictoworld": ("color", "noun"), "pictosound": ("pitch", "rhythm", "noun")}
PICTOWORLD = [name for name in NAMES if world_of(name) == "pictoworld"]


@dataclass(frozen=True)
class Looked:
    """The rows of the table (mean, low, high, n) by label."""

    rows: dict[str, tuple[float, float, float, int]]

    def __getitem__(self, label: str) -> float:
        return self.rows[label][0]

    def low(self, label: str) -> float:
        return self.rows[label][1]


@pytest.fixture(scope="module")
def measure(organisms, expectations):
    """Return a function that measures a model once: its name -> what was found."""
    return cache(lambda name: looked_up(name, model_of(name, organisms), expectations))


@pytest.fixture
def found_for(measure, report):
    """Return a function from a model's name to what was found, which is then in the table."""

    def found(name: str) -> Looked:
        result = measure(name)
        for label, row in result.rows.items():
            report(f"nearest tokens: {name}: {label}", *row)
        return result

    return found


@pytest.mark.parametrize("name", NAMES)
def test_positions_on_a_thing_have_its_words_among_their_nearest_and_not_those_of_other_things(
    found_for, expectations, name
):
    found, settings = found_for(name), expectations["nearest_tokens"]
    for kind in KINDS[world_of(name)]:
        assert found[f"{kind}, own"] >= settings["own_word"][kind]
        assert found[f"{kind}, own"] >= settings["times_random"] * found[f"{kind}, random directions"]
        assert found[f"{kind}, off all things"] <= settings["off_at_most"]
        assert found.low(f"{kind}, own - another thing's") > 0
        assert found[f"{kind}, own - another thing's"] >= settings["own_less_another"][kind]


@pytest.mark.parametrize("name", PICTOWORLD)
def test_colours_are_projected_as_words_and_nouns_less_so(found_for, expectations, name):
    found, settings = found_for(name), expectations["nearest_tokens"]
    assert found["color, own, as the nearest"] >= settings["nearest_color"]
    assert found["noun, own, as the nearest"] <= settings["nearest_noun_at_most"]
    assert found.low("color - noun") > 0


@pytest.mark.parametrize("name", PICTOWORLD)
def test_a_noun_that_only_the_domain_decides_is_projected_hardly_more_than_the_other_domains_nouns(
    found_for, expectations, name
):
    found, settings = found_for(name), expectations["nearest_tokens"]
    difference = found["noun that its domain decides, own - other domains'"]
    assert abs(difference) <= settings["renamed_own_less_other_domains_at_most"]


@pytest.mark.parametrize("name", SHUFFLED)
def test_under_shuffled_weights_a_things_word_is_as_near_as_another_things(found_for, expectations, name):
    found, settings = found_for(name), expectations["nearest_tokens"]
    for kind in KINDS[world_of(name)]:
        assert abs(found[f"{kind}, own - another thing's"]) <= settings["shuffled_own_less_another_at_most"]


def looked_up(name, model, expectations) -> Looked:
    settings, world = expectations["nearest_tokens"], world_of(name)
    scenes = scenes_of(name, settings["examples"], settings["seed"][world])
    inputs = model.to_inputs([pictoworld.CAPTION_PROMPT] * len(scenes), **media_of(scenes))
    medium = inputs.mask(MEDIUM[world])
    found = nearest_tokens(model, inputs, k=settings["k"], where=medium, seed=settings["seed"][world])
    tokens = torch.full((*medium.shape, settings["k"]), -1)
    tokens[medium] = found.tokens
    chance = chances(model, settings, settings["seed"][world])
    values: dict[str, list[float]] = defaultdict(list)
    images: dict[str, list[int]] = defaultdict(list)
    for row, scene in enumerate(scenes):
        things = things_of(scene)
        on = [covered(inputs, row, thing) >= settings["on"] for thing in things]
        off = medium[row] & torch.stack([covered(inputs, row, thing) == 0 for thing in things]).all(0)
        for here, thing in zip(on, things, strict=True):
            if not here.any():
                continue
            for label, value in rates(model, tokens[row], here, off, thing, things, KINDS[world], chance).items():
                values[label].append(value)
                images[label].append(row)
    rows = {label: (*interval(v, images[label], expectations), len(v)) for label, v in values.items()}
    best = torch.zeros(medium.shape)
    best[medium] = found.cosines[:, 0]
    cosines = (best.sum(1) / medium.sum(1)).tolist()
    control = found.controls["norm"].mean().item()
    rows["cosine of the nearest"] = (*interval(cosines, range(len(cosines)), expectations), len(cosines))
    rows["cosine of the nearest, random directions"] = (control, control, control, len(found.controls["norm"]))
    return Looked(rows)


def chances(model, settings, seed: int) -> torch.Tensor:
    """Return how often each token is among the nearest of a random direction (a length makes no difference to a cosine)."""
    directions = torch.randn(settings["random_vectors"], model.cfg.d_model, generator=torch.Generator().manual_seed(seed))
    tokens = nearest_tokens(model, directions, k=settings["k"]).tokens
    return torch.bincount(tokens.flatten(), minlength=model.cfg.d_vocab) / len(directions)


def rates(model, tokens, on, off, thing, things, kinds, chance) -> dict[str, float]:
    """Return by label how many of the positions `on` a thing (or off them all) have a word among their nearest `tokens`."""

    def rate(word: str, where: torch.Tensor) -> float:
        return (tokens[where] == model.to_token(word)).any(-1).double().mean().item()

    found: dict[str, float] = {}
    for kind in kinds:
        word = getattr(thing, kind)
        found[f"{kind}, own"] = rate(word, on)
        found[f"{kind}, own, as the nearest"] = (tokens[on][:, 0] == model.to_token(word)).double().mean().item()
        found[f"{kind}, random directions"] = chance[model.to_token(word)].item()
        if off.any():
            found[f"{kind}, off all things"] = rate(word, off)
        others = {getattr(other, kind) for other in things} - {word}
        if others:
            found[f"{kind}, another thing's"] = sum(rate(other, on) for other in others) / len(others)
            found[f"{kind}, own - another thing's"] = found[f"{kind}, own"] - found[f"{kind}, another thing's"]
    if "color" in kinds:
        found["color - noun"] = found["color, own"] - found["noun, own"]
        nouns = next((names for names in map(list, by_domain()) if thing.noun in names), None)
        if nouns is not None:
            other_nouns = [rate(noun, on) for noun in nouns if noun != thing.noun]
            found["noun that its domain decides, own"] = found["noun, own"]
            found["noun that its domain decides, other domains'"] = sum(other_nouns) / len(other_nouns)
            found["noun that its domain decides, own - other domains'"] = (
                found["noun, own"] - found["noun that its domain decides, other domains'"]
            )
    return found


def by_domain():
    """Return the nouns of each silhouette that every domain calls differently."""
    return [names.values() for names in pictoworld.RENAMED.values()]
