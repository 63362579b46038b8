"""Reading ONNX files: float models, and int8 models in the QDQ form.

The file is protobuf, read by the `onnx` package and checked by it; nothing in it is executed and
external data is not followed. QuantizeLinear and DequantizeLinear around constants dequantise them;
on computed values they say nothing that the conversion would keep, except at input and output.
"""

from __future__ import annotations

from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradiron.errors import MissingExtraError, ModelError
from gradiron.importing.builder import Builder, Flow
from gradiron.importing.meaning import INPUT, MAX_ELEMENTS, Meaning, Quantisation

Array = npt.NDArray[Any]

KNOWN = (
    "Conv, Gemm, MatMul, Add, BatchNormalization, Relu, Clip(0, c), MaxPool, AveragePool, "
    "GlobalAveragePool, ReduceMean, Flatten, Reshape, Squeeze, Pad, Dropout, Identity, Transpose "
    "of the input, QuantizeLinear, DequantizeLinear, and Softmax or LogSoftmax at the end"
)
MAX_BYTES = 1 << 28
BROADCAST = {"Add", "Div", "Mul", "Pow", "Sub"}
FOLDED = BROADCAST | {
    *("Cast", "Concat", "Constant", "Flatten", "Gather", "Identity", "Neg", "QuantizeLinear"),
    *("ReduceProd", "Reshape", "Shape", "Slice", "Sqrt", "Squeeze", "Transpose", "Unsqueeze"),
}
"""Operators on constants that are computed: the sizes of their results are known before."""


