"""A memory map: which bytes belong to which tensor, when, and that they add up.

In each region `used + gaps + free` is its size, and `used` is the sum of the tensors' bytes less
those shared. `place` makes the map of any schedule; what it does for networks, and what happens
where one does not fit, is in `gradiron.planner`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gradiron.arch.config import Config
from gradiron.arch.isa import make_address
from gradiron.graph import TRAIN, Schedule, Tensor
from gradiron.packing import Cost, Span, assign, lifetimes


@dataclass(frozen=True)
class Placement:
    """Where a tensor lies, and when.

    Attributes
    ----------
    tensor : Tensor
    region, offset : int
    spans : dict of (first, last) by program
        Steps between which the bytes belong to this tensor; -1 stands for "before the program" and
        the number of steps for "after it".
    """

    tensor: Tensor
    region: int
    offset: int
    spans: dict[str, Span]

    @property
    def address(self) -> int:
        """Address of the first byte."""
        return make_address(self.region, self.offset)

    @property
    def end(self) -> int:
        """Offset after the last byte."""
        return self.offset + self.tensor.bytes


@dataclass(frozen=True)
class RegionUse:
    """How much of a region is used: used + gaps + free = size, used = tensors - shared."""

    region: int
    size: int
    tensors: int
    shared: int
    used: int
    gaps: int
    free: int


def _union(ranges: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Bytes that belong to at least one range, and the end of the last."""
    used = last = 0
    for start, end in sorted(ranges):
        used += max(0, end - max(start, last))
        last = max(last, end)
    return used, last


@dataclass(frozen=True)
class Plan:
    """A memory map.

    Attributes
    ----------
    config : Config
    schedule : Schedule
    placements : dict of Placement by tensor name
    cycles : dict of int by program, or None
        Cycles of the steps by the cycle model, where it decided the regions; without what the
        program itself takes to prepare them.
    recomputed : tuple of str
        Tensors that are computed a second time instead of being kept.
    """

    config: Config
    schedule: Schedule
    placements: dict[str, Placement]
    cycles: dict[str, int] | None = None
    recomputed: tuple[str, ...] = ()

    def address(self, name: str) -> int:
        """Address of a tensor's first byte."""
        return self.placements[name].address

    @property
    def used(self) -> int:
        """Bytes of memory that belong to at least one tensor."""
        return sum(use.used for use in self.regions())

    def regions(self) -> list[RegionUse]:
        """The use of every region."""
        uses: list[RegionUse] = []
        for region, size in enumerate(self.config.regions):
            placed = [(p.offset, p.end) for p in self.placements.values() if p.region == region]
            total = sum(end - start for start, end in placed)
            used, last = _union(placed)
            uses.append(
                RegionUse(region, size, total, total - used, used, last - used, size - last)
            )
        return uses

    def live(self, program: str = TRAIN) -> list[int]:
        """Bytes that are needed during each step of a program; shared ones count once."""
        return [
            sum(
                _union(
                    (p.offset, p.end)
                    for p in self.placements.values()
                    if p.region == region
                    and program in p.spans
                    and p.spans[program][0] <= time <= p.spans[program][1]
                )[0]
                for region in range(len(self.config.regions))
            )
            for time in range(len(self.schedule.programs[program]))
        ]

    def over(self, name: str) -> tuple[str, ...]:
        """Tensors whose bytes a tensor takes while they are still needed: it is made in place."""
        one = self.placements[name]
        return tuple(
            other.tensor.name
            for other in self.placements.values()
            if other is not one
            and (other.region, other.offset) == (one.region, one.offset)
            and any(
                program in other.spans
                and other.spans[program][0] < first <= other.spans[program][1]
                for program, (first, _) in one.spans.items()
            )
        )

    def table(self) -> list[dict[str, Any]]:
        """A row per tensor: name, kind, region, offset, bytes, first and last use, in place of.

        Uses are steps of the training program (of another one for tensors that only it has), as
        "3 dense2 dx"; "host" is before or after the program, "always" is for parameters.
        """
        rows: list[dict[str, Any]] = []
        for p in sorted(self.placements.values(), key=lambda p: (p.region, p.offset)):
            program = TRAIN if TRAIN in p.spans else next(iter(p.spans), "")
            first, last = p.spans.get(program, (0, 0))
            always = p.tensor.persistent
            rows.append(
                {
                    "name": p.tensor.name,
                    "kind": p.tensor.kind,
                    "region": p.region,
                    "offset": p.offset,
                    "bytes": p.tensor.bytes,
                    "first": "always" if always else self._use(program, first),
                    "last": "always" if always else self._use(program, last),
                    "in_place_of": ", ".join(self.over(p.tensor.name)),
                }
            )
        return rows

    def _use(self, program: str, time: int) -> str:
        steps = self.schedule.programs.get(program)
        if steps is None:
            return "never"
        if not 0 <= time < len(steps):
            return "host"
        prefix = "" if program == TRAIN else f"{program} "
        return f"{prefix}{time} {step_name(steps[time])}"

    def bytes_by_kind(self) -> dict[str, int]:
        """Bytes of tensors by kind, shared ones counted for each."""
        return bytes_by_kind(self.schedule)

    def __str__(self) -> str:
        rows = self.table()
        width = max(len(row["name"]) for row in rows)
        lines = [f"{'tensor':{width}} region   offset    bytes  first use -> last use"]
        for row in rows:
            once = row["first"] == row["last"]
            lines.append(
                f"{row['name']:{width}} {row['region']:6} {row['offset']:8} {row['bytes']:8}  "
                + (row["first"] if once else f"{row['first']} -> {row['last']}")
                + (f" (in place of {row['in_place_of']})" if row["in_place_of"] else "")
            )
        for use in self.regions():
            lines.append(
                f"region {use.region}: {use.size} bytes = {use.used} used + {use.gaps} gaps + "
                f"{use.free} free; tensors {use.tensors}, of which {use.shared} shared"
            )
        return "\n".join(lines)


