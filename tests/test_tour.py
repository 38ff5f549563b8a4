"""The tour's page is whole, offline and true: its numbers equal a recomputation, whatever model and picture it is about."""

import base64
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from support import picture

from mmlens import HookedMLLM
from mmlens.analysis import AblationCurve, Attribution
from mmlens.hooks import ablate
from mmlens.organisms import pictoworld
from mmlens.targets import answer_word, continued, first_token
from mmlens.testing import tiny
from mmlens.tour import Rate, SwitchedOff, numbers_to_try, tour

VOID = {"meta", "img", "br"}


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
    return len(page.images) == (5 if "nothing to restore" in page.text else 6)


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
    assert len(page.images) == 6  # the picture and one figure per section but the last
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


def test_a_question_about_an_object_of_the_scene_finds_its_mask(organism, tmp_path):
    question = next(q for q in pictoworld.scenes(n=1)[0].questions if q.kind == "place")
    result = tour(organism, tmp_path, question=question.text, scenes=0, draws=1)
    assert result.answer == question.answer
    assert "IoU" in read(result.path).text


@pytest.mark.parametrize(
    ("family", "image", "changes"),
    [
        ("llava-siglip-qwen2", None, {}),
        ("llava-clip-llama", picture(0, 131, 57).convert("L"), {}),
        ("llava-siglip-qwen2", Image.new("RGBA", (7, 90), "red"), {}),
        ("llava-siglip-qwen2", picture(0, 600, 350), {"image_size": 84}),
    ],
)
def test_any_model_and_any_picture_make_a_page(tmp_path, family, image, changes):
    result = tour(small_model(tmp_path, family, **changes), tmp_path / "out", image=image, draws=2)
    assert "no rate" in result.beside.lower() and whole(read(result.path))


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
