"""Edits of output rows: hooks do what weights would, undoing leaves no trace, and the loss is the one that is written."""

from types import SimpleNamespace

import numpy as np
import pytest
import raw
import torch
from support import ask, leaves_no_hooks, load

from mmlens import HookedMLLM, Neurons, hooks
from mmlens.analysis import Edit, fit_edit, perturb
from mmlens.results import Provenance
from mmlens.testing import planted
from mmlens.testing.plants.layout import NOUNS

CHOSEN = [(1, 3), (0, 5), (1, 9), (2, 2)]  # layers out of order, as a ranking has them


def by_hand(model, neurons, *, scale=1.0, seed=0):
    """Return an edit with random rows, that nobody fitted."""
    delta = scale * torch.randn(len(neurons), model.cfg.d_model, generator=torch.Generator().manual_seed(seed))
    curves = {name: torch.zeros(1) for name in ("loss", "kl", "repetition", "size", "locality")}
    return Edit(
        neurons=neurons,
        delta=delta,
        source=(5,),
        target=(6,),
        words=("red", "blue"),
        nll=torch.zeros(1, 1),
        source_nll=torch.zeros(1, 1),
        reached=True,
        provenance=Provenance.record(model, ()),
        **curves,
    )


def some(model, chosen=CHOSEN):
    return Neurons.of([(layer % len(model.widths["language"]), unit) for layer, unit in chosen], model.widths)


def weights(model):
    return {name: weight.clone() for name, weight in model.hf_model.state_dict().items()}


def alike(before, model):
    return all(torch.equal(weight, before[name]) for name, weight in model.hf_model.state_dict().items())


def changed(before, model):
    """Return where the weights lie that are not what they were: a bridge has several names for each."""
    return {w.data_ptr() for name, w in model.hf_model.state_dict().items() if not torch.equal(w, before[name])}


@pytest.mark.dear
@torch.no_grad()
def test_hooks_and_weights_say_what_plain_transformers_says_with_those_rows_and_undoing_leaves_no_bit(model, plain, batches):
    inputs, real = batches["mixed"], batches["mixed"].mask("all")
    edit, before, identity = by_hand(model, some(model)), weights(model), model.identity()
    before_rows = [model.W_out(layer).clone() for layer in range(len(model.widths["language"]))]
    unedited = raw.logits(plain, inputs)
    rows = {}
    for (_, layer, unit), change in zip(edit.neurons, edit.delta, strict=True):
        row = raw.weight(plain, f"blocks.{layer}.mlp.hook_post")[unit]
        rows[row] = row.clone()
        row += change
    try:
        truth = raw.logits(plain, inputs)
    finally:
        for row, kept in rows.items():
            row.copy_(kept)
    raw.differs(truth[real], unedited[real])
    with leaves_no_hooks(model):
        raw.same(model.run_with_hooks(inputs, fwd_hooks=edit.hooks(model))[real], truth[real])
    with edit.applied(model):
        raw.same(model(inputs)[real], truth[real])
        assert model.identity()["weights"] != identity["weights"]
        assert changed(before, model) == {model.W_out(layer).data_ptr() for _, layer, _ in edit.neurons}
        for layer, rows in enumerate(before_rows):
            chosen = sorted(unit for _, own, unit in edit.neurons if own == layer)
            assert (model.W_out(layer) - rows).abs().amax(1).nonzero()[:, 0].tolist() == chosen
    assert alike(before, model) and model.identity() == identity


@torch.no_grad()
def test_an_edit_of_nothing_changes_nothing(small):
    model, inputs, _ = small
    edit = fit_edit(model, inputs, "car", "boat", some(model), steps=0)
    assert edit.steps == 0 and edit.norm == 0 and not edit.reached
    torch.testing.assert_close(model.run_with_hooks(inputs, fwd_hooks=edit.hooks(model)), model(inputs), rtol=0, atol=0)
    before = model(inputs)
    with edit.applied(model):
        assert torch.equal(model(inputs), before)