def step_name(step: Any) -> str:
    """A step in words: "dense1 forward", "loss", "step"."""
    pass_ = getattr(step, "pass_", None)
    if step.layer == "loss" or pass_ is None:
        return step.layer
    return f"{step.layer} {pass_.name.lower()}"


def bytes_by_kind(schedule: Schedule) -> dict[str, int]:
    """Bytes of tensors by kind, largest first."""
    sums: dict[str, int] = {}
    for tensor in schedule.tensors.values():
        sums[tensor.kind] = sums.get(tensor.kind, 0) + tensor.bytes
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def place(
    schedule: Schedule,
    config: Config,
    *,
    cost: Cost | None = None,
    recomputed: tuple[str, ...] = (),
) -> Plan | None:
    """A plan for any schedule; None where it does not fit.

    Parameters
    ----------
    schedule : Schedule
    config : Config
    cost : Cost or None
        Cycles of a step, from which the regions are chosen; without it by kinds of tensors.
    recomputed : tuple of str
        What the schedule computes twice, for the report.
    """
    found = assign(
        schedule,
        config.regions,
        config.lane_bytes,
        streamed_limit=1 << (config.offset_bits - 1),
        cost=cost,
    )
    if found is None:
        return None
    spans = lifetimes(schedule)
    placements = {
        name: Placement(tensor, *found.places[name], spans[name])
        for name, tensor in schedule.tensors.items()
    }
    cycles = None
    if cost is not None:
        regions = {name: region for name, (region, _) in found.places.items()}
        cycles = {
            program: sum(cost(step, regions) for step in steps)
            for program, steps in schedule.programs.items()
        }
    return Plan(config, schedule, placements, cycles, recomputed)


__all__ = [
    "Placement",
    "Plan",
    "RegionUse",
    "bytes_by_kind",
    "place",
    "step_name",
]
