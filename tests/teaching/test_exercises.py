"""Every exercise knows its right answer, made as a reader makes it, and says what is wrong with usual ones."""

import math
import re
from functools import cache, partial

import numpy as np
import pytest
import torch
from at_hand import NOTEBOOKS, cells, variables
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmlens import hooks, metrics, teaching, top_k
from mmlens.analysis import (
    activation_patching,
    attention_rows,
    by_quota,
    circuit,
    decode,
    knock_out_effect,
    logit_contribution,
    logit_lens,
    receptive_field,
)
from mmlens.data import Example
from mmlens.evaluation import Ablation, evaluate
from mmlens.grid import Grid
from mmlens.neurons import Neurons
from mmlens.organisms import pictoworld
from mmlens.teaching import check, exercises

NAMES = list(exercises())


def first_layer():
    model, lens = variables("01", "model", "lens")
    words = model.to_str_tokens(lens.tokens[:, 0, -1, 0])
    right = [word.strip() for word in words].index("wheel")
    return right, {right + 1: "counted from 0", right - 1: "one too few"}


def fewer_neurons():
    model, asked, top = variables("01", "model", "asked", "top")
    wheel, stamp = model.to_token("wheel"), model.to_token("stamp")

    def differ(neurons, where=None):
        logits = model.run_with_hooks(asked, fwd_hooks=hooks.ablate(neurons, where=where))[0, -1]
        return (logits[wheel] - logits[stamp]).item()

    image = asked.mask("image")
    right = differ(top[:20], image)
    return right, {differ(top[:20]): "at every position", differ(top, image): "all fifty", -right: "the sign is not"}


def bottom_left():
    (asked,) = variables("01", "asked")
    right, top = torch.zeros_like(asked.mask("image")), torch.zeros_like(asked.mask("image"))
    squares = torch.arange(64).view(8, 8)
    right[0, 1 + squares[4:, :4].flatten()] = True
    top[0, 1 + squares[:4, :4].flatten()] = True
    return right, {top: "pixels are counted from the top", right[0]: "batch axis", right[:, 1:65]: "the image alone"}


def any_piece():
    model, seen, objects, _ = variables("02", "model", "seen", "objects", "drawn")
    top = logit_lens(model, seen, top_k=1).tokens[..., 0]

    def share(layer, *ends):
        """Return how often the top word is any of the name's tokens (from one end of them on), the mean over objects."""
        names = [model.tokenizer(thing.noun, add_special_tokens=False)["input_ids"][slice(*ends)] for _, thing, _ in objects]
        hits = [
            [word in name for word in top[layer, row, here]] for name, (row, _, here) in zip(names, objects, strict=True)
        ]
        return np.mean([np.mean(hit) for hit in hits])

    return share(4, None), {share(4, 1): "first token alone", share(5, None): "the output", 64.6: "in per cent"}


def second_picture():
    model, two = variables("02", "model", "two")
    words = np.array(model.to_str_tokens(logit_lens(model, two, top_k=1).tokens[4, 0, :, 0]))
    first, second = (int((words[two.mask(f"image:{n}")[0].numpy()] == "tree").sum()) for n in (0, 1))
    return second, {first: "the first picture", first + second: "both pictures"}


def first_bell():
    model, heard, clips = variables("02", "hearing", "heard", "clips")
    words = model.to_str_tokens(logit_lens(model, heard, top_k=1).tokens[4, 0, :, 0])
    place = words.index("bell")
    within = place - int(heard.mask("audio")[0].nonzero()[0])
    return within * 0.04, {
        within: "within the sound",
        place: "in the stream",
        within * 0.04 + 0.04: "when the position ends",
        clips[6].events[1].start: "begins to sound",
    }


def two_pictures():
    memory, llava = variables("09", "memory", "llava")
    patterns = lambda **how: memory(weights=7.06e9, **{**llava, **how})["every pattern, if you cached them"]  # noqa: E731
    one = patterns()
    return patterns(positions=2 * 576 + 30), {
        one: "one picture",
        2 * one: "the square",
        patterns(positions=2 * 576 + 30, size=4): "float32",
    }


def even_share():
    lattice = Grid(24, 24, (80.0, 0.0, 560.0, 480.0), (640, 480))
    covered = int((lattice.box_overlap((240.0, 160.0, 320.0, 240.0)) > 0).sum())
    return covered / len(lattice), {
        80 * 80 / (640 * 480): "middle square",
        covered: "divide by",
        covered / 606: "whole prompt",
    }


