"""Pictosound: its ground truth is exact, and its checkpoints load by transformers alone and answer."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmlens import HookedMLLM
from mmlens.families.qwen2_audio import timeline
from mmlens.media import Sound
from mmlens.organisms import CHECKPOINTS, pictosound
from mmlens.organisms.asking import answers
from mmlens.organisms.pictosound import batches, evaluate, network, text, timbres, train, world
from mmlens.organisms.training import train as train_stages

NAMES = ("pictosound", "pictosound-frozen")


@pytest.fixture(scope="module")
def clips():
    return pictosound.clips("held_out", n=40, seed=3)


@pytest.fixture(scope="module", params=NAMES)
def checkpoint(request):
    return request.param, *evaluate.load(CHECKPOINTS[request.param])


def test_the_same_seed_makes_the_same_clip_however_many_are_made(clips):
    for one, other in zip(clips, pictosound.clips("held_out", n=5, seed=3), strict=False):
        assert (one.samples == other.samples).all()
        assert (one.caption, one.notes, one.noise, one.seed) == (other.caption, other.notes, other.noise, other.seed)


def test_another_seed_makes_other_clips(clips):
    others = pictosound.clips("held_out", n=5, seed=4)
    assert not any((one.samples == other.samples).all() for one, other in zip(clips, others, strict=False))


def test_no_combination_of_sounds_is_in_both_splits():
    contents = [
        {tuple((t.noun, t.pitch, t.rhythm) for t in world.layout_at(split, 0, index)[0].tones) for index in range(150)}
        for split in ("train", "held_out")
    ]
    assert not contents[0] & contents[1]


def test_outside_the_masks_the_clip_is_its_background_and_inside_it_is_not():
    for index in range(20):
        layout, _ = world.layout_at("train", 0, index)
        heard = np.any([world.mask_of(t) for t in layout.tones], axis=0)
        differs = world.render(layout) != world.background(layout)
        assert not (differs & ~heard).any()
        assert differs[heard].mean() > 0.95


def test_events_do_not_overlap_and_their_seconds_are_those_of_their_masks(clips):
    for clip in clips:
        assert np.sum([e.mask for e in clip.events], axis=0).max() == 1
        stops = [0.0]
        for event in clip.events:
            assert event.start > stops[-1]
            moments = (np.arange(world.SAMPLES) + 0.5) / world.RATE
            assert (event.mask == ((event.start < moments) & (moments < event.stop))).all()
            stops.append(event.stop)
        assert stops[-1] < world.SECONDS
        assert tuple(e.order for e in clip.events) == world.ORDER_OF[len(clip.events)]


def test_a_clip_is_never_louder_than_a_sound_can_be(clips):
    assert max(np.abs(clip.samples).max() for clip in clips) < 1


@pytest.mark.parametrize("noun", world.NOUNS)
def test_a_higher_pitch_of_a_timbre_has_a_higher_spectrum(noun):
    def middle(hertz):
        spectrum = np.abs(np.fft.rfft(timbres.tone(noun, hertz, 8000, np.random.default_rng(0)))) ** 2
        return (spectrum * np.fft.rfftfreq(8000, 1 / timbres.RATE)).sum() / spectrum.sum()

    low, high = middle(world.PITCHES["low"]), middle(world.PITCHES["high"])
    assert high > 1.2 * low


@pytest.mark.parametrize("noun", world.NOUNS)
def test_a_pulsed_sound_repeats_itself_and_a_steady_one_does_not(noun):
    layout, _ = world.layout_at("train", 0, 0)
    tone = replace(layout.tones[0], noun=noun, start=0, stop=8000)
    for rhythm, repeats in (("pulsed", True), ("steady", False)):
        samples = world.sound(replace(tone, rhythm=rhythm))
        period = int(world.PULSE * world.RATE)
        one, next_one = samples[period : 2 * period], samples[2 * period : 3 * period]
        assert np.allclose(one, next_one) == repeats


def test_what_is_asked_about_is_true_of_one_event_only(clips):
    for clip in clips:
        for question in clip.questions:
            if question.kind in ("pitch", "rhythm"):
                value = getattr(question.event, question.kind)
                assert [getattr(e, question.kind) for e in clip.events].count(value) == 1
                assert f"is {value} ?" in question.text and question.answer.startswith(f"the {value} ")
                assert question.answer.endswith(f" {question.event.noun}")
            if question.kind == "after":
                position = clip.events.index(question.event)
                assert f"after the {clip.events[position - 1].noun} ?" in question.text and position > 0


@pytest.mark.parametrize("change", ["noun", "pitch", "rhythm"])
def test_the_clips_of_a_pair_differ_in_one_event(change):
    for pair in pictosound.pairs(n=10, change=change):
        clean, corrupted = pair.clean.events[pair.index], pair.corrupted.events[pair.index]
        differs = pair.clean.samples != pair.corrupted.samples
        assert (clean.mask == corrupted.mask).all()
        assert differs.any() and not (differs & ~clean.mask).any()
        assert getattr(clean, change) != getattr(corrupted, change)
        kept = {"noun", "pitch", "rhythm", "order"} - {change}
        assert all(getattr(clean, name) == getattr(corrupted, name) for name in kept)
        if change == "noun":
            assert pictosound.first_token(clean.noun) != pictosound.first_token(corrupted.noun)


def test_a_shuffled_sound_is_another_clips_of_as_many_events(clips):
    by_sound = {id(clip.samples): clip for clip in clips}
    for clip, (samples, rate) in zip(clips, pictosound.shuffled(clips), strict=True):
        assert by_sound[id(samples)] is not clip and len(by_sound[id(samples)].events) == len(clip.events)
        assert rate == world.RATE


def test_a_lone_clip_cannot_be_shuffled(clips):
    with pytest.raises(ValueError, match="no second clip"):
        pictosound.shuffled(clips[:1])


def test_no_fixed_answer_to_a_question_is_right_more_often_than_a_blind_guess():
    asked: dict[tuple[str, str], list[str]] = {}
    for index in range(600):
        layout, _ = world.layout_at("train", 5, index)
        for question in text.questions_of(layout.tones):
            asked.setdefault((question.kind, question.text), []).append(question.answer)
    guess = {"order": 1 / 72, "pitch": 1 / 12, "rhythm": 1 / 36, "after": 1 / 11}
    for (kind, _), given in asked.items():
        if kind in guess:
            often, spread = max(Counter(given).values()) / len(given), (guess[kind] / len(given)) ** 0.5
            assert guess[kind] < often < guess[kind] + 5 * spread


def test_the_tokenizer_round_trips_every_word():
    tokenizer = text.LEXICON.tokenizer()
    for word in text.words():
        tokens = tokenizer(word).input_ids
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens, skip_special_tokens=True) == word
        assert len(tokens) == 1 + len(text.LEXICON.two_pieces.get(word, (word,)))


def test_training_encodes_texts_as_the_tokenizer_does(clips):
    tokenizer = text.LEXICON.tokenizer()
    for clip in clips:
        for said in (clip.notes, clip.caption, *(q.text for q in clip.questions)):
            assert tokenizer(said).input_ids[1:] == text.LEXICON.encode(said)


def test_training_reads_the_tokens_and_the_spectrogram_that_the_processor_hands_over(clips):
    processor = network.build_processor()
    processed = processor(text=evaluate.PLACEHOLDER, audio=clips[0].samples, sampling_rate=world.RATE, return_tensors="pt")
    assert processed.input_ids[0].tolist() == list(batches.CONTEXT)
    with torch.autocast("cpu", torch.bfloat16):
        found = batches.features_of([clip.samples for clip in clips[:3]])
    torch.testing.assert_close(processed.input_features, found[:1])


def test_the_class_of_a_position_is_that_of_the_event_in_its_seconds():
    layouts = [world.layout_at("train", 6, index)[0] for index in range(6)]
    _, classes = batches.position_batch(6, 6)
    for row, layout in enumerate(layouts):
        places = timeline(network.build_processor(), Sound(world.render(layout), world.RATE))
        assert len(places) == network.POSITIONS and places.seconds(len(places) - 1)[1] == world.SECONDS
        expected = torch.full((network.POSITIONS,), len(world.NOUNS))
        for tone in layout.tones:
            inside = places.overlap(tone.start / world.RATE, tone.stop / world.RATE)
            assert inside.sum().item() * places.step == pytest.approx((tone.stop - tone.start) / world.RATE)
            expected[inside > 0.5] = world.NOUNS.index(tone.noun)
        assert (classes["noun"][row] == expected).all()


def test_a_checkpoint_answers_held_out_questions(checkpoint, clips):
    _, model, processor = checkpoint
    for kind in ("pitch", "order"):
        asked = [(clip.samples, q) for clip in clips for q in clip.questions if q.kind == kind]
        prompts, sounds = [f"{evaluate.PLACEHOLDER}{q.text}" for _, q in asked], [samples for samples, _ in asked]
        said = answers(model, processor, prompts, audio=sounds, rate=world.RATE)
        assert np.mean([a == q.answer for a, (_, q) in zip(said, asked, strict=True)]) > 0.9


def test_what_a_sound_says_is_answered_through_mmlens_as_through_transformers(checkpoint, clips):
    name, model, processor = checkpoint
    hooked = HookedMLLM.from_pretrained(name, device="cpu")
    asked = [(clip, clip.questions[0]) for clip in clips[:5]]
    inputs = hooked.to_inputs([q.text for _, q in asked], audio=[clip.audio for clip, _ in asked])
    prompts = [f"{evaluate.PLACEHOLDER}{q.text}" for _, q in asked]
    said = answers(model, processor, prompts, audio=[clip.samples for clip, _ in asked], rate=world.RATE)
    assert hooked.generate(inputs, max_new_tokens=8).text == said


def test_both_checkpoints_are_small_and_float32(checkpoint):
    name, model, _ = checkpoint
    assert sum(file.stat().st_size for file in CHECKPOINTS[name].iterdir()) < 10_000_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_few_steps_train_two_folders_that_load_and_keep_what_is_frozen(tmp_path):
    train_stages(train.PICTOSOUND, tmp_path, steps=2, batch=2, check=1)
    clip = pictosound.clips(n=1)[0]
    for name in NAMES:
        model, processor = evaluate.load(tmp_path / name)
        prompt = f"{evaluate.PLACEHOLDER}{clip.questions[0].text}"
        assert answers(model, processor, [prompt], audio=[clip.samples], rate=world.RATE)
    frozen = evaluate.load(tmp_path / "pictosound-frozen")[0].state_dict()
    for stage in ("language", "tower"):
        for name, weight in load_file(tmp_path / "work" / f"{stage}.safetensors").items():
            assert torch.equal(frozen[name], weight)
