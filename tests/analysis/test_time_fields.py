"""When a neuron fires is its activation over a sound's positions, and an overlap is one of seconds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import load, sound

from mmlens import Neurons
from mmlens.analysis.time_fields import TimeField, time_field
from mmlens.grid import Timeline
from mmlens.testing import tiny


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    model = load(tiny("qwen2-audio", tmp_path_factory.mktemp("heard")))
    token = model.processor.audio_token
    return model, model.to_inputs(["what", f"{token} and {token} which ?"], audio=[sound(0), [sound(1), sound(2)]])


@pytest.fixture(scope="module")
def neurons(heard):
    return Neurons.of([(0, 1), (1, 5)], heard[0].widths)


@pytest.fixture
def made(heard, neurons):
    """Return a function that makes a field with these activations, positions 40 ms long."""
    real = time_field(*heard, neurons)
    return lambda values: replace(real, activations=values, timeline=Timeline(values.shape[1], 0.04))


def test_a_field_is_the_activation_at_the_positions_of_its_row_and_sound(heard, neurons):
    model, inputs = heard
    found = time_field(model, inputs, neurons, row=1, sound=1, sign=torch.tensor([1.0, -2.0]))
    _, cache = model.run_with_cache(inputs, "blocks.*.mlp.hook_post")
    here = inputs.mask("audio:1")[1]
    torch.testing.assert_close(found.activations[0], cache["post", 0][1, here, 1])
    torch.testing.assert_close(found.activations[1], -cache["post", 1][1, here, 5])
    assert found.timeline == inputs.grids[1][1] and found.activations.shape[1] == len(found.timeline)


@pytest.mark.parametrize(("start", "stop"), [(0.0, 0.4), (0.37, 1.21), (1.93, 2.4), (0.5, 0.51)])
def test_overlap_is_that_of_milliseconds_counted_one_by_one(made, start, stop):
    random = np.random.default_rng(0)
    activations = random.normal(size=(2, 60))
    found = made(torch.tensor(activations, dtype=torch.float32))
    moments = (np.arange(2400) + 0.5) / 1000
    inside = (moments >= start) & (moments < stop)
    for neuron, values in enumerate(activations):
        above = np.repeat(values > np.quantile(values, 0.8), 40)
        expected = (above & inside).sum() / (above | inside).sum()
        assert found.iou(start, stop, 0.8)[neuron].item() == pytest.approx(expected, abs=1e-5)
    assert found.bound(start, stop, 0.8) == pytest.approx(min(0.48, stop - start) / max(0.48, stop - start))


def test_overlap_with_itself_is_one_and_elsewhere_zero(made):
    values = torch.zeros(2, 100)
    values[:, 40:45] = 1.0
    found = made(values)
    assert found.mask().sum(1).tolist() == [5, 5]
    assert found.iou(1.6, 1.8).tolist() == pytest.approx([1, 1]) and found.iou(0.0, 1.6).tolist() == [0, 0]
    assert found.bound(1.6, 1.8) == pytest.approx(1)


def test_sounds_that_are_not_there_and_intervals_that_run_backwards_are_refused(heard, neurons, tmp_path):
    model, inputs = heard
    for row, number in ((0, 1), (1, 2), (0, -1)):
        with pytest.raises(ValueError, match=f"no sound {number}"):
            time_field(model, inputs, neurons, row=row, sound=number)
    found = time_field(model, inputs, neurons)
    with pytest.raises(ValueError, match="begins before it ends"):
        found.iou(1.0, 1.0)
    again = TimeField.load(found.save(tmp_path / "field"), model=model)
    assert torch.equal(again.activations, found.activations) and again.timeline == found.timeline