@torch.no_grad()
def test_the_edit_of_a_projectors_neurons_is_that_of_its_weights(llava, small):
    neurons = Neurons.of([("projector", 0, 3), ("language", 1, 4), ("projector", 0, 1)], llava.widths)
    edit = by_hand(llava, neurons)
    hooked = llava.run_with_hooks(small[1], fwd_hooks=edit.hooks(llava))
    raw.differs(hooked, llava(small[1]))
    with edit.applied(llava):
        raw.same(llava(small[1]), hooked)


@torch.no_grad()
def test_hooks_of_edits_add_up_and_stand_behind_those_that_edit_the_neurons(llava, small):
    one, other = by_hand(llava, some(llava)), by_hand(llava, some(llava, [(1, 3), (2, 7)]), seed=1)
    off = hooks.ablate(some(llava, [(0, 5), (2, 1)]), value=0.3)
    together = llava.run_with_hooks(small[1], fwd_hooks=[*off, *one.hooks(llava), *other.hooks(llava)])
    with one.applied(llava), other.applied(llava):
        raw.same(llava.run_with_hooks(small[1], fwd_hooks=off), together)


@torch.no_grad()
def test_generation_under_hooks_writes_what_it_writes_under_the_edited_weights(llava):
    inputs, edit = ask(llava, "padded"), by_hand(llava, some(llava), scale=3.0)
    hooked = llava.generate(inputs, max_new_tokens=6, fwd_hooks=edit.hooks(llava)).tokens
    with edit.applied(llava):
        assert torch.equal(llava.generate(inputs, max_new_tokens=6).tokens, hooked)
    assert not torch.equal(llava.generate(inputs, max_new_tokens=6).tokens, hooked)


def test_edits_are_undone_in_turn_and_only_where_they_were_applied(llava):
    one, same_rows = by_hand(llava, some(llava)), by_hand(llava, some(llava, CHOSEN[:2]), seed=1)
    elsewhere, before = by_hand(llava, some(llava, [(2, 30)]), seed=2), weights(llava)
    with pytest.raises(ValueError, match=r"was not applied to this .*call edit\.apply"):
        one.undo(llava)
    one.apply(llava)
    with pytest.raises(ValueError, match="already: undo it first"):
        one.apply(llava)
    elsewhere.apply(llava)  # made on the weights that were there before `one`
    same_rows.apply(llava)
    with pytest.raises(ValueError, match="undo what came later first"):
        one.undo(llava)
    same_rows.undo(llava)
    one.undo(llava)
    elsewhere.undo(llava)
    assert alike(before, llava)
    with pytest.raises(ValueError, match="was not applied"):
        one.undo(llava)


def test_an_exception_inside_leaves_the_weights_as_they_were(llava):
    edit, before = by_hand(llava, some(llava)), weights(llava)
    with pytest.raises(KeyError), edit.applied(llava):
        raise KeyError
    with pytest.raises(KeyError), perturb(llava, edit.neurons, 1.0, 0):
        raise KeyError
    assert alike(before, llava)


def test_an_edit_of_another_model_is_refused_unless_asked_for(llava, exact):
    edit = by_hand(llava, some(llava))
    with pytest.raises(ValueError, match="for the weights it was made on"):
        edit.hooks(exact[0])
    with pytest.raises(ValueError, match="pass other_model=True"):
        edit.apply(exact[0])
    with edit.applied(exact[0], other_model=True) as model:
        assert model is exact[0]
    assert len(edit.hooks(exact[0], other_model=True)) == 2 * 3
    narrow = Neurons.of(CHOSEN, {"language": (20, 20, 20)})
    with pytest.raises(ValueError, match="neurons are of the model that is edited"):
        by_hand(llava, narrow).hooks(llava)


