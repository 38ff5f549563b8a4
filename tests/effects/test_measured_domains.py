"""Which domain's answers depend on a domain's neurons (DAPE, Huo et al. 2024), chosen and scored on different scenes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from examples import interval, model_of

from mmlens import Ablation, Evaluation, Example, HookedMLLM, TokenStats, evaluate, sweep
from mmlens.analysis import Selection, domain_neurons
from mmlens.data import caption_examples, question_examples
from mmlens.organisms import pictoworld
from mmlens.organisms.pictoworld import DOMAINS, RENAMED, Scene

NAMES = ("pictoworld", "pictoworld-frozen")
KINDS = {"pictoworld": ("word", "renamed", "caption", "notes"), "pictoworld-frozen": ("word", "notes")}
RENAMED_NOUNS = {noun for nouns in RENAMED.values() for noun in nouns.values()}


@dataclass(frozen=True)
class Measured:
    """An evaluation by domain sets, and of each of its examples the kind, the domain and the picture."""

    found: Evaluation
    kinds: np.ndarray
    domains: np.ndarray
    images: np.ndarray

    def changes(self, arms: Sequence[str]) -> np.ndarray:
        """Return how each arm changes each example's score."""
        scores = self.found.scores.numpy()
        return scores[[self.found.arms.index(arm) for arm in arms]] - scores[0]

    def own_less(self, kind: str, what: str, expectations) -> tuple[float, float, float, int]:
        """Return the own set's change less that of the other sets, or of its random draws: mean, interval, n."""
        every = self.changes(DOMAINS)
        own = np.array([DOMAINS.index(domain) for domain in self.domains])
        mine = np.take_along_axis(every, own[None], 0)[0]
        if what == "others":
            less = (every.sum(0) - mine) / (len(DOMAINS) - 1)
        elif what == "random":
            drawn = np.stack([self.changes(self.found.random[domain]).mean(0) for domain in DOMAINS])
            less = np.take_along_axis(drawn, own[None], 0)[0]
        else:
            less = 0
        here = self.kinds == kind
        row = interval((mine - less)[here].tolist(), self.images[here].tolist(), expectations)
        return *row, int(here.sum())

    def matrix(self, kind: str) -> np.ndarray:
        """Return the mean change by set and domain."""
        every = self.changes(DOMAINS)
        return np.stack([every[:, (self.kinds == kind) & (self.domains == one)].mean(1) for one in DOMAINS], 1)


def worded(examples: Sequence[Example], kind: str) -> list[Example]:
    """Return examples whose answer is their last word that counts: what stands before it moves into the prompt."""
    return [
        replace(one, text=f"{one.text} {head}", answers=(word,), label=f"{kind}: {one.label}")
        for one in examples
        for head, _, word in [one.answers[0].rpartition(" ")]
    ]


def asked(kind: str, settings) -> list[Example]:
    """Return the scored examples of a kind, labelled by kind and domain."""
    n, seed = settings["scenes"], settings["scored_seed"]
    if kind == "renamed":
        chosen: list[Example] = []
        for scene in pictoworld.scenes("held_out", n=settings["renamed_scenes"], seed=seed):
            chosen += [one for one in colors(scene) if one.answers[0].split()[-1] in RENAMED_NOUNS]
        return worded(chosen[:n], kind)
    scenes = pictoworld.scenes("held_out", n=n, seed=seed)
    if kind == "caption":
        said = [(f"a {scene.domain.split()[0]}",) for scene in scenes]
        return worded([replace(one, answers=own) for one, own in zip(captions(scenes), said, strict=True)], kind)
    asked = question_examples(scenes, "domain", notes=kind == "notes")
    return worded([replace(one, answers=(one.answers[0].rpartition(" ")[0],)) for one in asked], kind)


def captions(scenes: Sequence[Scene]) -> list[Example]:
    """Return the prompts for captions, with the scenes' own, labelled by domain."""
    plain = caption_examples(scenes, captions=[scene.caption for scene in scenes])
    return [replace(one, label=scene.domain, id=f"{one.id}/0") for one, scene in zip(plain, scenes, strict=True)]


