"""What a row of the table of operations has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from gradiron.operations.layers import Gradient, Layer, ParameterShape, Real, Shape, Site
from gradiron.operations.products import Product

ShapeRule: TypeAlias = Callable[[Layer, tuple[Shape, ...]], Shape]
ParameterRule: TypeAlias = Callable[[Layer, tuple[Shape, ...]], ParameterShape]
ConstantRule: TypeAlias = Callable[[Layer, tuple[Shape, ...]], tuple[int, ...]]
ForwardRule: TypeAlias = Callable[[Site], tuple[Product, ...]]
DxRule: TypeAlias = Callable[[Site, Gradient], tuple[Product, ...]]
DwRule: TypeAlias = Callable[[Site], tuple[Product, ...]]
ComputeRule: TypeAlias = Callable[[Layer, tuple[Real, ...], Real, Real], Real]
GradientRule: TypeAlias = Callable[
    [Layer, tuple[Real, ...], Real, Real], tuple[tuple[Real, ...], Real, Real]
]


@dataclass(frozen=True)
class Operation:
    """A row of the table.

    Attributes
    ----------
    shape
        Shapes of the inputs to the shape of the output, of one sample.
    parameters
        Shapes of weights and biases; None where the operation has none.
    constants
        Exponents that the products of the operation name as `constant`.
    forward, dx, dw
        Machine products of each pass; None for a view.
    sum : bool
        The output is the sum of the inputs: its gradient is that of every input.
    keeps_sign : bool
        A result is one of the inputs, so that a mask of the input by ReLU is one of the result.
    compute : (layer, xs, w, b) -> y
        The operation in real numbers, without ReLU. xs and y have the batch in front.
    gradient : (layer, xs, w, dy) -> (dxs, dw, db)
        Its gradients, summed over the batch.
    """

    shape: ShapeRule
    compute: ComputeRule
    gradient: GradientRule
    parameters: ParameterRule | None = None
    constants: ConstantRule | None = None
    forward: ForwardRule | None = None
    dx: DxRule | None = None
    dw: DwRule | None = None
    sum: bool = False
    keeps_sign: bool = False

    @property
    def view(self) -> bool:
        """Whether the output is the input under another shape."""
        return self.forward is None
