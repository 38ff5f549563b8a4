"""What edges add up to, and what a single one does, in every family: beside plain transformers under raw torch hooks."""

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import raw
import torch
from scipy.stats import spearmanr
from support import ask, leaves_no_hooks, questions

from mmlens import metrics
from mmlens.analysis import attribution_patching
from mmlens.analysis.circuit import circuit
from mmlens.analysis.circuit.graph import graph_of
from mmlens.analysis.circuit.running import Base, run_edges
from mmlens.analysis.circuit.sources import written
from mmlens.inputs import MEDIA

OTHER = {"what": "red", "red": "blue", "blue": "red"}  # words that take each other's place, token for token


def asked(model, *, first, words=False):
    """Return a padded batch of two rows with a medium each; with `words`, of other words and as many of them."""
    rows = questions(model, "padded", first)
    texts = [" ".join(OTHER.get(word, word) for word in text.split()) if words else text for text, _ in rows]
    name = next(iter(rows[0][1]))
    return model.to_inputs(texts, **{name: [media[name] for _, media in rows]})


@pytest.fixture(scope="module")
def case(model):
    """A clean and a corrupted run with other media and other words, what every source writes in both, and all edges."""
    clean, corrupted = asked(model, first=0), asked(model, first=5, words=True)
    assert not clean.tokens.equal(corrupted.tokens) and not bool(clean.attention_mask.all())
    correct, wrong = torch.randint(0, model.cfg.d_vocab, (2, len(clean)), generator=torch.Generator().manual_seed(0))
    runs = dict(clean=clean, corrupted=corrupted, metric=partial(metrics.logit_diff, correct=correct, wrong=wrong))
    graph, masks = graph_of(model, corrupted)
    with leaves_no_hooks(model):
        there, here = (written(model, inputs, graph, masks) for inputs in (clean, corrupted))
        found = circuit(model, **runs)
    return SimpleNamespace(
        runs=runs, clean=clean, corrupted=corrupted, graph=graph, masks=masks, there=there, here=here, found=found
    )


# ---------------------------------------------------------------- plain transformers, taken apart


class Block:
    """A plain block's norms and maps: what each destination reads, and through which modules."""

    def __init__(self, plain, layer):
        self.side_by_side = raw.side_by_side(plain)
        name = f"blocks.{layer}"
        self.before = raw.locate(plain, f"{name}.ln1.hook_out")[0]
        self.between = self.before if self.side_by_side else raw.locate(plain, f"{name}.ln2.hook_out")[0]
        self.inner = f"{name}.mlp.hook_in"
        self.out = f"{name}.hook_mlp_out"
        self.maps = {}
        for kind in "qkv":
            module, _, *part = raw.locate(plain, f"{name}.attn.hook_{kind}")
            _, place, count = part[0] if part else (None, 0, 1)
            self.maps[kind] = module, place, count


def kept_at(norm, seen, key):
    """Return the handle of a hook that keeps what enters a norm, in a view that nothing else reads."""

    def look(module, args):
        seen[key] = args[0].view_as(args[0])
        return seen[key], *args[1:]

    return norm.register_forward_pre_hook(look)


@contextmanager
def streams_of(plain, depth):
    """Keep what enters each norm: ("attn", l), ("mlp", l) and ("logits",)."""
    seen: dict[tuple, torch.Tensor] = {}
    with ExitStack() as stack:
        for layer in range(depth):
            block = Block(plain, layer)
            stack.callback(kept_at(block.before, seen, ("attn", layer)).remove)
            if not block.side_by_side:
                stack.callback(kept_at(block.between, seen, ("mlp", layer)).remove)
        stack.callback(kept_at(raw.locate(plain, "ln_final.hook_in")[0], seen, ("logits",)).remove)
        yield seen


def where_read(graph, number, plain):
    kind, layer = graph.kind[number], int(graph.layer[number])
    if kind == "logits":
        return ("logits",)
    return ("mlp", layer) if kind == "mlp" and not raw.side_by_side(plain) else ("attn", layer)


