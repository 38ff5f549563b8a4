"""Huo et al. 2024: each number is that of the function behind it, and `legacy` is as released in what it says."""

import numpy as np
import pytest
import torch
from support import picture

from mmlens import HookedMLLM
from mmlens.analysis import domain_neurons, lens_entropy, media_geometry, stream_change, turning_points
from mmlens.data import Example, question_examples
from mmlens.evaluation import evaluate
from mmlens.organisms import pictoworld
from mmlens.papers import Reproduction, huo2024
from mmlens.papers.huo2024 import SELECTION, STATISTICS, deactivated
from mmlens.stats import TokenStats
from mmlens.sweeps import encoded, sweep
from mmlens.testing import tiny

DOMAINS = ("document page", "medical scan")
MODULES = ("language", "vision", "projector")
SMALL = dict(metric="log_prob", draws=1, looked_at=3, seed=3)


@pytest.fixture(scope="module")
def model():
    return HookedMLLM.from_pretrained("pictoworld", device="cpu")


@pytest.fixture(scope="module")
def asked():
    """Five questions about documents and seven about scans, in turn; two of each for the test."""
    found = question_examples(pictoworld.scenes("held_out", n=40, seed=1), "place")
    documents, scans = ([one for one in found if one.label == domain] for domain in DOMAINS)
    mining = [one for pair in zip(documents[:5], scans[:5], strict=True) for one in pair] + scans[5:7]
    return mining, [documents[-1], documents[-1], scans[-1], scans[-3], documents[-4]]  # one is there twice


def counted(model, examples, group):
    accumulators = {"all": TokenStats(model.widths, labels=DOMAINS, modules=MODULES, **STATISTICS | dict(groups=("all",)))}
    if group != "all":
        accumulators["of group"] = TokenStats(model.widths, labels=DOMAINS, **STATISTICS | dict(groups=(group,)))
    found = sweep(model, examples, accumulators, progress=False).results
    return {module: found["of group" if module == "language" and group != "all" else "all"] for module in MODULES}


@pytest.fixture(scope="module")
def selections(model, asked):
    balanced = counted(model, asked[0][:10], "image")
    return {module: domain_neurons(balanced[module], module=module, **SELECTION) for module in MODULES}


@pytest.fixture(scope="module")
def found(model, asked):
    return huo2024.reproduce(model, *asked, **SMALL)


def test_counts_are_those_of_the_selection(found, selections, model):
    for module, selection in selections.items():
        item, row = f"domain neurons of {module}", selection.counts().sum(0)
        assert [found.value(item, domain) for domain in DOMAINS] == [len(selection[domain]) for domain in DOMAINS]
        assert [found.value(item, f"of exactly {k}") for k in ("1 domain", "2 domains")] == selection.memberships().tolist()
        share = len(selection.union()) / sum(model.widths[module])
        assert found.value(f"share of {module} that is domain-specific") == pytest.approx(share)
        by_layer = [found.value(f"{item}, domains added up", f"layer {layer}") for layer in range(len(row))]
        assert by_layer == row.tolist()
    turns = [found.value("layer at which the counts of language turn", f"{n} (ours)") for n in ("first", "second")]
    assert turns == list(turning_points(selections["language"].counts().sum(0).float()))
    tokens = {one.condition: one.value for one in found.rows if one.item == "positions of language that count"}
    assert tokens == {"fewest of a domain": 5 * 64, "most of a domain": 5 * 64}


def test_changes_are_those_of_the_evaluation(found, selections, model, asked):
    sets = deactivated(selections)
    assert list(sets) == [*MODULES, "all modules"]
    given = {name: own for parts in sets.values() for name, own in parts.items() if len(own)}
    table = evaluate(model, asked[1], "log_prob", given, draws=1, seed=3, progress=False).table(resamples=99)
    for task in DOMAINS:
        assert found.value(f"log_prob on {task}", "baseline") == pytest.approx(table.loc["baseline", task]["mean"])
    diagonal, off = [], []
    for name in given:
        domain, other = sorted(DOMAINS, key=lambda one: one != name.partition(": ")[0])
        diagonal.append(table.loc[name, domain]["difference"])
        for arm in (name, f"{name} (random)"):
            assert found.value(f"change on {domain}", arm) == pytest.approx(table.loc[arm, domain]["difference"])
            if "all modules" in name:
                mean = found.value("mean change on the other domains", arm)
                assert mean == pytest.approx(table.loc[arm, other]["difference"])
        if name.endswith("all modules"):
            off.append(table.loc[name, other]["difference"])
    assert found.value("largest change on the own domain", "own sets") == pytest.approx(np.abs(diagonal).max())
    assert found.value("mean change on the other domains", "all modules") == pytest.approx(np.mean(off))


