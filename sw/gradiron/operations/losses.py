"""Losses: what follows the last layer, and where its gradient comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradiron.arch.isa import BMode, Out, Pass, Track
from gradiron.arch.numerics import Rounding
from gradiron.errors import ModelError
from gradiron.operations.layers import MAX_COUNT, Real, Value
from gradiron.operations.products import (
    LossStep,
    Product,
    Result,
    Stationary,
    Step,
    Streamed,
)

LABELS, PREDICTIONS, TARGET = "labels", "predictions", "target"
SOFTMAX, SQUARED_ERROR = "softmax_cross_entropy", "squared_error"


@dataclass(frozen=True)
class LossRule:
    """A row of the table of losses.

    Attributes
    ----------
    train : (batch, forward product of the last layer, its value, target) -> steps
        From the last layer's product to the gradient of its value.
    infer : (batch, forward product of the last layer, its value) -> steps
        From the last layer's product to what the host reads.
    gradient : (outputs, labels or targets) -> (losses, gradient)
        In real numbers: per sample in bits and in nats; of a squared error, half the sum of the
        squares and the difference.
    labels : bool
        Whether it compares with classes (uint8 labels), not with a tensor.
    """

    train: Callable[[int, Product, Value, Value | None], tuple[Step, ...]]
    infer: Callable[[int, Product, Value], tuple[Step, ...]]
    gradient: Callable[[Real, npt.NDArray[np.int64]], tuple[Real, Real]]
    labels: bool


# softmax and cross-entropy: the last layer gives logits


def _softmax_train(batch: int, last: Product, y: Value, target: Value | None) -> tuple[Step, ...]:
    del target
    exponents = (y.exponent, y.exponent, y.gradient_exponent)
    step = LossStep(batch, y.size, y.tensor, y.low, exponents, labels=LABELS, gradient=y.gradient)
    return last, step


def _softmax_infer(batch: int, last: Product, y: Value) -> tuple[Step, ...]:
    exponents = (y.exponent, y.exponent, y.gradient_exponent)
    return last, LossStep(batch, y.size, y.tensor, y.low, exponents, predictions=PREDICTIONS)


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


# squared error: the difference is measured, computed again with the exponent found, and squared


def _squared_train(batch: int, last: Product, y: Value, target: Value | None) -> tuple[Step, ...]:
    assert target is not None
    size = batch * y.size
    if size > MAX_COUNT:
        raise ModelError(
            f"a squared error over {size} values, {y.size} in each of {batch} samples; the loss "
            f"sums up at most {MAX_COUNT}; use a batch of {max(1, MAX_COUNT // y.size)} or less"
        )
    difference = dataclasses.replace(
        last,
        skip=target.tensor,
        subtract=True,
        exponents=(*last.exponents[:2], y.gradient_exponent, target.exponent),
    )
    measured = dataclasses.replace(
        difference,
        o=dataclasses.replace(last.o, tensor=""),
        out=Out.MEASURE,
        rounding=Rounding.NEAREST,
        track=Track.FIT,
    )
    # The tracker has just been fitted to these numbers and stays; `track` ends the tensor.
    gradient = dataclasses.replace(
        difference,
        layer="loss",
        pass_=Pass.OTHER,
        o=dataclasses.replace(last.o, tensor=y.gradient),
        rounding=Rounding.STOCHASTIC,
        track=Track.TRACK,
        logical=0,
    )
    squares = Product(
        "loss",
        Pass.OTHER,
        Streamed(y.gradient, columns=size),
        Stationary(y.gradient, 0, BMode.COLUMNS),
        Result("", 0),
        (y.gradient_exponent, y.gradient_exponent, y.gradient_exponent),
        j=size,
        columns=1,
        out=Out.LOSS,
        logical=0,
    )
    return measured, gradient, squares


def _squared_infer(batch: int, last: Product, y: Value) -> tuple[Step, ...]:
    del batch, y
    return (last,)


def squared_error(outputs: Real, targets: npt.NDArray[np.int64]) -> tuple[Real, Real]:
    """Half the sum of squares per sample, and the difference.

    Parameters
    ----------
    outputs, targets : (N, ...) arrays
    """
    g = outputs - targets
    return (g.reshape(len(g), -1) ** 2).sum(axis=1) / 2, g


LOSSES: dict[str, LossRule] = {
    SOFTMAX: LossRule(_softmax_train, _softmax_infer, softmax_cross_entropy, labels=True),
    SQUARED_ERROR: LossRule(_squared_train, _squared_infer, squared_error, labels=False),
}
