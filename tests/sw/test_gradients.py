"""One training step of whole networks on the golden device against PyTorch's gradients.

PyTorch computes with the values that the quantised weights and inputs stand for, and rounds those
that memory holds; what the step adds to each master must be its gradient times the learning rate,
but for the noise of stochastic rounding.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from gradiron.arch.config import simulation_config, up5k_config
from gradiron.arch.numerics import clamp_exponent, rt, sat8
from gradiron.compiler import Program, compile_graph
from gradiron.golden import GoldenDevice
from gradiron.graph import INFER, INPUT, TRAIN, Graph
from gradiron.operations import LABELS, OPERATIONS, TARGET, Layer, Product

torch: Any = pytest.importorskip("torch")
functional: Any = torch.nn.functional

RATE = 4
INPUT_EXPONENT = -7
SAMPLES = 8


def conv(name: str, source: str, units: int, kernel: int = 3, **options: Any) -> Layer:
    options.setdefault("relu", True)
    return Layer(name, "conv", (source,), units, kernel=(kernel, kernel), **options)


def head(source: str, classes: int = 4) -> tuple[Layer, ...]:
    return Layer("flat", "flatten", (source,)), Layer("logits", "dense", ("flat",), classes)


RESIDUAL = Graph(
    "residual",
    (8, 8, 4),
    (
        conv("stem", INPUT, 8),
        conv("a1", "stem", 8),
        conv("a2", "a1", 8, relu=False),
        Layer("a", "add", ("a2", "stem"), relu=True),
        conv("b1", "a", 12, stride=(2, 2)),
        conv("b2", "b1", 12, relu=False),
        conv("skip", "a", 12, 1, stride=(2, 2), relu=False),
        Layer("b", "add", ("b2", "skip"), relu=True),
        Layer("pool", "average_pool", ("b",), kernel=(0, 0)),
        *head("pool"),
    ),
)
POOLS = Graph(
    "pools",
    (9, 8, 3),
    (
        conv("c1", INPUT, 6),
        Layer("p1", "max_pool", ("c1",), kernel=(2, 2)),
        conv("c2", "p1", 8, padding="valid", relu=False),
        Layer("p2", "average_pool", ("c2",), kernel=(2, 1)),
        *head("p2"),
    ),
)
SEPARABLE = Graph(
    "separable",
    (10, 7, 1),
    (
        Layer("c", "conv", (INPUT,), 8, kernel=(10, 4), stride=(2, 2), relu=True),
        Layer("d1", "depthwise", ("c",), kernel=(3, 3), relu=True),
        conv("p1", "d1", 8, 1),
        Layer("d2", "depthwise", ("p1",), kernel=(3, 3), stride=(2, 2), relu=True),
        conv("p2", "d2", 10, 1),
        Layer("pool", "average_pool", ("p2",), kernel=(0, 0)),
        *head("pool"),
    ),
)
# Every kind of fork: three users, a pool beside a convolution, additions that cannot be fused, an
# addition without ReLU whose inputs are used again.
FORKS = Graph(
    "forks",
    (6, 6, 4),
    (
        conv("c", INPUT, 8),
        conv("x", "c", 8),
        conv("y", "c", 8),
        Layer("s1", "add", ("x", "y")),
        Layer("s2", "add", ("s1", "c")),
        conv("z", "s1", 8),
        Layer("s3", "add", ("s2", "z"), relu=True),
        Layer("m", "max_pool", ("s3",), kernel=(2, 2)),
        conv("w", "s3", 8, stride=(2, 2), relu=False),
        Layer("s4", "add", ("w", "m")),
        *head("s4"),
    ),
)
# The order in which gradients come makes sums of their own necessary here.
LATE = Graph(
    "late",
    (5, 5, 4),
    (
        conv("c", INPUT, 8),
        conv("x", "c", 8, relu=True),
        conv("y", INPUT, 8, relu=True),
        Layer("s", "add", ("c", "y"), relu=True),
        Layer("t", "add", ("c", "x")),
        conv("z", "c", 8),
        Layer("u", "add", ("t", "z")),
        Layer("v", "add", ("u", "s")),
        *head("v"),
    ),
)
MIRROR = Graph(
    "mirror",
    (8, 8, 2),
    (
        conv("down", INPUT, 8, stride=(2, 1)),
        conv("mid", "down", 8),
        Layer("flat", "flatten", ("mid",)),
        Layer("out", "dense", ("flat",), 128),
    ),
    "squared_error",
)
FIELD = Graph(
    "field",
    (6, 6, 2),
    (conv("a", INPUT, 8), conv("b", "a", 4, relu=False)),
    "squared_error",
    TARGET,
)
GRAPHS = {g.name: g for g in (RESIDUAL, POOLS, SEPARABLE, FORKS, LATE, MIRROR, FIELD)}


# --- the same in PyTorch -------------------------------------------------------------------------


def padded(layer: Layer, x: Any) -> Any:
    if layer.padding != "same":
        return x
    more: list[int] = []
    for size, k, s in zip(x.shape[:1:-1], layer.kernel[::-1], layer.stride[::-1], strict=True):
        total = max(0, (-(-size // s) - 1) * s + k - size)
        more += [total // 2, total - total // 2]
    return functional.pad(x, more)


def apply(layer: Layer, xs: list[Any], w: Any, b: Any) -> Any:
    x = xs[0]
    match layer.operation:
        case "conv":
            return functional.conv2d(padded(layer, x), w.permute(3, 2, 0, 1), b, layer.stride)
        case "depthwise":
            kernel = w.permute(2, 0, 1)[:, None]
            return functional.conv2d(padded(layer, x), kernel, b, layer.stride, groups=len(b))
        case "dense":
            return x @ w + b
        case "max_pool":
            return functional.max_pool2d(x, layer.kernel)
        case "average_pool":
            kernel = layer.kernel if layer.kernel != (0, 0) else tuple(x.shape[2:])
            count = kernel[0] * kernel[1]
            scale = count / 2 ** (count - 1).bit_length()
            return functional.avg_pool2d(x, kernel) * scale
        case "add":
            return xs[0] + xs[1]
        case _:
            return x.permute(0, 2, 3, 1).flatten(1)


class Real:
    """A network in PyTorch, with all values and their gradients."""

    def __init__(self, graph: Graph, x: Any, goal: Any, rng: np.random.Generator) -> None:
        self.graph = graph
        self.masters: dict[str, Any] = {}
        self.biases: dict[str, Any] = {}
        self.exponents: dict[str, int] = {}
        self.weights: dict[str, Any] = {}
        self.outputs = {INPUT: INPUT_EXPONENT}
        for name, shape in graph.parameters.items():
            limit = (6 / shape.fan_in) ** 0.5
            exponent = int(np.ceil(np.log2(limit))) - 6
            w8 = np.rint(rng.uniform(-limit, limit, shape.weight) * 2.0**-exponent)
            self.masters[name] = w8.astype(np.int64) * 256
            self.biases[name] = rng.integers(-(1 << 16), 1 << 16, shape.bias)
            self.exponents[name] = exponent
            self.weights[name] = torch.tensor(w8 * 2.0**exponent, requires_grad=True)
        self.values: dict[str, Any] = {INPUT: torch.tensor(x * 2.0**INPUT_EXPONENT)}
        if x.ndim == 4:
            self.values[INPUT] = self.values[INPUT].permute(0, 3, 1, 2)
        for layer in graph.layers:
            w = self.weights.get(layer.name)
            b = None if w is None else torch.tensor(self.biases[layer.name] * 2.0**-20)
            y = apply(layer, [self.values[s] for s in layer.inputs], w, b)
            y.retain_grad()
            self.values[layer.name] = self.stored(layer, y)
        y = self.values[graph.layers[-1].name]
        if graph.loss == "squared_error":
            target = goal * 2.0**INPUT_EXPONENT
            if y.ndim == 4:
                target = np.moveaxis(target.reshape(len(x), *y.permute(0, 2, 3, 1).shape[1:]), 3, 1)
            loss = ((y - torch.tensor(target.reshape(y.shape))) ** 2).sum() / 2
        else:
            loss = functional.cross_entropy(y, torch.tensor(goal), reduction="sum")
        self.loss = float(loss.detach())
        loss.backward()

    def stored(self, layer: Layer, y: Any) -> Any:
        """A value as memory holds it: int8, and its gradient masked after ReLU."""
        name, source = layer.name, self.outputs.get(layer.inputs[0], 0)
        if layer.operation in ("max_pool", "flatten"):
            self.outputs[name] = source
            return y
        if name in self.graph.fusion or layer is self.graph.layers[-1]:
            return y
        if layer.relu:
            y = functional.relu(y)
        exponent = need(y)
        if layer.operation == "average_pool":
            exponent = source
            window = layer.kernel
            if window == (0, 0):
                window = self.graph.shapes[layer.inputs[0]][:2]
            sums = source - (window[0] * window[1] - 1).bit_length()
        else:
            fused = [one for one, add in self.graph.fusion.items() if add == name]
            summed = self.graph.layer(fused[0]) if fused else layer
            sums = self.outputs[summed.inputs[0]] + self.exponents.get(summed.name, 0)
        exponent = max(exponent, sums)
        self.outputs[name] = exponent
        acc = np.floor(y.detach().numpy() * 2.0**-sums + 0.5).astype(np.int64)
        q = torch.tensor(sat8(rt(acc, exponent - sums)) * 2.0**exponent)
        through = y - y.detach()
        value = q + (through * (q > 0) if layer.relu else through)
        value.retain_grad()
        return value


def need(values: Any, spare: int = 0) -> int:
    largest = float(values.detach().abs().max())
    return clamp_exponent(int(np.floor(np.log2(largest))) - 6 + spare) if largest else -20


def load(device: GoldenDevice, program: Program, real: Real) -> None:
    """Parameters and exponents, these as PyTorch's values demand."""
    schedule = program.schedule
    device.write_program(program.words)
    for name, p in schedule.parameters.items():
        stored = real.masters[name] + 128
        for tensor, data in (
            (p.high, (stored >> 8).astype(np.int8)),
            (p.low, (stored & 255).astype(np.uint8)),
            (p.bias, real.biases[name].astype("<i4")),
        ):
            if tensor:
                device.write_memory(program.plan.address(tensor), data.tobytes())
        for tensor in (p.velocity_high, p.velocity_low, p.velocity_bias):
            if tensor:
                size = schedule.tensors[tensor].bytes
                device.write_memory(program.plan.address(tensor), bytes(size))
    found = {INPUT: INPUT_EXPONENT, TARGET: INPUT_EXPONENT, **schedule.constants}
    for name, value in schedule.values.items():
        if name == INPUT:
            continue
        layer = real.graph.layer(name)
        found[f"{name}.weight"] = real.exponents.get(name, 0)
        if name in real.graph.fusion or OPERATIONS[layer.operation].view:
            continue
        found[value.exponent] = need(real.values[name])
        for entry in schedule.exponents:
            if entry == value.gradient_exponent or entry.startswith(f"{name}.gradient"):
                found[entry] = need(real.values[name].grad, 1)
    for name, index in schedule.exponents.items():
        base = found[name] if name in found else found[schedule.twins[name]]
        device.write_exponent(index, base, base)
    device.write_csr("RATE", RATE)
    device.write_csr("SEED", 1)


