"""The state of a network: parameters, exponents and trackers, in memory of host and device.

`initial_state` makes it from a seed, `write_state` and `read_state` move it to and from any
device, `compare_states` names the first element that differs, `weights_sha256` sums the weights
up. The first exponents of activations and gradients come from a calibration: one forward and
backward pass over sample data in double precision on quantised values, in which every sum is exact,
so that the same bits come out on every computer.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from math import frexp, sqrt
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gradiron.arch import numerics
from gradiron.arch.numerics import (
    BIAS_EXPONENT,
    LOGIT_EXPONENT,
    MASTER_FRACTION,
    clamp_exponent,
    join_master,
    sat8,
    sat_master,
    split_master,
)
from gradiron.compiler import Program
from gradiron.data import check_inputs, check_labels
from gradiron.errors import DataError, DeviceError
from gradiron.graph import INPUT, INPUT_EXPONENT, Graph, derive
from gradiron.operations import LOSSES, OPERATIONS, Layer, Real

if TYPE_CHECKING:
    from gradiron.device import Device

Int16 = npt.NDArray[np.int16]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@dataclass
class LayerParameters:
    """Parameters of one layer.

    Attributes
    ----------
    master : int16 array, shape as in memory
        Weights, value = M * 2**(exponent - 8). Where there is no low plane: a multiple of 256.
    bias : int32 array
        Exponent -20.
    exponent : int
        Exponent EW of the int8 weights.
    velocity : int16 array or None
    velocity_bias : int32 array or None
        Momentum.
    """

    master: Int16
    bias: Int32
    exponent: int
    velocity: Int16 | None = None
    velocity_bias: Int32 | None = None

    def weight(self) -> Float64:
        """Weights as real numbers."""
        return np.ldexp(self.master.astype(np.float64), self.exponent - MASTER_FRACTION)

    def weight8(self) -> Float64:
        """The int8 weights that the array uses, as real numbers."""
        return np.ldexp(split_master(self.master)[0].astype(np.float64), self.exponent)

    def real_bias(self) -> Float64:
        """Biases as real numbers."""
        return np.ldexp(self.bias.astype(np.float64), BIAS_EXPONENT)


Parameters = dict[str, LayerParameters]
"""Parameters by layer, in graph order."""


@dataclass
class State:
    """All that training carries from one step to the next.

    Attributes
    ----------
    parameters : dict of LayerParameters by layer
    exponents : dict of (exponent, tracker exponent, tracker count) by name
    step : int
        Training steps done; enters the random numbers.
    """

    parameters: Parameters
    exponents: dict[str, tuple[int, int, int]]
    step: int = 0

    def copy(self) -> State:
        """An independent copy."""
        return State(
            {
                name: dataclasses.replace(
                    p,
                    master=p.master.copy(),
                    bias=p.bias.copy(),
                    velocity=None if p.velocity is None else p.velocity.copy(),
                    velocity_bias=None if p.velocity_bias is None else p.velocity_bias.copy(),
                )
                for name, p in self.parameters.items()
            },
            dict(self.exponents),
            self.step,
        )

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Everything as named little-endian arrays, in a fixed order."""
        found: dict[str, npt.NDArray[np.generic]] = {}
        for name, p in self.parameters.items():
            found[f"{name}.master"] = p.master.astype("<i2")
            found[f"{name}.bias"] = p.bias.astype("<i4")
            found[f"{name}.weight exponent"] = np.array([p.exponent], "i1")
            if p.velocity is not None and p.velocity_bias is not None:
                found[f"{name}.momentum"] = p.velocity.astype("<i2")
                found[f"{name}.momentum of the biases"] = p.velocity_bias.astype("<i4")
        for name, entry in sorted(self.exponents.items()):
            found[f"{name}: exponent, tracker, count"] = np.array(entry, "i1")
        found["step"] = np.array([self.step], "<i8")
        return found

    def sha256(self) -> str:
        """Digest of everything: parameters, momentum, exponents, trackers, step."""
        h = hashlib.sha256()
        for name, array in self.arrays().items():
            h.update(f"{name} {array.shape}\0".encode())
            h.update(np.ascontiguousarray(array).tobytes())
        return h.hexdigest()

    def weights_sha256(self) -> str:
        """Digest of the weights alone; see `weights_sha256`."""
        return weights_sha256(self.parameters)


