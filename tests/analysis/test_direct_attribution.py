"""What components add to a logit adds up to the plain model's logit, through its own final norm."""

import pytest
import raw
import torch
from support import ask, load

from mmlens.analysis import DirectAttribution, direct_logit_attribution, residual

BY = ("layer", "component", "head", "neuron")


@pytest.fixture(scope="module")
def small(small_folder):
    """One tiny model, for what does not depend on the family."""
    return load(small_folder)


@pytest.fixture(scope="module")
def run(model, plain, batches):
    """Inputs, a token and another for each row, and the logits of the plain model's unembedding, before a soft cap."""
    inputs = batches["mixed"]
    tokens = torch.tensor([5, 9, 7])
    return inputs, tokens, tokens + 11, raw.read(plain, inputs, ["hook_unembed"])[1]["hook_unembed"]


def of_rows(logits, tokens):
    return logits.gather(-1, tokens[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]


@torch.no_grad()
def test_parts_add_up_to_the_plain_models_logits_less_what_is_there_anyway(model, plain, run):
    inputs, tokens, other, logits = run
    norm, head = raw.locate(plain, "ln_final.hook_out")[0], plain.get_output_embeddings()
    bias = getattr(norm, "bias", None)
    logits = logits - head(torch.zeros_like(norm.weight) if bias is None else bias)
    own, theirs, where = of_rows(logits, tokens), of_rows(logits, other), inputs.mask("all")
    for by in ("head", "neuron"):
        found = direct_logit_attribution(model, inputs, tokens, where=where, by=by)
        raw.same(found.logits, own[where])
        raw.same(found.parts.sum(0), own[where])
    found = direct_logit_attribution(model, inputs, tokens, against=other, by="layer")
    raw.same(found.parts.sum(0), (own - theirs)[:, -1])


@torch.no_grad()
def test_one_heads_part_is_its_vector_through_the_norm_that_the_whole_stream_set(model, plain, run):
    inputs, tokens, _, _ = run
    whole = residual(model, inputs)
    found = direct_logit_attribution(model, inputs, tokens, by="head")
    norm = raw.locate(plain, "ln_final.hook_out")[0]
    gain, scale = raw.gain_and_scale(norm, whole.stream)
    read = plain.get_output_embeddings().weight[tokens]
    for label in ("embed", "L1H2", "1_mlp_out"):
        truth = (raw.centred(norm, whole.part(label)) / scale * gain * read).sum(-1)
        raw.same(found.parts[found.components.find(label)], truth)


@torch.no_grad()
def test_finer_parts_add_up_to_coarser_ones(small):
    inputs = ask(small, "padded")
    tokens = torch.tensor([5, 9])
    layer, component, head, neuron = (direct_logit_attribution(small, inputs, tokens, by=by) for by in BY)
    rest = [one for one, kind in enumerate(neuron.components.kind) if kind == "mlp_rest"]
    raw.same(head.scores("head").sum(1), component.scores("attn")[:, 0])
    raw.same(neuron.scores("neuron").sum(1) + neuron.parts[rest], component.scores("mlp")[:, 0])
    raw.same(layer.scores("block"), component.scores("attn") + component.scores("mlp"))
    assert neuron.scores("neuron").shape == (small.cfg.n_layers, 48, 2)


def test_the_highest_come_first_and_it_loads_as_it_was_saved(small, tmp_path):
    inputs = ask(small, "padded")
    found = direct_logit_attribution(small, inputs, torch.tensor([5, 9]), by="head")
    by_hand = sorted(zip(found.parts.mean(-1).tolist(), found.components.labels(), strict=True), reverse=True)
    assert found.top(3) == [(label, value) for value, label in by_hand[:3]]
    loaded = DirectAttribution.load(found.save(tmp_path / "direct"), model=small)
    assert torch.equal(loaded.scores("head"), found.scores("head"))
    assert loaded.against is None


def test_a_token_for_another_number_of_rows_and_a_kind_that_is_not_there_are_refused(small):
    inputs = ask(small, "padded")
    with pytest.raises(ValueError, match="one for each of 2 rows"):
        direct_logit_attribution(small, inputs, torch.tensor([5]))
    with pytest.raises(ValueError, match="'head'"):
        direct_logit_attribution(small, inputs, torch.tensor([5, 9]), by="neuron").scores("head")
