"""Pictoworld: its ground truth is exact, and its checkpoints load by transformers alone and answer."""

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from mmlens.organisms import CHECKPOINTS, pictoworld, training
from mmlens.organisms.asking import answers
from mmlens.organisms.pictoworld import batches, evaluate, masked, network, text, train, world

NAMES = ("pictoworld", "pictoworld-frozen")


def pixels(scene):
    return np.asarray(scene.image).astype(int)


def things(scene):
    return {(o.noun, o.color, o.place) for o in scene.objects}


@pytest.fixture(scope="module")
def scenes():
    return pictoworld.scenes("held_out", n=40, seed=3)


@pytest.fixture(scope="module", params=NAMES)
def checkpoint(request):
    return request.param, *evaluate.load(CHECKPOINTS[request.param])


def test_the_same_seed_draws_the_same_scene(scenes):
    for one, other in zip(scenes, pictoworld.scenes("held_out", n=40, seed=3), strict=True):
        assert (pixels(one) == pixels(other)).all()
        assert (one.caption, one.notes, one.domain, one.seed) == (other.caption, other.notes, other.domain, other.seed)


def test_another_seed_draws_other_scenes(scenes):
    others = pictoworld.scenes("held_out", n=40, seed=4)
    assert not any((pixels(one) == pixels(other)).all() for one, other in zip(scenes, others, strict=True))


def test_a_scene_does_not_depend_on_how_many_are_drawn(scenes):
    assert pictoworld.scenes("held_out", n=2, seed=3)[1].notes == scenes[1].notes


def test_no_combination_is_in_both_splits():
    contents = [{(s.domain, *sorted(things(s))) for s in pictoworld.scenes(split, n=400)} for split in ("train", "held_out")]
    assert not contents[0] & contents[1]


def test_outside_the_masks_the_image_is_its_background():
    for index in range(20):
        layout, _ = world.layout_at("train", 0, index)
        shown = np.any([world.mask_of(t) for t in layout.things], axis=0)
        differs = (world.render(layout) != world.background(layout)).any(-1)
        assert not (differs & ~shown).any()
        assert differs[shown].mean() > 0.95


def test_masks_do_not_overlap_and_lie_in_their_quadrant(scenes):
    half = world.SIZE // 2
    for scene in scenes:
        assert np.sum([o.mask for o in scene.objects], axis=0).max() == 1
        for o in scene.objects:
            row, column = divmod(pictoworld.PLACES.index(o.place), 2)
            quadrant = o.mask[row * half : (row + 1) * half, column * half : (column + 1) * half]
            assert quadrant.sum() == o.mask.sum() > 30


def test_every_color_that_is_asked_about_is_unique_in_its_scene(scenes):
    for scene in scenes:
        for question in (q for q in scene.questions if q.kind == "color"):
            assert [o.color for o in scene.objects].count(question.object.color) == 1
            assert question.answer == f"the {question.object.noun}"


@pytest.mark.parametrize("change", ["noun", "color", "place"])
def test_the_scenes_of_a_pair_differ_in_one_object(change):
    for pair in pictoworld.pairs(n=15, change=change):
        clean, corrupted = pair.clean.objects[pair.index], pair.corrupted.objects[pair.index]
        differs = (pixels(pair.clean) != pixels(pair.corrupted)).any(-1)
        assert differs.any() and not (differs & ~(clean.mask | corrupted.mask)).any()
        assert getattr(clean, change) != getattr(corrupted, change)
        assert all(getattr(clean, f) == getattr(corrupted, f) for f in {"noun", "color", "place"} - {change})
        others = [[o for i, o in enumerate(s.objects) if i != pair.index] for s in (pair.clean, pair.corrupted)]
        assert [(o.noun, o.color, o.place) for o in others[0]] == [(o.noun, o.color, o.place) for o in others[1]]
        if change == "noun":
            assert pictoworld.first_token(clean.noun) != pictoworld.first_token(corrupted.noun)


def test_a_renamed_silhouette_has_equal_pixels_and_another_noun_in_every_domain():
    for pair in pictoworld.domain_pairs(n=15):
        clean, corrupted = pair.clean.objects[pair.index], pair.corrupted.objects[pair.index]
        assert clean.noun != corrupted.noun
        assert (clean.mask == corrupted.mask).all()
        assert (pixels(pair.clean)[clean.mask] == pixels(pair.corrupted)[clean.mask]).all()
        assert {pictoworld.RENAMED[s][pair.clean.domain] for s in pictoworld.RENAMED} >= {clean.noun}
    assert len({noun for names in pictoworld.RENAMED.values() for noun in names.values()}) == 10


def test_a_shuffled_image_is_another_scene_of_the_same_domain(scenes):
    by_image = {id(scene.image): scene for scene in scenes}
    for scene, image in zip(scenes, pictoworld.shuffled(scenes), strict=True):
        assert by_image[id(image)] is not scene and by_image[id(image)].domain == scene.domain


