"""Packing: what lies at one address, offsets, regions, on schedules made for the purpose."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradiron.arch.config import Config
from gradiron.graph import TRAIN, Schedule, Tensor
from gradiron.memory import place
from gradiron.packing import Buffer, assign, buffers, footprint, in_place, lifetimes, pack, peak
from support.memories import run


@dataclass(frozen=True)
class Made:
    """A step as the planner sees it."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    mask: str = ""
    skip: str = ""
    layer: str = "made"
    macs: int = 0


def made(
    *steps: Made,
    sizes: Mapping[str, int],
    persistent: tuple[str, ...] = (),
    given: tuple[str, ...] = (),
    wanted: tuple[str, ...] = (),
) -> Schedule:
    tensors = {
        name: Tensor(
            name,
            "weight" if name in persistent else "activation",
            size,
            (size,),
            persistent=name in persistent,
            host_writes=name in given,
            host_reads=name in wanted,
        )
        for name, size in sizes.items()
    }
    return Schedule(tensors, {}, {TRAIN: cast("Any", steps)}, 1, {}, {})


def groups(schedule: Schedule) -> set[frozenset[str]]:
    return {frozenset(item.names) for item in buffers(schedule, 2) if len(item.names) > 1}


# --- in place ------------------------------------------------------------------------------------


def test_a_result_takes_the_place_of_its_mask() -> None:
    schedule = made(
        Made((), ("x",)),
        Made((), ("dy",)),
        Made(("dy", "x"), ("dx",), mask="x"),
        Made(("dx",), ()),
        sizes={"x": 8, "dy": 8, "dx": 8},
    )
    assert groups(schedule) == {frozenset({"x", "dx"})}
    assert footprint(schedule) == 16


def test_not_while_the_mask_is_needed_as_an_operand() -> None:
    schedule = made(
        Made((), ("x",)),
        Made((), ("dy",)),
        Made(("dy", "x"), ("dx",), mask="x"),
        Made(("x", "dy"), ()),
        Made(("dx",), ()),
        sizes={"x": 8, "dy": 8, "dx": 8},
    )
    assert groups(schedule) == set()
    assert footprint(schedule) == 24


def test_not_over_an_operand_of_the_same_step() -> None:
    schedule = made(
        Made((), ("x",)),
        Made(("x", "x"), ("y",), skip="x"),
        Made(("y",), ()),
        sizes={"x": 8, "y": 8},
    )
    assert not in_place(schedule, lifetimes(schedule), "y", "x")
    assert groups(schedule) == set()


def test_not_where_the_result_dies_before_the_mask() -> None:
    schedule = made(
        Made((), ("x",)),
        Made((), ("dy",)),
        Made(("dy", "x"), ("d1",), mask="x"),
        Made(("dy", "d1"), ("d2",)),
        Made(("dy", "x", "d2"), ("d3",), mask="x"),
        Made(("d3", "d2"), ()),
        sizes={"x": 8, "dy": 8, "d1": 8, "d2": 8, "d3": 8},
    )
    assert groups(schedule) == {frozenset({"x", "d3"})}


def test_parts_of_a_result_share_with_its_mask_until_the_last() -> None:
    parts = [Made(("dy", "x"), ("dx",), mask="x") for _ in range(3)]
    fill = Made(("dy",), ("dx",))
    sizes = {"x": 8, "dy": 8, "dx": 8}
    start = (Made((), ("x",)), Made((), ("dy",)))
    whole = made(*start, fill, *parts, Made(("dx",), ()), sizes=sizes)
    assert groups(whole) == {frozenset({"x", "dx"})}
    # A step between the parts that reads what is there already, or what is still to be masked.
    for between in (Made(("dx",), ()), Made(("x",), ())):
        broken = made(*start, *parts[:2], between, *parts[2:], Made(("dx",), ()), sizes=sizes)
        assert groups(broken) == set()


def test_partial_gradients_follow_each_other_in_place() -> None:
    schedule = made(
        Made((), ("x",)),
        Made((), ("dy",)),
        Made(("dy",), ("d1",)),
        Made(("dy", "d1"), ("d2",), skip="d1"),
        Made(("dy", "d2", "x"), ("d3",), skip="d2", mask="x"),
        Made(("d3", "d3"), ()),
        sizes={"x": 8, "dy": 8, "d1": 8, "d2": 8, "d3": 8},
    )
    assert footprint(schedule) == 24
    found = place(schedule, Config(rows=4, cols=4, regions=(64,)))
    assert found is not None
    run(found, TRAIN)
    assert found.over("d2") == ("d1",)
    # d3 follows in the place of both d2 and the mask: one of them.
    assert set(found.over("d3")) <= {"d2", "x"}
    assert found.over("d3")


