"""Convergence of the last position: identities in every family, numpy's numbers, neurons beside random ones."""

import numpy as np
import pytest
import torch
from support import ask, picture

from mmlens import Neurons, hooks
from mmlens.analysis import last_token_convergence
from mmlens.analysis.convergence import Convergence


def test_the_last_layer_has_converged_to_itself_and_says_what_the_model_says(model, batches):
    inputs = batches["padded"]
    found = last_token_convergence(model, inputs)
    torch.testing.assert_close(found.cosine[-1], torch.ones(len(inputs)), rtol=1e-5, atol=1e-5)
    assert found.clean.kl[-1].abs().max() < 1e-5
    assert found.clean.kl.min() > -1e-5 and found.cosine.abs().max() <= 1 + 1e-5
    media = model.family.takes[0]
    shares = last_token_convergence(model, inputs, groups=(media, "text", "special")).clean.mass.sum(0)
    assert (shares <= 1 + 1e-5).all() and (shares > 0).all(), "the rest is what it gives to itself"


def test_curves_are_numpys_of_the_cached_stream_and_patterns(small):
    model = small[0]
    inputs = model.to_inputs(["what is it", "which object is red ?"], images=[picture(0), picture(1)])
    found = last_token_convergence(model, inputs, groups=("image", "text", "audio")).clean
    with torch.no_grad():
        logits, cache = model.run_with_cache(
            inputs, ["blocks.0.hook_resid_pre", "blocks.*.hook_resid_post", "*hook_pattern"]
        )
    streams = [v.double().numpy() for name, v in cache.items() if "resid" in name]
    patterns = [cache[f"blocks.{layer}.attn.hook_pattern"].double().numpy() for layer in range(3)]
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    for row in range(len(inputs)):
        for layer, stream in enumerate(streams):
            cosine = unit(stream[row, -1]) @ unit(streams[-1][row, -1])
            assert found.cosine[layer, row] == pytest.approx(cosine, abs=1e-5)
            for group, name in enumerate(("image", "text")):
                others = inputs.mask(name)[row].numpy().copy()
                others[-1] = False
                centroid = unit(unit(stream[row][others]).mean(0))
                assert found.centroids[group, layer, row] == pytest.approx(centroid @ unit(stream[row, -1]), abs=1e-5)
                if layer < 3:
                    share = patterns[layer][row, :, -1][:, others].mean(0).sum()
                    assert found.mass[group, layer, row] == pytest.approx(share, abs=1e-5)
    assert found.centroids[2].isnan().all() and (found.mass[2] == 0).all()
    middle = torch.log_softmax(model.unembed(cache["blocks.1.hook_resid_post"][:, -1]), -1)
    output = torch.log_softmax(logits[:, -1], -1)
    expected = torch.nn.functional.kl_div(middle, output, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(found.kl[2], expected, rtol=1e-4, atol=1e-6)


def test_ablating_nothing_alive_changes_nothing_and_random_sets_are_the_hooks_own(small, tmp_path):
    model = small[0]
    inputs = ask(model, "one")
    neurons = Neurons.of([(0, 1), (1, 2), (1, 3)], model.widths)
    dead = [(f"blocks.{layer}.mlp.hook_post", hooks.replace(0.0)) for layer in range(3)]
    with model.hooks(fwd_hooks=dead):
        found = last_token_convergence(model, inputs, neurons=neurons, draws=2)
    for curve in ("cosine", "mass", "kl"):
        assert found.difference(curve).abs().max() == 0 and found.random_difference(curve).abs().max() == 0
    image = inputs.mask("image")
    found = last_token_convergence(model, inputs, neurons=neurons, where=image, draws=0)
    with model.hooks(fwd_hooks=hooks.ablate(neurons, where=image)):
        assert found.ablated is not None
        assert torch.equal(found.ablated.kl, last_token_convergence(model, inputs).clean.kl)
    found = last_token_convergence(model, inputs, neurons=neurons, draws=2, seed=3)
    off = hooks.ablate(neurons.random_like(seed=3001))
    with model.hooks(fwd_hooks=off):
        by_hand = last_token_convergence(model, inputs).clean
    assert torch.equal(found.random[1].cosine, by_hand.cosine)
    assert found.difference("kl").abs().max() > 0
    loaded = Convergence.load(found.save(tmp_path / "convergence"))
    assert torch.equal(loaded.difference("mass"), found.difference("mass"))
    with pytest.raises(ValueError, match="give last_token_convergence the `neurons`"):
        last_token_convergence(model, inputs).difference("kl")
