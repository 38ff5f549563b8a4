import pytest
import torch
from support import ask
from torch.utils._python_dispatch import TorchDispatchMode

from mmlens import HookedMLLM
from mmlens.analysis import AttentionRows, attention_rows
from mmlens.attention import ROWS, rows_of
from mmlens.hooks import feed, knock_out
from mmlens.inputs import MEDIA, MODALITIES
from mmlens.testing import planted, tiny
from mmlens.testing.plants.layout import CARRIED


@torch.no_grad()
def test_rows_beside_a_knock_out_are_what_is_left(llava):
    inputs = ask(llava, "mixed")
    blocked = knock_out(inputs.last(), inputs.mask(*MEDIA), layers=[1])
    with llava.hooks(fwd_hooks=blocked):
        rows = attention_rows(llava, inputs)
    assert (rows.mass(*MEDIA)[1] == 0).all() and (rows.mass(*MEDIA)[[0, 2], 0] > 0).all()
    torch.testing.assert_close(rows.mass("text", "special"), 1 - rows.mass(*MEDIA))


@torch.no_grad()
def test_chosen_layers_and_heads_are_those_of_all_and_come_in_their_order(llava):
    inputs = ask(llava, "padded")
    every, some = attention_rows(llava, inputs), attention_rows(llava, inputs, layers=[2, 0], heads=[3, 1])
    assert (some.layers, some.heads) == ((0, 2), (3, 1))
    assert some.pattern.equal(every.pattern[[0, 2]][:, :, [3, 1]])


@torch.no_grad()
def test_mass_is_the_sum_over_keys_of_a_modality_or_a_mask_and_all_of_it_is_one(llava):
    inputs = ask(llava, "mixed")
    rows = attention_rows(llava, inputs)
    torch.testing.assert_close(rows.mass(*MODALITIES), torch.ones_like(rows.pattern[..., 0]))
    kind = next(kind for kind in MEDIA if inputs.mask(kind).any())
    by_hand = torch.stack([rows.pattern[:, row][..., here].sum(-1) for row, here in enumerate(inputs.mask(kind))], 1)
    torch.testing.assert_close(rows.mass(kind), by_hand)
    torch.testing.assert_close(rows.mass(inputs.mask(kind)), by_hand)
    by_layer = torch.zeros(len(rows.layers), *inputs.tokens.shape, dtype=torch.bool)
    by_layer[1] = inputs.mask(kind)
    torch.testing.assert_close(rows.mass(by_layer), by_hand * (torch.arange(len(rows.layers)) == 1)[:, None, None, None])
    assert by_hand.amax() > 0
    with pytest.raises(ValueError, match="a group of keys is a mask"):
        rows.mass(torch.ones(1, 1, dtype=torch.bool))


@torch.no_grad()
def test_on_the_grid_each_position_stands_where_the_grid_has_it(llava):
    inputs = ask(llava, "padded")
    rows = attention_rows(llava, inputs, layers=[1])
    ((grid, found),) = rows.on_grid(row=1)
    image = inputs.mask("image")[1].nonzero()[:, 0]
    for line in range(grid.rows):
        for place in range(grid.columns):
            box = grid.box(line * grid.columns + place)
            assert box is not None
            left, top, right, bottom = box
            position = image[grid.index((left + right) / 2, (top + bottom) / 2)]
            assert found[0, :, 0, line, place].equal(rows.pattern[0, 1, :, 0, position])
    assert found.std() > 0
    with pytest.raises(ValueError, match="a map needs a picture"):
        rows.on_grid(row=1, medium=1)


@torch.no_grad()
def test_it_loads_as_it_was_saved(llava, tmp_path):
    rows = attention_rows(llava, ask(llava, "one"))
    loaded = AttentionRows.load(rows.save(tmp_path / "rows"))
    assert loaded.pattern.equal(rows.pattern) and loaded.mass("image").equal(rows.mass("image"))
    assert loaded.on_grid()[0][0] == rows.on_grid()[0][0]


