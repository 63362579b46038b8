"""The built-in networks, as layer graphs.

`network` finds one by name. All are without batch normalisation, so that they are what is trained.
The topologies of MLPerf Tiny are its own with that left out (and with ReLU after each convolution).

Ref: MLPerf Tiny: C. Banbury et al., arXiv:2106.07597, 2021; https://github.com/mlcommons/tiny
Ref: keyword spotting: Y. Zhang et al., "Hello Edge", arXiv:1711.07128, 2017.
Ref: residual networks: K. He et al., arXiv:1512.03385, 2015.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from gradiron.errors import ModelError
from gradiron.graph import INPUT, Graph
from gradiron.operations import Layer


class _Chain:
    """Collects layers; each reads what the last one gave, unless told otherwise."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.last = INPUT

    def put(self, name: str, operation: str, *inputs: str, **options: Any) -> str:
        """Add a layer; its name."""
        self.layers.append(Layer(name, operation, inputs or (self.last,), **options))
        self.last = name
        return name


def mlp(sizes: Iterable[int], name: str = "") -> Graph:
    """A dense network: input size, hidden sizes with ReLU, classes."""
    sizes = tuple(sizes)
    label = "-".join(str(size) for size in sizes)
    if len(sizes) < 2 or min(sizes) < 1:
        raise ModelError(
            f"layer sizes {label or '(none)'}: at least the inputs and the classes are needed, "
            "each at least 1; for example 64-32-10"
        )
    chain = _Chain()
    for index, units in enumerate(sizes[1:], start=1):
        chain.put(f"dense{index}", "dense", units=units, relu=index < len(sizes) - 1)
    return Graph(name or f"mlp:{label}", (sizes[0],), tuple(chain.layers))


def cnn(classes: int = 10, name: str = "cnn") -> Graph:
    """Two convolutions of 8 and 16 channels, each with max pooling, for images of 28 x 28."""
    chain = _Chain()
    for index, units in enumerate((8, 16), start=1):
        chain.put(f"conv{index}", "conv", units=units, kernel=(3, 3), relu=True)
        chain.put(f"pool{index}", "max_pool", kernel=(2, 2))
    chain.put("flatten", "flatten")
    chain.put("dense", "dense", units=classes)
    return Graph(name, (28, 28, 1), tuple(chain.layers))


def ds_cnn(classes: int = 12, name: str = "ds-cnn") -> Graph:
    """MLPerf Tiny's keyword spotting: depthwise separable, for features of 49 x 10."""
    chain = _Chain()
    chain.put("conv", "conv", units=64, kernel=(10, 4), stride=(2, 2), relu=True)
    for index in range(1, 5):
        chain.put(f"depthwise{index}", "depthwise", kernel=(3, 3), relu=True)
        chain.put(f"pointwise{index}", "conv", units=64, relu=True)
    chain.put("pool", "average_pool", kernel=(0, 0))
    chain.put("flatten", "flatten")
    chain.put("dense", "dense", units=classes)
    return Graph(name, (49, 10, 1), tuple(chain.layers))


def ds_residual(classes: int = 10, name: str = "ds-residual") -> Graph:
    """Depthwise separable with a residual, for images of 28 x 28."""
    chain = _Chain()
    start = chain.put("conv", "conv", units=16, kernel=(3, 3), stride=(2, 2), relu=True)
    chain.put("depthwise1", "depthwise", kernel=(3, 3), relu=True)
    end = chain.put("pointwise1", "conv", units=16)
    chain.put("add", "add", end, start, relu=True)
    chain.put("depthwise2", "depthwise", kernel=(3, 3), stride=(2, 2), relu=True)
    chain.put("pointwise2", "conv", units=32, relu=True)
    chain.put("flatten", "flatten")
    chain.put("dense", "dense", units=classes)
    return Graph(name, (28, 28, 1), tuple(chain.layers))


def resnet8(classes: int = 10, name: str = "resnet8") -> Graph:
    """MLPerf Tiny's image classification: three residual blocks, for images of 32 x 32 x 3."""
    chain = _Chain()
    source = chain.put("conv", "conv", units=16, kernel=(3, 3), relu=True)
    for index, (units, stride) in enumerate(((16, 1), (32, 2), (64, 2)), start=1):
        steps = (stride, stride)
        first = chain.put(
            f"block{index}.conv1",
            "conv",
            source,
            units=units,
            kernel=(3, 3),
            stride=steps,
            relu=True,
        )
        end = chain.put(f"block{index}.conv2", "conv", first, units=units, kernel=(3, 3))
        skip = source
        if stride != 1:
            skip = chain.put(f"block{index}.project", "conv", source, units=units, stride=steps)
        source = chain.put(f"block{index}.add", "add", end, skip, relu=True)
    chain.put("pool", "average_pool", kernel=(0, 0))
    chain.put("flatten", "flatten")
    chain.put("dense", "dense", units=classes)
    return Graph(name, (32, 32, 3), tuple(chain.layers))


def autoencoder(name: str = "autoencoder") -> Graph:
    """MLPerf Tiny's anomaly detection: 640 features through 8 and back, by squared error."""
    chain = _Chain()
    for index, units in enumerate((128,) * 4 + (8,) + (128,) * 4, start=1):
        chain.put(f"dense{index}", "dense", units=units, relu=True)
    chain.put("dense10", "dense", units=640)
    return Graph(name, (640,), tuple(chain.layers), "squared_error")


def _digits(classes: int | None) -> Graph:
    return mlp((64, 32, classes or 10), "digits")


def _mlp(classes: int | None) -> Graph:
    return mlp((784, 128, 64, classes or 10), "mlp")


def _autoencoder(classes: int | None) -> Graph:
    if classes is not None:
        raise ModelError("autoencoder has no classes; call it autoencoder alone")
    return autoencoder()


def _classifier(make: Callable[[int], Graph], default: int) -> Callable[[int | None], Graph]:
    return lambda classes: make(default if classes is None else classes)


NETWORKS: dict[str, Callable[[int | None], Graph]] = {
    "mlp": _mlp,
    "digits": _digits,
    "cnn": _classifier(cnn, 10),
    "ds-residual": _classifier(ds_residual, 10),
    "ds-cnn": _classifier(ds_cnn, 12),
    "resnet8": _classifier(resnet8, 10),
    "autoencoder": _autoencoder,
}
"""Built-in networks: the function that makes each, with a number of classes or its own (None)."""


def network(name: str) -> Graph:
    """A built-in network: a key of `NETWORKS`, "ds-cnn:35" with so many classes, "mlp:64-32-10".

    Raises
    ------
    ModelError
        For any other name, or sizes that are not numbers.
    """
    kind, colon, text = name.partition(":")
    if kind == "mlp" and text:
        parts = text.split("-")
        if not all(part.isascii() and part.isdigit() for part in parts):
            raise ModelError(
                f"layer sizes {text!r} are not numbers with hyphens between them, like 64-32-10"
            )
        return mlp(int(part) for part in parts)
    if kind not in NETWORKS or (colon and not text):
        raise ModelError(
            f"no network is called {name!r}; built in are {', '.join(NETWORKS)}, NAME:CLASSES with "
            "another number of classes, like ds-cnn:35, and mlp:SIZES with any sizes, like "
            "mlp:64-32-10"
        )
    if not colon:
        return NETWORKS[kind](None)
    if not (text.isascii() and text.isdigit()):
        raise ModelError(f"{text!r}, after {kind}, is not a number of classes, like in ds-cnn:35")
    return dataclasses.replace(NETWORKS[kind](int(text)), name=name)
