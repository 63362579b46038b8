"""What a layer can do: one table row per operation, its forward and backward side by side.

`OPERATIONS` maps the name of an operation to its shape rule, its parameters, the machine products
of its three passes (forward, dX, dW with db and the update), and its meaning in real numbers. The
backward pass of a network, its memory plan, its program, the float32 twin and the calibration are
all derived from these rows; an operation that is not in the table does not exist.

Products are *symbolic*: they name tensors instead of addresses and know nothing of a machine's
accumulator depth. `gradiron.compiler` lowers them to instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gradiron.arch.isa import BMode, Out, Pass
from gradiron.arch.numerics import MAX_REDUCTION, Rounding
from gradiron.errors import ModelError

Shape: TypeAlias = tuple[int, ...]
Real: TypeAlias = npt.NDArray[np.floating[Any]]

MAX_COUNT = 65535
"""Largest size of a dense layer: the count registers have 16 bits."""
MAX_CLASSES = 256
"""Labels are bytes."""


@dataclass(frozen=True)
class Layer:
    """A node of a layer graph.

    Parameters
    ----------
    name : str
    operation : str
        A key of `OPERATIONS`.
    inputs : tuple of str
        Names of the layers that feed it; "input" is the network's input.
    units : int
        Outputs of a dense layer.
    relu : bool
        Replace negative results by zero.
    frozen : bool
        Leave the parameters alone: no low plane, no gradient.
    int8_weights : bool
        Keep and update int8 weights without the low plane of the master.
    momentum : bool
        Update with momentum 7/8.
    """

    name: str
    operation: str
    inputs: tuple[str, ...]
    units: int = 0
    relu: bool = False
    frozen: bool = False
    int8_weights: bool = False
    momentum: bool = False


@dataclass(frozen=True)
class ParameterShape:
    """The parameters of a layer: weight shape in memory order, number of biases, fan-in."""

    weight: Shape
    bias: int
    fan_in: int

    @property
    def count(self) -> int:
        """Number of weights."""
        return prod(self.weight)


@dataclass(frozen=True)
class Parameter:
    """Names of the tensors of one layer's parameters; "" where one does not exist."""

    shape: ParameterShape
    exponent: str
    high: str
    low: str
    bias: str
    velocity_high: str
    velocity_low: str
    velocity_bias: str
    out: Out
    """Kind of update."""


@dataclass(frozen=True)
class Value:
    """What flows between layers: a batch of int8 tensors (of the last layer: logits).

    `tensor` and `exponent` name the data, `gradient` and `gradient_exponent` dL/d(data). Views
    (flatten) share all four with what they view. `pitch` is the distance of samples in bytes.
    """

    shape: Shape
    pitch: int
    tensor: str
    exponent: str
    low: str
    gradient: str
    gradient_exponent: str
    relu: bool

    @property
    def size(self) -> int:
        """Elements per sample."""
        return prod(self.shape)


# --- symbolic products ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Streamed:
    """The streamed operand A: which tensor, its bounds and its steps (registers A_*)."""

    tensor: str
    columns: int
    rows: int = 1
    image: int = 0
    y: int = 0
    x: int = 0
    tap_y: int = 0
    tap_x: int = 0
    y0: int = 0
    x0: int = 0


@dataclass(frozen=True)
class Stationary:
    """The stationary operand B (registers B_*)."""

    tensor: str
    pitch: int
    by: BMode = BMode.ROWS
    tap_y: int = 0
    tap_x: int = 0


@dataclass(frozen=True)
class Result:
    """Where the result goes, and its element numbering (registers O_*)."""

    tensor: str
    step0: int
    step1: int = 0
    step2: int = 0
    low: str = ""