@cache
def circuits():
    model, found_on, asking = variables("10", "model", "found_on", "asking")
    given = {change: asking(model, found_on, change) for change in ("picture", "question")}
    return model, given, {change: circuit(model, **one, method="eap-ig") for change, one in given.items()}


def which_queries():
    *_, found = circuits()
    sums = {}
    for _, destination, score in found["question"].edges().values:
        sums[destination] = sums.get(destination, 0) + abs(score)
    ranked = [tuple(map(int, re.findall(r"\d+", name))) for name in sorted(sums, key=lambda n: -sums[n]) if name[-1] == "q"]
    return ranked[0], {ranked[1]: "second", ranked[0][::-1]: "the layer comes first", (0, 3): "through its values"}


def in_common():
    *_, found = circuits()
    one, other, less = (
        set(map(tuple, found[change].top(n).edges()[["source", "destination"]].values))
        for change, n in (("picture", 160), ("question", 160), ("picture", 80))
    )
    both = len(one & other)
    assert less < one
    return both / len(one | other), {both: "how many they share", both / 160: "the union", both / 318: "counted twice"}


def turned_away():
    model, given, _ = circuits()
    thing, *runs = (given["question"][name] for name in ("sites", "clean", "corrupted"))
    clean, corrupted = (attention_rows(model, run).mass(thing["object"]).mean((1, 3)) for run in runs)
    best, most, other = (divmod(int(one.argmax()), 4) for one in (clean - corrupted, clean, corrupted))
    return best, {most: "take the difference", other: "when another one is asked for"}


def left_half():
    untrained, picture = variables("11", "untrained", "picture")
    inputs = untrained("llava-next-clip-mistral").to_inputs("what is in the picture ?", images=picture)
    seen = inputs.overlap((0, 0, 96, 96))[0] > 0.5
    overview = int((seen & inputs.mask("image:0/tile:0")[0]).sum())
    return seen.sum(), {overview: "overview alone", int(seen.sum()) - overview: "finer tiles alone"}