@torch.no_grad()
def read_at(plain, inputs, depth):
    with streams_of(plain, depth) as seen:
        raw.logits(plain, inputs)
    return {key: stream.reshape(*inputs.tokens.shape, -1) for key, stream in seen.items()}


@pytest.mark.dear
@torch.no_grad()
def test_sources_and_biases_add_up_to_what_every_destination_reads(model, plain, case):
    depth = model.cfg.n_layers
    biases = [getattr(raw.locate(plain, f"blocks.{l}.attn.hook_z")[0], "bias", None) for l in range(depth)]
    for inputs, sources in ((case.clean, case.there), (case.corrupted, case.here)):
        streams = read_at(plain, inputs, depth)
        for number in range(len(case.graph.destinations)):
            key = where_read(case.graph, number, plain)
            before = depth if key == ("logits",) else key[1] + (key[0] == "mlp")
            constant = sum(bias for bias in biases[:before] if bias is not None)
            total = sources[case.graph.possible[:, number]].sum(0) + constant
            real = inputs.attention_mask.bool()
            raw.same(total[real], streams[key][real])
    assert case.there.shape[1:] == (*case.clean.tokens.shape, model.cfg.d_model)


@torch.no_grad()
def test_with_all_edges_live_a_run_is_the_clean_one_and_with_none_the_corrupted_one(model, case):
    graph, start = case.graph, case.there
    base = Base.of(model, case.corrupted, case.here)
    for live, inputs in ((graph.possible, case.clean), (torch.zeros_like(graph.possible), case.corrupted)):
        found = run_edges(graph, base, live, start, case.masks)
        real = inputs.attention_mask.bool()
        raw.same(found[real], model(inputs)[real])
    mean = Base.of(model, case.corrupted, case.here, mean=True)
    raw.same(run_edges(graph, mean, graph.possible, start, case.masks)[real], model(case.clean)[real], relative=3e-4)
    final = read_final(model, case.corrupted).mean(0, keepdim=True)
    none = run_edges(graph, mean, torch.zeros_like(graph.possible), start, case.masks)
    raw.same(none, model.unembed(final).expand_as(none))


def read_final(model, inputs):
    """Return the stream that leaves the last block, with what DeepStack adds behind it."""
    _, cache = model.run_with_cache(inputs, ["ln_final.hook_in"])
    return cache["ln_final.hook_in"].reshape(*inputs.tokens.shape, -1)


# ---------------------------------------------------------------- to first order: sums of edges


@pytest.mark.dear
def test_a_sources_edges_add_up_to_its_own_attribution(model, folder, case):
    """Where a norm stands between attention and stream, what a head writes hangs on all of a layer: they add up together."""
    attribute = partial(attribution_patching, model, **case.runs)
    every = {"all": torch.ones_like(case.clean.mask("all"))}
    given, depth, heads = case.found.outgoing(), model.cfg.n_layers, model.cfg.n_heads

    def own(**what):
        found = attribute(sites=every, **what)
        return found.metric - found.corrupted_metric

    of_heads = torch.stack(
        [torch.stack([given[case.graph.sources.index(f"L{l}H{h}")] for h in range(heads)]) for l in range(depth)]
    )
    if "ln1_post" in model.bridge.blocks[0].submodules:
        raw.same(of_heads.sum(1), own(activation="attn_out")[:, 0])
    else:
        raw.same(of_heads, own(activation="z", heads=range(heads))[:, 0])
    mlps = torch.stack([given[case.graph.sources.index(f"L{l}.mlp")] for l in range(depth)])
    raw.same(mlps, own(activation="mlp_out")[:, 0])
    sites = dict(zip(case.graph.sites, case.masks, strict=True))
    entering = attribute(activation="resid_pre", sites=sites, layers=[0])
    raw.same(given[: len(sites)], (entering.metric - entering.corrupted_metric)[0])
    assert given[: len(sites)].abs().max() > 1e-4 and of_heads.abs().min() > 0


