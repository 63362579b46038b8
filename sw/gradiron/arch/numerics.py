"""The integer formulas, once: the golden model executes them, hardware and tests are held to them.

All functions take and return numpy int64 arrays (or Python ints) unless they say otherwise;
nothing here uses floating point. "Exponent" is the power of two of a tensor: value = q * 2**E.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]

SHIFT_MIN, SHIFT_MAX = -16, 31
EXPONENT_MIN, EXPONENT_MAX = -64, 63
BIAS_EXPONENT = -20
MASTER_MIN, MASTER_MAX = -32640, 32639
MASTER_FRACTION = 8
"""A weight is M * 2**(EW - 8): eight bits of the master lie below the int8 weight."""
EXPONENT_SUM_BITS = 10
"""A sum of exponents is signed and modulo 2 to this; what instructions write never exceeds it."""
HYSTERESIS = 8
PRELOAD_LIMIT = 1 << 30
MAX_REDUCTION = 66_000
"""Products that an int32 accumulator holds exactly on top of any preload."""
LOGIT_EXPONENT = -8
PROBABILITY_BITS = 15
LOG2_E_Q8 = 369
"""log2(e) in units of 2**-8."""
EXP_ROM: tuple[int, ...] = tuple(round(32768 * 2 ** (-i / 64)) for i in range(64))
"""2**(-i/64) in units of 2**-15."""


def _log2_rom() -> tuple[int, ...]:
    from math import log2

    return tuple(round(256 * log2(1 + i / 64)) for i in range(64))


LOG_ROM: tuple[int, ...] = _log2_rom()
"""log2(1 + i/64) in units of 2**-8."""


class Rounding(IntEnum):
    """How a right shift rounds."""

    NEAREST = 0
    """`rn`: to nearest, ties upwards."""
    TFLITE = 1
    """`rt`: TensorFlow Lite's rule for a power-of-two scale."""
    STOCHASTIC = 2
    """`sr`: up with the probability of the fraction."""


class Use(IntEnum):
    """What a random number is used for; keeps the random streams of one tensor apart."""

    DX = 0
    DW = 1
    DB = 2
    MOMENTUM_DECAY = 3
    MOMENTUM_STEP = 4
    LOSS = 5
    BIAS_DECAY = 6


def clamp_shift(s: int) -> int:
    """A shift amount, clamped to what the shifter has."""
    return max(SHIFT_MIN, min(SHIFT_MAX, s))


def clamp_exponent(e: int) -> int:
    """An exponent, saturated to its range."""
    return max(EXPONENT_MIN, min(EXPONENT_MAX, e))


def bit_length(m: int) -> int:
    """BL(m) = 32 - clz(m) for 0 <= m < 2**32."""
    return int(m).bit_length()


def saturate(v: npt.ArrayLike, low: int, high: int) -> Int64:
    """Clamp to [low, high]."""
    return np.clip(np.asarray(v, np.int64), low, high)


def sat8(v: npt.ArrayLike) -> Int64:
    """Clamp to +-127; -128 is never stored."""
    return saturate(v, -127, 127)


def sat16(v: npt.ArrayLike) -> Int64:
    """Clamp to +-32767."""
    return saturate(v, -32767, 32767)


def sat_master(v: npt.ArrayLike) -> Int64:
    """Clamp to the range of a master weight."""
    return saturate(v, MASTER_MIN, MASTER_MAX)


def sat30(v: npt.ArrayLike) -> Int64:
    """Clamp to +-2**30, the range of an accumulator preload."""
    return saturate(v, -PRELOAD_LIMIT, PRELOAD_LIMIT)


def sat32(v: npt.ArrayLike) -> Int64:
    """Clamp to +-(2**31 - 1)."""
    return saturate(v, -(2**31 - 1), 2**31 - 1)


