"""A converted model in numpy, integer by integer as the machine does it, for checks and reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gradiron import reals
from gradiron.arch import numerics
from gradiron.arch.numerics import BIAS_EXPONENT, LOGIT_EXPONENT
from gradiron.importing.conversion import Conversion, ConvertedLayer
from gradiron.importing.meaning import INPUT, compute, fusion, node_windows

Int64 = npt.NDArray[np.int64]


def run_integers(
    conversion: Conversion, x8: npt.NDArray[np.int8], portion: int = 128
) -> npt.NDArray[np.floating[Any]]:
    """The logits of a converted model in real numbers, for int8 inputs (N, ...)."""
    parts = [_run(conversion, x8[i : i + portion]) for i in range(0, len(x8), portion)]
    return np.concatenate(parts)


def _run(conversion: Conversion, x8: npt.NDArray[np.int8]) -> npt.NDArray[np.floating[Any]]:
    values: dict[str, tuple[Int64, int]] = {INPUT: (x8.astype(np.int64), 0)}
    sums: dict[str, tuple[Int64, int]] = {}
    last = conversion.layers[-1].node.name
    fused = fusion(layer.node for layer in conversion.layers)
    for layer in conversion.layers:
        node = layer.node
        if layer.weight is not None:
            acc, e_acc = _accumulate(layer, *values[node.inputs[0]])
            if node.name in fused:
                sums[node.name] = (acc, e_acc)
                continue
        elif node.operation == "add":
            names = [name for name in node.inputs if name in sums]
            if names:
                acc, e_acc = sums[names[0]]
                (skip,) = (name for name in node.inputs if name != names[0])
            else:
                acc, e_acc = values[node.inputs[0]]
                skip = node.inputs[1]
            x, ex = values[skip]
            acc = acc + numerics.rn(x, e_acc - ex)
        else:
            values[node.name] = _plain(layer, *values[node.inputs[0]])
            continue
        if node.relu:
            acc = np.maximum(acc, 0)
        if node.name == last:
            z = numerics.rn(acc, LOGIT_EXPONENT - e_acc)
            return np.clip(z, -32767, 32767) * 2.0**LOGIT_EXPONENT
        e = numerics.clamp_exponent(max(layer.output, e_acc))
        values[node.name] = (numerics.sat8(numerics.rt(acc, e - e_acc)), e)
    raise AssertionError("a network ends in a layer with weights")


def _accumulate(layer: ConvertedLayer, x: Int64, ex: int) -> tuple[Int64, int]:
    assert layer.weight is not None
    assert layer.bias is not None
    node = replace(
        layer.node,
        weight=layer.weight.astype(np.float64),
        bias=np.zeros(layer.bias.size),
    )
    e_acc = ex + layer.exponent
    sums: Any = compute(node, [x.astype(np.float64)], layer.pad_value)
    bias = numerics.sat30(numerics.rn(layer.bias.astype(np.int64), e_acc - BIAS_EXPONENT))
    return np.rint(sums).astype(np.int64) + bias, e_acc


def _plain(layer: ConvertedLayer, x: Int64, ex: int) -> tuple[Int64, int]:
    node = layer.node
    if node.operation == "flatten":
        return x.reshape(len(x), -1), ex
    windows = node_windows(node, x.shape[1:])
    if node.operation == "max_pool":
        return reals.max_pool(x.astype(np.float64), windows).astype(np.int64), ex
    shift = reals.pooling_shift(windows.taps)
    total = np.ldexp(reals.average_pool(x.astype(np.float64), windows), shift)
    return numerics.sat8(numerics.rt(np.rint(total).astype(np.int64), shift)), ex
