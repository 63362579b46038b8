"""Depthwise convolution: every channel by its own kernel; weights stored [ky][kx][channel]."""

from __future__ import annotations

import dataclasses
from math import prod

from gradiron.arch.isa import BMode, Pass
from gradiron.errors import ModelError
from gradiron.operations.layers import (
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
from gradiron.operations.windows import result, spread, streamed, windows
from gradiron.reals import depthwise, depthwise_gradient, window


def _shape(layer: Layer, inputs: tuple[Shape, ...]) -> Shape:
    height, width, channels = image_input(layer, inputs)
    check_kernel(layer)
    if layer.units not in (0, channels):
        raise ModelError(
            f"layer {layer.name!r}: a depthwise convolution has as many outputs as inputs, "
            f"{channels}; {layer.units} units are not possible (leave `units` away)"
        )
    check_columns(layer, channels)
    out = window((height, width), layer.kernel, layer.stride, layer.padding).out
    if not all(out):
        raise ModelError(
            f"layer {layer.name!r}: no window of {layer.kernel} lies within the image of "
            f"{height} x {width}; use padding 'same' or a smaller kernel"
        )
    return (*out, channels)


def _parameters(layer: Layer, inputs: tuple[Shape, ...]) -> ParameterShape:
    channels = image_input(layer, inputs)[2]
    return ParameterShape((*layer.kernel, channels), channels, prod(layer.kernel))


def _product(site: Site, pass_: Pass) -> Product:
    layer, x = site.layer, site.x
    w = windows(layer, x)
    return Product(
        layer.name,
        pass_,
        streamed(x.tensor, x, w),
        Stationary("", 0),
        Result("", 0),
        (),
        j=1,
        columns=x.shape[2],
        images=site.batch,
        y=w.out[0],
        x=w.out[1],
        taps_y=layer.kernel[0],
        taps_x=layer.kernel[1],
        pad=layer.pad,
    )


def _forward(site: Site) -> tuple[Product, ...]:
    p, x, y = site.p, site.x, site.y
    channels = x.shape[2]
    row = site.layer.kernel[1] * channels
    product = dataclasses.replace(
        _product(site, Pass.FORWARD),
        b=Stationary(p.high, channels, BMode.DIAGONAL, tap_y=row, tap_x=channels),
        o=result(y.tensor, y),
        exponents=(x.exponent, p.exponent, y.exponent),
    )
    return (finish_forward(product, site),)


def _dx(site: Site, into: Gradient) -> tuple[Product, ...]:
    return finish_dx(spread(site, into, BMode.DIAGONAL, 1, site.x.shape[2]), into)


def _dw(site: Site) -> tuple[Product, ...]:
    p, x, y = site.p, site.x, site.y
    channels = x.shape[2]
    product = dataclasses.replace(
        _product(site, Pass.DW),
        b=Stationary(y.gradient, channels, BMode.DIAGONAL),
        o=Result(
            p.high,
            step0=channels,
            step1=channels,
            step2=site.layer.kernel[1] * channels,
            low=p.low,
        ),
        exponents=(x.exponent, y.gradient_exponent, p.exponent),
    )
    return finish_dw(product, site)


def _compute(layer: Layer, xs: tuple[Real, ...], w: Real, b: Real) -> Real:
    (x,) = xs
    size = (x.shape[1], x.shape[2])
    return depthwise(x, w, b, window(size, layer.kernel, layer.stride, layer.padding))


def _gradient(
    layer: Layer, xs: tuple[Real, ...], w: Real, dy: Real
) -> tuple[tuple[Real, ...], Real, Real]:
    (x,) = xs
    size = (x.shape[1], x.shape[2])
    found = window(size, layer.kernel, layer.stride, layer.padding)
    dx, dw, db = depthwise_gradient(x, w, dy, found)
    return (dx,), dw, db


DEPTHWISE = Operation(
    shape=_shape,
    parameters=_parameters,
    forward=_forward,
    dx=_dx,
    dw=_dw,
    compute=_compute,
    gradient=_gradient,
)