def read_onnx(path: str | Path) -> Meaning:
    """Read an ONNX file.

    Raises
    ------
    ModelError
        For damaged files and for operators that cannot be mapped: all at once.
    MissingExtraError
        Without the `onnx` package.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ModelError(f"{path.name} has {size} bytes; at most {MAX_BYTES} are read")
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    return parse_onnx(content, path.name)


def parse_onnx(content: bytes, name: str = "model") -> Meaning:
    """As `read_onnx`, from the bytes of a file."""
    try:
        onnx: Any = import_module("onnx")
    except ImportError as error:
        raise MissingExtraError("onnx", "import", "reading ONNX files") from error
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf raises classes of its own
        raise ModelError(f"{name} is not an ONNX file, or damaged: {error}") from error
    if not model.graph.node or not model.opset_import:
        missing = "version of its operators" if model.graph.node else "operators"
        raise ModelError(f"{name} is not an ONNX file, or damaged: it has no {missing}")
    try:
        return _Reader(onnx, model, name).read()
    except ModelError:
        raise
    except Exception as error:  # whatever a damaged file leads to
        raise ModelError(
            f"{name} is damaged: {type(error).__name__}: {error}; export it again"
        ) from error


def _folded_size(kind: str, given: list[Array]) -> int:
    """At most how many entries an operator on constants makes."""
    if kind in BROADCAST:
        return prod(np.broadcast_shapes(*(v.shape for v in given)))
    if kind == "Gather":
        return prod(v.size for v in given)
    return sum(v.size for v in given)


class _Reader:
    """One file."""

    def __init__(self, onnx: Any, model: Any, name: str) -> None:
        self.onnx, self.model = onnx, model
        self.build = Builder(name, "onnx")
        self.flows: dict[str, Flow] = {}
        self.constants: dict[str, Array] = {}
        self.grids: dict[str, Quantisation] = {}
        """Quantised values: their scale and zero point."""
        self.channels_last = False

    def read(self) -> Meaning:
        graph = self.model.graph
        for tensor in graph.initializer:
            self.constants[tensor.name] = self.tensor(tensor)
        inputs = [i for i in graph.input if i.name not in self.constants]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise ModelError(
                f"{self.build.name} has {len(inputs)} inputs and {len(graph.output)} outputs; a "
                "model with one of each can be imported"
            )
        (given,) = inputs
        shape = self.input_shape(given)
        kind = given.type.tensor_type.elem_type
        types = self.onnx.TensorProto
        if kind not in (types.FLOAT, types.INT8, types.UINT8):
            raise ModelError(
                f"{self.build.name}: input {given.name!r} has the type "
                f"{types.DataType.Name(kind)}; FLOAT, INT8 or UINT8 can be imported"
            )
        first = graph.node[0]
        if len(shape) == 3 and first.op_type == "Transpose" and first.input[0] == given.name:
            # The user's images have their channels last.
            self.channels_last = True
            shape = (shape[2], shape[0], shape[1])
        self.flows[given.name] = self.build.input(shape)
        seen = set(self.constants) | {given.name, ""}
        for index, node in enumerate(graph.node):
            place = f"operator {index} ({node.op_type}{' ' + node.name if node.name else ''})"
            missing = [i for i in node.input if i not in seen]
            if missing:
                self.build.problems.add(
                    place, f"its input {missing[0]!r} is computed by no earlier operator"
                )
            self.operator(node, place)
            seen.update(node.output)
        self.build.problems.check()
        result = self.flows.get(graph.output[0].name)
        if result is None:
            raise ModelError(f"{self.build.name}: the output does not depend on the input")
        return self.build.finish(
            result,
            input=self.grids.get(given.name),
            output=self.grids.get(graph.output[0].name),
        )

    def tensor(self, proto: Any) -> Array:
        if proto.data_location == self.onnx.TensorProto.EXTERNAL:
            raise ModelError(
                f"{self.build.name}: tensor {proto.name!r} lies in another file; save the model "
                "with its data inside"
            )
        if prod(proto.dims) > MAX_ELEMENTS or min(proto.dims, default=0) < 0:
            raise ModelError(f"{self.build.name}: tensor {proto.name!r} has {list(proto.dims)}")
        values = self.onnx.numpy_helper.to_array(proto)
        if values.dtype.kind not in "fiub":
            raise ModelError(
                f"{self.build.name}: tensor {proto.name!r} has the type {values.dtype}; only "
                "numbers can be imported"
            )
        return values

    def input_shape(self, given: Any) -> tuple[int, ...]:
        dims = given.type.tensor_type.shape.dim
        sizes = [d.dim_value if d.HasField("dim_value") else 0 for d in dims]
        if len(sizes) not in (2, 4) or min(sizes[1:], default=0) < 1:
            raise ModelError(
                f"{self.build.name}: input {given.name!r} has the shape {sizes} (0: not fixed); "
                "all sizes but the batch must be fixed: (N, C, H, W) or (N, features)"
            )
        return tuple(sizes[1:])

    # --- operators -----------------------------------------------------------------------------

    def operator(self, node: Any, place: str) -> None:
        handler = getattr(self, f"op_{node.op_type.lower()}", None)
        if node.domain not in ("", "ai.onnx") or handler is None:
            known = self.fold(node)
            if not known:
                self.build.problems.add(place, f"cannot be mapped; known are {KNOWN}")
                for name in node.output:
                    flow = self.flows.get(node.input[0]) if node.input else None
                    if flow is not None:
                        self.flows[name] = flow
            return
        if (
            node.input
            and node.input[0] not in self.flows
            and node.op_type
            not in (
                "DequantizeLinear",
                "QuantizeLinear",
                "Constant",
                "Add",
            )
        ):
            if not self.fold(node):
                self.build.problems.add(place, "its input is not computed from the network's input")
            return
        attributes = {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute}
        result = handler(node, attributes, place)
        if result is not None and node.output:
            self.flows[node.output[0]] = result

    def fold(self, node: Any) -> bool:
        """An operator on constants alone: computed by the reference implementation of ONNX."""
        if any(name and name not in self.constants for name in node.input):
            return False
        given = [self.constants[name] for name in node.input if name]
        if node.op_type not in FOLDED or node.domain not in ("", "ai.onnx"):
            return False
        try:
            self.build.budget.spend(_folded_size(node.op_type, given))
            reference: Any = import_module("onnx.reference")
            found: Any = reference.ReferenceEvaluator(node).run(
                None, {name: self.constants[name] for name in node.input if name}
            )
        except ModelError:
            raise
        except Exception:
            return False
        self.constants.update(zip(node.output, map(np.asarray, found), strict=False))
        return True

    def constant(self, node: Any, index: int, place: str) -> Array | None:
        """A constant input; None (and a problem) where it is computed."""
        if index >= len(node.input) or not node.input[index]:
            return None
        name = node.input[index]
        if name not in self.constants:
            self.build.problems.add(place, f"its input {name!r} is not a constant")
            return None
        return self.constants[name]

    def op_constant(self, node: Any, attributes: dict[str, Any], place: str) -> None:
        del place
        value = attributes.get("value")
        if value is None:
            value = next(iter(attributes.values()), None)
            self.constants[node.output[0]] = np.asarray(value)
        else:
            self.constants[node.output[0]] = self.tensor(value)

    def op_conv(self, node: Any, a: dict[str, Any], place: str) -> Flow:
        x = self.flows[node.input[0]]
        weight, bias = self.constant(node, 1, place), self.constant(node, 2, place)
        if weight is None:
            return x
        strides = a.get("strides", [1, 1])
        dilations = a.get("dilations", [1, 1])
        padding = self.padding(a, x, weight.shape[2:], strides, place)
        return self.build.conv(
            x,
            weight,
            bias,
            stride=(int(strides[0]), int(strides[-1])),
            padding=padding,
            dilation=(int(dilations[0]), int(dilations[-1])),
            groups=int(a.get("group", 1)),
            place=place,
        )

    def padding(
        self, a: dict[str, Any], x: Flow, kernel: Any, strides: Any, place: str
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        auto = a.get("auto_pad", b"NOTSET").decode()
        if auto in ("SAME_UPPER", "SAME_LOWER") and len(x.shape) == 3:
            pairs: list[tuple[int, int]] = []
            for n, k, s in zip(x.shape[1:], kernel, strides, strict=True):
                total = max(0, (-(-n // s) - 1) * s + k - n)
                small, large = total // 2, total - total // 2
                pairs.append((small, large) if auto == "SAME_UPPER" else (large, small))
            return (pairs[0], pairs[1])
        pads = [int(p) for p in a.get("pads", [0, 0, 0, 0])]
        if len(pads) != 4 or min(pads) < 0:
            self.build.problems.add(place, f"padding {pads}")
            return ((0, 0), (0, 0))
        return ((pads[0], pads[2]), (pads[1], pads[3]))

    def op_gemm(self, node: Any, a: dict[str, Any], place: str) -> Flow:
        x = self.flows[node.input[0]]
        weight, bias = self.constant(node, 1, place), self.constant(node, 2, place)
        if weight is None:
            return x
        if a.get("transA", 0) or a.get("alpha", 1.0) != 1.0 or a.get("beta", 1.0) != 1.0:
            self.build.problems.add(place, "transA, alpha or beta other than their defaults")
        return self.build.dense(x, weight.T if a.get("transB", 0) else weight, bias, place)

    def op_matmul(self, node: Any, a: dict[str, Any], place: str) -> Flow:
        del a
        x = self.flows[node.input[0]]
        weight = self.constant(node, 1, place)
        return x if weight is None else self.build.dense(x, weight, None, place)

    def op_add(self, node: Any, a: dict[str, Any], place: str) -> Flow | None:
        del a
        flows = [self.flows[name] for name in node.input if name in self.flows]
        constants = [self.constants[name] for name in node.input if name in self.constants]
        if len(flows) == 2:
            return self.build.add(flows[0], flows[1], place)
        if len(flows) == 1 and len(constants) == 1:
            x, shift = flows[0], constants[0].reshape(-1)
            channels = x.shape[0]
            shape = constants[0].shape
            if len(x.shape) == 3 and shift.size > 1 and (shape[-2:] != (1, 1) or len(shape) < 3):
                self.build.problems.add(
                    place, f"a constant of the shape {shape}; only (C, 1, 1): one by channel"
                )
            if shift.size == 1:
                shift = np.full(channels, shift[0])
            return self.build.affine(x, np.ones(channels), shift, place)
        if not self.fold(node):
            self.build.problems.add(place, "an addition of unknown inputs")
        return None

    def op_batchnormalization(self, node: Any, a: dict[str, Any], place: str) -> Flow:
        x = self.flows[node.input[0]]
        found = [self.constant(node, i, place) for i in range(1, 5)]
        if any(v is None for v in found):
            return x
        scale, bias, mean, variance = (np.asarray(v, np.float64) for v in found)
        factor = scale / np.sqrt(variance + a.get("epsilon", 1e-5))
        return self.build.affine(x, factor, bias - mean * factor, place)

    def op_relu(self, node: Any, a: dict[str, Any], place: str) -> Flow:
        del a
        return self.build.activation(self.flows[node.input[0]], None, place)

    def op_clip(self, node: Any, a: dict[str, Any], place: str) -> Flow:
        x = self.flows[node.input[0]]
        low, high = a.get("min"), a.get("max")
        if len(node.input) > 1 and node.input[1]:
            low = self.constant(node, 1, place)
        if len(node.input) > 2 and node.input[2]:
            high = self.constant(node, 2, place)
        if low is None or float(np.asarray(low).reshape(-1)[0]) != 0:
            self.build.problems.add(place, f"lower limit {low}; it must be 0")
            return x
        ceiling = None if high is None else float(np.asarray(high).reshape(-1)[0])
        return self.build.activation(x, ceiling, place)

    def pool(self, node: Any, a: dict[str, Any], place: str, kind: str) -> Flow:
        x = self.flows[node.input[0]]
        kernel = [int(k) for k in a.get("kernel_shape", [1, 1])]
        strides = [int(s) for s in a.get("strides", [1, 1])]
        if a.get("ceil_mode", 0):
            self.build.problems.add(place, "ceil_mode; only whole windows can be mapped")
        if any(int(d) > 1 for d in a.get("dilations", [])):
            self.build.problems.add(place, "dilated pooling")
        padding = self.padding(a, x, kernel, strides, place)
        return self.build.pool(
            x,
            kind,
            (kernel[0], kernel[-1]),
            (strides[0], strides[-1]),
            [n for pair in padding for n in pair],
            place,
        )

    def op_maxpool(self, node: Any, a: dict[str, Any], place: str) -> Flow:
        return self.pool(node, a, place, "max_pool")

    def op_averagepool(self, node: Any, a: dict[str, Any], place: str) -> Flow:
        return self.pool(node, a, place, "average_pool")

    def op_globalaveragepool(self, node: Any, a: dict[str, Any], place: str) -> Flow:
        del a
        return self.build.mean(self.flows[node.input[0]], place, keep=True)

    def op_reducemean(self, node: Any, a: dict[str, Any], place: str) -> Flow:
        x = self.flows[node.input[0]]
        axes: Any = a.get("axes")
        if axes is None:
            axes = self.constant(node, 1, place)
        chosen = {int(i) % 4 for i in np.asarray(axes if axes is not None else []).reshape(-1)}
        if chosen != {2, 3}:
            self.build.problems.add(place, f"mean over the axes {sorted(chosen)}")
            return x
        return self.build.mean(x, place, keep=bool(a.get("keepdims", 1)))

    def op_flatten(self, node: Any, a: dict[str, Any], place: str) -> Flow:
        if a.get("axis", 1) != 1:
            self.build.problems.add(place, f"flatten from axis {a['axis']}; only from axis 1")
        return self.build.flatten(self.flows[node.input[0]], place)

    def op_reshape(self, node: Any, a: dict[str, Any], place: str) -> Flow:
        del a
        x = self.flows[node.input[0]]
        shape = self.constant(node, 1, place)
        if shape is None:
            return x
        sizes = [int(n) for n in shape.reshape(-1)]
        if any(n == 0 for n in sizes[1:]) or len(sizes) < 2:
            self.build.problems.add(place, f"a reshape to {sizes}")
            return x
        return self.build.reshape(x, sizes[1:], place)

    def op_squeeze(self, node: Any, a: dict[str, Any], place: str) -> Flow:
        del a
        x = self.flows[node.input[0]]
        if len(x.shape) == 3 and x.shape[1:] != (1, 1):
            self.build.problems.add(place, f"a squeeze of {x.shape}")
        return self.build.flatten(x, place)

    def op_pad(self, node: Any, a: dict[str, Any], place: str) -> Flow:
        x = self.flows[node.input[0]]
        pads: Any = a.get("pads")
        if pads is None:
            pads = self.constant(node, 1, place)
        amounts = [int(p) for p in np.asarray(pads if pads is not None else []).reshape(-1)]
        value: Any = a.get("value", 0.0)
        if len(node.input) > 2 and node.input[2]:
            value = self.constant(node, 2, place)
        zero = value is None or not np.asarray(value).any()
        mode = a.get("mode", b"constant").decode()
        self.build.check(x, place)
        rest = amounts[:2] + amounts[4:6]
        if len(node.input) > 3 and node.input[3]:
            self.build.problems.add(place, "padding with a list of axes; give it for all of them")
        if len(amounts) != 8 or any(rest) or min(amounts) < 0 or not zero or mode != "constant":
            self.build.problems.add(place, f"padding {amounts}; only zeros around images")
            return x
        return Flow(x.name, x.shape, x.image, ((amounts[2], amounts[6]), (amounts[3], amounts[7])))

    def op_transpose(self, node: Any, a: dict[str, Any], place: str) -> Flow:
        x = self.flows[node.input[0]]
        if not (self.channels_last and list(a.get("perm", [])) == [0, 3, 1, 2]):
            self.build.problems.add(
                place, f"permutation {list(a.get('perm', []))}; only of the input's channels"
            )
        return x

    def op_dropout(self, node: Any, a: dict[str, Any], place: str) -> Flow:
        del a, place
        return self.flows[node.input[0]]

    op_identity = op_dropout

    def op_softmax(self, node: Any, a: dict[str, Any], place: str) -> Flow:
        del a
        if node.output[0] != self.model.graph.output[0].name:
            follows = [n for n in self.model.graph.node if node.output[0] in n.input]
            if any(n.op_type != "QuantizeLinear" for n in follows):
                self.build.problems.add(place, "a softmax that is not at the end")
        return self.build.end(self.flows[node.input[0]], place)

    op_logsoftmax = op_softmax

    # --- quantisation --------------------------------------------------------------------------

    def grid(self, node: Any, place: str) -> tuple[Array, Array] | None:
        scale = self.constant(node, 1, place)
        zero = self.constant(node, 2, place)
        if scale is None:
            return None
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            self.build.problems.add(place, "a scale is not a positive number")
            return None
        return scale, np.zeros_like(scale) if zero is None else zero

    def op_quantizelinear(self, node: Any, a: dict[str, Any], place: str) -> Flow | None:
        del a
        found = self.grid(node, place)
        if node.input[0] in self.constants:
            self.fold(node)
            return None
        flow = self.flows.get(node.input[0])
        if flow is None or found is None:
            return flow
        if found[0].size == 1:
            kind = found[1].dtype == np.uint8
            self.grids[node.output[0]] = Quantisation(
                float(found[0].reshape(-1)[0]), int(found[1].reshape(-1)[0]), unsigned=kind
            )
            flow = self.saturating(flow, self.grids[node.output[0]], place)
        return flow

    def saturating(self, flow: Flow, grid: Quantisation, place: str) -> Flow:
        """Quantisers drop a ReLU where the integers' own limits do the same: it comes back."""
        lowest, highest = (0, 255) if grid.unsigned else (-128, 127)
        node = self.build.nodes.get(flow.name)
        if self.build.softmax or node is None or node.relu:
            return flow
        if grid.zero_point != lowest or not (node.weighted or node.operation == "add"):
            return flow
        return self.build.activation(flow, grid.scale * (highest - lowest), place)

    def op_dequantizelinear(self, node: Any, a: dict[str, Any], place: str) -> Flow | None:
        found = self.grid(node, place)
        if found is None:
            return self.flows.get(node.input[0])
        scale, zero = found
        if node.input[0] in self.constants:
            values = self.constants[node.input[0]].astype(np.float64)
            axis = int(a.get("axis", 1))
            shape = [1] * values.ndim
            if scale.size > 1:
                shape[axis] = scale.size
            self.build.budget.spend(values.size)
            real = (values - zero.astype(np.float64).reshape(shape)) * scale.reshape(shape)
            self.constants[node.output[0]] = real.astype(np.float32)
            return None
        flow = self.flows.get(node.input[0])
        if flow is not None and flow.name == INPUT and scale.size == 1:
            self.grids.setdefault(
                node.input[0],
                Quantisation(
                    float(scale.reshape(-1)[0]),
                    int(zero.reshape(-1)[0]),
                    unsigned=zero.dtype == np.uint8,
                ),
            )
        return flow