def masters(device: GoldenDevice, program: Program) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, p in program.schedule.parameters.items():
        planes = [
            np.frombuffer(
                device.read_memory(program.plan.address(t), program.schedule.tensors[t].bytes), kind
            ).astype(np.int64)
            for t, kind in ((p.high, np.int8), (p.low, np.uint8))
            if t
        ]
        low = planes[1] if len(planes) == 2 else 128
        found[name] = (planes[0] * 256 + low - 128).reshape(p.shape.weight)
    return found


def write(device: GoldenDevice, program: Program, name: str, values: Any) -> None:
    tensor = program.schedule.tensors[name]
    rows = values.reshape(tensor.shape)
    if tensor.pitch:
        rows = np.zeros((tensor.shape[0], tensor.pitch), np.int8)
        rows[:, tensor.lead : tensor.lead + tensor.shape[1]] = values.reshape(tensor.shape)
    device.write_memory(program.plan.address(name), rows.tobytes())


@cache
def compiled(graph: Graph, config: Any) -> Program:
    return compile_graph(graph, config, SAMPLES)


def run_step(
    graph: Graph, config: Any, seeds: int = 1
) -> tuple[Real, dict[str, Any], Program, GoldenDevice]:
    """A step: PyTorch's values, the masters after it (the mean over seeds), program and device."""
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (SAMPLES, *graph.input_shape)).clip(-127).astype(np.int8)
    program = compiled(graph, config)
    device = GoldenDevice(config)
    goal: Any = x
    if graph.loss != "squared_error":
        goal = rng.integers(0, graph.classes, SAMPLES)
    elif graph.target == TARGET:
        goal = rng.integers(-127, 128, (SAMPLES, graph.classes)).astype(np.int8)
    floating = goal.astype(np.float64) if goal.dtype == np.int8 else goal
    real = Real(graph, x.astype(np.float64), floating, rng)
    sums: dict[str, Any] = dict.fromkeys(program.schedule.parameters, 0)
    for seed in range(seeds):
        load(device, program, real)
        device.write_csr("SEED", seed)
        write(device, program, INPUT, x)
        if goal.dtype != np.int8:
            write(device, program, LABELS, goal.astype(np.uint8))
        elif graph.target == TARGET:
            write(device, program, TARGET, goal)
        device.run(program.entry(TRAIN))
        for name, master in masters(device, program).items():
            sums[name] = sums[name] + master
    means = sums if seeds == 1 else {name: total / seeds for name, total in sums.items()}
    return real, means, program, device


