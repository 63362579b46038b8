"""The reader of ONNX files: meaning against a runtime, and whatever a file may be broken in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.support import broken_files

from gradiron.errors import ModelError
from gradiron.importing.conversion import convert
from gradiron.importing.onnx_reader import parse_onnx, read_onnx
from gradiron.importing.simulate import run_integers

onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed (extra `import`)")

Array = npt.NDArray[Any]
OPSET = 17


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(kind, inputs.split(), [output], **attributes)


def model(
    nodes: list[Any],
    constants: dict[str, Array],
    shape: tuple[int | str, ...] = (1, 3, 8, 8),
    output: tuple[int, ...] = (1, 4),
    kind: int | None = None,
) -> Any:
    helper: Any = onnx.helper
    kind = onnx.TensorProto.FLOAT if kind is None else kind
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, output)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    made.ir_version = 8
    return made


def constants(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)

    return {
        "w1": normal(8, 3, 3, 3),
        "b1": normal(8),
        "scale": rng.uniform(0.5, 2, 8).astype(np.float32),
        "shift": normal(8),
        "mean": normal(8),
        "variance": rng.uniform(0.5, 2, 8).astype(np.float32),
        "wd": normal(8, 1, 3, 3),
        "w2": normal(8, 8, 1, 1),
        "b2": normal(8),
        "w3": normal(32, 4),
        "b3": normal(4),
        "six": np.array(6, np.float32),
        "zero": np.array(0, np.float32),
    }


def float_nodes() -> list[Any]:
    return [
        node("Conv", "x w1 b1", "c1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c1 scale shift mean variance", "n1"),
        node("Relu", "n1", "r1"),
        node(
            "Conv", "r1 wd", "c2", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], group=8
        ),
        node("Clip", "c2 zero six", "r2"),
        node("Conv", "r2 w2 b2", "c3", kernel_shape=[1, 1]),
        node("Add", "c3 r2", "s"),
        node("Relu", "s", "r3"),
        node("MaxPool", "r3", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "p", "f"),
        node("Gemm", "f w3 b3", "y"),
    ]


def float_model() -> Any:
    return model(float_nodes(), constants())


def qdq_model() -> Any:
    """Weights as int8 by channel, values through a quantiser and back."""
    made = constants()
    for name, axis in (("w1", 0), ("wd", 0), ("w2", 0), ("w3", 1)):
        w = made.pop(name)
        others = tuple(i for i in range(w.ndim) if i != axis)
        step = (np.abs(w).max(axis=others) / 127).astype(np.float32)
        shape = [-1 if i == axis else 1 for i in range(w.ndim)]
        made[f"{name}_q"] = np.rint(w / step.reshape(shape)).astype(np.int8)
        made[f"{name}_s"] = step
        made[f"{name}_z"] = np.zeros(step.size, np.int8)
    made |= {
        "in_s": np.array(0.02, np.float32),
        "in_z": np.array(-10, np.int8),
        "v_s": np.array(0.05, np.float32),
        "v_z": np.array(-128, np.int8),
    }
    through: list[Any] = [
        node("QuantizeLinear", "x in_s in_z", "x_q"),
        node("DequantizeLinear", "x_q in_s in_z", "x_d"),
    ]
    for name, axis in (("w1", 0), ("wd", 0), ("w2", 0), ("w3", 1)):
        inputs = f"{name}_q {name}_s {name}_z"
        through.append(node("DequantizeLinear", inputs, name, axis=axis))
    for made_node in float_nodes():
        if made_node.op_type == "Conv" and made_node.input[0] == "x":
            made_node.input[0] = "x_d"
        through.append(made_node)
        if made_node.op_type == "Relu" and made_node.output[0] == "r1":
            # A quantiser between the ReLU and what follows.
            made_node.output[0] = "r1_f"
            through += [
                node("QuantizeLinear", "r1_f v_s v_z", "r1_q"),
                node("DequantizeLinear", "r1_q v_s v_z", "r1"),
            ]
    return model(through, made)


def oracle(made: Any, x: Array) -> Array:
    """What ONNX Runtime computes, or the reference evaluator where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        runner: Any = ReferenceEvaluator(made)
    else:
        runtime: Any = onnxruntime
        runner = runtime.InferenceSession(
            made.SerializeToString(), providers=["CPUExecutionProvider"]
        )
    return np.concatenate([runner.run(None, {"x": sample[None]})[0] for sample in x])


def samples(count: int = 40, shape: tuple[int, ...] = (3, 8, 8)) -> Array:
    return np.random.default_rng(5).normal(size=(count, *shape)).astype(np.float32)