@dataclass(frozen=True)
class Product:
    """One MM (or several, where the accumulators are too few), without addresses.

    Parameters
    ----------
    layer : str
    pass_ : Pass
    a, b, o
        Operands and result.
    exponents : (str, str, str)
        Entries of the exponent table: A, B, result.
    j : int
        Contiguous elements per tap.
    columns : int
        Columns of the result.
    images, y, x : int
        Pixels.
    taps_y, taps_x : int
        Taps.
    transposed, out, rounding, relu, track
        Fields of MM.
    bias, mask : str
        Tensors; "" where there is none.
    velocity : (str, str, str)
        Momentum planes and momentum of the biases.
    """

    layer: str
    pass_: Pass
    a: Streamed
    b: Stationary
    o: Result
    exponents: tuple[str, str, str]
    j: int
    columns: int
    images: int = 1
    y: int = 1
    x: int = 1
    taps_y: int = 1
    taps_x: int = 1
    transposed: bool = False
    out: Out = Out.INT8
    rounding: Rounding = Rounding.NEAREST
    relu: bool = False
    track: bool = False
    bias: str = ""
    mask: str = ""
    velocity: tuple[str, str, str] = ("", "", "")

    @property
    def pixels(self) -> int:
        """Number of pixels: rows of a plain product, reduction of a transposed one."""
        return self.images * self.y * self.x

    @property
    def taps(self) -> int:
        """Number of tap elements: reduction of a plain product, rows of a transposed one."""
        return self.taps_y * self.taps_x * self.j

    @property
    def macs(self) -> int:
        """Logical products."""
        return self.pixels * self.taps * self.columns

    @property
    def update(self) -> bool:
        """Whether parameters are updated."""
        return self.out in (Out.MASTER, Out.INT8_WEIGHTS, Out.MOMENTUM)

    @property
    def reads(self) -> tuple[str, ...]:
        """Tensors read."""
        names = [self.a.tensor, self.b.tensor, self.bias, self.mask, *self.velocity]
        if self.update:
            names += [self.o.tensor, self.o.low]
        return tuple(name for name in names if name)

    @property
    def writes(self) -> tuple[str, ...]:
        """Tensors written."""
        names = [self.o.tensor, self.o.low, *self.velocity]
        if self.update:
            names.append(self.bias)
        return tuple(name for name in names if name)


@dataclass(frozen=True)
class LossStep:
    """One LOSS, without addresses: with labels a loss and its gradient, else predictions."""

    batch: int
    classes: int
    high: str
    low: str
    exponents: tuple[str, str, str]
    labels: str = ""
    gradient: str = ""
    predictions: str = ""

    layer: str = "loss"
    pass_: Pass = Pass.OTHER
    macs: int = 0

    @property
    def reads(self) -> tuple[str, ...]:
        """Tensors read."""
        return tuple(name for name in (self.high, self.low, self.labels) if name)

    @property
    def writes(self) -> tuple[str, ...]:
        """Tensors written; with a gradient the probabilities replace the logits."""
        names = [self.gradient, self.predictions]
        if self.gradient:
            names += [self.high, self.low]
        return tuple(name for name in names if name)


@dataclass(frozen=True)
class Site:
    """An operation at its place in a network: what a row of the table gets to see.

    `train` tells the training program from the inference program.
    """

    layer: Layer
    batch: int
    x: Value
    y: Value
    parameter: Parameter | None
    train: bool = True

    @property
    def p(self) -> Parameter:
        """The parameters of an operation that has some."""
        assert self.parameter is not None
        return self.parameter


# --- the rows ------------------------------------------------------------------------------------

ShapeRule: TypeAlias = Callable[[Layer, tuple[Shape, ...]], Shape]
ParameterRule: TypeAlias = Callable[[Layer, tuple[Shape, ...]], ParameterShape]
ProductRule: TypeAlias = Callable[[Site], tuple[Product, ...]]
ComputeRule: TypeAlias = Callable[[Layer, Real, Real, Real], Real]
GradientRule: TypeAlias = Callable[[Layer, Real, Real, Real], tuple[Real, Real, Real]]


@dataclass(frozen=True)
class Operation:
    """A row of the table.

    Attributes
    ----------
    shape
        Shapes of the inputs to the shape of the output, of one sample.
    parameters
        Shapes of weights and biases; None where the operation has none.
    forward, dx, dw
        Machine products of each pass; None for a view.
    compute : (layer, x, w, b) -> y
        The operation in real numbers, without ReLU. x and y have the batch in front.
    gradient : (layer, x, w, dy) -> (dx, dw, db)
        Its gradients, summed over the batch.
    """

    shape: ShapeRule
    compute: ComputeRule
    gradient: GradientRule
    parameters: ParameterRule | None = None
    forward: ProductRule | None = None
    dx: ProductRule | None = None
    dw: ProductRule | None = None

    @property
    def view(self) -> bool:
        """Whether the output is the input under another shape."""
        return self.forward is None


def _one_input(layer: Layer, inputs: tuple[Shape, ...]) -> Shape:
    if len(inputs) != 1:
        raise ModelError(
            f"layer {layer.name!r}: {layer.operation} has one input, {len(inputs)} are given"
        )
    return inputs[0]


# dense: y = x w + b, weights stored [in, out]


def _dense_shape(layer: Layer, inputs: tuple[Shape, ...]) -> Shape:
    shape = _one_input(layer, inputs)
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
    return (layer.units,)


def _dense_parameters(layer: Layer, inputs: tuple[Shape, ...]) -> ParameterShape:
    features = _one_input(layer, inputs)[0]
    return ParameterShape((features, layer.units), layer.units, features)


