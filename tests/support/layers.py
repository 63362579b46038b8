"""Random layers, for tests of single passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gradiron.operations import Layer


@dataclass(frozen=True)
class Case:
    """A layer to be tried."""

    layer: Layer
    shape: tuple[int, ...]
    batch: int
    masked: bool = False
    skip: bool = False
    partial: bool = False

    def __str__(self) -> str:
        return f"{self.layer} on {self.shape} x {self.batch} {self.masked, self.skip, self.partial}"


def random_case(
    rng: np.random.Generator,
    *,
    even: bool = False,
    channels_up_to: int = 40,
    size_up_to: int = 20,
    batch_up_to: int = 5,
) -> Case:
    """A layer within the limits that are demanded: channels 1 to 40, sizes 1 to 20.

    Parameters
    ----------
    even : bool
        Even channels, for a machine with two-byte lanes; of some inputs odd ones.
    channels_up_to, size_up_to, batch_up_to : int
    """

    def number(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    def channels() -> int:
        count = number(1, channels_up_to) if number(0, 1) else number(1, 9)
        return count + count % 2 if even else count

    operation = str(rng.choice(["conv", "conv", "conv", "depthwise", "max_pool", "average_pool"]))
    pool = operation.endswith("pool")
    height, width = number(1, size_up_to), number(1, size_up_to)
    cin = channels()
    if even and operation == "conv" and number(0, 2) == 0:
        cin = number(1, 9)
    flags = [bool(number(0, 1)) for _ in range(3)]
    if pool:
        kernel = [(2, 2), (3, 3), (1, 2), (4, 4), (3, 2)][number(0, 4)]
        if operation == "average_pool" and number(0, 2) == 0:
            kernel = (0, 0)
        height, width = max(height, kernel[0]), max(width, kernel[1])
        layer = Layer("pool", operation, ("input",), kernel=kernel)
        return Case(layer, (height, width, cin), number(1, batch_up_to), flags[0], False, flags[2])
    limit = 11 if number(0, 2) == 0 else 3
    kernel = (number(1, limit), number(1, limit))
    stride = (number(1, 2), number(1, 2))
    padding: Any = ("same", "valid")[number(0, 1)]
    if number(0, 3) == 0:
        low, high = [[number(0, k - 1) for k in kernel] for _ in range(2)]
        padding = ((low[0], high[0]), (low[1], high[1]))
    if padding != "same":
        height, width = max(height, kernel[0]), max(width, kernel[1])
    units = channels() if operation == "conv" else cin
    columns = ()
    if number(0, 4) == 0:
        first = number(0, units - 1) // 2 * 2
        count = number(1, units - first)
        columns = ((first, count),)
        if first + count + 2 < units:
            columns += ((first + count + (first + count) % 2, 1),)
    layer = Layer(
        "layer",
        operation,
        ("input",),
        units if operation == "conv" else 0,
        relu=bool(number(0, 1)),
        int8_weights=number(0, 3) == 0,
        kernel=kernel,
        stride=stride,
        padding=padding,
        pad=number(-9, 9) if number(0, 1) else 0,
        columns=columns,
    )
    return Case(layer, (height, width, cin), number(1, batch_up_to), *flags)
