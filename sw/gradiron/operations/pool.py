"""Maximum and average of windows that lie side by side, or of a whole image."""

from __future__ import annotations

import dataclasses
from math import prod

from gradiron.arch.isa import BMode, Out, Pass, Scale, Track
from gradiron.arch.numerics import Rounding
from gradiron.errors import ModelError
from gradiron.operations.layers import (
    MAX_POOL_TAPS,
    Gradient,
    Layer,
    Pair,
    Real,
    Shape,
    Site,
    image_input,
)
from gradiron.operations.products import Product, Result, Stationary, Streamed, constant
from gradiron.operations.table import Operation
from gradiron.operations.windows import fill, rest, result, streamed
from gradiron.reals import (
    VALID,
    Window,
    average_pool,
    average_pool_gradient,
    max_pool,
    max_pool_gradient,
    pooling_shift,
    window,
)

WHOLE = (0, 0)
"""The kernel that stands for the whole image."""
MAX_WINDOW = 255
"""Rows and columns of an average's window: the tap counters have 8 bits."""


def pooling_window(layer: Layer, size: Pair) -> Window:
    """The windows of a pooling layer."""
    kernel = size if layer.kernel == WHOLE else layer.kernel
    return window(size, kernel, kernel, VALID)


def _size(x: Real) -> Pair:
    return x.shape[1], x.shape[2]


def _shape(layer: Layer, inputs: tuple[Shape, ...]) -> Shape:
    height, width, channels = image_input(layer, inputs)
    name, kernel = f"layer {layer.name!r}", layer.kernel
    if kernel != WHOLE and (len(kernel) != 2 or min(kernel) < 1):
        raise ModelError(
            f"{name}: kernel {kernel}; the window is two numbers from 1, or (0, 0) for the whole "
            "image"
        )
    if layer.stride not in ((1, 1), kernel):
        raise ModelError(
            f"{name}: stride {layer.stride} with windows of {kernel}; windows of a pooling layer "
            "lie side by side: leave the stride away"
        )
    if layer.relu:
        raise ModelError(f"{name}: pooling has no ReLU; put it into the layer before")
    w = pooling_window(layer, (height, width))
    if not all(w.out):
        raise ModelError(
            f"{name}: no window of {kernel} lies within the image of {height} x {width}"
        )
    if layer.operation == "max_pool" and w.taps > MAX_POOL_TAPS:
        raise ModelError(
            f"{name}: windows of {w.kernel} have {w.taps} positions; max pooling takes up to "
            f"{MAX_POOL_TAPS}, the argument of the maximum has four bits"
        )
    if max(w.kernel) > MAX_WINDOW:
        raise ModelError(f"{name}: windows of {w.kernel}; at most {MAX_WINDOW} rows and columns")
    return (*w.out, channels)


# maximum


def _max_constants(layer: Layer, inputs: tuple[Shape, ...]) -> tuple[int, ...]:
    del layer, inputs
    return (0,)


def _max_forward(site: Site) -> tuple[Product, ...]:
    x, y = site.x, site.y
    w = pooling_window(site.layer, (x.shape[0], x.shape[1]))
    product = Product(
        site.layer.name,
        Pass.FORWARD,
        streamed(x.tensor, x, w),
        Stationary("", 0, BMode.IDENTITY),
        result(y.tensor, y, low=y.argmax),
        (x.exponent, constant(0), y.exponent),
        j=1,
        columns=x.shape[2],
        images=site.batch,
        y=w.out[0],
        x=w.out[1],
        taps_y=w.kernel[0],
        taps_x=w.kernel[1],
        out=Out.POOLED,
        scale=Scale.OPERAND,
    )
    return (product,)


def _tap_result(site: Site, into: Gradient, w: Window, ky: int, kx: int) -> Result:
    """The pixels of the input that are position (ky, kx) of their window."""
    _, width, _, pixel = site.x.image
    return Result(
        into.tensor,
        step0=w.kernel[1] * pixel,
        step1=w.kernel[0] * width * pixel,
        step2=site.x.pitch,
        offset=(ky * width + kx) * pixel,
    )


def _finish(products: list[Product], into: Gradient, scale: Scale) -> tuple[Product, ...]:
    """Mask, and either the exponent that needs no rounding or the sum with what there is."""
    if not into.skip:
        return tuple(dataclasses.replace(p, mask=into.mask, scale=scale) for p in products)
    found = [
        dataclasses.replace(
            p, mask=into.mask, skip=into.skip, exponents=(*p.exponents, into.skip_exponent)
        )
        for p in products
    ]
    found[-1] = dataclasses.replace(found[-1], track=Track.TRACK)
    return tuple(found)


def _rest(site: Site, into: Gradient, w: Window, exponents: tuple[str, str, str]) -> list[Product]:
    height, width, _, _ = site.x.image
    covered = (w.out[0] * w.kernel[0], w.out[1] * w.kernel[1])
    return [
        fill(site, site.x, into.tensor, area, site.y.gradient, exponents)
        for area in rest(height, width, covered)
    ]


