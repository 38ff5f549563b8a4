"""The neurons that contribute most to a noun's logit read as that noun; by gradient, others do, in other layers.

A contribution holds the product of what a neuron writes and the noun's own column of W_U, so that its neurons read as the
noun by construction in part. The control is circular in the same way: activations of another picture, and the same column.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from examples import batches, color_examples, correct_ones, inputs_of, interval, random_weights

from mmlens import Neurons, top_k
from mmlens.analysis import agreement, decode, grad_x_activation, logit_contribution
from mmlens.organisms import pictoworld

NAMES = ("pictoworld", "pictoworld-frozen", "weights shuffled")
OWN, UNSIGNED, RANDOM, ANOTHER, CIRCULAR = READ = (
    "signed",
    "without the sign",
    "random, matched by layer",
    "another picture's noun",
    "another picture's activations (circular)",
)
IMAGE, ALL, LAST = PLACES = ("image positions", "all positions", "last position")
CONTRIBUTION = "contribution"
WORDS = {
    "overlap": "overlap of the top 25 by contribution with gradient x activation",
    "overlap_null": "that overlap, shuffled within layers (mean)",
    "overlap_bar": "that overlap, shuffled within layers (95 % of draws below)",
    "rank": "Spearman's rho of contribution with gradient x activation, mean of layers",
    "rank_bar": "that rho's size, shuffled within layers (95 % of draws below)",
}


@dataclass
class Read:
    """For each way, whether the noun is among the words of any of an example's neurons, and of which share of them."""

    any: dict[str, list[float]]
    share: dict[str, list[float]]
    images: list[int]


@dataclass
class Compared:
    """Agreement by place and measure, and each score's shares of top neurons by layer [example, layer], by example."""

    values: dict[tuple[str, str], list[float]]
    depth: dict[str, torch.Tensor]
    images: list[int]


@pytest.fixture(scope="module")
def chosen(organisms, expectations):
    """Return a model and its examples, answered right but where weights are shuffled."""

    @cache
    def of(name):
        if name not in organisms:
            return random_weights("pictoworld-frozen"), asked(expectations)
        return organisms[name], correct_ones(organisms[name], asked(expectations))

    return of


@pytest.fixture(scope="module")
def reading(chosen, expectations):
    """Return how often each way of reading finds the noun, example by example, measured once."""
    return cache(lambda name: read(*chosen(name), expectations["contribution"]))


@pytest.fixture(scope="module")
def comparing(chosen, expectations):
    """Return how far gradient x activation agrees with the contribution, and how deep both lie, measured once."""
    return cache(lambda name: compared(*chosen(name), expectations["contribution"]))


@pytest.mark.parametrize("name", NAMES)
def test_how_often_top_neurons_read_as_the_noun_is_reported(reading, report, expectations, name):
    found = reading(name)
    for way in READ:
        for what, values in (
            ("share of the 5 top neurons with the noun among their words", found.share),
            ("noun among the words of any of the 5", found.any),
        ):
            shown = interval(values[way], found.images, expectations)
            report(f"contribution: {name}: {what}, {way}", *shown, len(found.images))
            assert 0 < shown[0] <= 1
    for way in READ[1:]:
        report(f"contribution: {name}: share, signed - {way}", *above(found, way, expectations), len(found.images))


def test_the_top_neurons_read_as_the_noun(reading, expectations):
    found, settings = reading("pictoworld"), expectations["contribution"]
    own, random = (interval(found.share[way], found.images, expectations)[0] for way in (OWN, RANDOM))
    assert own >= settings["share_with_the_noun"]
    assert own >= settings["times_random"] * random


def test_they_read_as_the_noun_by_more_than_construction(reading, expectations):
    """The control holds the noun's column as well; in shuffled weights it is all there is."""
    settings = expectations["contribution"]
    for name in NAMES[:2]:
        mean, low, _ = above(reading(name), CIRCULAR, expectations)
        assert mean >= settings["above_the_circular_control"] and low > 0
    shuffled, *_ = above(reading(NAMES[2]), CIRCULAR, expectations)
    assert abs(shuffled) <= settings["shuffled_above_the_circular_control_at_most"]


@pytest.mark.parametrize("name", NAMES)
def test_contribution_agrees_with_the_gradient_where_the_noun_is_predicted_and_not_on_the_image(
    comparing, report, expectations, name
):
    found, settings, shown = comparing(name), expectations["contribution"], {}
    for place in PLACES:
        for what, words in WORDS.items():
            shown[place, what] = interval(found.values[place, what], found.images, expectations)
            report(f"agreement: {name}: {words}, {place}", *shown[place, what], len(found.images))
    if name == NAMES[2]:
        assert shown[LAST, "overlap"][0] >= settings["shuffled_last_overlap"]
        return
    assert shown[IMAGE, "overlap"][0] <= settings["image_overlap_at_most"]
    assert abs(shown[IMAGE, "rank"][0]) <= min(settings["image_rank_at_most"], shown[IMAGE, "rank_bar"][0])
    for place, short in ((ALL, "all"), (LAST, "last")):
        assert shown[place, "overlap"][0] >= settings[f"{short}_overlap"]
        assert shown[place, "overlap"][0] >= settings["times_null_bar"] * shown[place, "overlap_bar"][0]
        assert shown[place, "rank"][0] >= max(settings[f"{short}_rank"], shown[place, "rank_bar"][0])


