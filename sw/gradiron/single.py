"""One layer alone, each of its passes a program of its own: for measurements and tests.

The products are those that the layer has in a network: the same table, lowered in the same way.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gradiron.arch.config import Config
from gradiron.compiler import Program, lower, step_costs
from gradiron.errors import DataError, ModelError, PlanError
from gradiron.graph import Builder, Schedule, add_parameter, check_product
from gradiron.memory import place
from gradiron.operations import (
    OPERATIONS,
    Gradient,
    Layer,
    Parameter,
    ParameterShape,
    Product,
    Shape,
    Site,
    Value,
)

if TYPE_CHECKING:
    from gradiron.device import Device

FORWARD, DX, DW = "forward", "dx", "dw"
PASSES = (FORWARD, DX, DW)
X, OTHER, Y, ARGMAX, DY, DX_TENSOR, SKIP, PARTIAL = (
    *("x", "other", "y", "argmax", "dy", "dx", "skip", "partial"),
)


@dataclass(frozen=True)
class LayerProgram:
    """The passes of a layer.

    Attributes
    ----------
    program : Program
        Entries "forward", "dx" and "dw", as far as the layer has them.
    layer : Layer
    input_shape, output_shape : tuple of int
        Of one sample.
    batch : int
    parameter : Parameter or None
        Names of the tensors of weights and biases.
    """

    program: Program
    layer: Layer
    input_shape: Shape
    output_shape: Shape
    batch: int
    parameter: Parameter | None

    @property
    def weight(self) -> ParameterShape:
        """Shapes of the parameters of a layer that has some."""
        assert self.parameter is not None
        return self.parameter.shape

    def macs(self, entry: str) -> int:
        """Logical products of a pass."""
        return self.program.macs(entry)

    def write(self, device: Device, name: str, values: npt.NDArray[np.generic]) -> None:
        """Write a tensor: "x", "dy", "skip" ..., or one named by `parameter`.

        Raises
        ------
        DataError
            For another number of elements than the tensor has.
        """
        placement = self.program.plan.placements[name]
        tensor = placement.tensor
        if values.size != prod(tensor.shape):
            raise DataError(
                f"tensor {name!r} has the shape {tensor.shape}; {values.shape} does not fit it"
            )
        rows = np.ascontiguousarray(values).reshape(tensor.shape)
        if tensor.pitch:
            padded = np.zeros((tensor.shape[0], tensor.pitch), rows.dtype)
            padded[:, : tensor.shape[1]] = rows
            rows = padded
        little = rows.astype(rows.dtype.newbyteorder("<"))
        device.write_memory(placement.address, little.tobytes())

    def read(self, device: Device, name: str, kind: npt.DTypeLike = np.int8) -> npt.NDArray[Any]:
        """Read a tensor, in the shape that it has in memory."""
        placement = self.program.plan.placements[name]
        data = device.read_memory(placement.address, placement.tensor.bytes)
        return np.frombuffer(data, kind).reshape(placement.tensor.shape)

    def index(self, name: str) -> int:
        """Number of an entry of the exponent table; entries are called as the tensors, and
        "weight"."""
        return self.program.schedule.exponents[name]

    def fill(self, device: Device, seed: int = 1) -> None:
        """Write the program, random numbers to all tensors, and exponents that fit them."""
        self.prepare(device)
        random = np.random.Generator(np.random.PCG64(seed))
        for name, placement in self.program.plan.placements.items():
            data = random.integers(-127, 128, placement.tensor.bytes).astype(np.int8)
            if placement.tensor.kind == "bias":
                data[3::4] = data[2::4] >> 7
            device.write_memory(placement.address, data.tobytes())
            if name in self.program.schedule.exponents:
                device.write_exponent(self.index(name), -7, -2)
        if self.parameter is not None:
            device.write_exponent(self.index("weight"), -7)

    def prepare(self, device: Device) -> None:
        """Write the program and the exponents that never change."""
        device.write_program(self.program.words)
        schedule = self.program.schedule
        for name, exponent in schedule.constants.items():
            device.write_exponent(schedule.exponents[name], exponent)


def layer_program(
    config: Config,
    layer: Layer,
    input_shape: Shape,
    batch: int = 1,
    *,
    masked: bool = False,
    skip: bool = False,
    partial: bool = False,
    passes: tuple[str, ...] = PASSES,
) -> LayerProgram:
    """The passes of one layer on a machine.

    Parameters
    ----------
    config : Config
    layer : Layer
        Its inputs and name do not matter.
    input_shape : tuple of int
        Of one sample.
    batch : int
    masked : bool
        The input comes from a ReLU: dX is masked with it.
    skip : bool
        A residual is added to the result.
    partial : bool
        dX is added to an earlier partial gradient.
    passes : tuple of str
        Those wanted, of "forward", "dx" and "dw".

    Raises
    ------
    ModelError
        For an operation that computes nothing, or options that a machine cannot have.
    PlanError
        Where memory or program memory is too small, or channels are odd on a machine with two-byte
        lanes.
    """
    operation = OPERATIONS[layer.operation]
    if operation.forward is None:
        raise ModelError(f"{layer.operation} computes nothing")
    count = 2 if operation.sum else 1
    layer = dataclasses.replace(layer, inputs=(X, OTHER)[:count])
    shapes = (input_shape,) * count
    output_shape = operation.shape(layer, shapes)
    shape = operation.parameters(layer, shapes) if operation.parameters else None
    lanes = config.lane_bytes
    if output_shape[-1] % lanes:
        raise PlanError(
            f"{output_shape[-1]} outputs; this machine reads memory in words of {lanes} bytes, so "
            f"that outputs must be even; use {output_shape[-1] + 1}"
        )
    build = Builder()
    odd = input_shape[-1] % lanes != 0
    xs = tuple(_value(build, name, input_shape, batch, lanes) for name in layer.inputs)
    y = _value(build, Y, output_shape, batch, lanes)
    gradient = build.exponent(DY)
    _tensor(build, DY, output_shape, batch, "gradient")
    y = dataclasses.replace(y, gradient=DY, gradient_exponent=gradient, relu=layer.relu)
    if operation.keeps_sign:
        _tensor(build, ARGMAX, output_shape, batch, "activation")
        y = dataclasses.replace(y, argmax=ARGMAX)
    parameter = None
    if shape is not None:
        parameter = add_parameter(build, layer, shape, build.exponent("weight"))
    residual = _value(build, SKIP, output_shape, batch, lanes) if skip else None
    site = Site(layer, batch, xs, y, parameter, relu=layer.relu, skip=residual)
    programs: dict[str, tuple[Product, ...]] = {}
    if FORWARD in passes:
        programs[FORWARD] = operation.forward(site)
    if DX in passes and operation.dx is not None and not odd:
        into = Gradient(
            DX_TENSOR, build.exponent(DX_TENSOR), X if masked else "", PARTIAL if partial else ""
        )
        if partial:
            _tensor(build, PARTIAL, input_shape, batch, "gradient")
            into = dataclasses.replace(into, skip_exponent=build.exponent(PARTIAL))
        _tensor(build, DX_TENSOR, input_shape, batch, "gradient")
        programs[DX] = operation.dx(site, into)
    if DW in passes and operation.dw is not None and not layer.frozen:
        programs[DW] = operation.dw(site)
    constants: dict[str, int] = {}
    for exponent in operation.constants(layer, shapes) if operation.constants else ():
        constants[build.exponent(f"constant.{exponent}")] = exponent
    for products in programs.values():
        for product in products:
            check_product(product, batch)
    parameters = {} if parameter is None else {layer.name: parameter}
    schedule = Schedule(
        build.tensors,
        build.exponents,
        dict(programs),
        batch,
        parameters,
        {X: xs[0], Y: y},
        constants,
    )
    plan = place(schedule, config, cost=step_costs(schedule, config))
    if plan is None:
        needed = sum(tensor.bytes for tensor in build.tensors.values())
        raise PlanError(
            f"the tensors of the layer have {needed} bytes; the machine has {config.memory_bytes} "
            f"in regions of {', '.join(str(size) for size in config.regions)}; use smaller sizes "
            "or more memory"
        )
    return LayerProgram(lower(plan), layer, input_shape, output_shape, batch, parameter)


def _tensor(build: Builder, name: str, shape: Shape, batch: int, kind: str, pixel: int = 0) -> None:
    """A tensor that keeps its place in all programs."""
    options: dict[str, Any] = {"persistent": True, "host_writes": True, "host_reads": True}
    if name in build.exponents:
        options["exponent"] = name
    if pixel:
        pixels = batch * prod(shape) // shape[-1]
        build.tensor(name, kind, (pixels, shape[-1]), pitch=pixel, **options)
    else:
        build.tensor(name, kind, (batch, prod(shape)), **options)


def _value(build: Builder, name: str, shape: Shape, batch: int, lanes: int) -> Value:
    """A tensor of a layer, with rows (or pixels) at even offsets where the machine needs that."""
    build.exponent(name)
    channels = shape[-1]
    pixel = -(-channels // lanes) * lanes
    _tensor(build, name, shape, batch, "activation", pixel if pixel != channels else 0)
    pitch = prod(shape) // channels * pixel
    return Value(shape, pitch, name, name, "", "", "", False, channel_pitch=pixel)


__all__ = ["DW", "DX", "FORWARD", "PASSES", "LayerProgram", "layer_program"]
