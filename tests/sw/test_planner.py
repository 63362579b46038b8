"""Memory maps: nothing overlaps, everything adds up, and a refusal explains itself."""

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradiron.arch.config import Config, simulation_config, up5k_config
from gradiron.arch.isa import split_address
from gradiron.compiler import step_costs
from gradiron.errors import PlanError
from gradiron.graph import INFER, TRAIN, Graph, derive
from gradiron.networks import mlp, network
from gradiron.packing import conflicts
from gradiron.planner import DoesNotFitError, Plan, choose, footprint, lifetimes, plan
from support.memories import run


def check(found: Plan) -> None:
    """The invariants of every plan, by brute force over steps and bytes."""
    config, schedule = found.config, found.schedule
    assert found.placements.keys() == schedule.tensors.keys()
    for name, placed in found.placements.items():
        region, offset = split_address(found.address(name))
        assert (region, offset) == (placed.region, placed.offset)
        assert 0 <= offset <= offset + placed.tensor.bytes <= config.regions[region]
        assert offset % config.lane_bytes == 0
        assert placed.tensor.bytes > 0
    for program in schedule.programs:
        run(found, program)
    for use in found.regions():
        assert use.used + use.gaps + use.free == use.size
        assert use.tensors - use.shared == use.used
        assert min(use.used, use.gaps, use.free, use.shared) >= 0
    total = sum(tensor.bytes for tensor in schedule.tensors.values())
    assert sum(use.tensors for use in found.regions()) == total
    assert sum(row["bytes"] for row in found.table()) == total
    assert found.used == sum(use.used for use in found.regions())
    for program in schedule.programs:
        assert max(found.live(program)) <= found.used


@st.composite
def cases(draw: st.DrawFn) -> tuple[Graph, Config, int]:
    lanes = draw(st.sampled_from([1, 2]))
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    sizes = [size * lanes for size in sizes]
    graph = mlp([draw(st.integers(1, 40)), *sizes, draw(st.integers(1, 6)) * 2])
    names = [layer.name for layer in graph.layers]
    graph = graph.with_options(
        frozen=draw(st.sets(st.sampled_from(names))),
        int8_weights=(int8 := draw(st.sets(st.sampled_from(names)))),
        momentum=draw(st.sets(st.sampled_from(names))) - int8,
    )
    regions = draw(st.lists(st.integers(4, 500), min_size=1, max_size=4))
    config = Config(
        rows=4,
        cols=4,
        lanes=4,
        regions=tuple(16 * size for size in regions),
        lane_bytes=lanes,
    )
    return graph, config, draw(st.integers(1, 9))


@given(cases())
@settings(max_examples=150)
def test_invariants(case: tuple[Graph, Config, int]) -> None:
    graph, config, batch = case
    try:
        found = plan(graph, config, batch)
    except DoesNotFitError as error:
        check_refusal(error, config, batch)
        return
    check(found)


def check_refusal(error: DoesNotFitError, config: Config, batch: int) -> None:
    assert error.available == sum(config.regions)
    assert error.missing == max(0, error.needed - error.available)
    text = str(error)
    for option in error.options:
        assert f"{option.text}: {option.bytes} bytes" in text
        # Every promise is kept.
        check(plan(option.graph, config, option.batch))
        assert option.bytes <= error.available
        assert option.batch <= batch


def test_preferred_regions() -> None:
    regions = {
        p.tensor.name: p.region
        for p in plan(network("mlp"), simulation_config(), 8).placements.values()
    }
    for layer in ("dense1", "dense2", "dense3"):
        assert regions[f"{layer}.weight.high"] == 1
        assert regions[f"{layer}.weight.low"] == 2
    assert regions["input"] == regions["dense1.output"] == regions["dense2.output"] == 0


def test_two_regions_keep_operands_apart() -> None:
    regions = {
        p.tensor.name: p.region
        for p in plan(network("digits"), up5k_config(), 8).placements.values()
    }
    assert regions["dense1.weight.high"] == regions["dense1.weight.low"] == 1
    assert regions["input"] == regions["dense1.output"] == 0


def test_any_region_will_do() -> None:
    config = Config(regions=(8192,))
    check(plan(network("digits"), config, 8))
    # The preferred region of the weights is too small for them.
    found = plan(network("digits"), Config(regions=(8192, 64, 64)), 8)
    check(found)
    assert found.placements["dense1.weight.high"].region == 0


