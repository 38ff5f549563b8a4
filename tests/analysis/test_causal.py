"""A neuron's causal score is what the logit loses in a whole run without it."""

import pytest
import torch
from support import ask, load

from mmlens import Neurons, hooks, top_k
from mmlens.analysis import CausalScore, causal_score
from mmlens.inputs import MEDIA


@pytest.fixture(scope="module")
def small(small_folder):
    """One tiny model, for what does not depend on the family."""
    return load(small_folder)


def without(model, inputs, tokens, neuron, where=None):
    edits = hooks.ablate(neuron, where=where)
    return model.run_with_hooks(inputs, fwd_hooks=edits)[:, -1].gather(1, tokens[:, None])[:, 0]


@pytest.mark.dear
@torch.no_grad()
def test_it_is_what_the_logit_loses_where_the_neuron_is_ablated_by_itself(model, batches):
    inputs, tokens = batches["padded"], torch.tensor([5, 9])
    layers = (0, 1, model.cfg.n_layers - 1)
    _, cache = model.run_with_cache(inputs, [f"blocks.{layer}.mlp.hook_post" for layer in layers])
    strongest = [(layer, int(cache["post", layer][:, -1].abs().sum(0).argmax())) for layer in layers]
    neurons = Neurons.of(dict.fromkeys(strongest), model.widths)
    logit, falls = model(inputs)[:, -1].gather(1, tokens[:, None])[:, 0], []
    for where in (None, inputs.mask(*MEDIA)):
        found = causal_score(model, inputs, tokens, neurons, where=where)
        truth = torch.stack(
            [logit - without(model, inputs, tokens, neurons[[i]], where) for i in range(len(neurons))], dim=1
        )
        torch.testing.assert_close(found.logit, logit, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.fall, truth, rtol=1e-3, atol=1e-5 * float(logit.abs().max().clamp(min=1)))
        falls.append(truth)
    assert falls[0].abs().max() > 1e-3 and not torch.equal(*falls)


@torch.no_grad()
def test_a_neuron_of_a_tower_is_switched_off_in_a_whole_run(small):
    inputs, tokens = ask(small, "padded"), torch.tensor([5, 9])
    neurons = Neurons.of([("vision", 0, 3), ("language", 1, 7), ("projector", 0, 5)], small.widths)
    found = causal_score(small, inputs, tokens, neurons)
    for index in range(3):
        fall = found.logit - without(small, inputs, tokens, neurons[[index]])
        torch.testing.assert_close(found.fall[:, index], fall, rtol=1e-3, atol=1e-5)


def test_as_a_table_it_has_a_place_for_every_neuron_and_loads_as_it_was_saved(small, tmp_path):
    inputs, tokens = ask(small, "padded"), torch.tensor([5, 9])
    every = Neurons.of([(layer, unit) for layer in range(small.cfg.n_layers) for unit in range(48)], small.widths)
    found = causal_score(small, inputs, tokens, every)
    best = top_k(found.scores()[0], 3, widths=small.widths)
    assert list(best) == [list(every)[index] for index in found.fall[0].argsort(descending=True)[:3]]
    few = causal_score(small, inputs, tokens, best)
    torch.testing.assert_close(few.fall[0], best.score, rtol=1e-3, atol=1e-5)
    assert int(few.scores().isnan().sum()) == 2 * (len(every) - 3) and few.scores("vision").isnan().all()
    loaded = CausalScore.load(few.save(tmp_path / "causal"), model=small)
    assert torch.equal(loaded.fall, few.fall) and loaded.neurons == best


def test_what_nothing_can_be_switched_off_by_is_refused(small):
    inputs, one = ask(small, "padded"), Neurons.of([(0, 3)], small.widths)
    with pytest.raises(ValueError, match="one for each of 2 rows"):
        causal_score(small, inputs, torch.tensor([5]), one)
    with pytest.raises(ValueError, match="without a position"):
        causal_score(small, inputs, torch.tensor([5, 9]), one, where=torch.zeros_like(inputs.mask("all")))
