"""The float32 twin against textbook gradients, and against the accelerator."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from gradiron.arch.config import simulation_config
from gradiron.cli.report import torch_outputs
from gradiron.compiler import compile_graph
from gradiron.data import Dataset, batches, load_digits
from gradiron.errors import DataError
from gradiron.float_twin import FloatTwin
from gradiron.golden import GoldenDevice
from gradiron.graph import INPUT, Graph
from gradiron.model import initial_parameters
from gradiron.networks import mlp, network
from gradiron.operations import Layer
from gradiron.train import Settings, default_settings, new_trainer

GRAPH = mlp([6, 5, 4, 3])


def samples(count: int = 8) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.integers(-127, 128, (count, 6)).astype(np.int8)
    return x, rng.integers(0, 3, count)


def double(twin: FloatTwin) -> FloatTwin:
    """The same network in double precision, for numerical derivatives."""
    twin.weights = {name: w.astype(np.float64) for name, w in twin.weights.items()}
    twin.biases = {name: b.astype(np.float64) for name, b in twin.biases.items()}
    return twin


def mean_loss(twin: FloatTwin, x: Any, y: Any) -> float:
    """Cross-entropy in nats, written out."""
    z = np.asarray(twin.outputs(x), np.float64)
    z = z - z.max(axis=1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return float(-np.log(p[np.arange(len(y)), y]).mean())


def test_gradients_are_the_derivatives_of_the_loss() -> None:
    twin = double(FloatTwin(GRAPH, initial_parameters(GRAPH, 1)))
    x, y = samples()
    losses, gradients = twin.gradients(x, y)
    assert losses.mean() * np.log(2) == pytest.approx(mean_loss(twin, x, y))
    for name, (dw, db) in gradients.items():
        for values, gradient in ((twin.weights[name], dw), (twin.biases[name], db)):
            flat, expected = values.reshape(-1), gradient.reshape(-1)
            for i in range(flat.size):
                old = flat[i]
                flat[i] = old + 1e-6
                above = mean_loss(twin, x, y)
                flat[i] = old - 1e-6
                below = mean_loss(twin, x, y)
                flat[i] = old
                assert (above - below) / 2e-6 == pytest.approx(expected[i], abs=1e-7)


def test_step_is_plain_gradient_descent() -> None:
    twin = FloatTwin(GRAPH, initial_parameters(GRAPH, 1))
    x, y = samples()
    before = {name: w.copy() for name, w in twin.weights.items()}
    _, gradients = twin.gradients(x, y)
    twin.step(x, y, 0.25)
    for name, w in twin.weights.items():
        assert w.dtype == np.float32
        np.testing.assert_allclose(w, before[name] - 0.25 * gradients[name][0], rtol=1e-6)


def test_momentum() -> None:
    graph = mlp([6, 3]).with_options(momentum=["dense1"])
    twin = FloatTwin(graph, initial_parameters(graph, 1))
    x, y = samples()
    velocity = np.zeros((6, 3))
    weight = twin.weights["dense1"].astype(float)
    for _ in range(4):
        gradient = twin.gradients(x, y)[1]["dense1"][0]
        velocity = 0.875 * velocity + 0.125 * gradient
        weight = weight - velocity
        twin.step(x, y, 0.125)
        np.testing.assert_allclose(twin.weights["dense1"], weight, rtol=1e-5, atol=1e-6)


def test_frozen_layers_stay() -> None:
    graph = GRAPH.with_options(frozen=["dense2"])
    twin = FloatTwin(graph, initial_parameters(graph, 1))
    before = {name: w.copy() for name, w in twin.weights.items()}
    twin.step(*samples(), 0.25)
    changed = {name for name, w in twin.weights.items() if (w != before[name]).any()}
    assert changed == {"dense1", "dense3"}


def test_begins_with_what_the_quantised_weights_stand_for() -> None:
    parameters = initial_parameters(GRAPH, 1)
    twin = FloatTwin(GRAPH, parameters)
    for name, p in parameters.items():
        np.testing.assert_array_equal(twin.weights[name], p.master * 2.0 ** (p.exponent - 8))


def test_views_carry_gradients() -> None:
    layers = (Layer("flat", "flatten", (INPUT,)), Layer("dense1", "dense", ("flat",), 3))
    graph = Graph("flat", (2, 3), layers)
    plain = mlp([6, 3])
    x, y = samples()
    one = FloatTwin(graph, initial_parameters(graph, 0))
    other = FloatTwin(plain, initial_parameters(plain, 0))
    assert one.step(x, y, 0.5) == other.step(x, y, 0.5)
    np.testing.assert_array_equal(one.weights["dense1"], other.weights["dense1"])


def test_same_order_and_rates_as_the_accelerator() -> None:
    x, y = samples(20)
    data = Dataset("own", x, y, x[:5], y[:5], 3)
    settings = Settings(3, 4, 2, (1,), 9)
    twin = FloatTwin(GRAPH, initial_parameters(GRAPH, 9))
    by_hand = FloatTwin(GRAPH, initial_parameters(GRAPH, 9))
    history = twin.fit(data, settings)
    for epoch in range(3):
        for chosen in batches(20, 4, 9, epoch):
            by_hand.step(x[chosen], y[chosen], 0.25 if epoch < 1 else 0.125)
    np.testing.assert_array_equal(twin.weights["dense1"], by_hand.weights["dense1"])
    assert history.steps == 15
    assert [record.rate for record in history.epochs] == [2, 3, 3]
    with pytest.raises(DataError, match="has 3 training samples; a batch is 4"):
        twin.fit(data.limited(3), settings)


def test_divergence_is_reported_without_a_warning() -> None:
    x, y = samples(40)
    data = Dataset("own", x, y, x[:5], y[:5], 3)
    twin = FloatTwin(GRAPH, initial_parameters(GRAPH, 0))
    history = twin.fit(data, Settings(6, 4, -20))
    assert history.diverged
    assert all(isinstance(loss, int) for loss in history.losses)


BRANCHED = Graph(
    "branched",
    (9, 8, 3),
    (
        Layer("conv1", "conv", (INPUT,), 6, kernel=(5, 3), stride=(2, 2), relu=True),
        Layer("depthwise", "depthwise", ("conv1",), kernel=(3, 3), relu=True),
        Layer("pointwise", "conv", ("depthwise",), 6),
        Layer("add1", "add", ("pointwise", "conv1"), relu=True),
        Layer("wide", "conv", ("add1",), 6, kernel=(3, 3)),
        Layer("project", "conv", ("add1",), 6),
        Layer("add2", "add", ("wide", "project"), relu=True),
        Layer("max", "max_pool", ("add2",), kernel=(2, 2)),
        Layer("average", "average_pool", ("max",), kernel=(0, 0)),
        Layer("flatten", "flatten", ("average",)),
        Layer("dense", "dense", ("flatten",), 4),
    ),
)
"""Every operation, values with several consumers, a projection."""


def images(count: int = 6) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.integers(-127, 128, (count, BRANCHED.features)).astype(np.int8)
    return x, rng.integers(0, 4, count)


def test_gradients_of_a_branched_network_are_those_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    x, y = images()
    parameters = initial_parameters(BRANCHED, 3)
    twin = FloatTwin(BRANCHED, parameters)
    tensors = {
        name: tuple(
            torch.tensor(np.asarray(v, np.float32), requires_grad=True)
            for v in (p.weight(), p.real_bias())
        )
        for name, p in parameters.items()
    }
    real = torch.tensor(np.ldexp(x.astype(np.float32), -7)).reshape(-1, *BRANCHED.input_shape)
    outputs = torch_outputs(BRANCHED, tensors, real)
    np.testing.assert_allclose(twin.outputs(x), outputs.detach().numpy(), atol=1e-5)
    torch.nn.functional.cross_entropy(outputs, torch.tensor(y)).backward()
    for name, found in twin.gradients(x, y)[1].items():
        for mine, tensor in zip(found, tensors[name], strict=True):
            np.testing.assert_allclose(mine, tensor.grad.numpy(), atol=1e-5)
            assert np.abs(mine).max() > 1e-4


def values(graph: Graph, target: str = INPUT) -> Graph:
    return dataclasses.replace(graph, loss="squared_error", target=target)


def test_squared_error_and_its_gradient() -> None:
    graph = values(mlp([6, 4, 6]))
    twin = double(FloatTwin(graph, initial_parameters(graph, 1)))
    x, _ = samples()
    real = x / 128
    losses, gradients = twin.gradients(x, x)
    difference = twin.outputs(x) - real
    np.testing.assert_allclose(losses, (difference**2).sum(axis=1) / 2, rtol=1e-6)
    hidden = np.maximum(real @ twin.weights["dense1"] + twin.biases["dense1"], 0)
    np.testing.assert_allclose(gradients["dense2"][0], hidden.T @ difference / 8, atol=1e-6)
    assert twin.evaluate(x, x) == pytest.approx((difference**2).mean(), rel=1e-5)


def test_targets_have_their_own_exponent() -> None:
    graph = values(mlp([6, 3]), "target")
    x, _ = samples(16)
    target = np.rint(x[:, :3] / 2).astype(np.int8)
    data = Dataset("own", x, np.zeros(16, int), x, np.zeros(16, int), 1, -7, (), target, target, -6)
    twin = FloatTwin(graph, initial_parameters(graph, 0), target_exponent=-6)
    history = twin.fit(data, Settings(300, 4, 3))
    # The target is the first three inputs, up to its rounding.
    assert history.error < 1e-4
    assert np.isnan(history.accuracy)
    np.testing.assert_allclose(twin.weights["dense1"], np.eye(6, 3), atol=0.05)


def test_accelerator_and_twin_agree_on_digits() -> None:
    data = load_digits()
    graph = network("digits")
    settings = default_settings(graph, epochs=6, seed=1)
    twin = FloatTwin(graph, initial_parameters(graph, 1)).fit(data, settings)
    config = simulation_config()
    program = compile_graph(graph, config, settings.batch)
    chip = new_trainer(GoldenDevice(config), program, data, settings).fit(data, settings)
    assert abs(chip.accuracy - twin.accuracy) < 0.02
    first = slice(0, 100)
    apart = np.array(chip.losses[first]) - np.array(twin.losses[first])
    assert abs(apart).mean() < 0.05 * np.mean(twin.losses[first])
