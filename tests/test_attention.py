"""Attention: transformers' own where nobody looks; scores and patterns that can be read and edited where somebody does."""

from typing import Any

import pytest
import raw
import torch
from support import ask, leaves_no_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens.hook_points import HookPoint

from mmlens import hooks
from mmlens.analysis import attention_rows
from mmlens.attention import BESIDE, MEANS, ROWS, attach, attention, rows_of
from mmlens.hooks import feed, module_of
from mmlens.inputs import MEDIA
from mmlens.liveness import InertHook


@pytest.mark.parametrize("kind", ["one", "text", "padded", "mixed", "two"])
@torch.no_grad()
def test_logits_stay_the_same_when_every_pattern_and_score_is_read(model, plain, batches, kind):
    inputs = batches[kind]
    logits, cache = model.run_with_cache(inputs, ["*.hook_pattern", "*.hook_attn_scores"])
    real = inputs.mask("all")
    raw.same(logits[real], raw.logits(plain, inputs)[real])
    matrices = {name for name in model.hook_names if name.endswith(("hook_pattern", "hook_attn_scores"))}
    assert set(cache) == {name for name in matrices if inputs.tower or module_of(name) == "language"}
    assert len(matrices) >= 2 * model.cfg.n_layers + 2


@pytest.mark.parametrize("kind", ["one", "mixed"])
@torch.no_grad()
def test_patterns_and_scores_read_what_a_reference_attention_computes(model, reference, batches, kind):
    inputs = batches[kind]
    names = raw.matrices(reference)
    _, cache = model.run_with_cache(inputs, names)
    _, truth = raw.attention_read(reference, inputs, names)
    rows = inputs.mask("all")[:, None, :, None]
    for name in names:
        ours, theirs = cache[name], truth[name]
        if module_of(name) == "language":  # what padding attends to means nothing
            ours, theirs = ours * rows, theirs * rows
        visible = theirs > torch.finfo(theirs.dtype).min / 2
        raw.same(ours[visible], theirs[visible])


@torch.no_grad()
def test_a_pattern_row_sums_to_one_and_sees_neither_the_future_nor_padding(model, batches):
    inputs = batches["mixed"]
    _, cache = model.run_with_cache(inputs, "blocks.*.attn.hook_pattern")
    real, length = inputs.mask("all"), inputs.tokens.shape[1]
    ahead = raw.ahead(model.family.model_type, inputs)  # the positions of an image may see each other
    for pattern in cache.values():
        rows = pattern.transpose(1, 2)[real]
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:2]))
        hidden = ((~torch.ones(length, length).tril().bool())[None] & ~ahead) | ~real[:, None]
        assert not pattern.transpose(0, 1)[:, hidden & real[:, :, None]].any()
    seen = torch.stack([pattern.amax(1) for pattern in cache.values()]).amax(0)
    assert (seen[ahead & real[:, None] & real[:, :, None]] > 0).all()


@pytest.mark.dear
@pytest.mark.parametrize(
    ("kind", "beside"),
    [("one", ()), ("mixed", ()), ("mixed", ("blocks.*.attn.hook_pattern", "blocks.*.mlp.hook_post"))],
    ids=["one", "padded", "padded, with other hooks"],
)
@pytest.mark.dear
@torch.no_grad()
def test_editing_a_pattern_or_scores_equals_the_same_edit_of_a_reference_attention(model, reference, batches, kind, beside):
    inputs, real = batches[kind], batches[kind].mask("all")
    for name in raw.matrices(reference):
        _edit_and_compare(model, reference, inputs, real, name, beside)


def _edit_and_compare(model, reference, inputs, real, name, beside):
    shape = raw.attention_read(reference, inputs, [name])[1][name].shape
    weights = torch.rand(shape, generator=torch.Generator().manual_seed(1))

    def change(matrix):
        hidden = matrix < torch.finfo(matrix.dtype).min / 2
        return torch.where(hidden, matrix, torch.cat([matrix[:, :1] * 0, (matrix * weights)[:, 1:]], dim=1))

    others = [(other, hooks.feed(lambda activation, hook: None)) for other in beside]
    ours = model.run_with_hooks(inputs, fwd_hooks=[*others, (name, lambda matrix, hook: change(matrix))])
    truth = raw.attention_logits(reference, inputs, {name: change})
    raw.same(ours[real], truth[real])
    raw.differs(truth[real], raw.attention_logits(reference, inputs, {})[real])