def test_what_was_saved_is_what_is_loaded_and_undoes_it(llava, exact, small, tmp_path):
    edit = fit_edit(llava, small[1], "car", "boat", some(llava), steps=3)
    loaded = Edit.load(edit.save(tmp_path / "edit"), model=llava)
    assert torch.equal(loaded.delta, edit.delta) and loaded.neurons == edit.neurons and repr(loaded) == repr(edit)
    assert (loaded.words, loaded.source, loaded.target) == (edit.words, edit.source, edit.target)
    assert all(torch.equal(getattr(loaded, name), getattr(edit, name)) for name in ("loss", "nll", "kl", "repetition"))
    before = weights(llava)
    edit.apply(llava)
    loaded.undo(llava)
    assert alike(before, llava)
    with pytest.warns(UserWarning, match="do not mix"):
        Edit.load(tmp_path / "edit", model=exact[0])


@torch.no_grad()
def test_offloaded_weights_are_not_written_but_hooks_edit_what_they_do(small_folder, tmp_path):
    where = dict.fromkeys(("model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head"), "disk")
    away = HookedMLLM.from_pretrained(small_folder, device_map=where, offload_folder=tmp_path)
    here, edit = load(small_folder), by_hand(away, some(away))
    with pytest.raises(ValueError, match="put an edit on as hooks"):
        edit.apply(away)
    with pytest.raises(ValueError, match="plain weights in memory"), perturb(away, edit.neurons, 0.1, 0):
        pass
    inputs = ask(here, "mixed")
    ours = away.run_with_hooks(inputs, fwd_hooks=edit.hooks(away))
    raw.same(ours, here.run_with_hooks(inputs, fwd_hooks=edit.hooks(here)), relative=0)
    fits = [fit_edit(model, ask(here, "one"), "red", "blue", some(here), steps=2) for model in (away, here)]
    assert torch.equal(fits[0].delta, fits[1].delta) and fits[0].norm > 0


# ---------------------------------------------------------------- noise


@torch.no_grad()
def test_noise_is_normal_on_the_chosen_rows_only_and_the_weights_come_back_bit_by_bit(llava):
    neurons = Neurons.of([("language", 1, unit) for unit in range(40)] + [("vision", 0, 2)], llava.widths)
    before, identity = weights(llava), llava.identity()
    rows, tower = [llava.W_out(layer).clone() for layer in range(3)], llava.W_out(0, "vision").clone()
    with perturb(llava, neurons, 0.5, 3) as noisy:
        noise = noisy.W_out(1) - rows[1]
        assert torch.equal(llava.W_out(0), rows[0]) and torch.equal(llava.W_out(2), rows[2]) and not noise[40:].any()
        assert 0.47 < noise[:40].std() < 0.53 and noise[:40].mean().abs() < 0.05  # of 40 x 32 numbers
        assert (llava.W_out(0, "vision") - tower).abs().amax(1).nonzero()[:, 0].tolist() == [2]
        assert llava.identity() != identity
    assert alike(before, llava) and llava.identity() == identity
    with perturb(llava, neurons, 0.5, 3):
        torch.testing.assert_close(llava.W_out(1) - rows[1], noise, rtol=0, atol=0)
    with perturb(llava, neurons, 0.5, 4):
        assert not torch.equal(llava.W_out(1) - rows[1], noise)
    with perturb(llava, neurons, 0.0, 3):
        assert alike(before, llava)


# ---------------------------------------------------------------- the fit


TARGET = (7, 9)  # a word of two tokens
WEIGHTS = dict(gamma=0.3, alpha=0.7, beta=2.0)


