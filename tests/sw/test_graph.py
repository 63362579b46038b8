"""Layer graphs, their checks, and the steps derived from them."""

import dataclasses
import json

import pytest

from gradiron.arch.isa import BMode, Out, Pass
from gradiron.errors import ModelError, PlanError
from gradiron.graph import INFER, INPUT, TRAIN, CountStep, Graph, derive
from gradiron.networks import mlp, network
from gradiron.operations import Layer, LossStep, Product


def products(graph: Graph, program: str = TRAIN, batch: int = 4) -> list[tuple[str, str]]:
    steps = derive(graph, batch).programs[program]
    return [(s.layer, s.pass_.name) for s in steps if isinstance(s, Product)]


DENSE = Layer("a", "dense", (INPUT,), 4)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), "has no layers"),
        ((Layer("a", "conv3d", (INPUT,)),), "operation 'conv3d' is not known; there are: dense"),
        ((DENSE, DENSE), "two layers are called 'a'"),
        ((Layer("a", "dense", ("b",), 4),), "'a' reads 'b', which no earlier layer is called"),
        ((DENSE, Layer("b", "dense", (INPUT,), 4)), "'a' is not used; every result but the last"),
        (
            (Layer("a", "dense", (INPUT,), 4, relu=True),),
            "'a', must be a layer with weights and without",
        ),
        ((Layer("f", "flatten", (INPUT,)),), "'f', must be a layer with weights and without"),
        ((Layer("a", "dense", (INPUT, INPUT), 4),), "dense has one input, 2 are given"),
        (
            (Layer("a", "dense", (INPUT,), 4, momentum=True, int8_weights=True),),
            "choose either momentum or int8-only weights",
        ),
    ],
)
def test_bad_graphs(layers: tuple[Layer, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Graph("bad", (8,), layers)


def test_a_dense_layer_needs_a_flat_input() -> None:
    with pytest.raises(ModelError, match="put a flatten before it"):
        Graph("bad", (8, 8), (DENSE,))


def test_unknown_loss() -> None:
    with pytest.raises(ModelError, match="loss 'hinge' is not known; there are: softmax_cross"):
        Graph("bad", (8,), (DENSE,), loss="hinge")


def test_training_steps_in_order() -> None:
    assert products(network("mlp")) == [
        ("dense1", "FORWARD"),
        ("dense2", "FORWARD"),
        ("dense3", "FORWARD"),
        ("dense3", "DX"),
        ("dense3", "DW"),
        ("dense2", "DX"),
        ("dense2", "DW"),
        ("dense1", "DW"),
    ]
    steps = derive(network("mlp"), 4).programs[TRAIN]
    assert isinstance(steps[3], LossStep)
    assert isinstance(steps[-1], CountStep)
    assert [step.macs for step in steps if isinstance(step, Product)] == [
        4 * size for size in (100352, 8192, 640, 640, 640, 8192, 8192, 100352)
    ]


def test_inference_has_forward_and_predictions_only() -> None:
    steps = derive(network("digits"), 4).programs[INFER]
    assert [getattr(s, "pass_", None) for s in steps] == [Pass.FORWARD, Pass.FORWARD, Pass.OTHER]
    assert not any(step.track for step in steps if isinstance(step, Product))
    assert steps[-1].writes == ("predictions",)


def test_products_of_a_dense_layer() -> None:
    steps = derive(network("digits"), 8).programs[TRAIN]
    forward, logits, _, dx, dw, _, _ = steps
    assert isinstance(forward, Product)
    assert forward.relu
    assert forward.track
    assert isinstance(logits, Product)
    assert logits.out == Out.LOGITS
    assert not logits.track
    assert isinstance(dx, Product)
    assert (dx.b.by, dx.mask, dx.o.tensor) == (BMode.COLUMNS, "dense1.output", "dense1.gradient")
    assert isinstance(dw, Product)
    assert dw.transposed
    assert dw.out == Out.MASTER
    assert (dw.taps, dw.pixels, dw.columns) == (32, 8, 10)
    assert set(dw.writes) == {"dense2.weight.high", "dense2.weight.low", "dense2.bias"}
    assert set(dw.writes) < set(dw.reads)


def test_no_mask_without_relu() -> None:
    layers = (Layer("a", "dense", (INPUT,), 6), Layer("b", "dense", ("a",), 3))
    steps = derive(Graph("linear", (5,), layers), 2).programs[TRAIN]
    assert [s.mask for s in steps if isinstance(s, Product) and s.pass_ == Pass.DX] == [""]


def test_nothing_is_computed_below_the_first_trainable_layer() -> None:
    graph = network("mlp").with_options(frozen=["dense1", "dense2"])
    assert products(graph)[3:] == [("dense3", "DW")]
    tensors = derive(graph, 4).tensors
    assert "dense1.weight.low" not in tensors
    assert "dense2.gradient" not in tensors
    # A frozen layer above a trainable one still passes gradients on.
    middle = network("mlp").with_options(frozen=["dense2"])
    assert products(middle)[3:] == [
        ("dense3", "DX"),
        ("dense3", "DW"),
        ("dense2", "DX"),
        ("dense1", "DW"),
    ]


def test_nothing_to_train() -> None:
    graph = network("digits").with_options(frozen=["dense1", "dense2"])
    assert list(derive(graph, 4).programs) == [INFER]
    assert "labels" not in derive(graph, 4).tensors


def test_options_per_layer() -> None:
    graph = network("mlp").with_options(int8_weights=["dense1"], momentum=["dense2"])
    updates = {
        step.layer: step.out
        for step in derive(graph, 4).programs[TRAIN]
        if isinstance(step, Product) and step.pass_ == Pass.DW
    }
    assert updates == {"dense1": Out.INT8_WEIGHTS, "dense2": Out.MOMENTUM, "dense3": Out.MASTER}
    tensors = derive(graph, 4).tensors
    assert tensors["dense2.momentum.bias"].bytes == 4 * 64
    assert "dense1.weight.low" not in tensors
    assert graph.with_options(momentum=()).with_options(int8_weights=()) == network("mlp")
    with pytest.raises(ModelError, match="no layer is called 'dense9'"):
        graph.with_options(frozen=["dense9"])


def test_exponent_numbers_depend_on_the_graph_alone() -> None:
    plain = derive(network("mlp"), 1).exponents
    graph = network("mlp").with_options(frozen=["dense1"], int8_weights=["dense3"])
    assert derive(graph, 32, lane_bytes=2).exponents == plain
    assert sorted(plain.values()) == list(range(10))


def test_too_many_layers_for_the_exponent_table() -> None:
    mlp([4] * 22)
    derive(mlp([4] * 22), 1)
    with pytest.raises(ModelError, match="has 67 tensors with an exponent; the machine has 64"):
        derive(mlp([4] * 23), 1)


def test_flatten_is_a_view() -> None:
    layers = (
        Layer("flat", "flatten", (INPUT,)),
        Layer("a", "dense", ("flat",), 6, relu=True),
        Layer("again", "flatten", ("a",)),
        Layer("b", "dense", ("again",), 3),
    )
    graph = Graph("flat", (4, 2), layers)
    schedule = derive(graph, 2)
    plain = derive(mlp([8, 6, 3]), 2)
    assert len(schedule.tensors) == len(plain.tensors)
    assert schedule.values["again"].tensor == "a.output"
    dx = next(s for s in schedule.programs[TRAIN] if isinstance(s, Product) and s.pass_ == Pass.DX)
    assert (dx.mask, dx.o.tensor) == ("a.output", "a.gradient")


def test_round_trip_through_json() -> None:
    graph = network("mlp").with_options(frozen=["dense1"])
    assert Graph.from_dict(json.loads(json.dumps(graph.to_dict()))) == graph


@pytest.mark.parametrize("batch", [0, -1, 32769])
def test_bad_batch(batch: int) -> None:
    with pytest.raises(ModelError, match=f"batch is {batch}; it must be from 1 to 32768"):
        derive(network("digits"), batch)


def test_two_byte_lanes() -> None:
    schedule = derive(mlp([17, 6, 4]), 3, lane_bytes=2)
    assert schedule.tensors[INPUT].pitch == 18
    assert schedule.tensors[INPUT].bytes == 54
    with pytest.raises(PlanError, match=r"'dense1' has 5 outputs.*must be even; use 6"):
        derive(mlp([17, 5, 4]), 3, lane_bytes=2)


def test_two_byte_lanes_read_a_single_channel_in_rows() -> None:
    layers = (
        Layer("c", "conv", (INPUT,), 8, kernel=(10, 4), stride=(2, 2), relu=True),
        Layer("flat", "flatten", ("c",)),
        Layer("d", "dense", ("flat",), 4),
    )
    graph = Graph("keywords", (49, 10, 1), layers)
    schedule = derive(graph, 3, lane_bytes=2)
    tensor = schedule.tensors[INPUT]
    assert (tensor.shape, tensor.pitch, tensor.lead) == ((3 * 49, 10), 12, 1)
    forward = schedule.programs[TRAIN][0]
    assert isinstance(forward, Product)
    assert (forward.taps_y, forward.taps_x, forward.j, forward.a.x0) == (10, 1, 4, 0)
    # At stride 1 windows begin at odd pixels: these are padded themselves.
    one = dataclasses.replace(layers[0], stride=(2, 1))
    tensor = derive(Graph("wide", (49, 10, 1), (one, *layers[1:])), 3, lane_bytes=2).tensors[INPUT]
    assert (tensor.shape, tensor.pitch, tensor.lead) == ((3 * 490, 1), 2, 0)
    assert derive(graph, 3).tensors[INPUT].shape == (3, 490)
