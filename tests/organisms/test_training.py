"""Training that was killed goes on to the same weights."""

import pytest
import torch
from torch import nn

from mmlens.organisms.training import Run, muon_and_adamw


class Killed(Exception):
    pass


def descend(keep, *, killed_at=None, seed=0):
    """Train a small network, whose start depends on `seed`, and return it and the losses."""
    torch.manual_seed(seed)
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(6, 6) for _ in range(2)]), "head": nn.Linear(6, 1)})

    def loss_at(step):
        if step == killed_at:
            raise Killed
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        hidden = inputs
        for layer in model["layers"]:
            hidden = layer(hidden).tanh()
        return (model["head"](hidden)[:, 0] - inputs.sum(-1)).square().mean()

    run = Run("small", steps=40, batch=8, seed=0, keep=keep, every=10)
    return model, run.descend(loss_at, muon_and_adamw(model, 0.02, 0.1)).losses


@pytest.mark.parametrize("killed_at", [10, 25, 39])
def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(tmp_path, killed_at):
    whole, losses = descend(tmp_path / "whole")
    with pytest.raises(Killed):
        descend(tmp_path / "kept", killed_at=killed_at)
    resumed, again = descend(tmp_path / "kept", seed=1)  # what it starts from does not matter: the kept state does
    assert again == losses
    assert all(one.equal(two) for one, two in zip(whole.parameters(), resumed.parameters(), strict=True))