def weights_sha256(parameters: Parameters) -> str:
    """SHA-256 over M int16, B int32, EW int8 of each layer: little-endian, C order, graph order."""
    h = hashlib.sha256()
    for p in parameters.values():
        h.update(np.ascontiguousarray(p.master.astype("<i2")).tobytes())
        h.update(p.bias.astype("<i4").tobytes())
        h.update(np.array([p.exponent], "i1").tobytes())
    return h.hexdigest()


# --- beginnings ----------------------------------------------------------------------------------


def weight_exponent(largest: float) -> int:
    """EW = ceil(log2 largest) - 6: int8 weights with one spare bit."""
    if largest == 0:
        return -MASTER_FRACTION
    fraction, exponent = frexp(largest)
    return clamp_exponent(exponent - (fraction == 0.5) - 6)


def quantise(weight: Float64, bias: Float64) -> LayerParameters:
    """Real parameters to masters, with the exponent that the largest weight asks for."""
    exponent = weight_exponent(float(np.abs(weight).max()))
    master = sat_master(np.rint(np.ldexp(weight, MASTER_FRACTION - exponent)))
    b = numerics.sat32(np.rint(np.ldexp(bias, -BIAS_EXPONENT)))
    return LayerParameters(master.astype(np.int16), b.astype(np.int32), exponent)


def uniform(count: int, *seed: int) -> Float64:
    """`count` numbers from [-1, 1), a function of the seed numbers alone."""
    raw = np.random.PCG64(list(seed)).random_raw(count)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0


def initial_parameters(graph: Graph, seed: int) -> Parameters:
    """He-uniform weights (limit sqrt(6 / fan-in)) and zero biases, quantised.

    Ref: K. He et al., "Delving Deep into Rectifiers", ICCV 2015.
    """
    parameters: Parameters = {}
    for index, (name, shape) in enumerate(graph.parameters.items()):
        # "init" keeps these numbers apart from the orders of the samples.
        numbers = uniform(shape.count, seed, index, *b"init")
        weight = numbers.reshape(shape.weight) * sqrt(6.0 / shape.fan_in)
        found = quantise(weight, np.zeros(shape.bias))
        parameters[name] = fit_options(found, graph.layer(name))
    return parameters


def fit_options(p: LayerParameters, layer: Layer) -> LayerParameters:
    """Parameters as a layer's options keep them: int8 weights rounded, momentum there or not."""
    master = p.master
    if layer.frozen or layer.int8_weights:
        master = (split_master(master)[0].astype(np.int64) << MASTER_FRACTION).astype(np.int16)
    if not layer.momentum or layer.frozen:
        return LayerParameters(master, p.bias, p.exponent)
    velocity = np.zeros(master.shape, np.int16) if p.velocity is None else p.velocity
    bias = np.zeros(p.bias.shape, np.int32) if p.velocity_bias is None else p.velocity_bias
    return LayerParameters(master, p.bias, p.exponent, velocity, bias)


def _need(largest: float, least: int) -> int:
    """The tracker's exponent for a tensor whose largest magnitude is exactly `largest`."""
    if largest == 0:
        return clamp_exponent(least)
    return clamp_exponent(max(least, frexp(largest)[1] - 7))


def _largest(values: Real) -> float:
    return float(np.abs(values).max())


def _grid(values: Real, exponent: int) -> Float64:
    """The nearest int8 values with an exponent, as real numbers."""
    q = sat8(np.rint(np.ldexp(values.astype(np.float64), -exponent)))
    return np.ldexp(q.astype(np.float64), exponent)


