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
from gradiron.graph import INPUT, INPUT_EXPONENT, Graph
from gradiron.operations import OPERATIONS, Layer, Real

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


def _grid(values: Real, exponent: int) -> Float64:
    """The nearest int8 values with an exponent, as real numbers."""
    q = sat8(np.rint(np.ldexp(values.astype(np.float64), -exponent)))
    return np.ldexp(q.astype(np.float64), exponent)


def calibrate(
    graph: Graph,
    parameters: Parameters,
    x: npt.NDArray[np.int8],
    labels: npt.NDArray[np.int64],
    *,
    input_exponent: int = INPUT_EXPONENT,
) -> dict[str, tuple[int, int, int]]:
    """First entries of the exponent table, from a few samples.

    Parameters
    ----------
    graph : Graph
    parameters : dict of LayerParameters
    x : (N, ...) int8 array
    labels : (N,) int64 array
    input_exponent : int

    Returns
    -------
    dict of (exponent, tracker exponent, 0) by name, as in `Schedule.exponents`.
    """
    flat = check_inputs(x, graph.features)
    labels = check_labels(labels, graph.classes, len(flat))
    found = {INPUT: input_exponent}
    values: dict[str, Real] = {
        INPUT: np.ldexp(flat.reshape(-1, *graph.input_shape).astype(np.float64), input_exponent)
    }
    least: dict[str, int] = {INPUT: input_exponent}
    last = graph.layers[-1]
    none = np.zeros(0)
    for layer in graph.layers:
        operation = OPERATIONS[layer.operation]
        source = layer.inputs[0]
        p = parameters.get(layer.name)
        weight, bias = (none, none) if p is None else (p.weight8(), p.real_bias())
        y = operation.compute(layer, (values[source],), weight, bias)
        if layer.relu:
            y = np.maximum(y, 0)
        least[layer.name] = least[source]
        if not operation.view:
            lowest = least[source] + (0 if p is None else p.exponent)
            found[f"{layer.name}.weight"] = 0 if p is None else p.exponent
            exponent = _need(float(np.abs(y).max()), lowest)
            if layer is not last:
                y = _grid(y, exponent)
            found[f"{layer.name}.output"] = LOGIT_EXPONENT if layer is last else exponent
            least[layer.name] = exponent
        values[layer.name] = y

    z = numerics.sat16(np.rint(np.ldexp(values[last.name].astype(np.float64), -LOGIT_EXPONENT)))
    g = numerics.softmax_gradient(numerics.softmax(z).probability, labels)
    shift = numerics.gradient_shift(int(np.abs(g).max()))
    exponent = shift - numerics.PROBABILITY_BITS
    gradient: Real = _grid(np.ldexp(g.astype(np.float64), -numerics.PROBABILITY_BITS), exponent)
    found[f"{last.name}.gradient"] = exponent
    owner = last.name
    for layer in reversed(graph.layers):
        source = layer.inputs[0]
        operation = OPERATIONS[layer.operation]
        p = parameters.get(layer.name)
        weight = none if p is None else p.weight8()
        gradient = operation.gradient(layer, (values[source],), weight, gradient)[0][0]
        if not operation.view and p is not None:
            least[owner] = exponent + p.exponent
        if source == INPUT or operation.view:
            continue
        producer = _producer(graph, source)
        exponent = _need(float(np.abs(gradient).max()), least[owner])
        found[f"{producer.name}.gradient"] = exponent
        gradient = _grid(gradient, exponent)
        if producer.relu:
            gradient = gradient * (values[producer.name].reshape(gradient.shape) > 0)
        owner = producer.name
    return {name: (exponent, exponent, 0) for name, exponent in found.items()}


def _producer(graph: Graph, name: str) -> Layer:
    """The layer whose tensor a result is, through views."""
    layer = graph.layer(name)
    while OPERATIONS[layer.operation].view:
        layer = graph.layer(layer.inputs[0])
    return layer


CALIBRATION_SAMPLES = 64


def initial_state(
    graph: Graph,
    seed: int,
    x: npt.NDArray[np.int8],
    labels: npt.NDArray[np.int64],
    *,
    parameters: Parameters | None = None,
    input_exponent: int = INPUT_EXPONENT,
) -> State:
    """A state to begin training from.

    Parameters
    ----------
    graph : Graph
    seed : int
        For the weights.
    x, labels
        Samples; the first 64 calibrate the exponents.
    parameters : dict of LayerParameters or None
        Weights to begin with instead of random ones.
    input_exponent : int
    """
    if parameters is None:
        parameters = initial_parameters(graph, seed)
    else:
        parameters = {
            name: fit_options(parameters[name], graph.layer(name)) for name in graph.parameters
        }
    samples = slice(0, CALIBRATION_SAMPLES)
    exponents = calibrate(
        graph, parameters, x[samples], labels[samples], input_exponent=input_exponent
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
        device.write_exponent(index, *state.exponents.get(name, (0, 0, 0)))
    device.write_csr("STEP", state.step & 0xFFFFFFFF)


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
    for name, index in program.schedule.exponents.items():
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
