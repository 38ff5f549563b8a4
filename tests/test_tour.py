"""The tour's page is whole, offline and true: its numbers equal a recomputation, whatever model and picture it is about."""

import base64
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from support import picture

from mmlens import HookedMLLM
from mmlens.analysis import AblationCurve, Attribution, Circuit, Convergence, Edit, Faithfulness
from mmlens.evaluation import Evaluation
from mmlens.hooks import ablate
from mmlens.organisms import pictoworld
from mmlens.targets import answer_word, continued, first_token
from mmlens.testing import tiny
from mmlens.tour import Edited, Rate, SwitchedOff, case_of, circuits, edits, numbers_to_try, tour

VOID = {"meta", "img", "br"}
HEADINGS = (
    "What does the model see?",
    "What do the image positions already read as?",
    "depend on?",
    "of them carry",
    "write without them?",
    "become the answer?",
    "the last position become",
    "Along which edges",
    "Do these edges alone",
    "Can the answer be edited?",
)


class Page(HTMLParser):
    """Reads a page strictly: every tag is closed, and keeps its pictures, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.attributes, self.tags, self.text = [], [], [], set(), ""
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(path):
    """Return the page at `path`, after checking that it stands alone."""
    assert path.stat().st_size < 3_000_000
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert all(image["alt"] and image["src"].startswith("data:image/png;base64,") for image in page.images)
    assert all(base64.b64decode(image["src"].split(",")[1]).startswith(b"\x89PNG") for image in page.images)
    assert not {"script", "iframe", "link", "object"} & page.tags
    assert not [value for name, value in page.attributes if name in ("src", "href") and not str(value).startswith("data:")]
    assert "url(" not in text and "@import" not in text and "default-src 'none'" in text
    return page


def whole(page):
    """Return whether all figures are there; two runs that don't differ have no patching to draw, and the page says so."""
    return len(page.images) == (6 if "nothing to restore" in page.text else 7)


def small_model(tmp_path, family="llava-siglip-qwen2", **changes):
    return HookedMLLM.from_pretrained(tiny(family, tmp_path / "model", **changes), device="cpu")


@pytest.fixture(scope="module")
def organism():
    return HookedMLLM.from_pretrained("pictoworld", device="cpu")


@pytest.fixture(scope="module")
def found(organism, tmp_path_factory):
    return tour(organism, tmp_path_factory.mktemp("tour"), scenes=4, draws=3)


def test_the_page_stands_alone_and_says_what_was_found(found):
    page = read(found.path)
    assert found.sentence in page.text and found.beside in page.text
    assert len(page.images) == 10  # the picture and one figure per section but that on other answers
    for part in ("weights", "versions", "seed", "command"):
        assert part in page.text