def calibrate(
    graph: Graph,
    parameters: Parameters,
    x: npt.NDArray[np.int8],
    y: npt.NDArray[np.int64] | npt.NDArray[np.int8],
    *,
    input_exponent: int = INPUT_EXPONENT,
    target_exponent: int | None = None,
) -> dict[str, tuple[int, int, int]]:
    """First entries of the exponent table, from a few samples.

    Parameters
    ----------
    graph : Graph
    parameters : dict of LayerParameters
    x : (N, ...) int8 array
    y : (N,) int64 array, or (N, ...) int8 array
        Labels, or targets of a squared error.
    input_exponent : int
    target_exponent : int or None
        Of targets; None: that of the inputs.

    Returns
    -------
    dict of (exponent, tracker exponent, 0) by name, as in `Schedule.exponents`.
    """
    flat = check_inputs(x, graph.features)
    real = np.ldexp(flat.reshape(-1, *graph.input_shape).astype(np.float64), input_exponent)
    work = _Calibration(graph, parameters, input_exponent)
    work.forward(real)
    if LOSSES[graph.loss].labels:
        gradient = work.softmax(check_labels(y, graph.classes, len(flat)))
    else:
        exponent = input_exponent if target_exponent is None else target_exponent
        gradient = work.squared_error(check_inputs(y, graph.classes, "targets"), exponent)
    work.backward(gradient)
    return {
        name: (exponent, exponent, 0)
        for name, exponent in work.found.items()
        if name in work.entries
    }


class _Calibration:
    """One pass forward and back on quantised values, in which every sum is exact.

    Members
    -------
    found : dict of int by name
        Exponents.
    entries : set of str
        What the exponent table has; a value without an entry is not rounded.
    """

    def __init__(self, graph: Graph, parameters: Parameters, input_exponent: int) -> None:
        self.graph = graph
        self.parameters = parameters
        self.entries = frozenset(derive(graph, 1).exponents)
        self.found = {INPUT: input_exponent}
        self.last = graph.layers[-1].name
        self._values: dict[str, Real] = {}
        self._exponents = {INPUT: input_exponent}

    def _weights(self, layer: Layer) -> tuple[Real, Real, int]:
        """Weights as the array uses them, biases and the weights' exponent."""
        p = self.parameters.get(layer.name)
        if p is None:
            return np.zeros(0), np.zeros(0), 0
        return p.weight8(), p.real_bias(), p.exponent

    def forward(self, x: Real) -> None:
        """Values of all layers, each with the exponent that it needs."""
        self._values[INPUT] = x
        for layer in self.graph.layers:
            weight, bias, weight_exponent = self._weights(layer)
            xs = tuple(self._values[source] for source in layer.inputs)
            y = OPERATIONS[layer.operation].compute(layer, xs, weight, bias)
            if layer.relu:
                y = np.maximum(y, 0)
            least = self._exponents[layer.inputs[0]] + weight_exponent
            entry = f"{layer.name}.output"
            self.found[f"{layer.name}.weight"] = weight_exponent
            if layer.name != self.last and entry in self.entries:
                if layer.name in self.parameters or len(layer.inputs) > 1:
                    least = _need(_largest(y), least)
                # Pooling keeps the exponent of what it pools.
                y = _grid(y, least)
                self.found[entry] = least
            self._values[layer.name] = y
            self._exponents[layer.name] = least

    def softmax(self, labels: Int64) -> Real:
        """The gradient of the cross-entropy, as the machine computes it."""
        logits = np.ldexp(self._values[self.last].astype(np.float64), -LOGIT_EXPONENT)
        p = numerics.softmax(numerics.sat16(np.rint(logits))).probability
        g = numerics.softmax_gradient(p, labels)
        exponent = numerics.gradient_shift(int(np.abs(g).max())) - numerics.PROBABILITY_BITS
        self.found[f"{self.last}.output"] = LOGIT_EXPONENT
        self.found[f"{self.last}.gradient"] = exponent
        return _grid(np.ldexp(g.astype(np.float64), -numerics.PROBABILITY_BITS), exponent)

    def squared_error(self, target: npt.NDArray[np.int8], target_exponent: int) -> Real:
        """The gradient of the squared error; outputs are kept with the target's exponent."""
        y = self._values[self.last]
        g = y - np.ldexp(target.reshape(y.shape).astype(np.float64), target_exponent)
        exponent = _need(_largest(g), self._exponents[self.last])
        self.found[self.graph.target] = target_exponent
        self.found[f"{self.last}.output"] = target_exponent
        self.found[f"{self.last}.gradient"] = exponent
        return _grid(g, exponent)

    def backward(self, gradient: Real) -> None:
        """Gradients of all values, with the exponents that they and their parts need."""
        gradients = {self.last: gradient}
        exponents = {self.last: self.found[f"{self.last}.gradient"]}
        for layer in reversed(self.graph.layers):
            dy, exponent = gradients.pop(layer.name), exponents[layer.name]
            entry = f"{layer.name}.gradient"
            if layer.name != self.last and entry in self.entries:
                exponent = self.found[entry] = _need(_largest(dy), exponent)
                dy = _grid(dy, exponent)
            if layer.relu:
                dy = dy * (self._values[layer.name] > 0)
            weight, _, weight_exponent = self._weights(layer)
            xs = tuple(self._values[source] for source in layer.inputs)
            dxs = OPERATIONS[layer.operation].gradient(layer, xs, weight, dy)[0]
            least = exponent + weight_exponent
            for source, dx in zip(layer.inputs, dxs, strict=True):
                total = gradients[source] + dx if source in gradients else dx
                part = f"{source}.gradient.{layer.name}"
                if part in self.entries:
                    self.found[part] = _need(_largest(total), least)
                    total = _grid(total, self.found[part])
                gradients[source], exponents[source] = total, least


