"""What an imported model means: a graph of layers in real numbers, whatever file it came from.

Every reader (TensorFlow Lite, ONNX, PyTorch) makes a `Meaning`; the conversion to integers starts
from it and is judged against it. Images are (N, H, W, C), weights lie as in the machine's memory:
convolution [ky][kx][cin][cout], depthwise [ky][kx][c], dense [in][out].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from gradiron import reals
from gradiron.errors import ModelError

Float32 = npt.NDArray[np.float32]
Shape = tuple[int, ...]
Pair = tuple[int, int]
Padding = str | tuple[Pair, Pair]

INPUT = "input"
MAX_ELEMENTS = 1 << 26
"""Largest tensor, in elements, that is read: any larger one fits no machine of this kind."""


@dataclass(frozen=True)
class Node:
    """A layer in real numbers.

    Parameters
    ----------
    name : str
    operation : str
        "conv", "depthwise", "dense", "max_pool", "average_pool", "add" or "flatten".
    inputs : tuple of str
        Names of earlier nodes, or "input".
    weight, bias : float32 array or None
    kernel, stride : (int, int)
        Kernel or window, and its step.
    padding : "same", "valid" or ((top, bottom), (left, right))
    relu : bool
        Negative results become zero.
    ceiling : float or None
        Larger results become this (6 for ReLU6).
    place : str
        Where it stands in the file, for messages.
    """

    name: str
    operation: str
    inputs: tuple[str, ...]
    weight: Float32 | None = None
    bias: Float32 | None = None
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Padding = "valid"
    relu: bool = False
    ceiling: float | None = None
    place: str = ""

    @property
    def weighted(self) -> bool:
        """Whether it has weights."""
        return self.weight is not None


@dataclass(frozen=True)
class Quantisation:
    """How a user's application sees an integer tensor: value = scale * (q - zero_point)."""

    scale: float
    zero_point: int
    unsigned: bool = False


@dataclass(frozen=True)
class Meaning:
    """A model in real numbers.

    Parameters
    ----------
    name, format : str
    input_shape : tuple of int
        (H, W, C) or (features,), without the batch.
    nodes : tuple of Node
        In an order in which inputs come first; the last one gives the output (before a softmax).
    softmax : bool
        Whether the file ends in one.
    input, output : Quantisation or None
        None where the file works with floats.
    pads : dict of int by node
        What padding reads where it is not zero: the zero point, where inputs are stored integers.
    """

    name: str
    format: str
    input_shape: Shape
    nodes: tuple[Node, ...]
    softmax: bool = False
    input: Quantisation | None = None
    output: Quantisation | None = None
    pads: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of one sample of every value.

        Raises
        ------
        ModelError
            Where a layer does not fit its input; all such places are listed.
        """
        shapes: dict[str, Shape] = {INPUT: self.input_shape}
        problems = Problems(self.name)
        for node in self.nodes:
            missing = [name for name in node.inputs if name not in shapes]
            if missing:
                problems.add(node.place, f"its input {missing[0]!r} does not exist before it")
                break
            try:
                shapes[node.name] = node_shape(node, [shapes[name] for name in node.inputs])
            except ModelError as error:
                problems.add(node.place, str(error))
                break
        problems.check()
        return shapes

    def run(
        self,
        x: npt.NDArray[np.floating[Any]],
        visit: Callable[[Node, list[Any], Any], None] | None = None,
    ) -> npt.NDArray[np.floating[Any]]:
        """The output for a batch of inputs (N, ...), without the softmax.

        Parameters
        ----------
        x : (N, ...) float array
        visit : function or None
            Called with (node, inputs, result before ReLU) of every node.
        """
        last_use: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            for name in node.inputs:
                last_use[name] = index
        values: dict[str, Any] = {INPUT: x}
        y = x
        for index, node in enumerate(self.nodes):
            given = [values[name] for name in node.inputs]
            y = compute(node, given, self.pads.get(node.name, 0))
            if visit is not None:
                visit(node, given, y)
            y = activate(node, y)
            values[node.name] = y
            for name in node.inputs:
                if last_use[name] == index:
                    values.pop(name, None)
        return y


class Budget:
    """Bounds what reading a file costs, whatever the file claims.

    Parameters
    ----------
    name : str
        Of the file, for the message.
    limit : int
        Entries that may be read or made in all.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.name, self.limit, self.left = name, limit, limit

    def spend(self, count: int) -> int:
        """Some more entries; returns their number.

        Raises
        ------
        ModelError
            Where it is negative, or the sum too large.
        """
        if not 0 <= count <= self.left:
            raise ModelError(
                f"{self.name} is damaged or too large: a vector claims {count} entries, where "
                f"{self.left} of {self.limit} are left for the rest of the file"
            )
        self.left -= count
        return count


