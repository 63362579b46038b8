"""Layer graphs: networks as data, and the training step that follows from them by rule.

`Graph` is a list of layers with shapes, checked when it is made. `derive` walks it forwards and
then in reverse, takes each pass of each layer from `gradiron.operations.OPERATIONS`, and gives a
`Schedule`: the tensors in memory, the entries of the exponent table, and the symbolic steps of the
programs "train" and "infer". dX of a layer always comes before its update.

Nothing here depends on the size of the array or on the place of a tensor, so that the same network
has the same tensor numbers, and with them the same random numbers, on every machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, TypeAlias

from gradiron.arch.config import TENSORS
from gradiron.arch.isa import Out
from gradiron.errors import ModelError, PlanError
from gradiron.operations import (
    LABELS,
    LOSSES,
    MAX_CLASSES,
    OPERATIONS,
    PREDICTIONS,
    Layer,
    LossStep,
    Parameter,
    ParameterShape,
    Product,
    Shape,
    Site,
    Value,
)

INPUT = "input"
INPUT_EXPONENT = -7
"""Exponent of the input: its values are from -127/128 to 127/128."""
TRAIN, INFER = "train", "infer"


@dataclass(frozen=True)
class Graph:
    """A network.

    Parameters
    ----------
    name : str
    input_shape : tuple of int
        Shape of one sample.
    layers : tuple of Layer
        In an order in which every layer comes after those that feed it; the last one gives the
        logits.
    loss : str
        A key of `LOSSES`.

    Raises
    ------
    ModelError
        For an operation that is not known, an input that does not exist, shapes that do not fit.
    """

    name: str
    input_shape: Shape
    layers: tuple[Layer, ...]
    loss: str = "softmax_cross_entropy"

    def __post_init__(self) -> None:
        if not self.layers:
            raise ModelError(f"network {self.name!r} has no layers")
        if self.loss not in LOSSES:
            raise ModelError(f"loss {self.loss!r} is not known; there are: {', '.join(LOSSES)}")
        if not self.input_shape or min(self.input_shape) < 1:
            raise ModelError(f"input shape {self.input_shape}: every size must be at least 1")
        uses: dict[str, int] = {INPUT: 0}
        for layer in self.layers:
            if layer.operation not in OPERATIONS:
                raise ModelError(
                    f"layer {layer.name!r}: operation {layer.operation!r} is not known; "
                    f"there are: {', '.join(OPERATIONS)}"
                )
            if layer.name in uses:
                raise ModelError(f"two layers are called {layer.name!r}; names must be unique")
            if layer.momentum and layer.int8_weights:
                raise ModelError(
                    f"layer {layer.name!r}: momentum needs 16-bit masters; choose either momentum "
                    "or int8-only weights"
                )
            for source in layer.inputs:
                if source not in uses:
                    raise ModelError(
                        f"layer {layer.name!r} reads {source!r}, which no earlier layer is called"
                    )
                uses[source] += 1
            uses[layer.name] = 0
        last = self.layers[-1]
        for name, count in uses.items():
            if count != (name != last.name):
                raise ModelError(
                    f"{name!r} is used {count} times; every result is used exactly once (the last "
                    "layer's by the loss alone)"
                )
        if OPERATIONS[last.operation].view or last.relu:
            raise ModelError(
                f"the last layer, {last.name!r}, must give logits: a layer with weights, no ReLU"
            )
        shape = self.shapes[last.name]
        if len(shape) != 1 or not 2 <= shape[0] <= MAX_CLASSES:
            raise ModelError(
                f"the last layer, {last.name!r}, gives the shape {shape}; the loss takes 2 to "
                f"{MAX_CLASSES} classes"
            )

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shape of one sample of every result, and of "input"."""
        shapes: dict[str, Shape] = {INPUT: self.input_shape}
        for layer in self.layers:
            inputs = tuple(shapes[source] for source in layer.inputs)
            shapes[layer.name] = OPERATIONS[layer.operation].shape(layer, inputs)
        return shapes

    @cached_property
    def parameters(self) -> dict[str, ParameterShape]:
        """Parameter shapes of every layer that has some, in graph order."""
        found: dict[str, ParameterShape] = {}
        for layer in self.layers:
            rule = OPERATIONS[layer.operation].parameters
            if rule is not None:
                found[layer.name] = rule(layer, tuple(self.shapes[s] for s in layer.inputs))
        return found

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.shapes[self.layers[-1].name][0]

    @property
    def features(self) -> int:
        """Elements of one input sample."""
        return prod(self.input_shape)

    def layer(self, name: str) -> Layer:
        """The layer of that name."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise ModelError(
            f"no layer is called {name!r}; there are: {', '.join(x.name for x in self.layers)}"
        )

    def trainable(self) -> tuple[str, ...]:
        """Names of the layers whose parameters are updated."""
        return tuple(name for name in self.parameters if not self.layer(name).frozen)

    def with_options(
        self,
        *,
        frozen: Iterable[str] | None = None,
        int8_weights: Iterable[str] | None = None,
        momentum: Iterable[str] | None = None,
    ) -> Graph:
        """A copy in which exactly the named layers have an option; None leaves it as it is."""
        named = {"frozen": frozen, "int8_weights": int8_weights, "momentum": momentum}
        sets = {key: frozenset(names) for key, names in named.items() if names is not None}
        for names in sets.values():
            for name in names:
                self.layer(name)
        layers = tuple(
            dataclasses.replace(layer, **{key: layer.name in names for key, names in sets.items()})
            for layer in self.layers
        )
        return dataclasses.replace(self, layers=layers)

    def to_dict(self) -> dict[str, Any]:
        """All there is, as plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Graph:
        """The inverse of `to_dict`, also after a round through JSON."""
        layers: list[Layer] = []
        for given in values["layers"]:
            fields: dict[str, Any] = dict(given)
            fields["inputs"] = tuple(given["inputs"])
            layers.append(Layer(**fields))
        return cls(values["name"], tuple(values["input_shape"]), tuple(layers), values["loss"])

    def __str__(self) -> str:
        sizes = [str(self.features), *(str(prod(self.shapes[x.name])) for x in self.layers)]
        return f"{self.name} ({'-'.join(sizes)})"


