"""The float32 twin: the same network, beginnings, order of samples and learning rates in float32.

What the accelerator is measured against: plain stochastic gradient descent as every framework does
it, with the real-number rules of `gradiron.operations`. It begins with the very numbers that the
quantised weights stand for.
"""

from __future__ import annotations

import time
from math import nan
from typing import Any

import numpy as np
import numpy.typing as npt

from gradiron.data import Dataset, batches, check_inputs, check_labels
from gradiron.errors import DataError
from gradiron.graph import INPUT, INPUT_EXPONENT, Graph
from gradiron.model import Parameters
from gradiron.operations import LOSSES, OPERATIONS, Real
from gradiron.progress import EpochRecord, NoProgress, Progress
from gradiron.train import LOSS_UNIT, History, Settings, diagnose

Float32 = npt.NDArray[np.float32]
MOMENTUM = 7 / 8
EVALUATION_BATCH = 1000
INFINITE = 2**31 - 1
"""Stands in the history for a loss that is not a number any more."""


class FloatTwin:
    """A network in float32.

    Parameters
    ----------
    graph : Graph
    parameters : dict of LayerParameters
        Where to begin.
    input_exponent : int

    Members
    -------
    weights, biases : dict of float32 arrays by layer
    """

    def __init__(
        self, graph: Graph, parameters: Parameters, *, input_exponent: int = INPUT_EXPONENT
    ) -> None:
        self.graph = graph
        self.input_exponent = input_exponent
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
            rule = OPERATIONS[layer.operation].compute
            y = rule(layer, tuple(values[s] for s in layer.inputs), weight, bias)
            values[layer.name] = np.maximum(y, 0) if layer.relu else y
        return values

    def logits(self, x: npt.NDArray[np.int8]) -> Real:
        """Logits of (N, features) int8 samples."""
        return self._forward(x)[self.graph.layers[-1].name]

    def gradients(
        self, x: npt.NDArray[np.int8], labels: npt.NDArray[np.int64]
    ) -> tuple[Real, dict[str, tuple[Real, Real]]]:
        """Losses in bits per sample, and (dW, db) by layer of the mean loss in nats."""
        values = self._forward(x)
        last = self.graph.layers[-1].name
        losses, gradient = LOSSES[self.graph.loss].gradient(values[last], labels)
        gradient = gradient / np.float32(len(labels))
        found: dict[str, tuple[Real, Real]] = {}
        none = np.zeros(0, np.float32)
        for layer in reversed(self.graph.layers):
            source = layer.inputs[0]
            if layer.relu:
                gradient = gradient * (values[layer.name] > 0)
            rule = OPERATIONS[layer.operation].gradient
            weight = self.weights.get(layer.name, none)
            (gradient,), dw, db = rule(layer, (values[source],), weight, gradient)
            if layer.name in self.weights:
                found[layer.name] = (dw, db)
        return losses, found

    def step(self, x: npt.NDArray[np.int8], labels: npt.NDArray[np.int64], rate: float) -> float:
        """One step of gradient descent with learning rate `rate`; the mean loss in bits."""
        losses, gradients = self.gradients(x, labels)
        for name in self.graph.trainable():
            changes = [np.float32(rate) * g for g in gradients[name]]
            if self.graph.layer(name).momentum:
                old = self._velocity.get(name, (np.float32(0), np.float32(0)))
                changes = [np.float32(MOMENTUM) * v + c for v, c in zip(old, changes, strict=True)]
                self._velocity[name] = (changes[0], changes[1])
            self.weights[name] -= changes[0]
            self.biases[name] -= changes[1]
        return float(losses.mean())

    def predict(self, x: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Classes of (N, ...) int8 samples."""
        flat = check_inputs(x, self.graph.features)
        parts = [
            self.logits(flat[start : start + EVALUATION_BATCH]).argmax(axis=1)
            for start in range(0, len(flat), EVALUATION_BATCH)
        ]
        return np.concatenate(parts).astype(np.int64)

    def evaluate(self, x: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
        """Share of samples whose class is predicted right."""
        y = check_labels(labels, self.graph.classes, len(x))
        return int(np.count_nonzero(self.predict(x) == y)) / len(y)

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
        y = check_labels(data.y_train, self.graph.classes, len(x), f"{data.name}: labels")
        steps = len(x) // settings.batch
        steps = steps if max_steps is None else min(steps, max_steps)
        if not steps:
            raise DataError(
                f"{data.name} has {len(x)} training samples; a batch is {settings.batch}"
            )
        with np.errstate(all="ignore"):  # a diverging run is reported, not warned of
            return self._fit(x, y, data, settings, steps, progress or NoProgress())

    def _fit(
        self,
        x: npt.NDArray[np.int8],
        y: npt.NDArray[np.int64],
        data: Dataset,
        settings: Settings,
        steps: int,
        progress: Progress,
    ) -> History:
        history = History()
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
                scaled = np.nan_to_num(
                    np.array(losses) * (LOSS_UNIT * settings.batch), nan=INFINITE
                )
                history.losses += [int(v) for v in np.rint(np.minimum(scaled, INFINITE))]
                record = EpochRecord(epoch, steps, rate, float(np.mean(losses)), nan)
                record.seconds = time.monotonic() - begun
                record.accuracy = self.evaluate(data.x_test, data.y_test)
                record.note = diagnose(record, self.graph.classes, losses)
                history.epochs.append(record)
                progress.epoch(record)
        finally:
            progress.end()
        return history