def colors(scene: Scene) -> list[Example]:
    return question_examples([scene], "color") if any(q.kind == "color" for q in scene.questions) else []


def chosen(model: HookedMLLM, settings) -> dict[float, Selection]:
    """Return the domains' neurons at each rate, and the examples that they were chosen on."""
    found = sweep(
        model,
        mining(settings),
        {"tokens": TokenStats(model.widths, labels=DOMAINS, groups=("image",), site="gate_act", statistics=("count",))},
        batch_size=50,
        progress=False,
    )
    return {rate: domain_neurons(found["tokens"], rate=rate) for rate in (settings["rate"], settings["wide_rate"])}


def mining(settings) -> list[Example]:
    return question_examples(pictoworld.scenes("held_out", n=settings["scenes"], seed=settings["chosen_seed"]), "domain")


@pytest.fixture(scope="module")
def measure(organisms, expectations):
    """Return a function of a model's name, kinds, a rate and a value: what its domain sets, held there, do."""
    settings = expectations["domains"]
    model = cache(lambda name: model_of(name, organisms))
    sets = cache(lambda name: chosen(model(name), settings))
    examples = cache(lambda kind: asked(kind, settings))

    @cache
    def run(name: str, kinds: tuple[str, ...], rate: float, value: float | str) -> Measured:
        every = [one for kind in kinds for one in examples(kind)]
        arms = {domain: Ablation(own, value=value) for domain, own in sets(name)[rate].sets.items()}  # pyright: ignore
        draws, reference = 0 if rate == settings["wide_rate"] else settings["draws"], mining(settings)
        found = evaluate(model(name), every, "margin", arms, draws=draws, reference=reference, batch_size=50, progress=False)
        assert not found.failures
        kind, domain = (np.array(part) for part in zip(*(task.split(": ") for task in found.tasks), strict=True))
        pictures = np.unique([one.rpartition("/")[0] for one in found.ids], return_inverse=True)[1]
        return Measured(found, kind, domain, pictures)

    return lambda name, kinds, rate, value=0.0: run(name, kinds, rate, value)  # a cache tells defaults from values given


@pytest.fixture
def rows(measure, report, expectations):
    """Return a function that measures, puts the rows in the table, and returns them."""
    settings = expectations["domains"]

    def table(name: str, kinds: tuple[str, ...], rate: float, value: float | str = 0.0) -> dict[tuple[str, str], tuple]:
        measured = measure(name, kinds, rate, value)
        found = {}
        for kind in kinds:
            for what in ("nothing", "others") if rate == settings["wide_rate"] else ("nothing", "others", "random"):
                found[kind, what] = row = measured.own_less(kind, what, expectations)
                held = "" if value == 0.0 else f", held at {value}"
                report(f"domains: {name}: {kind}, {rate:.0%}{held}: own less {what}", *row)
            hurt = int((measured.matrix(kind).argmin(0) == np.arange(len(DOMAINS))).sum())
            report(f"domains: {name}: {kind}, {rate:.0%}: domains of 5 most hurt by their own", hurt, hurt, hurt, 5)
        return found

    assert settings["scenes"] >= 500
    return table


@pytest.mark.parametrize("name", NAMES)
def test_a_domains_answers_lose_more_without_its_own_neurons_than_without_those_of_others(name, rows, expectations):
    settings = expectations["domains"]
    found = rows(name, KINDS[name], settings["rate"])
    for kind in KINDS[name]:
        mean, low, high, n = found[kind, "others"]
        assert n >= 500
        assert mean <= settings["own_less_others_at_most"][kind] and high < 0, (kind, mean, low, high)
    for kind in set(KINDS[name]) & set(settings["own_less_random_at_most"]):
        mean, low, high, _ = found[kind, "random"]
        assert mean <= settings["own_less_random_at_most"][kind] and high < 0, (kind, mean, low, high)


