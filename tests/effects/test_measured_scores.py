"""Neurons chosen by each score on some scenes of a noun, switched off in others: how far the noun's logit falls."""

from collections import defaultdict
from dataclasses import dataclass

import pytest
import torch
from examples import batches, color_examples, correct_ones, inputs_of, interval, random_weights

from mmlens import hooks, top_k
from mmlens.analysis import grad_x_activation, integrated_gradients, logit_contribution
from mmlens.organisms import pictoworld

SHUFFLED = "weights shuffled"
CONTRIBUTION, GRADIENT, AT_LAST, INTEGRATED = SCORES = (
    "contribution, last position",
    "gradient x activation, image positions",
    "gradient x activation, last position",
    "integrated gradients, image positions",
)
OWN, OTHER, RANDOM, ACTIVE, EVERYWHERE = (
    "own",
    "another noun's",
    "random, matched by layer",
    "most active others",
    "own, zeroed everywhere",
)


@dataclass
class Ablated:
    """The change of the noun's logit and whether the answer survives, [score, set] -> example by example; its images."""

    name: str
    change: dict[tuple[str, str], list[float]]
    survives: dict[tuple[str, str], list[float]]
    images: list[int]

    def fall(self, score, chosen):
        values = self.change[score, chosen]
        return -sum(values) / len(values)


@pytest.fixture(scope="module")
def tuned(organisms, expectations):
    """Return what became of the tuned model's answers, measured once."""
    return fair(organisms["pictoworld"], "pictoworld", expectations["scores"])


def test_what_switching_off_does_is_reported(tuned, report, expectations):
    reported(tuned, report, expectations)


@pytest.mark.parametrize("score", SCORES)
def test_the_logit_falls_much_more_than_without_other_neurons(tuned, expectations, score):
    falls_much_more(tuned, score, expectations)


@pytest.mark.parametrize("score", [GRADIENT, INTEGRATED])
def test_fewer_answers_survive_than_without_random_neurons(tuned, report, expectations, score):
    assert survival(tuned, score, report, expectations)[2] < 0


def test_in_shuffled_weights_the_logit_falls_as_far_and_says_nothing(report, expectations):
    settings = expectations["scores"]
    found = fair(random_weights("pictoworld-frozen"), SHUFFLED, settings, SCORES[:2])
    reported(found, report, expectations)
    times = settings["shuffled_times_another_noun"]
    assert found.fall(CONTRIBUTION, OWN) >= times * abs(found.fall(CONTRIBUTION, OTHER))


def reported(found, report, expectations):
    """Put what became of answers in the table, and the differences from other neurons and from other scores."""
    for (score, chosen), values in found.change.items():
        report(
            f"scores: {found.name}: change of the noun's logit, {score}, {chosen}",
            *interval(values, found.images, expectations),
            len(values),
        )
        if found.name != SHUFFLED:
            report(
                f"scores: {found.name}: answers that survive, {score}, {chosen}",
                *interval(found.survives[score, chosen], found.images, expectations),
                len(values),
            )
        if chosen in (OTHER, RANDOM):
            difference(found, "change", (score, OWN), (score, chosen), report, expectations)
        elif score != CONTRIBUTION:  # which score is the more causal
            for what in ("change", "survival") if found.name != SHUFFLED else ("change",):
                difference(found, what, (score, chosen), (CONTRIBUTION, chosen), report, expectations)
    assert len(set(found.change[CONTRIBUTION, OWN])) > 1


def falls_much_more(found, score, expectations):
    """Assert that the noun's logit falls by more than as many other neurons move it."""
    settings = expectations["scores"]
    assert len(found.images) >= settings["scored_at_least"]
    assert found.fall(score, OWN) >= settings["times_random"] * abs(found.fall(score, RANDOM))
    assert found.fall(score, OWN) >= settings["times_another_noun"] * abs(found.fall(score, OTHER))


def survival(found, score, report, expectations):
    """Return the interval of the answers that survive without a noun's neurons less those without random ones."""
    return difference(found, "survival", (score, OWN), (score, RANDOM), report, expectations)


