from collections import Counter
from itertools import combinations
from math import exp, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlens import metrics
from mmlens.metrics import METRICS

WORDS = st.lists(st.sampled_from("red green two car house".split()), max_size=6)
OF_ONE_GOLD = {name: metric for name, metric in METRICS.items() if name not in ("vqa_score", "yes_no")}


def edits(one, other):
    """Return the fewest insertions, deletions and substitutions, by the recursion that defines them."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        last, row = row, [i]
        for j, right in enumerate(other, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (left != right)))
    return row[-1]


@pytest.mark.parametrize(
    ("metric", "answer", "golds", "score"),
    [
        ("exact_match", " Rural\n area. ", ["urban area", "rural area"], 1),
        ("exact_match", "the rural area", ["rural area"], 0),
        ("any_exact", "The two dogs.", ["cat", "2 dogs"], 1),
        ("any_exact", "don't know", ["dont know"], 1),
        ("any_exact", "3.5", ["35"], 0),
        ("any_exact", "", ["A"], 0),
        ("any_exact", "a", ["A"], 1),
        ("any_exact", "two dogs", ["two"], 0),
        ("contains_any", "It says STOP here.", ["go", "stop"], 1),
        ("contains_any", "nothing", ["no"], 1),
        ("contains_any", "It says", ["stop", ""], 0),
        ("first_letter", "(b) the liver", ["B"], 1),
        ("first_letter", "B. the liver", ["B"], 1),
        ("first_letter", "Because of A", ["B"], 0),
        ("first_letter", "C, not B", ["B"], 0),
        ("first_letter", "The liver.", ["B", "the liver"], 1),
        ("first_letter", "", ["B"], 0),
        ("label_in", "This is throat-clearing.", ["Throat clearing"], 1),
        ("label_in", "", ["!", "sigh"], 0),
        ("label_in", "a sight", ["Sigh"], 0),
        ("yes_no", "Yes, there is no dog.", ["yes"], 1),
        ("yes_no", "I see one", ["no"], 0),
        ("yes_no", "There is not. No.", ["No"], 1),
        ("yes_no", "nobody knows", ["no"], 0),
        ("word_accuracy", "He hoped, there would be stew!", ["HE HOPED THERE WOULD BE STEW"], 1),
        ("word_accuracy", "it's here", ["IT IS HERE"], 1 / 3),
        ("word_accuracy", "a b c d e f", ["X"], 0),
        ("anls", "Itc Limited", ["itc limited"], 1),
        ("anls", "kitten", ["sitting"], 1 - 3 / 7),
        ("anls", "ab", ["ba"], 0),
        ("anls", "ab", ["ac"], 0),
    ],
)
def test_an_answer_counts_as_the_benchmark_says(metric, answer, golds, score):
    assert METRICS[metric](answer, golds) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("agreed", range(11))
def test_the_soft_score_is_the_mean_over_all_ways_to_leave_one_person_out(agreed):
    golds = ["Yes"] * agreed + [f"other {person}" for person in range(10 - agreed)]
    subsets = list(combinations(golds, 9))
    expected = sum(min(1, subset.count("Yes") / 3) for subset in subsets) / len(subsets)
    assert metrics.vqa_score("the yes.", golds) == pytest.approx(expected)


@settings(deadline=None)  # the first case imports torchmetrics or nltk
@given(WORDS, WORDS.filter(bool))
def test_word_accuracy_is_one_minus_edits_per_word_and_never_below_zero(said, gold):
    expected = max(0, 1 - edits(said, gold) / len(gold))
    assert metrics.word_accuracy(" ".join(said), [" ".join(gold)]) == pytest.approx(expected, abs=1e-6)


@settings(deadline=None)
@given(st.text("abc", max_size=7), st.text("abc", min_size=1, max_size=7))
def test_anls_is_one_minus_edits_per_letter_and_zero_from_half_on(said, gold):
    distance = edits(said, gold) / max(len(said), len(gold))
    assert metrics.anls(said, [gold]) == pytest.approx(1 - distance if distance < 0.5 else 0)
    assert metrics.anls(said, [gold], threshold=1.0) == pytest.approx(1 - distance)


@settings(deadline=None)
@given(WORDS.filter(lambda words: len(words) > 3), WORDS.filter(lambda words: len(words) > 3))
def test_bleu_is_the_geometric_mean_of_clipped_counts_times_the_brevity_penalty(said, gold):
    total = 0.0
    for n in range(1, 5):
        ours, theirs = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (said, gold))
        hits, of = (ours & theirs).total(), ours.total()
        if n == 1 and not hits:
            total = -float("inf")
        total += log((hits or 0.1) / of) / 4
    expected = exp(total) * min(1, exp(1 - len(gold) / len(said)))
    assert metrics.bleu(" ".join(said), [" ".join(gold)]) == pytest.approx(expected)


@settings(deadline=None)
@given(WORDS, st.lists(WORDS.filter(bool), min_size=1, max_size=3))
def test_tfidf_cosine_weighs_words_by_how_few_of_these_texts_have_them(said, golds):
    texts = [said, *golds]
    names = sorted({word for text in texts for word in text})
    counts = np.array([[text.count(name) for name in names] for text in texts], dtype=float)
    weighed = counts * (np.log((1 + len(texts)) / (1 + (counts > 0).sum(0))) + 1)
    unit = weighed / np.maximum(np.linalg.norm(weighed, axis=1, keepdims=True), 1e-9)
    expected = (unit[1:] @ unit[0]).max()
    assert metrics.tfidf_cosine(" ".join(said), [" ".join(gold) for gold in golds]) == pytest.approx(expected, abs=1e-9)


def test_embedding_cosine_is_that_of_the_nearest_gold_answer():
    vectors = {"a dog": (1.0, 0.0), "a cat": (0.0, 2.0), "pets": (3.0, 4.0), "": (0.0, 0.0)}
    similar = metrics.embedding_cosine(lambda texts: np.array([vectors[text] for text in texts]))
    assert similar("a dog", ["a cat", "pets"]) == pytest.approx(3 / 5)
    assert similar("pets", ["a cat", "a dog"]) == pytest.approx(4 / 5)
    assert similar("", ["pets"]) == 0
    with pytest.raises(ValueError, match="leave this example out"):
        similar("a dog", [])
    with pytest.raises(ValueError, match=r"are \[2, d\], got \[2\]"):
        metrics.embedding_cosine(lambda texts: np.zeros(len(texts)))("a", ["b"])


@pytest.mark.parametrize("name", OF_ONE_GOLD)
def test_the_right_answer_has_one_and_the_best_gold_answer_counts(name):
    right = "B" if name == "first_letter" else "a small red car"
    assert METRICS[name](right, [right]) == METRICS[name](right, ["x", right]) == METRICS[name](right.lower(), [right]) == 1
    assert METRICS[name]("quite wrong", [right]) == METRICS[name]("", [right]) == 0


@pytest.mark.parametrize("name", METRICS)
def test_no_metric_takes_an_example_without_gold_answers_or_reads_one_letter_by_letter(name):
    with pytest.raises(ValueError, match="leave this example out"):
        METRICS[name]("yes", [])
    with pytest.raises(ValueError, match="leave this example out"):
        METRICS[name]("yes", [" "])
    with pytest.raises(TypeError, match="string"):
        METRICS[name]("yes", "yes")


def test_scores_that_have_no_meaning_are_refused():
    with pytest.raises(ValueError, match=r"four people.*got 1"):
        metrics.vqa_score("yes", ["yes"])
    with pytest.raises(ValueError, match=r"compares words, and none of \['!'\] has any"):
        metrics.word_accuracy("yes", ["!"])
    with pytest.raises(ValueError, match=r"two letters or more, \['B'\] have none"):
        metrics.tfidf_cosine("yes", ["B"])
    with pytest.raises(ValueError, match="yes or no, got 'a dog'"):
        metrics.yes_no("yes", ["a dog"])


# ---------------------------------------------------------------- what is made up


PICTURE = ["A man rides a horse.", "dog"]
OURS = {"person": ["man", "men"], "horse": ["pony"], "dog": [], "hot dog": [], "hot dog stand": [], "knife": []}


@pytest.mark.parametrize(
    ("caption", "mentioned", "made_up"),
    [
        ("Two Dogs and a PONY.", ["dog", "horse"], []),
        ("a hot dog, a hot-dog and hot dogs", ["hot dog"] * 3, ["hot dog"] * 3),
        ("a hot dog stand", ["hot dog stand"], ["hot dog stand"]),
        ("a man with knives", ["person", "knife"], ["knife"]),
        ("a category of ponies", ["horse"], []),
        ("nothing to see", [], []),
    ],
)
def test_chair_finds_the_objects_that_a_caption_mentions_and_the_picture_does_not_hold(caption, mentioned, made_up):
    chair = metrics.chair(OURS)
    assert chair.mentioned(caption) == mentioned
    assert chair.made_up(caption, PICTURE) == made_up
    assert chair.sentence(caption, PICTURE) == bool(made_up)
    assert chair.instance(caption, PICTURE) == (len(made_up) / len(mentioned) if mentioned else 0)


def test_chair_of_a_corpus_is_a_ratio_of_totals_and_not_a_mean_of_ratios():
    chair = metrics.chair(OURS)
    scores = chair.corpus(["a dog, a horse and a knife", "a knife", "a man"], [PICTURE, ["knife"], ["dog"]])
    assert (scores.mentions, scores.made_up, scores.captions) == (5, 2, 3)
    assert scores.instance == pytest.approx(2 / 5)
    assert scores.sentence == pytest.approx(2 / 3)


def test_cocos_eighty_objects_are_found_in_singular_and_plural():
    chair = metrics.chair()
    assert len(metrics.COCO_OBJECTS) == 80
    assert all(chair.mentioned(f"the {name} is") == [name] for name in metrics.COCO_OBJECTS)
    assert chair.mentioned("people on buses with knives, mice and wine glasses") == [
        "person",
        "bus",
        "knife",
        "mouse",
        "wine glass",
    ]


@pytest.mark.parametrize(
    ("objects", "error"), [({}, ValueError), ({"dog": [], "cat": ["Dogs"]}, ValueError), ({"dog": "puppy"}, TypeError)]
)
def test_objects_that_cannot_be_told_apart_are_refused(objects, error):
    with pytest.raises(error):
        metrics.chair(objects)


def test_chair_is_told_what_the_picture_holds():
    with pytest.raises(ValueError, match="what the picture holds"):
        metrics.chair().sentence("a dog", [])
    assert metrics.chair().sentence("a dog", [""]) == 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["Yes.", "No, sir", "a dog"]), st.sampled_from(["yes", "no"])), min_size=1))
def test_pope_scores_are_those_of_the_counts_and_an_unclear_answer_is_wrong(pairs):
    scores = metrics.pope([answer for answer, _ in pairs], [gold for _, gold in pairs])
    counts = Counter((answer, gold) for answer, gold in pairs)
    hit, false = counts["Yes.", "yes"], counts["Yes.", "no"]
    of_yes = sum(gold == "yes" for _, gold in pairs)
    precision, recall = hit / max(hit + false, 1), hit / max(of_yes, 1)
    assert scores.accuracy == pytest.approx((hit + counts["No, sir", "no"]) / len(pairs))
    assert scores.precision == pytest.approx(precision)
    assert scores.recall == pytest.approx(recall)
    assert scores.f1 == pytest.approx(2 * precision * recall / (precision + recall) if hit else 0)
    assert scores.yes_rate == pytest.approx((hit + false) / len(pairs))
    assert (scores.n, scores.unclear) == (len(pairs), sum(answer == "a dog" for answer, _ in pairs))


def test_pope_wants_a_gold_answer_for_every_answer():
    with pytest.raises(ValueError, match="2 answers and 1 golds"):
        metrics.pope(["yes", "no"], ["yes"])