@pytest.mark.parametrize("name", NAMES)
def test_no_set_costs_an_answer(name, measure, report, expectations):
    settings = expectations["domains"]
    measured = measure(name, KINDS[name], settings["rate"])
    here = measured.kinds == "word"
    right = (measured.found.scores.numpy()[:, here] > 0).mean(1)
    worst = float(right.min())
    report(f"domains: {name}: domain words that stay right, worst set", worst, worst, 1.0, int(here.sum()))
    assert right.min() >= settings["right_at_least"]


@pytest.mark.parametrize("name", NAMES)
def test_corrected_over_the_whole_table_some_domains_words_are_hurt_by_their_own_set(name, measure, report, expectations):
    settings = expectations["domains"]
    table = measure(name, KINDS[name], settings["rate"]).found.table(resamples=1999)
    hurt = 0
    for domain in DOMAINS:
        row = table.loc[(domain, f"word: {domain}")]
        hurt += int(row["p_corrected"] < 0.05 and row["difference"] < 0 and row["mean"] < row["draw_low"])
    report(f"domains: {name}: domains of 5 whose word its own set hurts (corrected, below all draws)", hurt, hurt, hurt, 5)
    assert hurt >= settings["corrected_below_05"]


@pytest.mark.parametrize("name", NAMES)
def test_of_a_fifth_of_the_neurons_the_own_set_hurts_most_domains_words_most(name, measure, rows, expectations):
    settings = expectations["domains"]
    rows(name, ("word",), settings["wide_rate"])
    matrix = measure(name, ("word",), settings["wide_rate"]).matrix("word")
    assert (matrix.argmin(0) == np.arange(len(DOMAINS))).sum() >= settings["wide_most_hurt_by_own"]


@pytest.mark.parametrize("value", ["mean", "resample"])
def test_held_at_their_mean_or_another_examples_values_it_is_the_same(value, rows, expectations):
    mean, low, high, _ = rows("pictoworld", ("word",), expectations["domains"]["rate"], value)["word", "others"]
    assert high < 0, (mean, low, high)


def test_captions_as_a_whole_do_not_get_less_likely(organisms, report, expectations):
    settings, model = expectations["domains"], organisms["pictoworld"]
    scenes = pictoworld.scenes("held_out", n=settings["scenes"], seed=settings["scored_seed"])
    sets = chosen(model, settings)[settings["rate"]].sets
    found = evaluate(model, captions(scenes), "log_prob", sets, draws=1, batch_size=50, progress=False)
    every = np.arange(len(found.tasks))
    measured = Measured(found, np.full(len(every), "caption"), np.array(found.tasks), every)
    for what in ("others", "random"):
        row = measured.own_less("caption", what, expectations)
        report(f"domains: pictoworld: log-probability of the caption (nats): own less {what}", *row)
    mean, *_ = measured.own_less("caption", "others", expectations)
    assert abs(mean) <= settings["caption_log_prob_own_less_others_within"]


@pytest.mark.xfail(
    strict=True,
    reason="0.47 [0.35, 0.59] logits: with shuffled weights own sets hurt least, which is not nothing; in trained models "
    "they hurt most (-0.25 and -0.62). Not tried: another threshold, which would be chosen after the fact",
)
def test_shuffled_weights_have_no_domains_neurons(rows, expectations):
    settings = expectations["domains"]
    mean, *_ = rows("pictoworld-frozen, weights shuffled", ("word",), settings["rate"])["word", "others"]
    assert abs(mean) <= settings["shuffled_within"]


def test_every_domain_has_neurons_and_they_are_few(organisms, report, expectations):
    settings = expectations["domains"]
    sets = chosen(organisms["pictoworld"], settings)[settings["rate"]]
    assert torch.equal(sets.memberships().sum(), torch.tensor(len(sets.union())))
    for domain, own in sets.sets.items():
        report(f"domains: pictoworld: neurons of {domain}, 5 %", len(own), len(own), len(own), settings["scenes"])
        assert 0 < len(own) < 128