def check_meaning(meaning: Meaning) -> Meaning:
    """The meaning, if its layers fit each other and all its numbers are finite.

    Activations behind pooling stand before it in what is returned.

    Raises
    ------
    ModelError
        With every problem.
    """
    problems = Problems(meaning.name)
    meaning = replace(meaning, nodes=_activations_first(meaning.nodes, problems))
    for node in meaning.nodes:
        if min(node.stride) < 1 or min(node.kernel) < (node.operation != "average_pool"):
            problems.add(
                node.place, f"kernel {node.kernel} with stride {node.stride}; both are at least 1"
            )
        for what, values in (("weight", node.weight), ("bias", node.bias)):
            if values is not None and not np.isfinite(values).all():
                problems.add(node.place, f"a {what} is NaN or infinite")
            if values is not None and not values.size:
                problems.add(node.place, f"its {what} is empty")
    problems.check()
    for name, shape in meaning.shapes.items():
        if prod(shape) > MAX_ELEMENTS:
            problems.add(name, f"shape {shape}; a tensor has at most {MAX_ELEMENTS} elements")
    problems.check()
    if not any(node.weighted for node in meaning.nodes):
        raise ModelError(f"{meaning.name} has no layer with weights")
    return meaning


def _activations_first(nodes: Iterable[Node], problems: Problems) -> tuple[Node, ...]:
    """The nodes, with no activation behind pooling: machines have it before.

    The largest of activated values is the activated largest; of a mean that is not so.
    """
    found = {node.name: node for node in nodes}
    for node in reversed(found.values()):
        if node.operation not in ("max_pool", "average_pool") or not node.relu:
            continue
        source = found.get(node.inputs[0])
        alone = sum(node.inputs[0] in other.inputs for other in found.values()) == 1
        if source is not None and source.relu and node.ceiling in (None, source.ceiling):
            pass  # it has that already
        elif (
            source is not None and node.operation == "max_pool" and alone and source.ceiling is None
        ):
            found[source.name] = replace(source, relu=True, ceiling=node.ceiling)
        else:
            problems.add(
                node.place,
                "a ReLU behind pooling, which cannot stand before it; put it into the layer before",
            )
        found[node.name] = replace(found[node.name], relu=False, ceiling=None)
    return tuple(found.values())


