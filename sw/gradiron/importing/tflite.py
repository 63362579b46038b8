"""Reading TensorFlow Lite files of full-integer models.

The file is a flatbuffer; its tables are read by the `tflite` package, generated from the schema of
TensorFlow. Nothing in a file is executed. Lengths are held against the size of the file before
anything is allocated, and every operator that cannot be mapped is listed.

Ref: tensorflow/lite/schema/schema.fbs; TensorFlow Lite 8-bit quantisation specification.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from gradiron.errors import MissingExtraError, ModelError
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
    without_dead_ends,
)

MAGIC = b"TFL3"
SHARED = 4
"""How often, on average, every byte of a file may be read."""

Unknown = Any


def _schema() -> Unknown:
    try:
        return import_module("tflite")
    except ImportError as error:
        raise MissingExtraError("tflite", "import", "reading TensorFlow Lite files") from error


def read_tflite(path: str | Path) -> Meaning:
    """Read a full-integer TensorFlow Lite file.

    Parameters
    ----------
    path : path of the file

    Raises
    ------
    ModelError
        For a file that cannot be read, and for anything that is not a full-integer model of known
        operators: all problems at once.
    MissingExtraError
        Without the `tflite` package.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    return parse_tflite(content, path.name)


def parse_tflite(content: bytes, name: str = "model") -> Meaning:
    """As `read_tflite`, from the bytes of a file."""
    schema = _schema()
    if len(content) < 16 or content[4:8] != MAGIC:
        raise ModelError(
            f"{name} is not a TensorFlow Lite file: it has {len(content)} bytes and not the mark "
            f"{MAGIC.decode()} at byte 4"
        )
    try:
        return _Reader(schema, content, name).read()
    except ModelError:
        raise
    except Exception as error:  # the flatbuffer reader meets any kind of nonsense in a broken file
        raise ModelError(
            f"{name} is damaged: a table or a vector of it lies outside the file "
            f"({type(error).__name__}: {error}); copy or export it again"
        ) from error


def _names(enumeration: Unknown) -> dict[int, str]:
    """Names of an enumeration's numbers."""
    values = cast(dict[str, Any], vars(enumeration))
    return {number: key for key, number in values.items() if isinstance(number, int)}


class _Tensor:
    """A tensor of the file."""

    def __init__(self, index: int, name: str, shape: tuple[int, ...], kind: int) -> None:
        self.index, self.name, self.shape, self.kind = index, name, shape, kind
        self.scale: npt.NDArray[np.float32] = np.zeros(0, np.float32)
        self.zero_point: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self.axis = 0
        self.data: npt.NDArray[Any] | None = None

    def real(self) -> npt.NDArray[np.float32]:
        """Dequantised content of a constant."""
        assert self.data is not None
        if not self.scale.size:
            return self.data.astype(np.float32)
        shape = [1] * max(1, self.data.ndim)
        if self.scale.size > 1:
            shape[self.axis] = self.scale.size
        values = self.data.astype(np.float64) - self.zero_point.reshape(shape)
        return (values * self.scale.astype(np.float64).reshape(shape)).astype(np.float32)


