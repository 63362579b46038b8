"""Convolution, pooling and their gradients in real numbers, in any floating-point type.

What the float32 twin and the calibration compute with. Images are (N, H, W, C), as in the machine's
memory; weights of a convolution are [ky][kx][in][out], of a depthwise one [ky][kx][c]. Products go
to BLAS as matrices, whose rows are windows copied out of the image in portions that stay in the
cache. On dequantised int8 values in double precision every sum is exact, whatever its order.

Ref: SAME padding as in TensorFlow: what is odd goes to the bottom and to the right.
Ref: average pooling divides by a power of two, as the machine does (see `average_pool`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Real: TypeAlias = npt.NDArray[np.floating[Any]]
Pair: TypeAlias = tuple[int, int]
Padding: TypeAlias = str | tuple[Pair, Pair]
"""SAME, VALID, or ((top, bottom), (left, right))."""

SAME, VALID = "same", "valid"
PADDINGS = (SAME, VALID)
PORTION = 1 << 20
"""Elements of a matrix of windows at a time."""


class Window(NamedTuple):
    """How windows lie on an image: pairs of (vertical, horizontal).

    Attributes
    ----------
    kernel : (int, int)
    stride : (int, int)
    before : (int, int)
        Rows and columns of padding at the top and at the left.
    out : (int, int)
        Number of windows.
    """

    kernel: Pair
    stride: Pair
    before: Pair
    out: Pair

    def after(self, size: Pair) -> Pair:
        """Rows and columns of padding at the bottom and at the right of an image."""
        y, x = (
            max(0, (o - 1) * s + k - b - n)
            for o, s, k, b, n in zip(
                self.out, self.stride, self.kernel, self.before, size, strict=True
            )
        )
        return y, x

    @property
    def taps(self) -> int:
        """Positions of a window."""
        return self.kernel[0] * self.kernel[1]


def window(size: Pair, kernel: Pair, stride: Pair = (1, 1), padding: Padding = SAME) -> Window:
    """The windows on an image of a size.

    With `same` there are ceil(size / stride) of them, and padding as needed; with `valid`, or
    padding in numbers, as many as lie within the padded image: none, where it is smaller than the
    kernel.
    """
    before: list[int] = []
    out: list[int] = []
    for axis, (n, k, s) in enumerate(zip(size, kernel, stride, strict=True)):
        if padding == SAME:
            count = -(-n // s)
            before.append(max(0, (count - 1) * s + k - n) // 2)
        else:
            first, last = (0, 0) if isinstance(padding, str) else padding[axis]
            count = max(0, (n + first + last - k) // s + 1)
            before.append(first)
        out.append(count)
    return Window(kernel, stride, (before[0], before[1]), (out[0], out[1]))


def pooling_shift(count: int) -> int:
    """j of the average of `count` values, which is their sum / 2**j: ceil(log2 count)."""
    return (count - 1).bit_length()


# --- windows -------------------------------------------------------------------------------------


def _padded(x: Real, w: Window) -> Real:
    """An image with its padding; itself where there is none."""
    (top, left), (bottom, right) = w.before, w.after((x.shape[1], x.shape[2]))
    if not (top or left or bottom or right):
        return x
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))


def _tap(x: Real, w: Window, ky: int, kx: int) -> Real:
    """The pixels of a padded image that one position of all windows sees, as a view."""
    (sy, sx), (oy, ox) = w.stride, w.out
    return x[:, ky : ky + (oy - 1) * sy + 1 : sy, kx : kx + (ox - 1) * sx + 1 : sx]


def _taps(w: Window) -> Iterator[Pair]:
    """The positions of a window, row by row."""
    return ((ky, kx) for ky in range(w.kernel[0]) for kx in range(w.kernel[1]))


def _windows(x: Real, w: Window) -> Real:
    """All windows of a padded image as a view (N, oy, ox, ky, kx, C)."""
    n, _, _, c = x.shape
    s = x.strides
    return np.lib.stride_tricks.as_strided(
        x,
        (n, *w.out, *w.kernel, c),
        (s[0], s[1] * w.stride[0], s[2] * w.stride[1], s[1], s[2], s[3]),
        writeable=False,
    )


def _portions(x: Real, w: Window) -> Iterator[slice]:
    """Samples whose matrices of windows have a moderate size."""
    each = w.out[0] * w.out[1] * w.taps * x.shape[3]
    step = max(1, PORTION // max(1, each))
    return (slice(start, start + step) for start in range(0, len(x), step))


def _matrix(x: Real, w: Window) -> Real:
    """Windows of a padded image as rows; without a copy where a window is a pixel."""
    if w.kernel == (1, 1) and w.stride == (1, 1):
        return x.reshape(-1, x.shape[3])
    return _windows(x, w).reshape(-1, w.taps * x.shape[3])


def _unpadded(x: Real, size: Pair, w: Window) -> Real:
    (top, left), (height, width) = w.before, size
    return x[:, top : top + height, left : left + width]


def _spread_shape(x: Real, w: Window) -> tuple[int, ...]:
    """The shape of a padded image."""
    n, height, width, c = x.shape
    bottom, right = w.after((height, width))
    return n, w.before[0] + height + bottom, w.before[1] + width + right, c


# --- convolution ---------------------------------------------------------------------------------


def conv(x: Real, w: Real, b: Real, windows: Window) -> Real:
    """Convolution: y[n, y, x, o] = b[o] + sum of window times w[:, :, :, o]."""
    matrix, padded = w.reshape(-1, w.shape[-1]), _padded(x, windows)
    y = np.empty((len(x), *windows.out, w.shape[-1]), np.result_type(x, w))
    for part in _portions(x, windows):
        np.matmul(_matrix(padded[part], windows), matrix, out=y[part].reshape(-1, matrix.shape[1]))
    y += b
    return y


def conv_gradient(x: Real, w: Real, dy: Real, windows: Window) -> tuple[Real, Real, Real]:
    """dx, dw and db of a convolution for dy, summed over the batch."""
    matrix, padded = w.reshape(-1, w.shape[-1]), _padded(x, windows)
    flat = dy.reshape(-1, dy.shape[-1])
    dw = np.zeros(matrix.shape, np.result_type(x, dy))
    for part in _portions(x, windows):
        dw += _matrix(padded[part], windows).T @ dy[part].reshape(-1, dy.shape[-1])
    if windows.kernel == (1, 1) and windows.stride == (1, 1):
        dx = (flat @ matrix.T).reshape(x.shape)
    else:
        dx = _conv_dx(x, w, dy, windows)
    return dx, dw.reshape(w.shape), flat.sum(axis=0)


def _conv_dx(x: Real, w: Real, dy: Real, windows: Window) -> Real:
    """dx: at stride 1 a convolution of dy by the turned kernel, else the taps one by one."""
    (ky, kx), (height, width) = windows.kernel, (x.shape[1], x.shape[2])
    if windows.stride == (1, 1):
        before = (ky - 1 - windows.before[0], kx - 1 - windows.before[1])
        if min(before) >= 0:
            turned = np.ascontiguousarray(w[::-1, ::-1].transpose(0, 1, 3, 2))
            back = Window(windows.kernel, (1, 1), before, (height, width))
            return conv(dy, turned, np.zeros_like(w[0, 0, :, 0]), back)
    dx = np.zeros(_spread_shape(x, windows), np.result_type(w, dy))
    flat = dy.reshape(-1, dy.shape[-1])
    shape = (len(x), *windows.out, w.shape[2])
    for y, x_ in _taps(windows):
        _tap(dx, windows, y, x_)[...] += (flat @ w[y, x_].T).reshape(shape)
    return _unpadded(dx, (height, width), windows)


# --- depthwise convolution -----------------------------------------------------------------------


def depthwise(x: Real, w: Real, b: Real, windows: Window) -> Real:
    """Depthwise convolution: every channel by its own kernel."""
    padded = _padded(x, windows)
    y = np.empty((len(x), *windows.out, w.shape[-1]), np.result_type(x, w))
    y[...] = b
    part = np.empty_like(y)
    for ky, kx in _taps(windows):
        np.multiply(_tap(padded, windows, ky, kx), w[ky, kx], out=part)
        y += part
    return y


def depthwise_gradient(x: Real, w: Real, dy: Real, windows: Window) -> tuple[Real, Real, Real]:
    """dx, dw and db of a depthwise convolution for dy, summed over the batch."""
    padded = _padded(x, windows)
    dw = np.empty(w.shape, np.result_type(x, dy))
    dx = np.zeros(_spread_shape(x, windows), np.result_type(w, dy))
    part = np.empty_like(dy)
    ones = np.ones(dy.size // dy.shape[-1], dy.dtype)
    for ky, kx in _taps(windows):
        np.multiply(_tap(padded, windows, ky, kx), dy, out=part)
        np.matmul(ones, part.reshape(-1, dy.shape[-1]), out=dw[ky, kx])
        np.multiply(dy, w[ky, kx], out=part)
        _tap(dx, windows, ky, kx)[...] += part
    size = (x.shape[1], x.shape[2])
    return _unpadded(dx, size, windows), dw, ones @ dy.reshape(-1, dy.shape[-1])


# --- pooling -------------------------------------------------------------------------------------


def max_pool(x: Real, windows: Window) -> Real:
    """The largest value of every window, by channel."""
    y = np.full((len(x), *windows.out, x.shape[3]), -np.inf, x.dtype)
    for ky, kx in _taps(windows):
        np.maximum(y, _tap(x, windows, ky, kx), out=y)
    return y


def max_pool_gradient(x: Real, dy: Real, windows: Window) -> Real:
    """dx of max pooling: dy goes to the first of the largest values, row by row."""
    y = max_pool(x, windows)
    dx = np.zeros(x.shape, dy.dtype)
    free = np.ones(y.shape, bool)
    for ky, kx in _taps(windows):
        here = free & (_tap(x, windows, ky, kx) == y)
        _tap(dx, windows, ky, kx)[...] += here * dy
        free &= ~here
    return dx


def average_pool(x: Real, windows: Window) -> Real:
    """The sum of every window of n values / 2**ceil(log2 n), by channel.

    The mean where n is a power of two; else smaller by a constant factor above one half, which
    the next layer's weights learn.
    """
    return np.ldexp(_windows(x, windows).sum(axis=(3, 4)), -pooling_shift(windows.taps))


def average_pool_gradient(x: Real, dy: Real, windows: Window) -> Real:
    """dx of average pooling."""
    dx = np.zeros(x.shape, dy.dtype)
    each = np.ldexp(dy, -pooling_shift(windows.taps))
    for ky, kx in _taps(windows):
        _tap(dx, windows, ky, kx)[...] += each
    return dx
