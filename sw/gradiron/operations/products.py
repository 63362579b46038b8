"""Symbolic steps of a program: instructions that name tensors instead of addresses.

A `Product` knows nothing of a machine's array or accumulator depth; `gradiron.compiler` lowers it.
Steps that write one tensor in a program write disjoint elements of it; a tensor that is read as
`mask` or `skip` may be the result itself, and no other operand may.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from gradiron.arch.isa import BMode, Out, Pass, Scale, Track
from gradiron.arch.numerics import Rounding


def constant(exponent: int) -> str:
    """Name of the exponent entry that holds a constant."""
    return f"constant.{exponent}"


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
    """The stationary operand B (registers B_*); `offset` in bytes from the tensor's first."""

    tensor: str
    pitch: int
    by: BMode = BMode.ROWS
    tap_y: int = 0
    tap_x: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Result:
    """Where the result goes, and its element numbering (registers O_*)."""

    tensor: str
    step0: int
    step1: int = 0
    step2: int = 0
    low: str = ""
    offset: int = 0


@dataclass(frozen=True)
class Product:
    """One MM (or several, where the accumulators are too few), without addresses.

    Parameters
    ----------
    layer : str
    pass_ : Pass
    a, b, o
        Operands and result. The tensor of b is "" for an identity, that of o where nothing is
        written.
    exponents : tuple of str
        Entries of the exponent table: A, B, result, and skip where there is one.
    j : int
        Contiguous elements per tap.
    columns : int
        Columns of the result.
    images, y, x : int
        Pixels.
    taps_y, taps_x : int
        Taps.
    transposed, out, rounding, relu, track, scale
        Fields of MM.
    bias, mask : str
        Tensors; "" where there is none.
    velocity : (str, str, str)
        Momentum planes and momentum of the biases.
    skip : str
        Tensor that is added, or subtracted with `subtract`; "": none.
    pad : int
        Value read outside the bounds.
    gate : int
        Four bits that open a gate.
    first : int
        Column of the layer that is this product's first: where its biases begin.
    logical : int
        Logical products; -1: one per pixel, tap and column. Of a pass with several products the
        first may stand for all.
    """

    layer: str
    pass_: Pass
    a: Streamed
    b: Stationary
    o: Result
    exponents: tuple[str, ...]
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
    track: Track = Track.NONE
    bias: str = ""
    mask: str = ""
    velocity: tuple[str, str, str] = ("", "", "")
    skip: str = ""
    subtract: bool = False
    scale: Scale = Scale.TRACKER
    pad: int = 0
    gate: int = 0
    first: int = 0
    logical: int = -1

    @property
    def pixels(self) -> int:
        """Number of pixels: rows of a plain product, reduction of a transposed one."""
        return self.images * self.y * self.x

    @property
    def taps(self) -> int:
        """Number of tap elements: reduction of a plain product, rows of a transposed one."""
        return self.taps_y * self.taps_x * self.j

    @property
    def pads(self) -> bool:
        """Whether windows reach beyond the bounds, so that `pad` is read."""
        a = self.a
        low_y, high_y = _reach((self.y, a.y), (self.taps_y, a.tap_y))
        low_x, high_x = _reach((self.x, a.x), (self.taps_x, a.tap_x))
        run = self.columns if self.b.by.by_channel else self.j
        return not (
            a.y0 + low_y >= 0
            and a.y0 + high_y < a.rows
            and a.x0 + low_x >= 0
            and a.x0 + high_x + run <= a.columns
        )

    @property
    def macs(self) -> int:
        """Logical products; pooling, copies and additions have none."""
        if self.logical >= 0:
            return self.logical
        if self.b.by in (BMode.IDENTITY, BMode.GATE):
            return 0
        return self.pixels * self.taps * self.columns

    @property
    def update(self) -> bool:
        """Whether parameters are updated."""
        return self.out in (Out.MASTER, Out.INT8_WEIGHTS, Out.MOMENTUM)

    @property
    def reads(self) -> tuple[str, ...]:
        """Tensors read."""
        names = [self.a.tensor, self.b.tensor, self.bias, self.mask, self.skip, *self.velocity]
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

    @property
    def apart(self) -> tuple[tuple[str, str], ...]:
        """Pairs of tensors that must lie in different regions."""
        return ((self.a.tensor, self.b.tensor),) if self.b.by == BMode.GATE else ()


def _reach(*loops: tuple[int, int]) -> tuple[int, int]:
    """Smallest and largest offset of nested loops (count, stride)."""
    ends = [(count - 1) * stride for count, stride in loops]
    return sum(min(0, end) for end in ends), sum(max(0, end) for end in ends)


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
class CountStep:
    """The STEP instruction."""

    layer: str = "step"
    macs: int = 0
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


Step: TypeAlias = Product | LossStep | CountStep
