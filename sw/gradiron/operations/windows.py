"""Products over the windows of an image, as a convolution has them in its three passes.

The streamed operand reads every window where it lies; padding is what the bounds exclude.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradiron.arch.isa import BMode, Pass
from gradiron.arch.numerics import Rounding
from gradiron.operations.layers import MAX_COUNT, Gradient, Layer, Site, Value
from gradiron.operations.products import Product, Result, Stationary, Streamed
from gradiron.reals import Window, window


def windows(layer: Layer, value: Value) -> Window:
    """Where a convolution's windows lie on its input."""
    height, width, _, _ = value.image
    return window((height, width), layer.kernel, layer.stride, layer.padding)


def streamed(tensor: str, value: Value, w: Window) -> Streamed:
    """An image as windows: pixels are those of the result, taps those of the kernel."""
    height, width, _, pixel = value.image
    row = value.row_pitch or width * pixel
    return Streamed(
        tensor,
        columns=value.lead + width * pixel,
        rows=height * row,
        image=height * row,
        y=w.stride[0] * row,
        x=w.stride[1] * pixel,
        tap_y=row,
        tap_x=pixel,
        y0=-w.before[0] * row,
        x0=value.lead - w.before[1] * pixel,
    )


def result(tensor: str, value: Value, *, low: str = "") -> Result:
    """An image as the result, pixel by pixel."""
    _, width, _, pixel = value.image
    return Result(tensor, step0=pixel, step1=width * pixel, step2=value.pitch, low=low)


@dataclass(frozen=True)
class Class:
    """Along one axis: the pixels of the input that see the same positions of the kernel.

    Pixels first, first + stride, ... (`pixels` of them), positions tap, tap + stride, ... (`taps`);
    `start` is the output at the first of both.
    """

    first: int
    pixels: int
    tap: int
    taps: int
    start: int


def classes(size: int, kernel: int, stride: int, before: int) -> list[Class]:
    """The classes of an axis; those without positions have `taps` 0."""
    found: list[Class] = []
    for first in range(min(stride, size)):
        tap = (first + before) % stride
        found.append(
            Class(
                first,
                -(-(size - first) // stride),
                tap,
                max(0, -(-(kernel - tap) // stride)),
                (first + before - tap) // stride,
            )
        )
    return found


def spread(site: Site, into: Gradient, by: BMode, j: int, tap: int) -> list[Product]:
    """dX by the turned kernel: a product for each class of pixels, zeros where no class has taps.

    Parameters
    ----------
    by : BMode
        How the weights are read: columns, or diagonal.
    j : int
        Contiguous elements per tap.
    tap : int
        Bytes of weights per tap.
    """
    layer, x, y = site.layer, site.x, site.y
    w = windows(layer, x)
    height, width, channels, pixel = x.image
    out_row, out_image = w.out[1] * y.shape[2], y.pitch
    exponents = (y.gradient_exponent, site.p.exponent, into.exponent)
    macs = site.batch * w.out[0] * w.out[1] * w.taps * j * channels
    products: list[Product] = []
    empty: list[Product] = []
    columns = classes(width, layer.kernel[1], layer.stride[1], w.before[1])
    for row in classes(height, layer.kernel[0], layer.stride[0], w.before[0]):
        if not row.taps:
            area = (row.first, layer.stride[0], row.pixels), (0, 1, width)
            empty.append(fill(site, x, into.tensor, area, y.gradient, exponents))
            continue
        for column in columns:
            if not column.taps:
                area = (
                    (row.first, layer.stride[0], row.pixels),
                    (column.first, layer.stride[1], column.pixels),
                )
                empty.append(fill(site, x, into.tensor, area, y.gradient, exponents))
                continue
            products.append(
                Product(
                    layer.name,
                    Pass.DX,
                    Streamed(
                        y.gradient,
                        columns=out_row,
                        rows=out_image,
                        image=out_image,
                        y=out_row,
                        x=y.shape[2],
                        tap_y=-out_row,
                        tap_x=-y.shape[2],
                        y0=row.start * out_row,
                        x0=column.start * y.shape[2],
                    ),
                    Stationary(
                        site.p.high,
                        y.shape[2],
                        by,
                        tap_y=layer.stride[0] * layer.kernel[1] * tap,
                        tap_x=layer.stride[1] * tap,
                        offset=(row.tap * layer.kernel[1] + column.tap) * tap,
                    ),
                    Result(
                        into.tensor,
                        step0=layer.stride[1] * pixel,
                        step1=layer.stride[0] * width * pixel,
                        step2=x.pitch,
                        offset=(row.first * width + column.first) * pixel,
                    ),
                    exponents,
                    j=j,
                    columns=channels,
                    images=site.batch,
                    y=row.pixels,
                    x=column.pixels,
                    taps_y=row.taps,
                    taps_x=column.taps,
                    logical=0 if products else macs,
                )
            )
    return [*empty, *products]


Axis = tuple[int, int, int]
"""First pixel, step, number of pixels."""


def fill(
    site: Site,
    value: Value,
    tensor: str,
    area: tuple[Axis, Axis],
    operand: str,
    exponents: tuple[str, ...],
) -> Product:
    """Zeros in a part of an image: an identity that reads nothing.

    It names the operands' exponents of the products beside it, so that it gives the same exponent.
    """
    (y, step_y, count_y), (x, step_x, count_x) = area
    _, width, channels, pixel = value.image
    return Product(
        site.layer.name,
        Pass.DX,
        Streamed(operand, columns=0, rows=0),
        Stationary("", 0, BMode.IDENTITY),
        Result(
            tensor,
            step0=step_x * pixel,
            step1=step_y * width * pixel,
            step2=value.pitch,
            offset=(y * width + x) * pixel,
        ),
        exponents,
        j=1,
        columns=channels,
        images=site.batch,
        y=count_y,
        x=count_x,
        rounding=Rounding.STOCHASTIC,
    )


def rest(height: int, width: int, covered: tuple[int, int]) -> Iterator[tuple[Axis, Axis]]:
    """The parts of an image that no pooling window covers: rows below, columns at the right."""
    if height > covered[0]:
        yield (covered[0], 1, height - covered[0]), (0, 1, width)
    if width > covered[1]:
        yield (0, 1, covered[0]), (covered[1], 1, width - covered[1])


def one_row(batch: int, value: Value) -> bool:
    """Whether the pixels of all images can be taken as one row."""
    height, width, _, pixel = value.image
    return batch * height * width <= MAX_COUNT and value.pitch == height * width * pixel