def difference(found, what, ours, theirs, report, expectations):
    """Return the mean over images of one row less another, example by example, and put it in the table."""
    kept = found.change if what == "change" else found.survives
    shown = interval([a - b for a, b in zip(kept[ours], kept[theirs], strict=True)], found.images, expectations)
    report(f"scores: {found.name}: {what}, ({', '.join(ours)}) - ({', '.join(theirs)})", *shown, len(found.images))
    return shown


def where_of(score, inputs):
    return inputs.last() if "last" in score else inputs.mask("image")


def scores_of(model, score, inputs, tokens, settings):
    """Return one score of every neuron, [batch, layer, unit]."""
    if score == CONTRIBUTION:
        return logit_contribution(model, inputs, tokens).scores
    if score == INTEGRATED:
        return integrated_gradients(model, inputs, tokens, steps=settings["integration_steps"]).scores
    return grad_x_activation(model, inputs, tokens, where=where_of(score, inputs)).scores


def fair(model, name, settings, scores=SCORES) -> Ablated:
    """Choose each noun's neurons by each score on the pictures of one half, and zero them on those of the other."""
    examples = color_examples(pictoworld.scenes("held_out", n=settings["scenes"], seed=settings["seed"]))
    examples = examples[: settings["shuffled_examples"]] if name == SHUFFLED else correct_ones(model, examples)
    halves = defaultdict(lambda: ([], []))
    for example in examples:
        halves[example.noun][example.image % 2].append(example)
    concepts = {noun: half for noun, half in sorted(halves.items()) if min(map(len, half)) >= settings["examples_per_half"]}
    assert len(concepts) >= 10, "too few nouns have enough scenes to choose on and to score on"
    found, top = Ablated(name, defaultdict(list), defaultdict(list), []), {}
    order = list(concepts)
    for noun, (chosen_on, _) in concepts.items():
        for score in scores:
            some = chosen_on[: settings["integrated_on" if score == INTEGRATED else "chosen_on"]]
            mean = scores_of(model, score, *inputs_of(model, some), settings).mean(0)
            top[noun, score] = top_k(mean, settings["neurons"], widths=model.widths)
    for index, noun in enumerate(order):
        active = most_active(model, concepts[noun][0], top[noun, CONTRIBUTION])
        for batch in batches(concepts[noun][1]):
            inputs, tokens = inputs_of(model, batch)
            found.images += [example.image for example in batch]
            with torch.no_grad():
                before = model(inputs)[:, -1]
            for score in scores:
                own, where = top[noun, score], where_of(score, inputs)
                randoms = [own.random_like(seed=settings["seed"] + draw) for draw in range(settings["random_draws"])]
                sets = {
                    OWN: ([own], where),
                    OTHER: ([top[order[(index + 1) % len(order)], score]], where),
                    RANDOM: (randoms, where),
                    EVERYWHERE: ([own], None),
                    **({ACTIVE: ([active], where)} if score == CONTRIBUTION else {}),
                }
                for label, (draws, positions) in sets.items():
                    outcomes = [outcome(model, inputs, tokens, neurons, positions, before) for neurons in draws]
                    for kept, values in zip((found.change, found.survives), zip(*outcomes, strict=True), strict=True):
                        kept[score, label] += torch.stack(values).mean(0).tolist()
    return found


@torch.no_grad()
def outcome(model, inputs, tokens, neurons, where, before):
    """Return the change of each noun's logit with `neurons` at zero, and whether it is still predicted."""
    after = model.run_with_hooks(inputs, fwd_hooks=hooks.ablate(neurons, where=where))[:, -1]
    return (after - before).gather(1, tokens[:, None])[:, 0], (after.argmax(-1) == tokens).float()


def most_active(model, examples, own):
    """Return as many neurons as `own` with the largest mean absolute activation at the last position, others than those."""
    inputs, tokens = inputs_of(model, examples)
    activity = logit_contribution(model, inputs, tokens).activation.abs().mean(0)
    activity[own.layer, own.unit] = -1.0
    return top_k(activity, len(own), widths=model.widths)
