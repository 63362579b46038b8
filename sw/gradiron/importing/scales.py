"""Channel scales: how a model's values are divided by powers of two and shared between layers.

A machine has one power-of-two exponent per tensor and no per-channel scales. Every channel of every
value gets a real scale 2**u (real value = 2**u * stored value), which is multiplied into the
weights on both sides: it costs nothing at run time. The scales minimise the expected rounding
error of weights and values, by gradient descent on a closed formula; no pass through the network is
needed but the one that measures magnitudes.

Ref: M. Nagel et al., "Data-free quantization through weight equalization and bias correction",
ICCV 2019 (scales shared by neighbouring layers); D. Kingma and J. Ba, "Adam", ICLR 2015.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log2
from typing import Any

import numpy as np
import numpy.typing as npt

from gradiron import reals
from gradiron.importing.meaning import INPUT, Meaning, Node, activate, node_windows

Real = npt.NDArray[np.floating[Any]]

LEVELS = 127
ADAM_STEPS = 500
ADAM_RATE = 0.05
FRACTIONS = 16
"""Steps of a factor of two in which a whole tensor's scale is tried."""
FEEDBACK = 0.1
"""What rounding with error feedback leaves of the error of independent rounding: a guess that only
weighs weights against values. From 0.03 to 1 the error of the two models of `docs/importing.md`
stays between .027 and .030, and .023 and .028."""
REACHED = 1 - 1e-6
"""Share of a ceiling from which a channel is taken to be cut by it."""
LN2 = float(np.log(2.0))
TINY = 1e-12


@dataclass(frozen=True)
class View:
    """How a value sees a vector of scales.

    Parameters
    ----------
    variable : int
        Which vector.
    offset : float
        Added to all of it: average pooling divides by a power of two instead of by n.
    repeat : int
        How often it is repeated: pixels of a flattened image.
    """

    variable: int
    offset: float = 0.0
    repeat: int = 1


@dataclass
class Statistics:
    """Magnitudes of a value per channel: the largest, and the mean square."""

    largest: Real
    square: Real
    count: int = 0

    def add(self, x: Any) -> None:
        """More samples (N, ..., C)."""
        flat = np.asarray(x, np.float64).reshape(-1, self.largest.size)
        self.largest = np.maximum(self.largest, np.abs(flat).max(axis=0))
        total = self.square * self.count + (flat**2).sum(axis=0)
        self.count += len(flat)
        self.square = total / max(1, self.count)


@dataclass
class _Layer:
    """A layer with weights as the cost sees it."""

    node: Node
    weight: Real
    """[K, in, out] of a convolution or dense layer, [K, c] of a depthwise one."""
    taps: int
    source: View
    target: View
    square: Real
    """Mean square of the input, per channel."""
    gain: float
    """1 / sum of the mean squares of the output."""


@dataclass
class _Tensor:
    """A value that is rounded, on the grid of another where it keeps that one's exponent."""

    view: View
    grid: View
    largest: Real
    """Of the value that decides the grid."""
    gain: float


@dataclass
class Scales:
    """The scales of a network.

    Attributes
    ----------
    views : dict of View by value
    u : list of arrays
        log2 of the scales, by variable.
    fixed : set of int
        Variables that stay 0: input and output.
    least : dict of arrays
        Of variables with a ceiling: the least log2 of their scales.
    held : dict of arrays of bool
        Of these: channels that stay at their least.
    """

    views: dict[str, View] = field(default_factory=dict[str, View])
    u: list[Real] = field(default_factory=list[Real])
    fixed: set[int] = field(default_factory=set[int])
    least: dict[int, Real] = field(default_factory=dict[int, Real])
    held: dict[int, npt.NDArray[np.bool_]] = field(default_factory=dict[int, npt.NDArray[np.bool_]])

    def hold(self) -> None:
        """Move scales to where ceilings allow them."""
        for index, least in self.least.items():
            u = np.maximum(self.u[index], least)
            self.u[index] = np.where(self.held[index], least, u)

    def of(self, view: View) -> Real:
        """log2 of the scales of every channel (or element) of a value."""
        return np.tile(self.u[view.variable] + view.offset, view.repeat)

    def value(self, name: str) -> Real:
        """As `of`, by the name of the value."""
        return self.of(self.views[name])


def measure(meaning: Meaning, x: Real, portion: int = 64) -> dict[str, Statistics]:
    """Magnitudes of every value over calibration samples.

    Parameters
    ----------
    meaning : Meaning
    x : (N, ...) float array
        As `Meaning.run` takes it.
    """
    shapes = meaning.shapes
    found = {
        name: Statistics(np.zeros(shape[-1]), np.zeros(shape[-1])) for name, shape in shapes.items()
    }

    def visit(node: Node, inputs: list[Any], y: Any) -> None:
        del inputs
        found[node.name].add(activate(node, y))

    for start in range(0, len(x), portion):
        part = x[start : start + portion]
        found[INPUT].add(part)
        meaning.run(part, visit)
    return found


