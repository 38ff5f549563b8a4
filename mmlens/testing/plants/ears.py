"""Sounds of plain tones, and the tower and projector that hear at each position which of them it is."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mmlens.testing.plants.eyes import D_TOWER, STEADY, whisper
from mmlens.testing.plants.language import CONST, SPREAD
from mmlens.testing.plants.layout import DOMAINS, SHOWN, background, seen

RATE, SECONDS, POSITIONS = 16_000, 1, 25
SAMPLES = RATE * SECONDS // POSITIONS  # of a position: four mel frames
KINDS = (*SHOWN, *DOMAINS)
MELS, LOWEST, GRAINS = 32, 10, 6  # a tone lies in every second mel band from LOWEST on, grain in the first GRAINS
LOUD, FAINT = 0.2, 0.05  # amplitude of tones and hums; standard deviation of the grain
HIGH = 4.0  # far enough above 0 for a GELU to leave what lies around it as it is
MARGIN, FULL = 0.25, 4.0  # a tone counts from 10 dB (0.25 in log-mel) below its level; what the tower then holds


def sound(shown: Mapping[int, str], domain: str, seed: int, pitches: Mapping[str, float]) -> tuple[np.ndarray, int]:
    """Return (samples, rate) of a second: the domain hums all through, what is shown is a tone of 40 ms at its position."""
    random, time = np.random.default_rng(seed), np.arange(RATE * SECONDS) / RATE
    spectrum = np.fft.rfft(random.normal(0, 1, len(time)))
    hertz = np.fft.rfftfreq(len(time), 1 / RATE)
    spectrum[(hertz < 100) | (hertz > 600)] = 0
    grain = np.fft.irfft(spectrum, len(time))
    samples = grain / grain.std() * FAINT + LOUD * np.sin(2 * np.pi * pitches[domain] * time)
    ramp = np.minimum(1, np.minimum(np.arange(SAMPLES), np.arange(SAMPLES)[::-1]) / 40)
    for position, kind in shown.items():
        here = slice(position * SAMPLES, (position + 1) * SAMPLES)
        samples[here] += LOUD * ramp * np.sin(2 * np.pi * pitches[kind] * time[here])
    return samples.astype(np.float32), RATE


def pitches(extractor: Any) -> dict[str, float]:
    """Return the frequency (Hz) of every kind's tone: the middle of its mel band."""
    bands, step = extractor.mel_filters, RATE / extractor.n_fft
    return {kind: float(bands[:, LOWEST + 2 * index].argmax() * step) for index, kind in enumerate(KINDS)}


def hear(model: Any, processor: Any, layout: dict[str, int], generator: torch.Generator) -> None:
    """Write a tower that holds FULL where a tone sounds, beside some grain, and a projector that names the tones.

    Two channels of the first convolution and one of the second clamp each band's level; only the later of each two frames
    is heard, so that no position hears its neighbours.
    """
    extractor, tower, count = processor.feature_extractor, model.model.audio_tower, len(KINDS)
    tones = pitches(extractor)

    def mel(samples: np.ndarray) -> torch.Tensor:
        return extractor(samples, sampling_rate=RATE, return_tensors="pt").input_features[0]

    first, second = tower.conv1, tower.conv2
    for part in (first.weight, first.bias, second.weight, second.bias, tower.embed_positions.weight):
        part.zero_()
    slope = 2.5 * FULL / MARGIN
    for index, kind in enumerate(KINDS):
        band = LOWEST + 2 * index
        level = float(mel(sound({}, kind, 0, tones)[0])[band].median())
        for channel, past in ((index, 0.0), (count + index, FULL)):
            first.weight[channel, band, 1] = slope
            first.bias[channel] = -slope * (level - MARGIN) - past
        second.weight[index, index, 2], second.weight[index, count + index, 2] = 1.0, -1.0
    null, steady, textures = count, [count + 1, count + 2], torch.arange(count + 3, D_TOWER)
    lowest = torch.cat([mel(sound({}, name, 1, tones)[0])[1:GRAINS] for name in DOMAINS], 1)
    _grain(first, second, lowest, textures, generator)
    tower.embed_positions.weight[:, textures] = -HIGH
    tower.embed_positions.weight[:, steady] = torch.tensor([STEADY, -STEADY])
    deviation = (2 * STEADY**2 / D_TOWER) ** 0.5
    whisper(tower.layers, deviation, steady, generator)
    tower.layer_norm.weight.fill_(deviation)
    tower.layer_norm.bias.zero_()
    _project(model, mel, tones, layout, null, textures, generator)


def _grain(first: Any, second: Any, mels: torch.Tensor, textures: torch.Tensor, generator: torch.Generator) -> None:
    """Write channels that clamp mixtures of the lowest bands, and mix those over neighbouring frames."""
    start = 2 * len(KINDS)
    pairs = (D_TOWER - start) // 2
    mixtures = torch.randn(pairs, len(mels), generator=generator) / mels.std(1)
    mixtures *= 2 / (mixtures @ mels).std(1, keepdim=True)
    for channels, past in ((slice(start, start + pairs), -1.0), (slice(start + pairs, start + 2 * pairs), 1.0)):
        first.weight[channels, 1:GRAINS, 1] = mixtures
        first.bias[channels] = -mixtures @ mels.mean(1) - past
    mix = torch.randn(len(textures), pairs, 3, generator=generator) / (3 * pairs) ** 0.5
    second.weight[textures, start : start + pairs] = mix
    second.weight[textures, start + pairs : start + 2 * pairs] = -mix
    second.bias[textures] = HIGH - mix.sum((1, 2))


@torch.no_grad()
def _project(
    model: Any,
    mel: Any,
    tones: Mapping[str, float],
    layout: dict[str, int],
    null: int,
    textures: torch.Tensor,
    generator: torch.Generator,
) -> None:
    """Write the projector: its rows add up to 0, so that the mean which the layer norm subtracts does not count."""
    linear = model.model.multi_modal_projector.linear
    hidden = background(layout, len(linear.weight))
    sounds = torch.stack([mel(sound({}, name, seed, tones)[0]) for name in DOMAINS for seed in (2, 3)])
    heard = model.model.audio_tower(sounds).last_hidden_state.flatten(0, 1)
    heard = heard[:, textures] - heard[:, [null]]
    weights = torch.randn(len(hidden), len(textures), generator=generator)
    weights *= SPREAD / (heard @ weights.T).std(0)[:, None]
    linear.weight.zero_()
    linear.bias.zero_()
    linear.weight[hidden[:, None], textures] = weights
    linear.bias[hidden] = -weights @ heard.mean(0)
    linear.bias[layout["const"]], linear.bias[layout["media"]] = CONST, 1.0
    for index, kind in enumerate(KINDS):
        linear.weight[seen(layout, kind), index] = 1 / FULL
    linear.weight[:, null] = -linear.weight.sum(1)
