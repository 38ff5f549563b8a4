"""Qwen2-Audio: which settings are understood, when each position is heard, and how much of the window is read."""

import copy
import wave
from dataclasses import replace

import numpy as np
import pytest
import raw
import torch
from scipy.signal import resample_poly
from support import load, sound
from transformers import Qwen2AudioConfig, Qwen2AudioProcessor, WhisperFeatureExtractor

from mmlens import hooks
from mmlens.families import FAMILIES, UnsupportedModel, qwen2_audio
from mmlens.grid import Timeline
from mmlens.media import Sound
from mmlens.testing import tiny

pytestmark = [pytest.mark.parametrize("folder", ["qwen2-audio"], indirect=True), pytest.mark.usefixtures("folder")]
RATE = 16_000


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("audio_config.model_type", "whisper"),
        ("audio_config.activation_function", "relu"),
        ("audio_config.scale_embedding", True),
        ("text_config.model_type", "llama"),
    ],
)
def test_a_setting_that_is_not_understood_is_refused_by_name(model, setting, value):
    config = copy.deepcopy(model.hf_model.config)
    qwen2_audio.check(config)
    owner, _, name = setting.rpartition(".")
    object.__setattr__(getattr(config, owner), name, value)
    with pytest.raises(UnsupportedModel, match=setting):
        qwen2_audio.check(config)


def test_the_published_checkpoints_settings_are_understood():
    tower = dict(
        num_mel_bins=128,
        encoder_layers=32,
        encoder_attention_heads=20,
        encoder_ffn_dim=5120,
        d_model=1280,
        activation_function="gelu",
        scale_embedding=False,
        max_source_positions=1500,
        model_type="qwen2_audio_encoder",
    )
    text = dict(model_type="qwen2", use_sliding_window=True, sliding_window=32768, use_mrope=False, vocab_size=156032)
    config = Qwen2AudioConfig(audio_config=tower, text_config=text, audio_token_index=151646)
    qwen2_audio.check(config)
    assert FAMILIES[config.model_type] is qwen2_audio.FAMILY


@pytest.mark.parametrize(("seconds", "count"), [(30, 750), (1, 25), (0.5, 12), (12.34, 308)])
def test_a_published_model_hears_twenty_five_positions_a_second(model, seconds, count):
    hears = WhisperFeatureExtractor(feature_size=128, chunk_length=30)
    processor = Qwen2AudioProcessor(feature_extractor=hears, tokenizer=model.tokenizer)
    own = qwen2_audio.timeline(processor, Sound(np.zeros(int(seconds * RATE), dtype=np.float32), RATE))
    assert own == Timeline(count, 0.04)