def tie(meaning: Meaning) -> Scales:
    """The variables of a network: values that must share their scales do.

    Additions tie their inputs; pooling and flattening hand scales through; a convolution whose
    result goes into an addition shares the scales of the sum.
    """
    shapes = meaning.shapes
    parent: dict[str, str] = {name: name for name in shapes}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    views: dict[str, tuple[str, float, int]] = {}
    for name in shapes:
        views[name] = (name, 0.0, 1)
    for node in meaning.nodes:
        base, offset, repeat = views[node.inputs[0]]
        shape = shapes[node.inputs[0]]
        match node.operation:
            case "max_pool":
                views[node.name] = (base, offset, repeat)
            case "average_pool":
                taps = node_windows(node, shape).taps
                more = reals.pooling_shift(taps) - log2(taps)
                views[node.name] = (base, offset + more, repeat)
            case "flatten":
                pixels = shape[0] * shape[1] if len(shape) == 3 else 1
                views[node.name] = (base, offset, repeat * pixels)
            case "add":
                # Two values that are tied must have the same offset: true of all but pooled ones.
                other = views[node.inputs[1]]
                parent[root(base)] = root(other[0])
                parent[node.name] = root(other[0])
                views[node.name] = (node.name, other[1], 1)
            case _:
                pass
    scales = Scales()
    number: dict[str, int] = {}
    for name, (base, offset, repeat) in views.items():
        top = root(base)
        if top not in number:
            number[top] = len(scales.u)
            scales.u.append(np.zeros(shapes[top][-1]))
        scales.views[name] = View(number[top], offset, repeat)
    scales.fixed = {
        scales.views[INPUT].variable,
        scales.views[meaning.nodes[-1].name].variable,
    }
    return scales


def _ceilings(meaning: Meaning, scales: Scales, found: dict[str, Statistics]) -> None:
    """What ceilings that cut something ask of the scales.

    A ceiling is the saturation of int8. So channels that reach it have one scale, at which it is
    the largest int8 times a power of two, and no other channel may reach beyond.
    """
    for node in meaning.nodes:
        view, largest = scales.views[node.name], found[node.name].largest
        if node.ceiling is None or largest.max() < REACHED * node.ceiling:
            continue
        if view.variable in scales.fixed or view.repeat != 1:
            continue
        # Everything is about 1, as in the first guess.
        at = log2(node.ceiling * 2.0 ** LEVELS.bit_length() / LEVELS) - view.offset
        held = largest >= REACHED * node.ceiling
        least = np.where(held, at, at + np.log2(np.maximum(largest, TINY) / node.ceiling))
        if view.variable in scales.least:
            least = np.maximum(least, scales.least[view.variable])
            held = held | scales.held[view.variable]
        scales.least[view.variable], scales.held[view.variable] = least, held


def _layers(meaning: Meaning, scales: Scales, found: dict[str, Statistics]) -> list[_Layer]:
    layers: list[_Layer] = []
    for node in meaning.nodes:
        if node.weight is None:
            continue
        w = node.weight.astype(np.float64)
        w = w.reshape(-1, *w.shape[2:]) if w.ndim > 2 else w[None]
        source = found[node.inputs[0]]
        layers.append(
            _Layer(
                node,
                w,
                w.shape[0],
                scales.views[node.inputs[0]],
                scales.views[node.name],
                source.square + TINY,
                1.0 / (found[node.name].square.sum() + TINY),
            )
        )
    return layers


def _tensors(meaning: Meaning, scales: Scales, found: dict[str, Statistics]) -> list[_Tensor]:
    tensors: list[_Tensor] = []
    for node in meaning.nodes[:-1]:
        if node.operation in ("flatten", "max_pool"):
            continue
        name = node.name
        if node.operation == "average_pool":
            # The mean keeps the exponent of what it is a mean of, however small it is.
            name = node.inputs[0]
        tensors.append(
            _Tensor(
                scales.views[node.name],
                scales.views[name],
                found[name].largest + TINY,
                1.0 / (found[node.name].square.sum() + TINY),
            )
        )
    return tensors


def _up(value: float) -> float:
    """The next power of two."""
    return 2.0 ** np.ceil(np.log2(value))