def test_a_destinations_edges_add_up_to_the_plain_models_gradient_there_times_the_change_of_what_it_reads(
    model, plain, case
):
    depth, graph = model.cfg.n_layers, case.graph
    there = read_at(plain, case.clean, depth)
    truth, blocks = torch.zeros(len(graph.destinations), len(case.clean)), [Block(plain, l) for l in range(depth)]
    outs: dict[tuple, torch.Tensor] = {}

    def keep(key):
        return lambda module, args, output: outs.__setitem__(key, output)

    with streams_of(plain, depth) as seen, ExitStack() as stack:
        for layer, block in enumerate(blocks):
            for kind, (module, _, _) in block.maps.items():
                stack.callback(module.register_forward_hook(keep((layer, kind))).remove)
            look = partial(outs.__setitem__, (layer, "mlp"))
            stack.callback(raw.attach(plain, block.out, look).remove)
        value = case.runs["metric"](raw.logits(plain, case.corrupted)).sum()
    for number, kind in enumerate(graph.kind):
        key, layer, index = where_read(graph, number, plain), int(graph.layer[number]), int(graph.index[number])
        entering = seen[key]
        if kind == "logits":
            (gradient,) = torch.autograd.grad(value, entering, retain_graph=True)
        else:
            out = outs[layer, kind]
            (own,) = torch.autograd.grad(value, out, retain_graph=True, allow_unused=True)
            if kind != "mlp":
                here = rows_of(model, blocks[layer], kind, index)
                own = torch.zeros_like(own).index_copy(-1, here, own[..., here])
            (gradient,) = torch.autograd.grad(out, entering, own, retain_graph=True)
        moved = there[key] - entering.detach().reshape(there[key].shape)
        truth[number] = (gradient.reshape(moved.shape) * moved).sum((1, 2))
    raw.same(case.found.incoming(), truth, relative=1e-3)
    assert (truth.abs().amax(1) > 0).all()


def rows_of(model, block, kind, index):
    """Return which rows of a query, key or value map belong to a head, or to a group of them."""
    heads = model.cfg.n_heads if kind == "q" else getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads
    place = block.maps[kind][1]
    width = model.cfg.d_head
    return torch.arange(width) + (place * heads + index) * width


# ---------------------------------------------------------------- exactly: one edge


@torch.no_grad()
def by_raw_hooks(model, plain, case, edge, moved):
    """Return the metric of the corrupted run in which `moved` is added to what one destination's norm reads."""
    graph, number = case.graph, case.graph.destinations.index(edge[1])
    kind, layer, index = graph.kind[number], int(graph.layer[number]), int(graph.index[number])
    if kind == "logits":
        norm = raw.locate(plain, "ln_final.hook_in")[0]
        handle = norm.register_forward_pre_hook(lambda module, args: (args[0] + moved.view_as(args[0]), *args[1:]))
        try:
            return case.runs["metric"](raw.logits(plain, case.corrupted))
        finally:
            handle.remove()
    block, seen = Block(plain, layer), {}
    norm = block.between if kind == "mlp" else block.before

    def read():
        return norm.forward(seen["x"] + moved.view_as(seen["x"]))

    def instead(module, args, output):
        here = rows_of(model, block, kind, index)
        return output.index_copy(-1, here, module.forward(read())[..., here])

    with ExitStack() as stack:
        stack.callback(kept_at(norm, seen, "x").remove)
        if kind == "mlp":
            stack.callback(raw.attach(plain, block.inner, lambda activation: read().view_as(activation)).remove)
        else:
            stack.callback(block.maps[kind][0].register_forward_hook(instead).remove)
        return case.runs["metric"](raw.logits(plain, case.corrupted))