def rn(v: npt.ArrayLike, s: int) -> Int64:
    """Shift right by s, rounding to nearest with ties upwards; s <= 0 shifts left, exactly.

    `s` is clamped to [-16, 31]. The result of a left shift is exact (up to 48 bits); the caller
    saturates it.
    """
    v = np.asarray(v, np.int64)
    s = clamp_shift(s)
    return (v + (1 << (s - 1))) >> s if s > 0 else v << -s


def rt(v: npt.ArrayLike, s: int) -> Int64:
    """Shift right by s with TensorFlow Lite's double rounding.

    t = (v + 1) >> 1, then t / 2**(s-1) to nearest with ties away from zero; s <= 0 as `rn`.
    """
    v = np.asarray(v, np.int64)
    s = clamp_shift(s)
    if s <= 0:
        return v << -s
    t = (v + 1) >> 1
    if s == 1:
        return t
    half = 1 << (s - 2)
    return np.where(t >= 0, (t + half) >> (s - 1), -((-t + half) >> (s - 1)))


def sr(v: npt.ArrayLike, s: int, r: npt.ArrayLike) -> Int64:
    """Shift right by s, rounding stochastically with 16 random bits r; s <= 0 as `rn`."""
    v = np.asarray(v, np.int64)
    s = clamp_shift(s)
    if s <= 0:
        return v << -s
    r = np.asarray(r, np.int64)
    addend = r & ((1 << s) - 1) if s <= 16 else r << (s - 16)
    return (v + addend) >> s


# --- random numbers ------------------------------------------------------------------------------

_MASK32 = 0xFFFFFFFF
KEY_CONSTANTS = (0x9E3779B9, 0x00000000, 0x7F4A7C15, 0x3C6EF372)
"""Added before each of the four key rounds (golden ratio fractions); round 1 adds the step, round
2 also the tensor."""
USE_CONSTANTS = (0x0000, 0x35A9, 0xC36A, 0x6C95, 0x9A56, 0xF0CF, 0x5A3C)
HASH_ROUNDS = ((3, 8), (8, 2), (7, 6), (4, 7))
"""(right shift to xor, left shift to add) of each round of the 16-bit mix."""
HASH_FINAL = 8


def xorshift32(x: int) -> int:
    """One round of Marsaglia's xorshift32 (13, 17, 5). Ref: J. Stat. Soft. 8(14), 2003."""
    x ^= (x << 13) & _MASK32
    x ^= x >> 17
    x ^= (x << 5) & _MASK32
    return x


def random_key(seed: int, step: int, tensor: int) -> int:
    """The 32-bit key of one tensor in one training step (seed and step: 32 bits)."""
    k = 0
    for constant, value in zip(KEY_CONSTANTS, (seed, step, tensor, 0), strict=True):
        k = xorshift32((k + constant + value) & _MASK32)
    return k


def hash16(key: int, use: int, block: npt.ArrayLike) -> Int64:
    """16 bits from a key, a use and a block number (below 2**24).

    A mix of additions and shifts of 16 bits, without a multiplier: x and the low half of the key,
    two rounds, the high half of the key with the constant of the use, two rounds.
    """
    q = np.asarray(block, np.int64)
    high = (q >> 16) & 0xFF
    x = (q ^ high ^ (high << 8)) & 0xFFFF
    x = (x + (key & 0xFFFF)) & 0xFFFF
    for index, (right, left) in enumerate(HASH_ROUNDS):
        if index == 2:
            x = x ^ (key >> 16) ^ USE_CONSTANTS[use]
        x = x ^ (x >> right)
        x = (x + (x << left)) & 0xFFFF
    return x ^ (x >> HASH_FINAL)


def random16(key: int, use: int, index: npt.ArrayLike) -> Int64:
    """The random number of each element.

    r = rotate_left(hash16(key, use, index >> 4), index & 15): one hash serves sixteen neighbours.

    Parameters
    ----------
    key : int
        From `random_key`.
    use : Use
        What the numbers are for.
    index : array of int
        Element numbers of the tensor in C order, unpadded, batch included.
    """
    index = np.asarray(index, np.int64)
    h = hash16(key, use, index >> 4)
    turn = index & 15
    return ((h << turn) | (h >> (16 - turn))) & 0xFFFF