def _max_dx(site: Site, into: Gradient) -> tuple[Product, ...]:
    x, y = site.x, site.y
    w = pooling_window(site.layer, (x.shape[0], x.shape[1]))
    exponents = (y.gradient_exponent, constant(0), into.exponent)
    row = w.out[1] * y.shape[2]
    products = [
        Product(
            site.layer.name,
            Pass.DX,
            Streamed(
                y.gradient,
                columns=row,
                rows=y.pitch,
                image=y.pitch,
                y=row,
                x=y.shape[2],
            ),
            Stationary(y.argmax, 0, BMode.GATE),
            _tap_result(site, into, w, ky, kx),
            exponents,
            j=1,
            columns=x.shape[2],
            images=site.batch,
            y=w.out[0],
            x=w.out[1],
            gate=15 - (ky * w.kernel[1] + kx),
            rounding=Rounding.STOCHASTIC,
        )
        for ky in range(w.kernel[0])
        for kx in range(w.kernel[1])
    ]
    return _finish([*_rest(site, into, w, exponents), *products], into, Scale.OPERAND)


def _max_compute(layer: Layer, xs: tuple[Real, ...], w: Real, b: Real) -> Real:
    del w, b
    return max_pool(xs[0], pooling_window(layer, _size(xs[0])))


def _max_gradient(
    layer: Layer, xs: tuple[Real, ...], w: Real, dy: Real
) -> tuple[tuple[Real, ...], Real, Real]:
    return (max_pool_gradient(xs[0], dy, pooling_window(layer, _size(xs[0]))),), w, w


MAX_POOL = Operation(
    shape=_shape,
    constants=_max_constants,
    forward=_max_forward,
    dx=_max_dx,
    keeps_sign=True,
    compute=_max_compute,
    gradient=_max_gradient,
)


# average


def _divisor(layer: Layer, height: int, width: int) -> int:
    """The exponent that divides a sum: -ceil(log2 n)."""
    return -pooling_shift(prod(pooling_window(layer, (height, width)).kernel))


def _average_constants(layer: Layer, inputs: tuple[Shape, ...]) -> tuple[int, ...]:
    height, width, _ = image_input(layer, inputs)
    return (_divisor(layer, height, width),)


def _average_forward(site: Site) -> tuple[Product, ...]:
    x, y = site.x, site.y
    w = pooling_window(site.layer, (x.shape[0], x.shape[1]))
    divisor = constant(_divisor(site.layer, x.shape[0], x.shape[1]))
    product = Product(
        site.layer.name,
        Pass.FORWARD,
        streamed(x.tensor, x, w),
        Stationary("", 0, BMode.IDENTITY),
        result(y.tensor, y),
        (x.exponent, divisor, y.exponent),
        j=1,
        columns=x.shape[2],
        images=site.batch,
        y=w.out[0],
        x=w.out[1],
        taps_y=w.kernel[0],
        taps_x=w.kernel[1],
        rounding=Rounding.TFLITE,
        scale=Scale.OPERAND,
    )
    return (product,)


def _average_dx(site: Site, into: Gradient) -> tuple[Product, ...]:
    """One product where an image has one window, else one for each position of the windows."""
    x, y = site.x, site.y
    height, width, channels, pixel = x.image
    w = pooling_window(site.layer, (height, width))
    exponents = (y.gradient_exponent, constant(_divisor(site.layer, height, width)), into.exponent)
    row = w.out[1] * channels
    whole = Product(
        site.layer.name,
        Pass.DX,
        Streamed(y.gradient, columns=row, rows=y.pitch, image=y.pitch),
        Stationary("", 0, BMode.IDENTITY),
        Result(into.tensor, step0=pixel, step1=width * pixel, step2=x.pitch),
        exponents,
        j=1,
        columns=channels,
        images=site.batch,
        y=w.kernel[0],
        x=w.kernel[1],
        rounding=Rounding.STOCHASTIC,
    )
    products = [whole]
    if w.out != (1, 1):
        products = [
            dataclasses.replace(
                whole,
                a=dataclasses.replace(whole.a, y=row, x=channels),
                o=_tap_result(site, into, w, ky, kx),
                y=w.out[0],
                x=w.out[1],
            )
            for ky in range(w.kernel[0])
            for kx in range(w.kernel[1])
        ]
    return _finish([*_rest(site, into, w, exponents), *products], into, Scale.PRODUCT)


def _average_compute(layer: Layer, xs: tuple[Real, ...], w: Real, b: Real) -> Real:
    del w, b
    return average_pool(xs[0], pooling_window(layer, _size(xs[0])))


def _average_gradient(
    layer: Layer, xs: tuple[Real, ...], w: Real, dy: Real
) -> tuple[tuple[Real, ...], Real, Real]:
    return (average_pool_gradient(xs[0], dy, pooling_window(layer, _size(xs[0]))),), w, w


AVERAGE_POOL = Operation(
    shape=_shape,
    constants=_average_constants,
    forward=_average_forward,
    dx=_average_dx,
    compute=_average_compute,
    gradient=_average_gradient,
)
