"""The parts of a stream add up to the plain model's, at every position of every family, and each is what was written."""

import pytest
import raw
import torch
from support import ask, clip, load, medium, unhooked
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmlens import Neurons
from mmlens.analysis import Residual, residual
from mmlens.testing import tiny


@pytest.fixture(scope="module")
def small(small_folder):
    """One tiny model, for what does not depend on the family."""
    return load(small_folder)


@pytest.fixture(scope="module")
def run(model, plain, batches):
    """Inputs of three rows, one of them without media, and what the plain model holds at the points that are compared."""
    inputs = batches["mixed"]
    sites = ("hook_resid_pre", "hook_resid_post", "hook_attn_out", "attn.hook_z", "mlp.hook_post", "hook_mlp_out")
    names = [f"blocks.{layer}.{site}" for layer in (0, 1) for site in sites]
    return inputs, raw.read(plain, inputs, [*names, "hook_embed", "ln_final.hook_in"])[1]


def everywhere(inputs, activation):
    return activation[inputs.mask("all")]


def total(found):
    return found.parts.sum(0)


@torch.no_grad()
def test_parts_add_up_to_the_plain_models_stream_at_every_position(model, plain, run):
    inputs, seen = run
    where, some = inputs.mask("all"), Neurons.of([(0, 3), (0, 40), (1, 7)], model.widths)
    truths = [
        (dict(neurons=some), seen["ln_final.hook_in"]),
        (dict(heads=False), seen["ln_final.hook_in"]),
        (dict(layer=1), seen["blocks.1.hook_resid_pre"]),
        (dict(layer=1, at="post"), seen["blocks.1.hook_resid_post"]),
    ]
    if not raw.side_by_side(plain):
        middle = seen["blocks.1.hook_resid_pre"] + seen["blocks.1.hook_attn_out"]
        truths += [(dict(layer=1, at="mid"), middle)]
    for options, truth in truths:
        found = residual(model, inputs, where=where, **options)
        raw.same(found.stream, everywhere(inputs, truth))
        raw.same(total(found), everywhere(inputs, truth))


@torch.no_grad()
def test_a_picture_behind_a_picture_and_rows_of_one_length_add_up_too(model, plain, batches):
    name, one = medium(model, 3)
    level = model.to_inputs(["the red car", "the blue car"], **{name: [one, medium(model, 4)[1]]})
    for inputs in (batches["two"], level):
        stream = raw.read(plain, inputs, ["ln_final.hook_in"])[1]["ln_final.hook_in"]
        raw.same(total(residual(model, inputs, where=inputs.mask("all"))), everywhere(inputs, stream))


@torch.no_grad()
def test_a_text_positions_embed_is_its_tokens_embedding_and_learned_positions_stand_beside_it(model, run):
    inputs, seen = run
    where = inputs.mask("text")
    found = residual(model, inputs, where=where, layer=0)
    cosines = torch.cosine_similarity(found.part("embed"), seen["hook_embed"][where], dim=-1)
    torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=1e-5, atol=0)


@torch.no_grad()
def test_each_heads_part_is_a_raw_matrix_product_on_its_way_into_the_stream(model, plain, run):
    inputs, seen = run
    found = residual(model, inputs, where=inputs.mask("all"), layer=1)
    name, width = "blocks.0.attn.hook_z", model.cfg.d_head
    way = raw.way_into_stream(plain, inputs, "blocks.0.hook_attn_out")
    for head in range(model.cfg.n_heads):
        own = slice(head * width, (head + 1) * width)
        truth = seen[name][..., own] @ raw.weight(plain, name)[own] * way
        raw.same(found.part(f"L0H{head}"), everywhere(inputs, truth))
    bias = raw.locate(plain, name)[0].bias
    assert ("0_attn_rest" in found.components.labels()) == (bias is not None)
    if bias is not None:
        raw.same(found.part("0_attn_rest"), everywhere(inputs, (bias * way).expand_as(seen["hook_embed"])))


@torch.no_grad()
def test_chosen_neurons_are_activation_times_weights_and_beside_all_of_them_only_the_bias_is_left(model, plain, run):
    inputs, seen = run
    width, name = model.widths["language"][0], "blocks.0.mlp.hook_post"
    everyone = Neurons.of([(0, unit) for unit in reversed(range(width))], model.widths)
    found = residual(model, inputs, where=inputs.mask("all"), layer=1, neurons=everyone)
    way = raw.way_into_stream(plain, inputs, "blocks.0.hook_mlp_out")
    for unit in (0, 5):
        truth = seen[name][..., unit, None] * raw.weight(plain, name)[unit] * way
        raw.same(found.part(f"L0.u{unit}"), everywhere(inputs, truth))
    bias = getattr(raw.locate(plain, name)[0], "bias", None)
    left = torch.zeros_like(found.stream) if bias is None else bias.expand_as(found.stream)
    scale = everywhere(inputs, seen["blocks.0.hook_mlp_out"]).abs().max()
    assert (found.part("0_mlp_rest") - left).abs().max() < 1e-4 * scale