CALIBRATION_SAMPLES = 64


def initial_state(
    graph: Graph,
    seed: int,
    x: npt.NDArray[np.int8],
    y: npt.NDArray[np.int64] | npt.NDArray[np.int8],
    *,
    parameters: Parameters | None = None,
    input_exponent: int = INPUT_EXPONENT,
    target_exponent: int | None = None,
) -> State:
    """A state to begin training from.

    Parameters
    ----------
    graph : Graph
    seed : int
        For the weights.
    x, y
        Samples with labels, or targets; the first 64 calibrate the exponents.
    parameters : dict of LayerParameters or None
        Weights to begin with instead of random ones.
    input_exponent : int
    target_exponent : int or None
        Of targets; None: that of the inputs.
    """
    if parameters is None:
        parameters = initial_parameters(graph, seed)
    else:
        parameters = {
            name: fit_options(parameters[name], graph.layer(name)) for name in graph.parameters
        }
    samples = slice(0, CALIBRATION_SAMPLES)
    exponents = calibrate(
        graph,
        parameters,
        x[samples],
        y[samples],
        input_exponent=input_exponent,
        target_exponent=target_exponent,
    )
    return State(parameters, exponents)


# --- devices -------------------------------------------------------------------------------------


def write_state(device: Device, program: Program, state: State) -> None:
    """Put a state into a device: all parameters, exponents, trackers and the step.

    Raises
    ------
    DataError
        Where the state belongs to another network.
    """
    schedule = program.schedule
    if list(state.parameters) != list(schedule.parameters):
        raise DataError(
            f"the state has parameters of {', '.join(state.parameters)}, the program of "
            f"{', '.join(schedule.parameters)}"
        )
    for name, names in schedule.parameters.items():
        p = state.parameters[name]
        if p.master.shape != names.shape.weight or p.bias.shape != (names.shape.bias,):
            raise DataError(
                f"layer {name!r}: the state has weights {p.master.shape} and {len(p.bias)} biases, "
                f"the program {names.shape.weight} and {names.shape.bias}"
            )
        high, low = split_master(p.master)
        _write(device, program, names.high, high)
        if names.low:
            _write(device, program, names.low, low)
        _write(device, program, names.bias, p.bias)
        if names.velocity_high:
            velocity = np.zeros(p.master.shape, np.int16) if p.velocity is None else p.velocity
            wide = velocity.astype(np.int64)
            _write(device, program, names.velocity_high, (wide >> 8).astype(np.int8))
            _write(device, program, names.velocity_low, (wide & 255).astype(np.uint8))
            bias = np.zeros(p.bias.shape, np.int32) if p.velocity_bias is None else p.velocity_bias
            _write(device, program, names.velocity_bias, bias)
    for name, index in schedule.exponents.items():
        if name in schedule.constants:
            constant = schedule.constants[name]
            device.write_exponent(index, constant, constant, 0)
        else:
            device.write_exponent(index, *state.exponents.get(_original(program, name), (0, 0, 0)))
    device.write_csr("STEP", state.step & 0xFFFFFFFF)