@pytest.mark.dear
@pytest.mark.parametrize("heads", [[0], [1, 3]])
@torch.no_grad()
def test_zeroing_heads_of_a_pattern_equals_zeroing_what_they_hand_to_the_output_projection(model, plain, batches, heads):
    inputs, real, width = batches["mixed"], batches["mixed"].mask("all"), model.cfg.d_head

    def silence(z):
        z = z.unflatten(-1, (-1, width)).clone()
        z[:, :, heads] = 0
        return z.flatten(-2)

    ours = model.run_with_hooks(inputs, fwd_hooks=[("blocks.1.attn.hook_pattern", hooks.replace(0.0, heads=heads))])
    truth = raw.logits(plain, inputs, {"blocks.1.attn.hook_z": silence})
    raw.same(ours[real], truth[real])
    raw.differs(truth[real], raw.logits(plain, inputs)[real])


def test_gradients_at_patterns_and_scores_equal_those_of_a_reference_attention(model, reference, batches):
    inputs, names = batches["mixed"], raw.matrices(reference)
    truth_logits, seen = raw.attention_read(reference, inputs, names, retain=True)
    truth_logits[:, -1].square().sum().backward()
    ours = {}
    keep = [(name, lambda grad, hook: ours.__setitem__(hook.name, grad.clone())) for name in names]
    with leaves_no_hooks(model):
        model.run_with_hooks(inputs, bwd_hooks=keep)[:, -1].square().sum().backward()
    for name in names:
        visible = torch.ones(()) if module_of(name) != "language" else inputs.mask("all")[:, None, None, :]
        raw.same(ours[name] * visible, seen[name].grad * visible)
        assert seen[name].grad.abs().max() > 0


@torch.no_grad()
def test_knock_out_blocks_exactly_and_the_rest_of_a_row_sums_to_one(model, batches):
    inputs = batches["mixed"]
    queries, keys = inputs.last(), inputs.mask(*MEDIA)
    blocked = hooks.knock_out(queries, keys, layers=[1], heads=[0, 2])
    _, cache = model.run_with_cache(inputs, "blocks.1.attn.hook_pattern", fwd_hooks=blocked)
    _, before = model.run_with_cache(inputs, "blocks.1.attn.hook_pattern")
    pattern, untouched = cache["blocks.1.attn.hook_pattern"], before["blocks.1.attn.hook_pattern"]
    for row in range(len(inputs)):
        assert (pattern[row, [0, 2], -1][:, keys[row]] == 0).all()
        torch.testing.assert_close(pattern[row, :, -1].sum(-1), torch.ones(pattern.shape[1]))
    assert (untouched[0, [0, 2], -1][:, keys[0]] > 0).any()
    torch.testing.assert_close(pattern[:, [1, 3]], untouched[:, [1, 3]])
    torch.testing.assert_close(pattern[:, :, :-1], untouched[:, :, :-1])


@pytest.mark.parametrize("heads", [None, [1]])
@torch.no_grad()
def test_knock_out_equals_renormalising_a_reference_pattern(model, reference, batches, heads):
    inputs, real = batches["mixed"], batches["mixed"].mask("all")
    queries, keys = inputs.last(), inputs.mask(*MEDIA)
    gone = (queries[:, :, None] & keys[:, None, :])[:, None]

    def renormalise(pattern):
        kept = pattern.masked_fill(gone, 0)
        kept = kept / kept.sum(-1, keepdim=True)
        if heads is None:
            return kept
        return torch.stack([(kept if h in heads else pattern)[:, h] for h in range(pattern.shape[1])], dim=1)

    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    ours = model.run_with_hooks(inputs, fwd_hooks=hooks.knock_out(queries, keys, heads=heads))
    truth = raw.attention_logits(reference, inputs, dict.fromkeys(names, renormalise))
    raw.same(ours[real], truth[real])
    raw.differs(truth[real], raw.attention_logits(reference, inputs, {})[real], by=1e-4)