def _cost(
    scales: Scales, layers: list[_Layer], tensors: list[_Tensor], *, powers: bool = False
) -> tuple[float, list[Real]]:
    """Expected relative error of all layers, and its derivative by every u."""
    total = 0.0
    slope = [np.zeros_like(u) for u in scales.u]

    def push(view: View, values: Real) -> None:
        slope[view.variable] += values.reshape(view.repeat, -1).sum(axis=0)

    for layer in layers:
        ui, uo = scales.of(layer.source), scales.of(layer.target)
        if layer.node.operation == "depthwise":
            magnitude = np.abs(layer.weight) * 2.0 ** (ui - uo)
            errors = layer.gain * layer.taps * layer.square * 4.0 ** (uo - ui)
            ins = outs = errors
        else:
            magnitude = np.abs(layer.weight) * 2.0 ** (ui[None, :, None] - uo[None, None, :])
            outs = 4.0**uo
            ins = layer.square * 4.0**-ui
            scale = layer.gain * layer.taps
            ins, outs = ins * outs.sum() * scale, outs * ins.sum() * scale
        largest = int(magnitude.argmax())
        step = float(magnitude.reshape(-1)[largest]) / LEVELS + TINY
        step = _up(step) if powers else step
        cost = FEEDBACK * step * step / 12
        total += cost * float(outs.sum())
        if powers:
            continue
        push(layer.target, 2 * LN2 * cost * outs)
        push(layer.source, -2 * LN2 * cost * ins)
        top = 2 * LN2 * cost * float(outs.sum())
        at = np.unravel_index(largest, magnitude.shape)
        first, last = np.zeros_like(ui), np.zeros_like(uo)
        first[at[1]] = top
        last[at[-1]] = top
        push(layer.source, first)
        push(layer.target, -last)
    for tensor in tensors:
        u = scales.of(tensor.view)
        stored = tensor.largest / 2.0 ** scales.of(tensor.grid)
        largest = int(stored.argmax())
        step = float(stored[largest]) / LEVELS
        step = _up(step) if powers else step
        errors = tensor.gain * step * step / 12 * 4.0**u
        total += float(errors.sum())
        if powers:
            continue
        push(tensor.view, 2 * LN2 * errors)
        top = np.zeros_like(stored)
        top[largest] = -2 * LN2 * float(errors.sum())
        push(tensor.grid, top)
    return total, slope


def equalise(meaning: Meaning, found: dict[str, Statistics], steps: int = ADAM_STEPS) -> Scales:
    """The scales that minimise the expected error.

    Parameters
    ----------
    meaning : Meaning
    found : dict of Statistics
        From `measure`.
    steps : int
        Steps of the descent.
    """
    scales = tie(meaning)
    # A first guess: every channel reaches 1, so that biases of 2048 times that are possible.
    for name, view in scales.views.items():
        if view.variable not in scales.fixed and view.repeat == 1 and view.offset == 0:
            largest = found[name].largest
            floor = max(float(largest.max()) * 2.0**-6, TINY)
            scales.u[view.variable] = np.log2(np.maximum(largest, floor))
    _ceilings(meaning, scales, found)
    scales.hold()
    layers, tensors = _layers(meaning, scales, found), _tensors(meaning, scales, found)
    first = [np.zeros_like(u) for u in scales.u]
    second = [np.zeros_like(u) for u in scales.u]
    best, best_u = np.inf, [u.copy() for u in scales.u]
    for step in range(1, steps + 1):
        cost, slope = _cost(scales, layers, tensors)
        if cost < best:
            best, best_u = cost, [u.copy() for u in scales.u]
        rate = ADAM_RATE * (1.0 - 0.9 * step / steps)
        for index, g in enumerate(slope):
            if index in scales.fixed:
                continue
            g = g / cost
            first[index] = 0.9 * first[index] + 0.1 * g
            second[index] = 0.99 * second[index] + 0.01 * g * g
            m = first[index] / (1 - 0.9**step)
            v = second[index] / (1 - 0.99**step)
            scales.u[index] -= rate * m / (np.sqrt(v) + 1e-9)
        scales.hold()
    scales.u = best_u
    _fill(scales, layers, tensors)
    return scales


def _fill(scales: Scales, layers: list[_Layer], tensors: list[_Tensor]) -> None:
    """Move whole tensors within a factor of two, so that powers of two are filled well."""
    best = _cost(scales, layers, tensors, powers=True)[0]
    for _ in range(4):
        before = best
        for index in range(len(scales.u)):
            if index in scales.fixed or index in scales.least:
                continue
            start, chosen = scales.u[index], scales.u[index]
            for part in range(1, FRACTIONS):
                scales.u[index] = start + part / FRACTIONS
                cost = _cost(scales, layers, tensors, powers=True)[0]
                if cost < best:
                    best, chosen = cost, scales.u[index]
            scales.u[index] = chosen
        if best >= before * (1 - 1e-6):
            return