# --- tensors and steps ---------------------------------------------------------------------------

KINDS = {
    "input": "inputs",
    "activation": "activations",
    "logits": "logits",
    "gradient": "gradients",
    "weight": "int8 weights (high planes)",
    "master": "master weights (low planes)",
    "bias": "biases",
    "momentum": "momentum",
    "labels": "labels",
    "predictions": "predictions",
    "operand": "operands",
}
"""Kinds of tensors, and what a user reads."""


@dataclass(frozen=True)
class Tensor:
    """A contiguous piece of memory.

    Parameters
    ----------
    name : str
    kind : str
        A key of `KINDS`.
    bytes : int
    shape : tuple of int
        Elements; the batch is in front where there is one.
    pitch : int
        Bytes from one row of `shape` to the next, where rows may be padded; 0: dense.
    exponent : str
        Entry of the exponent table; "" without.
    layer : str
    persistent : bool
        Whether it outlives a program: parameters.
    host_writes, host_reads : bool
        Whether the host writes it before a program starts, or reads it after.
    part : str
        For planes: "high" or "low".
    """

    name: str
    kind: str
    bytes: int
    shape: Shape
    pitch: int = 0
    exponent: str = ""
    layer: str = ""
    persistent: bool = False
    host_writes: bool = False
    host_reads: bool = False
    part: str = ""


@dataclass(frozen=True)
class CountStep:
    """The STEP instruction."""

    layer: str = "step"
    macs: int = 0
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


Step: TypeAlias = Product | LossStep | CountStep


@dataclass(frozen=True)
class Schedule:
    """A network's tensors, exponent entries and programs, without addresses.

    Attributes
    ----------
    tensors : dict of Tensor by name
    exponents : dict of index by name
    programs : dict of steps by entry name
    batch : int
        Samples of a program run.
    parameters : dict of Parameter by layer
    values : dict of Value by layer
    twins : dict of entry by entry
        Entries of tensors that are computed a second time: they begin with the tracker of the
        entry named, and from then on see the same.
    """

    tensors: dict[str, Tensor]
    exponents: dict[str, int]
    programs: dict[str, tuple[Step, ...]]
    batch: int
    parameters: dict[str, Parameter]
    values: dict[str, Value]
    twins: dict[str, str] = field(default_factory=dict[str, str])


