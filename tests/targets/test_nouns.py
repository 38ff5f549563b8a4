"""Nouns are found in the very tokens that a model wrote, at the positions that predicted them."""

import copy
import itertools
import json
import re
from importlib.util import find_spec

import pytest
import torch
from support import picture
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmlens import HookedMLLM, metrics
from mmlens.hooks import feed
from mmlens.organisms import pictoworld
from mmlens.targets import Targets, continued, in_lexicon, nltk_nouns, nouns, spacy_nouns
from mmlens.targets.written import covered, without_end
from mmlens.testing import tiny


@pytest.fixture(scope="module")
def organism():
    return HookedMLLM.from_pretrained("pictoworld", device="cpu")


@pytest.fixture(scope="module")
def written(organism):
    """Three captions of different lengths, written side by side, and what each decoding step had at layer 2's neurons."""
    scenes = pictoworld.scenes(n=3)
    prompts = [pictoworld.CAPTION_PROMPT, f"what is this ? {pictoworld.CAPTION_PROMPT}", pictoworld.CAPTION_PROMPT]
    inputs = organism.to_inputs(prompts, images=[scene.image for scene in scenes])
    steps = []
    hook = ("blocks.2.mlp.hook_post", feed(lambda value, hook: steps.append(value[:, -1].clone())))
    out = organism.generate(inputs, max_new_tokens=24, fwd_hooks=[hook])
    return inputs, out, torch.stack(steps, dim=1)  # [batch, step, unit]


def encoded(model, *texts):
    """Return captions as new tokens, each with an end, padded behind."""
    ids = [torch.tensor([*model.tokenizer(text, add_special_tokens=False)["input_ids"], 3]) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=model.tokenizer.pad_token_id)


def blank(model, rows):
    return model.to_inputs([pictoworld.CAPTION_PROMPT] * rows, images=[pictoworld.blank()] * rows)


# ---------------------------------------------------------------- alignment


def test_every_target_is_the_token_that_generation_took_at_its_position(organism, written):
    inputs, out, _ = written
    whole, targets = nouns(organism, inputs, out)
    with torch.no_grad():
        logits = organism(whole)
    assert torch.equal(logits[targets.row, targets.position].argmax(-1), targets.token)
    assert torch.equal(whole.tokens[targets.row, targets.position + 1], targets.token)


def test_activations_at_the_targets_are_those_of_the_decoding_steps_with_their_cache(organism, written):
    inputs, out, steps = written
    whole, targets = nouns(organism, inputs, out)
    _, cache = organism.run_with_cache(whole, "blocks.2.mlp.hook_post")
    lengths = torch.tensor([len(without_end(organism, row)) for row in out.tokens[:, inputs.tokens.shape[1] :]])
    step = targets.position - (whole.tokens.shape[1] - 1 - lengths[targets.row])
    seen = cache["blocks.2.mlp.hook_post"][targets.row, targets.position]
    torch.testing.assert_close(seen, steps[targets.row, step], rtol=1e-4, atol=1e-5)


def test_logits_at_the_targets_are_those_of_each_row_alone_up_to_there_without_a_cache(organism, written):
    inputs, out, _ = written
    whole, targets = nouns(organism, inputs, out)
    with torch.no_grad():
        logits = organism(whole)
        for row, position, token in zip(targets.row, targets.position, targets.token, strict=True):
            own = whole.attention_mask[row].bool()
            own[position + 1 :] = False
            until = whole.tokens[row][own & whole.answer[row]]
            alone = organism.to_inputs(inputs.text[row], images=inputs.media[row][0])
            again = organism(continued(alone, until, model=organism))[0, -1]
            torch.testing.assert_close(logits[row, position], again, rtol=1e-4, atol=1e-4)
            assert again.argmax() == token


def test_the_nouns_of_a_right_caption_are_its_objects_in_their_order(organism, written):
    inputs, out, _ = written
    _, targets = nouns(organism, inputs, out, is_noun=pictoworld.NOUNS.__contains__)
    for row, text in enumerate(out.text):
        own = {int(word) for word in targets.word[targets.row == row]}
        assert [targets.words[word] for word in sorted(own)] == [
            w for w in re.findall(r"\w+", text) if w in pictoworld.NOUNS
        ]


# ---------------------------------------------------------------- pieces


def test_a_noun_of_two_pieces_has_both_and_first_and_mean_tell_them_apart(organism):
    whole, targets = nouns(organism, blank(organism, 2), encoded(organism, "a red lamppost and a tree", "mushroom"))
    assert targets.words == ("lamppost", "tree", "mushroom")
    assert organism.to_str_tokens(targets.token) == ["lamp", "##post", "tree", "mush", "##room"]
    assert targets.word.tolist() == [0, 0, 1, 2, 2] and targets.row.tolist() == [0, 0, 0, 1, 1]
    assert organism.to_str_tokens(targets.first().token) == ["lamp", "tree", "mush"]
    scores = torch.tensor([1.0, 3.0, 5.0, 7.0, 8.0])
    assert targets.mean(scores).tolist() == [2.0, 5.0, 7.5]
    assert torch.equal(whole.tokens[targets.row, targets.position + 1], targets.token)