def by_the_formula(model, inputs, edit, locality):
    """Return the terms of the loss, in numpy from the logits of edited weights: one text at a time, one token at a time."""

    def log_probs(given, row, tokens, changed):
        answer = [*given.tokens[row][given.answer[row]].tolist(), *tokens]
        prompt = model.to_inputs(given.text[row], images=given.media[row][0], answer=model.tokenizer.decode(answer))
        assert prompt.tokens[0].tolist() == given.tokens[row][given.attention_mask[row].bool()].tolist() + list(tokens)
        if not changed:
            return torch.log_softmax(model(prompt)[0], -1).numpy()
        with edit.applied(model):
            return torch.log_softmax(model(prompt)[0], -1).numpy()

    nll, again, kl = [], [], []
    for row in range(len(inputs)):
        new, old = (log_probs(inputs, row, edit.target, changed) for changed in (True, False))
        first = len(new) - len(edit.target) - 1
        nll.append(max(-new[first + index, token] for index, token in enumerate(edit.target)))
        again.append(max(-np.log(1 - np.exp(new[-1, token])) for token in edit.target))
        kl += [(np.exp(o) * (o - n)).sum() for o, n in zip(old[:first], new[:first], strict=True)]
    kept = []
    for row in range(len(locality)):
        new, old = (log_probs(locality, row, (), changed) for changed in (True, False))
        kept += [(np.exp(o) * (o - n)).sum() for o, n in zip(old, new, strict=True)]
    terms = dict(kl=np.mean(kl), repetition=np.mean(again), size=np.sqrt((edit.delta.numpy() ** 2).sum()))
    terms |= dict(locality=np.mean(kept))
    loss = np.mean(nll) + 0.3 * terms["size"] + 0.7 * (terms["kl"] + terms["locality"]) + 2.0 * terms["repetition"]
    return np.array(nll), terms | dict(loss=loss)


@torch.no_grad()
def test_the_loss_is_that_of_the_formula_and_its_first_step_goes_down_its_gradient(exact):
    model, inputs, _ = exact
    locality, neurons = ask(model, "padded"), some(model)
    options = dict(locality=locality, stop=None, **WEIGHTS)
    edit = fit_edit(model, inputs, [5], list(TARGET), neurons, steps=2, lr=0.02, **options)
    nll, terms = by_the_formula(model, inputs, edit, locality)
    np.testing.assert_allclose(edit.nll[-1].numpy(), nll, rtol=1e-9)
    for name, truth in terms.items():
        np.testing.assert_allclose(getattr(edit, name)[-1].numpy(), truth, rtol=1e-7, err_msg=name)
    assert terms["kl"] > 1e-4 and terms["locality"] > 1e-4 and terms["repetition"] > 1e-4  # nothing is compared with 0

    first = fit_edit(model, inputs, [5], list(TARGET), neurons, steps=1, lr=1e-3, **options)
    assert edit.loss[0] == first.loss[0] and edit.delta.dtype == torch.float64
    rng = np.random.default_rng(0)
    for _ in range(6):  # from zero, Adam's first step is the rate, against the gradient's sign
        at = int(rng.integers(len(neurons))), int(rng.integers(model.cfg.d_model))
        slopes = []
        for h in (1e-5, -1e-5):
            moved = by_hand(model, neurons)
            moved.delta.zero_()
            moved.delta[at] = h
            moved = Edit(**(vars(moved) | dict(delta=moved.delta.double(), target=TARGET)))
            loss = by_the_formula(model, inputs, moved, locality)[1]
            slopes.append(loss["loss"] - 0.3 * loss["size"])  # whose slope at 0 is taken as 0
        gradient = (slopes[0] - slopes[1]) / 2e-5
        assert abs(gradient) > 1e-7
        assert first.delta[at].item() == pytest.approx(-1e-3 * np.sign(gradient), rel=1e-2)


def test_only_delta_is_fitted_and_the_model_stays_as_it_was(small):
    model, inputs, _ = small
    before, wanted = weights(model), [weight.requires_grad for weight in model.hf_model.parameters()]
    with leaves_no_hooks(model), torch.no_grad():
        edit = fit_edit(model, inputs, "car", "boat", some(model), steps=4, stop=None)
    assert edit.steps == 4 and edit.norm > 0 and edit.loss[-1] < edit.loss[0]
    assert alike(before, model) and all(weight.grad is None for weight in model.hf_model.parameters())
    assert [weight.requires_grad for weight in model.hf_model.parameters()] == wanted and any(wanted)
    assert not edit.delta.requires_grad and not edit.loss.requires_grad


