"""Neurons found by gradient x activation carry the answer: found on some scenes of a noun, switched off on others."""

from collections import defaultdict

import torch
from examples import batches, color_examples, correct_ones, inputs_of, interval, random_weights

from mmlens import Neurons, hooks, top_k
from mmlens.analysis import grad_x_activation
from mmlens.organisms import pictoworld

CONTROLS = ("other nouns' neurons", "most active, not attributed", "random, matched by layer")


def test_switching_off_a_nouns_neurons_breaks_its_answers_in_other_scenes_of_the_frozen_model(
    organisms, report, expectations
):
    survival, _ = fair_form(organisms["pictoworld-frozen"], "pictoworld-frozen", report, expectations)
    for control in CONTROLS:
        assert survival[control][2] < 0, f"own - {control}: {survival[control]}"


def test_switching_off_a_nouns_neurons_in_the_tuned_model_is_reported(organisms, report, expectations):
    survival, _ = fair_form(organisms["pictoworld"], "pictoworld", report, expectations)
    for control in CONTROLS:
        assert survival[control][0] < 0, f"own - {control}: {survival[control]}"


def test_shuffled_weights_are_a_row_of_the_table(report, expectations):
    """No answers to break: the row is the change of the noun's logit."""
    model, settings = random_weights("pictoworld-frozen"), expectations["causal"]
    examples = scenes_of(settings)
    right = len(correct_ones(model, examples)) / len(examples)
    report("accuracy: weights shuffled: noun after its colour", right, right, right, len(examples))
    assert right <= settings["shuffled_weights_right_at_most"]
    fair_form(model, "weights shuffled", report, expectations, need_correct=False)


def test_the_circular_form_is_reported_as_circular(organisms, report, expectations):
    """Neurons chosen on the very logit that they are scored on: larger than the fair form by construction."""
    settings = expectations["causal"]
    for name in ("pictoworld", "pictoworld-frozen"):
        model = organisms[name]
        examples = correct_ones(model, scenes_of(settings))[: settings["same_scene_examples"]]
        kept: dict[str, list[float]] = {"own": [], "random": []}
        for example in examples:
            inputs, tokens = inputs_of(model, [example])
            own = top_k(grad_x_activation(model, inputs, tokens).scores[0], settings["neurons"], widths=model.widths)
            with torch.no_grad():
                before = model(inputs)[:, -1]
            for key, neurons in {"own": own, "random": own.random_like(seed=settings["seed"])}.items():
                kept[key] += outcome(model, inputs, tokens, neurons, before)[0].tolist()
        for key, values in kept.items():
            low_high = interval(values, [e.image for e in examples], expectations)
            report(f"causal, same scene (circular): {name}: answers that survive, {key}", *low_high, len(values))
        assert sum(kept["own"]) <= sum(kept["random"])


def scenes_of(settings):
    return color_examples(pictoworld.scenes("held_out", n=settings["scenes"], seed=settings["seed"]))


def fair_form(model, name, report, expectations, need_correct=True):
    """Return the intervals of own - control for surviving answers, and the mean change of the noun's logit by set."""
    settings = expectations["causal"]
    examples = scenes_of(settings)
    examples = correct_ones(model, examples) if need_correct else examples
    halves: dict[str, tuple[list, list]] = defaultdict(lambda: ([], []))
    for example in examples:
        halves[example.noun][example.image % 2].append(example)
    concepts = {n: h for n, h in sorted(halves.items()) if min(map(len, h)) >= settings["examples_per_half"]}
    assert len(concepts) >= 10, "too few nouns have enough scenes to choose on and to score on"
    found = {noun: choose(model, chosen_on, settings["neurons"]) for noun, (chosen_on, _) in concepts.items()}
    kept: dict[str, list[float]] = defaultdict(list)
    change: dict[str, list[float]] = defaultdict(list)
    images: list[int] = []
    nouns = list(concepts)
    for index, noun in enumerate(nouns):
        own, active = found[noun]
        sets = {"own": [own], CONTROLS[0]: [found[nouns[(index + 1) % len(nouns)]][0]], CONTROLS[1]: [active]}
        sets[CONTROLS[2]] = [own.random_like(seed=settings["seed"] + d) for d in range(settings["random_draws"])]
        for batch in batches(concepts[noun][1]):
            inputs, tokens = inputs_of(model, batch)
            images += [example.image for example in batch]
            with torch.no_grad():
                before = model(inputs)[:, -1]
            for key, draws in sets.items():
                outcomes = [outcome(model, inputs, tokens, neurons, before) for neurons in draws]
                kept[key] += torch.stack([o[0] for o in outcomes]).mean(0).tolist()
                change[key] += torch.stack([o[1] for o in outcomes]).mean(0).tolist()
    for key in ("own", *CONTROLS):
        if need_correct:
            report(
                f"causal, fair: {name}: answers that survive, {key}", *interval(kept[key], images, expectations), len(images)
            )
        report(
            f"causal, fair: {name}: change of the noun's logit, {key}",
            *interval(change[key], images, expectations),
            len(images),
        )
    survival = {}
    for control in CONTROLS:
        difference = [a - b for a, b in zip(kept["own"], kept[control], strict=True)]
        survival[control] = interval(difference, images, expectations)
        if need_correct:
            report(f"causal, fair: {name}: survival, own - {control}", *survival[control], len(images))
    return survival, {key: sum(values) / len(values) for key, values in change.items()}


def choose(model, examples, k) -> tuple[Neurons, Neurons]:
    """Return the k neurons with the highest mean score, and the k most active ones that are not among them."""
    scores, activity = [], []
    for batch in batches(examples):
        inputs, tokens = inputs_of(model, batch)
        scores.append(grad_x_activation(model, inputs, tokens).scores)
        with torch.no_grad():
            _, cache = model.run_with_cache(inputs, "blocks.*.mlp.hook_post")
        where = inputs.mask("image")
        posts = [cache["post", layer].abs() for layer in range(model.cfg.n_layers)]
        activity.append(torch.stack([(p * where[..., None]).sum(1) / where.sum(1, keepdim=True) for p in posts], dim=1))
    own = top_k(torch.cat(scores).mean(0), k, widths=model.widths)
    ranking = top_k(torch.cat(activity).mean(0), 2 * k, widths=model.widths)
    return own, (ranking - own)[:k]


@torch.no_grad()
def outcome(model, inputs, tokens, neurons, before):
    """Return whether each noun is still predicted, and the change of its logit, with `neurons` zeroed at image positions."""
    after = model.run_with_hooks(inputs, fwd_hooks=hooks.ablate(neurons, where=inputs.mask("image")))[:, -1]
    change = (after - before).gather(1, tokens[:, None])[:, 0]
    return (after.argmax(-1) == tokens).float(), change