def half_a_second():
    (untrained,) = variables("11", "untrained")
    model = untrained("qwen2-audio")
    samples = np.zeros(int(0.6 * model.processor.feature_extractor.sampling_rate), np.float32)
    inputs = model.to_inputs("what is that ?", audio=samples)
    place = int(0.5 // inputs.grids[0][0].step)
    right = int(inputs.mask("audio")[0].nonzero()[place])
    return right, {place: "within the sound", right + 1: "one off"}


def two_means():
    first, second = torch.arange(64) < 10, torch.arange(8) < 6
    right = (first.double().mean() + second.double().mean()) / 2
    return right, {torch.cat([first, second]).double().mean(): "TokenStats", 2 * right: "sum over examples"}


def how_many_draws():
    right = next(n for n in range(1, 100) if 1 / (n + 1) <= 0.05)
    return right, {right + 1: "one of those that are counted", 10: "what the notebook draws"}


def blind():
    (model,) = variables("12", "model")
    rows = [(s, q) for s in pictoworld.scenes("held_out", n=220) for q in s.questions if q.kind == "color"]
    rows = [(s, q) for s, q in rows if q.answer == "the bridge"][:16]
    tasks = [Example(q.text, images=s.image, answers=(q.answer,), label="bridge") for s, q in rows]
    arms = {"no text": lambda inputs: hooks.knock_out(inputs.mask("text"), inputs.mask("image"))}
    right = evaluate(model, tasks, "log_prob", arms, draws=0, progress=False).matrix("difference").loc["no text", "bridge"]
    return right, {0.0: "behind the word", -right: "the sign is not"}


@cache
def star():
    model, captioned, neurons_of = variables("03", "model", "captioned", "neurons_of")
    scene = pictoworld.scenes("held_out", n=24, seed=11)[15]  # the notebook has captions of the others, too
    prompt, whole, targets, _ = captioned(scene)
    top, fired = neurons_of(prompt, whole, targets)
    sign = fired[top.layer, top.unit]
    mask = torch.from_numpy(next(thing.mask for thing in scene.objects if thing.noun == "star"))
    return model, top, sign, receptive_field(model, prompt, top, sign=sign), mask, whole, targets


def names_star(signed):
    model, top, sign, *_ = star()
    read = decode(model, top[:20], sign=sign[:20] if signed else None).words
    return [any(word.strip() == "star" for word in row) for row in read]


def below_zero():
    _, top, *_ = star()
    with_sign, without = names_star(True), names_star(False)
    right = next(i for i in range(5, 20) if with_sign[i] and not without[i])
    other = next(i for i in range(5, 20) if not with_sign[i])
    return top.labels()[right], {
        top.labels()[0]: "first five",
        top.labels()[other]: "star is not among",
        "L4.u0": "not among these neurons",
    }


def best_field():
    _, top, _, field, mask, *_ = star()
    ious = field.iou(mask)
    best, anywhere = int(ious[:20].argmax()), int(ious.argmax())
    return top[[best]], {top.labels()[anywhere]: "best of all hundred", top.labels()[0]: "by score, not by overlap"}


def at_the_picture():
    model, top, *_, whole, targets = star()

    def change(of, **how):
        off = hooks.ablate(top[:10], **how)
        before, after = (model.run_with_hooks(whole, fwd_hooks=some)[0, targets.position[0]] for some in ([], off))
        return (of(after) - of(before))[targets.token[0]].item()

    image, itself = whole.mask("image"), lambda logits: logits
    return change(itself, where=image), {
        change(itself): "everywhere",
        change(lambda logits: logits.log_softmax(-1), where=image): "log-probability",
        change(lambda logits: logits.softmax(-1), where=image): "the probability",
    }


@cache
def trees():
    return variables("04", "model", "inputs", "scored", "top", "acted", "tree")


def writes_below_zero():
    *_, top, acted, _ = trees()
    below = (acted < 0).nonzero()[:, 0]
    assert (below < 8).sum() == 3, "the question says three"
    label = top.labels()[int(below[below >= 8][0])]
    above = next(i for i in range(8, 20) if acted[i] > 0)
    return label, {top.labels()[int(below[0])]: "one of the three", top.labels()[above]: "is positive"}


def which_layer():
    _, _, scored, top, *_ = trees()
    sums = scored.scores.mean(0).sum(-1)
    return sums.argmax(), {int(top.layer[0]): "the strongest neuron", int(sums.argmax()) - 1: "look at the sums again"}


def another_word():
    model, inputs, _, top, _, tree = trees()
    flower = logit_contribution(model, inputs, torch.full_like(tree, model.to_token("flower"))).scores.mean(0)
    chosen, others = set(top.labels()), set(top_k(flower, 20, widths=model.widths).labels())
    return len(chosen & others) / len(chosen | others), {
        len(chosen & others) / 20: "share of twenty",
        1.0: "token is to be that of flower",
    }


def entropy():
    shares = [0.5, 0.25, 0.25]
    right = -sum(p * math.log(p) for p in shares)
    return right, {1.5: "in bits", -sum(p * math.log(p) for p in (0.9, 0.45, 0.45)): "scale them"}


def other_side():
    (model,) = variables("05", "model")
    row = model.W_out(4)[272]
    ranked = (-(row @ model.W_U)).argsort(descending=True)  # what neuron L4.u272 writes below zero
    said = [word.strip() for word in model.to_str_tokens(ranked[:2])]
    return f" {said[0]}", {"satellite": "positive side", said[1]: "not the first", "tree": "decode("}


def by_chance():
    widths = {"language": (512,) * 5}
    some = top_k(torch.rand(5, 512, generator=torch.Generator().manual_seed(0)), 128, widths=widths)
    dice, draws = torch.Generator().manual_seed(1), []
    for _ in range(300):
        draws.append(some.jaccard(top_k(torch.rand(5, 512, generator=dice), 128, widths=widths)))
    return np.mean(draws), {6.4: "how many they share", 0.05: "the union", 0.025: "counted twice"}


def picks():
    scores = torch.rand(3, 5, 512, generator=torch.Generator().manual_seed(0))
    given = dict(groups=("text", "special", "image"), widths={"language": (512,) * 5}, strategy="uniform")
    right, exact = (sum(map(len, by_quota(scores, exact=exact, **given).values())) for exact in (False, True))
    return right, {exact: "a rest is dropped", 50: "two groups", right // 15: "of each layer and each group"}


def in_both():
    modalities, image, text = variables("06", "modalities", "image_set", "text_set")
    both = image & text
    right, other = sorted(both, key=lambda own: -float(modalities.score[0, own[1], own[2]]))
    name = "L{1}.u{2}".format
    return name(*right), {
        name(*other): "the other one",
        (image - text).labels()[0]: "image only",
        (text - image).labels()[0]: "text only",
        "L4.u0": "in neither",
    }


def at_its_mean():
    model, fresh, strong = variables("06", "model", "fresh", "strong")
    arms = {value: Ablation(strong, value=value) for value in (0.0, "mean")}
    found = evaluate(model, fresh, "margin", {str(name): arm for name, arm in arms.items()}, draws=0, progress=False)
    costs = found.matrix("difference")
    right = costs.loc["mean", "cable, seen"]
    return right, {
        costs.loc["0.0", "cable, seen"]: "held at 0",
        costs.loc["mean", "wheel, seen"]: "of wheels",
        -right: "the sign is not",
        -7.0: "what is evaluated",
    }


def best_head():
    (by_head,) = variables("07", "by_head")
    ranked = by_head.mean[:, 0].flatten().argsort(descending=True)
    best, second, least = (divmod(int(ranked[i]), by_head.mean.shape[-1]) for i in (0, 1, -1))
    return best, {second: "second", least: "least", int(ranked[0]): "divmod"}


def which_position():
    model, one, other, single = variables("07", "model", "one", "other", "single")
    restored = activation_patching(model, clean=one, corrupted=other, metric=single, layers=[2]).mean[0]
    right = restored.argmax()
    return right, {int(right) - 1: "start mark", len(restored) - 1: "the last position"}


def how_much_is_back():
    scale = lambda value: (value - -3) / (7 - -3)  # noqa: E731
    return scale(4.5), {1 - scale(4.5): "still missing", 4.5 / 7: "share of the clean", 7.5: "change in logits"}


@cache
def last_token():
    return variables("08", "model", "inputs", "nouns", "shown")


def most_looked_at():
    model, inputs, *_ = last_token()
    pattern = attention_rows(model, inputs, layers=[2, 3]).pattern[:, 0, :, 0].mean(1)
    return pattern[0].argmax(), {int(pattern[0].argmax()) - 1: "start mark", int(pattern[1].argmax()): "layer 3"}


def finding_head():
    model, inputs, _, shown = last_token()
    mass = attention_rows(model, inputs).mass(shown).mean((1, 3))
    ranked = mass.flatten().argsort(descending=True)
    best, second = ((int(place) // 4, int(place) % 4) for place in ranked[:2])
    return torch.tensor(best), {best[::-1]: "the layer comes first", second: "second"}


def three_layers():
    model, inputs, nouns, shown = last_token()
    noun = partial(metrics.log_prob, token=nouns)
    sources = {"object": shown, "picture": inputs.mask("image")}
    found = knock_out_effect(model, inputs, noun, sources=sources, layers=[1], window=3).change.mean(-1)[0].tolist()
    return found[0], {found[1]: "whole picture", -found[0]: "the sign is not"}


SOLVED = {
    "01/first-layer": first_layer,
    "01/fewer-neurons": fewer_neurons,
    "01/bottom-left": bottom_left,
    "02/any-piece": any_piece,
    "02/second-picture": second_picture,
    "02/first-bell": first_bell,
    "09/two-pictures": two_pictures,
    "09/even-share": even_share,
    "10/which-queries": which_queries,
    "10/in-common": in_common,
    "10/turned-away": turned_away,
    "11/left-half": left_half,
    "11/half-a-second": half_a_second,
    "12/two-means": two_means,
    "12/how-many-draws": how_many_draws,
    "12/blind": blind,
    "03/below-zero": below_zero,
    "03/best-field": best_field,
    "03/at-the-picture": at_the_picture,
    "04/below-zero": writes_below_zero,
    "04/which-layer": which_layer,
    "04/another-word": another_word,
    "05/entropy": entropy,
    "05/other-side": other_side,
    "05/by-chance": by_chance,
    "06/picks": picks,
    "06/in-both": in_both,
    "06/at-its-mean": at_its_mean,
    "07/which-head": best_head,
    "07/which-position": which_position,
    "07/how-much-is-back": how_much_is_back,
    "08/most-looked-at": most_looked_at,
    "08/which-head": finding_head,
    "08/three-layers": three_layers,
}


@cache
def solved(name):
    with torch.no_grad():
        return SOLVED[name]()


LONG = ("06/at-its-mean", "06/in-both", "07/which-head", "07/which-position", "10/in-common", "10/which-queries")
"""Seconds to solve."""
EACH = [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in NAMES]


@pytest.mark.parametrize("name", EACH)
def test_the_right_answer_is_right_and_wrong_ones_get_their_hints(name):
    right, wrong = solved(name)
    assert check(name, right).status == "right", check(name, right)
    assert len(wrong) >= 2
    for answer, hint in wrong.items():
        said = check(name, answer)
        assert said.status == "not yet" and hint in said.hint, (answer, said)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_not_touched_is_not_tried(name):
    assert check(name) == check(name, None) == check(name, ...) == teaching.Verdict(name, "not tried")


def test_an_unknown_exercise_says_which_there_are():
    for name in ("01/last-layer", "", None, ["01/first-layer"], 3):
        said = check(name, 1)
        assert said.status == "not yet" and all(known in said.hint for known in NAMES)


class Evil:
    """An answer whose every question raises."""

    def __getattribute__(self, name):
        raise RuntimeError(name)

    def __eq__(self, other):
        raise RuntimeError("eq")

    def __float__(self):
        raise RuntimeError("float")

    __hash__ = __bool__ = __len__ = __iter__ = __float__


SHAPES = st.lists(st.integers(0, 3), max_size=4)
TENSORS = st.builds(
    lambda shape, dtype, value: torch.full(shape, value).to(dtype),
    SHAPES,
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64]),
    st.sampled_from([0.0, 1.0, -3.5, math.nan, math.inf]),
)
LEAVES = st.one_of(
    st.integers(), st.floats(), st.complex_numbers(), st.booleans(), st.text(), st.binary(), TENSORS, SHAPES.map(np.zeros)
)
ANYTHING = st.one_of(
    st.recursive(LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner, inner)), max_leaves=5),
    st.dictionaries(st.text(max_size=2), LEAVES, max_size=2),
    st.sampled_from([object(), len, np.datetime64("2020-01-01"), torch.ones(2, device="meta"), 10**400]),
    st.sampled_from([torch.zeros(1, 73, dtype=torch.bool), "L99999.u0", "L0.u-1", (7, 10**6), Neurons.of([], {})]),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.sampled_from(NAMES), ANYTHING)
