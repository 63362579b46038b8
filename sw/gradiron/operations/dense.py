"""Dense layers, y = x w + b with weights stored [in, out], and flatten."""

from __future__ import annotations

from math import prod

from gradiron.arch.isa import BMode, Pass
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
    one_input,
)
from gradiron.operations.passes import finish_dw, finish_dx, finish_forward
from gradiron.operations.products import Product, Result, Stationary, Streamed
from gradiron.operations.table import Operation


def _shape(layer: Layer, inputs: tuple[Shape, ...]) -> Shape:
    shape = one_input(layer, inputs)
    if len(shape) != 1:
        raise ModelError(
            f"layer {layer.name!r}: dense needs a flat input, it gets the shape {shape}; "
            "put a flatten before it"
        )
    for what, size in (("inputs", shape[0]), ("units", layer.units)):
        if not 1 <= size <= MAX_COUNT:
            raise ModelError(
                f"layer {layer.name!r} has {size} {what}; a dense layer has 1 to {MAX_COUNT}"
            )
    check_columns(layer, layer.units)
    return (layer.units,)


def _parameters(layer: Layer, inputs: tuple[Shape, ...]) -> ParameterShape:
    features = one_input(layer, inputs)[0]
    return ParameterShape((features, layer.units), layer.units, features)


def _forward(site: Site) -> tuple[Product, ...]:
    p, x, y = site.p, site.x, site.y
    product = Product(
        site.layer.name,
        Pass.FORWARD,
        Streamed(x.tensor, columns=site.batch * x.pitch, x=x.pitch),
        Stationary(p.high, y.size),
        Result(y.tensor, step0=y.pitch, low=y.low),
        (x.exponent, p.exponent, y.exponent),
        x=site.batch,
        j=x.size,
        columns=y.size,
    )
    return (finish_forward(product, site),)


def _dx(site: Site, into: Gradient) -> tuple[Product, ...]:
    p, x, y = site.p, site.x, site.y
    product = Product(
        site.layer.name,
        Pass.DX,
        Streamed(y.gradient, columns=site.batch * y.pitch, x=y.pitch),
        Stationary(p.high, y.size, BMode.COLUMNS),
        Result(into.tensor, step0=x.pitch),
        (y.gradient_exponent, p.exponent, into.exponent),
        x=site.batch,
        j=y.size,
        columns=x.size,
    )
    return finish_dx([product], into)


def _dw(site: Site) -> tuple[Product, ...]:
    p, x, y = site.p, site.x, site.y
    product = Product(
        site.layer.name,
        Pass.DW,
        Streamed(x.tensor, columns=site.batch * x.pitch, x=x.pitch),
        Stationary(y.gradient, y.pitch),
        Result(p.high, step0=y.size, low=p.low),
        (x.exponent, y.gradient_exponent, p.exponent),
        x=site.batch,
        j=x.size,
        columns=y.size,
    )
    return finish_dw(product, site)


def _compute(layer: Layer, xs: tuple[Real, ...], w: Real, b: Real) -> Real:
    del layer
    return xs[0] @ w + b


def _gradient(
    layer: Layer, xs: tuple[Real, ...], w: Real, dy: Real
) -> tuple[tuple[Real, ...], Real, Real]:
    del layer
    return (dy @ w.T,), xs[0].T @ dy, dy.sum(axis=0)


DENSE = Operation(
    shape=_shape,
    parameters=_parameters,
    forward=_forward,
    dx=_dx,
    dw=_dw,
    compute=_compute,
    gradient=_gradient,
)


# flatten: the same bytes under another shape


def _flatten_shape(layer: Layer, inputs: tuple[Shape, ...]) -> Shape:
    return (prod(one_input(layer, inputs)),)


def _flatten_compute(layer: Layer, xs: tuple[Real, ...], w: Real, b: Real) -> Real:
    del layer, w, b
    return xs[0].reshape(len(xs[0]), -1)


def _flatten_gradient(
    layer: Layer, xs: tuple[Real, ...], w: Real, dy: Real
) -> tuple[tuple[Real, ...], Real, Real]:
    del layer
    return (dy.reshape(xs[0].shape),), w, w


FLATTEN = Operation(shape=_flatten_shape, compute=_flatten_compute, gradient=_flatten_gradient)