def test_exact_fit() -> None:
    schedule = derive(network("digits"), 8)
    needed = footprint(schedule)
    room = -(-needed // 8) * 8
    check(plan(network("digits"), Config(regions=(room,)), 8))
    with pytest.raises(DoesNotFitError) as info:
        plan(network("digits"), Config(regions=(room - 8,)), 8)
    assert info.value.needed == needed
    assert info.value.missing == needed - room + 8


def test_dead_buffers_are_shared() -> None:
    schedule = derive(mlp([8, 64, 64, 64, 64, 10]), 16)
    total = sum(tensor.bytes for tensor in schedule.tensors.values())
    assert footprint(schedule) < total
    spans = lifetimes(schedule)
    # The logits are dead once their gradient is there; the last gradient is not born yet.
    assert spans["dense5.logits.high"][TRAIN][1] < spans["dense1.gradient"][TRAIN][0]


def test_table() -> None:
    rows = {row["name"]: row for row in plan(network("digits"), simulation_config(), 8).table()}
    assert rows["input"] == {
        "name": "input",
        "kind": "input",
        "region": 0,
        "offset": 0,
        "bytes": 512,
        "first": "host",
        "last": "5 dense1 dw",
        "in_place_of": "",
    }
    assert rows["dense1.weight.high"]["first"] == "always"
    assert rows["dense1.gradient"]["first"] == "3 dense2 dx"
    assert rows["predictions"]["first"] == "infer 2 loss"
    assert rows["predictions"]["last"] == "host"
    text = str(plan(network("digits"), simulation_config(), 8))
    assert len(text.splitlines()) == 1 + len(rows) + len(simulation_config().regions)


def test_refusal_names_figures_and_ways_out() -> None:
    config = Config(regions=(6144,))
    with pytest.raises(DoesNotFitError) as info:
        plan(network("digits"), config, 20)
    error = info.value
    text = str(error)
    assert text.startswith(
        f"digits (64-32-10) at batch 20 needs {error.needed} bytes; the machine has 6144 "
        f"(6144 in one region): {error.needed - 6144} bytes are missing"
    )
    assert "  int8 weights (high planes): 2368 bytes" in text
    assert "  master weights (low planes): 2368 bytes" in text
    assert f"(together {sum(error.by_kind.values())};" in text
    assert [option.text for option in error.options] == [
        "batch 8 instead of 20",
        "layer dense1 frozen",
        "int8-only weights in layer dense1",
    ]
    check_refusal(error, config, 20)
    # The batch that is offered is the largest.
    with pytest.raises(DoesNotFitError):
        plan(network("digits"), config, error.options[0].batch + 1)


def test_refusal_offers_combinations_where_one_change_is_not_enough() -> None:
    with pytest.raises(DoesNotFitError) as info:
        plan(network("digits"), Config(regions=(2752,)), 32)
    assert [option.batch for option in info.value.options] == [1] * len(info.value.options)
    assert info.value.options
    check_refusal(info.value, Config(regions=(2752,)), 32)


def test_refusal_without_a_way_out() -> None:
    with pytest.raises(DoesNotFitError) as info:
        plan(network("mlp"), Config(regions=(4096, 4096)), 8)
    assert info.value.options == ()
    assert "would still need 110905 bytes" in str(info.value)
    assert "dense2.weight.high alone has 8192 bytes, and no region has more than 4096" in str(
        info.value
    )


def test_refusal_because_of_the_division_into_regions() -> None:
    # 228 KB of memory would do, but no region holds the weights of the first layer.
    with pytest.raises(DoesNotFitError) as info:
        plan(network("mlp"), Config(regions=(1 << 16,) * 4), 8)
    assert info.value.missing == 0
    assert "but not so that every tensor finds room in one region" in str(info.value)
    assert "dense1.weight.high alone has 100352 bytes, and no region has more than 65536" in str(
        info.value
    )


def test_refusal_of_a_tensor_that_offsets_do_not_span() -> None:
    with pytest.raises(DoesNotFitError) as info:
        plan(mlp([512, 8, 2]), Config(regions=(4096, 4096, 4096)), 1)
    assert "dense1.weight.high has 4096 bytes, and offsets on this machine reach 4095" in str(
        info.value
    )


def test_momentum_must_be_built() -> None:
    graph = network("digits").with_options(momentum=["dense1"])
    with pytest.raises(PlanError, match="layers dense1 want momentum, and this machine was built"):
        plan(graph, up5k_config(), 8)
    check(plan(graph, up5k_config(momentum=True), 8))


def test_frozen_network_has_an_inference_plan() -> None:
    graph = network("digits").with_options(frozen=["dense1", "dense2"])
    found = plan(graph, up5k_config(), 8)
    check(found)
    assert list(found.schedule.programs) == [INFER]
    assert found.used < 3400
    assert {row["first"] for row in found.table()} >= {"always", "infer 2 loss"}


# --- convolutional networks ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "regions"),
    [
        ("ds-cnn", (1 << 16, 1 << 16)),
        ("resnet8", (1 << 17, 1 << 17)),
        ("resnet8", (1 << 16,) * 4),
        ("resnet8", (1 << 17, 1 << 16, 1 << 16)),
        ("cnn", (1 << 14, 1 << 14)),
        ("ds-residual", (1 << 15, 1 << 15)),
        ("autoencoder", (1 << 19, 1 << 19)),
    ],
)
def test_networks_train_in_full_in_small_memories(name: str, regions: tuple[int, ...]) -> None:
    graph = network(name)
    config = up5k_config().replace(regions=regions, program_words=2048)
    started = time.monotonic()
    found = plan(graph, config, 1, costs=step_costs)
    assert time.monotonic() - started < 30
    check(found)
    assert found.recomputed == ()
    assert found.cycles is not None
    # Nothing is frozen, and masters have 16 bits.
    assert graph.trainable() == tuple(graph.parameters)
    kinds = found.bytes_by_kind()
    assert kinds["master"] == kinds["weight"] == sum(p.count for p in graph.parameters.values())
    # The regions cost little against the best that every step could have alone.
    cost = step_costs(found.schedule, config)
    best = 0
    for step in found.schedule.programs[TRAIN]:
        names = tuple(dict.fromkeys((*step.reads, *step.writes)))
        best += min(
            cost(step, dict(zip(names, chosen, strict=True)))
            for chosen in itertools.product(range(len(regions)), repeat=len(names))
        )
    assert found.cycles[TRAIN] <= 1.06 * best


