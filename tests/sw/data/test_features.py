"""Sound as features: the mel scale, bands, frames, and what they do not depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradiron.data import features
from gradiron.data.features import cosines, frames, log_mel, mel_bank, to_features


def tone(frequency: float, rate: int = 8000, seconds: float = 1.0) -> Any:
    return np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)


def test_mel_scale() -> None:
    # 1000 Hz are 1000 mel by definition, up to the rounding of the formula's constants.
    assert float(features.mel(1000.0)) == pytest.approx(1000, abs=0.02)
    assert float(features.mel(0.0)) == 0
    np.testing.assert_allclose(
        features.hertz(features.mel(np.arange(0, 4000, 7.0))), np.arange(0, 4000, 7.0), atol=1e-9
    )


def test_bands_are_triangles_that_overlap_by_half() -> None:
    bank = mel_bank(8000, 4096, 10)
    assert bank.shape == (10, 2049)
    assert bank.min() == 0
    assert bank.max() <= 1
    # Between the first and the last centre the weights of each frequency add up to one.
    first, last = bank[0].argmax() + 1, bank[-1].argmax()
    np.testing.assert_allclose(bank.sum(axis=0)[first:last], 1)
    assert (np.diff(bank.argmax(axis=1)) > 0).all()


def test_cosine_transform_is_orthonormal_and_of_type_two() -> None:
    full = cosines(12, 12)
    np.testing.assert_allclose(full @ full.T, np.eye(12), atol=1e-12)
    fft = pytest.importorskip("scipy.fft")
    x = np.random.default_rng(0).normal(size=40)
    np.testing.assert_allclose(cosines() @ x, fft.dct(x, norm="ortho")[:10], atol=1e-12)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_tone_is_in_the_band_of_its_frequency(rate: int) -> None:
    size = 1 << (round(0.03 * rate) - 1).bit_length()
    for frequency in (300, 1000, 2500):
        bands = log_mel(tone(frequency, rate), rate)
        assert bands.shape == (49, 40)
        assert bands.max() == 0
        assert bands.min() >= -24
        nearest = round(frequency * size / rate)
        expected = int(mel_bank(rate, size)[:, nearest].argmax())
        assert abs(int(bands[24].argmax()) - expected) <= 1


def test_power_by_the_definition() -> None:
    signal = np.random.default_rng(0).normal(size=8000)
    # Frame 7 by a Fourier sum written out.
    offset = (len(signal) - (48 * 160 + 240)) // 2
    part = signal[offset + 7 * 160 : offset + 7 * 160 + 240]
    n = np.arange(240)
    windowed = part * np.sin(np.pi * n / 240) ** 2
    power = np.array(
        [abs((windowed * np.exp(-2j * np.pi * k * n / 256)).sum()) ** 2 for k in range(129)]
    )
    mine = log_mel(signal, 8000)[7]
    expected = np.log2(mel_bank(8000, 256) @ power)
    np.testing.assert_allclose(mine - mine[0], expected - expected[0], atol=1e-9)


def test_frames_have_the_signal_in_the_middle() -> None:
    short = frames(np.ones(160), 8000)
    assert short.shape == (49, 240)
    assert short.sum() > 0
    assert (short[:20] == 0).all()
    assert (short[-20:] == 0).all()
    long = frames(np.arange(80000.0), 8000)
    assert long[0, 0] == (80000 - 7920) // 2
    assert long[-1, -1] == long[0, 0] + 7919


def test_loudness_does_not_matter() -> None:
    signal = np.random.default_rng(1).normal(size=6000)
    np.testing.assert_array_equal(
        to_features(log_mel(signal, 8000)), to_features(log_mel(signal * 0.25, 8000))
    )


def test_silence() -> None:
    found = to_features(log_mel(np.zeros(8000), 8000))
    assert found.shape == (49, 10)
    assert found.dtype == np.int8
    assert (found[:, 0] == -127).all()
    assert (found[:, 1:] == 0).all()


def test_features_fill_the_int8_range() -> None:
    flat = to_features(np.zeros((49, 40)))
    assert (flat[:, 0] == 127).all()
    sloped = to_features(np.tile(np.linspace(-24, 0, 40), (49, 1)))
    assert (sloped[:, 1] == -127).all()
    assert sloped.min() >= -127
