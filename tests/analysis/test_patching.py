from functools import partial
from typing import get_args

import pytest
import torch
from scipy.stats import t as student
from support import ask, leaves_no_hooks, load, picture
from transformer_lens import patching

from mmlens import Neurons, hooks, metrics
from mmlens.analysis import Patching, activation_patching
from mmlens.analysis.nodes import HEADED, Activation
from mmlens.inputs import MEDIA
from mmlens.liveness import UnknownHook
from mmlens.testing import tiny


@pytest.fixture
def pair(exact):
    model, clean, tokens = exact
    texts = ["what is at the left ?", "which object is red and blue ? answer :"]
    corrupted = model.to_inputs(texts, images=[picture(7), picture(8)], answer="the")
    return model, clean, corrupted, partial(metrics.logit_diff, correct=tokens, wrong=tokens.flip(0))


def test_patching_a_run_into_itself_changes_nothing(pair):
    model, clean, _, metric = pair
    found = activation_patching(model, clean=clean, corrupted=clean, metric=metric, sites={"image": clean.mask("image")})
    assert torch.isnan(found.effect).all()  # 0 / 0: nothing to bring back, and it says so
    torch.testing.assert_close(found.clean_metric, found.corrupted_metric, rtol=0, atol=0)


def test_all_positions_before_layer_0_bring_back_the_clean_run_and_the_image_alone_does_too(pair):
    model, clean, corrupted, metric = pair
    sites = {"all": clean.mask("all"), "image": clean.mask("image"), "text": clean.mask("text", "special")}
    effect = activation_patching(model, clean=clean, corrupted=corrupted, metric=metric, sites=sites).effect
    ones = torch.ones(2, dtype=effect.dtype)
    torch.testing.assert_close(effect[0, 0], ones)
    torch.testing.assert_close(effect[0, 1], ones)  # the texts are equal: the image is all that differs
    assert effect[0, 2].abs().max() < 1e-6
    torch.testing.assert_close(effect[:, 0], ones.expand(3, 2))


def test_each_entry_equals_a_raw_torch_hook_on_the_layer(pair):
    model, clean, corrupted, metric = pair
    sites = {"image": clean.mask("image"), "last": clean.last()}
    found = activation_patching(model, clean=clean, corrupted=corrupted, metric=metric, sites=sites)
    layers, streams = model.hf_model.model.language_model.layers, {}

    def keep(index):
        return lambda module, args: streams.__setitem__(index, args[0].clone())

    with torch.no_grad():
        handles = [layer.register_forward_pre_hook(keep(i)) for i, layer in enumerate(layers)]
        best = metric(model(clean))
        for handle in handles:
            handle.remove()
        worst = metric(model(corrupted))
        for index, layer in enumerate(layers):
            for site, where in enumerate(sites.values()):
                handle = layer.register_forward_pre_hook(
                    lambda m, a, i=index, w=where: (torch.where(w[..., None], streams[i], a[0]), *a[1:])
                )
                patched = metric(model(corrupted))
                handle.remove()
                expected = (patched - worst) / (best - worst)
                torch.testing.assert_close(found.effect[index, site].double(), expected, rtol=1e-5, atol=1e-6)
    assert found.effect[1:].std() > 1e-3


def test_inputs_that_do_not_line_up_are_refused(pair):
    model, clean, _, metric = pair
    other = model.to_inputs("what ?", images=picture(1))
    with pytest.raises(ValueError, match="line up"):
        activation_patching(model, clean=clean, corrupted=other, metric=metric, sites={"image": clean.mask("image")})


def test_transformer_lens_own_patching_under_bind_gives_the_same_numbers(pair):
    model, clean, corrupted, _ = pair
    clean, corrupted = (model.to_inputs("what is at the left ?", images=one.media[0][0]) for one in (clean, corrupted))
    one = partial(metrics.logit_diff, correct=torch.tensor([7]), wrong=torch.tensor([8]))
    positions = clean.tokens.shape[1]
    sites = {str(p): torch.arange(positions)[None] == p for p in range(positions)}
    ours = activation_patching(model, clean=clean, corrupted=corrupted, metric=one, sites=sites)
    _, cache = model.run_with_cache(clean)

    def scaled(logits):
        return (one(logits)[0] - ours.corrupted_metric[0]) / (ours.clean_metric[0] - ours.corrupted_metric[0])

    with model.bind(corrupted) as bridge, torch.no_grad():
        theirs = patching.get_act_patch_resid_pre(bridge, corrupted.tokens, cache, scaled)
    torch.testing.assert_close(ours.effect[:, :, 0].double(), theirs.double(), rtol=1e-5, atol=1e-6)
    assert ours.effect.std() > 1e-3


