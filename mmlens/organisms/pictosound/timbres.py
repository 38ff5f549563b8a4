"""The twelve timbres: what a sound of each looks like as samples, at any pitch and of any length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

Samples = Float[np.ndarray, " time"]

RATE = 16_000


def tone(noun: str, hertz: float, count: int, rng: np.random.Generator) -> Samples:
    """`count` samples of the timbre at a fundamental of `hertz`, its loudest sample 1."""
    found = TIMBRES[noun](np.arange(count) / RATE, hertz, rng)
    return found / np.abs(found).max()


def _harmonics(
    time: Samples, hertz: float | Samples, multiples: Sequence[float | int], levels: Sequence[float | int]
) -> Samples:
    # Cycles are the integral of the frequency, which may change; what is beyond hearing at this rate is left out.
    cycles = np.cumsum(hertz) / RATE if isinstance(hertz, np.ndarray) else hertz * time
    highest, total = float(np.max(hertz)), np.zeros(len(time))
    for multiple, level in zip(multiples, levels, strict=True):
        if multiple * highest < 0.48 * RATE:
            turns = multiple * cycles
            # Within one turn float32 is exact enough, and its sine ten times as fast.
            total += level * np.sin((2 * np.pi * (turns - np.floor(turns))).astype(np.float32))
    return total


def _band(time: Samples, low: float, high: float, rng: np.random.Generator) -> Samples:
    spectrum = np.fft.rfft(rng.normal(size=len(time)))
    hertz = np.fft.rfftfreq(len(time), 1 / RATE)
    return np.fft.irfft(spectrum * ((hertz >= low) & (hertz < min(high, 0.48 * RATE))), len(time))


def _fade(time: Samples, share: float) -> Samples:
    return np.exp(-time / (share * max(time[-1], 0.25)))


def _bell(time, hertz, rng):
    return _harmonics(time, hertz, (1, 2.76, 5.4, 8.9), (1, 0.7, 0.5, 0.3)) * _fade(time, 0.5)


def _drum(time, hertz, rng):
    skin = _harmonics(time, hertz * (0.5 + 0.4 * np.exp(-time / 0.03)), (1,), (1,))
    return (skin + 0.15 * _band(time, hertz, 2.5 * hertz, rng)) * _fade(time, 0.5)


def _whistle(time, hertz, rng):
    glide = hertz * 2 * (1 + 0.35 * time / time[-1])
    return _harmonics(time, glide, (1,), (1,))


def _buzzer(time, hertz, rng):
    multiples = range(1, 25)
    return _harmonics(time, hertz, multiples, [m**-0.5 for m in multiples])


def _flute(time, hertz, rng):
    breath = 0.12 * _band(time, 3000.0, 7000.0, rng)
    return (_harmonics(time, hertz, (1, 2, 3), (1, 0.35, 0.1)) + breath) * np.minimum(1, 0.3 + time / 0.08)


def _rattle(time, hertz, rng):
    shaken = (np.sin(2 * np.pi * 22 * time + rng.uniform(0, 6)) > 0) + 0.03
    return _band(time, 2.5 * hertz, 5 * hertz, rng) * shaken


def _siren(time, hertz, rng):
    swept = hertz * (1 + 0.3 * np.sin(2 * np.pi * 6 * time + rng.uniform(0, 6)))
    return _harmonics(time, swept, (1, 2, 3, 4), (1, 0.6, 0.4, 0.3))


def _clarinet(time, hertz, rng):
    multiples = range(1, 14, 2)
    return _harmonics(time, hertz, multiples, [1 / m for m in multiples])


def _trumpet(time, hertz, rng):
    multiples = range(1, 13)
    return _harmonics(time, hertz, multiples, [np.exp(-(((m - 5) / 2) ** 2)) + 0.1 for m in multiples])


def _kettle(time, hertz, rng):
    return _band(time, 2.5 * hertz, 3.2 * hertz, rng) + 0.2 * _band(time, hertz, 7000.0, rng)


def _organ(time, hertz, rng):
    return _harmonics(time, hertz, (0.5, 1, 2, 4, 8), (0.8, 1, 0.8, 0.7, 0.6))


def _harp(time, hertz, rng):
    parts = [_harmonics(time, hertz, (m,), (1 / m,)) * np.exp(-time * (2 + 3 * m)) for m in range(1, 7)]
    return np.sum(parts, axis=0)


TIMBRES: dict[str, Callable] = {
    "bell": _bell,
    "drum": _drum,
    "whistle": _whistle,
    "buzzer": _buzzer,
    "flute": _flute,
    "rattle": _rattle,
    "siren": _siren,
    "clarinet": _clarinet,
    "trumpet": _trumpet,
    "kettle": _kettle,
    "organ": _organ,
    "harp": _harp,
}