def raw_source(model, plain, case, source):
    """Return what a source writes in the clean run less what it writes in the corrupted one, from raw activations."""
    graph, number = case.graph, case.graph.sources.index(source)
    kind, layer, index = graph.source_kind[number], int(graph.source_layer[number]), int(graph.source_index[number])
    shape = (*case.clean.tokens.shape, -1)

    @torch.no_grad()
    def value(inputs):
        name = {"embed": "blocks.0.ln1.hook_out"}.get(
            kind, f"blocks.{layer}.{'attn.hook_z' if kind == 'head' else 'hook_mlp_out'}"
        )
        if kind == "embed":
            return read_at(plain, inputs, 1)["attn", 0] * case.masks[index][..., None]
        _, seen = raw.read(plain, inputs, [name])
        if kind == "mlp":
            return seen[name].reshape(shape)
        rows = torch.arange(model.cfg.d_head) + index * model.cfg.d_head
        written = seen[name].reshape(shape)[..., rows] @ raw.weight(plain, name)[rows]
        return written * raw.way_into_stream(plain, inputs, f"blocks.{layer}.hook_attn_out")

    return value(case.clean) - value(case.corrupted)


@pytest.mark.dear
def test_exact_edges_are_what_raw_hooks_on_plain_transformers_do(model, plain, case):
    graph, media = case.graph, case.graph.sites[0]
    shared = "L1H0-1" if graph.heads_for_each == 2 else "L1H0"
    edges = [
        (media, "L0.mlp"),
        ("L0H1", "L1H2.q"),
        (media, f"{shared}.k"),
        ("L0.mlp", f"{shared}.v"),
        ("L1H1", "L1.mlp" if not raw.side_by_side(plain) else "L2.mlp"),
        ("L1.mlp", "logits"),
    ]
    with leaves_no_hooks(model):
        found = circuit(model, **case.runs, method="exact", edges=edges)
    ours, truth, real = [], [], case.clean.attention_mask.bool()
    for edge in edges:
        moved = raw_source(model, plain, case, edge[0])
        raw.same((case.there - case.here)[graph.sources.index(edge[0])][real], moved[real], relative=1e-3)
        truth.append(by_raw_hooks(model, plain, case, edge, moved) - found.corrupted_metric)
        ours.append(found.scores[graph.sources.index(edge[0]), graph.destinations.index(edge[1])])
    raw.same(torch.stack(ours), torch.stack(truth), relative=1e-3)
    assert torch.stack(truth).abs().max() > 1e-4
    assert int((found.scores != 0).any(-1).sum()) <= len(edges)


# ---------------------------------------------------------------- where the model is all but linear, and along the input


def nearly(model, folder):
    """Return a run, another whose media differ by very little, and a metric of one token less another."""
    corrupted, generator = ask(model, "one"), torch.Generator().manual_seed(0)
    bend = {"gemma3": 1e-4, "paligemma": 1e-4, "llava-onevision": 1e-4, "pictoworld": 3e-4}  # others bend less
    size = next((size for name, size in bend.items() if folder.name.startswith(name)), 3e-3)
    noise = {name: size * torch.randn(value.shape, generator=generator) for name, value in corrupted.tower.items()}
    clean = replace(
        corrupted,
        tower={
            name: value + noise[name].to(value) if value.is_floating_point() else value
            for name, value in corrupted.tower.items()
        },
    )
    correct, wrong = torch.randint(0, model.cfg.d_vocab, (2, 1), generator=torch.Generator().manual_seed(0))
    return dict(clean=clean, corrupted=corrupted, metric=partial(metrics.logit_diff, correct=correct, wrong=wrong))


