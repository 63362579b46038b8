"""Where the operands of a product lie in memory: patterns of offsets, read and written.

A `Lattice` is a base plus nested strides, the form of every operand but the streamed one, which in
addition has bounds with a padding value outside (`Streamed`). `locate` and `locate_streamed` check
that every needed byte lies in its region and return a `Place`. Offsets are modulo 2**offset_bits;
where no offset wraps, a place is a strided numpy view, otherwise (and always with `fast=False`)
it is an array of indices, written straight from the definition. Both give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from gradiron.arch.isa import ErrorCause
from gradiron.arch.numerics import Int64
from gradiron.errors import DeviceError

Int8 = npt.NDArray[np.int8]
Number = TypeVar("Number", np.int64, np.bool_)
Bool = npt.NDArray[np.bool_]

MAX_POINTS = 1 << 28
"""Largest operand, in elements, that the model computes."""


class Fault(Exception):
    """An instruction cannot be executed; the machine turns it into its error state."""

    def __init__(self, cause: ErrorCause) -> None:
        super().__init__(cause.name)
        self.cause = cause


class Place(Protocol):
    """Bytes of memory in the order of an operand's loops."""

    def read(self) -> Int8:
        """The bytes; the array has one dimension per loop and may be a view of the memory."""
        ...

    def write(self, values: npt.NDArray[np.signedinteger]) -> None:
        """Store the low bytes of as many values, in C order of the loops."""
        ...


@dataclass(frozen=True)
class Strided:
    """A place that is a regular view of memory."""

    view: Int8

    def read(self) -> Int8:
        """See `Place`."""
        return self.view

    def write(self, values: npt.NDArray[np.signedinteger]) -> None:
        """See `Place`."""
        self.view[...] = values.astype(np.int8).reshape(self.view.shape)


@dataclass(frozen=True)
class Indexed:
    """A place given by the offset of every byte; where `valid` is false, `pad` is read."""

    memory: Int8
    index: Int64
    valid: Bool | None = None
    pad: int = 0

    def read(self) -> Int8:
        """See `Place`."""
        if self.valid is None:
            return self.memory[self.index]
        return np.where(
            self.valid, self.memory[np.where(self.valid, self.index, 0)], np.int8(self.pad)
        )

    def write(self, values: npt.NDArray[np.signedinteger]) -> None:
        """See `Place`."""
        self.memory[self.index] = values.astype(np.int8).reshape(self.index.shape)


@dataclass(frozen=True)
class Canvas:
    """A streamed operand with padding: `inside` is refilled from `source` before each read."""

    source: Int8
    inside: Int8
    view: Int8

    def read(self) -> Int8:
        """See `Place`."""
        self.inside[...] = self.source
        return self.view

    def write(self, values: npt.NDArray[np.signedinteger]) -> None:
        """Never used: no result has padding."""
        raise NotImplementedError


def _check_points(counts: Sequence[int]) -> None:
    points = prod(counts)
    if points > MAX_POINTS:
        raise DeviceError(
            f"an operand of {points} elements ({' x '.join(map(str, counts))}); "
            f"the golden model computes at most {MAX_POINTS}"
        )