class _Reader:
    """One file."""

    def __init__(self, schema: Unknown, content: bytes, name: str) -> None:
        self.schema = schema
        self.content = content
        self.name = name
        self.model = schema.Model.GetRootAsModel(content, 0)
        self.problems = Problems(name)
        # Vectors may be shared, but not so often that reading takes long.
        self.budget = Budget(name, SHARED * len(content))
        self.operators = _names(schema.BuiltinOperator)
        self.kinds = _names(schema.TensorType)
        self.nodes: dict[str, Node] = {}
        self.sources: dict[int, str] = {}
        """Tensor index to the name of the value that it holds."""
        self.pads: dict[int, tuple[int, tuple[tuple[int, int], tuple[int, int]]]] = {}
        """Results of PAD: the padded tensor, and rows and columns added."""

    def length(self, count: int) -> int:
        """A vector's length; all of them together are held against the file's size."""
        return self.budget.spend(count)

    def read(self) -> Meaning:
        model = self.model
        if self.length(model.SubgraphsLength()) != 1:
            raise ModelError(
                f"{self.name} has {model.SubgraphsLength()} subgraphs; models with control flow "
                "cannot be imported"
            )
        graph = model.Subgraphs(0)
        self.tensors = [
            self.tensor(graph.Tensors(i), i) for i in range(self.length(graph.TensorsLength()))
        ]
        inputs = [int(graph.Inputs(i)) for i in range(self.length(graph.InputsLength()))]
        outputs = [int(graph.Outputs(i)) for i in range(self.length(graph.OutputsLength()))]
        if len(inputs) != 1 or len(outputs) != 1:
            raise ModelError(
                f"{self.name} has {len(inputs)} inputs and {len(outputs)} outputs; a model with "
                "one of each can be imported"
            )
        given = self.tensors[self.index(inputs[0])]
        table = graph.Tensors(given.index)
        count = self.length(table.ShapeSignatureLength())
        free = [int(table.ShapeSignature(i)) for i in range(count)]
        if min(free[1:], default=0) < 0:
            self.problems.add(
                f"input {given.name!r}",
                f"shape {tuple(free)} (-1: not fixed); all sizes but the batch must be fixed",
            )
        result = self.tensors[self.index(outputs[0])]
        quantisation = self.interface(given, "input")
        shape = given.shape[1:] if len(given.shape) > 1 else given.shape
        if not shape or min(shape) < 1 or prod(shape) > MAX_ELEMENTS or len(shape) not in (1, 3):
            self.problems.add(
                f"input {given.name!r}",
                f"shape {given.shape}; it must be (1, features) or (1, height, width, channels)",
            )
            self.problems.check()
        self.sources[given.index] = INPUT
        softmax = False
        for i in range(self.length(graph.OperatorsLength())):
            operator = graph.Operators(i)
            code = model.OperatorCodes(
                self.index(operator.OpcodeIndex(), model.OperatorCodesLength())
            )
            number = max(int(code.BuiltinCode()), int(code.DeprecatedBuiltinCode()))
            kind = self.operators.get(number, f"number {number}")
            place = f"operator {i} ({kind})"
            before = len(self.problems.found)
            softmax |= self.operator(kind, operator, place, result)
            if len(self.problems.found) > before:
                # What follows can still be looked at: the result stands for anything.
                for k in range(self.length(operator.OutputsLength())):
                    self.sources.setdefault(int(operator.Outputs(k)), "")
        if not self.problems.found and result.index not in self.sources:
            self.problems.add(f"output {result.name!r}", "no operator computes it")
        if result.index in self.pads:
            self.problems.add(f"output {result.name!r}", "a PAD at the end")
        self.problems.check()
        last = self.sources[result.index]
        meaning = Meaning(
            name=self.name,
            format="tflite",
            input_shape=shape,
            nodes=without_dead_ends(self.nodes.values(), last),
            softmax=softmax,
            input=quantisation,
            output=self.interface(result, "output"),
        )
        self.problems.check()
        return check_meaning(meaning)

    # --- tables --------------------------------------------------------------------------------

    def index(self, number: int, count: int | None = None) -> int:
        """An index, held against the number of entries."""
        count = len(self.tensors) if count is None else count
        if not 0 <= number < count:
            raise ModelError(f"{self.name} is damaged: index {number} of {count} entries")
        return number

    def tensor(self, table: Unknown, index: int) -> _Tensor:
        name = (table.Name() or b"").decode("utf-8", "replace")
        shape = tuple(int(table.Shape(i)) for i in range(self.length(table.ShapeLength())))
        found = _Tensor(index, name or f"tensor {index}", shape, int(table.Type()))
        q = table.Quantization()
        if q is not None:
            if self.length(q.ScaleLength()):
                found.scale = np.array(q.ScaleAsNumpy(), np.float32)
            if self.length(q.ZeroPointLength()):
                found.zero_point = np.array(q.ZeroPointAsNumpy(), np.int64)
            found.axis = int(q.QuantizedDimension())
            if found.zero_point.size != found.scale.size:
                found.zero_point = np.resize(found.zero_point, found.scale.size)
            bad = ~np.isfinite(found.scale) | (found.scale <= 0)
            if bad.any():
                self.problems.add(f"tensor {found.name!r}", "a scale is not a positive number")
        number = int(table.Buffer())
        if 0 < number < self.model.BuffersLength():
            buffer = self.model.Buffers(number)
            size = self.length(buffer.DataLength())
            if size:
                self.constant(found, bytes(memoryview(buffer.DataAsNumpy())), shape)
        return found

    def constant(self, found: _Tensor, raw: bytes, shape: tuple[int, ...]) -> None:
        types = {
            "INT8": np.int8,
            "UINT8": np.uint8,
            "INT16": np.int16,
            "INT32": np.int32,
            "INT64": np.int64,
            "FLOAT32": np.float32,
        }
        dtype = types.get(self.kinds.get(found.kind, ""))
        if dtype is None:
            return
        size = np.dtype(dtype).itemsize
        if min(shape, default=1) < 0 or prod(shape) * size != len(raw):
            self.problems.add(
                f"tensor {found.name!r}", f"{len(raw)} bytes of content for the shape {shape}"
            )
            return
        found.data = np.frombuffer(raw, dtype).reshape(shape)
        axis = found.axis
        if found.scale.size > 1 and (
            axis >= max(1, len(shape)) or axis < 0 or found.scale.size != shape[axis]
        ):
            self.problems.add(
                f"tensor {found.name!r}",
                f"{found.scale.size} scales along axis {axis} of the shape {shape}",
            )
            found.data = None

    def interface(self, tensor: _Tensor, what: str) -> Quantisation | None:
        """Quantisation of the model's input or output."""
        kind = self.kinds.get(tensor.kind, str(tensor.kind))
        if kind not in ("INT8", "UINT8"):
            self.problems.add(
                f"{what} {tensor.name!r}",
                f"type {kind}; full-integer models have INT8 (convert with int8 inputs and "
                "outputs)",
            )
            return None
        if tensor.scale.size != 1:
            self.problems.add(f"{what} {tensor.name!r}", "it has no scale")
            return None
        return Quantisation(
            float(tensor.scale[0]), int(tensor.zero_point[0]), unsigned=kind == "UINT8"
        )

    # --- operators -----------------------------------------------------------------------------

    def operator(self, kind: str, operator: Unknown, place: str, result: _Tensor) -> bool:
        """Map one operator; True for a softmax at the end."""
        inputs = [int(operator.Inputs(i)) for i in range(self.length(operator.InputsLength()))]
        outputs = [int(operator.Outputs(i)) for i in range(self.length(operator.OutputsLength()))]
        if not inputs or len(outputs) != 1:
            self.problems.add(place, f"{len(inputs)} inputs and {len(outputs)} outputs")
            return False
        tensors = [self.tensors[self.index(i)] if i >= 0 else None for i in inputs]
        out = self.tensors[self.index(outputs[0])]
        for tensor in (*tensors, out):
            if tensor is not None:
                self.check_kind(tensor, place)
        handler = getattr(self, f"op_{kind.lower()}", None)
        if handler is None:
            self.problems.add(
                place,
                "this operator cannot be mapped; known are CONV_2D, DEPTHWISE_CONV_2D, "
                "FULLY_CONNECTED, AVERAGE_POOL_2D, MAX_POOL_2D, MEAN, ADD, PAD, RELU, RELU6, "
                "RESHAPE, SQUEEZE, QUANTIZE, and SOFTMAX at the end",
            )
            return False
        return bool(handler(operator, tensors, out, place, result))

    def check_kind(self, tensor: _Tensor, place: str) -> None:
        kind = self.kinds.get(tensor.kind, str(tensor.kind))
        if kind not in ("INT8", "UINT8", "INT32", "INT64"):
            self.problems.add(
                place,
                f"tensor {tensor.name!r} has the type {kind}; only full-integer models can be "
                "imported (post-training quantisation with int8 for all operators)",
            )

    def source(self, tensor: _Tensor | None, place: str) -> str:
        """Name of the value that a tensor holds."""
        if tensor is None or tensor.index not in self.sources:
            what = "a missing tensor" if tensor is None else f"{tensor.name!r}"
            self.problems.add(place, f"its input {what} is computed by no earlier operator")
            return ""
        if tensor.index in self.pads:
            self.problems.add(place, "padding before it; only convolutions take a PAD in")
        return self.sources[tensor.index]

    def options(self, operator: Unknown, name: str) -> Unknown:
        """The table of options of an operator."""
        options = getattr(self.schema, name)()
        table = operator.BuiltinOptions()
        if table is None:
            raise ModelError(f"{self.name} is damaged: an operator has no {name}")
        options.Init(table.Bytes, table.Pos)
        return options

    def constant_of(self, tensor: _Tensor | None, place: str, what: str) -> npt.NDArray[Any] | None:
        if tensor is None or tensor.data is None:
            self.problems.add(place, f"its {what} is not a constant of the file")
            return None
        return tensor.data

    def activation(self, number: int, place: str) -> tuple[bool, float | None]:
        kinds = {0: (False, None), 1: (True, None), 3: (True, 6.0)}
        if number not in kinds:
            self.problems.add(place, f"fused activation {number}; NONE, RELU and RELU6 are known")
            return False, None
        return kinds[number]

    def padding(self, number: int, tensor: _Tensor, place: str) -> tuple[_Tensor, Padding]:
        """The tensor before a PAD, and the padding of both."""
        if tensor.index in self.pads:
            inner, explicit = self.pads[tensor.index]
            if number != 1:
                self.problems.add(place, "SAME padding after a PAD; use VALID with the PAD")
            return self.tensors[inner], explicit
        return tensor, "same" if number == 0 else "valid"

    def put(self, out: _Tensor, node: Node) -> None:
        self.nodes[node.name] = node
        self.sources[out.index] = node.name

    def unique(self, kind: str) -> str:
        return f"{kind}{sum(node.operation == kind for node in self.nodes.values()) + 1}"

    def weighted(
        self, operator: Unknown, tensors: list[_Tensor | None], out: _Tensor, place: str, kind: str
    ) -> bool:
        """Convolutions, depthwise and dense layers."""
        table = {
            "conv": "Conv2DOptions",
            "depthwise": "DepthwiseConv2DOptions",
            "dense": "FullyConnectedOptions",
        }[kind]
        options = self.options(operator, table)
        relu, ceiling = self.activation(int(options.FusedActivationFunction()), place)
        x = tensors[0]
        weight = tensors[1] if len(tensors) > 1 else None
        if self.constant_of(weight, place, "weight") is None or x is None or weight is None:
            return False
        bias_tensor = tensors[2] if len(tensors) > 2 else None
        if bias_tensor is not None and self.constant_of(bias_tensor, place, "bias") is None:
            return False
        if self.kinds.get(weight.kind) != "INT8" or not weight.scale.size:
            self.problems.add(
                place, "its weights are not int8 with scales; quantise the model fully"
            )
            return False
        w = weight.real()
        self.length(w.size)
        padding: Padding = "valid"
        kernel = stride = (1, 1)
        if kind == "dense":
            if w.ndim != 2:
                self.problems.add(place, f"weights of the shape {w.shape}")
                return False
            w = np.ascontiguousarray(w.T)
        else:
            if w.ndim != 4:
                self.problems.add(place, f"weights of the shape {w.shape}")
                return False
            if options.DilationHFactor() > 1 or options.DilationWFactor() > 1:
                self.problems.add(
                    place,
                    f"dilation {options.DilationHFactor()} x {options.DilationWFactor()}; "
                    "only undilated kernels can be mapped",
                )
            kernel = (w.shape[1], w.shape[2])
            stride = (int(options.StrideH()), int(options.StrideW()))
            x, padding = self.padding(int(options.Padding()), x, place)
            if kind == "conv":
                if len(x.shape) == 4 and w.shape[3] != x.shape[3]:
                    self.problems.add(
                        place,
                        f"groups: kernels of {w.shape[3]} channels on an image of {x.shape[3]}; "
                        "only ungrouped and depthwise convolutions can be mapped",
                    )
                    return False
                w = np.ascontiguousarray(w.transpose(1, 2, 3, 0))
            else:
                multiplier = int(options.DepthMultiplier())
                if len(x.shape) == 4 and (w.shape[0] != 1 or w.shape[3] != x.shape[3]):
                    self.problems.add(
                        place,
                        f"depth multiplier {multiplier}: {w.shape[3]} kernels on an image of "
                        f"{x.shape[3]} channels; only multiplier 1 can be mapped",
                    )
                    return False
                w = np.ascontiguousarray(w[0])
        bias = np.zeros(w.shape[-1], np.float32)
        if bias_tensor is not None:
            bias = bias_tensor.real().reshape(-1)
            if not bias_tensor.scale.size and bias_tensor.data is not None:
                # Some writers leave the scale of biases out: it is that of the products.
                bias = np.asarray(bias * (x.scale[:1] * weight.scale), np.float32).reshape(-1)
            if bias.shape != (w.shape[-1],):
                self.problems.add(place, f"{bias.size} biases for {w.shape[-1]} outputs")
                return False
        source = self.source(x, place)
        if kind == "dense" and len(x.shape) > 2:
            source = self.flatten(source, place)
        self.put(
            out,
            Node(
                self.unique(kind),
                kind,
                (source,),
                w,
                bias,
                kernel,
                stride,
                padding,
                relu,
                ceiling,
                place,
            ),
        )
        return False

    def flatten(self, source: str, place: str) -> str:
        name = self.unique("flatten")
        self.nodes[name] = Node(name, "flatten", (source,), place=place)
        return name

    def op_conv_2d(self, o: Unknown, t: list[_Tensor | None], out: _Tensor, p: str, _: Any) -> bool:
        return self.weighted(o, t, out, p, "conv")

    def op_depthwise_conv_2d(
        self, o: Unknown, t: list[_Tensor | None], out: _Tensor, p: str, _: Any
    ) -> bool:
        return self.weighted(o, t, out, p, "depthwise")

    def op_fully_connected(
        self, o: Unknown, t: list[_Tensor | None], out: _Tensor, p: str, _: Any
    ) -> bool:
        return self.weighted(o, t, out, p, "dense")

    def pool(self, operator: Unknown, x: _Tensor | None, out: _Tensor, p: str, kind: str) -> bool:
        options = self.options(operator, "Pool2DOptions")
        relu, ceiling = self.activation(int(options.FusedActivationFunction()), p)
        kernel = (int(options.FilterHeight()), int(options.FilterWidth()))
        stride = (int(options.StrideH()), int(options.StrideW()))
        source = self.source(x, p)
        if x is None or len(x.shape) != 4:
            self.problems.add(p, "pooling needs an image")
            return False
        size = x.shape[1:3]
        whole = kernel == tuple(size) and int(options.Padding()) == 1
        exact = all(n % k == 0 for n, k in zip(size, kernel, strict=True) if k)
        if min(kernel) < 1 or (stride != kernel and not whole):
            self.problems.add(
                p, f"window {kernel} with stride {stride}; pooling windows must not overlap"
            )
            return False
        if int(options.Padding()) == 0 and not exact:
            self.problems.add(p, "SAME padding of a pooling that cuts windows; use VALID")
            return False
        self.put(
            out,
            Node(
                self.unique(kind),
                kind,
                (source,),
                kernel=kernel,
                stride=kernel,
                relu=relu,
                ceiling=ceiling,
                place=p,
            ),
        )
        return False

    def op_average_pool_2d(
        self, o: Unknown, t: list[_Tensor | None], out: _Tensor, p: str, _: Any
    ) -> bool:
        return self.pool(o, t[0], out, p, "average_pool")

    def op_max_pool_2d(
        self, o: Unknown, t: list[_Tensor | None], out: _Tensor, p: str, _: Any
    ) -> bool:
        return self.pool(o, t[0], out, p, "max_pool")

    def op_mean(self, o: Unknown, t: list[_Tensor | None], out: _Tensor, p: str, _: Any) -> bool:
        del o
        axes = self.constant_of(t[1] if len(t) > 1 else None, p, "list of axes")
        x = t[0]
        if axes is None or x is None:
            return False
        chosen = {int(a) % 4 for a in axes.reshape(-1)}
        if len(x.shape) != 4 or chosen != {1, 2}:
            self.problems.add(p, f"mean over the axes {sorted(chosen)}; only over height and width")
            return False
        name = self.unique("average_pool")
        pooled = Node(name, "average_pool", (self.source(x, p),), kernel=(0, 0), place=p)
        self.put(out, pooled)
        if len(out.shape) == 2:
            self.sources[out.index] = self.flatten(name, p)
        return False

    def op_add(
        self, operator: Unknown, t: list[_Tensor | None], out: _Tensor, p: str, _: Any
    ) -> bool:
        relu, ceiling = self.activation(
            int(self.options(operator, "AddOptions").FusedActivationFunction()), p
        )
        if len(t) != 2 or any(x is None or x.data is not None for x in t):
            self.problems.add(p, "an addition of a constant; only of two computed tensors")
            return False
        names = (self.source(t[0], p), self.source(t[1], p))
        self.put(
            out,
            Node(self.unique("add"), "add", names, relu=relu, ceiling=ceiling, place=p),
        )
        return False

    def op_pad(self, o: Unknown, t: list[_Tensor | None], out: _Tensor, p: str, _: Any) -> bool:
        del o
        amounts = self.constant_of(t[1] if len(t) > 1 else None, p, "list of paddings")
        x = t[0]
        if amounts is None or x is None:
            return False
        if amounts.shape != (4, 2) or amounts[0].any() or amounts[3].any() or (amounts < 0).any():
            self.problems.add(p, "padding of other axes than height and width")
            return False
        rows, columns = ((int(a), int(b)) for a, b in amounts[1:3])
        self.pads[out.index] = (x.index, (rows, columns))
        self.sources[out.index] = self.source(x, p)
        return False

    def rectify(self, t: list[_Tensor | None], out: _Tensor, p: str, ceiling: float | None) -> bool:
        """A ReLU of its own joins the operator before it."""
        name = self.source(t[0], p)
        node = self.nodes.get(name)
        uses = sum(name in other.inputs for other in self.nodes.values())
        if node is None or node.relu or uses:
            self.problems.add(p, "a ReLU that does not directly follow a layer of its own")
            return False
        self.nodes[name] = replace(node, relu=True, ceiling=ceiling)
        self.sources[out.index] = name
        return False

    def op_relu(self, o: Unknown, t: list[_Tensor | None], out: _Tensor, p: str, _: Any) -> bool:
        del o
        return self.rectify(t, out, p, None)

    def op_relu6(self, o: Unknown, t: list[_Tensor | None], out: _Tensor, p: str, _: Any) -> bool:
        del o
        return self.rectify(t, out, p, 6.0)

    def op_reshape(self, o: Unknown, t: list[_Tensor | None], out: _Tensor, p: str, _: Any) -> bool:
        del o
        source = self.source(t[0], p)
        x = t[0]
        if x is None or prod(x.shape) != prod(out.shape):
            self.problems.add(p, f"a reshape to {out.shape}")
            return False
        if x.shape == out.shape:
            self.sources[out.index] = source
            return False
        if len(out.shape) != 2 and not (len(out.shape) == 4 and source == INPUT):
            self.problems.add(p, f"a reshape of {x.shape} to {out.shape}; only flattening")
            return False
        if len(out.shape) == 4:
            self.problems.add(
                p, f"the input is reshaped from {x.shape} to {out.shape}; give it as an image"
            )
            return False
        self.sources[out.index] = source if len(x.shape) == 2 else self.flatten(source, p)
        return False

    op_squeeze = op_reshape

    def op_quantize(
        self, o: Unknown, t: list[_Tensor | None], out: _Tensor, p: str, _: Any
    ) -> bool:
        del o
        self.sources[out.index] = self.source(t[0], p)
        return False

    def op_softmax(
        self, o: Unknown, t: list[_Tensor | None], out: _Tensor, p: str, result: _Tensor
    ) -> bool:
        options = self.options(o, "SoftmaxOptions")
        if out.index != result.index:
            self.problems.add(p, "a softmax that is not the last operator")
            return False
        if options.Beta() != 1.0:
            self.problems.add(p, f"beta {options.Beta()}; only 1 can be mapped")
        self.sources[out.index] = self.source(t[0], p)
        return True
