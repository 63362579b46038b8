"""Addition of two values of the same shape: residual connections, and sums of gradients."""

from __future__ import annotations

from gradiron.arch.isa import BMode, Pass, Scale, Track
from gradiron.arch.numerics import Rounding
from gradiron.errors import ModelError
from gradiron.operations.layers import MAX_COUNT, Gradient, Layer, Real, Shape, Site, Value
from gradiron.operations.products import Product, Result, Stationary, Streamed, constant
from gradiron.operations.table import Operation


def _shape(layer: Layer, inputs: tuple[Shape, ...]) -> Shape:
    name = f"layer {layer.name!r}"
    if len(inputs) != 2:
        raise ModelError(f"{name}: add has two inputs, {len(inputs)} are given")
    if layer.inputs[0] == layer.inputs[1]:
        raise ModelError(f"{name} adds {layer.inputs[0]!r} to itself; give it two inputs")
    if inputs[0] != inputs[1]:
        raise ModelError(
            f"{name}: inputs of the shapes {inputs[0]} and {inputs[1]} cannot be added"
        )
    return inputs[0]


def _constants(layer: Layer, inputs: tuple[Shape, ...]) -> tuple[int, ...]:
    del layer, inputs
    return (0,)


def _elements(batch: int, value: Value) -> tuple[int, int]:
    """All elements of a batch as pixels x columns: columns are channels, or more of them."""
    channels = value.shape[-1]
    pixels = batch * value.size // channels
    while pixels > MAX_COUNT and pixels % 2 == 0:
        pixels, channels = pixels // 2, channels * 2
    return pixels, channels


def _forward(site: Site) -> tuple[Product, ...]:
    one, other = site.xs
    pixels, columns = _elements(site.batch, one)
    product = Product(
        site.layer.name,
        Pass.FORWARD,
        Streamed(one.tensor, columns=pixels * columns, x=columns),
        Stationary("", 0, BMode.IDENTITY),
        Result(site.y.tensor, step0=columns),
        (one.exponent, constant(0), site.y.exponent, other.exponent),
        j=1,
        columns=columns,
        x=pixels,
        rounding=Rounding.TFLITE,
        relu=site.relu,
        track=Track.TRACK if site.train else Track.NONE,
        skip=other.tensor,
    )
    return (product,)


def gradient_sum(
    layer: str, batch: int, value: Value, operand: str, exponent: str, into: Gradient
) -> Product:
    """A gradient that passes an addition: masked, or added to an earlier one.

    Parameters
    ----------
    layer : str
        The addition.
    batch : int
    value : Value
        What the gradient is of.
    operand, exponent : str
        The gradient's tensor and its entry.
    into : Gradient
    """
    pixels, columns = _elements(batch, value)
    exponents = (exponent, constant(0), into.exponent)
    return Product(
        layer,
        Pass.DX,
        Streamed(operand, columns=pixels * columns, x=columns),
        Stationary("", 0, BMode.IDENTITY),
        Result(into.tensor, step0=columns),
        (*exponents, into.skip_exponent) if into.skip else exponents,
        j=1,
        columns=columns,
        x=pixels,
        rounding=Rounding.STOCHASTIC,
        mask=into.mask,
        skip=into.skip,
        scale=Scale.TRACKER if into.skip else Scale.OPERAND,
        track=Track.TRACK if into.skip else Track.NONE,
    )


def _compute(layer: Layer, xs: tuple[Real, ...], w: Real, b: Real) -> Real:
    del layer, w, b
    return xs[0] + xs[1]


def _gradient(
    layer: Layer, xs: tuple[Real, ...], w: Real, dy: Real
) -> tuple[tuple[Real, ...], Real, Real]:
    del layer, xs
    return (dy, dy), w, w


ADD = Operation(
    shape=_shape,
    constants=_constants,
    forward=_forward,
    sum=True,
    compute=_compute,
    gradient=_gradient,
)
