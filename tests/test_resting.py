"""Components without a hook rest for the length of a run, and nobody can tell but by the time it takes."""

import pytest
import torch
from support import ask as asking
from transformer_lens.model_bridge.generalized_components.linear import LinearBridge

from mmlens import hooks


@pytest.fixture
def ask(small):
    return asking(small, "one")


@pytest.fixture
def called(monkeypatch):
    """The names of the linear components whose own forward ran."""
    names, forward = [], LinearBridge.forward

    def noted(self, *args, **kwargs):
        names.append(self.name)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LinearBridge, "forward", noted)
    return names


def tree(model):
    return {name: id(module) for name, module in model.hf_model.named_modules()}


@pytest.mark.dear
@torch.no_grad()
def test_a_run_without_hooks_passes_none_of_the_bridges_linear_components_and_has_the_same_bits(model, batches, called):
    inputs = batches["mixed"]
    rested = model(inputs)
    ran = len(called)
    awake, _ = model.run_with_cache(inputs)
    assert len(called) >= ran + model.cfg.n_layers
    assert torch.equal(rested, awake)


@torch.no_grad()
def test_only_what_has_a_hook_is_awake(small, ask, called):
    seen = []
    small.run_with_hooks(ask, fwd_hooks=[("blocks.1.mlp.hook_post", hooks.feed(lambda value, hook: seen.append(value)))])
    assert called == ["down_proj"] and len(seen) == 1


@torch.no_grad()
def test_a_run_within_a_hook_wakes_what_it_needs_and_the_outer_run_goes_on(small, ask):
    seen, running, plain = [], [], small(ask)

    def again(value, hook):
        if running:
            return
        running.append(True)
        feed = hooks.feed(lambda inner, hook: seen.append(inner))
        small.run_with_hooks(ask, fwd_hooks=[("blocks.2.mlp.hook_post", feed)])

    outer = small.run_with_hooks(ask, fwd_hooks=[("blocks.0.mlp.hook_post", again)])
    assert len(seen) == 1 and torch.equal(outer, plain)


def test_weights_are_found_by_their_names_within_a_hook(small, ask):
    found = []
    small.run_with_hooks(ask, fwd_hooks=[("blocks.1.hook_resid_pre", lambda value, hook: found.append(small.W_out(2)))])
    assert torch.equal(found[0], small.W_out(2))


def test_the_tree_is_what_it_was_behind_a_run_and_behind_one_that_raised(small, ask):
    def explode(value, hook):
        raise RuntimeError("the hook failed")

    small(ask)
    before = tree(small)
    for run in (small.run_with_hooks, small.generate):
        with pytest.raises(RuntimeError, match="the hook failed"):
            run(ask, fwd_hooks=[("blocks.1.mlp.hook_post", explode)])
        assert tree(small) == before
    small.generate(ask, max_new_tokens=2)
    assert tree(small) == before


def test_a_module_that_somebody_else_put_there_is_let_alone(small, ask):
    block = small.hf_model.model.language_model.layers[1]
    own = block.mlp.up_proj
    block.mlp.up_proj = torch.nn.Linear(32, 48, bias=False)
    try:
        changed = small(ask)
        assert block.mlp.up_proj is not own
    finally:
        block.mlp.up_proj = own
    assert not torch.equal(small(ask), changed)


def test_torch_hooks_on_a_component_itself_are_called(small, ask):
    seen = []
    linear = small.bridge.blocks[1].mlp.submodules["out"]
    handle = linear.register_forward_hook(lambda module, args, out: seen.append(out))
    small(ask)
    handle.remove()
    assert len(seen) == 1