def test_it_stops_where_every_row_says_the_target_and_at_the_norm_it_may_have(small):
    model, inputs, _ = small
    free, last = dict(gamma=0.0, alpha=0.0, beta=0.0), some(model, [(2, unit) for unit in range(20)])
    edit = fit_edit(model, inputs, "car", "boat", last, lr=0.3, steps=60, stop=0.2, **free)
    assert edit.reached and 0 < edit.steps < 60
    bar = -np.log(0.2)
    assert edit.nll[-1].max() < bar and all(point.max() >= bar for point in edit.nll[:-1])
    with torch.no_grad(), edit.applied(model):
        said = torch.softmax(model(inputs)[:, -1], -1)
    torch.testing.assert_close(said[:, model.to_token("boat")], (-edit.nll[-1]).exp(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(said[:, model.to_token("car")], (-edit.source_nll[-1]).exp(), rtol=1e-3, atol=1e-5)
    held = fit_edit(model, inputs, "car", "boat", last, lr=0.3, steps=10, stop=None, budget=0.5, **free)
    assert held.norm == pytest.approx(0.5) and held.size.max() <= 0.5 + 1e-6 and not held.reached


def test_what_can_not_be_fitted_is_refused_in_words(small):
    model, inputs, _ = small
    neurons = some(model)

    def refused(match, *, source="car", target="boat", chosen=neurons, **options):
        with pytest.raises(ValueError, match=match):
            fit_edit(model, inputs, source, target, chosen, **options)

    refused("begin with the same token", target="car")
    refused("has no token", target="zebra")
    refused("tokens from 0 to", target=[])
    refused("tokens from 0 to", target=[10**6])
    refused("at least one neuron", chosen=Neurons.of([], model.widths))
    refused("only neurons that write into the stream", chosen=Neurons.of([("vision", 0, 1)], model.widths))
    refused("neurons are of the model", chosen=Neurons.of([(0, 1)], {"language": (9,)}))
    refused("got steps=-1", steps=-1)
    refused("lr=0", lr=0.0)
    refused("between 0 and 1", stop=1.0)
    refused("above 0, got 0", budget=0.0)
    with pytest.raises(ValueError, match="standard deviation"), perturb(model, neurons, -1.0, 0):
        pass


# ---------------------------------------------------------------- planted


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    made = planted(tmp_path_factory.mktemp("planted"))
    model = HookedMLLM.from_pretrained(made.folder, device="cpu")
    stimuli = [one for one in made.stimuli(144, seed=1) if one.answer in NOUNS]
    return SimpleNamespace(made=made, model=model, stimuli=stimuli)


@torch.no_grad()
def said(plant, stimuli, fwd_hooks=()):
    inputs = plant.model.to_inputs(**plant.made.arguments(stimuli))
    tokens = plant.model.run_with_hooks(inputs, fwd_hooks=fwd_hooks)[:, -1].argmax(-1)
    return [text.strip() for text in plant.model.to_str_tokens(tokens)]


@pytest.mark.parametrize(("source", "target"), [("car", "boat"), pytest.param("tree", "bell", marks=pytest.mark.slow)])
def test_editing_a_nouns_planted_neurons_says_another_and_the_other_nouns_stay(plant, source, target):
    model, own = plant.model, plant.made.key.concepts[source]
    shown, others = ([one for one in plant.stimuli if (one.answer == source) == is_it] for is_it in (True, False))
    assert said(plant, others) == [one.answer for one in others] and len(others) == 48
    scenes = model.to_inputs(**plant.made.arguments(shown[:8]))
    edit = fit_edit(model, scenes, source, target, own, lr=0.02, steps=80)
    assert edit.reached
    assert said(plant, shown[8:], edit.hooks(model)) == [target] * len(shown[8:]) and len(shown) == 16
    assert said(plant, others, edit.hooks(model)) == said(plant, others)
    # The background fires wherever it likes: what is changed there is changed for other nouns, or reaches no other scene.
    random = fit_edit(model, scenes, source, target, own.random_like(seed=0), lr=0.02, steps=edit.steps).hooks(model)
    right = [word == target for word in said(plant, shown[8:], random)]
    right += [word == one.answer for word, one in zip(said(plant, others, random), others, strict=True)]
    assert np.mean(right) < 0.8