@torch.no_grad()
def test_knocking_out_nothing_changes_nothing(model, plain, batches):
    inputs, real = batches["mixed"], batches["mixed"].mask("all")
    nothing = torch.zeros_like(real)
    for queries, keys in [(nothing, inputs.mask(*MEDIA)), (inputs.last(), nothing)]:
        logits = model.run_with_hooks(inputs, fwd_hooks=hooks.knock_out(queries, keys))
        raw.same(logits[real], raw.logits(plain, inputs)[real])


@torch.no_grad()
def test_knock_out_refuses_to_leave_a_query_with_nothing(small):
    inputs = ask(small, "mixed")
    with leaves_no_hooks(small), pytest.raises(ValueError, match="nothing left to attend to"):
        small.run_with_hooks(inputs, fwd_hooks=hooks.knock_out(inputs.last(), inputs.mask("all")))


@torch.no_grad()
def test_knock_out_refuses_masks_of_other_inputs(small):
    inputs, other = ask(small, "one"), ask(small, "text")
    with leaves_no_hooks(small), pytest.raises(ValueError, match="make it from the inputs of this run"):
        small.run_with_hooks(inputs, fwd_hooks=hooks.knock_out(other.last(), other.mask("all")))


@torch.no_grad()
def test_knock_out_acts_at_prefill_only(small):
    inputs, calls = ask(small, "one"), []
    look = ("blocks.1.attn.hook_pattern", hooks.feed(lambda pattern, hook: calls.append(pattern)))
    block = hooks.knock_out(inputs.last(), inputs.mask("image"))
    small.generate(inputs, max_new_tokens=3, min_new_tokens=3, fwd_hooks=[*block, look])
    image = inputs.mask("image")[0]
    assert [pattern.shape[2] for pattern in calls] == [len(image), 1, 1]
    assert (calls[0][0, :, -1][:, image] == 0).all()
    assert (calls[1][0, :, -1][:, : len(image)][:, image] > 0).all()


# ---------------------------------------------------------------- means over heads


@pytest.mark.parametrize("kind", ["one", "mixed"])
@torch.no_grad()
def test_a_mean_is_that_of_the_pattern_over_heads_and_reading_it_leaves_the_logits_bit_for_bit(model, batches, kind):
    inputs = batches[kind]
    untouched = model(inputs)
    logits, means = model.run_with_cache(inputs, lambda name: name.endswith(MEANS))
    assert torch.equal(logits, untouched)
    _, patterns = model.run_with_cache(inputs, "*.hook_pattern")
    assert len(means) == 2 * len(patterns) > 0
    for name, pattern in patterns.items():
        raw.same(means[f"{name}_mean"], pattern.mean(1))
        if module_of(name) != "language":  # a tower's positions see each other both ways
            raw.same(means[f"{name}_mean_unmasked"], pattern.mean(1))


@torch.no_grad()
def test_an_unmasked_mean_is_that_of_a_softmax_over_all_keys_of_the_row(model, reference, batches):
    inputs, name = batches["mixed"], "blocks.1.attn.hook_pattern_mean_unmasked"
    _, cache = model.run_with_cache(inputs, name)
    _, read = raw.attention_read(reference, inputs, [name])
    for row, real in enumerate(inputs.mask("all")):
        scores = read[name][row][:, real][:, :, real]
        raw.same(cache[name][row][real][:, real], scores.softmax(-1).mean(0))
        assert not cache[name][row][real][:, ~real].any()