@pytest.mark.dear("blip2-opt", "gemma3", "qwen3-vl")
def test_where_little_changes_edges_rank_by_their_gradient_as_exactly_and_entering_ones_add_up_to_the_change(model, folder):
    runs = nearly(model, folder)
    first = circuit(model, **runs)
    where = first.graph.possible.nonzero()
    chosen = where[torch.randperm(len(where), generator=torch.Generator().manual_seed(1))[:30]]
    names = [(first.graph.sources[s], first.graph.destinations[d]) for s, d in chosen.tolist()]
    exact = circuit(model, **runs, method="exact", edges=names)
    middle = circuit(model, **runs, method="eap-ig", steps=1)
    truth = exact.score[tuple(chosen.T)]
    for found in (first, middle):
        assert spearmanr(found.score[tuple(chosen.T)], truth).statistic > 0.9
    entering = [number for number, kind in enumerate(first.graph.source_kind) if kind in ("embed", "deepstack")]
    whole = first.clean_metric - first.corrupted_metric
    torch.testing.assert_close(middle.outgoing()[entering].sum(0), whole, rtol=0.05, atol=2e-6)
    assert (truth != 0).sum() > 15


@pytest.mark.dear
def test_along_the_input_a_sources_edges_add_up_to_its_own_integrated_attribution(model, case):
    found = circuit(model, **case.runs, method="eap-ig", steps=2)
    every = {"all": torch.ones_like(case.clean.mask("all"))}
    own = attribution_patching(model, **case.runs, activation="mlp_out", sites=every, steps=2)
    mlps = torch.stack([found.outgoing()[case.graph.sources.index(f"L{l}.mlp")] for l in range(model.cfg.n_layers)])
    raw.same(mlps, (own.metric - own.corrupted_metric)[:, 0])


# ---------------------------------------------------------------- nodes


@pytest.mark.dear
def test_regions_of_a_medium_carry_together_what_the_whole_carries(model, case):
    media = case.clean.mask(*MEDIA)
    numbered = media.cumsum(1) - 1
    thirds = {f"{part} of 3": media & (numbered % 3 == part) for part in range(3)}
    found = circuit(model, **case.runs, sites=thirds)
    whole = case.found.scores[case.graph.sources.index(case.graph.sites[0])]
    raw.same(found.scores[:3].sum(0), whole)
    assert found.graph.sites == (*thirds, "rest")
    rest = case.found.scores[1 : len(case.graph.sites)].sum(0)
    torch.testing.assert_close(found.scores[3], rest, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))
    raw.same(found.scores[4:], case.found.scores[len(case.graph.sites) :])


def test_every_edge_leads_from_what_is_written_to_what_reads_it_later(model, plain, case):
    graph, depth, heads = case.graph, model.cfg.n_layers, model.cfg.n_heads
    groups = getattr(model.cfg, "n_key_value_heads", None) or heads
    deep = [name for name in graph.sources if name.endswith(".deepstack")]
    assert deep == [f"L{l}.deepstack" for l in range(depth) if f"deepstack.{l}.hook_out" in model.hook_names]
    assert len(graph.sources) == len(graph.sites) + depth * (heads + 1) + len(deep)
    assert len(graph.destinations) == depth * (heads + 2 * groups + 1) + 1
    assert graph.kind.count("k") == graph.kind.count("v") == depth * groups
    own = graph.possible[graph.sources.index("L1H0"), graph.destinations.index("L1.mlp")]
    assert bool(own) is not raw.side_by_side(plain)
    for layer in range(depth):
        before = [number for number, at in enumerate(graph.source_layer.tolist()) if at >= layer]
        reads = [n for n, (kind, at) in enumerate(zip(graph.kind, graph.layer.tolist(), strict=True)) if at == layer]
        heads_read = [number for number in reads if graph.kind[number] in ("q", "k", "v")]
        assert not graph.possible[before][:, heads_read].any()
        later = [n for n, at in enumerate(graph.source_layer.tolist()) if at < layer]
        assert graph.possible[later][:, reads].all()
    assert graph.possible[:, -1].all()
    for number, name in enumerate(graph.destinations[:-1]):
        nodes = [graph.sources[one] for one in graph.nodes_of(number)]
        assert len(nodes) == (graph.heads_for_each if graph.kind[number] in ("k", "v") else 1), name