# ---------------------------------------------------------------- in every family, beside the plain loop


def name_of(activation, layer):
    owner = "attn." if activation in HEADED else "mlp." if activation in ("pre", "post") else ""
    return f"blocks.{layer}.{owner}hook_{activation}"


@torch.no_grad()
def by_a_plain_loop(model, cache, corrupted, metric, names, where, **parts):
    """Return the metric of a whole forward of the corrupted run, in which hooks put in what is cached of the clean one."""
    edits = []
    for name in names:
        value = cache[name]
        if "units" in parts:
            value = value[..., parts["units"]]
        if "heads" in parts:
            value = value[:, parts["heads"]] if name.endswith("hook_pattern") else value[:, :, parts["heads"]]
        edits.append((name, hooks.replace(value, where=where, **parts)))
    return metric(model.run_with_hooks(corrupted, fwd_hooks=edits))


def runs(model, kind):
    """Return a clean and a corrupted run with other media behind the same words, and a metric of two tokens."""
    clean, corrupted = ask(model, kind), ask(model, kind, first=5)
    generator = torch.Generator().manual_seed(0)
    correct, wrong = torch.randint(0, model.cfg.d_vocab, (2, len(clean)), generator=generator)
    return clean, corrupted, partial(metrics.logit_diff, correct=correct, wrong=wrong)


def places(inputs):
    few = torch.zeros_like(inputs.mask("all"))
    few[:, inputs.tokens.shape[1] // 2 :][:, :2] = True
    return {"media": inputs.mask(*MEDIA), "last": inputs.last(), "two in the middle": few}


def close(ours, truth, scale):
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5 * max(1.0, float(scale.abs().max())))


@pytest.mark.dear("gemma3", "llava-clip-llama", "qwen3-vl")
@pytest.mark.parametrize("kind", ["padded", "mixed"])
@torch.no_grad()
def test_every_activation_is_patched_as_a_plain_loop_does_it(model, kind):
    clean, corrupted, metric = runs(model, kind)
    sites, last = places(clean), model.cfg.n_layers - 1
    for activation in get_args(Activation) if kind == "padded" else ("resid_pre", "v", "pattern"):
        if name_of(activation, 0) not in model.hook_names:
            assert activation == "resid_mid", "only parallel blocks lack a point, and it is this one"
            continue
        layers = range(last + 1) if activation in ("resid_pre", "z") else (0, last)
        _, cache = model.run_with_cache(clean, [name_of(activation, layer) for layer in layers])
        with leaves_no_hooks(model):
            found = activation_patching(
                model, clean=clean, corrupted=corrupted, metric=metric, activation=activation, sites=sites, layers=layers
            )
        loop = partial(by_a_plain_loop, model, cache, corrupted, metric)
        truth = [torch.stack([loop([name_of(activation, l)], where) for where in sites.values()]) for l in layers]
        close(found.metric, torch.stack(truth), found.corrupted_metric)
        changed = (found.metric - found.corrupted_metric).abs().max()
        assert changed > 1e-4, f"{activation} changes nothing: nothing is compared"


def test_all_positions_before_the_first_layers_bring_back_the_clean_run(model):
    clean, corrupted, metric = runs(model, "padded")
    levels = len({name.split(".")[1] for name in model.hook_names if name.startswith("deepstack.")})
    found = activation_patching(  # DeepStack adds the picture's features once more behind each of its first layers
        model,
        clean=clean,
        corrupted=corrupted,
        metric=metric,
        sites={"all": clean.mask("all")},
        layers=[0],
        window=levels + 1,
    )
    torch.testing.assert_close(found.effect, torch.ones_like(found.effect), rtol=0, atol=1e-3)
    itself = activation_patching(model, clean=clean, corrupted=clean, metric=metric, sites=places(clean))
    close(itself.metric, itself.clean_metric.expand_as(itself.metric), itself.clean_metric)


