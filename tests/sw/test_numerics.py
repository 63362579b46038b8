"""The integer formulas against definitions with fractions and plain integers."""

from __future__ import annotations

from fractions import Fraction
from math import floor, log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradiron.arch import numerics
from gradiron.arch.numerics import Tracker, Use

int32 = st.integers(-(2**31), 2**31 - 1)
# Ties and their neighbours: where rounding rules differ.
near_ties = st.builds(
    lambda k, s, d: (2 * k + 1) * 2**s // 2 + d,
    st.integers(-(2**10), 2**10),
    st.integers(0, 16),
    st.integers(-2, 2),
)
values = st.one_of(int32, near_ties, st.integers(-300, 300))
shifts = st.integers(-40, 40)


def clamped(s: int) -> int:
    return max(-16, min(31, s))


@given(values, shifts)
def test_rn_is_nearest_with_ties_upwards(v: int, s: int):
    s = clamped(s)
    expected = floor(Fraction(v, 2**s) + Fraction(1, 2)) if s > 0 else v * 2**-s
    assert int(numerics.rn(v, s)) == expected


@given(values, shifts)
def test_rt_rounds_twice_the_second_time_away_from_zero(v: int, s: int):
    s = clamped(s)
    if s <= 0:
        expected = v * 2**-s
    else:
        t = floor(Fraction(v + 1, 2))
        magnitude = floor(Fraction(abs(t), 2 ** (s - 1)) + Fraction(1, 2)) if s > 1 else abs(t)
        expected = magnitude if t >= 0 else -magnitude
    assert int(numerics.rt(v, s)) == expected


def tflite(v: int, s: int) -> int:
    """MultiplyByQuantizedMultiplier of TensorFlow Lite with the multiplier 2**-s: a saturating
    rounding doubling high multiplication by 2**30, then a rounding division by 2**(s-1)."""
    product = v * 2**30
    nudge = 2**30 if product >= 0 else 1 - 2**30
    # C++ division truncates towards zero.
    total = product + nudge
    high = abs(total) // 2**31 * (1 if total >= 0 else -1)
    mask = 2 ** (s - 1) - 1
    threshold = (mask >> 1) + (1 if high < 0 else 0)
    return (high >> (s - 1)) + (1 if high & mask > threshold else 0)


@given(values, st.integers(1, 31))
def test_rt_is_the_rule_of_tensorflow_lite(v: int, s: int):
    assert int(numerics.rt(v, s)) == tflite(v, s)


@given(values, shifts, st.integers(0, 2**16 - 1))
def test_sr_adds_a_fraction_below_one(v: int, s: int, r: int):
    s = clamped(s)
    if s <= 0:
        expected = v * 2**-s
    else:
        fraction = Fraction(r % 2**s, 2**s) if s <= 16 else Fraction(r, 2**16)
        expected = floor(Fraction(v, 2**s) + fraction)
    assert int(numerics.sr(v, s, r)) == expected


@pytest.mark.parametrize("s", [1, 4, 9])
def test_sr_is_unbiased_over_all_random_numbers(s: int):
    r = np.arange(2**16)
    for v in (-1000, -3, -1, 0, 1, 7, 12345):
        rounded = numerics.sr(np.full(2**16, v), s, r)
        assert Fraction(int(rounded.sum()), 2**16) == Fraction(v, 2**s)


@given(st.lists(values, min_size=1, max_size=9), shifts)
def test_arrays_are_rounded_element_by_element(v: list[int], s: int):
    for formula in (numerics.rn, numerics.rt):
        assert formula(v, s).tolist() == [int(formula(x, s)) for x in v]


@pytest.mark.parametrize(
    ("formula", "low", "high"),
    [
        (numerics.sat8, -127, 127),
        (numerics.sat16, -32767, 32767),
        (numerics.sat_master, -32640, 32639),
        (numerics.sat30, -(2**30), 2**30),
        (numerics.sat32, 1 - 2**31, 2**31 - 1),
    ],
)
def test_saturation_limits(formula, low: int, high: int):  # pyright: ignore
    assert formula([low - 1, low, 0, high, high + 1]).tolist() == [low, low, 0, high, high]
    assert formula([-(2**50), 2**50]).tolist() == [low, high]


