"""Builds a `Meaning` from a file whose images have their channels first, as PyTorch and ONNX do.

Readers call one method per operator; the builder turns weights and shapes round, folds batch
normalisation and padding into convolutions, lets activations join the layer before them, and
reorders the weights of a dense layer behind a flattened image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from gradiron.errors import ModelError
from gradiron.importing.meaning import (
    INPUT,
    MAX_ELEMENTS,
    Budget,
    Meaning,
    Node,
    Padding,
    Problems,
    Quantisation,
    check_meaning,
    node_shape,
    without_dead_ends,
)

Array = npt.NDArray[Any]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Flow:
    """A value on its way through the builder.

    Parameters
    ----------
    name : str
        The node that computes it.
    shape : tuple of int
        Without the batch, channels first: (C, H, W) or (features,).
    image : (C, H, W) or None
        Of a flattened image: what it was.
    pad : ((top, bottom), (left, right)) or None
        Zeros around it that the next convolution takes in.
    """

    name: str
    shape: tuple[int, ...]
    image: tuple[int, int, int] | None = None
    pad: tuple[Pair, Pair] | None = None


class Builder:
    """Collects the nodes of a model whose images have channels first."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.problems = Problems(name)
        self.budget = Budget(name, MAX_ELEMENTS)
        self.nodes: dict[str, Node] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.softmax = False
        self.input_shape: tuple[int, ...] = ()

    # --- ends ----------------------------------------------------------------------------------

    def input(self, shape: Sequence[int]) -> Flow:
        """The network's input, (C, H, W) or (features,)."""
        shape = tuple(int(n) for n in shape)
        if len(shape) not in (1, 3) or min(shape, default=0) < 1 or prod(shape) > MAX_ELEMENTS:
            raise ModelError(
                f"{self.name}: input of the shape {shape} without the batch; it must be (channels, "
                "height, width) or (features,)"
            )
        self.input_shape = shape
        self.shapes[INPUT] = self.last(shape)
        return Flow(INPUT, shape)

    def finish(
        self,
        flow: Flow,
        *,
        input: Quantisation | None = None,
        output: Quantisation | None = None,
    ) -> Meaning:
        """The finished meaning.

        Raises
        ------
        ModelError
            With all problems that were found.
        """
        if flow.pad is not None:
            self.problems.add("output", "padding at the end; only convolutions take padding in")
        self.problems.check()
        meaning = Meaning(
            name=self.name,
            format=self.kind,
            input_shape=self.last(self.input_shape),
            nodes=without_dead_ends(self.nodes.values(), flow.name),
            softmax=self.softmax,
            input=input,
            output=output,
        )
        return check_meaning(meaning)

    @staticmethod
    def last(shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape with its channels last."""
        return (*shape[1:], shape[0])

    # --- layers --------------------------------------------------------------------------------

    def put(self, node: Node) -> Flow:
        """Add a node."""
        if node.weight is not None:
            self.budget.spend(node.weight.size)
        try:
            shape = node_shape(node, [self.shapes[name] for name in node.inputs])
        except (ModelError, KeyError, ZeroDivisionError) as error:
            self.problems.add(node.place, str(error))
            shape = (1,)
        self.nodes[node.name] = node
        self.shapes[node.name] = shape
        return Flow(node.name, (shape[-1], *shape[:-1]))

    def unique(self, kind: str) -> str:
        """A name for a node."""
        return f"{kind}{sum(node.operation == kind for node in self.nodes.values()) + 1}"

    def check(self, x: Flow, place: str, *, padded: bool = False) -> None:
        """Note what cannot follow a softmax, or zeros that only a convolution takes in."""
        if self.softmax:
            self.problems.add(place, "it follows a softmax, which must be the last operator")
        if x.pad is not None and not padded:
            self.problems.add(place, "padding before it; only convolutions take padding in")

    def conv(
        self,
        x: Flow,
        weight: Array,
        bias: Array | None,
        *,
        stride: Pair,
        padding: tuple[Pair, Pair],
        dilation: Pair,
        groups: int,
        place: str,
    ) -> Flow:
        """A convolution; weights (cout, cin / groups, kh, kw)."""
        self.check(x, place, padded=True)
        if len(x.shape) != 3 or weight.ndim != 4:
            self.problems.add(place, f"only 2-D convolutions can be mapped, not on {x.shape}")
            return x
        if max(dilation) > 1:
            self.problems.add(place, f"dilation {dilation}; only undilated kernels can be mapped")
        cout, cin = weight.shape[0], x.shape[0]
        if groups not in (1, cin) or (groups == cin and groups > 1 and cout != cin):
            self.problems.add(
                place,
                f"{groups} groups of {cin} channels to {cout}; only ungrouped and depthwise "
                "(multiplier 1) convolutions can be mapped",
            )
            return x
        if x.pad is not None:
            padding = tuple((a[0] + b[0], a[1] + b[1]) for a, b in zip(padding, x.pad, strict=True))  # type: ignore[assignment]
        kernel = (int(weight.shape[2]), int(weight.shape[3]))
        chosen: Padding = padding if any(any(p) for p in padding) else "valid"
        b = np.zeros(cout) if bias is None else bias
        depthwise = groups == cin and groups > 1
        w = weight.transpose(2, 3, 1, 0)
        if depthwise:
            w = w[:, :, 0]
        operation = "depthwise" if depthwise else "conv"
        return self.put(
            Node(
                self.unique(operation),
                operation,
                (x.name,),
                np.ascontiguousarray(w, np.float32),
                np.asarray(b, np.float32),
                kernel,
                stride,
                chosen,
                place=place,
            )
        )

    def dense(self, x: Flow, weight: Array, bias: Array | None, place: str) -> Flow:
        """A dense layer; weights (in, out)."""
        self.check(x, place)
        if len(x.shape) != 1 or weight.ndim != 2 or weight.shape[0] != x.shape[0]:
            self.problems.add(place, f"weights {weight.shape} on an input of the shape {x.shape}")
            return x
        w = weight
        if x.image is not None:
            c, h, width = x.image
            w = w.reshape(c, h, width, -1).transpose(1, 2, 0, 3).reshape(weight.shape)
        b = np.zeros(weight.shape[1]) if bias is None else bias
        return self.put(
            Node(
                self.unique("dense"),
                "dense",
                (x.name,),
                np.ascontiguousarray(w, np.float32),
                np.asarray(b, np.float32).reshape(-1),
                place=place,
            )
        )

    def affine(self, x: Flow, scale: Array, shift: Array, place: str) -> Flow:
        """Per-channel scale and shift (batch normalisation): folded into the layer before it."""
        self.check(x, place)
        if scale.shape != (x.shape[0],):
            self.problems.add(place, f"{scale.size} channels on an input of the shape {x.shape}")
            return x
        node = self.nodes.get(x.name)
        if node is not None and self.joins(x) and node.weight is not None and node.bias is not None:
            self.nodes[x.name] = replace(
                node,
                weight=np.asarray(node.weight * scale, np.float32),
                bias=np.asarray(node.bias * scale + shift, np.float32),
            )
            return x
        if len(x.shape) == 3:
            return self.put(
                Node(
                    self.unique("depthwise"),
                    "depthwise",
                    (x.name,),
                    np.asarray(scale, np.float32).reshape(1, 1, -1),
                    np.asarray(shift, np.float32),
                    place=place,
                )
            )
        self.budget.spend(scale.size**2)
        return self.dense(x, np.diag(scale), shift, place)

    def joins(self, x: Flow) -> bool:
        """Whether what follows can become part of the node that computes x."""
        node = self.nodes.get(x.name)
        if node is None or node.relu or node.ceiling is not None or x.image is not None:
            return False
        return not any(x.name in other.inputs for other in self.nodes.values())

    def activation(self, x: Flow, ceiling: float | None, place: str) -> Flow:
        """ReLU, or ReLU with a ceiling."""
        self.check(x, place, padded=True)
        node = self.nodes.get(x.name)
        if node is not None and self.joins(x) and node.operation != "flatten":
            self.nodes[x.name] = replace(node, relu=True, ceiling=ceiling)
            return x
        if node is not None and node.relu and node.ceiling == ceiling:
            return x
        if len(x.shape) != 3:
            self.problems.add(place, "a ReLU behind something that is used elsewhere as well")
            return x
        c = x.shape[0]
        copy = Node(
            self.unique("depthwise"),
            "depthwise",
            (x.name,),
            np.ones((1, 1, c), np.float32),
            np.zeros(c, np.float32),
            relu=True,
            ceiling=ceiling,
            place=place,
        )
        return replace(self.put(copy), pad=x.pad)

    def pool(
        self, x: Flow, kind: str, kernel: Pair, stride: Pair, padding: Sequence[int], place: str
    ) -> Flow:
        """Max or average pooling; `kind` is "max_pool" or "average_pool"."""
        self.check(x, place)
        if len(x.shape) != 3:
            self.problems.add(place, f"pooling of the shape {x.shape}")
            return x
        size = (x.shape[1], x.shape[2])
        if any(padding):
            self.problems.add(place, "padded pooling; pool without padding")
        elif stride != kernel and kernel != size:
            self.problems.add(
                place, f"window {kernel} with stride {stride}; pooling windows must not overlap"
            )
        return self.put(
            Node(self.unique(kind), kind, (x.name,), kernel=kernel, stride=kernel, place=place)
        )

    def mean(self, x: Flow, place: str, *, keep: bool) -> Flow:
        """The mean over height and width."""
        self.check(x, place)
        if len(x.shape) != 3:
            self.problems.add(place, f"mean over the shape {x.shape}")
            return x
        y = self.put(
            Node(self.unique("average_pool"), "average_pool", (x.name,), kernel=(0, 0), place=place)
        )
        return y if keep else self.flatten(y, place)

    def add(self, x: Flow, y: Flow, place: str) -> Flow:
        """A residual addition."""
        self.check(x, place)
        self.check(y, place)
        return self.put(Node(self.unique("add"), "add", (x.name, y.name), place=place))

    def flatten(self, x: Flow, place: str) -> Flow:
        """An image to a vector."""
        self.check(x, place)
        if len(x.shape) == 1:
            return x
        y = self.put(Node(self.unique("flatten"), "flatten", (x.name,), place=place))
        c, h, w = x.shape
        return replace(y, image=(c, h, w))

    def reshape(self, x: Flow, shape: Sequence[int], place: str) -> Flow:
        """A reshape (without the batch): only to the same shape, or flat."""
        shape = tuple(shape)
        if -1 in shape:
            rest = -prod(shape)
            shape = tuple(prod(x.shape) // max(1, rest) if n == -1 else n for n in shape)
        if shape == x.shape:
            return x
        if shape == (prod(x.shape),):
            return self.flatten(x, place)
        if len(x.shape) == 1 and x.image == shape:
            return Flow(self.nodes[x.name].inputs[0], shape)
        self.problems.add(place, f"a reshape of {x.shape} to {shape}; only flattening")
        return x

    def end(self, x: Flow, place: str) -> Flow:
        """A softmax; it must be the last operator."""
        self.check(x, place)
        if len(x.shape) != 1:
            self.problems.add(place, f"a softmax over the shape {x.shape}")
        self.softmax = True
        return x