def _original(program: Program, name: str) -> str:
    """The entry whose tracker another one follows: of what is computed again, the first."""
    return program.schedule.twins.get(name, name)


def _write(device: Device, program: Program, name: str, values: npt.NDArray[np.generic]) -> None:
    little = values.astype(values.dtype.newbyteorder("<"))
    device.write_memory(program.plan.address(name), np.ascontiguousarray(little).tobytes())


def _read(device: Device, program: Program, name: str, kind: str) -> npt.NDArray[np.generic]:
    placement = program.plan.placements[name]
    data = device.read_memory(placement.address, placement.tensor.bytes)
    return np.frombuffer(data, kind).reshape(placement.tensor.shape)


def read_parameters(device: Device, program: Program) -> Parameters:
    """Parameters as the device holds them."""
    found: Parameters = {}
    for name, names in program.schedule.parameters.items():
        high = _read(device, program, names.high, "i1")
        low: npt.NDArray[np.generic] = np.full(high.shape, 128, np.uint8)
        if names.low:
            low = _read(device, program, names.low, "u1")
        master = join_master(high, low).astype(np.int16)
        bias = _read(device, program, names.bias, "<i4").astype(np.int32)
        exponent = device.read_exponent(program.schedule.exponents[names.exponent])[0]
        found[name] = LayerParameters(master, bias, exponent)
        if names.velocity_high:
            wide = _read(device, program, names.velocity_high, "i1").astype(np.int64) << 8
            wide += _read(device, program, names.velocity_low, "u1").astype(np.int64)
            found[name].velocity = wide.astype(np.int16)
            velocity_bias = _read(device, program, names.velocity_bias, "<i4")
            found[name].velocity_bias = velocity_bias.astype(np.int32)
    return found


def read_state(device: Device, program: Program) -> State:
    """The state as the device holds it."""
    exponents: dict[str, tuple[int, int, int]] = {}
    schedule = program.schedule
    for name, index in schedule.exponents.items():
        # What one machine computes again, or keeps as a constant, another may not have.
        if name not in schedule.constants and name not in schedule.twins:
            exponent, tracker, low = device.read_exponent(index)
            exponents[name] = (exponent, tracker, low)
    return State(read_parameters(device, program), exponents, device.read_csr("STEP"))


@dataclass(frozen=True)
class Difference:
    """The first element in which two states differ.

    Attributes
    ----------
    tensor : str
    index : tuple of int
    first, second : int
        The values.
    """

    tensor: str
    index: tuple[int, ...]
    first: int
    second: int

    def __str__(self) -> str:
        where = f"{self.tensor}{list(self.index)}"
        return f"{where} is {self.first} in one and {self.second} in the other"


def compare_states(first: State, second: State) -> Difference | None:
    """The first tensor and element in which two states differ; None where they are equal."""
    one, other = first.arrays(), second.arrays()
    if one.keys() != other.keys():
        raise DeviceError(
            "states of different networks cannot be compared: only one has "
            + ", ".join(sorted(one.keys() ^ other.keys()))
        )
    for name, array in one.items():
        if array.shape != other[name].shape:
            raise DeviceError(
                f"{name} has the shape {array.shape} in one state and {other[name].shape} in the "
                "other"
            )
        unequal = np.argwhere(array != other[name])
        if len(unequal):
            index = tuple(int(i) for i in unequal[0])
            return Difference(name, index, array[index].item(), other[name][index].item())
    return None


def compare_devices(program: Program, first: Device, second: Device) -> Difference | None:
    """As `compare_states`, of the state that two devices hold."""
    return compare_states(read_state(first, program), read_state(second, program))