def error(real: Real, after: dict[str, Any], name: str) -> float:
    """Relative distance of a step from PyTorch's."""
    change = (after[name] - real.masters[name]) * 2.0 ** (real.exponents[name] - 8)
    expected = -real.weights[name].grad.numpy() * 2.0**-RATE / SAMPLES
    return float(np.linalg.norm(change - expected) / np.linalg.norm(expected))


BIG = simulation_config("8x8").replace(program_words=4096)
SMALL = simulation_config("4x4", regions=(1 << 16,) * 3).replace(program_words=4096, acc_depth=32)
UP5K = up5k_config().replace(program_words=4096)


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_a_step_follows_the_gradient(graph: Graph) -> None:
    real, after, _, _ = run_step(graph, BIG, seeds=16)
    errors = {name: error(real, after, name) for name in after}
    assert max(errors.values()) < 0.06, errors


@pytest.mark.parametrize("config", [SMALL, UP5K], ids=["4x4", "up5k"])
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_the_machine_changes_no_bit(graph: Graph, config: Any) -> None:
    expected, found = run_step(graph, BIG)[1], run_step(graph, config)[1]
    for name, master in expected.items():
        assert np.array_equal(master, found[name]), name


@pytest.mark.parametrize("name", ["mirror", "field"])
def test_squared_error_of_a_batch(name: str) -> None:
    graph = GRAPHS[name]
    real, _, program, device = run_step(graph, BIG)
    index = program.schedule.exponents[f"{graph.layers[-1].name}.gradient"]
    exponent = device.read_exponent(index)[0]
    loss = device.read_csr("LOSS") * 4.0**exponent / 2
    assert loss == pytest.approx(real.loss, rel=0.05)


