import pytest
import torch
from support import ask

from mmlens import HookedMLLM
from mmlens.analysis import AttentionSinks, attention_rows, attention_sinks
from mmlens.analysis.attention_sinks import LEAST, spread
from mmlens.testing import planted


@pytest.fixture(scope="module", params=["image", "audio"])
def case(request, tmp_path_factory):
    made = planted(tmp_path_factory.mktemp("planted"), modality=request.param)
    model, twin = (HookedMLLM.from_pretrained(folder, device="cpu") for folder in (made.folder, made.twin))
    return made, model, twin, model.to_inputs(**made.arguments(made.stimuli(9)))


def test_the_planted_sink_is_found_in_its_layers_and_heads_and_in_the_twin_there_is_none(case):
    made, model, twin, inputs = case
    ours, twins = attention_sinks(model, inputs), attention_sinks(twin, inputs)
    layers, heads = ours.drawn.shape[0], ours.drawn.shape[2]
    rests = torch.zeros(layers, heads, dtype=torch.bool)
    for layer, head in made.key.heads.values():  # all planted heads rest on the first token where they seek nothing
        rests[layer, head] = True
    found = ours.drawn >= 0.3
    first = found[:, :, :, 0]
    assert first.eq(rests[:, None]).all()
    assert not found[..., 1:].any()
    assert ours.drawn[*made.key.heads["sink"][:1], :, made.key.heads["sink"][1], 0].min() > 0.9
    expected = torch.zeros(layers, len(inputs), inputs.tokens.shape[1], dtype=torch.bool)
    expected[:, :, 0] = (rests.float().mean(1) >= 0.5)[:, None]
    assert ours.where().equal(expected) and expected.any()
    assert ours.where(of_heads=1 / heads)[:, :, 0].all()
    assert not twins.where()[:, :, 0].any()
    # Its scrambled heads still look at something: that two of a layer agree on a key happens once in a thousand keys, and
    # never twice at a position.
    assert twins.where().sum(1).max() <= 1 and twins.where().sum() <= 1e-3 * (~twins.drawn.isnan()).any(2).sum() + 1


def test_sinks_are_shown_beside_the_raw_rows(case):
    _, model, _, inputs = case
    rows, sinks = attention_rows(model, inputs), attention_sinks(model, inputs)
    on_sinks = rows.mass(sinks.where())
    torch.testing.assert_close(on_sinks, rows.pattern[..., 0] * sinks.where()[:, :, None, None, 0])
    torch.testing.assert_close(rows.pattern.sum(-1), torch.ones_like(on_sinks))  # nothing was taken out
    assert (on_sinks[sinks.where()[:, 0, 0]] > 0.8).any()


@torch.no_grad()
def test_what_is_drawn_equals_a_loop_over_queries(llava):
    inputs = ask(llava, "mixed")
    found = attention_sinks(llava, inputs)
    _, cache = llava.run_with_cache(inputs, "blocks.*.attn.hook_pattern")
    compared = 0
    for layer in found.layers:
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
        for row, real in enumerate(inputs.mask("all")):
            places = real.nonzero()[:, 0].tolist()
            for index, key in enumerate(places):
                behind = places[index + 1 :]
                if len(behind) < LEAST:
                    assert found.drawn[layer, row, :, key].isnan().all()
                    continue
                share = torch.stack([pattern[row, :, query, key] for query in behind])
                equal = torch.tensor([1 / (places.index(query) + 1) for query in behind])[:, None]
                excess = (share - equal) / (1 - equal)  # [query, head]
                given = torch.tensor([max(x for x in head if sum(head >= x) >= 0.75 * len(head)) for head in excess.T])
                torch.testing.assert_close(found.drawn[layer, row, :, key], given, atol=1e-5, rtol=0)
                compared += 1
            assert found.drawn[layer, row][:, ~real].isnan().all()
    assert compared > 10


def test_positions_are_spread_from_the_first_to_the_last():
    where = torch.arange(300)[None] >= torch.tensor([[100], [295]])
    chosen = spread(where, 5)
    assert [row.nonzero()[:, 0].tolist() for row in chosen] == [[100, 150, 200, 249, 299], [295, 296, 297, 298, 299]]
    assert spread(torch.zeros(1, 4, dtype=torch.bool)).sum() == 0


def test_it_loads_as_it_was_saved(llava, tmp_path):
    sinks = attention_sinks(llava, ask(llava, "one"))
    assert AttentionSinks.load(sinks.save(tmp_path / "sinks")).where().equal(sinks.where())