# --- exponent trackers ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Tracker:
    """The exponent that the NEXT batch of a tensor will get at least, with its hysteresis count."""

    exponent: int
    low: int = 0

    def update(self, acc_exponent: int, m: int) -> Tracker:
        """The tracker after a batch whose accumulators had the largest magnitude m."""
        if m == 0:
            return self
        need = clamp_exponent(acc_exponent + max(0, bit_length(m) - 7))
        if need > self.exponent:
            return Tracker(need)
        if need < self.exponent:
            if self.low + 1 == HYSTERESIS:
                return Tracker(self.exponent - 1)
            return Tracker(self.exponent, self.low + 1)
        return Tracker(self.exponent)

    def fit(self, acc_exponent: int, m: int) -> Tracker:
        """The tracker that accumulators with the largest magnitude m need, at once."""
        if m == 0:
            return self
        return Tracker(clamp_exponent(acc_exponent + gradient_shift(m)))


# --- softmax cross-entropy -----------------------------------------------------------------------


@dataclass(frozen=True)
class SoftmaxResult:
    """What the loss unit makes of a batch of logits.

    Attributes
    ----------
    prediction : (N,) int64
        Class with the largest logit, the first of equals.
    probability : (N, C) int64
        Units of 2**-15, 0 to 32768.
    loss : (N,) int64 or None
        Cross-entropy per sample in units of 2**-8 bits; None without labels.
    """

    prediction: Int64
    probability: Int64
    loss: Int64 | None


def softmax(z: npt.ArrayLike, label: npt.ArrayLike | None = None) -> SoftmaxResult:
    """Softmax of int16 logits with exponent -8, and the loss where labels are given.

    Parameters
    ----------
    z : (N, C) array of int16 values
    label : (N,) array of int, each in [0, C), or None
    """
    z = np.asarray(z, np.int64)
    t = (z * LOG2_E_Q8) >> 8
    d = t.max(axis=1, keepdims=True) - t
    n = np.minimum(d >> 8, 31)
    e = np.asarray(EXP_ROM, np.int64)[(d & 255) >> 2] >> n
    total = e.sum(axis=1, keepdims=True)
    p = (e << PROBABILITY_BITS) // total
    loss = None
    if label is not None:
        label = np.asarray(label, np.int64)
        s = total[:, 0]
        lead = np.asarray([bit_length(int(v)) - 1 for v in s], np.int64)
        fraction = (s << 6) >> lead
        log_s = 256 * (lead - 15) + np.asarray(LOG_ROM, np.int64)[fraction & 63]
        loss = np.take_along_axis(d, label[:, None], axis=1)[:, 0] + log_s
    return SoftmaxResult(z.argmax(axis=1), p, loss)


def softmax_gradient(probability: Int64, label: npt.ArrayLike) -> Int64:
    """g = p - 32768 * (i == label), exponent -15, (N, C)."""
    label = np.asarray(label, np.int64)
    g = probability.copy()
    g[np.arange(len(label)), label] -= 1 << PROBABILITY_BITS
    return g


def gradient_shift(m: int) -> int:
    """sh = max(0, BL(m) - 7): the shift that makes the largest magnitude m fit int8."""
    return max(0, bit_length(m) - 7)


# --- layout of a master weight -------------------------------------------------------------------


def split_master(m: npt.ArrayLike) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.uint8]]:
    """Masters to planes: M + 128 in 16 bits; the high byte is the int8 weight itself."""
    stored = np.asarray(m, np.int64) + 128
    return (stored >> 8).astype(np.int8), (stored & 0xFF).astype(np.uint8)


def join_master(high: npt.ArrayLike, low: npt.ArrayLike) -> Int64:
    """The inverse of `split_master`."""
    return (np.asarray(high, np.int64) << 8) + np.asarray(low, np.int64) - 128