def test_queries_of_other_inputs_or_none_and_heads_that_are_not_there_are_refused(llava):
    inputs, other = ask(llava, "one"), ask(llava, "padded")
    with pytest.raises(ValueError, match=r"queries are a mask .* of these inputs' positions"):
        attention_rows(llava, inputs, queries=other.last())
    with rows_of(torch.tensor([[999]])), pytest.raises(ValueError, match="queries are positions below"):
        llava.run_with_hooks(inputs, fwd_hooks=[(f"blocks.*.attn.{ROWS}", feed(lambda rows, hook: None))])
    for module, asked in (("nothing", inputs), ("vision", llava.to_inputs("the red car"))):
        with pytest.raises(ValueError, match="has run"):
            attention_rows(llava, asked, queries=asked.last(), module=module)
    with pytest.raises(ValueError, match="needs a query"):
        attention_rows(llava, inputs, queries=inputs.mask("pad"))
    with pytest.raises(IndexError, match="has the heads 0 to"):
        attention_rows(llava, inputs, heads=[99])


@torch.no_grad()
def test_in_a_generation_a_step_behind_the_prompt_shows_its_own_position(llava):
    inputs, seen, whole = ask(llava, "one"), [], []
    looks = [
        (f"blocks.1.attn.{ROWS}", feed(lambda rows, hook: seen.append(rows))),
        ("blocks.1.attn.hook_pattern", feed(lambda pattern, hook: whole.append(pattern))),
    ]
    for hooks in (looks[:1], looks[1:]):
        with rows_of(torch.tensor([[2, 5]])):
            llava.generate(inputs, max_new_tokens=3, min_new_tokens=3, fwd_hooks=hooks)
    torch.testing.assert_close(seen[0], whole[0][:, :, [2, 5]], atol=1e-5, rtol=0)
    for ours, theirs in zip(seen[1:], whole[1:], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_the_planted_carriers_are_the_heads_that_look_at_what_is_shown_and_in_the_twin_there_are_none(modality, tmp_path):
    made = planted(tmp_path, modality=modality)
    model, twin = (HookedMLLM.from_pretrained(folder, device="cpu") for folder in (made.folder, made.twin))
    carriers = {CARRIED[0]: "carry", CARRIED[1]: "carry", "car": "speak", "boat": "speak"}
    inputs = model.to_inputs(**made.arguments([made.stimulus({7: noun}, seed=seed) for seed, noun in enumerate(carriers)]))
    shown = torch.zeros_like(inputs.mask("all"))
    shown[:, inputs.mask(modality)[0].nonzero()[7]] = True
    ours, twins = (attention_rows(one, inputs).mass(shown)[..., 0] for one in (model, twin))
    for row, head in enumerate(carriers.values()):
        assert [tuple(found) for found in (ours[:, row] > 0.5).nonzero().tolist()] == [made.key.heads[head]]
        assert twins[:, row].max() < 0.5


class Allocated(TorchDispatchMode):
    """Notes the largest number of elements of a storage that any operation puts out."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize("family", ["llava-siglip-qwen2", "prefix-llama"])
@torch.no_grad()
def test_at_8000_positions_nothing_of_the_size_of_a_pattern_is_ever_there(family, tmp_path):
    model = HookedMLLM.from_pretrained(tiny(family, tmp_path), device="cpu")
    ask(model, "one")
    model.hf_model.config.get_text_config().max_position_embeddings = 9000
    inputs = model.to_inputs("the red car " * 2660, images=ask(model, "one").media[0][0])
    positions = inputs.tokens.shape[1]
    assert positions > 7980
    with Allocated() as plain:
        model(inputs)
    with Allocated() as ours:
        rows = attention_rows(model, inputs)
    heads = model.cfg.n_heads
    assert rows.pattern.shape == (model.cfg.n_layers, 1, heads, 1, positions)
    assert ours.largest <= plain.largest < positions * 300 < positions**2 / 25
    torch.testing.assert_close(rows.pattern.sum(-1), torch.ones(rows.pattern.shape[:-1]))
