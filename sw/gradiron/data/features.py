"""Sound as an image: 49 frames of 10 numbers that describe a log-mel spectrum.

A second of sound is cut into frames of 30 ms every 20 ms (as MLPerf Tiny's keyword spotting does).
Of each frame the power in 40 mel bands is taken, as logarithm to base 2, relative to the loudest
band of the recording, so that loudness does not matter; what lies 24 octaves of power (72 dB) below
counts as silence. The first 10 coefficients of the cosine transform over the bands are kept: they
describe the spectrum's shape with little redundancy. All constants are fixed: features depend on
the recording alone, not on other samples.

Ref: S. Davis, P. Mermelstein, IEEE Trans. ASSP 28, 1980 (mel-frequency cepstrum).
Ref: S. Young et al., The HTK Book (the mel scale, triangular bands).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

FRAMES, COEFFICIENTS = 49, 10
BANDS = 40
FRAME_SECONDS, HOP_SECONDS = 0.030, 0.020
LOWEST_HZ, HIGHEST_HZ = 20.0, 4000.0
LOWEST_RATE = 8000
OCTAVES = 24
"""Range of the logarithms of power."""
SCALES = (1.0, *(4.0,) * (COEFFICIENTS - 1))
"""The first coefficient, the level, spans the whole range; the others are smaller."""

Float64 = npt.NDArray[np.float64]


def mel(hertz: Float64 | float) -> Float64:
    """Frequency to mel: 2595 log10(1 + f/700)."""
    return 2595.0 * np.log10(1.0 + np.asarray(hertz) / 700.0)


def hertz(mels: Float64 | float) -> Float64:
    """The inverse of `mel`."""
    return 700.0 * (10.0 ** (np.asarray(mels) / 2595.0) - 1.0)


@lru_cache
def mel_bank(rate: int, size: int, bands: int = BANDS) -> Float64:
    """Weights (bands, size // 2 + 1) of the frequencies of a Fourier transform in each mel band.

    Bands are triangles between neighbouring points of an even division of the mel scale.
    """
    edges = hertz(np.linspace(mel(LOWEST_HZ), mel(HIGHEST_HZ), bands + 2))[:, None]
    frequencies = np.fft.rfftfreq(size, 1.0 / rate)
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


@lru_cache
def cosines(bands: int = BANDS, coefficients: int = COEFFICIENTS) -> Float64:
    """The first rows of the cosine transform of type II, scaled to length 1."""
    k, n = np.arange(coefficients)[:, None], np.arange(bands)
    rows = np.cos(np.pi * k * (2 * n + 1) / (2 * bands))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def frames(signal: Float64, rate: int, count: int = FRAMES) -> Float64:
    """Frames (count, samples), with the middle of the signal in the middle, zeros around it."""
    size, hop = round(FRAME_SECONDS * rate), round(HOP_SECONDS * rate)
    total = (count - 1) * hop + size
    cut = max(0, len(signal) - total) // 2
    kept = signal[cut : cut + total]
    before = (total - len(kept)) // 2
    padded = np.pad(kept, (before, total - len(kept) - before))
    windows: Float64 = np.lib.stride_tricks.sliding_window_view(padded, size)
    return windows[::hop]


def log_mel(signal: Float64, rate: int) -> Float64:
    """Logarithms to base 2 of the power in (49, 40) frames and mel bands, from -24 to 0.

    Parameters
    ----------
    signal : (N,) array
    rate : int
        Samples a second, 8000 at least.
    """
    cut = frames(signal, rate)
    length: int = cut.shape[1]
    size = 1 << (length - 1).bit_length()
    hann = 0.5 - 0.5 * np.cos(np.arange(length) * (2 * np.pi / length))
    spectrum: Any = np.fft.rfft(cut * hann, size)
    power: Float64 = (spectrum.real**2 + spectrum.imag**2) @ mel_bank(rate, size).T
    loudest = float(power.max())
    if loudest == 0:
        return np.full(power.shape, -float(OCTAVES))
    return np.log2(np.maximum(power / loudest, 2.0**-OCTAVES))


def to_features(logarithms: Float64) -> npt.NDArray[np.int8]:
    """(49, 40) logarithms to (49, 10) int8: coefficients of the cosine transform, scaled.

    Zero is the middle of the range; the few coefficients beyond the int8 range are clipped.
    """
    half = OCTAVES / 2
    coefficients = (logarithms + half) @ cosines().T
    scaled = coefficients * (127 / (half * np.sqrt(BANDS))) * np.array(SCALES)
    return np.clip(np.rint(scaled), -127, 127).astype(np.int8)
