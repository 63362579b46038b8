"""Small TensorFlow Lite files, written table by table: for readers' tests.

A file is described by plain rows, so that a test can put into it whatever a converter would not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

tflite: Any = pytest.importorskip("tflite", reason="tflite is not installed (extra `import`)")
flatbuffers: Any = pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")

TYPES = {"int8": 9, "uint8": 3, "int16": 7, "int32": 2, "int64": 4, "float32": 0, "float16": 1}
STRING = 5


@dataclass(frozen=True)
class Tensor:
    """A tensor: constant where it has data."""

    name: str
    shape: tuple[int, ...]
    data: npt.NDArray[Any] | None = None
    scale: Sequence[float] = (0.05,)
    zero: Sequence[int] = (0,)
    axis: int = 0
    kind: int | None = None
    signature: tuple[int, ...] = ()

    @property
    def number(self) -> int:
        """Of its type."""
        if self.kind is not None:
            return self.kind
        return TYPES["int8" if self.data is None else self.data.dtype.name]


@dataclass(frozen=True)
class Operator:
    """An operator: name, tensors, and its options by the names of the schema."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    table: str = ""
    options: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class File:
    """A model of one subgraph; the last tensor's table may stand in its list many times."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    repeat_last: int = 1

    def with_tensor(self, index: int, **changes: Any) -> File:
        """The same with one tensor changed."""
        tensors = list(self.tensors)
        tensors[index] = replace(tensors[index], **changes)
        return replace(self, tensors=tuple(tensors))

    def with_operator(self, index: int, **changes: Any) -> File:
        """The same with one operator changed."""
        operators = list(self.operators)
        operators[index] = replace(operators[index], **changes)
        return replace(self, operators=tuple(operators))

    def with_options(self, index: int, **changes: Any) -> File:
        """The same with options of one operator changed."""
        options = {**self.operators[index].options, **changes}
        return self.with_operator(index, options=options)

    def write(self) -> bytes:
        """The bytes of the file."""
        return _Writer().write(self)


class _Writer:
    def __init__(self) -> None:
        self.builder: Any = flatbuffers.Builder(1024)

    def table(self, name: str, **entries: Any) -> int:
        """A table; entries are scalars or offsets."""
        schema: Any = tflite
        getattr(schema, f"{name}Start")(self.builder)
        for key, value in entries.items():
            getattr(schema, f"{name}Add{key}")(self.builder, value)
        return int(getattr(schema, f"{name}End")(self.builder))

    def numbers(self, values: Sequence[float] | Sequence[int], dtype: str) -> int:
        return int(self.builder.CreateNumpyVector(np.asarray(values, dtype)))

    def offsets(self, values: Sequence[int]) -> int:
        self.builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            self.builder.PrependUOffsetTRelative(value)
        return int(self.builder.EndVector())

    def write(self, file: File) -> bytes:
        buffers = [self.table("Buffer")]
        tensors: list[int] = []
        for tensor in file.tensors:
            number = 0
            if tensor.data is not None:
                content = np.frombuffer(np.ascontiguousarray(tensor.data).tobytes(), np.uint8)
                data = int(self.builder.CreateNumpyVector(content))
                number = len(buffers)
                buffers.append(self.table("Buffer", Data=data))
            tensors.append(self.tensor(tensor, number))
        tensors += tensors[-1:] * (file.repeat_last - 1)
        kinds = sorted({operator.kind for operator in file.operators})
        codes: list[int] = []
        for kind in kinds:
            code = int(getattr(tflite.BuiltinOperator, kind))
            codes.append(
                self.table("OperatorCode", DeprecatedBuiltinCode=min(code, 127), BuiltinCode=code)
            )
        operators = [self.operator(o, kinds.index(o.kind)) for o in file.operators]
        name = self.builder.CreateString("main")
        graph = self.table(
            "SubGraph",
            Tensors=self.offsets(tensors),
            Inputs=self.numbers(file.inputs, "int32"),
            Outputs=self.numbers(file.outputs, "int32"),
            Operators=self.offsets(operators),
            Name=name,
        )
        model = self.table(
            "Model",
            Version=3,
            OperatorCodes=self.offsets(codes),
            Subgraphs=self.offsets([graph]),
            Buffers=self.offsets(buffers),
        )
        self.builder.Finish(model, b"TFL3")
        return bytes(self.builder.Output())

    def tensor(self, tensor: Tensor, buffer: int) -> int:
        entries: dict[str, Any] = {
            "Shape": self.numbers(tensor.shape, "int32"),
            "Name": self.builder.CreateString(tensor.name),
        }
        if tensor.signature:
            entries["ShapeSignature"] = self.numbers(tensor.signature, "int32")
        if tensor.scale:
            entries["Quantization"] = self.table(
                "QuantizationParameters",
                Scale=self.numbers(tensor.scale, "float32"),
                ZeroPoint=self.numbers(tensor.zero, "int64"),
                QuantizedDimension=tensor.axis,
            )
        return self.table("Tensor", Type=tensor.number, Buffer=buffer, **entries)

    def operator(self, operator: Operator, code: int) -> int:
        entries: dict[str, Any] = {
            "Inputs": self.numbers(operator.inputs, "int32"),
            "Outputs": self.numbers(operator.outputs, "int32"),
        }
        if operator.table:
            entries["BuiltinOptionsType"] = int(getattr(tflite.BuiltinOptions, operator.table))
            entries["BuiltinOptions"] = self.table(operator.table, **operator.options)
        return self.table("Operator", OpcodeIndex=code, **entries)


def small_network(seed: int = 0) -> File:
    """Convolution, depthwise convolution with stride 2, addition, mean, dense layer, softmax.

    Scales are chosen so that the values use their int8 grids well: LiteRT can run it.
    """
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> npt.NDArray[np.int8]:
        return rng.integers(-127, 128, shape).astype(np.int8)

    def biases(count: int) -> npt.NDArray[np.int32]:
        return rng.integers(-2000, 2000, count).astype(np.int32)

    def steps(count: int) -> tuple[float, ...]:
        return tuple(float(s) for s in rng.uniform(0.002, 0.006, count).astype(np.float32))

    w1, w2, w3, w4 = steps(8), steps(8), steps(8), (0.004,)
    s_in, s1, s2, s3, s4 = 0.02, 0.03, 0.03, 0.04, 0.02
    zeros = (0,) * 8
    tensors = (
        Tensor("image", (1, 9, 8, 3), scale=(s_in,), zero=(-3,)),
        Tensor("w1", (8, 3, 3, 3), weights(8, 3, 3, 3), w1, zeros, 0),
        Tensor("b1", (8,), biases(8), tuple(s_in * s for s in w1), zeros, 0),
        Tensor("y1", (1, 9, 8, 8), scale=(s1,), zero=(-128,)),
        Tensor("w2", (1, 3, 3, 8), weights(1, 3, 3, 8), w2, zeros, 3),
        Tensor("b2", (8,), biases(8), tuple(s1 * s for s in w2), zeros, 0),
        Tensor("y2", (1, 5, 4, 8), scale=(s2,), zero=(-128,)),
        Tensor("w3", (8, 1, 1, 8), weights(8, 1, 1, 8), w3, zeros, 0),
        Tensor("b3", (8,), biases(8), tuple(s2 * s for s in w3), zeros, 0),
        Tensor("y3", (1, 5, 4, 8), scale=(s3,), zero=(5,)),
        Tensor("sum", (1, 5, 4, 8), scale=(s3,), zero=(-128,)),
        Tensor("axes", (2,), np.array([1, 2], np.int32), (), ()),
        Tensor("mean", (1, 8), scale=(s4,), zero=(-128,)),
        Tensor("w4", (5, 8), weights(5, 8), w4, (0,)),
        Tensor("b4", (5,), biases(5), (s4 * w4[0],), (0,)),
        Tensor("logits", (1, 5), scale=(0.02,), zero=(0,)),
        Tensor("classes", (1, 5), scale=(1 / 256,), zero=(-128,)),
    )
    conv = {"Padding": 0, "StrideW": 1, "StrideH": 1, "FusedActivationFunction": 1}
    plain = {**conv, "FusedActivationFunction": 0}
    depthwise = {"Padding": 0, "StrideW": 2, "StrideH": 2, "DepthMultiplier": 1}
    operators = (
        Operator("CONV_2D", (0, 1, 2), (3,), "Conv2DOptions", conv),
        Operator(
            "DEPTHWISE_CONV_2D",
            (3, 4, 5),
            (6,),
            "DepthwiseConv2DOptions",
            {**depthwise, "FusedActivationFunction": 3},
        ),
        Operator("CONV_2D", (6, 7, 8), (9,), "Conv2DOptions", plain),
        Operator("ADD", (9, 6), (10,), "AddOptions", {"FusedActivationFunction": 1}),
        Operator("MEAN", (10, 11), (12,), "ReducerOptions", {"KeepDims": False}),
        Operator("FULLY_CONNECTED", (12, 13, 14), (15,), "FullyConnectedOptions", {}),
        Operator("SOFTMAX", (15,), (16,), "SoftmaxOptions", {"Beta": 1.0}),
    )
    return File(tensors, operators, (0,), (16,))
