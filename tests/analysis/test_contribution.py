"""What neurons contribute to a logit is a product of the plain model's numbers, and adds up to it with all the rest."""

from dataclasses import replace

import pytest
import raw
import torch
from support import ask, load, unhooked

from mmlens.analysis import Contribution, direct_logit_attribution, logit_contribution
from mmlens.targets import Targets


@pytest.fixture(scope="module")
def small(small_folder):
    """One tiny model, for what does not depend on the family."""
    return load(small_folder)


@pytest.fixture(scope="module")
def seen(plain, batches):
    """What the plain model holds at the points that are compared."""
    names = ["blocks.1.mlp.hook_post", "ln_final.hook_in", "hook_unembed"]
    with torch.no_grad():
        return raw.read(plain, batches["mixed"], names)[1]


def somewhere(inputs):
    """Return targets in two rows: two tokens at one position, one at another, and one at the last of another row."""
    return Targets(
        row=torch.tensor([2, 0, 0, 0]),
        position=torch.tensor(
            [inputs.tokens.shape[1] - 1, inputs.tokens.shape[1] - 3, inputs.tokens.shape[1] - 1, -3 % inputs.tokens.shape[1]]
        ),
        token=torch.tensor([7, 5, 5, 9]),
        word=torch.tensor([0, 1, 1, 2]),
        words=("one", "two", "three"),
    )


@pytest.mark.dear
@torch.no_grad()
def test_a_score_is_the_activation_times_the_row_of_w_out_times_the_column_of_w_u(model, plain, batches, seen):
    inputs = batches["mixed"]
    targets = somewhere(inputs)
    at = targets.row, targets.position
    post, rows = seen["blocks.1.mlp.hook_post"][at], raw.weight(plain, "blocks.1.mlp.hook_post")
    read = plain.get_output_embeddings().weight[targets.token]
    norm, stream = raw.locate(plain, "ln_final.hook_in")[0], seen["ln_final.hook_in"]
    gain, scale = raw.gain_and_scale(norm, stream)
    scale = scale[at] if scale.ndim == 3 else scale.view(*stream.shape[:2], 1)[at]
    way = raw.way_into_stream(plain, inputs, "blocks.1.hook_mlp_out")
    by_position = way if isinstance(way, float) else way[at][:, None]
    vectors = post[:, :, None] * rows * by_position  # [target, unit, d_model]
    frozen = torch.einsum("tum,tm->tu", raw.centred(norm, vectors) * gain, read) / scale
    found = logit_contribution(model, inputs, targets, norm="frozen")
    raw.same(found.scores[:, 1], frozen)
    raw.same(found.activation[:, 1], post)
    found = logit_contribution(model, inputs, targets)
    post_norm = raw.locate(plain, "blocks.1.hook_mlp_out")[0]
    own = 1.0 if isinstance(way, float) else raw.gain_and_scale(post_norm, stream)[0]
    raw.same(found.scores[:, 1], torch.einsum("tu,um,tm->tu", post, rows * own, read))
    if not model.is_gated(1):
        assert torch.equal(logit_contribution(model, inputs, targets, site="gate_act").scores, found.scores)


@torch.no_grad()
def test_contributions_and_all_that_is_not_a_neuron_add_up_to_the_plain_models_logit(model, batches, seen):
    inputs, tokens = batches["mixed"], torch.tensor([5, 9, 7])
    found = logit_contribution(model, inputs, tokens, norm="frozen")
    direct = direct_logit_attribution(model, inputs, tokens, by="neuron")
    raw.same(found.scores, direct.scores("neuron").permute(2, 0, 1))
    others = [one for one, kind in enumerate(direct.components.kind) if kind != "neuron"]
    logits = seen["hook_unembed"][:, -1].gather(1, tokens[:, None])[:, 0]
    raw.same(found.scores.sum((1, 2)) + direct.parts[others].sum(0) + model.b_U[tokens], logits)


@torch.no_grad()
def test_at_gate_act_the_activation_is_the_gates_own(small, small_folder):
    inputs, plain, seen = ask(small, "padded"), unhooked(small_folder), []
    mlp = plain.get_decoder().layers[1].mlp
    handle = mlp.act_fn.register_forward_hook(lambda module, args, out: seen.append(out[:, -1]))
    plain(**inputs.kwargs())
    handle.remove()
    found = logit_contribution(small, inputs, torch.tensor([5, 9]), site="gate_act")
    raw.same(found.activation[:, 1], seen[0])
    written = mlp.down_proj.weight.T @ plain.lm_head.weight[[5, 9]].T
    raw.same(found.scores[:, 1], seen[0] * written.T)


def test_words_are_means_of_their_tokens_and_it_loads_as_it_was_saved(small, tmp_path):
    inputs = ask(small, "mixed")
    found = logit_contribution(small, inputs, somewhere(inputs))
    assert found.scores.shape == found.activation.shape == (4, small.cfg.n_layers, 48)
    torch.testing.assert_close(found.targets.mean(found.scores)[1], found.scores[1:3].mean(0))
    loaded = Contribution.load(found.save(tmp_path / "contribution"), model=small)
    assert torch.equal(loaded.scores, found.scores) and loaded.targets.words == ("one", "two", "three")


def test_a_target_that_is_not_there_is_refused(small):
    inputs = ask(small, "mixed")
    targets = somewhere(inputs)
    for changes in ({"row": targets.row + 1}, {"position": targets.position + 1}, {"token": targets.token + 10_000}):
        with pytest.raises(ValueError, match="a target is one of"):
            logit_contribution(small, inputs, replace(targets, **changes))
    padding = replace(targets, position=torch.zeros_like(targets.position))
    with pytest.raises(ValueError, match="at row 2, position 0"):
        logit_contribution(small, inputs, padding)
    with pytest.raises(ValueError, match="one for each of 3 rows"):
        logit_contribution(small, inputs, torch.tensor([5]))