def test_a_lone_scene_of_its_domain_cannot_be_shuffled(scenes):
    with pytest.raises(ValueError, match="no second"):
        pictoworld.shuffled(scenes[:1])


def test_the_tokenizer_round_trips_every_word():
    tokenizer = network.build_processor().tokenizer
    for word in text.words():
        tokens = tokenizer(word).input_ids
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens, skip_special_tokens=True) == word
        assert len(tokens) == 1 + len(text.TWO_PIECES.get(word, (word,)))


def test_training_encodes_texts_as_the_tokenizer_does(scenes):
    tokenizer = network.build_processor().tokenizer
    for scene in scenes:
        for said in (scene.notes, scene.caption, *(q.text for q in scene.questions)):
            assert tokenizer(said).input_ids[1:] == text.LEXICON.encode(said)


def test_training_sees_the_pixels_that_the_processor_hands_over(scenes):
    processor: Any = network.build_processor()
    processed = processor(images=scenes[0].image, text="<image>", return_tensors="pt")
    torch.testing.assert_close(processed.pixel_values, batches.pixels_of([np.asarray(scenes[0].image)]))


def test_a_packed_row_scores_its_questions_as_if_each_were_asked_alone():
    model = network.build_model().eval()
    packed = batches.text_batch(5, 1, simple=0.0)
    positions = packed.position_ids[0].tolist()
    context = next(now for before, now in itertools.pairwise(positions) if now <= before)
    starts = [p for p, position in enumerate(positions) if position == context]
    inner = model.model.language_model
    with torch.no_grad():
        together = inner(
            inputs_embeds=model.get_input_embeddings()(packed.tokens),
            attention_mask=packed.attention,
            position_ids=packed.position_ids,
        ).last_hidden_state
        for start, end in zip(starts, [*starts[1:], len(positions)], strict=True):
            row = torch.cat([packed.tokens[:, :context], packed.tokens[:, start:end]], dim=1)
            alone = inner(input_ids=row).last_hidden_state
            torch.testing.assert_close(together[:, start:end], alone[:, context:], rtol=1e-4, atol=1e-4)


def test_a_checkpoint_answers_held_out_questions(checkpoint, scenes):
    name, model, processor = checkpoint
    for kind, enough in (("color", 0.85 if name == "pictoworld" else 0.45), ("domain", 0.9)):
        asked = [(scene.image, q) for scene in scenes for q in scene.questions if q.kind == kind]
        said = answers(model, processor, [f"<image>{q.text}" for _, q in asked], images=[image for image, _ in asked])
        assert np.mean([a == q.answer for a, (_, q) in zip(said, asked, strict=True)]) > enough


def test_a_checkpoint_answers_from_notes_without_an_image(checkpoint, scenes):
    _, model, processor = checkpoint
    assert evaluate.measure_notes(model, processor, scenes)["color"]["rate"] > 0.8


def test_both_checkpoints_are_small_and_float32(checkpoint):
    name, model, _ = checkpoint
    assert sum(file.stat().st_size for file in CHECKPOINTS[name].iterdir()) < 10_000_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_twenty_steps_train_two_folders_that_load(tmp_path):
    training.train(train.PICTOWORLD, tmp_path, steps=20, batch=2, check=2)
    for name in NAMES:
        model, processor = evaluate.load(tmp_path / name)
        scene = pictoworld.scenes(n=1)[0]
        assert answers(model, processor, [f"<image>{scene.questions[0].text}"], images=[scene.image])
    frozen = evaluate.load(tmp_path / "pictoworld-frozen")[0].state_dict()
    for stage in ("language", "vision"):
        for name, weight in training.load_file(tmp_path / "work" / f"{stage}.safetensors").items():
            assert torch.equal(frozen[name], weight)


def test_a_tower_without_labels_predicts_the_pixels_that_the_patches_have(scenes):
    image = pixels(scenes[0])
    told = masked.patches(batches.pixels_of([np.asarray(scenes[0].image)]))[0]
    for position, (row, column) in enumerate(itertools.product(range(8), range(8))):
        piece = image[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].transpose(2, 0, 1).ravel()
        np.testing.assert_allclose(told[position].numpy() * 127.5 + 127.5, piece, atol=1e-3)


@pytest.mark.slow
def test_hiding_patches_teaches_the_tower_without_labels(tmp_path):
    run = training.Run("masked", steps=40, batch=8, seed=0, keep=tmp_path / "kept")
    losses = masked.train_masked(network.build_model(), run).losses
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_a_stage_that_is_run_again_starts_from_the_stages_before_it_only(tmp_path):
    train_ = partial(training.train, train.PICTOWORLD, tmp_path, steps=2, batch=2, check=2)
    train_()
    first = training.load_file(tmp_path / "pictoworld-frozen" / "model.safetensors")
    (tmp_path / "work" / "projector.safetensors").unlink()
    train_(only="projector")
    again = training.load_file(tmp_path / "pictoworld-frozen" / "model.safetensors")
    assert all(again[name].equal(first[name]) for name in first)