class _Builder:
    """Collects tensors and exponent entries."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.exponents: dict[str, int] = {}

    def tensor(self, name: str, kind: str, shape: Shape, **options: Any) -> str:
        element = options.pop("element", 1)
        pitch = options.get("pitch", 0)
        size = shape[0] * pitch if pitch else prod(shape) * element
        self.tensors[name] = Tensor(name, kind, size, shape, **options)
        return name

    def exponent(self, name: str) -> str:
        self.exponents[name] = len(self.exponents)
        return name


def _parameter(build: _Builder, layer: Layer, shape: ParameterShape, exponent: str) -> Parameter:
    name = layer.name
    train = not layer.frozen
    common: dict[str, Any] = {"exponent": exponent, "layer": name, "persistent": True}
    high = build.tensor(f"{name}.weight.high", "weight", shape.weight, part="high", **common)
    low = vh = vl = vb = ""
    if train and not layer.int8_weights:
        low = build.tensor(f"{name}.weight.low", "master", shape.weight, part="low", **common)
    common["exponent"] = ""
    bias = build.tensor(f"{name}.bias", "bias", (shape.bias,), element=4, **common)
    if train and layer.momentum:
        vh = build.tensor(f"{name}.momentum.high", "momentum", shape.weight, part="high", **common)
        vl = build.tensor(f"{name}.momentum.low", "momentum", shape.weight, part="low", **common)
        vb = build.tensor(f"{name}.momentum.bias", "momentum", (shape.bias,), element=4, **common)
    out = Out.MOMENTUM if vh else Out.MASTER if low else Out.INT8_WEIGHTS
    return Parameter(shape, exponent, high, low, bias, vh, vl, vb, out)


def derive(graph: Graph, batch: int, *, lane_bytes: int = 1) -> Schedule:
    """The training and inference steps of a network, by rule.

    Parameters
    ----------
    graph : Graph
    batch : int
        Samples of one step.
    lane_bytes : int
        2 for a machine whose windows start at even offsets.

    Raises
    ------
    ModelError
        For a batch or a number of layers that no machine can handle.
    PlanError
        For odd sizes where `lane_bytes` is 2.
    """
    if not 1 <= batch <= 32768:
        raise ModelError(f"batch is {batch}; it must be from 1 to 32768")
    _check_lanes(graph, lane_bytes)
    build = _Builder()
    values: dict[str, Value] = {}
    parameters: dict[str, Parameter] = {}
    learns: dict[str, bool] = {INPUT: False}

    pitch = -(-graph.features // lane_bytes) * lane_bytes
    tensor = build.tensor(
        INPUT,
        "input",
        (batch, graph.features),
        pitch=pitch,
        exponent=build.exponent(INPUT),
        host_writes=True,
    )
    values[INPUT] = Value(graph.input_shape, pitch, tensor, INPUT, "", "", "", False)

    last = graph.layers[-1]
    for layer in graph.layers:
        operation = OPERATIONS[layer.operation]
        source = values[layer.inputs[0]]
        shape = graph.shapes[layer.name]
        if operation.view:
            learns[layer.name] = learns[layer.inputs[0]]
            values[layer.name] = dataclasses.replace(source, shape=shape)
            continue
        name, size = layer.name, prod(shape)
        weight_entry = build.exponent(f"{name}.weight")
        entry = build.exponent(f"{name}.output")
        gradient_entry = build.exponent(f"{name}.gradient")
        if layer.name in graph.parameters:
            parameters[name] = _parameter(build, layer, graph.parameters[name], weight_entry)
        learns[name] = name in graph.trainable() or any(learns[s] for s in layer.inputs)
        common: dict[str, Any] = {"exponent": entry, "layer": name}
        if layer is last:
            data = build.tensor(
                f"{name}.logits.high", "logits", (batch, size), part="high", **common
            )
            low = build.tensor(f"{name}.logits.low", "logits", (batch, size), part="low", **common)
        else:
            data, low = build.tensor(f"{name}.output", "activation", (batch, size), **common), ""
        gradient = ""
        if learns[name]:
            common["exponent"] = gradient_entry
            gradient = build.tensor(f"{name}.gradient", "gradient", (batch, size), **common)
        values[name] = Value(shape, size, data, entry, low, gradient, gradient_entry, layer.relu)

    if len(build.exponents) > TENSORS:
        raise ModelError(
            f"network {graph.name!r} has {len(build.exponents)} tensors with an exponent; the "
            f"machine has {TENSORS} entries (one for the input and three per layer with weights)"
        )
    build.tensor(PREDICTIONS, "predictions", (batch,), host_reads=True)
    sites = [
        Site(layer, batch, values[layer.inputs[0]], values[layer.name], parameters.get(layer.name))
        for layer in graph.layers
        if not OPERATIONS[layer.operation].view
    ]
    infer = [dataclasses.replace(site, train=False) for site in sites]
    loss = LOSSES[graph.loss]
    programs: dict[str, tuple[Step, ...]] = {}
    if learns[last.name]:
        build.tensor(LABELS, "labels", (batch,), host_writes=True)
        programs[TRAIN] = (
            *_forward(sites),
            loss.train(batch, values[last.name]),
            *_backward(sites, graph, learns),
            CountStep(),
        )
    programs[INFER] = (*_forward(infer), loss.infer(batch, values[last.name]))
    return Schedule(build.tensors, build.exponents, programs, batch, parameters, values)


def _forward(sites: list[Site]) -> list[Product]:
    steps: list[Product] = []
    for site in sites:
        rule = OPERATIONS[site.layer.operation].forward
        assert rule is not None
        steps += rule(site)
    return steps


def _backward(sites: list[Site], graph: Graph, learns: dict[str, bool]) -> list[Product]:
    """From the last layer to the first: dX where something before it learns, then dW."""
    steps: list[Product] = []
    trainable = graph.trainable()
    for site in reversed(sites):
        operation = OPERATIONS[site.layer.operation]
        if operation.dx is not None and any(learns[source] for source in site.layer.inputs):
            steps += operation.dx(site)
        if operation.dw is not None and site.layer.name in trainable:
            steps += operation.dw(site)
    return steps


def _check_lanes(graph: Graph, lane_bytes: int) -> None:
    """Rows of weights and results are unpadded, so that they start at even offsets if even."""
    if lane_bytes == 1:
        return
    for name, shape in graph.parameters.items():
        units = shape.weight[-1]
        if units % lane_bytes:
            raise PlanError(
                f"layer {name!r} has {units} outputs, and this machine reads memory in words of "
                f"{lane_bytes} bytes, so that outputs must be even; use {units + 1} (of classes, "
                "one may stay unused)"
            )