def test_a_gate_lies_apart_from_what_it_lets_through() -> None:
    graph = network("cnn")
    for regions in ((1 << 14, 1 << 14), (1 << 16, 1 << 14, 1 << 14)):
        found = plan(graph, Config(regions=regions), 1, costs=step_costs)
        gates = conflicts(found.schedule)
        assert gates
        for pair in gates:
            assert len({found.placements[name].region for name in pair}) == 2
    with pytest.raises(DoesNotFitError, match="needs two regions"):
        plan(graph, Config(regions=(1 << 17,)), 1)


def test_pooling_goes_back_in_place() -> None:
    found = plan(network("ds-cnn"), up5k_config(), 1)
    assert found.over("pointwise4.gradient") == ("pointwise4.output",)


def test_less_memory_by_recomputation_and_more_by_harder_measures() -> None:
    graph = network("ds-cnn")
    cycles: list[int] = []
    for size, again in ((65536, 0), (60 << 10, 1), (56 << 10, 2), (48 << 10, 4)):
        config = up5k_config().replace(regions=(size, size))
        found = plan(graph, config, 1, costs=step_costs)
        check(found)
        assert len(found.recomputed) == again
        assert found.cycles is not None
        cycles.append(found.cycles[TRAIN])
    assert cycles == sorted(cycles)
    config = up5k_config().replace(regions=(40 << 10, 40 << 10))
    with pytest.raises(DoesNotFitError) as info:
        plan(graph, config, 1, costs=step_costs)
    assert [option.measures[-1] for option in info.value.options] == ["freeze", "sparse", "int8"]
    for option in info.value.options:
        text = f"{option.text}: {option.bytes} bytes, "
        assert text in str(info.value)
        assert f"{option.cycles} cycles a step" in str(info.value)
        check(plan(option.graph, config, option.batch))
    choice = choose(graph, config, 1, allow=["recompute", "int8"])
    assert choice.measures == ("recompute", "int8")
    check(choice.plan)
    choice = choose(graph, config, 1, allow=["freeze"])
    assert choice.measures == ("freeze",)
    assert choice.plan.recomputed == ()
    with pytest.raises(DoesNotFitError):
        choose(graph, config, 1, allow=["batch"])


def test_a_sparse_update_leaves_few_layers_alone() -> None:
    graph = network("resnet8")
    config = up5k_config().replace(regions=(110 << 10, 110 << 10))
    choice = choose(graph, config, 1, allow=["sparse"], costs=step_costs)
    assert choice.text == "layer block3.conv2 frozen"
    assert choice.measures == ("sparse",)
    check(choice.plan)
    from_the_first = choose(graph, config, 1, allow=["freeze"], costs=step_costs)
    assert len(choice.graph.trainable()) > len(from_the_first.graph.trainable())


def test_measures_together_where_one_is_not_enough() -> None:
    graph = network("resnet8")
    config = up5k_config().replace(regions=(1 << 16, 1 << 16))
    choice = choose(graph, config, 4, allow=["recompute", "batch", "freeze"], costs=step_costs)
    assert set(choice.measures) >= {"batch", "freeze"}
    assert choice.batch == 1
    assert choice.text.startswith("batch 1 and layers conv, ")
    check(choice.plan)
    with pytest.raises(PlanError, match="measure 'luck' is none of recompute, batch"):
        choose(graph, config, 4, allow=["luck"])