def test_the_sentence_says_what_a_recomputation_finds(organism, found):
    scene = pictoworld.scenes(n=1)[0]
    pair = pictoworld.pairs(n=1)[0]
    assert pair.clean.image.tobytes() == scene.image.tobytes()
    question = f"which object is {scene.objects[pair.index].color} ? answer :"
    inputs = organism.to_inputs(question, images=scene.image)
    answer = organism.generate(inputs).text[0]
    scores = Attribution.load(found.path.parent / "results/attribution").scores[0]
    order = torch.argsort(scores.flatten(), descending=True, stable=True).tolist()
    units = scores.shape[1]
    switched = SwitchedOff.load(found.path.parent / "results/switched_off", model=organism)
    curve = AblationCurve.load(found.path.parent / "results/ablation_curve")

    def without(neurons):
        return organism.generate(inputs, fwd_hooks=ablate(neurons, where=inputs.mask("image"))).text[0]

    assert list(curve.neurons) == [("language", i // units, i % units) for i in order[: len(curve.neurons)]]
    assert switched.tried.tolist() == numbers_to_try(curve.neurons)[: len(switched.tried)]
    assert list(switched.answers) == [without(curve.neurons[:k]) for k in switched.tried.tolist()]
    changed = [k for k, new in zip(switched.tried.tolist(), switched.answers, strict=True) if new != answer]
    assert switched.number == (changed[0] if changed else None)
    controls = [curve.neurons[: int(switched.tried[-1])].random_like(seed=draw) for draw in range(3)]
    assert list(switched.random_answers) == [without(control) for control in controls]
    said = f"(random: changed in {sum(new != answer for new in switched.random_answers)} of 3 draws)"
    assert said in found.sentence and f'"{answer}"' in found.sentence and "2,560 neurons" in found.sentence


def test_the_rate_counts_other_scenes_than_the_one_shown(organism, found):
    rate = Rate.load(found.path.parent / "results/rate", model=organism)
    assert len(rate.scene) == 4 and 0 not in rate.scene
    assert f"changes in {int(rate.own.sum())} without" in found.beside


def test_the_way_leads_from_the_picture_through_neurons_and_edges_to_an_edit(found):
    page = read(found.path)
    places = [page.text.index(heading) for heading in HEADINGS]
    assert places == sorted(places) and "left out here" not in page.text.lower()


def test_what_is_said_of_the_last_position_is_in_its_curves(organism, found):
    result = Convergence.load(found.path.parent / "results/convergence", model=organism)
    switched = SwitchedOff.load(found.path.parent / "results/switched_off", model=organism)
    cosine, kl = result.cosine[:, 0], result.clean.kl[:, 0]
    assert len(result.random) == 3 and len(result.provenance.parameters["neurons"]) == switched.tried[-1]
    near = min(layer for layer in range(len(cosine)) if bool((cosine[layer:] >= 0.5).all()))
    read_as = min(layer for layer in range(len(kl)) if bool((kl[layer:] <= kl[0] / 10).all()))
    text = read(found.path).text
    assert f"from the start of layer {near} on (cosine {cosine[near]:.2f}; {cosine[0]:.2f}" in text
    assert f"from the start of layer {read_as} on ({kl[read_as]:.2f} nats; {kl[0]:.2f} at first)" in text
    image = result.clean.mass[0, :, 0]
    assert f"in layer {int(image.argmax())}: {float(image.max()):.0%} of its attention" in text
    change = result.difference("cosine")[:, 0]
    at = int(change.abs().argmax())
    drawn = [
        f"{round(float(one(result.random_difference('cosine')[:, at])), 2) + 0.0:+.2f}" for one in (torch.min, torch.max)
    ]
    assert f"at the start of layer {at}, by {change[at]:+.2f}; " in text
    assert f"by {drawn[0]} to {drawn[1]} (3 draws)" in text


def test_the_circuit_carries_the_answer_on_pairs_that_it_was_not_found_on(organism, found):
    result = Circuit.load(found.path.parent / "results/circuit", model=organism)
    tried = Faithfulness.load(found.path.parent / "results/faithfulness", model=organism)
    assert result.scores.shape[-1] == tried.alone.shape[-1] == 10 and result.method == "eap-ig"
    assert not set(result.provenance.inputs) & set(tried.provenance.inputs)
    text = read(found.path).text
    clean, corrupted = result.clean_metric.mean(), result.corrupted_metric.mean()
    entering = {
        site: round(float(result.scores[number].sum(0).mean()), 1) + 0.0 for number, site in enumerate(result.graph.sites)
    }
    assert f"is {clean:.1f} for the first picture and {corrupted:.1f} for the changed one" in text
    assert f"{entering['object']:.1f} enter at the object and {entering['other image']:.1f} elsewhere" in text
    assert f"the {len(result.top(40))} on whole ways" in text and "object → L" in text
    alone, random = tried.alone.mean(1), tried.controls["random"].mean((0, 2))
    assert bool((alone > random + 0.2).all()) and bool((alone[1:] > alone[:-1]).all())
    for values in (alone, random, tried.without.mean(1)):
        first, second, third = (f"{round(float(value), 2) + 0.0:.2f}" for value in values)
        assert f"{first}, {second} and {third}" in text


def test_the_edit_changes_the_answer_and_is_undone_bit_by_bit(organism, found):
    folder = found.path.parent / "results"
    edit, random = (Edit.load(folder / name, model=organism) for name in ("edit", "edit_random"))
    edited, tried = Edited.load(folder / "edited", model=organism), Evaluation.load(folder / "edit_tried", model=organism)
    pair = pictoworld.pairs(n=1)[0]
    inputs = organism.to_inputs(
        f"which object is {pair.clean.objects[pair.index].color} ? answer :", images=pair.clean.image
    )
    assert inputs.digest() not in edit.provenance.inputs and random.steps == edit.steps
    assert edit.words == (pair.clean.objects[pair.index].noun, pair.corrupted.objects[pair.index].noun)
    answers = [organism.generate(inputs, fwd_hooks=one.hooks(organism)).text[0] for one in (edit, random)]
    assert [edited.edited, edited.random] == answers and edited.written == edited.edited == f"the {edit.words[1]}"
    assert edited.undone == edited.answer == found.answer and edited.changed[0] > 0 == edited.changed[1]
    text = read(found.path).text
    assert f'from "{edited.answer}" into "{edited.edited}" (as many steps on random neurons: "{edited.random}")' in text
    assert f"on 6 other scenes in {edit.steps} steps" in text and "bit by bit as they were" in text
    assert f"changes {edited.changed[0]} of {len(list(organism.hf_model.parameters()))} tensors" in text
    follow, stay = (tried.scores[0] == value for value in (0, 1))
    counts = {
        arm: [int(row[group].sum()) for group in (follow, stay)] for arm, row in zip(tried.arms, tried.scores, strict=True)
    }
    assert f'{counts["edit"][0]} of {int(follow.sum())} other answers with "{edit.words[0]}" follow' in text
    assert f"of {int(stay.sum())} answers without it {counts['edit'][1]} stay" in text
    assert f"(random neurons: {counts['random'][0]})" in text and f"(random neurons: {counts['random'][1]})" in text


def test_what_did_not_work_is_said(organism, found):
    folder = found.path.parent / "results"
    edit, edited = Edit.load(folder / "edit", model=organism), Edited.load(folder / "edited", model=organism)
    said = edits.sentence(replace(edit, reached=False), replace(edited, edited=edited.answer))
    assert "it did not work here" in said and "not enough" in said
    assert "2 are not what they were" in edits.back(replace(edited, changed=(4, 2)))
    nothing = Circuit.load(folder / "circuit", model=organism).top(0)
    assert "hold no whole way" in circuits.sentence(nothing, nothing)
    tried = Faithfulness.load(folder / "faithfulness", model=organism)
    assert "none of them keeps four fifths" in circuits.tried_sentence(replace(tried, alone=tried.alone / 9))


def test_a_word_that_is_not_the_objects_noun_has_no_pair(organism):
    case = case_of(organism, None, None, 0)
    assert case.pair is not None
    noun = case.pair.clean.objects[case.pair.index].noun
    assert case.pair_of(noun) is case.pair and case.pair_of("the") is None


def test_a_question_about_an_object_of_the_scene_finds_its_mask(organism, tmp_path):
    question = next(q for q in pictoworld.scenes(n=1)[0].questions if q.kind == "place")
    result = tour(organism, tmp_path, question=question.text, scenes=0, draws=1)
    assert result.answer == question.answer
    text = read(result.path).text
    assert "IoU" in text and "Left out here" in text and "be edited" not in text


@pytest.mark.parametrize(
    ("family", "image", "changes"),
    [
        pytest.param("llava-siglip-qwen2", None, {}, marks=pytest.mark.slow),
        pytest.param("llava-clip-llama", picture(0, 131, 57).convert("L"), {}, marks=pytest.mark.slow),
        pytest.param("llava-siglip-qwen2", Image.new("RGBA", (7, 90), "red"), {}, marks=pytest.mark.slow),
        pytest.param("llava-siglip-qwen2", picture(0, 600, 350), {"image_size": 84}, marks=pytest.mark.slow),
    ],
)
def test_any_model_and_any_picture_make_a_page(tmp_path, family, image, changes):
    result = tour(small_model(tmp_path, family, **changes), tmp_path / "out", image=image, draws=2)
    page = read(result.path)
    assert "no rate" in result.beside.lower() and whole(page)
    assert "the last position become" in page.text and "Left out here" in page.text


def test_what_was_asked_is_text_and_no_markup(tmp_path):
    question = '<b>"which"</b> $x$ <script>alert(1)</script> &amp;'
    page = read(tour(small_model(tmp_path), tmp_path / "out", image=picture(0), question=question, draws=1).path)
    assert question in page.text


def test_a_silent_model_makes_a_page_that_says_so(tmp_path):
    model = small_model(tmp_path)
    eos = model.tokenizer.eos_token_id
    model.hf_model.generation_config.suppress_tokens = [t for t in range(len(model.tokenizer)) if t != eos]
    result = tour(model, tmp_path / "out", image=picture(0))
    assert result.answer == "" and "answers nothing" in result.sentence
    assert len(read(result.path).images) == 3


def test_an_answer_of_one_token_makes_a_page(tmp_path):
    model = small_model(tmp_path)
    model.hf_model.generation_config.eos_token_id = list(range(4, len(model.tokenizer)))
    result = tour(model, tmp_path / "out", image=picture(0), draws=1)
    assert len(result.answer.split()) == 1 and whole(read(result.path))


@pytest.mark.parametrize(
    ("answer", "word", "expected"),
    [
        ("the tree", None, ("the", "tree")),
        ("tree", None, ("", "tree")),
        ("a pink tree.", None, ("a pink", "tree")),
        ("There is a dog on the grass in this picture.", None, ("There is a", "dog")),
        ("it is in the of the and", None, ("", "it")),
        ("a pink tree", "PINK", ("a", "pink")),
        ("treetop tree", "tree", ("treetop", "tree")),
        ("?!", None, ("", "?!")),
    ],
)
def test_an_answer_splits_into_what_stands_before_a_word_and_the_word(answer, word, expected):
    assert answer_word(answer, word) == expected


@pytest.mark.parametrize(("answer", "word"), [("the tree", "tre"), ("the tree", ""), ("", None), ("", "tree")])
def test_a_word_that_is_not_there_is_refused(answer, word):
    with pytest.raises(ValueError, match="word"):
        answer_word(answer, word)


def test_a_tour_without_random_draws_is_refused(organism, tmp_path):
    with pytest.raises(ValueError, match="at least one random draw"):
        tour(organism, tmp_path, draws=0)


def test_the_first_token_of_a_word_is_found_in_what_the_model_wrote(organism):
    new = torch.tensor(organism.tokenizer("the mushroom", add_special_tokens=False)["input_ids"])
    assert [first_token(organism, new, start) for start in (0, 4, 8)] == [0, 1, 2]


def test_inputs_continue_as_if_the_answer_had_been_given(organism):
    scene = pictoworld.scenes(n=1)[0]
    question = "which object is brown ? answer :"
    whole = organism.to_inputs(question, images=scene.image, answer="the")
    grown = continued(organism.to_inputs(question, images=scene.image), whole.tokens[0, whole.answer[0]])
    assert grown.digest() == whole.digest()
    assert grown.modality.equal(whole.modality) and grown.answer.equal(whole.answer) and grown.medium.equal(whole.medium)
