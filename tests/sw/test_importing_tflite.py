"""The reader of TensorFlow Lite files: meaning against LiteRT, and broken files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import broken_files
from tests.support.tflite_files import (
    STRING,
    TYPES,
    File,
    Operator,
    Tensor,
    small_network,
)

from gradiron.errors import ModelError
from gradiron.importing.meaning import softmax
from gradiron.importing.tflite import parse_tflite, read_tflite

NETWORK = small_network()
CONTENT = NETWORK.write()


def images(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(-128, 128, (count, 9, 8, 3)).astype(np.int8)


def refuse(content: bytes | File, *texts: str) -> str:
    """The message of the error that a file must give, quickly."""
    given = content if isinstance(content, bytes) else content.write()
    return broken_files.refuse(parse_tflite, given, *texts)


def try_to_read(content: bytes) -> bool:
    """Whether a mutated file is refused; else it is a network with shapes."""
    return broken_files.try_to_read(parse_tflite, content)


# --- what is read --------------------------------------------------------------------------------


def test_the_layers() -> None:
    meaning = parse_tflite(CONTENT, "small")
    assert [node.operation for node in meaning.nodes] == [
        *("conv", "depthwise", "conv", "add", "average_pool", "flatten", "dense")
    ]
    assert meaning.input_shape == (9, 8, 3)
    assert meaning.softmax
    assert meaning.input is not None
    assert meaning.input.zero_point == -3
    assert meaning.output is not None
    assert meaning.output.scale == 1 / 256
    conv, depthwise = meaning.nodes[:2]
    assert conv.relu
    assert conv.ceiling is None
    assert depthwise.relu
    assert depthwise.ceiling == 6.0
    assert depthwise.stride == (2, 2)
    assert meaning.shapes["depthwise1"] == (5, 4, 8)


def test_weights_are_dequantised_by_channel() -> None:
    conv = parse_tflite(CONTENT, "small").nodes[0]
    weight, bias = NETWORK.tensors[1], NETWORK.tensors[2]
    assert conv.weight is not None
    assert conv.bias is not None
    assert weight.data is not None
    assert bias.data is not None
    scales = np.array(weight.scale, np.float32)
    np.testing.assert_allclose(conv.weight, weight.data.transpose(1, 2, 3, 0) * scales, rtol=1e-6)
    np.testing.assert_allclose(conv.bias, bias.data * np.array(bias.scale), rtol=1e-6)


def test_the_meaning_is_what_litert_computes() -> None:
    interpreter: Any = pytest.importorskip(
        "ai_edge_litert.interpreter", reason="LiteRT (ai-edge-litert) is not installed"
    )
    reference = interpreter.OpResolverType.BUILTIN_REF
    runner = interpreter.Interpreter(model_content=CONTENT, experimental_op_resolver_type=reference)
    runner.allocate_tensors()
    x, rows = images(50), []
    for image in x:
        runner.set_tensor(0, image[None])
        runner.invoke()
        rows.append(runner.get_tensor(16)[0])
    meaning = parse_tflite(CONTENT, "small")
    assert meaning.input is not None
    y = softmax(
        meaning.run((x.astype(np.float64) - meaning.input.zero_point) * meaning.input.scale)
    )
    # Two of its int8 grids lie between: logits of 0.02 and probabilities of 1/256.
    assert np.abs(y - (np.array(rows) + 128.0) / 256).max() < 0.05


def test_padding_before_a_convolution_joins_it() -> None:
    tensors = list(NETWORK.tensors)
    tensors[0] = Tensor("image", (1, 7, 6, 3), scale=(0.02,), zero=(-3,))
    amounts = np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32)
    tensors += [
        Tensor("amounts", (4, 2), amounts, (), ()),
        Tensor("padded", (1, 9, 8, 3), scale=(0.02,), zero=(-3,)),
        Tensor("y0", (1, 7, 6, 8), scale=(0.03,), zero=(-128,)),
    ]
    conv = NETWORK.operators[0]
    operators = (
        Operator("PAD", (0, 17), (18,), "PadOptions"),
        Operator("CONV_2D", (18, 1, 2), (19,), "Conv2DOptions", {**conv.options, "Padding": 1}),
    )
    meaning = parse_tflite(File(tuple(tensors), operators, (0,), (19,)).write())
    (node,) = meaning.nodes
    assert node.padding == ((1, 1), (1, 1))
    assert meaning.shapes[node.name] == (7, 6, 8)


def test_biases_without_a_scale_have_that_of_the_products() -> None:
    bare = NETWORK.with_tensor(2, scale=(), zero=())
    found, wanted = (parse_tflite(file.write()).nodes[0].bias for file in (bare, NETWORK))
    assert found is not None
    assert wanted is not None
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


# --- what is refused, with every problem at once -------------------------------------------------


def test_all_unknown_operators_are_listed() -> None:
    file = NETWORK.with_operator(1, kind="TANH").with_operator(4, kind="CUMSUM")
    message = refuse(file, "operator 1 (TANH)", "operator 4 (CUMSUM)", "2 problems")
    assert "CONV_2D" in message


def test_problems_of_many_kinds_at_once() -> None:
    file = (
        NETWORK.with_options(0, DilationWFactor=2)
        .with_options(1, FusedActivationFunction=4)
        .with_options(6, Beta=0.5)
    )
    refuse(file, "operator 0 (CONV_2D): dilation", "operator 1 (DEPTH", "activation 4", "beta 0.5")


@pytest.mark.parametrize("kind", ["float16", "float32", "int16"])
def test_other_types_of_input(kind: str) -> None:
    refuse(NETWORK.with_tensor(0, kind=TYPES[kind]), kind.upper(), "full-integer")


def test_string_tensors() -> None:
    refuse(NETWORK.with_tensor(0, kind=STRING), "STRING")
    refuse(NETWORK.with_tensor(9, kind=STRING), "STRING", "y3")


def test_float16_weights() -> None:
    shape = NETWORK.tensors[1].shape
    refuse(NETWORK.with_tensor(1, data=np.ones(shape, np.float16), scale=()), "FLOAT16", "w1")


def test_dynamic_shapes() -> None:
    refuse(NETWORK.with_tensor(0, signature=(-1, -1, -1, 3)), "not fixed")
    free_batch = NETWORK.with_tensor(0, signature=(-1, 9, 8, 3))
    assert parse_tflite(free_batch.write()).input_shape == (9, 8, 3)


@pytest.mark.parametrize(
    "shape", [(1, 1 << 30, 1 << 30, 3), (1, 1 << 20, 1 << 20, 3), (1, -5, 8, 3), (1, 0, 8, 3), ()]
)
def test_huge_and_impossible_inputs(shape: tuple[int, ...]) -> None:
    refuse(NETWORK.with_tensor(0, shape=shape), "shape")


def test_content_of_another_length() -> None:
    refuse(NETWORK.with_tensor(1, shape=(8, 1 << 29, 1 << 29, 3)), "w1", "bytes of content")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_scales(scale: float) -> None:
    refuse(NETWORK.with_tensor(0, scale=(scale,)), "positive number")
    refuse(NETWORK.with_tensor(13, scale=(scale,)), "positive number")


def test_scales_along_another_axis() -> None:
    refuse(NETWORK.with_tensor(1, axis=1), "8 scales along axis 1")
    refuse(NETWORK.with_tensor(1, axis=9), "8 scales along axis 9")


def test_padding_that_no_convolution_takes() -> None:
    amounts = np.zeros((4, 2), np.int32)
    tensors = (*NETWORK.tensors, Tensor("amounts", (4, 2), amounts), Tensor("sum2", (1, 5, 4, 8)))
    operators = list(NETWORK.operators)
    operators[4] = replace(operators[4], inputs=(18, 11))
    operators.insert(4, Operator("PAD", (10, 17), (18,), "PadOptions"))
    refuse(File(tensors, tuple(operators), (0,), (16,)), "operator 5 (MEAN): padding before it")


def test_no_stride() -> None:
    refuse(NETWORK.with_options(0, StrideW=0), "stride")


def test_a_cycle() -> None:
    refuse(NETWORK.with_operator(2, inputs=(10, 7, 8)), "computed by no earlier operator")
    refuse(NETWORK.with_operator(2, inputs=(9, 7, 8)), "computed by no earlier operator")


def test_layers_that_do_not_fit_each_other() -> None:
    refuse(NETWORK.with_tensor(0, shape=(1, 9, 8, 4)), "groups")
    rng = np.random.default_rng(0)
    other = rng.integers(-9, 9, (5, 7)).astype(np.int8)
    refuse(NETWORK.with_tensor(13, data=other, shape=(5, 7)), "7 inputs")


def test_indices_outside_the_file() -> None:
    refuse(NETWORK.with_operator(0, outputs=(99,)), "index 99")


def test_two_inputs() -> None:
    file = File(NETWORK.tensors, NETWORK.operators, (0, 3), (16,))
    refuse(file, "2 inputs and 1 outputs")


# --- broken files --------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"TFL3", bytes(7), bytes(64), b"\x89PNG" * 9])
def test_no_mark(content: bytes) -> None:
    refuse(content, "is not a TensorFlow Lite file")


def test_another_mark() -> None:
    refuse(CONTENT[:4] + b"TFL2" + CONTENT[8:], "is not a TensorFlow Lite file")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        read_tflite(tmp_path / "none.tflite")
    with pytest.raises(ModelError, match="cannot read"):
        read_tflite(tmp_path)


def test_truncated_files() -> None:
    """Cut at 300 places: every one is refused but for a cut in what no reader needs."""
    places = np.linspace(0, len(CONTENT) - 16, 300).astype(int)
    for place in places:
        refuse(CONTENT[:place])


def test_random_bytes_behind_the_mark() -> None:
    rng = np.random.default_rng(1)
    for size in rng.integers(16, 5000, 300):
        refuse(rng.bytes(4) + b"TFL3" + rng.bytes(int(size)))
        refuse((24).to_bytes(4, "little") + b"TFL3" + rng.bytes(int(size)))


def test_mutated_files() -> None:
    """Bytes changed at random: an error of this package, or a network that is still one."""
    rng = np.random.default_rng(2)
    refused = 0
    for trial in range(600):
        broken = bytearray(CONTENT)
        for place in rng.integers(8, len(broken), 1 + trial % 40):
            values = (0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256)))
            broken[place] = values[rng.integers(len(values))]
        refused += try_to_read(bytes(broken))
    assert refused >= 200


def test_mutated_words() -> None:
    """Offsets and lengths: every word of the first tables takes extreme values."""
    refused = 0
    for place in range(8, len(CONTENT) - 4, 12):
        for word in (0, 0x7FFFFFFF, 0xFFFFFFFF, len(CONTENT)):
            broken = CONTENT[:place] + word.to_bytes(4, "little") + CONTENT[place + 4 :]
            refused += try_to_read(broken)
    assert refused >= 200


def test_shared_tables_do_not_make_reading_long() -> None:
    """A hundred thousand tensors that are one table with a long list of scales."""
    long = Tensor("long", (1,), scale=(0.1,) * 5000, zero=(0,) * 5000)
    file = replace(NETWORK, tensors=(*NETWORK.tensors, long), repeat_last=100_000)
    refuse(file, "a vector claims")