def test_no_answer_raises(name, answer):
    said = check(name, answer)
    assert said.status in ("right", "not yet") and bool(said.hint) == (said.status == "not yet")
    assert said.status in repr(said) and said.status in said._repr_html_()


@pytest.mark.parametrize("name", NAMES)
def test_nan_and_other_kinds_are_answered_in_words(name):
    for answer in (math.nan, torch.tensor(math.nan), torch.zeros(2, 3), {}, "???", Evil(), Evil, [Evil(), Evil()]):
        said = check(name, answer)
        assert said.status == "not yet" and len(said.hint) > 20


def test_html_is_escaped():
    assert "<b>" not in check("<b>x</b>", 1)._repr_html_()


def in_notebooks():
    """Return, for every notebook, the exercises that its code checks."""
    numbers = sorted(path.name[:2] for path in NOTEBOOKS.glob("*.ipynb"))
    code = {number: "\n".join(text for kind, text in cells(number) if kind == "code") for number in numbers}
    return {number: re.findall(r'\bcheck\(\s*"([^"]*)"', text) for number, text in code.items()}


def test_every_exercise_is_in_its_notebook_once_and_every_check_is_registered():
    used = in_notebooks()
    assert sorted(name for names in used.values() for name in names) == sorted(NAMES)
    assert all(name.startswith(f"{number}/") for number, names in used.items() for name in names)
    assert all(len(names) in (2, 3) for names in used.values())


