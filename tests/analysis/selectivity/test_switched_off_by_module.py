"""Neurons of each module, switched off, change an answer as in transformers' own model, where they act and are read only."""

from types import SimpleNamespace

import numpy as np
import pytest
import raw
import torch
from support import load, picture, unhooked

from mmlens import Ablation, Example, Neurons, TokenStats, evaluate, sweep
from mmlens.analysis.selectivity import domain_neurons
from mmlens.hooks import neuron_hook
from mmlens.liveness import InertHook
from mmlens.testing import tiny

TEXTS = ("what is on the left ?", "a red car", "the blue tree")
UNSEEN = 1  # this one has no picture
QUIET = dict(draws=0, progress=False)


def built(folder, change=None):
    """Return a tiny model's folder hooked and plain, and examples; `change` edits the plain weights before."""
    if change is not None:
        edited = unhooked(folder)
        with torch.no_grad():
            change(edited)
        edited.save_pretrained(folder)
    examples = [
        Example(text, None if place == UNSEEN else picture(place), answers=("the red tree",), label=str(place // 2))
        for place, text in enumerate(TEXTS)
    ]
    return SimpleNamespace(model=load(folder), plain=unhooked(folder), examples=examples)


@pytest.fixture(scope="module", params=["instructblip-llama", "llava-clip-llama"])
def case(request, tmp_path_factory):
    """One with a tower, a Q-Former of two branches and a plain projection, one whose projector has neurons."""
    return built(tiny(request.param, tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def neurons(case):
    """A third of every module's neurons, in layers that are read."""
    live = case.model.live_layers
    chosen = [
        (module, layer, unit)
        for module, layers in case.model.widths.items()
        for layer in range(live[module])
        for unit in range(layer, layers[layer], 3)
    ]
    return Neurons.of(chosen, case.model.widths)


@torch.no_grad()
def truth(case, neurons):
    """Return the log-probabilities of the answers in the plain model, whose output maps read 0 of these neurons."""

    def silence(units):
        def change(post):
            edited = post.clone()
            edited[..., units] = 0
            return edited

        return change

    found = []
    for one in case.examples:
        inputs = case.model.to_inputs(one.text, images=one.images, answer=one.answers[0])
        changes = {neuron_hook(*layer, "post"): silence(units) for layer, units in neurons.by_layer().items()}
        if not inputs.tower:
            changes = {name: change for name, change in changes.items() if name.startswith("blocks")}
        said = raw.logits(case.plain, inputs, changes)[0].log_softmax(-1)
        new = inputs.answer[0].nonzero()[:, 0]
        found.append(sum(float(said[at - 1, inputs.tokens[0, at]]) for at in new))
    return found


def test_each_modules_neurons_change_what_transformers_own_change_and_nothing_without_a_picture(case, neurons):
    modules = tuple(case.model.widths)
    own = {module: neurons.within(module) for module in modules}
    found = evaluate(case.model, case.examples, "log_prob", own, **QUIET)
    for index, module in enumerate(modules, 1):
        assert set(own[module].module) == {module}
        np.testing.assert_allclose(found.scores[index], truth(case, own[module]), atol=2e-5)
        moved = found.scores[index] != found.scores[0]
        assert moved.tolist() == [module == "language" or place != UNSEEN for place in range(len(TEXTS))]
    assert len({tuple(row) for row in found.scores.tolist()}) == 1 + len(modules)


def test_a_set_of_several_modules_is_its_parts_together(case, neurons):
    parts = [neurons.within(module) for module in case.model.widths]
    assert sum(len(part) for part in parts) == len(neurons) and {one for part in parts for one in part} == set(neurons)
    towers = neurons.within(*(module for module in case.model.widths if module != "language"))
    assert towers == neurons - neurons.within("language")
    together = lambda inputs: [hook for part in parts for hook in Ablation(part).hooks(case.model, inputs)]  # noqa: E731
    found = evaluate(case.model, case.examples, "log_prob", {"joint": neurons, "parts": together}, **QUIET)
    assert torch.equal(found.scores[1], found.scores[2])
    np.testing.assert_allclose(found.scores[1], truth(case, neurons), atol=2e-5)


def test_a_complement_holds_all_others_and_with_its_set_the_whole_module(case, neurons):
    for module in case.model.widths:
        own = neurons.within(module)
        rest = Ablation(own, complement=True)
        both = lambda inputs, rest=rest, own=own: (  # noqa: E731
            rest.hooks(case.model, inputs) + Ablation(own).hooks(case.model, inputs)
        )
        assert set(rest.held.module) == {module} and not len(rest.held & own)
        assert len(rest.held) + len(own) == sum(case.model.widths[module])
        found = evaluate(case.model, case.examples, "log_prob", {"rest": rest, "both": both}, **QUIET)
        np.testing.assert_allclose(found.scores[1], truth(case, rest.held), atol=2e-5)
        np.testing.assert_allclose(found.scores[2], truth(case, own | rest.held), atol=2e-5)
        assert (found.scores[1:] - found.scores[0])[:, 0].abs().min() > 1e-4


def test_a_layer_that_is_not_read_is_chosen_from_only_if_asked_for_and_refused_as_it_changes_nothing(case):
    widths, live = case.model.widths, case.model.live_layers
    (module,) = [one for one in widths if live[one] < len(widths[one])]
    last = len(widths[module]) - 1
    accumulator = TokenStats(widths, labels=("0", "1"), modules=(module,))
    statistics = sweep(case.model, case.examples, {"it": accumulator}, progress=False)["it"]
    options = dict(module=module, rate=1.0, filter_quantile=0.0, bar_quantile=0.5)
    assert set(domain_neurons(statistics, **options).union().layer.tolist()) == set(range(last))
    unread = domain_neurons(statistics, unread=True, **options).union()
    unread = unread[(unread.layer == last).nonzero()[:, 0].tolist()]
    assert len(unread) and truth(case, unread) == truth(case, unread[:0])
    with pytest.raises(InertHook, match="the model does not use it"):
        evaluate(case.model, case.examples[:1], "log_prob", {"unread": unread}, **QUIET)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A model in which every second unit of every module does nothing: what activates them is 0 everywhere."""

    def change(plain):
        for name in ("blocks", "vision.blocks", "qformer.blocks", "qformer_text.blocks"):
            for layer in range(3):
                reads = raw.locate(plain, f"{name}.{layer}.mlp.hook_pre")[0]
                reads.weight[::2] = 0
                if reads.bias is not None:
                    reads.bias[::2] = 0

    return built(tiny("instructblip-llama", tmp_path_factory.mktemp("half")), change)


def test_units_that_are_silent_change_nothing_and_the_others_do(half):
    modules, widths, live = tuple(half.model.widths), half.model.widths, half.model.live_layers
    found = sweep(half.model, half.examples, {"it": TokenStats(widths, modules=modules)}, progress=False)["it"]
    sets = {}
    for module in modules:
        alive = (found.table("max", module)[0, 0] != 0) | (found.table("mean", module)[0, 0] != 0)
        at = [(layer, unit) for layer in range(live[module]) for unit in range(widths[module][layer])]
        sets[module, "silent"] = Neurons.of([(module, *one) for one in at if not alive[one]], widths)
        sets[module, "active"] = Neurons.of([(module, *one) for one in at if alive[one]], widths)
        assert sets[module, "silent"].unit.remainder(2).eq(0).all() and 2 * len(sets[module, "silent"]) == len(at)
    named = {" ".join(name): own for name, own in sets.items()}
    scores = dict(
        zip(["baseline", *named], evaluate(half.model, half.examples, "log_prob", named, **QUIET).scores, strict=True)
    )
    for module in modules:
        assert torch.equal(scores[f"{module} silent"], scores["baseline"])
        assert (scores[f"{module} active"] != scores["baseline"])[[0, 2]].all()


@pytest.fixture(scope="module")
def relu(tmp_path_factory):
    """OPT: its neurons are exactly 0 wherever what they read is below 0."""
    shift = torch.tensor([-0.3, 0.2, 0.0, -100.0]).repeat(12)
    return built(
        tiny("blip2-opt", tmp_path_factory.mktemp("relu")),
        lambda plain: plain.language_model.model.decoder.layers[0].fc1.bias.copy_(shift),
    )


def test_one_neuron_at_a_time_an_answer_changes_where_it_was_active_and_nowhere_else(relu):
    every = {f"unit {unit}": Neurons.of([(0, unit)], relu.model.widths) for unit in range(48)}
    scores = evaluate(relu.model, relu.examples, "log_prob", every, **QUIET).scores
    active = torch.zeros(48, len(TEXTS), dtype=torch.bool)
    for place, one in enumerate(relu.examples):
        inputs = relu.model.to_inputs(one.text, images=one.images, answer=one.answers[0])
        _, seen = raw.read(relu.plain, inputs, ["blocks.0.mlp.hook_post"])
        active[:, place] = (seen["blocks.0.mlp.hook_post"][0, :-1] > 0).any(0)  # behind the last token nothing is asked
    assert torch.equal(scores[1:] != scores[0], active)
    assert 20 < active.sum() < active.numel() - 20 and (active.any(1) != active.all(1)).any()
