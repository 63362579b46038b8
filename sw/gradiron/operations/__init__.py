"""What a layer can do: one table row per operation, its forward and backward side by side.

`OPERATIONS` maps the name of an operation to its shape rule, its parameters, the machine products
of its three passes (forward, dX, dW with db and the update), and its meaning in real numbers. The
backward pass of a network, its memory plan, its program, the float32 twin and the calibration are
all derived from these rows; an operation that is not in the table does not exist.

Products are *symbolic*: they name tensors instead of addresses and know nothing of a machine's
accumulator depth. `gradiron.compiler` lowers them to instructions.
"""

from gradiron.arch.numerics import MAX_REDUCTION
from gradiron.operations.add import ADD, gradient_sum
from gradiron.operations.conv import CONV
from gradiron.operations.dense import DENSE, FLATTEN
from gradiron.operations.depthwise import DEPTHWISE
from gradiron.operations.layers import (
    MAX_CLASSES,
    MAX_COUNT,
    Gradient,
    Layer,
    Parameter,
    ParameterShape,
    Real,
    Shape,
    Site,
    Value,
)
from gradiron.operations.losses import (
    LABELS,
    LOSSES,
    PREDICTIONS,
    SOFTMAX,
    SQUARED_ERROR,
    TARGET,
    LossRule,
    softmax_cross_entropy,
    squared_error,
)
from gradiron.operations.pool import AVERAGE_POOL, MAX_POOL, WHOLE
from gradiron.operations.products import (
    CountStep,
    LossStep,
    Product,
    Result,
    Stationary,
    Step,
    Streamed,
    constant,
)
from gradiron.operations.table import Operation

OPERATIONS: dict[str, Operation] = {
    "dense": DENSE,
    "flatten": FLATTEN,
    "conv": CONV,
    "depthwise": DEPTHWISE,
    "max_pool": MAX_POOL,
    "average_pool": AVERAGE_POOL,
    "add": ADD,
}

assert MAX_COUNT <= MAX_REDUCTION

__all__ = [
    "LABELS",
    "LOSSES",
    "MAX_CLASSES",
    "MAX_COUNT",
    "OPERATIONS",
    "PREDICTIONS",
    "SOFTMAX",
    "SQUARED_ERROR",
    "TARGET",
    "WHOLE",
    "CountStep",
    "Gradient",
    "Layer",
    "LossRule",
    "LossStep",
    "Operation",
    "Parameter",
    "ParameterShape",
    "Product",
    "Real",
    "Result",
    "Shape",
    "Site",
    "Stationary",
    "Step",
    "Streamed",
    "Value",
    "constant",
    "gradient_sum",
    "softmax_cross_entropy",
    "squared_error",
]