def _dense_forward(site: Site) -> tuple[Product, ...]:
    p, x, y = site.p, site.x, site.y
    logits = bool(y.low)
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
        out=Out.LOGITS if logits else Out.INT8,
        rounding=Rounding.NEAREST if logits else Rounding.TFLITE,
        relu=site.layer.relu,
        bias=p.bias,
        track=site.train and not logits,
    )
    return (product,)


def _dense_dx(site: Site) -> tuple[Product, ...]:
    p, x, y = site.p, site.x, site.y
    product = Product(
        site.layer.name,
        Pass.DX,
        Streamed(y.gradient, columns=site.batch * y.pitch, x=y.pitch),
        Stationary(p.high, y.size, BMode.COLUMNS),
        Result(x.gradient, step0=x.pitch),
        (y.gradient_exponent, p.exponent, x.gradient_exponent),
        x=site.batch,
        j=y.size,
        columns=x.size,
        rounding=Rounding.STOCHASTIC,
        mask=x.tensor if x.relu else "",
        track=True,
    )
    return (product,)


def _dense_dw(site: Site) -> tuple[Product, ...]:
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
        transposed=True,
        out=p.out,
        rounding=Rounding.STOCHASTIC,
        bias=p.bias,
        velocity=(p.velocity_high, p.velocity_low, p.velocity_bias),
    )
    return (product,)


def _dense_compute(layer: Layer, x: Real, w: Real, b: Real) -> Real:
    del layer
    return x @ w + b


def _dense_gradient(layer: Layer, x: Real, w: Real, dy: Real) -> tuple[Real, Real, Real]:
    del layer
    return dy @ w.T, x.T @ dy, dy.sum(axis=0)


# flatten: the same bytes under another shape


def _flatten_shape(layer: Layer, inputs: tuple[Shape, ...]) -> Shape:
    return (prod(_one_input(layer, inputs)),)


def _flatten_compute(layer: Layer, x: Real, w: Real, b: Real) -> Real:
    del layer, w, b
    return x.reshape(len(x), -1)


def _flatten_gradient(layer: Layer, x: Real, w: Real, dy: Real) -> tuple[Real, Real, Real]:
    del layer
    return dy.reshape(x.shape), w, w


OPERATIONS: dict[str, Operation] = {
    "dense": Operation(
        shape=_dense_shape,
        parameters=_dense_parameters,
        forward=_dense_forward,
        dx=_dense_dx,
        dw=_dense_dw,
        compute=_dense_compute,
        gradient=_dense_gradient,
    ),
    "flatten": Operation(
        shape=_flatten_shape,
        compute=_flatten_compute,
        gradient=_flatten_gradient,
    ),
}


# --- losses --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossRule:
    """A row of the table of losses.

    Attributes
    ----------
    train, infer : (batch, logits) -> LossStep
        The machine's step with labels, and without.
    gradient : (logits, labels) -> (losses, dlogits)
        In real numbers: per sample in bits, and per sample in nats.
    """

    train: Callable[[int, Value], LossStep]
    infer: Callable[[int, Value], LossStep]
    gradient: Callable[[Real, npt.NDArray[np.int64]], tuple[Real, Real]]


LABELS, PREDICTIONS = "labels", "predictions"


def _softmax_train(batch: int, y: Value) -> LossStep:
    return LossStep(
        batch,
        y.size,
        y.tensor,
        y.low,
        (y.exponent, y.exponent, y.gradient_exponent),
        labels=LABELS,
        gradient=y.gradient,
    )


def _softmax_infer(batch: int, y: Value) -> LossStep:
    return LossStep(
        batch,
        y.size,
        y.tensor,
        y.low,
        (y.exponent, y.exponent, y.gradient_exponent),
        predictions=PREDICTIONS,
    )


def softmax_cross_entropy(logits: Real, labels: npt.NDArray[np.int64]) -> tuple[Real, Real]:
    """Loss per sample in bits, and its gradient in nats per logit.

    Parameters
    ----------
    logits : (N, C) array
    labels : (N,) array of int
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    e = np.exp(shifted)
    total = e.sum(axis=1, keepdims=True)
    g = e / total
    rows = np.arange(len(labels))
    loss = (np.log(total[:, 0]) - shifted[rows, labels]) / np.log(2.0)
    g[rows, labels] -= 1
    return loss, g


LOSSES: dict[str, LossRule] = {
    "softmax_cross_entropy": LossRule(_softmax_train, _softmax_infer, softmax_cross_entropy),
}

assert MAX_COUNT <= MAX_REDUCTION
