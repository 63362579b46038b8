"""The float32 twin: the same network, beginnings, order of samples and learning rates in float32.

What the accelerator is measured against: plain stochastic gradient descent as every framework does
it, with the real-number rules of `gradiron.operations`. It begins with the very numbers that the
quantised weights stand for. `gradiron.cli.report` holds it against PyTorch.
"""

from __future__ import annotations

import time
from math import nan, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from gradiron.data import Dataset, batches, check_inputs
from gradiron.errors import DataError
from gradiron.graph import INPUT, INPUT_EXPONENT, Graph
from gradiron.model import Parameters
from gradiron.operations import LOSSES, OPERATIONS, Real
from gradiron.progress import EpochRecord, NoProgress, Progress
from gradiron.train import (
    Answers,
    History,
    Settings,
    answers,
    check_answers,
    diagnose,
    loss_unit,
    score,
)

Float32 = npt.NDArray[np.float32]
MOMENTUM = 7 / 8
EVALUATION_BATCH = 1000
EVALUATION_VALUES = 1 << 24
"""Samples at a time, and values of all layers at a time, where no gradients are wanted."""
INFINITE = 2**31 - 1
"""Stands in the history for a loss that is not a number any more."""


class FloatTwin:
    """A network in float32.

    Parameters
    ----------
    graph : Graph
    parameters : dict of LayerParameters
        Where to begin.
    input_exponent, target_exponent : int
        Of inputs, and of targets where a squared error has any but the inputs.

    Members
    -------
    weights, biases : dict of float32 arrays by layer
    """

    def __init__(
        self,
        graph: Graph,
        parameters: Parameters,
        *,
        input_exponent: int = INPUT_EXPONENT,
        target_exponent: int | None = None,
    ) -> None:
        self.graph = graph
        self.input_exponent = input_exponent
        self.target_exponent = input_exponent if target_exponent is None else target_exponent
        self.weights: dict[str, Float32] = {}
        self.biases: dict[str, Float32] = {}
        for name, p in parameters.items():
            self.weights[name] = p.weight().astype(np.float32)
            self.biases[name] = p.real_bias().astype(np.float32)
        self._velocity: dict[str, tuple[Real, Real]] = {}

    def _forward(self, x: npt.NDArray[np.int8]) -> dict[str, Real]:
        real = np.ldexp(x.astype(np.float32), self.input_exponent)
        values: dict[str, Real] = {INPUT: real.reshape(-1, *self.graph.input_shape)}
        none = np.zeros(0, np.float32)
        for layer in self.graph.layers:
            weight = self.weights.get(layer.name, none)
            bias = self.biases.get(layer.name, none)
            xs = tuple(values[source] for source in layer.inputs)
            y = OPERATIONS[layer.operation].compute(layer, xs, weight, bias)
            values[layer.name] = np.maximum(y, 0) if layer.relu else y
        return values

    def outputs(self, x: npt.NDArray[np.int8]) -> Real:
        """What the last layer gives for (N, features) int8 samples: logits, or values."""
        return self._forward(x)[self.graph.layers[-1].name]

    def gradients(
        self, x: npt.NDArray[np.int8], y: Answers
    ) -> tuple[Real, dict[str, tuple[Real, Real]]]:
        """Losses per sample, and (dW, db) by layer of the mean loss.

        Losses are in bits and gradients in nats; of a squared error, half the sum of the squares.
        """
        values = self._forward(x)
        last = self.graph.layers[-1].name
        losses, gradient = LOSSES[self.graph.loss].gradient(values[last], self._compared(y, last))
        gradients = {last: gradient / np.float32(len(y))}
        found: dict[str, tuple[Real, Real]] = {}
        none = np.zeros(0, np.float32)
        for layer in reversed(self.graph.layers):
            dy = gradients.pop(layer.name)
            if layer.relu:
                dy = dy * (values[layer.name] > 0)
            weight = self.weights.get(layer.name, none)
            xs = tuple(values[source] for source in layer.inputs)
            dxs, dw, db = OPERATIONS[layer.operation].gradient(layer, xs, weight, dy)
            if layer.name in self.weights:
                found[layer.name] = (dw, db)
            for source, dx in zip(layer.inputs, dxs, strict=True):
                gradients[source] = gradients[source] + dx if source in gradients else dx
        return losses, found

    def _compared(self, y: Answers, last: str) -> Any:
        """Labels as they are, targets as real numbers."""
        if LOSSES[self.graph.loss].labels:
            return y
        real = np.ldexp(y.astype(np.float32), self.target_exponent)
        return real.reshape(len(y), *self.graph.shapes[last])

    def step(self, x: npt.NDArray[np.int8], y: Answers, rate: float) -> float:
        """One step of gradient descent with learning rate `rate`; the mean loss."""
        losses, gradients = self.gradients(x, y)
        for name in self.graph.trainable():
            changes = [np.float32(rate) * g for g in gradients[name]]
            if self.graph.layer(name).momentum:
                old = self._velocity.get(name, (np.float32(0), np.float32(0)))
                changes = [np.float32(MOMENTUM) * v + c for v, c in zip(old, changes, strict=True)]
                self._velocity[name] = (changes[0], changes[1])
            self.weights[name] -= changes[0]
            self.biases[name] -= changes[1]
        return float(losses.mean())

    def infer(self, x: npt.NDArray[Any]) -> Real:
        """Outputs of any number of (N, ...) int8 samples."""
        flat = check_inputs(x, self.graph.features)
        values = sum(prod(shape) for shape in self.graph.shapes.values())
        step = max(1, min(EVALUATION_BATCH, EVALUATION_VALUES // values))
        parts = [self.outputs(flat[i : i + step]) for i in range(0, len(flat), step)]
        return np.concatenate(parts)

    def predict(self, x: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Classes of (N, ...) int8 samples."""
        return self.infer(x).argmax(axis=1).astype(np.int64)

    def evaluate(self, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
        """Share of samples whose class is right, or the mean square of the differences."""
        y = check_answers(self.graph, y, len(x))
        if LOSSES[self.graph.loss].labels:
            return int(np.count_nonzero(self.predict(x) == y)) / len(y)
        last = self.graph.layers[-1].name
        return float(np.mean((self.infer(x) - self._compared(y, last)) ** 2, dtype=np.float64))

    def fit(
        self,
        data: Dataset,
        settings: Settings,
        *,
        progress: Progress | None = None,
        max_steps: int | None = None,
    ) -> History:
        """Train as `Trainer.fit` does: the same samples in the same order at the same rates."""
        x = check_inputs(data.x_train, self.graph.features, f"{data.name}: inputs")
        y, tests = answers(self.graph, data)
        steps = len(x) // settings.batch
        steps = steps if max_steps is None else min(steps, max_steps)
        if not steps:
            raise DataError(
                f"{data.name} has {len(x)} training samples; a batch is {settings.batch}"
            )
        with np.errstate(all="ignore"):  # a diverging run is reported, not warned of
            return self._fit(x, y, data.x_test, tests, settings, steps, progress or NoProgress())

    def _fit(
        self,
        x: npt.NDArray[np.int8],
        y: Answers,
        x_test: npt.NDArray[np.int8],
        y_test: Answers,
        settings: Settings,
        steps: int,
        progress: Progress,
    ) -> History:
        history = History()
        unit = loss_unit(self.graph)
        progress.begin(f"{self.graph}, float32", settings.epochs, steps, 0)
        try:
            for epoch in range(settings.epochs):
                rate = settings.rate_at(epoch)
                begun = time.monotonic()
                losses: list[float] = []
                order = batches(len(x), settings.batch, settings.seed, epoch)
                for index, chosen in enumerate(order):
                    if index == steps:
                        break
                    losses.append(self.step(x[chosen], y[chosen], 2.0**-rate))
                    progress.step(epoch, index, losses[-1])
                scaled = np.nan_to_num(np.array(losses) * (unit * settings.batch), nan=INFINITE)
                history.losses += [int(v) for v in np.rint(np.minimum(scaled, INFINITE))]
                record = EpochRecord(epoch, steps, rate, float(np.mean(losses)), nan)
                record.seconds = time.monotonic() - begun
                score(self.graph, record, self.evaluate(x_test, y_test))
                record.note = diagnose(record, self.graph, losses)
                history.epochs.append(record)
                progress.epoch(record)
        finally:
            progress.end()
        return history