@given(st.integers(0, 2**32 - 1))
def test_bit_length(m: int):
    n = numerics.bit_length(m)
    assert m < 2**n
    assert m == 0 or m >= 2 ** (n - 1)


@given(st.lists(st.integers(-32640, 32639), min_size=1, max_size=20))
def test_the_high_plane_of_a_master_is_its_int8_weight(m: list[int]):
    high, low = numerics.split_master(m)
    assert high.tolist() == [(v + 128) >> 8 for v in m]
    assert np.abs(high.astype(int)).max() <= 127
    assert numerics.join_master(high, low).tolist() == m


# --- trackers ------------------------------------------------------------------------------------


def plain_tracker(exponent: int, low: int, e_acc: int, m: int) -> tuple[int, int]:
    if m == 0:
        return exponent, low
    need = max(-64, min(63, e_acc + max(0, m.bit_length() - 7)))
    if need > exponent:
        return need, 0
    if need < exponent:
        return (max(-64, exponent - 1), 0) if low + 1 == 8 else (exponent, low + 1)
    return exponent, 0


@given(
    st.integers(-64, 63),
    st.lists(st.tuples(st.integers(-140, 140), st.integers(0, 2**31)), max_size=30),
)
def test_tracker_follows_its_definition(e: int, batches: list[tuple[int, int]]):
    tracker, plain = Tracker(e), (e, 0)
    for e_acc, m in batches:
        tracker = tracker.update(e_acc, m)
        plain = plain_tracker(*plain, e_acc, m)
        assert (tracker.exponent, tracker.low) == plain
        assert -64 <= tracker.exponent <= 63
        assert 0 <= tracker.low <= 7


def test_tracker_rises_at_once_and_falls_after_eight():
    tracker = Tracker(0).update(-10, 127 << 13)
    assert tracker == Tracker(3)
    for count in range(1, 8):
        tracker = tracker.update(-10, 1)
        assert tracker == Tracker(3, count)
    assert tracker.update(-10, 1) == Tracker(2)
    assert tracker.update(-10, 0) == tracker
    assert tracker.update(-10, 127 << 13) == Tracker(3)


# --- random numbers ------------------------------------------------------------------------------


def plain_random(key: int, use: int, index: int) -> int:
    block, turn = divmod(index, 16)
    high = block >> 16 & 0xFF
    x = (block ^ high ^ high << 8) & 0xFFFF
    x = (x + key) % 2**16
    constants = (0x0000, 0x35A9, 0xC36A, 0x6C95, 0x9A56, 0xF0CF, 0x5A3C)
    for number, (right, left) in enumerate(((3, 8), (8, 2), (7, 6), (4, 7))):
        if number == 2:
            x ^= key >> 16 ^ constants[use]
        x ^= x >> right
        x = x * (1 + 2**left) % 2**16
    x ^= x >> 8
    return (x * 2**turn | x >> (16 - turn)) % 2**16


@given(st.integers(0, 2**32 - 1), st.sampled_from(list(Use)), st.integers(0, 2**22 - 1))
def test_random16_is_a_rotated_hash(key: int, use: Use, index: int):
    assert int(numerics.random16(key, use, index)) == plain_random(key, use, index)


def test_random_keys_of_neighbours_differ():
    keys = {
        numerics.random_key(seed, step, tensor)
        for seed in range(8)
        for step in range(64)
        for tensor in range(64)
    }
    assert len(keys) == 8 * 64 * 64
    assert all(0 <= key < 2**32 for key in keys)


def test_random_key_takes_all_of_seed_and_step():
    assert numerics.random_key(2**32 - 1, 2**32 - 1, 63) != numerics.random_key(0, 2**32 - 1, 63)
    assert numerics.random_key(1 << 31, 0, 0) != numerics.random_key(0, 0, 0)
    assert numerics.random_key(0, 1 << 31, 0) != numerics.random_key(0, 0, 0)


N = 1 << 16
SAMPLES = [(0, 0, 3), (1, 17, 5), (12345, 18750, 40)]


