"""Convolution: weights stored [ky][kx][in][out]; no copy of windows exists anywhere."""

from __future__ import annotations

import dataclasses
from math import prod

from gradiron.arch.isa import BMode, Pass
from gradiron.arch.numerics import MAX_REDUCTION
from gradiron.errors import ModelError
from gradiron.operations.layers import (
    MAX_COUNT,
    Gradient,
    Layer,
    ParameterShape,
    Real,
    Shape,
    Site,
    check_columns,
    check_kernel,
    image_input,
)
from gradiron.operations.passes import finish_dw, finish_dx, finish_forward
from gradiron.operations.products import Product, Result, Stationary
from gradiron.operations.table import Operation
from gradiron.operations.windows import one_row, result, spread, streamed, windows
from gradiron.reals import conv, conv_gradient, window


def _shape(layer: Layer, inputs: tuple[Shape, ...]) -> Shape:
    height, width, channels = image_input(layer, inputs)
    check_kernel(layer)
    for what, size in (("input channels", channels), ("units", layer.units)):
        if not 1 <= size <= MAX_COUNT:
            raise ModelError(
                f"layer {layer.name!r} has {size} {what}; a convolution has 1 to {MAX_COUNT}"
            )
    check_columns(layer, layer.units)
    out = window((height, width), layer.kernel, layer.stride, layer.padding).out
    if not all(out):
        raise ModelError(
            f"layer {layer.name!r}: no window of {layer.kernel} lies within the image of "
            f"{height} x {width}; use padding 'same' or a smaller kernel"
        )
    reduction = prod(layer.kernel) * max(channels, layer.units)
    if reduction > MAX_REDUCTION:
        raise ModelError(
            f"layer {layer.name!r} sums up {reduction} products; an accumulator holds "
            f"{MAX_REDUCTION}; use fewer channels or a smaller kernel"
        )
    return (*out, layer.units)


def _parameters(layer: Layer, inputs: tuple[Shape, ...]) -> ParameterShape:
    channels = image_input(layer, inputs)[2]
    return ParameterShape(
        (*layer.kernel, channels, layer.units), layer.units, prod(layer.kernel) * channels
    )


def _product(site: Site, pass_: Pass) -> Product:
    """Windows of x times something: what forward and dW share."""
    layer, x = site.layer, site.x
    height, width, channels, pixel = x.image
    w = windows(layer, x)
    a = streamed(x.tensor, x, w)
    product = Product(
        layer.name,
        pass_,
        a,
        Stationary("", 0),
        Result("", 0),
        (),
        j=channels,
        columns=layer.units,
        images=site.batch,
        y=w.out[0],
        x=w.out[1],
        taps_y=layer.kernel[0],
        taps_x=layer.kernel[1],
        pad=layer.pad,
    )
    if x.row_pitch:
        # Pixels begin at odd offsets, windows at even ones: a row of taps can only be one tap.
        row = layer.kernel[1] * channels
        return dataclasses.replace(product, taps_x=1, j=row)
    if layer.kernel == layer.stride == (1, 1) and one_row(site.batch, x):
        pixels = site.batch * height * width
        a = dataclasses.replace(a, columns=pixels * pixel, rows=1)
        product = dataclasses.replace(product, a=a, images=1, y=1, x=pixels)
    return product


def _forward(site: Site) -> tuple[Product, ...]:
    p, x, y = site.p, site.x, site.y
    tap = x.shape[2] * y.shape[2]
    product = dataclasses.replace(
        _product(site, Pass.FORWARD),
        b=Stationary(p.high, y.shape[2], tap_y=site.layer.kernel[1] * tap, tap_x=tap),
        o=result(y.tensor, y, low=y.low),
        exponents=(x.exponent, p.exponent, y.exponent),
    )
    return (finish_forward(product, site),)


def _dx(site: Site, into: Gradient) -> tuple[Product, ...]:
    x, y = site.x, site.y
    channels, units = x.shape[2], y.shape[2]
    products = spread(site, into, BMode.COLUMNS, units, channels * units)
    if site.layer.kernel == site.layer.stride == (1, 1) and one_row(site.batch, x):
        (product,) = products
        a = dataclasses.replace(product.a, columns=site.batch * y.pitch, rows=1)
        pixels = product.pixels
        products = [dataclasses.replace(product, a=a, images=1, y=1, x=pixels)]
    return finish_dx(products, into)


def _dw(site: Site) -> tuple[Product, ...]:
    p, x, y = site.p, site.x, site.y
    channels, units = x.shape[2], y.shape[2]
    product = dataclasses.replace(
        _product(site, Pass.DW),
        b=Stationary(y.gradient, units),
        o=Result(
            p.high,
            step0=units,
            step1=channels * units,
            step2=site.layer.kernel[1] * channels * units,
            low=p.low,
        ),
        exponents=(x.exponent, y.gradient_exponent, p.exponent),
    )
    return finish_dw(product, site)


def _compute(layer: Layer, xs: tuple[Real, ...], w: Real, b: Real) -> Real:
    (x,) = xs
    size = (x.shape[1], x.shape[2])
    return conv(x, w, b, window(size, layer.kernel, layer.stride, layer.padding))


def _gradient(
    layer: Layer, xs: tuple[Real, ...], w: Real, dy: Real
) -> tuple[tuple[Real, ...], Real, Real]:
    (x,) = xs
    size = (x.shape[1], x.shape[2])
    found = window(size, layer.kernel, layer.stride, layer.padding)
    dx, dw, db = conv_gradient(x, w, dy, found)
    return (dx,), dw, db


CONV = Operation(
    shape=_shape,
    parameters=_parameters,
    forward=_forward,
    dx=_dx,
    dw=_dw,
    compute=_compute,
    gradient=_gradient,
)