@torch.no_grad()
def test_a_mean_beside_an_edited_pattern_is_that_of_the_edited_one(small):
    inputs, name = ask(small, "padded"), "blocks.1.attn.hook_pattern"
    edit = [(name, hooks.scale(0.5, heads=[1]))]
    _, cache = small.run_with_cache(inputs, [name, f"{name}_mean"], fwd_hooks=edit)
    raw.same(cache[f"{name}_mean"], cache[name].mean(1))
    assert cache[f"{name}_mean"].sum(-1).max() < 0.9


@pytest.mark.parametrize("point", BESIDE)
def test_a_gradient_beside_the_model_is_refused_and_an_edit_too(small, point):
    inputs, hook = ask(small, "one"), (f"blocks.1.attn.{point}", lambda x, hook: x * 2)
    with leaves_no_hooks(small), pytest.raises(InertHook, match=r"no gradient passes .* take hook_pattern's"):
        small.run_with_hooks(inputs, bwd_hooks=[hook])
    with leaves_no_hooks(small), pytest.raises(InertHook, match=r"read but not edited.* hook_pattern instead"):
        small.run_with_hooks(inputs, fwd_hooks=[hook])


@torch.no_grad()
def test_a_mean_is_read_at_every_step_of_a_generation(small):
    inputs, seen = ask(small, "one"), []
    look = ("blocks.1.attn.hook_pattern_mean", hooks.feed(lambda mean, hook: seen.append(mean)))
    told = small.generate(inputs, max_new_tokens=3, min_new_tokens=3, fwd_hooks=[look])
    assert torch.equal(told.tokens, small.generate(inputs, max_new_tokens=3, min_new_tokens=3).tokens)
    length = inputs.tokens.shape[1]
    assert [mean.shape for mean in seen] == [(1, length, length), (1, 1, length + 1), (1, 1, length + 2)]
    for mean in seen:
        torch.testing.assert_close(mean.sum(-1), torch.ones(mean.shape[:2]))


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("kind", ["one", "mixed", "two"])
@torch.no_grad()
def test_rows_equal_those_of_a_reference_attention_and_the_logits_stay_bit_for_bit(model, reference, batches, kind):
    inputs = batches[kind]
    before = model(inputs)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    _, truth = raw.attention_read(reference, inputs, names)
    said = []
    for queries in (None, inputs.mask("all")):
        rows = attention_rows(model, inputs, queries=queries)
        assert rows.pattern.shape[:3] == (len(names), len(inputs), model.cfg.n_heads)
        for row in range(len(inputs)):
            at = (inputs.last() if queries is None else queries)[row].nonzero()[:, 0]
            assert rows.queries[row, : len(at)].equal(at) and (rows.queries[row, len(at) :] == -1).all()
            expected = torch.stack([truth[name][row][:, at] for name in names])
            raw.same(rows.pattern[:, row, :, : len(at)], expected)
            assert rows.pattern[:, row, :, len(at) :].isnan().all()
    with rows_of(rows.queries):
        looks = [(f"blocks.*.attn.{ROWS}", feed(lambda pattern, hook: said.append(pattern)))]
        assert torch.equal(model.run_with_hooks(inputs, fwd_hooks=looks), before)
    assert len(said) == len(names)


@torch.no_grad()
def test_rows_equal_those_of_the_whole_pattern_where_the_layers_below_ran_alike(model, batches):
    inputs = batches["mixed"]
    rows = attention_rows(model, inputs, queries=inputs.mask("all"))
    for layer in rows.layers:
        name = f"blocks.{layer}.attn.hook_pattern"
        pattern = model.run_with_cache(inputs, name)[1][name]
        for row, at in enumerate(rows.queries):
            real = at[at >= 0]
            torch.testing.assert_close(
                rows.pattern[layer, row, :, : len(real)], pattern[row][:, real].float(), atol=1e-5, rtol=0
            )


