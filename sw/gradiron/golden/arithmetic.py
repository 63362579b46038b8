"""Fast forms of the integer formulas, equal bit for bit to those of `gradiron.arch.numerics`.

They compute in 32 bits where the operands are known to be small enough, and hash whole blocks of
random numbers at once. With limits unknown, or `fast=False`, the formulas of `numerics` are used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gradiron.arch import numerics
from gradiron.arch.numerics import Int64, Rounding
from gradiron.golden.addressing import Lattice

Int32 = npt.NDArray[np.int32]
Integers = npt.NDArray[np.signedinteger]
Matrix = npt.NDArray[np.floating | np.signedinteger]
UInt16 = npt.NDArray[np.uint16]
UInt32 = npt.NDArray[np.uint32]

INT32_MAX = (1 << 31) - 1
UNLIMITED = 1 << 62
"""A limit that forces the general formulas."""
ONE_THREAD = 1 << 18
"""Products of a matrix multiplication up to which OpenBLAS uses one thread.
Ref: interface/gemm.c, SMP_THRESHOLD_MIN * GEMM_MULTITHREAD_THRESHOLD, https://www.openblas.net"""
BLOCK = 16
"""Elements that share one hash."""


@lru_cache(maxsize=32)
def _turns(blocks: int) -> UInt32:
    """Right rotations of a doubled 16-bit word, element by element."""
    turns = np.tile(np.arange(BLOCK, 0, -1, dtype=np.uint32), blocks)
    turns.setflags(write=False)
    return turns


class Randoms:
    """The random numbers of a result's elements.

    Parameters
    ----------
    elements : Lattice
        Element numbers, before the modulus is applied.
    modulus : int
    shape : tuple of int
        Shape that the numbers get; as many as elements, in C order.
    fast : bool
        Whether a table of whole blocks may be made where the elements lie close together.
    """

    def __init__(
        self, elements: Lattice, modulus: int, shape: tuple[int, ...], *, fast: bool
    ) -> None:
        self._elements = elements
        self._modulus = modulus
        self._shape = shape
        self._hash_input: UInt16 | None = None
        low, high = elements.low, elements.high
        first, last = low // BLOCK, high // BLOCK
        self._first = first * BLOCK
        count = 1
        for n in elements.counts:
            count *= n
        regular = fast and elements.keep is None
        if regular and low >= 0 and high < modulus and (last - first) * BLOCK <= 4 * count + 1024:
            block = np.arange(first, last + 1, dtype=np.int64)
            high_byte = (block >> 16) & 0xFF
            self._hash_input = ((block ^ high_byte ^ (high_byte << 8)) & 0xFFFF).astype(np.uint16)

    def numbers(self, key: int, use: int) -> Int64:
        """The 16-bit numbers, (shape) int64."""
        if self._hash_input is None:
            index = self._elements.offsets() % self._modulus
            return numerics.random16(key, use, index).reshape(self._shape)
        return self._table(self._hash_input, key, use, 0xFFFF).astype(np.int64)

    def addend(self, key: int, use: int, s: int) -> Int32:
        """What `sr` adds before a right shift by s, 1 <= s <= 31: (shape) int32."""
        if self._hash_input is None:
            r = self.numbers(key, use)
            return (r & ((1 << s) - 1) if s <= 16 else r << (s - 16)).astype(np.int32)
        if s <= 16:
            return self._table(self._hash_input, key, use, (1 << s) - 1).view(np.int32)
        return self._table(self._hash_input, key, use, 0xFFFF).view(np.int32) << (s - 16)

    def _table(self, hash_input: UInt16, key: int, use: int, mask: int) -> UInt32:
        x = hash_input + np.uint16(key & 0xFFFF)
        for index, (right, left) in enumerate(numerics.HASH_ROUNDS):
            if index == 2:
                x ^= np.uint16((key >> 16) ^ numerics.USE_CONSTANTS[use])
            x ^= x >> right
            x += x << left
        x ^= x >> numerics.HASH_FINAL
        wide = x.astype(np.uint32)
        wide |= wide << 16
        table = np.repeat(wide, BLOCK)
        table >>= _turns(len(wide))
        table &= np.uint32(mask)
        elements = self._elements
        start = elements.origin - self._first
        if elements.dense:
            size = elements.high - elements.low + 1
            return table[start : start + size].reshape(self._shape)
        strides = tuple(4 * stride for stride in elements.strides)
        picked: UInt32 = np.ndarray(
            elements.counts, np.uint32, table, offset=4 * start, strides=strides
        )
        return picked.reshape(self._shape)