def test_a_position_is_as_long_as_the_towers_strides_say(model, plain):
    tower, hears = plain.model.audio_tower, model.processor.feature_extractor
    frames = tower.conv1.stride[0] * tower.conv2.stride[0] * tower.avg_pooler.stride[0]
    inputs = model.to_inputs("see", audio=sound(0, seconds=1))
    assert inputs.grids[0][0] == Timeline(hears.nb_max_frames // frames, frames * hears.hop_length / hears.sampling_rate)


@pytest.mark.parametrize("samples", [321, 480, 640, 641, 800, 960, 961, 1119, 1120, 1121, 7999, 8000, 15_999, 16_000])
def test_a_sound_has_as_many_positions_as_the_processor_writes(model, samples):
    heard = sound(0, seconds=1)[0][:samples]
    text = "<|audio_bos|><|AUDIO|><|audio_eos|>see"
    tokens = model.processor(text=text, audio=[heard], sampling_rate=RATE, return_tensors="pt")["input_ids"]
    inputs = model.to_inputs("see", audio=heard)
    assert torch.equal(inputs.tokens, tokens)
    assert len(inputs.grids[0][0]) == int((tokens == model.processor.audio_token_id).sum()) > 0


@torch.no_grad()
def test_a_positions_seconds_are_the_samples_that_it_is_made_of(model):
    """A click at a time changes what enters the blocks there, and only there: the convolutions see no further."""
    quiet = sound(0, seconds=1)[0]
    name = "audio.hook_embed"
    before = model.run_with_cache(model.to_inputs("see", audio=quiet), name)[1][name][0]
    timeline = model.to_inputs("see", audio=quiet).grids[0][0]
    for index in (0, 7, 13, 24):
        begin, end = timeline.seconds(index)
        clicked = quiet.copy()
        middle = slice(int((begin * 3 + end) / 4 * RATE), int((begin + end * 3) / 4 * RATE))
        clicked[middle] *= 0.5
        after = model.run_with_cache(model.to_inputs("see", audio=clicked), name)[1][name][0]
        change = (after - before).abs().mean(-1).unflatten(0, (-1, 2)).mean(-1)  # two steps of the convolution a position
        assert change.argmax() == index == timeline.index((begin + end) / 2)
        far = torch.tensor([abs(other - index) > 1 for other in range(len(timeline))])
        assert not change[far].any()


@torch.no_grad()
def test_audio_positions_enter_the_stream_as_the_first_of_the_projectors_output(model, plain):
    sounds = [sound(0, 0.5), sound(1, 0.13), sound(2, 1.0)]
    inputs = model.to_inputs(["what", "a", "the"], audio=[sounds[:2], None, sounds[2]])
    _, truth = raw.read(plain, inputs, ["projector.hook_out", "hook_embed"])
    _, cache = model.run_with_cache(inputs, "blocks.0.hook_resid_pre")
    stream, heard = cache["blocks.0.hook_resid_pre"], inputs.mask("audio")
    counts = [len(place) for row in inputs.grids for place in row]
    assert counts == [12, 3, 25]
    features = torch.cat([each[:count] for each, count in zip(truth["projector.hook_out"], counts, strict=True)])
    raw.same(stream[heard], features)
    raw.same(stream[~heard], truth["hook_embed"][~heard])


@torch.no_grad()
def test_what_lies_behind_a_sounds_end_is_not_heard(model, batches):
    inputs = batches["one"]
    count, before = len(inputs.grids[0][0]), model(inputs)
    for name, last in [("projector.hook_out", count), ("audio.blocks.0.attn.hook_v", 2 * count + 1)]:

        def noisy(x, hook, last=last):
            return torch.cat([x[:, :last], x[:, last:] + 9], dim=1)

        torch.testing.assert_close(model.run_with_hooks(inputs, fwd_hooks=[(name, noisy)]), before)
        raw.differs(model.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: x + 9)]), before, by=1e-4)


@torch.no_grad()
def test_sounds_of_one_position_each_go_the_models_older_way_and_mean_the_same(model, plain):
    """A lone placeholder looks to transformers as if it had not been expanded: it then merges by other code."""
    short = sound(0)[0]
    inputs = model.to_inputs(["see the car", "what is red ?", "a"], audio=[short[:400], None, [short[:640], short[-960:]]])
    assert [len(place) for row in inputs.grids for place in row] == [1, 1, 1]
    logits, real = model(inputs), inputs.mask("all")
    raw.same(logits[real], raw.logits(plain, inputs)[real])
    _, cache = model.run_with_cache(inputs, ["projector.hook_out", "blocks.0.hook_resid_pre"])
    raw.same(cache["blocks.0.hook_resid_pre"][inputs.mask("audio")], cache["projector.hook_out"][:, 0])


@torch.no_grad()
def test_the_spectrogram_can_be_read_and_edited(model, plain, batches):
    inputs = batches["one"]
    _, cache = model.run_with_cache(inputs, "audio.conv1.hook_in")
    assert torch.equal(cache["audio.conv1.hook_in"], inputs.tower["input_features"])
    other = copy.copy(inputs.tower)
    other["input_features"] = other["input_features"] * 0.5
    truth = plain(**{**inputs.kwargs(), **other}).logits
    raw.same(model.run_with_hooks(inputs, fwd_hooks=[("audio.conv1.hook_in", hooks.scale(0.5))]), truth)
    raw.differs(truth, model(inputs), by=1e-4)


def test_the_gradient_of_the_spectrogram_is_transformers_own(model, plain, batches):
    inputs = batches["one"]
    for each in (model(heard := _watched(inputs)), raw.logits(plain, watched := _watched(inputs))):
        each[:, -1].square().sum().backward()
    assert heard.tower["input_features"].grad.abs().max() > 0
    raw.same(heard.tower["input_features"].grad, watched.tower["input_features"].grad)


def _watched(inputs):
    fed = {name: value.clone() for name, value in inputs.tower.items()}
    fed["input_features"].requires_grad_()
    return replace(inputs, tower=fed)


# ---------------------------------------------------------------- inputs