@torch.no_grad()
def test_dot_products_with_directions_are_those_of_the_vectors(small):
    inputs = ask(small, "padded")
    directions = torch.randn(small.cfg.d_model, 2, generator=torch.Generator().manual_seed(0))
    options = dict(where=inputs.mask("all"), neurons=Neurons.of([(0, 3), (1, 7)], small.widths))
    whole, seen = residual(small, inputs, **options), residual(small, inputs, directions=directions, **options)
    assert seen.components.labels() == whole.components.labels()
    raw.same(seen.parts, whole.parts @ directions)
    raw.same(seen.stream, whole.stream @ directions)


class Sizes(TorchDispatchMode):
    """Notes how many numbers everything holds that torch makes."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen |= {one.numel() for one in tree_leaves(out) if isinstance(one, torch.Tensor)}
        return out


@pytest.mark.parametrize("options", [dict(directions=torch.ones(32, 1)), dict()], ids=["directions", "vectors"])
@torch.no_grad()
def test_with_directions_no_head_and_no_neuron_gets_a_vector_of_its_own(small, options):
    inputs = ask(small, "one")
    where = inputs.mask("all") & (torch.arange(inputs.tokens.shape[1]) < 13)
    neurons = Neurons.of([(0, unit) for unit in range(47)], small.widths)
    with Sizes() as sizes:
        found = residual(small, inputs, where=where, neurons=neurons, **options)
    assert found.parts.shape[:2] == (1 + 4 * small.cfg.n_layers + 47 + small.cfg.n_layers, 13)
    vectors = {4 * 13 * 32, 47 * 13 * 32}  # of heads, and of neurons
    assert (vectors & sizes.seen) == (set() if options else vectors)


@torch.no_grad()
def test_deepstack_is_a_part_where_pictures_and_videos_are_and_behind_its_block_only(tmp_path):
    model, plain = load(folder := tiny("qwen3-vl", tmp_path)), unhooked(folder)
    media = dict(images=[medium(model, 1)[1], None, None], videos=[None, clip(2), None])
    inputs = model.to_inputs(["the red car", "a tree", "a boat"], **media)
    where, stream = inputs.mask("all"), raw.read(plain, inputs, ["ln_final.hook_in"])[1]["ln_final.hook_in"]
    found = residual(model, inputs, where=where)
    raw.same(total(found), everywhere(inputs, stream))
    for layer in (0, 1):
        holds = found.part(f"{layer}_deepstack").abs().amax(-1) > 0
        assert torch.equal(holds, everywhere(inputs, inputs.mask("image", "video")))
    assert "0_deepstack" not in residual(model, inputs, layer=0, at="post").components.labels()
    assert "0_deepstack" in residual(model, inputs, layer=1, at="post").components.labels()


def test_by_default_it_is_about_each_rows_last_position_and_loads_as_it_was_saved(small, tmp_path):
    inputs = ask(small, "padded")
    found = residual(small, inputs)
    assert found.parts.shape == (1 + small.cfg.n_layers * (small.cfg.n_heads + 1), 2, small.cfg.d_model)
    whole = residual(small, inputs, where=inputs.mask("all"))
    last = everywhere(inputs, inputs.last())
    torch.testing.assert_close(found.parts, whole.parts[:, last])
    loaded = Residual.load(found.save(tmp_path / "residual"), model=small)
    assert loaded.components.labels() == found.components.labels()
    assert torch.equal(loaded.part("L1H2"), found.part("L1H2"))


def test_what_is_not_in_the_stream_is_refused(small):
    inputs = ask(small, "one")
    later = Neurons.of([(1, 0)], small.widths)
    for options, message in [
        (dict(layer=small.cfg.n_layers), "from 0 to"),
        (dict(at="post"), "final one"),
        (dict(layer=1, at="mid", neurons=later), "layer 1 are not in it yet"),
        (dict(neurons=Neurons.of([("vision", 0, 1)], small.widths)), "vision"),
    ]:
        with pytest.raises(ValueError, match=message):
            residual(small, inputs, **options)
    with pytest.raises(KeyError, match="L0H0"):
        residual(small, inputs).part("nonsense")