def pixel_loops(pixels: int, ny: int, nx: int) -> tuple[tuple[int, int, int], int | None]:
    """Loops (n, y, x) that run over `pixels` pixels, and how many of their turns to keep.

    None keeps all; a number is given where the last row or the last image is not complete.
    """
    if pixels <= nx:
        return (1, 1, pixels), None
    if pixels <= nx * ny:
        counts = (1, -(-pixels // nx), nx)
    else:
        counts = (-(-pixels // (nx * ny)), ny, nx)
    return counts, None if prod(counts) == pixels else pixels


class Lattice(NamedTuple):
    """The offsets origin + sum of i_d * strides[d], 0 <= i_d < counts[d].

    With `keep`, only the first `keep` turns of the first three loops, as one loop.
    """

    origin: int
    counts: tuple[int, ...]
    strides: tuple[int, ...]
    keep: int | None = None

    @property
    def low(self) -> int:
        """Smallest offset, not wrapped; of all turns."""
        return self.origin + sum(
            min(0, (n - 1) * s) for n, s in zip(self.counts, self.strides, strict=True)
        )

    @property
    def high(self) -> int:
        """Largest offset, not wrapped; of all turns."""
        return self.origin + sum(
            max(0, (n - 1) * s) for n, s in zip(self.counts, self.strides, strict=True)
        )

    @property
    def dense(self) -> bool:
        """Whether the offsets, in C order, are consecutive."""
        expected = 1
        for count, stride in zip(reversed(self.counts), reversed(self.strides), strict=True):
            if count > 1 and stride != expected:
                return False
            expected *= count
        return True

    def moved(self, distance: int) -> Lattice:
        """The same pattern elsewhere."""
        return self._replace(origin=self.origin + distance)

    def offsets(self) -> Int64:
        """All offsets, not wrapped, one dimension per loop."""
        _check_points(self.counts)
        offsets = np.full((), self.origin, np.int64)
        for count, stride in zip(self.counts, self.strides, strict=True):
            offsets = offsets[..., None] + np.arange(count, dtype=np.int64) * stride
        return offsets if self.keep is None else kept(offsets, self.keep)

    def view(self, memory: Int8) -> Int8:
        """The bytes at the offsets, where none wraps and all lie within the memory."""
        return np.ndarray(self.counts, np.int8, memory, offset=self.origin, strides=self.strides)


def locate(memory: Int8, lattice: Lattice, modulus: int, *, fast: bool) -> Place:
    """The place of a lattice of bytes.

    Raises
    ------
    Fault
        ADDRESS_RANGE where a byte is outside the memory.
    """
    size = memory.size
    if lattice.keep is None:
        low, high = lattice.low, lattice.high
        if low % modulus >= size or high % modulus >= size:
            raise Fault(ErrorCause.ADDRESS_RANGE)
        if fast and low >= 0 and high < size:
            _check_points(lattice.counts)
            return Strided(lattice.view(memory))
    index = lattice.offsets() % modulus
    if (index >= size).any():
        raise Fault(ErrorCause.ADDRESS_RANGE)
    return Indexed(memory, index)


def kept(values: npt.NDArray[Number], keep: int) -> npt.NDArray[Number]:
    """The first `keep` turns of the first three loops, as one loop."""
    return values.reshape(-1, *values.shape[3:])[:keep]


class Streamed(NamedTuple):
    """The streamed operand A: loops n, y, x, ky, kx, j with row and column bounds.

    Offsets are base + n*sn + yq + xq with the row offset yq = y0 + y*sy + ky*ty and the column
    offset xq = x0 + x*sx + kx*tx + j; outside 0 <= yq < hb, 0 <= xq < wb the operand is `pad`.
    `keep` is that of `Lattice`.
    """

    base: int
    counts: tuple[int, int, int, int, int, int]
    sn: int
    sy: int
    sx: int
    ty: int
    tx: int
    y0: int
    x0: int
    hb: int
    wb: int
    pad: int
    keep: int | None = None

    @property
    def rows(self) -> Lattice:
        """The row offsets, loops y and ky."""
        return Lattice(self.y0, (self.counts[1], self.counts[3]), (self.sy, self.ty))

    @property
    def columns(self) -> Lattice:
        """The column offsets, loops x, kx and j."""
        return Lattice(
            self.x0, (self.counts[2], self.counts[4], self.counts[5]), (self.sx, self.tx, 1)
        )

    @property
    def whole(self) -> Lattice:
        """All offsets, as they are without bounds."""
        return Lattice(
            self.base + self.y0 + self.x0,
            self.counts,
            (self.sn, self.sy, self.sx, self.ty, self.tx, 1),
        )


def locate_streamed(memory: Int8, a: Streamed, modulus: int, *, fast: bool) -> Place:
    """The place of a streamed operand.

    Raises
    ------
    Fault
        ADDRESS_RANGE where a byte within the bounds is outside the memory.
    """
    half = modulus // 2
    rows, columns = a.rows, a.columns
    wraps = any(line.low < -half or line.high >= half for line in (rows, columns))
    if fast and not wraps and a.keep is None:
        if rows.low >= 0 and rows.high < a.hb and columns.low >= 0 and columns.high < a.wb:
            return locate(memory, a.whole, modulus, fast=fast)
        needed = _extremes(a)
        if needed is None:
            _check_points(a.counts)
            return Strided(np.broadcast_to(np.int8(a.pad), a.counts))
        if any(extreme % modulus >= memory.size for extreme in needed):
            raise Fault(ErrorCause.ADDRESS_RANGE)
        if needed[0] >= 0 and needed[1] < memory.size:
            canvas = _canvas(memory, a)
            if canvas is not None:
                return canvas
    return _streamed_indices(memory, a, modulus)


def _extremes(a: Streamed) -> tuple[int, int] | None:
    """Smallest and largest needed offset, not wrapped; None where none is needed."""
    yq = a.rows.offsets()
    yq = yq[(yq >= 0) & (yq < a.hb)]
    start = Lattice(a.x0, a.columns.counts[:2], a.columns.strides[:2]).offsets()
    first = np.maximum(start, 0)
    last = np.minimum(start + (a.counts[5] - 1), a.wb - 1)
    some = first <= last
    if not yq.size or not some.any():
        return None
    images = (a.counts[0] - 1) * a.sn
    return (
        a.base + min(0, images) + int(yq.min()) + int(first[some].min()),
        a.base + max(0, images) + int(yq.max()) + int(last[some].max()),
    )


def _canvas(memory: Int8, a: Streamed) -> Canvas | None:
    """A padded copy of each image, with one row per row offset; None where it does not pay."""
    rows, columns = a.rows, a.columns
    steps = [s for n, s in zip(rows.counts, rows.strides, strict=True) if n > 1]
    pitch = gcd(*steps) or 1
    height = (rows.high - rows.low) // pitch + 1
    width = columns.high - columns.low + 1
    images = a.counts[0]
    if images * height * width > 4 * prod(a.counts) + (1 << 16):
        return None
    top, left = max(0, -(rows.low // pitch)), max(0, -columns.low)
    bottom = max(top, min(height, (a.hb - 1 - rows.low) // pitch + 1))
    right = max(left, min(width, a.wb - columns.low))
    source = Lattice(
        a.base + rows.low + top * pitch + columns.low + left,
        (images, bottom - top, right - left),
        (a.sn, pitch, 1),
    )
    if prod(source.counts) == 0 or source.low < 0 or source.high >= memory.size:
        return None
    buffer = np.full(images * height * width, a.pad, np.int8)
    inside = buffer.reshape(images, height, width)[:, top:bottom, left:right]
    view = Lattice(
        (a.y0 - rows.low) // pitch * width + a.x0 - columns.low,
        a.counts,
        (height * width, a.sy // pitch * width, a.sx, a.ty // pitch * width, a.tx, 1),
    )
    if view.low < 0 or view.high >= buffer.size:
        return None
    return Canvas(source.view(memory), inside, view.view(buffer))


def _streamed_indices(memory: Int8, a: Streamed, modulus: int) -> Indexed:
    """The general case, straight from the definition."""
    _check_points(a.counts)
    half = modulus // 2

    def signed(values: Int64) -> Int64:
        return (values + half) % modulus - half

    yq = signed(a.rows.offsets())[None, :, None, :, None, None]
    xq = signed(a.columns.offsets())[None, None, :, None, :, :]
    images = (np.arange(a.counts[0], dtype=np.int64) * a.sn)[:, None, None, None, None, None]
    valid = np.broadcast_to((yq >= 0) & (yq < a.hb) & (xq >= 0) & (xq < a.wb), a.counts)
    index = (a.base + images + yq + xq) % modulus
    if a.keep is not None:
        valid, index = kept(valid, a.keep), kept(index, a.keep)
    if (valid & (index >= memory.size)).any():
        raise Fault(ErrorCause.ADDRESS_RANGE)
    return Indexed(memory, index, valid, a.pad)