def test_stream_lens_and_tower_are_those_of_the_functions(found, selections, model, asked):
    looked = [asked[1][place] for place in (0, 2, 3)]  # of the domains in turn, each picture once
    inputs, sets = [encoded(model, [one]) for one in looked], deactivated(selections)["all modules"]
    moved = [
        stream_change(model, own, sets[f"{one.label}: all modules"], draws=1, seed=3)
        for one, own in zip(looked, inputs, strict=True)
    ]
    for place, group in enumerate(("image", "text")):
        item = f"relative change of the last stream at {group} positions"
        own = np.mean([float(one.relative[place, -1, 0]) for one in moved])
        random = np.mean([float(one.random_relative[0, place, -1, 0]) for one in moved])
        assert found.value(item, "its domain's neurons") == pytest.approx(own)
        assert found.value(item, "random") == pytest.approx(random)
        curve = lens_entropy(model, inputs).curve(group=group)
        for name, layer in (("first", 0), ("middle", len(curve) // 2), ("last", -1)):
            entropy = found.value(f"entropy at {group} positions (nats)", f"{name} layer")
            assert entropy == pytest.approx(float(curve[layer]))
    apart = media_geometry(model, inputs, [one.label for one in looked], draws=1, seed=3)
    assert found.value("silhouette of domains in vision", "domains") == pytest.approx(float(apart.silhouette))
    assert found.value("silhouette of domains in vision", "shuffled") == pytest.approx(float(apart.random_silhouette))


def test_tables_save_load_and_say_what_is_the_papers(found, model, asked, tmp_path):
    assert Reproduction.load(found.save(tmp_path / "tables")).markdown() == found.markdown()
    share = next(one for one in found.rows if one.item == "share of vision that is domain-specific")
    assert (share.paper, share.tag, share.n) == (0.01, "secondary source", 10)
    theirs = {one.item for one in found.rows if one.tag == "paper"}
    assert not theirs, "log_prob is no accuracy"
    quick = huo2024.reproduce(
        model, *asked, draws=0, looked_at=1, modules=["projector"], metric=lambda answer, answers: 1.0, max_new_tokens=1
    )
    largest = [one for one in quick.rows if one.item == "largest change on the own domain"]
    assert [(one.condition, one.paper, one.tag, one.value) for one in largest] == [("own sets", 0.1, "paper", 0.0)]
    assert not any("random" in one.condition for one in quick.rows)


def test_legacy_counts_all_examples_at_all_positions_and_holds_the_tower_with_the_projector(model, asked, found):
    released = huo2024.reproduce(model, *asked, **SMALL, legacy=True)
    statistics = counted(model, asked[0], "all")
    chosen = {one: domain_neurons(statistics[one], module=one, unread=True, **SELECTION) for one in MODULES}
    for module, selection in chosen.items():
        for domain in DOMAINS:
            assert released.value(f"domain neurons of {module}", domain) == len(selection[domain])
    assert released.value("positions of language that count", "most of a domain") > 7 * 64
    sets = deactivated(chosen, legacy=True)
    assert list(sets) == ["language", "vision+projector", "all modules"]
    both = sets["vision+projector"]["medical scan: vision+projector"]
    assert set(both) == set(chosen["vision"]["medical scan"]) | set(chosen["projector"]["medical scan"])
    assert {one.condition for one in released.rows} & {"vision+projector"} and "(as released)" in released.markdown()
    own, theirs = ([one for one in each.rows if one.table in ("logit lens", "tower")] for each in (found, released))
    assert own == theirs, "neurons have no part in these"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    torch.manual_seed(0)
    return HookedMLLM.from_pretrained(tiny("qwen2-vl", tmp_path_factory.mktemp("qwen2-vl")), device="cpu")


def test_pictures_of_all_sizes_give_as_many_positions_of_each_domain(small):
    sizes = {"wide": (120, 40), "small": (40, 40)}
    examples = [
        Example("what ?", images=picture(seed, *size), answers=("a",), label=domain)
        for seed in range(3)
        for domain, size in sizes.items()
    ]
    how = dict(metric="log_prob", modules=["language"], draws=0, looked_at=2)
    tokens = {}
    for legacy in (False, True):
        found = huo2024.reproduce(small, examples, examples[:2], legacy=legacy, **how)
        rows = [one.value for one in found.rows if one.item == "positions of language that count"]
        tokens[legacy] = rows
    assert tokens[False][0] == tokens[False][1] < tokens[True][0] < tokens[True][1]


def test_layers_that_are_not_read_have_neurons_only_as_released(tmp_path):
    model = HookedMLLM.from_pretrained(tiny("llava-clip-llama", tmp_path), device="cpu")
    unread = range(model.live_layers["vision"], len(model.widths["vision"]))
    assert len(unread) > 0
    examples = [Example("what ?", images=picture(n), answers=("a",), label="ab"[n % 2]) for n in range(4)]
    how = dict(metric="log_prob", modules=["vision"], draws=0, looked_at=1)
    for legacy in (False, True):
        found = huo2024.reproduce(model, examples, examples[:2], legacy=legacy, **how)
        share = found.value("share of vision that is domain-specific")
        size = sum(model.widths["vision"][: None if legacy else model.live_layers["vision"]])
        assert share == round(0.01 * size) / size
        if not legacy:
            items = "domain neurons of vision, domains added up"
            assert sum(found.value(items, f"layer {layer}") for layer in unread) == 0


def test_what_is_no_data_for_the_tables_is_said_in_words(model, asked):
    mining, test = asked
    with pytest.raises(ValueError, match="2 labels or more, got 1: document page"):
        huo2024.reproduce(model, mining[:1], test)
    with pytest.raises(ValueError, match="every test example has a label, number 0 has none"):
        huo2024.reproduce(model, mining, [Example("what ?")])
    with pytest.raises(ValueError, match="got document page, medical scan for mining and fog for the test"):
        huo2024.reproduce(model, mining, [Example("what ?", label="fog")])
    with pytest.raises(ValueError, match="got looked_at=0"):
        huo2024.reproduce(model, mining, test, looked_at=0)
    with pytest.raises(ValueError, match="mined at image positions, example 2 has none"):
        huo2024.reproduce(model, [*mining[:2], Example("what ?", label=DOMAINS[0]), mining[3]], test)
