"""Scores to compare with: the plain model's own activations, and numbers that know nothing."""

import numpy as np
import pytest
import raw
import torch
from scipy.stats import kstest
from support import ask, load, unhooked

from mmlens import top_k
from mmlens.analysis import activation_score, random_score
from mmlens.inputs import MEDIA


@pytest.fixture(scope="module")
def small(small_folder):
    """One tiny model, for what does not depend on the family."""
    return load(small_folder)


@torch.no_grad()
def test_an_activation_score_is_the_largest_or_mean_activation_of_the_plain_model(small, small_folder):
    inputs, plain = ask(small, "padded"), unhooked(small_folder)
    names = [f"blocks.{layer}.mlp.hook_post" for layer in range(small.cfg.n_layers)]
    seen, gates = raw.read(plain, inputs, names)[1], []
    handles = [
        block.mlp.act_fn.register_forward_hook(lambda module, args, out: gates.append(out))
        for block in plain.get_decoder().layers
    ]
    plain(**inputs.kwargs())
    for handle in handles:
        handle.remove()
    for where in (None, inputs.last()):
        masks = (inputs.mask(*MEDIA) if where is None else where).numpy()
        for site, layers in (("post", [seen[name] for name in names]), ("gate_act", gates)):
            for reduce, over in (("max", np.max), ("mean", np.mean)):
                truth = [[over(layer[row].numpy()[mask], axis=0) for layer in layers] for row, mask in enumerate(masks)]
                raw.same(
                    activation_score(small, inputs, site=site, where=where, reduce=reduce), torch.tensor(np.array(truth))
                )


def test_rows_without_positions_are_refused(small):
    with pytest.raises(ValueError, match="row 1 has none"):
        activation_score(small, ask(small, "mixed"))


def test_a_random_score_is_uniform_and_repeats_itself_with_its_seed_only(small):
    score = random_score(small, 0)
    assert score.shape == (small.cfg.n_layers, 48) and len(score.unique()) == score.numel()
    assert torch.equal(score, random_score(small, 0)) and not torch.equal(score, random_score(small, 1))
    assert kstest(score.flatten().numpy(), "uniform").pvalue > 0.01
    vision = random_score(small, 0, module="vision")
    assert top_k(vision, 3, widths=small.widths, module="vision").module == ("vision",) * 3