class Problems:
    """Collects everything that is wrong with a file; `check` raises one error with all of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.found: list[str] = []

    def add(self, place: str, what: str) -> None:
        """One more problem."""
        text = f"{place}: {what}" if place else what
        if text not in self.found:
            self.found.append(text)

    def check(self) -> None:
        """Raise ModelError if there are any."""
        if self.found:
            count = len(self.found)
            what = "a problem" if count == 1 else f"{count} problems"
            lines = "\n".join(f"  {text}" for text in self.found)
            raise ModelError(f"{self.name} cannot be imported, there is {what}:\n{lines}")


def node_windows(node: Node, shape: Shape) -> reals.Window:
    """The windows of a node on an image (H, W, C); kernel (0, 0) is the whole image."""
    size = (shape[0], shape[1])
    kernel = size if node.kernel == (0, 0) else node.kernel
    stride = kernel if node.kernel == (0, 0) else node.stride
    return reals.window(size, kernel, stride, node.padding)  # type: ignore[arg-type]


def node_shape(node: Node, inputs: list[Shape]) -> Shape:
    """Shape of a node's result.

    Raises
    ------
    ModelError
        Where the node does not fit its inputs.
    """
    shape = inputs[0]
    match node.operation:
        case "flatten":
            return (prod(shape),)
        case "add":
            if len(inputs) != 2 or inputs[0] != inputs[1]:
                raise ModelError(f"an addition of the shapes {inputs}; they must be equal")
            return shape
        case "dense":
            weight = _weight(node)
            if len(shape) != 1 or shape[0] != weight.shape[0]:
                raise ModelError(
                    f"a dense layer with {weight.shape[0]} inputs gets the shape {shape}"
                )
            return (weight.shape[1],)
        case _:
            pass
    if len(shape) != 3:
        raise ModelError(f"{node.operation} needs an image (H, W, C), it gets the shape {shape}")
    out = node_windows(node, shape).out
    if min(out) < 1:
        raise ModelError(f"an image of {shape[0]} x {shape[1]} is smaller than {node.kernel}")
    if node.operation == "conv":
        weight = _weight(node)
        if weight.shape[2] != shape[2]:
            raise ModelError(
                f"a convolution of {weight.shape[2]} channels gets an image of {shape[2]}"
            )
        return (*out, weight.shape[3])
    if node.operation == "depthwise" and _weight(node).shape[2] != shape[2]:
        raise ModelError(
            f"a depthwise convolution of {_weight(node).shape[2]} channels gets {shape[2]}"
        )
    return (*out, shape[2])


def _weight(node: Node) -> Float32:
    if node.weight is None:
        raise ModelError(f"{node.operation} has no weights")
    return node.weight


def compute(node: Node, inputs: list[Any], pad: int = 0) -> Any:
    """A node's result before its activation; padding of convolutions reads `pad`."""
    x = inputs[0]
    if pad and node.operation in ("conv", "depthwise"):
        # conv(x padded with p) = conv(x - p padded with zeros) + p * sum of the kernel
        axes = (0, 1, 2) if node.operation == "conv" else (0, 1)
        return compute(node, [x - pad]) + pad * _weight(node).sum(axis=axes)
    match node.operation:
        case "flatten":
            return x.reshape(len(x), -1)
        case "add":
            return x + inputs[1]
        case "dense":
            return x @ _weight(node) + node.bias
        case _:
            pass
    windows = node_windows(node, x.shape[1:])
    match node.operation:
        case "conv":
            return reals.conv(x, _weight(node), _bias(node), windows)
        case "depthwise":
            return reals.depthwise(x, _weight(node), _bias(node), windows)
        case "max_pool":
            return reals.max_pool(x, windows)
        case "average_pool":
            scale = 2.0 ** reals.pooling_shift(windows.taps) / windows.taps
            return reals.average_pool(x, windows) * x.dtype.type(scale)
        case other:
            raise AssertionError(other)


def _bias(node: Node) -> Float32:
    assert node.bias is not None
    return node.bias


def activate(node: Node, y: Any) -> Any:
    """ReLU and ceiling."""
    if node.relu:
        y = np.maximum(y, 0)
    if node.ceiling is not None:
        y = np.minimum(y, node.ceiling)
    return y


def softmax(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Softmax over the last axis."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def fusion(nodes: Iterable[Node]) -> dict[str, str]:
    """Layers whose sums join an addition before they are rounded: the rule of `Graph.fusion`."""
    nodes = tuple(nodes)
    order = {node.name: index for index, node in enumerate(nodes)}
    by_name = {node.name: node for node in nodes}
    found: dict[str, str] = {}
    for add in nodes:
        if add.operation != "add":
            continue
        names = [
            name
            for name in add.inputs
            if name in by_name
            and by_name[name].weighted
            and not by_name[name].relu
            and [node.name for node in nodes if name in node.inputs] == [add.name]
        ]
        if names:
            found[max(names, key=lambda name: order[name])] = add.name
    return found


def without_dead_ends(nodes: Iterable[Node], output: str) -> tuple[Node, ...]:
    """The nodes that the output needs, in their order."""
    by_name: Mapping[str, Node] = {node.name: node for node in nodes}
    needed: set[str] = set()
    waiting = [output]
    while waiting:
        name = waiting.pop()
        if name in needed or name not in by_name:
            continue
        needed.add(name)
        waiting += by_name[name].inputs
    return tuple(node for name, node in by_name.items() if name in needed)
