"""Layers of a network, and what is known of them at their place: values, parameters, sites."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gradiron.arch.isa import Out
from gradiron.errors import ModelError
from gradiron.reals import PADDINGS, SAME, Padding

Shape: TypeAlias = tuple[int, ...]
Pair: TypeAlias = tuple[int, int]
Real: TypeAlias = npt.NDArray[np.floating[Any]]

MAX_COUNT = 65535
"""Largest size of a dense layer, and most pixels of a product: the count registers have 16 bits."""
MAX_CLASSES = 256
"""Labels are bytes."""
MAX_KERNEL = 11
MAX_STRIDE = 2
MAX_POOL_TAPS = 16
"""Positions of a max pooling window: the argument of the maximum has four bits."""


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
        Outputs of a dense layer, output channels of a convolution.
    relu : bool
        Replace negative results by zero.
    frozen : bool
        Leave the parameters alone: no low plane, no gradient.
    int8_weights : bool
        Keep and update int8 weights without the low plane of the master.
    momentum : bool
        Update with momentum 7/8.
    kernel, stride : (int, int)
        Vertical, horizontal. Of a pooling layer the window; (0, 0) is the whole image, and the
        stride is the window's size.
    padding : str or ((int, int), (int, int))
        "same" or "valid", as TensorFlow has them, or rows (top, bottom) and columns (left, right),
        each less than the kernel. Pooling has "valid" always.
    pad : int
        int8 value read outside the image.
    columns : tuple of (int, int)
        Sparse update: first and number of the output channels that are updated, in ranges; () is
        all.
    """

    name: str
    operation: str
    inputs: tuple[str, ...]
    units: int = 0
    relu: bool = False
    frozen: bool = False
    int8_weights: bool = False
    momentum: bool = False
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Padding = SAME
    pad: int = 0
    columns: tuple[Pair, ...] = ()


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
    (flatten) share all of them with what they view. `pitch` is the distance of samples in bytes,
    `channel_pitch` that of the pixels of an image (0: its channels). `relu` says that the gradient
    is to be masked where the value is not positive. `argmax` names the second plane of pooling.
    `row_pitch` is that of an image's rows where they are padded (0: they are not), with `lead`
    zeros before each.
    """

    shape: Shape
    pitch: int
    tensor: str
    exponent: str
    low: str
    gradient: str
    gradient_exponent: str
    relu: bool
    channel_pitch: int = 0
    argmax: str = ""
    row_pitch: int = 0
    lead: int = 0

    @property
    def size(self) -> int:
        """Elements per sample."""
        return prod(self.shape)

    @property
    def image(self) -> tuple[int, int, int, int]:
        """Height, width, channels, and bytes from pixel to pixel."""
        height, width, channels = self.shape
        return height, width, channels, self.channel_pitch or channels


@dataclass(frozen=True)
class Gradient:
    """Where dX of an operation goes.

    Attributes
    ----------
    tensor, exponent : str
    mask : str
        Tensor that the result is masked with; "": none.
    skip, skip_exponent : str
        An earlier partial gradient to add; "": none.
    """

    tensor: str
    exponent: str
    mask: str = ""
    skip: str = ""
    skip_exponent: str = ""


@dataclass(frozen=True)
class Site:
    """An operation at its place in a network: what a row of the table gets to see.

    Attributes
    ----------
    layer : Layer
    batch : int
    xs : tuple of Value
    y : Value
    parameter : Parameter or None
    train : bool
        Tells the training program from the inference program.
    relu : bool
        Of the result: that of an addition, where it is fused into the layer.
    skip : Value or None
        The other input of that addition.
    """

    layer: Layer
    batch: int
    xs: tuple[Value, ...]
    y: Value
    parameter: Parameter | None
    train: bool = True
    relu: bool = False
    skip: Value | None = None

    @property
    def x(self) -> Value:
        """The only, or the first, input."""
        return self.xs[0]

    @property
    def p(self) -> Parameter:
        """The parameters of an operation that has some."""
        assert self.parameter is not None
        return self.parameter


# --- checks that several operations share ---------------------------------------------------------


def one_input(layer: Layer, inputs: tuple[Shape, ...]) -> Shape:
    """The shape of the only input.

    Raises
    ------
    ModelError
        Where there are several, or none.
    """
    if len(inputs) != 1:
        raise ModelError(
            f"layer {layer.name!r}: {layer.operation} has one input, {len(inputs)} are given"
        )
    return inputs[0]


def image_input(layer: Layer, inputs: tuple[Shape, ...]) -> tuple[int, int, int]:
    """Height, width and channels of the only input.

    Raises
    ------
    ModelError
        Where it is not an image.
    """
    shape = one_input(layer, inputs)
    if len(shape) != 3:
        raise ModelError(
            f"layer {layer.name!r}: {layer.operation} needs an image (height, width, channels), it "
            f"gets the shape {shape}"
        )
    return shape[0], shape[1], shape[2]


def check_kernel(layer: Layer) -> None:
    """Kernel, stride and padding of a convolution.

    Raises
    ------
    ModelError
        For one out of range.
    """
    name = f"layer {layer.name!r}"
    for what, sizes, limit in (
        ("kernel", layer.kernel, MAX_KERNEL),
        ("stride", layer.stride, MAX_STRIDE),
    ):
        if len(sizes) != 2 or not all(1 <= size <= limit for size in sizes):
            raise ModelError(
                f"{name}: {what} {sizes}; it is two numbers (vertical, horizontal) from 1 to "
                f"{limit}"
            )
    if isinstance(layer.padding, str):
        if layer.padding not in PADDINGS:
            raise ModelError(
                f"{name}: padding {layer.padding!r} is not known; there are: "
                f"{', '.join(PADDINGS)}, ((top, bottom), (left, right))"
            )
    elif len(layer.padding) != 2 or not all(
        len(pads) == 2 and min(pads) >= 0 and max(pads) < size
        for pads, size in zip(layer.padding, layer.kernel, strict=True)
    ):
        raise ModelError(
            f"{name}: padding {layer.padding}; it is ((top, bottom), (left, right)), each from 0 "
            f"and less than the kernel {layer.kernel}"
        )
    if not -127 <= layer.pad <= 127:
        raise ModelError(f"{name}: pad is {layer.pad}; it must be from -127 to 127")


def check_columns(layer: Layer, count: int) -> None:
    """The ranges of a sparse update: within `count` channels, in order, apart.

    Raises
    ------
    ModelError
        Where they are not.
    """
    end = 0
    for first, size in layer.columns:
        if first < end or size < 1 or first + size > count:
            raise ModelError(
                f"layer {layer.name!r}: columns {layer.columns}; they are ranges (first, number) "
                f"in order, without overlap, within the {count} channels of the layer"
            )
        end = first + size