def stream(sample: tuple[int, int, int], use: Use = Use.DW) -> np.ndarray:
    return numerics.random16(numerics.random_key(*sample), use, np.arange(N))


@pytest.mark.parametrize("sample", SAMPLES)
def test_random_numbers_are_uniform(sample: tuple[int, int, int]):
    r = stream(sample)
    # 4096 independent hashes: the mean's standard deviation is about 19000 / 64 = 300.
    assert abs(r.mean() - 32767.5) < 4 * 300
    # Each bit is one in half of the cases, to 4 standard deviations of 4096 hashes.
    bits = (r[:, None] >> np.arange(16)) & 1
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 4 * 0.5 / 64
    # The low bits, which decide small shifts, take all values equally often.
    for s in (2, 4):
        counts = np.bincount(r & ((1 << s) - 1), minlength=1 << s)
        assert counts.max() / counts.min() < 1.35


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("distance", [16, 17, 32, 784, 128 * 16, 4096])
def test_random_numbers_of_different_blocks_are_uncorrelated(
    sample: tuple[int, int, int], distance: int
):
    r = stream(sample).astype(float)
    assert abs(np.corrcoef(r[:-distance], r[distance:])[0, 1]) < 0.08


@pytest.mark.parametrize("sample", SAMPLES)
def test_streams_of_uses_steps_and_tensors_are_uncorrelated(sample: tuple[int, int, int]):
    seed, step, tensor = sample
    r = stream(sample).astype(float)
    others = [stream(sample, use) for use in Use if use != Use.DW]
    others += [stream(other) for other in ((seed, step + 1, tensor), (seed, step, tensor + 1))]
    others += [stream((seed + 1, step, tensor))]
    for other in others:
        assert abs(np.corrcoef(r, other.astype(float))[0, 1]) < 0.08


# --- softmax -------------------------------------------------------------------------------------


def plain_softmax(z: list[int], label: int) -> tuple[int, list[int], int]:
    t = [floor(Fraction(v * 369, 256)) for v in z]
    d = [max(t) - v for v in t]
    e = [round(32768 * 2 ** (-(v % 256 // 4) / 64)) >> min(v // 256, 31) for v in d]
    total = sum(e)
    p = [v * 32768 // total for v in e]
    n = total.bit_length() - 1
    f = floor(Fraction(total, 2**n) * 64) - 64
    loss = d[label] + 256 * (n - 15) + round(256 * log2(1 + f / 64))
    return z.index(max(z)), p, loss


logits = st.one_of(st.integers(-32767, 32767), st.integers(-600, 600))


@given(st.lists(logits, min_size=1, max_size=12), st.data())
def test_softmax_follows_its_definition(z: list[int], data: st.DataObject):
    label = data.draw(st.integers(0, len(z) - 1))
    prediction, p, loss = plain_softmax(z, label)
    result = numerics.softmax([z, z], [label, label])
    assert result.prediction.tolist() == [prediction] * 2
    assert result.probability.tolist() == [p] * 2
    assert result.loss is not None
    assert result.loss.tolist() == [loss] * 2
    assert numerics.softmax([z]).loss is None
    g = numerics.softmax_gradient(result.probability, [label, label])
    assert g[0].tolist() == [v - 32768 * (c == label) for c, v in enumerate(p)]


@given(st.lists(st.integers(-1500, 1500), min_size=2, max_size=12), st.data())
def test_softmax_is_close_to_the_real_one(z: list[int], data: st.DataObject):
    label = data.draw(st.integers(0, len(z) - 1))
    real = np.exp2(np.array(z) / 256 * np.log2(np.e))
    real /= real.sum()
    result = numerics.softmax([z], [label])
    assert np.abs(result.probability[0] / 32768 - real).max() < 0.02
    assert result.loss is not None
    assert abs(int(result.loss[0]) / 256 + np.log2(real[label])) < 0.1


@given(st.integers(0, 32768))
def test_gradient_shift_makes_the_largest_fit(m: int):
    shift = numerics.gradient_shift(m)
    assert m >> shift <= 127
    assert shift == 0 or m >> (shift - 1) > 127
