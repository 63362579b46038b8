"""From a conversion to what the compiler and the trainer take: a layer graph and its state."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gradiron.arch.numerics import MASTER_FRACTION
from gradiron.errors import ModelError
from gradiron.graph import Graph
from gradiron.importing.conversion import Conversion, ConvertedLayer
from gradiron.importing.simulate import run_integers
from gradiron.model import LayerParameters, State, calibrate
from gradiron.operations import Layer
from gradiron.operations.losses import SOFTMAX, SQUARED_ERROR

POOLS = ("max_pool", "average_pool")
INPUT_EXPONENT = 0
"""Stored inputs are integers; their scale is in the first layer's weights."""


def to_graph(conversion: Conversion, *, loss: str | None = None) -> Graph:
    """The layer graph of a converted model.

    Parameters
    ----------
    conversion : Conversion
    loss : str or None
        None: squared error where the network gives as many values as it takes and ends without a
        softmax (an auto-encoder), else softmax cross-entropy.

    Raises
    ------
    ModelError
        Where the graph has something that no machine can do.
    """
    meaning = conversion.meaning
    layers = tuple(_layer(layer) for layer in conversion.layers)
    shapes = meaning.shapes
    if loss is None:
        same = shapes[meaning.nodes[-1].name] == shapes["input"]
        loss = SQUARED_ERROR if same and not meaning.softmax else SOFTMAX
    options: dict[str, Any] = {"target": "target"} if loss == SQUARED_ERROR else {}
    try:
        return Graph(meaning.name, meaning.input_shape, layers, loss, **options)
    except ModelError as error:
        raise ModelError(f"{meaning.name} cannot be mapped to the machine: {error}") from error


def _layer(layer: ConvertedLayer) -> Layer:
    node = layer.node
    options: dict[str, Any] = {}
    if node.operation in POOLS:
        options["kernel"] = node.kernel
    elif node.operation in ("conv", "depthwise"):
        options |= {"kernel": node.kernel, "stride": node.stride, "padding": node.padding}
        options["pad"] = layer.pad_value
    if node.operation in ("conv", "dense") and node.bias is not None:
        options["units"] = node.bias.size
    return Layer(node.name, node.operation, node.inputs, relu=node.relu, **options)


def to_parameters(conversion: Conversion) -> dict[str, LayerParameters]:
    """Masters, biases and exponents by layer."""
    found: dict[str, LayerParameters] = {}
    for layer in conversion.layers:
        if layer.weight is None or layer.bias is None:
            continue
        master = layer.weight.astype(np.int16) << MASTER_FRACTION
        found[layer.node.name] = LayerParameters(
            master.astype(np.int16), layer.bias.astype(np.int32), layer.exponent
        )
    return found


def to_state(
    conversion: Conversion,
    graph: Graph,
    x: npt.NDArray[np.int8],
    y: npt.NDArray[Any] | None = None,
    *,
    target_exponent: int = 0,
) -> State:
    """Parameters and exponents: those of values as the conversion chose them.

    Parameters
    ----------
    conversion : Conversion
    graph : Graph
    x : (N, ...) int8 array
        Calibration samples as the machine gets them.
    y : labels or targets, or None
        For the first exponents of the gradients; without them the model's own answers do.
    target_exponent : int
        Of targets, and so of the outputs of a network that learns by squared error.
    """
    parameters = to_parameters(conversion)
    if y is None:
        logits = run_integers(conversion, x)
        if graph.loss == SOFTMAX:
            y = logits.argmax(axis=1).astype(np.int64)
        else:
            y = np.clip(np.rint(np.ldexp(logits, -target_exponent)), -127, 127).astype(np.int8)
    options: dict[str, Any] = {}
    if graph.loss == SQUARED_ERROR:
        options["target_exponent"] = target_exponent
    answers: Any = y
    exponents = calibrate(graph, parameters, x, answers, input_exponent=INPUT_EXPONENT, **options)
    last = conversion.layers[-1].node.name
    for layer in conversion.layers:
        entry = f"{layer.node.name}.output"
        if entry in exponents and layer.node.name != last:
            exponents[entry] = (layer.output, layer.output, 0)
    return State(parameters, exponents)