@pytest.mark.parametrize("name", NAMES)
def test_contribution_finds_late_neurons_and_the_gradient_on_the_image_early_ones(comparing, report, expectations, name):
    found, settings, early = comparing(name), expectations["contribution"], {}
    for score, shares in found.depth.items():
        for layer, values in enumerate(shares.T.tolist()):
            shown = interval(values, found.images, expectations)
            report(f"depth: {name}: share of the top {settings['top']} in layer {layer}, {score}", *shown, len(values))
        early[score] = float(shares[:, :2].sum(1).mean())
    contribution, gradient = early[CONTRIBUTION], early[f"gradient x activation, {IMAGE}"]
    assert contribution < gradient
    if name != NAMES[2]:
        assert contribution <= settings["contribution_in_first_two_layers_at_most"]
        assert gradient >= settings["gradient_in_first_two_layers"]


def asked(expectations):
    settings = expectations["contribution"]
    return color_examples(pictoworld.scenes("held_out", n=settings["scenes"], seed=settings["seed"]))


def read(model, examples, settings) -> Read:
    found = Read(defaultdict(list), defaultdict(list), [example.image for example in examples])
    vocabulary, k = words_of(model, settings["words"]), settings["neurons"]
    others = {id(example): another(examples, index) for index, example in enumerate(examples)}
    for batch in batches(examples):
        inputs, tokens = inputs_of(model, batch)
        theirs = [others[id(example)] for example in batch]
        different = torch.tensor([model.to_token(other.noun) for other in theirs])
        own = logit_contribution(model, inputs, tokens)
        circular = logit_contribution(model, inputs_of(model, theirs)[0], tokens)
        for row, token in enumerate(tokens.tolist()):
            top = top_k(own.scores[row], k, widths=model.widths)
            matched = top.random_like(seed=settings["seed"] + len(found.any[OWN]))
            seen = {
                OWN: says(vocabulary, top, own.activation[row], token),
                UNSIGNED: says(vocabulary, top, torch.ones_like(own.activation[row]), token),
                RANDOM: says(vocabulary, matched, own.activation[row], token),
                ANOTHER: says(vocabulary, top, own.activation[row], int(different[row])),
                CIRCULAR: says(
                    vocabulary, top_k(circular.scores[row], k, widths=model.widths), circular.activation[row], token
                ),
            }
            for way, values in seen.items():
                found.any[way].append(float(values.any()))
                found.share[way].append(float(values.float().mean()))
    return found


def another(examples, index):
    """Return the next example whose noun is not in this one's picture, nor this one's noun in its picture."""
    mine = examples[index]
    for step in range(1, len(examples)):
        theirs = examples[(index + step) % len(examples)]
        apart = theirs.noun not in {o.noun for o in mine.scene.objects}
        if apart and mine.noun not in {o.noun for o in theirs.scene.objects}:
            return theirs
    raise AssertionError("every other picture has the same nouns")


def words_of(model, k):
    """Return the `k` words of every neuron, fired positively and negatively: tokens [2, layer, unit, k]."""
    depth, width = model.cfg.n_layers, model.cfg.d_mlp
    everything = Neurons.of([(layer, unit) for layer in range(depth) for unit in range(width)], model.widths)
    signs = [torch.full((depth * width,), sign) for sign in (1.0, -1.0)]
    return torch.stack([decode(model, everything, k=k, sign=s).tokens.view(depth, width, k) for s in signs])


def says(vocabulary, neurons, activation, token):
    """Return whether each neuron, read with the sign of its activation, has a token among its words."""
    negative = (activation[neurons.layer, neurons.unit] < 0).long()
    return (vocabulary[negative, neurons.layer, neurons.unit] == token).any(-1)


def above(found, way, expectations):
    """Return the mean over images, and its interval, of the share by signed reading less that by another way."""
    return interval([a - b for a, b in zip(found.share[OWN], found.share[way], strict=True)], found.images, expectations)


def compared(model, examples, settings) -> Compared:
    """Compare scores on the first example of each picture."""
    examples = list({example.image: example for example in reversed(examples)}.values())
    values, depths = defaultdict(list), defaultdict(list)
    for batch in batches(examples):
        inputs, tokens = inputs_of(model, batch)
        scores = {CONTRIBUTION: logit_contribution(model, inputs, tokens).scores}
        for place, where in zip(PLACES, (inputs.mask("image"), inputs.mask("all"), inputs.last()), strict=True):
            scores[f"gradient x activation, {place}"] = grad_x_activation(model, inputs, tokens, where=where).scores
        for row, example in enumerate(batch):
            own = {name: score[row] for name, score in scores.items()}
            found = agreement(own, k=settings["top"], draws=settings["shuffles"], seed=settings["seed"] + example.image)
            for other, place in enumerate(PLACES, start=1):
                for what in ("overlap", "overlap_null", "overlap_bar"):
                    values[place, what].append(float(getattr(found, what)[0, other]))
                values[place, "rank"].append(float(found.spearman[0, other].nanmean()))
                values[place, "rank_bar"].append(float(found.spearman_bar[0, other].nanmean()))
            for name, score in own.items():
                layers = top_k(score, settings["top"], widths=model.widths).layer
                depths[name].append(layers.bincount(minlength=model.cfg.n_layers) / settings["top"])
    return Compared(values, {name: torch.stack(rows) for name, rows in depths.items()}, [e.image for e in examples])