@pytest.mark.dear
@torch.no_grad()
def test_windows_heads_units_and_neurons_are_those_of_the_plain_loop(model):
    clean, corrupted, metric = runs(model, "padded")
    patch = partial(activation_patching, model, clean=clean, corrupted=corrupted, metric=metric)
    points = [
        name_of(kind, layer) for kind in ("attn_out", "z", "v", "pattern", "post") for layer in range(model.cfg.n_layers)
    ]
    loop = partial(by_a_plain_loop, model, model.run_with_cache(clean, points)[1], corrupted, metric)
    where, last = clean.mask(*MEDIA), clean.last()
    scale = metric(model(corrupted))

    windows = patch(activation="attn_out", sites={"media": where}, window=2)
    assert windows.windows == tuple((l, l + 2) for l in range(model.cfg.n_layers - 1))
    for at, (first, stop) in enumerate(windows.windows):
        close(windows.metric[at, 0], loop([name_of("attn_out", l) for l in range(first, stop)], where), scale)

    for activation in ("z", "v", "pattern"):
        heads = patch(activation=activation, sites={"media": where, "last": last}, heads=[1, 0], layers=[1])
        assert heads.metric.shape == (1, 2, 2, len(clean)) and heads.parts == (1, 0)
        for site, mask in enumerate((where, last)):
            for part, head in enumerate((1, 0)):
                close(heads.metric[0, site, part], loop([name_of(activation, 1)], mask, heads=[head]), scale)

    units = patch(activation="post", sites={"media": where}, units=[3, 5], layers=[0, 1])
    for layer in (0, 1):
        for part, unit in enumerate((3, 5)):
            close(units.metric[layer, 0, part], loop([name_of("post", layer)], where, units=[unit]), scale)

    neurons = Neurons.of([(0, 3), (0, 7), (1, 5)], model.widths)
    together = patch(activation="post", sites={"media": where}, units=neurons)
    close(together.metric[0, 0], loop([name_of("post", 0)], where, units=[3, 7]), scale)
    close(together.metric[1, 0], loop([name_of("post", 1)], where, units=[5]), scale)
    close(together.metric[2, 0], scale, scale)  # no neuron of the set is there


@pytest.mark.dear
@torch.no_grad()
def test_a_metric_of_all_positions_gets_all_of_them(model):
    clean, corrupted, _ = runs(model, "padded")
    real = corrupted.mask("all")

    def metric(logits):
        return (torch.log_softmax(logits.float(), -1)[..., 7] * real).sum(-1)

    sites, layers = places(clean), (0, model.cfg.n_layers - 1)
    for activation in ("resid_pre", "z"):
        _, cache = model.run_with_cache(clean, [name_of(activation, layer) for layer in layers])
        found = activation_patching(
            model, clean=clean, corrupted=corrupted, metric=metric, activation=activation, sites=sites, layers=layers
        )
        for at, layer in enumerate(layers):
            for site, where in enumerate(sites.values()):
                truth = by_a_plain_loop(model, cache, corrupted, metric, [name_of(activation, layer)], where)
                close(found.metric[at, site], truth, found.corrupted_metric)


# ---------------------------------------------------------------- what does not depend on the family


def test_numbers_do_not_depend_on_how_many_are_computed_together_and_positions_default_to_all(llava):
    clean, corrupted, metric = runs(llava, "padded")
    patch = partial(activation_patching, llava, clean=clean, corrupted=corrupted, metric=metric)
    one, many = patch(chunk=1), patch(chunk=10**6)
    assert one.sites == tuple(map(str, range(clean.tokens.shape[1])))
    torch.testing.assert_close(one.metric, many.metric, rtol=0, atol=1e-5)
    some = patch(positions=[-1, 5])
    assert some.sites == (str(clean.tokens.shape[1] - 1), "5")
    torch.testing.assert_close(some.metric, one.metric[:, [-1, 5]], rtol=0, atol=1e-5)
    padding = clean.mask("pad").all(0).nonzero()[:, 0]
    assert not len(padding) or (one.metric[:, padding] == one.corrupted_metric).all()


def test_of_the_patched_block_only_the_patched_position_is_mapped_anew(llava):
    clean, corrupted, metric = runs(llava, "one")
    position = clean.tokens.shape[1] - 4
    attention = llava.hf_model.model.language_model.layers[1].self_attn
    own = {name: getattr(attention, f"{name}_proj").original_component for name in "qkv"}
    before = [vars(linear).get("forward") for linear in own.values()]
    computed, linear = [], torch.nn.functional.linear

    def counted(stream, weight, *rest):
        owner = next((name for name, linear in own.items() if weight is linear.weight), None)
        if owner is not None:
            computed.append((owner, stream.shape[:-1].numel()))
        return linear(stream, weight, *rest)

    torch.nn.functional.linear = counted
    try:
        activation_patching(llava, clean=clean, corrupted=corrupted, metric=metric, positions=[position], layers=[1])
    finally:
        torch.nn.functional.linear = linear
    length = clean.tokens.shape[1]
    whole = sorted((name, length) for name in "qkv") * 2  # the corrupted run, and the clean one
    assert sorted(computed) == sorted([*whole, *((name, 1) for name in "qkv")])
    assert [vars(linear).get("forward") for linear in own.values()] == before


