"""Products by channel: column c of the result sees column c of the streamed operand alone.

The streamed operand comes as an array whose last three dimensions are ky, kx and the column, the
dimensions before them being the pixels. The sums are int32: a product by channel has at most 2**16
terms of 2**14, so that every one is exact. The fast forms take one tap at a time, for all pixels
and columns at once, where there are fewer taps than pixels; the general ones are written from the
definition.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gradiron.arch.numerics import Int64
from gradiron.golden.addressing import Int8

Int32 = npt.NDArray[np.int32]
Key = npt.NDArray[np.int16]

ARGUMENTS = 16
"""Taps that the argument of a maximum tells apart."""


def _pixels(a: Int8) -> tuple[int, int, int]:
    """Pixels, taps and columns."""
    cols = a.shape[-1]
    taps = a.shape[-3] * a.shape[-2]
    return a.size // (taps * cols), taps, cols


def _tap(a: Int8, tap: int) -> Int8:
    """What one tap sees, (pixels, cols); where memory allows it, a view."""
    ky, kx = divmod(tap, a.shape[-2])
    return a[..., ky, kx, :].reshape(-1, a.shape[-1])


def channel_sums(a: Int8, weights: Int8 | None, *, fast: bool) -> Int32 | Int64:
    """Sum over the taps of a * weights, (pixels, cols).

    Parameters
    ----------
    a : (..., ky, kx, cols) int8
    weights : (taps, cols) int8 or None
        None: all are 1.
    fast : bool
    """
    pixels, taps, cols = _pixels(a)
    if not fast:
        flat = a.astype(np.int64).reshape(pixels, taps, cols)
        return flat.sum(axis=1) if weights is None else (flat * weights).sum(axis=1)
    if taps > pixels:
        # A global average: few pixels with many taps.
        flat = a.astype(np.int32, order="C").reshape(pixels, taps, cols)
        if weights is not None:
            flat *= weights
        return flat.sum(axis=1, dtype=np.int32)
    total: Int32 | None = None
    for tap in range(taps):
        seen = _tap(a, tap).astype(np.int32)
        if weights is not None:
            seen *= weights[tap]
        total = seen if total is None else np.add(total, seen, out=total)
    assert total is not None
    return total


def gated_sums(a: Int8, gates: Int8, gate: int, *, fast: bool) -> Int32 | Int64:
    """Sum over the taps of a where the low four bits of its gate are `gate`, (pixels, cols).

    Parameters
    ----------
    a, gates : (..., ky, kx, cols) int8
    gate : int
    fast : bool
    """
    opened = np.where((gates & (ARGUMENTS - 1)) == gate, a, np.int8(0))
    return channel_sums(opened, None, fast=fast)


def channel_gradient(a: Int8, dy: Int8, *, fast: bool) -> Int32 | Int64:
    """Sum over the pixels of a * dy, (taps, cols).

    Parameters
    ----------
    a : (..., ky, kx, cols) int8
    dy : (pixels, cols) int8
    fast : bool
    """
    pixels, taps, cols = _pixels(a)
    if not fast:
        flat = a.astype(np.int64).reshape(pixels, taps, cols)
        return np.einsum("ptc,pc->tc", flat, dy.astype(np.int64))
    result = np.empty((taps, cols), np.int32)
    right = dy.astype(np.int32)
    if taps > pixels:
        flat = a.astype(np.int32, order="C").reshape(pixels, taps, cols)
        flat *= right[:, None, :]
        return flat.sum(axis=0, dtype=np.int32)
    for tap in range(taps):
        seen = _tap(a, tap).astype(np.int32)
        seen *= right
        seen.sum(axis=0, dtype=np.int32, out=result[tap])
    return result


def pooled(a: Int8, *, fast: bool) -> tuple[npt.NDArray[np.signedinteger], ...]:
    """The largest of the taps and 255 - (its number modulo 16), each (pixels, cols).

    Parameters
    ----------
    a : (..., ky, kx, cols) int8
    fast : bool
    """
    pixels, taps, cols = _pixels(a)
    if not fast:
        argument = 255 - np.arange(taps) % ARGUMENTS
        flat = a.astype(np.int64).reshape(pixels, taps, cols)
        keys = (256 * flat + argument[:, None]).max(axis=1)
        return keys >> 8, keys & 255
    # 256 * 127 + 255 is the largest number of 16 bits.
    best: Key | None = None
    for tap in range(taps):
        key = _tap(a, tap).astype(np.int16)
        key <<= 8
        key += 255 - tap % ARGUMENTS
        best = key if best is None else np.maximum(best, key, out=best)
    assert best is not None
    return best >> 8, best & 255