@torch.no_grad()
def test_rows_of_a_tower_equal_those_of_a_reference_attention(model, reference, batches):
    inputs, prefix = batches["one"], raw.prefixes(reference)[-1]
    name = f"{prefix}blocks.0.attn.hook_pattern"
    truth = raw.attention_read(reference, inputs, [name])[1][name]
    where = torch.rand(truth.shape[0], truth.shape[2], generator=torch.Generator().manual_seed(0)) < 0.3
    rows = attention_rows(model, inputs, queries=where, layers=[0], heads=[1], module=prefix[:-1])
    for entry, here in enumerate(where):
        torch.testing.assert_close(
            rows.pattern[0, entry, 0, : here.sum()], truth[entry, 1][here], atol=1e-5, rtol=0, msg=name
        )
    with pytest.raises(KeyError, match="a group of keys is a mask"):
        rows.mass("image")
    with pytest.raises(ValueError, match="has no last position"):
        attention_rows(model, inputs, module=prefix[:-1])


def naive(query, key, hidden, scale, softcap):
    """Return softmax(scores) of every head, where `hidden` keys have none, in float64."""
    groups = query.shape[1] // key.shape[1]
    patterns = []
    for head in range(query.shape[1]):
        scores = query[:, head].double() @ key[:, head // groups].double().transpose(1, 2) * scale
        scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
        patterns.append(scores.masked_fill(hidden, -torch.inf).softmax(-1))
    return torch.stack(patterns, dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("masked", ["causal", "padded", "behind a cache", "both ways", "window", "added"])
@torch.no_grad()
def test_means_and_rows_equal_a_loop_over_heads_and_never_hold_all_heads_at_once(masked, softcap, dtype):
    generator, (batch, heads, queries, keys) = torch.Generator().manual_seed(0), (2, 6, 300, 300)
    queries = 150 if masked == "behind a cache" else queries
    query = torch.randn(batch, heads, queries, 8, generator=generator).to(dtype)
    key = torch.randn(batch, 2, keys, 8, generator=generator).to(dtype)
    later = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1).expand(batch, -1, -1).clone()
    padding = torch.zeros(batch, 1, keys, dtype=torch.bool)
    mask, hidden = None, later
    if masked == "padded":
        padding[1, :, :140] = True
        hidden = later | padding
    elif masked == "both ways":
        hidden = torch.zeros_like(later)
    elif masked == "window":
        hidden = later | torch.ones(queries, keys, dtype=torch.bool).tril(-50)
    if masked in ("padded", "behind a cache", "window", "added"):
        mask = ~hidden[:, None]
    if masked == "added":
        mask = torch.zeros(batch, 1, queries, keys, dtype=dtype).masked_fill(hidden[:, None], torch.finfo(dtype).min)
    component, seen = torch.nn.Module(), {}
    module: Any = torch.nn.Identity()
    module.is_causal, module.num_key_value_groups = masked != "both ways", 3
    for point in BESIDE:
        setattr(component, point, HookPoint())
        getattr(component, point).add_hook(lambda x, hook, point=point: seen.__setitem__(point, x))
    attach(module, component)
    chosen = torch.tensor([[3, queries - 1], [queries - 2, -1]])
    with Sizes() as sizes, rows_of(chosen):
        attention(module, query, key, key, mask, scaling=0.7, softcap=softcap)
    tolerance = 5e-3 if dtype == torch.bfloat16 else 1e-6
    real = ~hidden.all(-1)
    assert real.sum() == batch * queries - (140 if masked == "padded" else 0)
    for mean, unseen in zip(MEANS, (hidden, padding), strict=True):
        assert seen[mean].dtype == torch.promote_types(dtype, torch.float32)
        truth = naive(query, key, unseen, 0.7, softcap).mean(1)[real]
        torch.testing.assert_close(seen[mean][real].double(), truth, atol=tolerance, rtol=0)
    assert seen[ROWS].dtype == torch.promote_types(dtype, torch.float32)
    patterns = naive(query, key, hidden, 0.7, softcap)
    for row, at in ((0, chosen[0]), (1, chosen[1, :1])):
        torch.testing.assert_close(seen[ROWS][row, :, : len(at)].double(), patterns[row][:, at], atol=tolerance, rtol=0)
    assert softcap is not None or sizes.largest <= batch * queries * keys


class Sizes(TorchDispatchMode):
    """Notes the largest number of elements that any operation puts out."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out