def test_inference_gives_pytorchs_values() -> None:
    for graph in (FIELD, MIRROR):
        real, _, program, device = run_step(graph, BIG)
        load(device, program, real)
        device.run(program.entry(INFER))
        last = graph.layers[-1].name
        tensor = program.schedule.tensors[f"{last}.output"]
        data = device.read_memory(program.plan.address(tensor.name), tensor.bytes)
        exponent = device.read_exponent(program.schedule.exponents[f"{last}.output"])[0]
        y = real.values[last].detach()
        y = (y.permute(0, 2, 3, 1) if y.ndim == 4 else y).numpy().reshape(SAMPLES, -1)
        found = np.frombuffer(data, np.int8).reshape(SAMPLES, -1) * 2.0**exponent
        assert np.linalg.norm(found - y) < 0.03 * np.linalg.norm(y)


def test_options_change_what_they_say_and_nothing_else() -> None:
    plain = run_step(RESIDUAL, BIG)[1]
    options = RESIDUAL.with_options(
        frozen=["a1", "skip"], columns={"b1": [(2, 4), (8, 1)], "a2": [(0, 3)]}
    )
    real, after, program, _ = run_step(options, BIG)
    for name in ("a1", "skip"):
        assert np.array_equal(after[name], real.masters[name])
    for name, columns in (("b1", [2, 3, 4, 5, 8]), ("a2", [0, 1, 2])):
        others = [c for c in range(after[name].shape[-1]) if c not in columns]
        assert np.array_equal(after[name][..., columns], plain[name][..., columns])
        assert np.array_equal(after[name][..., others], real.masters[name][..., others])
    for name in ("stem", "b2", "logits"):
        assert np.array_equal(after[name], plain[name])
    work = {
        step.layer: step.macs
        for step in program.schedule.programs[TRAIN]
        if isinstance(step, Product) and step.transposed
    }
    assert "a1" not in work
    updates = [s for s in program.schedule.programs[TRAIN] if isinstance(s, Product)]
    macs = sum(s.macs for s in updates if s.layer == "b1" and s.transposed)
    assert macs == SAMPLES * 4 * 4 * 9 * 8 * 5
    reduced = run_step(RESIDUAL.with_options(momentum=["b1"], int8_weights=["a2"]), BIG)[1]
    # From rest, the velocity is 16 steps in units of 1/16.
    change, expected = reduced["b1"] - real.masters["b1"], plain["b1"] - real.masters["b1"]
    assert np.linalg.norm(change - expected) < 0.1 * np.linalg.norm(expected)
    assert np.all(reduced["a2"] % 256 == 0)


def test_below_the_first_trainable_layer_nothing_is_computed() -> None:
    frozen = RESIDUAL.with_options(frozen=["stem", "a1", "a2"])
    program = compile_graph(frozen, BIG, 2)
    layers = {
        step.layer
        for step in program.schedule.programs[TRAIN]
        if isinstance(step, Product) and step.pass_.name in ("DX", "DW")
    }
    assert layers == {"b1", "b2", "skip", "pool", "logits"}
    assert "a.gradient" not in program.schedule.tensors