@pytest.mark.parametrize("activation", ["resid_pre", "attn_out"])
def test_only_layers_and_positions_that_a_patch_reaches_are_computed(llava, activation):
    clean, corrupted, metric = runs(llava, "one")
    seen, length = [], clean.tokens.shape[1]
    handles = [
        block.register_forward_pre_hook(lambda module, args, l=layer: seen.append((l, *args[0].shape[:2])))
        for layer, block in enumerate(llava.bridge.blocks)
    ]
    activation_patching(
        llava, clean=clean, corrupted=corrupted, metric=metric, activation=activation, positions=[length - 4], layers=[0, 1]
    )
    for handle in handles:
        handle.remove()
    whole = [(layer, 1, length) for layer in (0, 1, 2)]
    assert seen[:6] == whole * 2  # the corrupted run, and the clean one
    spreading = [(0, 1, 4), (1, 2, 4), (2, 2, 4), (2, 2, 1)]  # both patches share block 1; of the last, keys, then one query
    staying = [(0, 1, 1), (1, 1, 4), (1, 1, 1), (2, 2, 4), (2, 2, 1)]  # in its own block, a patch changes its position only
    assert seen[6:] == (spreading if activation == "resid_pre" else staying)


def test_the_mean_leaves_out_rows_without_a_difference_and_the_interval_is_over_rows(llava):
    clean, corrupted, metric = runs(llava, "mixed")
    found = activation_patching(llava, clean=clean, corrupted=corrupted, metric=metric, sites={"media": clean.mask(*MEDIA)})
    assert found.effect[:, :, 1].isnan().all() and not found.effect[:, :, [0, 2]].isnan().any()  # row 1 is words alone
    torch.testing.assert_close(found.mean, found.effect[..., [0, 2]].mean(-1))
    effect = torch.randn(1, 1, 400, generator=torch.Generator().manual_seed(1)) + 0.3
    many = Patching(
        activation="resid_pre",
        windows=((0, 1),),
        sites=("one",),
        parts=(),
        metric=effect,
        clean_metric=torch.ones(400),
        corrupted_metric=torch.zeros(400),
        provenance=found.provenance,
    )
    low, high = many.interval()
    half = student.ppf(0.975, 399) * effect.std() / 20
    assert abs(low - (effect.mean() - half)) < 0.02 and abs(high - (effect.mean() + half)) < 0.02
    single = activation_patching(
        llava, clean=ask(llava, "one"), corrupted=ask(llava, "one", first=5), metric=lambda x: x[:, -1, 0], positions=[3]
    )
    assert single.interval()[0].isnan().all()


def test_it_loads_as_it_was_saved(llava, tmp_path):
    clean, corrupted, metric = runs(llava, "padded")
    found = activation_patching(
        llava, clean=clean, corrupted=corrupted, metric=metric, activation="z", heads=[0, 3], positions=[4]
    )
    loaded = Patching.load(found.save(tmp_path / "patching"))
    assert torch.equal(loaded.effect, found.effect) and (loaded.parts, loaded.windows) == (found.parts, found.windows)


def test_what_can_not_be_patched_is_refused_in_words(llava):
    clean, corrupted, metric = runs(llava, "padded")
    patch = partial(activation_patching, llava, clean=clean, corrupted=corrupted, metric=metric)
    last = {"last": clean.last()}
    refused = [
        (ValueError, "heads are parts of q, k, v, z, pattern", dict(activation="mlp_out", heads=[0])),
        (ValueError, "units are parts of a stream or of neurons", dict(activation="z", units=[0])),
        (ValueError, "patched at `pre` or `post`", dict(activation="mlp_out", units=Neurons.of([(0, 1)], llava.widths))),
        (IndexError, "z has heads 0 to 3", dict(activation="z", heads=[4])),
        (IndexError, "post has units 0 to", dict(activation="post", units=[999])),
        (IndexError, "have the positions 0 to", dict(positions=[999])),
        (IndexError, "start at the layers 0 to 1", dict(window=2, layers=[2])),
        (ValueError, "a window has 1 to 3 layers", dict(window=4)),
        (ValueError, "got both: give one", dict(sites=last, positions=[1])),
        (ValueError, "is a mask .* of booleans", dict(sites={"last": torch.ones(1, 1, dtype=torch.bool)})),
    ]
    for error, words, arguments in refused:
        with pytest.raises(error, match=words):
            patch(**arguments)
    on = [("blocks.1.hook_resid_pre", hooks.scale(0.5))]
    with llava.hooks(fwd_hooks=on, must_fire=False), pytest.raises(ValueError, match="hooks of yours would see a part"):
        patch(sites=last)


def test_an_activation_that_a_model_has_not_is_refused(tmp_path):
    parallel = load(tiny("prefix-gptj", tmp_path))
    clean, corrupted, metric = runs(parallel, "one")
    with pytest.raises(UnknownHook, match="resid_mid"):
        activation_patching(parallel, clean=clean, corrupted=corrupted, metric=metric, activation="resid_mid")