Addend = Callable[[int], Int32]
Numbers = Callable[[], Int64]


def round_shift(v: Integers, limit: int, shift: int, rounding: Rounding) -> Integers:
    """`rn` or `rt` of v by a shift that is clamped here; v may be overwritten.

    Parameters
    ----------
    v : array of int32 or int64
    limit : int
        No |v| is larger.
    """
    s = numerics.clamp_shift(shift)
    if s == 0:
        return v
    if s <= 0 or v.dtype != np.int32 or limit + (1 << s) > INT32_MAX:
        return (numerics.rt if rounding == Rounding.TFLITE else numerics.rn)(v, s)
    if rounding == Rounding.NEAREST or s == 1:
        v += 1 << (s - 1)
        v >>= s
        return v
    v += 1
    v >>= 1
    half = 1 << (s - 2)
    if int(v.min()) >= 0:
        v += half
        v >>= s - 1
        return v
    sign = v >> 31
    v ^= sign
    v -= sign
    v += half
    v >>= s - 1
    v ^= sign
    v -= sign
    return v


def stochastic_shift(
    v: Integers, limit: int, shift: int, randoms: Randoms, key: int, use: int, bound: int
) -> Integers:
    """`sr` of v by a shift that is clamped here; v may be overwritten.

    Parameters
    ----------
    v : array of int32 or int64
    limit : int
        No |v| is larger.
    randoms, key, use
        Where the random numbers come from.
    bound : int
        Results beyond +-bound (at most 2**17) may become other results beyond it on the same side.
    """
    s = numerics.clamp_shift(shift)
    if v.dtype == np.int32:
        if s > 0 and limit + (1 << s) <= INT32_MAX:
            v += randoms.addend(key, use, s)
            v >>= s
            return v
        if s <= 0:
            assert bound <= 1 << 17
            largest = (bound >> -s) + 1
            if limit > largest:
                v = np.clip(v, -largest, largest)
            return v << -s
    return numerics.sr(v, s, randoms.numbers(key, use) if s > 0 else 0)


def saturated(v: Integers, low: int, high: int) -> tuple[Integers, int]:
    """v clamped to [low, high], and how many elements that changed."""
    if int(v.min()) >= low and int(v.max()) <= high:
        return v, 0
    count = int(np.count_nonzero((v < low) | (v > high)))
    return np.clip(v, low, high), count


def matrix_product(a: Matrix, b: Matrix) -> Matrix:
    """a @ b, (rows, terms) times (terms, cols), in tiles that the BLAS computes in one thread.

    Every sum must be exact in the type of a and b, so that their order does not matter. A product
    that OpenBLAS shares among threads is at best a little faster, but up to forty times slower
    where another program keeps one of the processors busy.
    """
    if a.dtype.kind == "i":
        return a @ b
    (rows, terms), cols = a.shape, b.shape[1]
    # A vector would be left to another routine, with a lower threshold.
    if rows == 1:
        return matrix_product(np.repeat(a, 2, axis=0), b)[:1]
    if cols == 1:
        return matrix_product(a, np.repeat(b, 2, axis=1))[:, :1]
    if rows * terms * cols <= ONE_THREAD:
        return a @ b
    tile_cols = min(cols, 128)
    tile_terms = min(terms, ONE_THREAD // (tile_cols * min(rows, 64)))
    tile_rows = min(rows, ONE_THREAD // (tile_cols * tile_terms))
    result = np.zeros((rows, cols), a.dtype)
    for row in range(0, rows, tile_rows):
        for col in range(0, cols, tile_cols):
            tile = result[row : row + tile_rows, col : col + tile_cols]
            for term in range(0, terms, tile_terms):
                along = slice(term, term + tile_terms)
                tile += a[row : row + tile_rows, along] @ b[along, col : col + tile_cols]
    return result


def wrapped32(v: Integers) -> Int64:
    """v modulo 2**32, signed: what an accumulator keeps of a reduction that is too long."""
    return ((v.astype(np.int64) + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)
