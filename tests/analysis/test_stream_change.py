"""How far neurons move the stream is what raw hooks on the plain model measure, and nothing where nothing is moved."""

import numpy as np
import pytest
import raw
import torch
from support import ask, questions

from mmlens import Neurons, hooks
from mmlens.analysis import StreamChange, stream_change

UNITS = [1, 3, 4]


def towers(model):
    return [module for module in model.widths if module in ("vision", "audio")]


def moved(clean, held, mask):
    """Return what numpy says that one row's stream moved by, in float64: relative, and 1 - cos."""
    before, now = (x.double().numpy()[mask.numpy()] for x in (clean, held))
    lengths = np.linalg.norm(before, axis=-1)
    cosines = (before * now).sum(-1) / (lengths * np.linalg.norm(now, axis=-1))
    return (np.linalg.norm(now - before, axis=-1) / lengths).mean(), (1 - cosines).mean()


@pytest.mark.dear
def test_it_is_how_far_raw_hooks_move_the_plain_models_stream(model, plain, batches):
    inputs, media = batches["one"], model.family.takes[0]
    (tower,) = towers(model)
    depth = model.cfg.n_layers
    names = [*(f"blocks.{layer}.hook_resid_pre" for layer in range(depth)), f"blocks.{depth - 1}.hook_resid_post"]

    def hold(activation):
        held = activation.clone()
        held[..., UNITS] = 0.4
        return held

    for chosen in (["blocks.1"], [f"{tower}.blocks.0", "blocks.1"]):
        with torch.no_grad():
            clean = raw.read(plain, inputs, names)[1]
            with raw.edited(plain, {f"{block}.mlp.hook_post": hold for block in chosen}):
                held = raw.read(plain, inputs, names)[1]
        pairs = [(tower, 0, unit) for unit in UNITS] * (len(chosen) == 2) + [("language", 1, unit) for unit in UNITS]
        found = stream_change(
            model, inputs, Neurons.of(pairs, model.widths), value=0.4, groups=(media, "text", "all"), draws=0
        )
        for group, name in enumerate(found.groups):
            truth = [moved(clean[point][0], held[point][0], inputs.mask(name)[0]) for point in names]
            relative, turned = (torch.tensor(part) for part in zip(*truth, strict=True))
            torch.testing.assert_close(found.relative[group, :, 0].double(), relative, rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(found.turned[group, :, 0].double(), turned, rtol=1e-3, atol=1e-6)
        before = found.relative[0, :2] if len(chosen) == 1 else found.relative[1, :1]
        assert before.abs().max() == 0, "nothing has moved before the layer of the neurons, or where no picture is yet"
        assert found.relative[0, -1].min() > 1e-4 and found.random_relative.shape == (0, 3, depth + 1, 1)


@pytest.fixture(scope="module")
def neurons(llava):
    return Neurons.of([(1, unit) for unit in UNITS], llava.widths)


def test_a_padded_batch_moves_as_its_rows_do_alone_and_a_row_without_a_picture_has_no_number_for_it(llava, neurons):
    inputs = ask(llava, "mixed")
    found = stream_change(llava, inputs, neurons, draws=2)
    assert found.relative[0, :, 1].isnan().all() and found.random_turned[:, 0, :, 1].isnan().all()
    for row, (text, media) in enumerate(questions(llava, "mixed")):
        groups = ("image", "text") if media else ("text",)
        alone = stream_change(llava, llava.to_inputs(text, **media), neurons, groups=groups, draws=2)
        for name in ("relative", "turned", "random_relative", "random_turned"):
            here = getattr(found, name)[..., -len(groups) :, :, row]
            torch.testing.assert_close(here, getattr(alone, name)[..., 0], rtol=1e-3, atol=1e-6)


def test_neurons_held_at_their_own_values_and_no_neurons_move_nothing_at_all(llava, neurons):
    inputs = ask(llava, "padded")
    with llava.hooks(fwd_hooks=[("blocks.*.mlp.hook_post", hooks.replace(0.3))]):
        found = stream_change(llava, inputs, neurons, value=0.3, draws=2)
        other = stream_change(llava, inputs, neurons, value=0.2, draws=2)
    for name in ("relative", "turned", "random_relative", "random_turned"):
        assert getattr(found, name).abs().max() == 0
        assert getattr(other, name)[..., 2:, :].min() > 0
    nothing = stream_change(llava, inputs, Neurons.of([], llava.widths), draws=1)
    assert nothing.relative.abs().max() == 0 and nothing.random_relative.abs().max() == 0


def test_the_last_block_and_positions_that_attend_to_none_that_was_held_stay_where_they_are(llava):
    inputs = ask(llava, "padded")
    last = Neurons.of([(2, 1)], llava.widths)
    found = stream_change(llava, inputs, last, where=inputs.last(), groups=("image", "all"), draws=0)
    assert found.relative[0].abs().max() == 0, "the last position is read by none"
    assert found.relative[1, :3].abs().max() == 0 and found.relative[1, 3].min() > 0


def test_random_sets_are_the_neurons_own_controls_and_where_is_theirs_too(llava, neurons):
    inputs = ask(llava, "padded")
    where = inputs.mask("image")
    found = stream_change(llava, inputs, neurons, where=where, draws=2, seed=3)
    for draw in range(2):
        own = stream_change(llava, inputs, neurons.random_like(seed=3000 + draw), where=where, draws=0)
        assert torch.equal(found.random_relative[draw], own.relative)
        assert torch.equal(found.random_turned[draw], own.turned)
    assert not torch.equal(found.random_relative[0], found.random_relative[1])


def test_it_loads_as_it_was_saved_and_refuses_a_mask_for_a_tower(llava, neurons, tmp_path):
    inputs = ask(llava, "one")
    found = stream_change(llava, inputs, neurons, draws=1)
    loaded = StreamChange.load(found.save(tmp_path / "change"), model=llava)
    assert torch.equal(loaded.random_turned, found.random_turned) and loaded.groups == ("image", "text")
    assert loaded.provenance.parameters["neurons"] == ["L1.u1", "L1.u3", "L1.u4"]
    with pytest.raises(ValueError, match="ablate those in a call of their own, without `where`"):
        stream_change(llava, inputs, Neurons.of([("vision", 0, 1)], llava.widths), where=inputs.mask("image"))