def test_the_leading_noun_of_each_row_is_its_first_with_all_pieces(organism):
    texts = ["a lamppost , a tree", "red", "a car and a car", "tree mushroom"]
    _, targets = nouns(organism, blank(organism, 4), encoded(organism, *texts))
    first = targets.leading()
    assert first.words == ("lamppost", "car", "tree") and first.word.tolist() == [0, 0, 1, 2]
    assert first.row.tolist() == [0, 0, 2, 3] and organism.to_str_tokens(first.first().token) == ["lamp", "car", "tree"]
    assert first.mean(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [1.5, 3.0, 4.0]
    _, none = nouns(organism, blank(organism, 1), encoded(organism, "red"))
    assert len(none.leading()) == 0 and none.leading().words == ()


def test_a_noun_counts_each_time_and_pieces_of_other_words_are_not_taken_for_it(organism):
    text = "car lamp , a car . a lamppost"  # the id of "lamp" occurs twice, and once it is no piece of "lamppost"
    _, targets = nouns(organism, blank(organism, 1), encoded(organism, text), is_noun={"car", "lamppost"}.__contains__)
    assert targets.words == ("car", "car", "lamppost")
    begin = blank(organism, 1).tokens.shape[1]
    # new tokens: car <unk>/lamp , a car . a lamp ##post, each predicted one before
    length = len(organism.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert targets.position.tolist() == [begin - 1, begin + 3, begin + length - 3, begin + length - 2]


def test_a_noun_at_the_start_is_predicted_by_the_last_position_of_the_prompt(organism):
    prompt = blank(organism, 1)
    whole, targets = nouns(organism, prompt, encoded(organism, "tree"))
    assert targets.position.tolist() == [prompt.tokens.shape[1] - 1]
    assert torch.equal(whole.tokens[:, :-1], prompt.tokens) and whole.answer[0].tolist() == [False] * (
        prompt.tokens.shape[1]
    ) + [True]


def test_a_caption_without_nouns_has_no_targets(organism):
    whole, targets = nouns(organism, blank(organism, 2), encoded(organism, "a red", ""))
    assert len(targets) == 0 and targets.words == () and len(targets.first()) == 0
    assert targets.mean(torch.zeros(0, 4)).shape == (0, 4) and len(whole) == 2


@pytest.fixture(scope="module")
def letters(organism):
    """The organism with a tokenizer of single bytes and a few longer pieces, whose text keeps its case and its marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["ca", "fe", "Ġd", "og", "Ġdog", ".Ċ"]
    vocab = {token: index for index, token in enumerate(["<pad>", "</s>", *alphabet, *pieces])}
    merges = [("c", "a"), ("f", "e"), ("Ġ", "d"), ("o", "g"), ("Ġd", "og"), (".", "Ċ")]
    core = Tokenizer(models.BPE(vocab, merges))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    toy = copy.copy(organism)
    toy.tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")
    return toy


def pieces_by_bytes(model, ids, start, stop):
    """Return which tokens hold a byte of the text's characters `start` to `stop`, counting bytes."""
    sizes = [len(model.tokenizer.convert_ids_to_tokens(one)) for one in ids]  # one letter of the alphabet is one byte
    text = model.tokenizer.decode(ids)
    first, last = len(text[:start].encode()), len(text[:stop].encode())
    ends = list(itertools.accumulate(sizes))
    return [i for i, end in enumerate(ends) if end - sizes[i] < last and end > first]


@pytest.mark.parametrize("text", ["Dog, DOG! A dog's café.\n", "élan 🌲🌲dog (dog)", " dog-house dog", "dog"])
def test_pieces_are_those_that_hold_a_byte_of_the_word_whatever_the_case_marks_and_alphabet(organism, letters, text):
    ids = letters.tokenizer(text, add_special_tokens=False)["input_ids"]
    wanted = {"dog", "café", "élan"}
    _, targets = nouns(letters, blank(organism, 1), torch.tensor([[*ids, 1]]), is_noun=lambda w: w.lower() in wanted)
    places = [m.span() for m in re.finditer(r"(?<![\w-])(?:dog|café|élan)(?![\w-])", text, re.IGNORECASE)]
    assert list(targets.words) == [text[start:stop] for start, stop in places]
    begin = blank(organism, 1).tokens.shape[1] - 1
    expected = [piece + begin for start, stop in places for piece in pieces_by_bytes(letters, ids, start, stop)]
    assert targets.position.tolist() == expected


def test_special_tokens_cover_nothing_and_all_other_tokens_cover_the_text_without_gaps(organism):
    ids = encoded(organism, "a red lamppost , a tree")[0]
    text, spans = covered(organism, ids)
    assert spans[-1][0] == spans[-1][1]  # </s>
    assert [stop for _, stop in spans[:-2]] == [start for start, _ in spans[1:-1]] and spans[-2][1] == len(text)


# ---------------------------------------------------------------- inputs that go on


@pytest.mark.parametrize("family", ["llava-siglip-qwen2", "qwen2.5-vl", "paligemma"])
def test_rows_continue_as_if_their_answers_had_been_given(family, tmp_path):
    model = HookedMLLM.from_pretrained(tiny(family, tmp_path / "model"), device="cpu")
    texts, images = ["what is it ?", "the red car and the boat"], [picture(1), picture(2)]
    answers = ["the red car is on the tree", "a"]
    given = model.to_inputs(texts, images=images, answer=answers)
    new = [row[own] for row, own in zip(given.tokens, given.answer, strict=True)]
    grown = continued(model.to_inputs(texts, images=images), new, model=model)
    assert grown.digest() == given.digest() and len(new[0]) > len(new[1])
    for part in ("modality", "medium", "answer", "attention_mask"):
        assert torch.equal(getattr(grown, part), getattr(given, part))
    with torch.no_grad():
        assert torch.equal(model(grown), model(given))


def test_what_only_the_model_knows_is_asked_for(organism):
    two = blank(organism, 2)
    with pytest.raises(ValueError, match="give model="):
        continued(two, [torch.tensor([5]), torch.tensor([5, 6])])
    with pytest.raises(ValueError, match="2 rows and the tokens of 1"):
        continued(two, torch.tensor([5]))
    with pytest.raises(ValueError, match="2 rows of inputs and 1 written"):
        nouns(organism, two, torch.tensor([[5]]))


# ---------------------------------------------------------------- which words are nouns


def test_the_lexicon_has_every_noun_of_the_worlds_and_of_coco_in_any_case_and_number():
    assert all(map(in_lexicon, pictoworld.NOUNS)) and all(in_lexicon(name.split()[-1]) for name in metrics.COCO_OBJECTS)
    assert all(map(in_lexicon, ["Dogs", "MICE", "people", "buses", "knives", "sandwiches", "teddy bear".split()[1]]))
    assert not any(map(in_lexicon, ["red", "the", "traffic", "##post", "of", ""]))


def test_a_tagger_without_its_data_says_how_to_get_it(monkeypatch):
    import nltk.data

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(LookupError, match="averaged_perceptron_tagger_eng"):
        nltk_nouns(["a red car"])
    if find_spec("spacy") is None:
        with pytest.raises(ImportError, match="pip install"):
            spacy_nouns(["a red car"])


def test_nouns_of_a_tagger_are_the_words_that_it_tags_so_in_these_texts(monkeypatch, tmp_path):
    import nltk.data

    name = "averaged_perceptron_tagger_eng"
    parts = {
        "weights": {},
        "tagdict": {"car": "NN", "Trees": "NNS", "red": "JJ", ",": ","},
        "classes": ["JJ", "NN", "NNS", ","],
    }
    (tmp_path / "taggers" / name).mkdir(parents=True)
    for part, content in parts.items():
        (tmp_path / "taggers" / name / f"{name}.{part}.json").write_text(json.dumps(content))
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    is_noun = nltk_nouns(["red car,", "Trees"])
    assert [word for word in ("red", "car", "Trees", "trees", ",") if is_noun(word)] == ["car", "Trees"]


def test_nouns_of_a_pipeline_are_the_words_that_it_takes_for_such(tmp_path):
    spacy = pytest.importorskip("spacy")
    pipeline = spacy.blank("en")
    pipeline.add_pipe("attribute_ruler").add([[{"LOWER": {"IN": ["car", "house"]}}]], {"POS": "NOUN"})
    pipeline.to_disk(tmp_path)
    is_noun = spacy_nouns(["a red Car and a tree-house"], model=str(tmp_path))
    assert [word for word in ("red", "Car", "car", "tree-house", "house") if is_noun(word)] == ["Car", "tree-house", "house"]
    with pytest.raises(OSError, match="spacy download"):
        spacy_nouns(["a car"], model="not-there")


def test_targets_save_and_load(organism, tmp_path):
    _, targets = nouns(organism, blank(organism, 1), encoded(organism, "a lamppost"))
    again = Targets.load(targets.save(tmp_path / "targets"))
    assert again.words == targets.words and torch.equal(again.position, targets.position)