def test_parameters_and_what_the_host_reads_stay() -> None:
    schedule = made(
        Made(("w",), ("y",), mask="w"),
        Made(("y",), ("z",), mask="y"),
        sizes={"w": 8, "y": 8, "z": 8},
        persistent=("w",),
        wanted=("y",),
    )
    assert groups(schedule) == set()


# --- offsets -------------------------------------------------------------------------------------


def item(size: int, first: int, last: int, *, persistent: bool = False) -> Buffer:
    live = ((1 << (last - first + 1)) - 1) << first
    return Buffer((f"{size}:{first}-{last}",), size, live, persistent, 0)


def test_peak() -> None:
    items = [item(10, 0, 1), item(20, 1, 2), item(5, 2, 2), item(7, 0, 9, persistent=True)]
    assert peak(items) == 37
    assert peak(items, 2) == 38


def test_packing_beats_first_fit_by_size() -> None:
    # Placed by size, or by time, with the lowest hole, these leave a hole at the peak.
    items = [item(4, 0, 1), item(4, 2, 4), item(2, 1, 2), item(6, 3, 5), item(6, 0, 0)]
    assert pack(items, peak(items)) is not None


spans = st.tuples(st.integers(1, 40), st.integers(0, 12), st.integers(0, 6))


@given(st.lists(spans, min_size=1, max_size=14), st.sampled_from([1, 2, 4]))
@settings(max_examples=60)
def test_nothing_overlaps(given_: list[tuple[int, int, int]], align: int) -> None:
    items = [item(size, first, first + more) for size, first, more in given_]
    least = peak(items, align)
    found = pack(items, 4 * least, align)
    assert found is not None
    for one in items:
        assert found[one] % align == 0
        for other in items:
            if one is not other and one.live & other.live:
                apart = found[one] + one.bytes <= found[other]
                assert apart or found[other] + other.bytes <= found[one]
    assert pack(items, least - 1, align) is None
    assert pack(items, 4 * least, align) == found


# --- regions -------------------------------------------------------------------------------------


def chain(count: int, size: int) -> Schedule:
    names = [f"t{index}" for index in range(count + 1)]
    steps = [Made((a,), (b,)) for a, b in pairwise(names)]
    return made(*steps, sizes=dict.fromkeys(names, size), given=("t0",))


def apart(step: Any, regions: Mapping[str, int]) -> int:
    """A step costs less where its tensors lie in different regions."""
    names = (*step.reads, *step.writes)
    return 10 + 5 * (len(names) - len({regions[name] for name in names}))


def test_cost_decides_the_regions() -> None:
    schedule = chain(9, 16)
    found = assign(schedule, (1024, 1024), cost=apart)
    assert found is not None
    assert all(
        found.places[f"t{index}"][0] != found.places[f"t{index + 1}"][0] for index in range(9)
    )
    again = assign(schedule, (1024, 1024), cost=apart)
    assert again == found


def test_cost_gives_way_to_room() -> None:
    schedule = chain(3, 32)
    # Two of them live at a time: the second region has room for none.
    found = assign(schedule, (64, 16), cost=apart)
    assert found is not None
    assert {region for region, _ in found.places.values()} == {0}
    assert assign(schedule, (48, 16)) is None


@pytest.mark.parametrize("regions", [(128,), (64, 64), (80, 32, 16), (32, 32, 32, 32)])
def test_tight_memories(regions: tuple[int, ...]) -> None:
    sizes = {"a": 32, "b": 16, "c": 32, "d": 16, "e": 16, "f": 32, "w": 16, "g": 8}
    schedule = made(
        Made(("a",), ("b", "g")),
        Made(("a", "b"), ("c",)),
        Made(("c", "w"), ("d",)),
        Made(("d", "g", "w"), ("e", "w")),
        Made(("e", "d"), ("f",)),
        sizes=sizes,
        persistent=("w",),
        given=("a",),
        wanted=("f",),
    )
    found = place(schedule, Config(rows=4, cols=4, regions=tuple(max(64, r) for r in regions)))
    assert found is not None
    run(found, TRAIN)
    packed = assign(schedule, regions)
    assert packed is not None
    for name, (region, offset) in packed.places.items():
        assert 0 <= offset <= regions[region] - sizes[name]


def test_a_tensor_that_no_offset_spans() -> None:
    assert assign(chain(1, 512), (4096,), streamed_limit=512) is None
    assert assign(chain(1, 511), (4096,), streamed_limit=512) is not None
