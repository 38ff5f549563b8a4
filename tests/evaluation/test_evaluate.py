"""An evaluation is what a loop by hand comes to, shows what planted neurons are for, and goes on where it was stopped."""

from collections.abc import Sequence
from datetime import timedelta

import datasets
import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from support import leaves_no_hooks, load, picture

from mmlens import Ablation, Evaluation, Example, HookedMLLM, Neurons, evaluate, hooks, metrics
from mmlens.evaluation.scores import Scores
from mmlens.evaluation.scoring import Scorer
from mmlens.liveness import UnknownHook
from mmlens.testing import planted
from mmlens.testing.plants.layout import NOTHING, NOUNS

QUIET = {"progress": False, "batch_size": 3}


@pytest.fixture(scope="module")
def examples():
    texts = (
        "what is it ?",
        "the red car",
        "which object is on the left of the tree ?",
        "a",
        "the car and the boat are blue",
    )
    return [
        Example(
            texts[place % 5],
            images=None if place % 4 == 3 else picture(place),
            answers=("the car", "a car"),
            label=("see", "read")[place % 2],
            id=f"e{place}",
        )
        for place in range(10)
    ]


@pytest.fixture(scope="module")
def neurons(small):
    return Neurons.of([(layer, unit) for layer in range(2) for unit in range(0, 40, 2)], small.widths)


