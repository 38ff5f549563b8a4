"""The last layer that is said to be live changes what every family predicts; what lies behind it changes nothing."""

from contextlib import contextmanager

import torch
from support import ask


@contextmanager
def silenced(model, module, layer):
    """Take away what a layer's neurons write, in the weights themselves: hooks would refuse a layer that is not read."""
    weights = model.W_out(layer, module)
    before = weights.clone()
    weights.zero_()
    try:
        assert not model.W_out(layer, module).any()
        yield
    finally:
        weights.copy_(before)


@torch.no_grad()
def test_of_each_module_the_last_live_layer_changes_the_logits_and_the_next_does_not(model):
    inputs = ask(model, "one")
    before, live = model(inputs), model.live_layers
    assert live.keys() == model.widths.keys() and live["language"] == len(model.widths["language"])
    for module, widths in model.widths.items():
        assert 1 <= live[module] <= len(widths)
        with silenced(model, module, live[module] - 1):
            assert (model(inputs) - before).abs().max() > 1e-4, module
        for layer in range(live[module], len(widths)):
            with silenced(model, module, layer):
                assert torch.equal(model(inputs), before), module
    assert torch.equal(model(inputs), before)


def test_llava_reads_the_second_to_last_layer_of_its_tower(small):
    depth = {module: len(widths) for module, widths in small.widths.items()}
    assert small.live_layers == {**depth, "vision": depth["vision"] - 1}