def channels_last(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


CONTENT: bytes = float_model().SerializeToString()
QDQ: bytes = qdq_model().SerializeToString()


def refuse(given: Any, *texts: str) -> str:
    """The message of the error that a file must give, quickly."""
    content: bytes = given if isinstance(given, bytes) else given.SerializeToString()
    return broken_files.refuse(parse_onnx, content, *texts)


def try_to_read(content: bytes) -> bool:
    """Whether a mutated file is refused; else it is a network with shapes."""
    return broken_files.try_to_read(parse_onnx, content)


# --- what is read --------------------------------------------------------------------------------


def test_a_float_model_means_what_the_runtime_computes() -> None:
    x = samples()
    meaning = parse_onnx(CONTENT, "float")
    np.testing.assert_allclose(
        meaning.run(channels_last(x)), oracle(float_model(), x), rtol=1e-4, atol=1e-4
    )
    assert meaning.input is None
    assert [n.operation for n in meaning.nodes] == [
        *("conv", "depthwise", "conv", "add", "max_pool", "flatten", "dense")
    ]


def test_a_quantised_model_means_what_the_runtime_computes() -> None:
    x = np.clip(samples(), -2, 2)
    x = (np.rint(x / 0.02) * 0.02).astype(np.float32)
    meaning = parse_onnx(QDQ, "qdq")
    y, wanted = meaning.run(channels_last(x)), oracle(qdq_model(), x)
    # The quantiser in the middle rounds to 0.05, which the meaning does not.
    assert np.linalg.norm(y - wanted) < 0.02 * np.linalg.norm(wanted)
    # The application gives real numbers: what they are rounded to is the conversion's business.
    assert meaning.input is None


def test_an_integer_input_keeps_its_scale_and_zero_point() -> None:
    made = qdq_model()
    nodes = [n for n in made.graph.node if n.output[0] != "x_q"]
    nodes[0].input[0] = "x"
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    made.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT8
    meaning = parse_onnx(made.SerializeToString())
    assert meaning.input is not None
    assert (meaning.input.scale, meaning.input.zero_point) == (pytest.approx(0.02), -10)
    x8 = np.random.default_rng(0).integers(-128, 128, (20, 3, 8, 8)).astype(np.int8)
    y = meaning.run(channels_last((x8 + 10.0) * 0.02))
    wanted = oracle(made, x8)
    assert np.linalg.norm(y - wanted) < 0.02 * np.linalg.norm(wanted)


def test_weights_of_a_quantised_model_are_dequantised_exactly() -> None:
    made = {t.name: onnx.numpy_helper.to_array(t) for t in qdq_model().graph.initializer}
    dense = parse_onnx(QDQ).nodes[-1]
    assert dense.weight is not None
    wanted = made["w3_q"] * made["w3_s"].astype(np.float64)
    rows = wanted.reshape(8, 2, 2, 4).transpose(1, 2, 0, 3).reshape(32, 4)
    np.testing.assert_allclose(dense.weight, rows, rtol=1e-6)


@pytest.mark.parametrize("content", [CONTENT, QDQ], ids=["float", "qdq"])
def test_integers_are_close_to_the_meaning(content: bytes) -> None:
    meaning = parse_onnx(content)
    x = channels_last(samples(300))
    converted = convert(meaning, x[:100])
    y, wanted = run_integers(converted, converted.quantise(x[100:])), meaning.run(x[100:])
    assert np.linalg.norm(y - wanted) < 0.06 * np.linalg.norm(wanted)
    assert (y.argmax(axis=1) == wanted.argmax(axis=1)).mean() > 0.95


def test_a_dropped_relu_comes_back() -> None:
    """Quantisers drop a ReLU where the integers' lower limit does the same."""
    made = qdq_model()
    nodes = [n for n in made.graph.node if not (n.op_type == "Relu" and n.output[0] == "r1_f")]
    for n in nodes:
        if n.op_type == "QuantizeLinear" and n.input[0] == "r1_f":
            n.input[0] = "n1"
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    first = parse_onnx(made.SerializeToString()).nodes[0]
    assert first.relu
    assert first.ceiling == pytest.approx(0.05 * 255)


@pytest.mark.parametrize("padding", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_padding(padding: str) -> None:
    some = constants()
    nodes = [
        node("Conv", "x w1 b1", "c1", kernel_shape=[3, 3], strides=[2, 2], auto_pad=padding),
        node("GlobalAveragePool", "c1", "y"),
    ]
    made = model(nodes, {name: some[name] for name in ("w1", "b1")}, (1, 3, 9, 8), (1, 8, 1, 1))
    x = samples(5, (3, 9, 8))
    y = parse_onnx(made.SerializeToString()).run(channels_last(x))
    np.testing.assert_allclose(y.reshape(5, 8), oracle(made, x).reshape(5, 8), atol=1e-5)


def test_constants_are_computed() -> None:
    """Exporters leave shape arithmetic and scaled weights as operators on constants."""
    some = constants()
    some |= {"two": np.array(2, np.float32), "flat": np.array([0, -1], np.int64)}
    nodes = [
        node("Mul", "w1 two", "w1s"),
        node("Conv", "x w1s b1", "c1", kernel_shape=[3, 3]),
        node("Relu", "c1", "r1"),
        node("MaxPool", "r1", "p", kernel_shape=[3, 3], strides=[3, 3]),
        node("Reshape", "p flat", "f"),
        node("MatMul", "f w3", "m"),
        node("Add", "m b3", "y"),
    ]
    made = model(nodes, some)
    x = samples(5)
    y = parse_onnx(made.SerializeToString()).run(channels_last(x))
    np.testing.assert_allclose(y, oracle(made, x), rtol=1e-4, atol=1e-4)


def test_a_free_batch() -> None:
    made = model(float_nodes(), constants(), ("batch", 3, 8, 8))
    assert parse_onnx(made.SerializeToString()).input_shape == (8, 8, 3)


# --- what is refused, with every problem at once -------------------------------------------------


def test_all_unknown_operators_are_listed() -> None:
    nodes = float_nodes()
    nodes[2] = node("Tanh", "n1", "r1")
    nodes[7] = node("HardSwish", "s", "r3")
    message = refuse(
        model(nodes, constants()), "operator 2 (Tanh)", "operator 7 (HardSwish)", "2 problems"
    )
    assert "MaxPool" in message


def test_problems_of_many_kinds_at_once() -> None:
    nodes = float_nodes()
    nodes[0] = node("Conv", "x w1 b1", "c1", dilations=[2, 2], pads=[2, 2, 2, 2])
    nodes[4] = node("Clip", "c2 six six", "r2")
    refuse(model(nodes, constants()), "operator 0 (Conv): dilation", "operator 4 (Clip): lower")


@pytest.mark.parametrize("kind", ["FLOAT16", "DOUBLE", "INT64", "STRING", "BFLOAT16"])
def test_other_types_of_input(kind: str) -> None:
    number = getattr(onnx.TensorProto, kind)
    refuse(model(float_nodes(), constants(), kind=number), f"type {kind}")


def test_float16_weights_behind_a_cast() -> None:
    nodes = [node("Cast", "x", "h", to=onnx.TensorProto.FLOAT16), *float_nodes()]
    refuse(model(nodes, constants()), "operator 0 (Cast)")


def test_string_tensors() -> None:
    made = float_model()
    text = onnx.helper.make_tensor("text", onnx.TensorProto.STRING, [1], [b"hello"])
    made.graph.initializer.append(text)
    refuse(made, "text", "only numbers")


@pytest.mark.parametrize("shape", [(1, 3, "h", "w"), (1, 3, 0, 8), (1, 3, -4, 8), (1, 3, 8), ()])
def test_dynamic_and_impossible_shapes(shape: tuple[int | str, ...]) -> None:
    refuse(model(float_nodes(), constants(), shape), "shape", "must be")


@pytest.mark.parametrize("size", [1 << 20, 1 << 31, 1 << 62])
def test_huge_inputs(size: int) -> None:
    refuse(model(float_nodes(), constants(), (1, 3, size, size)), "shape")


def test_huge_constants() -> None:
    made = float_model()
    made.graph.initializer[0].dims[:] = [1 << 40, 1 << 40, 3, 3]
    refuse(made, "w1")
    made = float_model()
    made.graph.initializer[0].dims[:] = [8, 3, 300, 300]
    refuse(made)


@pytest.mark.parametrize(
    "bomb",
    [
        [node("ConstantOfShape", "big", "w1")],
        [node("Expand", "b1 big", "w1")],
        [node("Tile", "b1 big", "w1")],
        [node("Range", "from to step", "w1")],
        [node("Concat", f"v{i} v{i}", f"v{i + 1}", axis=0) for i in range(60)],
        [node("Add", f"v{i} v{i}", f"v{i + 1}") for i in range(2000)],
        [node("Mul", "row column", "w1")],
    ],
    ids=["constant", "expand", "tile", "range", "doubled", "chain", "broadcast"],
)
def test_constants_that_grow(bomb: list[Any]) -> None:
    some = constants()
    del some["w1"]
    some |= {
        "big": np.array([1 << 16, 1 << 16], np.int64),
        "from": np.array(0, np.int64),
        "to": np.array(1 << 40, np.int64),
        "step": np.array(1, np.int64),
        "v0": np.ones(50_000, np.float32),
        "row": np.ones((1, 20_000), np.float32),
        "column": np.ones((20_000, 1), np.float32),
    }
    refuse(model([*bomb, *float_nodes()], some))


def test_weights_used_many_times() -> None:
    some = {"w": np.eye(300, dtype=np.float32)}
    nodes = [node("MatMul", f"{f't{i}' if i else 'x'} w", f"t{i + 1}") for i in range(2000)]
    nodes[-1].output[0] = "y"
    refuse(model(nodes, some, (1, 300), (1, 300)), "left")


def test_a_shift_of_very_many_features() -> None:
    some = {"one": np.array(1, np.float32)}
    refuse(model([node("Add", "x one", "y")], some, (1, 1 << 17), (1, 1 << 17)), "left")


def test_a_constant_by_column_is_none_by_channel() -> None:
    """Eight channels and eight columns: broadcasting says columns."""
    some = constants()
    nodes = [*float_nodes()[:1], node("Add", "c1 b1", "t"), node("GlobalAveragePool", "t", "y")]
    refuse(model(nodes, some, output=(1, 8, 1, 1)), "operator 1 (Add)", "(8,)")
    some["b1c"] = some["b1"].reshape(8, 1, 1)
    nodes[1] = node("Add", "c1 b1c", "t")
    assert parse_onnx(model(nodes, some, output=(1, 8, 1, 1)).SerializeToString()).nodes


def test_padding_that_no_convolution_takes() -> None:
    some = constants() | {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)}
    nodes = float_nodes()
    nodes[8:9] = [
        node("Pad", "r3 pads", "padded"),
        node("MaxPool", "padded", "p", kernel_shape=[3, 3], strides=[3, 3]),
    ]
    refuse(model(nodes, some), "operator 9 (MaxPool): padding before it")


def test_padding_of_axes_in_another_order() -> None:
    """Four axes, but height and width changed places: the amounts alone look right."""
    some = constants() | {
        "pads": np.array([0, 0, 1, 2, 0, 0, 1, 2], np.int64),
        "zero": np.array(0, np.float32),
        "axes": np.array([0, 1, 3, 2], np.int64),
    }
    nodes = float_nodes()
    nodes[0:1] = [
        node("Pad", "x pads zero axes", "padded"),
        node("Conv", "padded w1 b1", "c1", kernel_shape=[3, 3]),
    ]
    refuse(model(nodes, some), "operator 0 (Pad): padding with a list of axes")


def test_a_cycle() -> None:
    nodes = float_nodes()
    nodes[0] = node("Conv", "s w1 b1", "c1", kernel_shape=[3, 3])
    refuse(model(nodes, constants()), "operator 0 (Conv): its input 's' is computed by no earlier")


def test_not_a_number() -> None:
    some = constants()
    some["w3"][3, 2] = np.nan
    refuse(model(float_nodes(), some), "NaN")


def test_data_in_another_file() -> None:
    made = float_model()
    made.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    refuse(made, "another file")


def test_two_outputs() -> None:
    made = float_model()
    made.graph.output.append(made.graph.output[0])
    refuse(made, "2 outputs")


def test_layers_that_do_not_fit_each_other() -> None:
    some = constants()
    some["w3"] = np.ones((31, 4), np.float32)
    refuse(model(float_nodes(), some), "operator 10 (Gemm)")
    some = constants()
    some["w2"] = np.ones((8, 7, 1, 1), np.float32)
    refuse(model(float_nodes(), some), "operator 5 (Conv)")


@pytest.mark.parametrize("strides", [[0, 0], [-1, 1], [2]])
def test_impossible_strides(strides: list[int]) -> None:
    nodes = float_nodes()
    nodes[0] = node("Conv", "x w1 b1", "c1", strides=strides, pads=[1, 1, 1, 1])
    content: bytes = model(nodes, constants()).SerializeToString()
    refuse(content)


# --- broken files --------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"ONNX", bytes(64), b"\x89PNG" * 9, b"TFL3" * 20])
def test_something_else(content: bytes) -> None:
    refuse(content, "not an ONNX file")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        read_onnx(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="cannot read"):
        read_onnx(tmp_path)


@pytest.mark.parametrize("content", [CONTENT, QDQ], ids=["float", "qdq"])
def test_truncated_files(content: bytes) -> None:
    for place in np.linspace(0, len(content) - 1, 300).astype(int):
        refuse(content[:place])


def test_random_bytes() -> None:
    rng = np.random.default_rng(1)
    for size in rng.integers(1, 5000, 300):
        refuse(rng.bytes(int(size)))


@pytest.mark.parametrize("content", [CONTENT, QDQ], ids=["float", "qdq"])
def test_mutated_files(content: bytes) -> None:
    """Bytes changed at random: an error of this package, or a network that is still one."""
    rng = np.random.default_rng(2)
    refused = 0
    for trial in range(500):
        broken = bytearray(content)
        for place in rng.integers(0, len(broken), 1 + trial % 40):
            values = (0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256)))
            broken[place] = values[rng.integers(len(values))]
        refused += try_to_read(bytes(broken))
    assert refused >= 200
