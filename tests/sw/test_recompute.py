"""Recomputation: less memory, more cycles, the same bits."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradiron.arch.config import Config, simulation_config, up5k_config
from gradiron.compiler import Program, compile_graph, lower, step_costs
from gradiron.golden.device import GoldenDevice
from gradiron.graph import INPUT, TRAIN, Graph, derive
from gradiron.memory import Placement, Plan, place
from gradiron.model import LayerParameters, Parameters, State, read_state, write_state
from gradiron.networks import mlp, network
from gradiron.operations import LABELS, Layer
from gradiron.packing import footprint, lifetimes
from gradiron.planner import DoesNotFitError, choose, plan
from gradiron.recompute import AGAIN, candidates, recompute
from support.memories import run

DEEP = mlp([6, 40, 40, 40, 40, 2])


def trained(program: Program, graph: Graph, steps: int) -> State:
    """The state after some steps on random samples on the golden model."""
    batch = program.batch
    schedule = program.schedule
    rng = np.random.default_rng(5)
    x: Any = rng.integers(-127, 128, (batch * steps, graph.features)).astype(np.int8)
    labels = rng.integers(0, graph.classes, len(x))
    parameters: Parameters = {}
    for name, p in schedule.parameters.items():
        master = rng.integers(-16000, 16001, p.shape.weight).astype(np.int16)
        bias = rng.integers(-90000, 90001, p.shape.bias).astype(np.int32)
        parameters[name] = LayerParameters(master, bias, -7)
    # Far from right, so that trackers move.
    exponents = dict.fromkeys(schedule.exponents, (-6, -6, 0))
    exponents |= dict.fromkeys((p.exponent for p in schedule.parameters.values()), (-7, -7, 0))
    exponents |= {name: (value, 0, 0) for name, value in schedule.constants.items()}
    device = GoldenDevice(program.config)
    device.write_program(program.words)
    device.write_csr("SEED", 3)
    device.write_csr("RATE", 4)
    write_state(device, program, State(parameters, exponents))
    tensor = program.schedule.tensors[INPUT]
    for step in range(steps):
        part = slice(step * batch, (step + 1) * batch)
        rows = x[part].reshape(tensor.shape)
        padded = np.zeros((len(rows), tensor.pitch or rows.shape[1]), np.int8)
        padded[:, tensor.lead : tensor.lead + rows.shape[1]] = rows
        device.write_memory(program.plan.address(INPUT), padded.tobytes())
        device.write_memory(program.plan.address(LABELS), labels[part].astype(np.uint8).tobytes())
        device.run(program.entries[TRAIN])
    return read_state(device, program)


def same_bits(graph: Graph, config: Config, batch: int, steps: int) -> None:
    """Every candidate alone, and all together, against none."""
    schedule = derive(graph, batch, lane_bytes=config.lane_bytes)
    found = place(schedule, config)
    assert found is not None
    wanted = trained(lower(found, graph), graph, steps)
    whole = candidates(schedule)
    assert whole
    for chosen in (whole, *([one] for one in whole)):
        changed = recompute(schedule, chosen)
        assert changed is not None
        assert list(changed.exponents)[: len(schedule.exponents)] == list(schedule.exponents)
        again = place(changed, config)
        assert again is not None
        run(again, TRAIN)
        state = trained(lower(again, graph), graph, steps)
        assert state.weights_sha256() == wanted.weights_sha256()
        for name, entry in wanted.exponents.items():
            assert state.exponents[name] == entry, name


def everything() -> Graph:
    """A network with every operation, small."""
    layers = (
        Layer("conv", "conv", ("input",), units=6, kernel=(3, 3), relu=True),
        Layer("pool", "max_pool", ("conv",), kernel=(2, 2)),
        Layer("depthwise", "depthwise", ("pool",), kernel=(3, 3), relu=True),
        Layer("inner", "conv", ("depthwise",), units=6, kernel=(3, 3)),
        Layer("first", "add", ("pool", "inner"), relu=True),
        Layer("down", "conv", ("first",), units=8, kernel=(3, 3), stride=(2, 2), relu=True),
        Layer("deep", "conv", ("down",), units=8, kernel=(3, 3)),
        Layer("project", "conv", ("first",), units=8, stride=(2, 2)),
        Layer("second", "add", ("project", "deep"), relu=True),
        Layer("mean", "average_pool", ("second",), kernel=(0, 0)),
        Layer("flatten", "flatten", ("mean",)),
        Layer("dense", "dense", ("flatten",), units=4),
    )
    return Graph("everything", (12, 12, 2), layers)


@pytest.mark.parametrize("graph", [DEEP, everything()], ids=["dense", "everything"])
def test_the_same_bits(graph: Graph) -> None:
    same_bits(graph, simulation_config("4x4"), 2, 6)


def unshared(graph: Graph, batch: int) -> Program:
    """A program in whose memory all tensors lie one after the other, planes of gates elsewhere."""
    config = simulation_config("4x4", regions=(1 << 20, 1 << 16))
    schedule = derive(graph, batch)
    spans = lifetimes(schedule)
    placements: dict[str, Placement] = {}
    end = 0
    for name, tensor in schedule.tensors.items():
        region = int(tensor.part == "argmax")
        placements[name] = Placement(tensor, region, end, spans[name])
        end += tensor.bytes
    return lower(Plan(config, schedule, placements), graph)


def sharing_changes_no_bit(graph: Graph, batch: int, steps: int) -> None:
    wanted = trained(unshared(graph, batch), graph, steps)
    schedule = derive(graph, batch)
    least = footprint(schedule)
    for room in (1000, 200):
        size = max(1024, (least + room) // 8 * 4)
        config = simulation_config("4x4", regions=(size, size))
        try:
            found = plan(graph, config, batch, costs=step_costs)
        except DoesNotFitError:
            found = plan(graph, simulation_config("4x4"), batch, costs=step_costs)
        for program in found.schedule.programs:
            run(found, program)
        state = trained(lower(found, graph), graph, steps)
        assert state.weights_sha256() == wanted.weights_sha256()
        for name, entry in wanted.exponents.items():
            assert state.exponents[name] == entry, name


def test_sharing_changes_no_bit() -> None:
    graph = everything()
    program = unshared(graph, 2)
    wanted = trained(program, graph, 6)
    assert trained(program, graph, 5).weights_sha256() != wanted.weights_sha256()
    found = plan(graph, simulation_config("4x4"), 2, costs=step_costs)
    assert len([name for name in found.placements if found.over(name)]) > 2
    sharing_changes_no_bit(graph, 2, 6)


@st.composite
def networks(draw: st.DrawFn) -> Graph:
    """Chains with residuals: odd sizes, strides, pools that leave a rest."""
    layers: list[Layer] = []
    shape = [draw(st.integers(5, 11)), draw(st.integers(5, 11)), draw(st.integers(1, 5))]
    start, last = tuple(shape), "input"
    for index in range(draw(st.integers(1, 5))):
        kinds = ["conv", "conv", "depthwise", "residual"]
        kinds += ["max_pool", "average_pool"] if min(shape[:2]) >= 4 else []
        kind, name = draw(st.sampled_from(kinds)), f"{index}"
        relu = draw(st.booleans())
        kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
        stride = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
        if kind == "residual":
            units = draw(st.integers(1, 6))
            layers.append(Layer(f"{name}a", "conv", (last,), units=units, kernel=kernel, relu=relu))
            layers.append(Layer(f"{name}b", "conv", (f"{name}a",), units=shape[2], kernel=(3, 3)))
            layers.append(Layer(name, "add", (last, f"{name}b"), relu=draw(st.booleans())))
        elif kind in ("max_pool", "average_pool"):
            window = draw(st.integers(2, 3))
            layers.append(Layer(name, kind, (last,), kernel=(window, window)))
            shape[:2] = [size // window for size in shape[:2]]
        else:
            units = draw(st.integers(1, 6)) if kind == "conv" else 0
            layers.append(
                Layer(name, kind, (last,), units=units, kernel=kernel, stride=stride, relu=relu)
            )
            shape[:2] = [-(-size // step) for size, step in zip(shape, stride, strict=False)]
            shape[2] = units or shape[2]
        last = name
    layers.append(Layer("flat", "flatten", (last,)))
    layers.append(Layer("dense", "dense", ("flat",), units=3))
    return Graph("random", start, tuple(layers))


@given(networks(), st.integers(1, 3))
@settings(max_examples=8)
def test_sharing_changes_no_bit_of_any_network(graph: Graph, batch: int) -> None:
    sharing_changes_no_bit(graph, batch, 2)


@pytest.mark.long
@given(networks(), st.integers(1, 3))
@settings(max_examples=150)
def test_sharing_changes_no_bit_of_many_networks(graph: Graph, batch: int) -> None:
    sharing_changes_no_bit(graph, batch, 2)


@pytest.mark.parametrize(
    ("name", "size", "again"),
    [("ds-cnn", 1 << 16, 0), ("ds-cnn", 48 << 10, 4), ("resnet8", 1 << 17, 0)],
)
def test_networks_train_to_the_same_bits_in_small_memories(
    name: str, size: int, again: int
) -> None:
    graph = network(name)
    small = compile_graph(graph, up5k_config().replace(regions=(size, size)), 1)
    assert len(small.plan.recomputed) == again
    wide = simulation_config("16x16", regions=(1 << 20,) * 3)
    state, wanted = trained(small, graph, 2), trained(compile_graph(graph, wide, 1), graph, 2)
    assert state.weights_sha256() == wanted.weights_sha256()
    for entry, value in wanted.exponents.items():
        assert state.exponents[entry] == value, entry


def test_less_memory() -> None:
    schedule = derive(DEEP, 64)
    before = footprint(schedule)
    chosen = candidates(schedule)
    assert [name for each in chosen for name in each.names] == [
        f"dense{index}.output" for index in range(1, 5)
    ]
    changed = recompute(schedule, chosen[1:3])
    assert changed is not None
    assert footprint(changed) < before
    twins = {f"dense{index}.output{AGAIN}": f"dense{index}.output" for index in (3, 2)}
    assert changed.twins == twins
    # What is computed again is so where the backward pass needs it, from what is there.
    steps = [(s.layer, s.writes) for s in changed.programs[TRAIN] if "pass_" in dir(s)]
    place2 = steps.index(("dense2", (f"dense2.output{AGAIN}",)))
    place3 = steps.index(("dense3", (f"dense3.output{AGAIN}",)))
    assert place2 < place3 < steps.index(("dense4", ("dense3.gradient",)))


def test_the_planner_recomputes_only_where_it_must() -> None:
    whole = footprint(derive(DEEP, 64))
    room = Config(rows=4, cols=4, regions=(whole + -whole % 4,))
    assert plan(DEEP, room, 64).recomputed == ()
    tight = Config(rows=4, cols=4, regions=(whole - 2400 - whole % 4,))
    found = plan(DEEP, tight, 64, costs=step_costs)
    assert len(found.recomputed) == 1
    run(found, TRAIN)
    assert found.used <= tight.memory_bytes
    choice = choose(DEEP, tight, 64, costs=step_costs)
    assert choice.measures == ("recompute",)
    assert choice.text == f"{found.recomputed[0]} computed twice"
    assert "% of the cycles" in choice.lines[0] or "cycles" in choice.lines[0]
    with pytest.raises(DoesNotFitError) as info:
        choose(DEEP, tight, 64, allow=(), costs=step_costs)
    # Without it, the refusal offers what is left.
    assert info.value.options
    assert all(option.recomputed == () for option in info.value.options)


def test_a_full_exponent_table_is_respected() -> None:
    graph = mlp([4, *[8] * 19, 2])
    schedule = derive(graph, 2)
    assert len(schedule.exponents) == 61
    chosen = candidates(schedule)
    assert recompute(schedule, chosen[:4]) is None
    assert recompute(schedule, chosen[:3]) is not None
