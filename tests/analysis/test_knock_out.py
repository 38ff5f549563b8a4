from functools import partial

import pytest
import raw
import torch
from support import ask, load, unhooked

from mmlens import HookedMLLM, metrics
from mmlens.analysis import KnockOutEffect, knock_out_effect
from mmlens.inputs import MEDIA
from mmlens.testing import planted, tiny
from mmlens.testing.plants.layout import CARRIED


def first_logit(logits):
    return logits[:, -1, 5]


@pytest.fixture(scope="module", params=["llava-siglip-qwen2", "gemma3", "qwen2-vl"])
def pair(request, tmp_path_factory):
    """A tiny model, and the same weights with the attention that is written out in raw.py."""
    folder = tiny(request.param, tmp_path_factory.mktemp(request.param))
    return load(folder), unhooked(folder, attn_implementation=raw.REFERENCE)


@torch.no_grad()
def test_each_number_equals_renormalising_a_reference_pattern(pair):
    model, reference = pair
    raw.route(reference)
    inputs = ask(model, "mixed")
    media = inputs.mask(*MEDIA)
    sources = {"media": media, "text": inputs.mask("text") & ~inputs.last()}
    found = knock_out_effect(model, inputs, first_logit, sources=sources, window=2)
    assert found.windows == tuple((start, start + 2) for start in range(model.cfg.n_layers - 1)) and found.sources == (
        "media",
        "text",
    )
    raw.same(found.clean_metric, raw.attention_logits(reference, inputs, {})[:, -1, 5])
    for at, (start, stop) in enumerate(found.windows):
        for source, keys in enumerate(sources.values()):
            gone = (inputs.last()[:, :, None] & keys[:, None, :])[:, None]

            def renormalise(pattern, gone=gone):
                kept = pattern.masked_fill(gone, 0)
                return kept / kept.sum(-1, keepdim=True)

            changes = {f"blocks.{layer}.attn.hook_pattern": renormalise for layer in range(start, stop)}
            raw.same(found.metric[at, source], raw.attention_logits(reference, inputs, changes)[:, -1, 5])
    assert found.change[:, :, 0].abs().amax(0).min() > 1e-3
    raw.same(
        found.metric[:, 0, 1], found.clean_metric[1].expand(len(found.windows))
    )  # a row without media has nothing to lose


@torch.no_grad()
def test_knocking_out_nothing_changes_nothing(pair):
    model, inputs = pair[0], ask(pair[0], "mixed")
    nothing = torch.zeros_like(inputs.mask("all"))
    for queries, sources in ((nothing, ["image"]), (None, {"nothing": nothing})):
        found = knock_out_effect(model, inputs, first_logit, queries=queries, sources=sources)
        raw.same(found.metric, found.clean_metric.expand_as(found.metric))


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_the_planted_two_hops_are_found_by_window_and_group_and_not_in_the_twin(modality, tmp_path):
    made = planted(tmp_path, modality=modality)
    model, twin = (HookedMLLM.from_pretrained(folder, device="cpu") for folder in (made.folder, made.twin))
    nouns = {"carry": CARRIED[0], "speak": "car"}
    stimuli = [made.stimulus({3: noun}, domain="noon", seed=5) for noun in nouns.values()]
    inputs = model.to_inputs(**made.arguments(stimuli))
    correct = torch.tensor([model.to_token(one.answer) for one in stimuli])
    metric = partial(metrics.log_prob, token=correct)
    here = torch.zeros_like(inputs.mask("all"))
    here[:, inputs.mask(modality)[0].nonzero()[3]] = True
    every = inputs.mask(modality)
    sources = {"shown": here, "other media": every & ~here, "words": inputs.mask("text") & ~inputs.last()}
    for window in (1, 2):
        found = knock_out_effect(model, inputs, metric, sources=sources, window=window)
        for row, head in enumerate(nouns):
            layer = made.key.heads[head][0]
            for at, (start, stop) in enumerate(found.windows):
                if start <= layer < stop:
                    assert found.change[at, 0, row] < -5
                else:
                    assert found.change[at, 0, row] > -1
            assert found.change[:, 1:, row].abs().max() < 1
    assert knock_out_effect(twin, inputs, metric, sources=sources).change.abs().max() < 1


def test_chosen_windows_are_those_of_all_that_start_at_these_layers(llava):
    inputs = ask(llava, "padded")
    every = knock_out_effect(llava, inputs, first_logit, sources=["image"], window=2)
    some = knock_out_effect(llava, inputs, first_logit, sources=["image"], layers=[1], window=2)
    assert some.windows == ((1, 3),) and some.metric.equal(every.metric[1:]) and every.change.abs().max() > 0
    with pytest.raises(IndexError, match="start at the layers 0 to 1"):
        knock_out_effect(llava, inputs, first_logit, sources=["image"], layers=[2], window=2)


def test_windows_that_do_not_fit_are_refused(llava):
    with pytest.raises(ValueError, match="a window has 1 to 3 layers"):
        knock_out_effect(llava, ask(llava, "one"), first_logit, sources=["image"], window=4)


def test_it_loads_as_it_was_saved(llava, tmp_path):
    found = knock_out_effect(llava, ask(llava, "one"), first_logit, sources=["image", "special"])
    loaded = KnockOutEffect.load(found.save(tmp_path / "effect"))
    assert loaded.change.equal(found.change) and loaded.sources == ("image", "special")