@pytest.fixture(autouse=True)
def one_time(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")


def to_inputs(model, examples, **options):
    return model.to_inputs([one.text for one in examples], images=[one.images for one in examples], **options)


def letters(answer, answers):
    return len(answer) + len(answers[0])


def length(answer, answers):
    return len(answer)


# ---------------------------------------------------------------- it is what a loop comes to


def test_scores_and_answers_are_those_of_a_loop_of_generations_under_the_same_hooks(small, examples, neurons):
    def blind(inputs):
        return hooks.knock_out(inputs.last(), inputs.mask("image"))

    steer = [("blocks.1.hook_resid_post", hooks.add(torch.ones(small.cfg.d_model), scale=3.0))]
    arms = {"off": neurons, "held": Ablation(neurons, value=2, where=("image", "text")), "blind": blind, "steer": steer}
    with leaves_no_hooks(small):
        found = evaluate(small, examples[:7], letters, arms, draws={"off": 2, "held": 0}, max_new_tokens=3, **QUIET)
    random = [neurons.random_like(seed=draw) for draw in (0, 1)]
    by_hand = {
        "baseline": lambda inputs: [],
        "off": lambda inputs: hooks.ablate(neurons),
        "off (random 0)": lambda inputs: hooks.ablate(random[0]),
        "off (random 1)": lambda inputs: hooks.ablate(random[1]),
        "held": lambda inputs: hooks.ablate(neurons, value=2.0, where=inputs.mask("image", "text")),
        "blind": blind,
        "steer": lambda inputs: steer,
    }
    assert found.arms == tuple(by_hand)
    for arm, of in by_hand.items():
        texts = []
        for start in range(0, 7, 3):
            inputs = to_inputs(small, examples[start : min(start + 3, 7)])
            texts += small.generate(inputs, max_new_tokens=3, fwd_hooks=of(inputs)).text
        assert found.answers[arm] == tuple(texts)
        assert found.scores[found.arms.index(arm)].tolist() == [letters(text, ["the car"]) for text in texts]
    assert len({found.answers[arm] for arm in ("baseline", "off", "held", "steer")}) == 4
    assert found.random == {"off": tuple(by_hand)[2:4], "held": (), "blind": (), "steer": ()}
    assert found.tasks == (("see", "read") * 4)[:7]
    assert found.golds == (("the car", "a car"),) * 7


def test_log_prob_is_that_of_the_whole_first_answer(small, examples):
    found = evaluate(small, examples, "log_prob", {}, **QUIET)
    for place, one in enumerate(examples):
        inputs = to_inputs(small, [one], answer="the car")
        logits = small(inputs)[0].detach().log_softmax(-1)
        words = [small.to_token("the"), small.to_token("car")]
        assert found.scores[0, place] == pytest.approx(float(logits[-3, words[0]] + logits[-2, words[1]]), abs=1e-5)
    assert found.said.unique().tolist() == [-1]
    assert found.answers["baseline"] == (None,) * 10


def test_the_margin_is_how_far_the_answers_tokens_stand_above_the_best_others(small, examples):
    off = Neurons.of([(0, unit) for unit in range(20)], small.widths)
    found = evaluate(small, examples, "margin", {"off": off}, draws=0, **QUIET)
    for arm, edits in enumerate(([], hooks.ablate(off))):
        for place, one in enumerate(examples):
            inputs = to_inputs(small, [one], answer="the car")
            with torch.no_grad():
                logits = small.run_with_hooks(inputs, fwd_hooks=edits)[0].tolist()
            ahead = []
            for position, word in ((-3, "the"), (-2, "car")):
                token = small.to_token(word)
                ahead.append(logits[position][token] - max(v for t, v in enumerate(logits[position]) if t != token))
            assert found.scores[arm, place] == pytest.approx(sum(ahead) / 2, abs=1e-5)
    assert found.said.unique().tolist() == [-1]


def test_a_metric_is_named_or_any_function_and_a_chat_is_one(small, examples):
    named, given = (
        evaluate(small, examples[:3], metric, {}, chat=True, max_new_tokens=3, **QUIET)
        for metric in ("any_exact", metrics.any_exact)
    )
    written = small.generate(to_inputs(small, examples[:3], chat=True), max_new_tokens=3).text
    assert list(named.answers["baseline"]) == list(given.answers["baseline"]) == written


def test_the_same_picture_is_one_cluster_and_no_picture_one_of_its_text(small, examples):
    same = [
        Example("a", images=picture(0)),
        Example("the", images=picture(1)),
        Example("red", images=np.asarray(picture(0))),
        Example("a"),
        Example("the"),
        Example("a"),
    ]
    found = evaluate(small, same, length, {}, max_new_tokens=2, **QUIET)
    assert found.clusters.tolist() == [0, 1, 0, 2, 3, 2]
    once, often = (evaluate(small, examples[:6] * times, "log_prob", {}, **QUIET).table() for times in (1, 4))
    assert often["n"].tolist() == [12, 12]
    edges = ["clusters", "mean", "low", "high"]
    np.testing.assert_allclose(often[edges], once[edges], atol=1e-5)


# ---------------------------------------------------------------- planted neurons


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    made = planted(tmp_path_factory.mktemp("planted"))
    model = HookedMLLM.from_pretrained(made.folder, device="cpu")
    shown = [one for one in made.stimuli(54) if one.answer in NOUNS]
    examples = [Example(one.text, images=one.medium, answers=(one.answer,), label=one.answer) for one in shown]
    return made.key, model, examples


def test_concept_neurons_carry_their_own_task_and_no_other_and_random_ones_none(plant):
    key, model, examples = plant
    found = evaluate(model, examples, "exact_match", key.concepts, max_new_tokens=1, batch_size=24, progress=False)
    table = found.table(resamples=999)
    for noun in NOUNS:
        assert table.loc[("baseline", noun), "mean"] == 1
        for task in NOUNS:
            own, random = table.loc[(noun, task)], table.loc[(f"{noun} (random)", task)]
            assert own["mean"] == (0 if task == noun else 1)
            assert (own.p, own["rank"]) == ((2 / 2**6, 1) if task == noun else (1, 6))
            assert (random["mean"], random.difference, random.p, random.draws) == (1, 0, 1, 10)
    assert (found.matrix(resamples=99).to_numpy() == -np.eye(4)).all()
    said = found.answers["car"]
    assert {said[place] for place, task in enumerate(found.tasks) if task == "car"} == {NOTHING}


def test_without_the_off_diagonal_a_task_has_its_own_neurons_and_whatever_is_no_task(plant):
    key, model, examples = plant
    arms = {"car": key.concepts["car"], "boat": key.concepts["boat"], "all": Ablation(key.neurons(), value="mean")}
    options, examples = dict(draws=1, batch_size=5, progress=False), examples[:12]
    whole = evaluate(model, examples, "log_prob", arms, **options)
    own = evaluate(model, examples, "log_prob", arms, off_diagonal=False, **options)
    for index, arm in enumerate(own.arms):
        for place, task in enumerate(own.tasks):
            if arm.partition(" ")[0] in ("baseline", "all", task):
                assert own.scores[index, place] == pytest.approx(whole.scores[index, place].item(), abs=1e-4)
            else:
                assert own.scores[index, place].isnan()
    rows = own.table(resamples=99).index.tolist()
    assert ("car", "car") in rows and ("all", "sun") in rows
    assert ("car", "boat") not in rows and ("car (random)", "boat") not in rows
    with pytest.raises(ValueError, match="only once"):
        evaluate(model, iter(examples), "log_prob", arms, off_diagonal=False, **options)


def test_dead_neurons_change_nothing_at_all(small_folder, examples, neurons):
    model = load(small_folder)
    with torch.no_grad():
        for layer, units in neurons.by_layer().items():
            model.W_out(layer[1])[units] = 0.0
    found = evaluate(model, examples, "log_prob", {"dead": neurons}, **QUIET)
    table = found.table(resamples=99)
    assert (found.scores[0] == found.scores[1]).all()
    assert (table.loc["dead", ["difference", "difference_low", "difference_high"]] == 0).all(axis=None)
    assert (table.loc["dead", ["p", "p_corrected"]] == 1).all(axis=None)
    assert (table.loc["dead (random)", "difference"] != 0).all()


# ---------------------------------------------------------------- killed, resumed, shared


class Stopped(Sequence):
    """Examples of which one, when it is read for the first time, stops everything."""

    def __init__(self, items, at):
        self.items, self.at = items, at

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        if place == self.at:
            self.at = None
            raise KeyboardInterrupt
        return self.items[place]


@pytest.mark.parametrize("at", [4, 8])
def test_stopped_and_resumed_it_is_the_same_to_the_last_byte(small, examples, neurons, tmp_path, at):
    arms = {"mean": Ablation(neurons, value="mean"), "drawn": Ablation(neurons, value="resample"), "off": neurons}
    options = dict(draws=1, every=3, max_new_tokens=2, reference=examples[:4], **QUIET)
    whole = evaluate(small, examples, letters, arms, **options).save(tmp_path / "whole").read_bytes()
    again = Stopped(examples, at)
    with pytest.raises(KeyboardInterrupt):
        evaluate(small, again, letters, arms, checkpoint=tmp_path / "state", **options)
    found = evaluate(small, again, letters, arms, checkpoint=tmp_path / "state", **options)
    assert found.save(tmp_path / "resumed").read_bytes() == whole
    with pytest.raises(ValueError, match=r"accumulators\['evaluation'\]"):
        evaluate(small, again, letters, {"off": neurons[1:]}, checkpoint=tmp_path / "state", **options)


def test_stopped_in_its_reference_it_goes_on_there(small, examples, neurons, tmp_path):
    arms = {"drawn": Ablation(neurons, value="resample")}
    options = dict(draws=0, every=3, **QUIET)
    whole = evaluate(small, examples, "log_prob", arms, **options)
    again = Stopped(examples, 7)
    with pytest.raises(KeyboardInterrupt):
        evaluate(small, again, "log_prob", arms, checkpoint=tmp_path / "state", **options)
    assert (tmp_path / "state.reference.safetensors").is_file()
    assert not (tmp_path / "state.safetensors").exists()
    resumed = evaluate(small, again, "log_prob", arms, checkpoint=tmp_path / "state", **options)
    assert (resumed.scores == whole.scores).all()


def shared(rank, folder, small, examples, arms, options):
    meeting = dict(init_method=f"file://{folder}/meet", timeout=timedelta(minutes=1))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2, **meeting)
    evaluate(small, examples, "log_prob", arms, checkpoint=folder / "state", **options).save(folder / f"rank{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_what_one_does(small, examples, neurons, tmp_path):
    arms = {"off": neurons, "drawn": Ablation(neurons, value="resample"), "mean": Ablation(neurons, value="mean")}
    options = dict(draws=1, every=3, **QUIET)
    one = evaluate(small, examples, "log_prob", arms, **options)
    torch.multiprocessing.start_processes(shared, (tmp_path, small, examples, arms, options), nprocs=2, start_method="fork")
    two = [Evaluation.load(tmp_path / f"rank{rank}") for rank in (0, 1)]
    for found in two:
        assert (found.arms, found.ids, found.places, found.tasks) == (one.arms, one.ids, one.places, one.tasks)
        torch.testing.assert_close(found.scores, one.scores, atol=1e-9, rtol=0)
        assert (found.clusters == one.clusters).all()


def test_parts_merge_where_no_example_is_in_both(small, examples):
    def part(places):
        scores = Scores([], Scorer.of("log_prob", max_new_tokens=1, chat=False))
        for place in places:
            scores.found[place] = {"id": str(place)}
            scores.shown += torch.tensor([1, 0])
        return scores

    whole = part([3, 1])
    whole.merge_state(part([2]))
    assert (sorted(whole.found), whole.examples) == ([1, 2, 3], 3)
    with pytest.raises(ValueError, match="scored twice"):
        whole.merge_state(part([1]))
    whole.reset()
    assert (whole.found, whole.examples) == ({}, 0)


# ---------------------------------------------------------------- what fails, and what is kept


def test_an_example_that_fails_under_one_arm_is_left_out_of_all(small, examples, neurons):
    def picky(answer, answers):
        if answers == ("no",):
            raise RuntimeError("a metric that breaks")
        return len(answer)

    broken = [*examples[:4], Example("a", answers=("no",), id="broken"), *examples[4:]]
    with pytest.warns(UserWarning, match="a metric that breaks"):
        found = evaluate(small, broken, picky, {"off": neurons}, draws=1, max_new_tokens=2, **QUIET)
    assert [one.id for one in found.failures] == ["broken"]
    assert found.ids == tuple(one.id for one in examples)
    assert found.places == (0, 1, 2, 3, 5, 6, 7, 8, 9, 10)
    with pytest.warns(UserWarning, match="first gold answer"):
        evaluate(small, [Example("a"), *examples[:3]], "log_prob", {}, **QUIET)
    with pytest.warns(UserWarning, match="finite number"):
        some = [*examples[:3], Example("a", answers=("nan",))]
        evaluate(
            small, some, lambda answer, answers: float("nan") if "nan" in answers else 1.0, {}, max_new_tokens=1, **QUIET
        )


def test_it_saves_and_loads(small, examples, neurons, tmp_path):
    found = evaluate(small, examples, letters, {"off": neurons}, draws=2, max_new_tokens=2, **QUIET)
    again = Evaluation.load(found.save(tmp_path / "one"), model=small)
    assert again.answers == found.answers
    assert again.table(resamples=99).equals(found.table(resamples=99))
    assert "40 neurons held at 0.0 at post" in " ".join(again.provenance.parameters["interventions"])


def test_rows_of_a_data_set_are_examples_too(small, neurons):
    rows = datasets.Dataset.from_dict({"text": ["a", "the", "red"], "answers": [["car"]] * 3, "label": ["x", "y", "x"]})
    found = evaluate(small, rows, "log_prob", {"x": neurons}, draws=0, off_diagonal=False, **QUIET)
    assert found.tasks == ("x", "y", "x")
    assert found.scores[1].isnan().tolist() == [False, True, False]
    unlabelled = evaluate(
        small, rows.remove_columns("label"), "log_prob", {"all": neurons}, draws=0, off_diagonal=False, **QUIET
    )
    assert unlabelled.tasks == ("all",) * 3
    assert not unlabelled.scores.isnan().any()


def test_what_makes_no_sense_is_refused_before_anything_is_run(small, plant, examples, neurons):
    def refused(error, said, arms=None, metric="log_prob", **options):
        with pytest.raises(error, match=said):
            evaluate(small, examples, metric, {"off": neurons} if arms is None else arms, **QUIET, **options)

    refused(ValueError, "got 'accuracy'", metric="accuracy")
    refused((TypeError, TypeCheckError), "intervention", {"off": [neurons]})
    refused(ValueError, "0 times or more", draws=-1)
    refused(ValueError, "draws for 'on'", draws={"on": 10})
    refused(ValueError, "a name of its own", {"baseline": neurons})
    refused(ValueError, "a name of its own", {"off": neurons, "off (random)": neurons})
    refused(ValueError, "the model that is evaluated", {"car": plant[0].concepts["car"]})
    everything = Neurons.of([("projector", 0, unit) for unit in range(small.widths["projector"][0])], small.widths)
    refused(ValueError, "no random control.*draws=.'all': 0.", {"all": everything})
    refused(UnknownHook, "no hook point", {"typo": [("blocks.0.hook_resid_past", hooks.scale(0.0))]})
    with pytest.raises(ValueError, match="only once"):
        evaluate(small, iter(examples), "log_prob", {"mean": Ablation(neurons, value="mean")}, **QUIET)
    with pytest.raises(ValueError, match="the reference has none"):
        arms = {"mean": Ablation(neurons, value="mean", where=("image",))}
        evaluate(small, examples, "log_prob", arms, reference=[Example("a")], draws=0, **QUIET)
    alone = evaluate(small, examples, "log_prob", {"all": everything, "off": neurons}, draws={"all": 0, "off": 1}, **QUIET)
    assert {name: len(drawn) for name, drawn in alone.random.items()} == {"all": 0, "off": 1}


def test_neurons_of_some_modules_are_a_set_of_their_own(small):
    both = Neurons.of([("vision", 0, 1), (0, 2), ("vision", 1, 3)], small.widths)
    assert both.within("vision").labels() == ["vision.L0.u1", "vision.L1.u3"]
    assert both.within("language", "vision") == both