@pytest.mark.parametrize("name", EACH)
def test_the_notebook_asks_the_question_and_does_not_answer_it(name):
    asked = [" ".join(text.split()) for kind, text in cells(name[:2]) if kind == "markdown"]
    (own,) = [text for text in asked if f"**{name}.** {exercises()[name]}" in text]
    (code,) = [text for kind, text in cells(name[:2]) if kind == "code" and f'check("{name}"' in text]
    assert "my_answer = ...  # your turn" in code
    everything = " ".join(text for _, text in cells(name[:2]))
    right = solved(name)[0]
    if name == "01/bottom-left":
        return  # a mask: nobody writes that out
    if isinstance(right, Neurons):
        right = right.labels()[0]
    if isinstance(right, str):  # a label or a word
        assert not re.search(rf"\b{re.escape(right.strip())}\b", everything)
    elif isinstance(right, tuple) or (isinstance(right, torch.Tensor) and right.numel() == 2):
        assert not re.search(r"\(?{}, {}\)?".format(*map(int, right)), own)
    elif float(right) == int(right):
        assert not re.search(rf"(?<![\d.]){int(right)}(?![\d.])", own + code)
    else:
        assert not re.search(rf"(?<![\d.]){abs(float(right)):.2f}", own + code)


def test_the_first_notebook_ends_in_a_cell_that_asserts_a_changed_answer():
    kind, text = cells("01")[-1]
    assert kind == "code" and "assert without != answer" in text


def test_a_reader_s_edits_do_not_reach_the_checks():
    model, asked = variables("01", "model", "asked")
    with model.hooks(fwd_hooks=[("blocks.2.hook_resid_pre", hooks.replace(0.0))]):
        assert check("01/first-layer", solved("01/first-layer")[0]).status == "right"
        assert model(asked).isfinite().all()
