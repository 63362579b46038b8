"""Layer graphs: networks as data, and the training step that follows from them by rule.

`Graph` is a list of layers with shapes, checked when it is made. `derive` walks it forwards and
then in reverse, takes each pass of each layer from `gradiron.operations.OPERATIONS`, and gives a
`Schedule`: the tensors in memory, the entries of the exponent table, and the symbolic steps of the
programs "train" and "infer". dX of a layer always comes before its update. Where a value feeds
several layers, their gradients are added as they come: each dX adds what there is to its own.

Nothing here depends on the size of the array or on the place of a tensor, so that the same network
has the same tensor numbers, and with them the same random numbers, on every machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from gradiron.arch.config import TENSORS
from gradiron.arch.isa import REGISTER_BY_NAME, Out
from gradiron.arch.numerics import MAX_REDUCTION
from gradiron.errors import ModelError, PlanError
from gradiron.operations import (
    LABELS,
    LOSSES,
    MAX_CLASSES,
    OPERATIONS,
    PREDICTIONS,
    SOFTMAX,
    TARGET,
    CountStep,
    Gradient,
    Layer,
    LossStep,
    Parameter,
    ParameterShape,
    Product,
    Shape,
    Site,
    Step,
    Value,
    constant,
    gradient_sum,
)
from gradiron.reals import window

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
        logits, or what is compared with the target.
    loss : str
        A key of `LOSSES`.
    target : str
        What a squared error compares with: "input" (an auto-encoder) or "target", a tensor that
        the host writes.

    Raises
    ------
    ModelError
        For an operation that is not known, an input that does not exist, shapes that do not fit.
    """

    name: str
    input_shape: Shape
    layers: tuple[Layer, ...]
    loss: str = SOFTMAX
    target: str = INPUT

    def __post_init__(self) -> None:
        if not self.layers:
            raise ModelError(f"network {self.name!r} has no layers")
        if self.loss not in LOSSES:
            raise ModelError(f"loss {self.loss!r} is not known; there are: {', '.join(LOSSES)}")
        if self.target not in (INPUT, TARGET):
            raise ModelError(f"target {self.target!r} is not known; there are: {INPUT}, {TARGET}")
        if not self.input_shape or min(self.input_shape) < 1:
            raise ModelError(f"input shape {self.input_shape}: every size must be at least 1")
        self._check_layers()
        self._check_last()

    def _check_layers(self) -> None:
        used: dict[str, bool] = {INPUT: False}
        for layer in self.layers:
            if layer.operation not in OPERATIONS:
                raise ModelError(
                    f"layer {layer.name!r}: operation {layer.operation!r} is not known; "
                    f"there are: {', '.join(OPERATIONS)}"
                )
            if layer.name in used:
                raise ModelError(f"two layers are called {layer.name!r}; names must be unique")
            if layer.momentum and layer.int8_weights:
                raise ModelError(
                    f"layer {layer.name!r}: momentum needs 16-bit masters; choose either momentum "
                    "or int8-only weights"
                )
            for source in layer.inputs:
                if source not in used:
                    raise ModelError(
                        f"layer {layer.name!r} reads {source!r}, which no earlier layer is called"
                    )
                used[source] = True
            used[layer.name] = False
        last = self.layers[-1]
        for name, found in used.items():
            if found == (name == last.name):
                raise ModelError(
                    f"{name!r} is {'used' if found else 'not used'}; every result but the last "
                    "layer's is used by a later layer"
                )

    def _check_last(self) -> None:
        last = self.layers[-1]
        shape = self.shapes[last.name]
        if OPERATIONS[last.operation].parameters is None or last.relu:
            raise ModelError(
                f"the last layer, {last.name!r}, must be a layer with weights and without ReLU"
            )
        if LOSSES[self.loss].labels:
            if len(shape) != 1 or not 2 <= shape[0] <= MAX_CLASSES:
                raise ModelError(
                    f"the last layer, {last.name!r}, gives the shape {shape}; the loss takes 2 to "
                    f"{MAX_CLASSES} classes"
                )
        elif self.target == INPUT and prod(shape) != self.features:
            raise ModelError(
                f"the last layer, {last.name!r}, gives the shape {shape}, and the input that it is "
                f"compared with has {self.input_shape}; they must have the same size"
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

    # --- how layers are connected ---------------------------------------------------------------

    def owner(self, name: str) -> str:
        """The layer (or "input") whose tensor a result is, through views."""
        while name != INPUT and OPERATIONS[self.layer(name).operation].view:
            name = self.layer(name).inputs[0]
        return name

    @cached_property
    def consumers(self) -> dict[str, tuple[str, ...]]:
        """The layers that compute with each tensor, in graph order; views are looked through."""
        found: dict[str, list[str]] = {INPUT: []}
        for layer in self.layers:
            if not OPERATIONS[layer.operation].view:
                found[layer.name] = []
                for source in layer.inputs:
                    found[self.owner(source)].append(layer.name)
        return {name: tuple(names) for name, names in found.items()}

    @cached_property
    def fusion(self) -> dict[str, str]:
        """Layers whose result is added to another value as it is computed, and that addition.

        Of the inputs of an addition the last one that comes from a layer with weights, has no
        ReLU and is used by nothing else: that layer is computed in the place of the addition, and
        its sums are not rounded before.
        """
        order = {layer.name: index for index, layer in enumerate(self.layers)}
        found: dict[str, str] = {}
        for layer in self.layers:
            if not OPERATIONS[layer.operation].sum:
                continue
            names = [
                name
                for name in layer.inputs
                if name in self.parameters
                and not self.layer(name).relu
                and self.consumers[name] == (layer.name,)
            ]
            if names:
                found[max(names, key=lambda name: order[name])] = layer.name
        return found

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The layers that compute something, each fused one in the place of its addition."""
        fused = {add: name for name, add in self.fusion.items()}
        return tuple(
            fused.get(layer.name, layer.name)
            for layer in self.layers
            if not OPERATIONS[layer.operation].view and layer.name not in self.fusion
        )

    @cached_property
    def gradients(self) -> dict[str, str]:
        """The name of every tensor's gradient: of the layer itself, or of what it is added to."""
        found: dict[str, str] = {}
        for name, users in reversed(self.consumers.items()):
            if name == INPUT:
                continue
            alone = len(users) == 1 and OPERATIONS[self.layer(users[0]).operation].sum
            shared = alone and not self.layer(name).relu
            found[name] = found[users[0]] if shared else f"{name}.gradient"
        return found

    @cached_property
    def constants(self) -> dict[str, int]:
        """Entries of the exponent table that never change, and their exponents."""
        found: set[int] = set()
        for layer in self.layers:
            rule = OPERATIONS[layer.operation].constants
            if rule is not None:
                found.update(rule(layer, tuple(self.shapes[s] for s in layer.inputs)))
        return {constant(exponent): exponent for exponent in sorted(found, reverse=True)}

    # --- what there is --------------------------------------------------------------------------

    @property
    def classes(self) -> int:
        """Number of classes; of a squared error the size of the output."""
        return prod(self.shapes[self.layers[-1].name])

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
        columns: Mapping[str, Iterable[tuple[int, int]]] | None = None,
    ) -> Graph:
        """A copy in which exactly the named layers have an option; None leaves it as it is.

        `columns` gives the output channels that are updated, as ranges (first, number) by layer.
        """
        named = {"frozen": frozen, "int8_weights": int8_weights, "momentum": momentum}
        sets = {key: frozenset(names) for key, names in named.items() if names is not None}
        for names in sets.values():
            for name in names:
                self.layer(name)
        layers = tuple(
            dataclasses.replace(layer, **{key: layer.name in names for key, names in sets.items()})
            for layer in self.layers
        )
        if columns is not None:
            for name in columns:
                self.layer(name)
            layers = tuple(
                dataclasses.replace(layer, columns=tuple(columns.get(layer.name, ())))
                for layer in layers
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
            for key in ("kernel", "stride"):
                if key in fields:
                    fields[key] = tuple(given[key])
            if not isinstance(given.get("padding", ""), str):
                (top, bottom), (left, right) = given["padding"]
                fields["padding"] = (top, bottom), (left, right)
            if "columns" in fields:
                fields["columns"] = tuple((first, count) for first, count in given["columns"])
            layers.append(Layer(**fields))
        return cls(
            values["name"],
            tuple(values["input_shape"]),
            tuple(layers),
            values["loss"],
            values.get("target", INPUT),
        )

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
    "target": "targets",
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
    lead : int
        Zeros before the data of each padded row.
    exponent : str
        Entry of the exponent table; "" without.
    layer : str
    persistent : bool
        Whether it outlives a program: parameters.
    host_writes, host_reads : bool
        Whether the host writes it before a program starts, or reads it after.
    part : str
        For planes: "high", "low" or "argmax".
    """

    name: str
    kind: str
    bytes: int
    shape: Shape
    pitch: int = 0
    lead: int = 0
    exponent: str = ""
    layer: str = ""
    persistent: bool = False
    host_writes: bool = False
    host_reads: bool = False
    part: str = ""


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
        Of a layer that is fused into an addition, that of the addition.
    constants : dict of exponent by name
        Entries of the exponent table that the host writes once.
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
    constants: dict[str, int] = field(default_factory=dict[str, int])
    twins: dict[str, str] = field(default_factory=dict[str, str])


class Builder:
    """Collects tensors and exponent entries."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.exponents: dict[str, int] = {}

    def tensor(self, name: str, kind: str, shape: Shape, **options: Any) -> str:
        """A tensor of bytes, or of `element` bytes each; returns its name."""
        element = options.pop("element", 1)
        pitch = options.get("pitch", 0)
        size = shape[0] * pitch if pitch else prod(shape) * element
        self.tensors[name] = Tensor(name, kind, size, shape, **options)
        return name

    def exponent(self, name: str) -> str:
        """The next entry of the exponent table; returns its name."""
        self.exponents[name] = len(self.exponents)
        return name


def add_parameter(build: Builder, layer: Layer, shape: ParameterShape, exponent: str) -> Parameter:
    """Tensors for weights and biases as the layer's options ask."""
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


# --- the backward pass, in names ------------------------------------------------------------------


@dataclass(frozen=True)
class _Flow:
    """A gradient on its way into a value.

    Attributes
    ----------
    value : str
        The layer whose value it is the gradient of.
    into : str
        The tensor written; an entry of the exponent table has the same name.
    skip : str
        The earlier partial gradient that is added; "": none.
    operand : str
        The gradient that passes an addition; "" where an operation's dX is computed.
    layer : str
        That addition.
    """

    value: str
    into: str
    skip: str
    operand: str = ""
    layer: str = ""


class _Flows:
    """The gradients of a network's backward pass, site by site, from the last to the first."""

    def __init__(self, graph: Graph, learns: Mapping[str, bool]) -> None:
        self.graph = graph
        self.learns = learns
        self.left = {name: len(users) for name, users in graph.consumers.items()}
        self.pending: dict[str, list[str]] = {name: [] for name in graph.consumers}

    def of(self, name: str) -> list[_Flow]:
        """The gradients that the site of a layer gives to what feeds it."""
        graph, flows = self.graph, list[_Flow]()
        add = graph.fusion.get(name, name if OPERATIONS[graph.layer(name).operation].sum else "")
        if add:
            for source in graph.layer(add).inputs:
                value = graph.owner(source)
                if value != name and self.learns[value]:
                    flows += self._through(value, graph.gradients[add], add)
        if add != name:
            for source in graph.layer(name).inputs:
                value = graph.owner(source)
                if self.learns[value]:
                    flows += self._computed(value, name)
        return flows

    def _through(self, value: str, gradient: str, add: str) -> Iterator[_Flow]:
        """A gradient as it is; it is copied only where it must be masked, or added to others."""
        self.left[value] -= 1
        self.pending[value].append(gradient)
        if self.left[value] == 0 and self.graph.gradients[value] != gradient:
            yield from self._settle(value, add)

    def _computed(self, value: str, name: str) -> Iterator[_Flow]:
        self.left[value] -= 1
        pending = self.pending[value]
        skip = pending.pop() if pending else ""
        last = self.left[value] == 0
        if last and not pending:
            yield _Flow(value, self.graph.gradients[value], skip)
            return
        part = f"{value}.gradient.{name}"
        pending.append(part)
        yield _Flow(value, part, skip)
        if last:
            yield from self._settle(value, name)

    def _settle(self, value: str, layer: str) -> Iterator[_Flow]:
        """Add up what is there: all has come."""
        pending = self.pending[value]
        index = 0
        while pending:
            operand = pending.pop()
            skip = pending.pop() if pending else ""
            if not pending:
                yield _Flow(value, self.graph.gradients[value], skip, operand, layer)
                return
            index += 1
            part = f"{value}.gradient.sum{index}"
            pending.append(part)
            yield _Flow(value, part, skip, operand, layer)


def _masked(graph: Graph, value: str, values: Mapping[str, Value]) -> bool:
    """Whether a gradient is zeroed where the value is: after ReLU, unless the masks of all that it
    feeds have done that."""
    users = [graph.layer(name) for name in graph.consumers[value]]
    return values[value].relu and not all(OPERATIONS[u.operation].keeps_sign for u in users)


# --- all of it -----------------------------------------------------------------------------------


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
    check_lanes(graph, lane_bytes)
    build = Builder()
    learns = _learns(graph)
    values = {INPUT: _input_value(build, graph, batch, lane_bytes)}
    parameters: dict[str, Parameter] = {}
    for layer in graph.layers:
        name = layer.name
        if OPERATIONS[layer.operation].view:
            source = values[layer.inputs[0]]
            values[name] = dataclasses.replace(source, shape=graph.shapes[name], channel_pitch=0)
            continue
        if name in graph.parameters:
            entry = build.exponent(f"{name}.weight")
            parameters[name] = add_parameter(build, layer, graph.parameters[name], entry)
        if name not in graph.fusion:
            values[name] = _layer_value(build, graph, layer, batch, values, learns[name])
    for name in reversed(graph.gradients):
        if name in graph.fusion:
            values[name] = values[graph.fusion[name]]
        gradient = graph.gradients[name]
        values[name] = dataclasses.replace(
            values[name],
            gradient=gradient if learns[name] else "",
            gradient_exponent=gradient,
        )
    for layer in graph.layers:
        if OPERATIONS[layer.operation].view and graph.owner(layer.name) != INPUT:
            owner = values[graph.owner(layer.name)]
            values[layer.name] = dataclasses.replace(
                values[layer.name],
                gradient=owner.gradient,
                gradient_exponent=owner.gradient_exponent,
            )
    _partial_entries(build, graph)
    target = _target(build, graph, batch, values)
    for name in graph.constants:
        build.exponent(name)
    if len(build.exponents) > TENSORS:
        raise ModelError(
            f"network {graph.name!r} has {len(build.exponents)} tensors with an exponent; the "
            f"machine has {TENSORS} entries (one for the input and three per layer with weights)"
        )
    sites = [_site(graph, name, batch, values, parameters) for name in graph.order]
    programs = _programs(build, graph, batch, sites, values, learns, target)
    for steps in programs.values():
        for step in steps:
            if isinstance(step, Product):
                check_product(step, batch)
    return Schedule(
        build.tensors, build.exponents, programs, batch, parameters, values, graph.constants
    )


def _learns(graph: Graph) -> dict[str, bool]:
    """Whether anything trainable lies at or before each layer."""
    trainable = graph.trainable()
    learns = {INPUT: False}
    for layer in graph.layers:
        learns[layer.name] = layer.name in trainable or any(learns[s] for s in layer.inputs)
    return learns


def _input_value(build: Builder, graph: Graph, batch: int, lane_bytes: int) -> Value:
    """The input: samples, or pixels where these must begin at even offsets."""
    shape, features = graph.input_shape, graph.features
    channels = shape[-1]
    options: dict[str, Any] = {"exponent": build.exponent(INPUT), "host_writes": True}
    flat = all(len(graph.shapes[s]) == 1 for s in _image_inputs(graph))
    if flat or channels % lane_bytes == 0:
        pitch = -(-features // lane_bytes) * lane_bytes
        tensor = build.tensor(INPUT, "input", (batch, features), pitch=pitch, **options)
        return Value(shape, pitch, tensor, INPUT, "", "", "", False)
    lead = _row_lead(graph, lane_bytes)
    if lead is not None:
        height, width = shape[0], shape[1] * channels
        pitch = -(-(lead + width) // lane_bytes) * lane_bytes
        tensor = build.tensor(
            INPUT, "input", (batch * height, width), pitch=pitch, lead=lead, **options
        )
        size = height * pitch
        return Value(shape, size, tensor, INPUT, "", "", "", False, row_pitch=pitch, lead=lead)
    pixel = -(-channels // lane_bytes) * lane_bytes
    pixels = features // channels
    tensor = build.tensor(INPUT, "input", (batch * pixels, channels), pitch=pixel, **options)
    return Value(shape, pixels * pixel, tensor, INPUT, "", "", "", False, channel_pitch=pixel)


def _row_lead(graph: Graph, lane_bytes: int) -> int | None:
    """Zeros before the rows of an image with which all windows begin at even offsets.

    None where there is no such number: then the pixels themselves are padded.
    """
    channels = graph.input_shape[-1]
    leads: set[int] = set()
    for name in graph.consumers[INPUT]:
        layer = graph.layer(name)
        if layer.operation != "conv" or layer.pad or layer.stride[1] * channels % lane_bytes:
            return None
        found = window(
            (graph.input_shape[0], graph.input_shape[1]), layer.kernel, layer.stride, layer.padding
        )
        leads.add(found.before[1] * channels % lane_bytes)
    return leads.pop() if len(leads) == 1 and graph.loss == SOFTMAX else None


def _image_inputs(graph: Graph) -> set[str]:
    """The names under which layers compute with the network's input: itself, or a view of it."""
    return {
        source
        for layer in graph.layers
        for source in layer.inputs
        if graph.owner(source) == INPUT and not OPERATIONS[layer.operation].view
    }


def _layer_value(
    build: Builder,
    graph: Graph,
    layer: Layer,
    batch: int,
    values: Mapping[str, Value],
    learns: bool,
) -> Value:
    """Tensors and entries of what a layer gives."""
    name, shape = layer.name, graph.shapes[layer.name]
    operation, size = OPERATIONS[layer.operation], prod(shape)
    last = layer is graph.layers[-1]
    entry = build.exponent(f"{name}.output")
    common: dict[str, Any] = {"exponent": entry, "layer": name}
    low = argmax = ""
    if last and LOSSES[graph.loss].labels:
        data = build.tensor(f"{name}.logits.high", "logits", (batch, size), part="high", **common)
        low = build.tensor(f"{name}.logits.low", "logits", (batch, size), part="low", **common)
    else:
        data = build.tensor(
            f"{name}.output", "activation", (batch, size), host_reads=last, **common
        )
    if operation.keeps_sign:
        argmax = build.tensor(
            f"{name}.argmax", "activation", (batch, size), layer=name, part="argmax"
        )
    if graph.gradients[name] == f"{name}.gradient":
        common["exponent"] = build.exponent(f"{name}.gradient")
        if learns:
            build.tensor(f"{name}.gradient", "gradient", (batch, size), **common)
    relu = layer.relu
    if operation.keeps_sign:
        relu = values[layer.inputs[0]].relu
    return Value(shape, size, data, entry, low, "", "", relu, argmax=argmax)


def _partial_entries(build: Builder, graph: Graph) -> None:
    """Entries for partial gradients, the same whatever is frozen."""
    flows = _Flows(graph, {name: name != INPUT for name in graph.consumers})
    for name in reversed(graph.order):
        for flow in flows.of(name):
            if flow.into not in build.exponents:
                build.exponent(flow.into)


def _target(build: Builder, graph: Graph, batch: int, values: Mapping[str, Value]) -> Value | None:
    """What a squared error compares with."""
    if LOSSES[graph.loss].labels:
        return None
    if graph.target == INPUT:
        return values[INPUT]
    y = values[graph.layers[-1].name]
    build.tensor(
        TARGET, "target", (batch, y.size), exponent=build.exponent(TARGET), host_writes=True
    )
    return dataclasses.replace(y, tensor=TARGET, exponent=TARGET)


def _site(
    graph: Graph,
    name: str,
    batch: int,
    values: Mapping[str, Value],
    parameters: Mapping[str, Parameter],
) -> Site:
    layer = graph.layer(name)
    xs = tuple(values[source] for source in layer.inputs)
    site = Site(layer, batch, xs, values[name], parameters.get(name), relu=layer.relu)
    if name not in graph.fusion:
        return site
    add = graph.layer(graph.fusion[name])
    (other,) = (source for source in add.inputs if source != name)
    return dataclasses.replace(site, relu=add.relu, skip=values[other])


def _programs(
    build: Builder,
    graph: Graph,
    batch: int,
    sites: list[Site],
    values: dict[str, Value],
    learns: Mapping[str, bool],
    target: Value | None,
) -> dict[str, tuple[Step, ...]]:
    loss, last = LOSSES[graph.loss], values[graph.layers[-1].name]
    programs: dict[str, tuple[Step, ...]] = {}
    if loss.labels:
        build.tensor(PREDICTIONS, "predictions", (batch,), host_reads=True)
    if learns[graph.layers[-1].name]:
        if loss.labels:
            build.tensor(LABELS, "labels", (batch,), host_writes=True)
        *before, final = _forward(sites)
        programs[TRAIN] = (
            *before,
            *loss.train(batch, final, last, target),
            *_backward(build, sites, graph, values, learns),
            CountStep(),
        )
    *before, final = _forward([dataclasses.replace(site, train=False) for site in sites])
    programs[INFER] = (*before, *loss.infer(batch, final, last))
    return programs


def _forward(sites: list[Site]) -> list[Product]:
    steps: list[Product] = []
    for site in sites:
        rule = OPERATIONS[site.layer.operation].forward
        assert rule is not None
        steps += rule(site)
    return steps


def _backward(
    build: Builder,
    sites: list[Site],
    graph: Graph,
    values: Mapping[str, Value],
    learns: Mapping[str, bool],
) -> list[Product]:
    """From the last layer to the first: dX where something before it learns, then dW."""
    steps: list[Product] = []
    trainable = graph.trainable()
    flows = _Flows(graph, learns)
    for site in reversed(sites):
        operation = OPERATIONS[site.layer.operation]
        for flow in flows.of(site.layer.name):
            value = values[flow.value]
            if flow.into not in build.tensors:
                common: dict[str, Any] = {"exponent": flow.into, "layer": flow.value}
                build.tensor(flow.into, "gradient", (site.batch, value.size), **common)
            final = flow.into == value.gradient
            mask = value.tensor if final and _masked(graph, flow.value, values) else ""
            into = Gradient(flow.into, flow.into, mask, flow.skip, flow.skip)
            if flow.operand:
                operand = flow.operand
                steps.append(gradient_sum(flow.layer, site.batch, value, operand, operand, into))
            else:
                assert operation.dx is not None
                steps += operation.dx(site, into)
        if operation.dw is not None and site.layer.name in trainable:
            steps += operation.dw(site)
    return steps


def check_product(product: Product, batch: int) -> None:
    """Limits of the counters that depend on the batch.

    Raises
    ------
    ModelError
        Where one is exceeded.
    """
    name = f"layer {product.layer!r}"
    for what, count, limit in (
        ("pixels in all images", product.pixels, REGISTER_BY_NAME["N_P"].limit),
        ("rows of pixels in an image", product.y, REGISTER_BY_NAME["N_Y"].limit),
        ("pixels in all images", product.transposed * product.pixels, MAX_REDUCTION),
    ):
        if count > limit:
            raise ModelError(
                f"{name} has {count} {what} at batch {batch}; a product takes up to {limit}; use "
                "a smaller batch or smaller images"
            )


def check_lanes(graph: Graph, lane_bytes: int) -> None:
    """Rows of weights and pixels of results are unpadded: they start at even offsets if even.

    Raises
    ------
    PlanError
        For an odd number of channels where `lane_bytes` is 2.
    """
    if lane_bytes == 1:
        return
    for layer in graph.layers:
        units = graph.shapes[layer.name][-1]
        if OPERATIONS[layer.operation].view:
            continue
        if units % lane_bytes:
            raise PlanError(
                f"layer {layer.name!r} has {units} outputs, and this machine reads memory in words "
                f"of {lane_bytes} bytes, so that outputs must be even; use {units + 1} (of "
                "classes, one may stay unused)"
            )
        if any(first % lane_bytes for first, _ in layer.columns):
            raise PlanError(
                f"layer {layer.name!r} updates the columns {layer.columns}, and this machine reads "
                f"memory in words of {lane_bytes} bytes, so that every range must begin at an even "
                "column"
            )
    seen = {len(graph.shapes[name]) for name in _image_inputs(graph)}
    if len(seen) > 1 and graph.input_shape[-1] % lane_bytes:
        raise PlanError(
            f"the input {graph.input_shape} is read as an image and flat, and this machine reads "
            f"memory in words of {lane_bytes} bytes; use an even number of channels"
        )


__all__ = [
    "INFER",
    "INPUT",
    "INPUT_EXPONENT",
    "KINDS",
    "TRAIN",
    "Builder",
    "CountStep",
    "Graph",
    "LossStep",
    "Product",
    "Schedule",
    "Step",
    "Tensor",
    "add_parameter",
    "check_lanes",
    "check_product",
    "derive",
]