def test_rows_are_padded_as_the_processor_itself_pads(model, batches):
    around, texts = "<|audio_bos|><|AUDIO|><|audio_eos|>", ["the red car", "what is at the left of the blue tree ?", "a"]
    truth = model.processor(
        text=[around + texts[0], texts[1], around + texts[2]],
        audio=[sound(0)[0], sound(1)[0]],
        sampling_rate=RATE,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    inputs = batches["mixed"]
    assert torch.equal(inputs.tokens, truth["input_ids"])
    assert torch.equal(inputs.attention_mask, truth["attention_mask"])
    for name in ("input_features", "feature_attention_mask"):
        torch.testing.assert_close(inputs.kwargs()[name], truth[name])
    assert set(inputs.kwargs()) == {"input_ids", "attention_mask", "input_features", "feature_attention_mask"}


def test_a_missing_placeholder_goes_in_front_between_begin_and_end(model):
    around, two = "<|audio_bos|><|AUDIO|><|audio_eos|>", [sound(0), sound(1, 0.3)]
    written = model.to_inputs(f"{around}{around}the red car", audio=two)
    assert model.to_inputs("the red car", audio=two).digest() == written.digest()
    inside = model.to_inputs("the <|AUDIO|> red <|AUDIO|> car", audio=two)
    assert [s.modality for s in inside.spans(0)] == ["special", "text", "audio", "text", "audio", "text"]
    with pytest.raises(ValueError, match=r"<\|AUDIO\|> .* one sound: got 1 .* and 2 sound"):
        model.to_inputs("the <|AUDIO|> car", audio=two)


def test_chat_is_the_processors_own_template(model):
    content = [{"type": "audio", "audio_url": "one.wav"}, {"type": "audio"}, {"type": "text", "text": "what is red ?"}]
    text = model.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert "Audio 2: <|audio_bos|><|AUDIO|><|audio_eos|>" in text
    sounds = [sound(0), sound(1)]
    truth = model.processor(text=text, audio=[one[0] for one in sounds], sampling_rate=RATE, return_tensors="pt")
    assert torch.equal(model.to_inputs("what is red ?", audio=sounds, chat=True).tokens, truth["input_ids"])


def test_a_sound_may_be_samples_with_or_without_a_rate_channels_or_a_file(model, tmp_path):
    samples, rate = sound(0)
    samples = np.round(samples * 32767).clip(-32768, 32767) / 32768
    samples = samples.astype(np.float32)
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, rate, len(samples), "NONE", ""))
        file.writeframes((samples * 32768).astype("<i2").tobytes())
    truth = model.to_inputs("see", audio=samples).digest()
    stereo = np.stack([samples, samples])
    for source in ((samples, rate), [samples], Sound(samples, rate), stereo, (stereo.T, rate), tmp_path / "sound.wav"):
        assert model.to_inputs("see", audio=source).digest() == truth


def test_another_rate_is_refused_and_resampling_as_it_says_helps(model):
    samples = sound(0, rate=48_000)[0]
    with pytest.raises(ValueError, match=r"16000 .*got .*48000: resample .*resample_poly\(samples, 16000, 48000\)"):
        model.to_inputs("see", audio=(samples, 48_000))
    resampled = resample_poly(samples, 16_000, 48_000)
    assert len(model.to_inputs("see", audio=(resampled, 16_000)).grids[0][0]) == 12


def test_a_sound_that_can_not_be_heard_whole_is_refused(model):
    with pytest.raises(ValueError, match=r"at most 1 s \(16000 samples\), got a sound of 1\.00006 s \(16001 samples\): cut"):
        model.to_inputs("see", audio=np.zeros(16_001, dtype=np.float32))
    with pytest.raises(ValueError, match="at least 321 samples, got a sound of 320: give"):
        model.to_inputs("see", audio=np.zeros(320, dtype=np.float32))


@torch.no_grad()
def test_a_longer_window_is_the_feature_extractors_and_the_towers(tmp_path):
    model = load(tiny("qwen2-audio", tmp_path, seconds=2))
    inputs = model.to_inputs("see", audio=sound(0, seconds=1.7))
    assert inputs.tower["input_features"].shape[-1] == 200 and len(inputs.grids[0][0]) == 42
    assert model(inputs).isfinite().all()


@torch.no_grad()
def test_seconds_of_a_sound_choose_its_positions(model):
    inputs = model.to_inputs("see", audio=sound(0, seconds=1))
    where = inputs.overlap((0.2, 0.4)) > 0.5
    assert inputs.medium[0, where[0]].tolist() == [0] * 5
    assert (where[0].nonzero().flatten() - inputs.mask("audio")[0].nonzero()[0]).tolist() == [5, 6, 7, 8, 9]
    before, after = model(inputs), model.run_with_hooks(inputs, fwd_hooks=hooks.knock_out(inputs.last(), where))
    raw.differs(after[:, -1], before[:, -1], by=1e-5)
