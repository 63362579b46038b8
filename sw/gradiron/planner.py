"""The memory map, to the byte, before anything runs.

`plan` places every tensor of a network's programs into the regions of a machine. Tensors whose
lifetimes do not meet share bytes; parameters share with nobody. Streams of one instruction are put
into different regions where that is possible, because each region has its own port. A network that
does not fit is refused with `DoesNotFitError`, which says what is missing and what would fit.

The numbers add up: in each region `used + gaps + free` is its size, and `used` is the sum of the
tensors' bytes less those shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gradiron.arch.config import Config
from gradiron.arch.isa import make_address
from gradiron.errors import PlanError
from gradiron.graph import INFER, KINDS, TRAIN, Graph, Schedule, Tensor, derive

Span = tuple[int, int]
"""First and last step, inclusive, in which a tensor holds something that is needed."""

PREFERENCES: dict[int, dict[str, int]] = {
    # A forward product streams A from region 0 and loads B from region 1; an update reads x from
    # region 0 and its planes from 1 and 2. The gradients dY are the stationary operand of the
    # update: in a fourth region they load for free; of three, loading them from region 0 beside x
    # (R advances a tile) costs less than disturbing the planes (a cycle a row: measured 62 against
    # 88 % of peak).
    1: {},
    2: {"weight": 1, "master": 1, "bias": 1, "logits.low": 1, "momentum": 1, "operand.b": 1},
    3: {
        "weight": 1,
        "master": 2,
        "bias": 2,
        "logits.low": 2,
        "labels": 1,
        "momentum.low": 2,
        "operand.b": 1,
        "operand.c": 2,
    },
    4: {
        "weight": 1,
        "master": 2,
        "gradient": 3,
        "bias": 3,
        "logits.low": 2,
        "labels": 1,
        "momentum": 3,
        "operand.b": 1,
        "operand.c": 2,
    },
}
"""Preferred region by number of regions and kind (or kind.part); what is not named prefers 0."""


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


@dataclass(frozen=True)
class Plan:
    """A memory map.

    Attributes
    ----------
    config : Config
    schedule : Schedule
    placements : dict of Placement by tensor name
    """

    config: Config
    schedule: Schedule
    placements: dict[str, Placement]

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
            placed = sorted(
                (p.offset, p.end) for p in self.placements.values() if p.region == region
            )
            total = sum(end - start for start, end in placed)
            used = end_of_all = 0
            for start, end in placed:
                used += max(0, end - max(start, end_of_all))
                end_of_all = max(end_of_all, end)
            free = size - end_of_all
            uses.append(RegionUse(region, size, total, total - used, used, end_of_all - used, free))
        return uses

    def live(self, program: str = TRAIN) -> list[int]:
        """Bytes that are needed during each step of a program."""
        return [
            sum(
                p.tensor.bytes
                for p in self.placements.values()
                if program in p.spans and p.spans[program][0] <= time <= p.spans[program][1]
            )
            for time in range(len(self.schedule.programs[program]))
        ]

    def table(self) -> list[dict[str, Any]]:
        """A row per tensor: name, kind, region, offset, bytes, first and last use.

        Uses are steps of the training program (of the inference program for tensors that only it
        has), as "3 dense2 dx"; "host" is before or after the program, "always" is for parameters.
        """
        rows: list[dict[str, Any]] = []
        for p in sorted(self.placements.values(), key=lambda p: (p.region, p.offset)):
            program = TRAIN if TRAIN in p.spans else next(iter(p.spans))
            first, last = p.spans[program]
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
                }
            )
        return rows

    def _use(self, program: str, time: int) -> str:
        steps = self.schedule.programs[program]
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


# --- lifetimes and placement ---------------------------------------------------------------------


def lifetimes(schedule: Schedule) -> dict[str, dict[str, Span]]:
    """When each tensor holds something that is needed, by program."""
    spans: dict[str, dict[str, Span]] = {name: {} for name in schedule.tensors}
    for program, steps in schedule.programs.items():
        for time, step in enumerate(steps):
            for name in (*step.reads, *step.writes):
                first, _ = spans[name].get(program, (time, time))
                spans[name][program] = (first, time)
    for name, tensor in schedule.tensors.items():
        for program, steps in schedule.programs.items():
            if tensor.persistent:
                spans[name][program] = (-1, len(steps))
            elif program in spans[name]:
                first, last = spans[name][program]
                spans[name][program] = (
                    -1 if tensor.host_writes else first,
                    len(steps) if tensor.host_reads else last,
                )
    return spans


def _meet(one: dict[str, Span], other: dict[str, Span]) -> bool:
    return any(
        program in other and span[0] <= other[program][1] and other[program][0] <= span[1]
        for program, span in one.items()
    )


Placed = dict[str, tuple[int, int]]


class _Allocator:
    """First fit over time and space."""

    def __init__(
        self, schedule: Schedule, capacities: Sequence[int], align: int, streamed_limit: int
    ) -> None:
        self.tensors = schedule.tensors
        self.spans = lifetimes(schedule)
        self.capacities = capacities
        self.align = align
        self.streamed_limit = streamed_limit
        self.placed: Placed = {}

    def lowest(self, tensor: Tensor, region: int) -> int | None:
        """The lowest offset at which a tensor fits into a region."""
        busy = sorted(
            (offset, offset + self.tensors[name].bytes)
            for name, (where, offset) in self.placed.items()
            if where == region and _meet(self.spans[name], self.spans[tensor.name])
        )
        offset = 0
        for start, end in busy:
            if offset + tensor.bytes <= start:
                break
            offset = max(offset, -(-end // self.align) * self.align)
        fits = offset + tensor.bytes <= self.capacities[region]
        return offset if fits and tensor.bytes < self.streamed_limit else None

    def run(self, order: Iterable[Tensor], regions: Callable[[Tensor], Iterable[int]]) -> bool:
        """Place all; False where one does not fit."""
        self.placed = {}
        for tensor in order:
            for region in regions(tensor):
                offset = self.lowest(tensor, region)
                if offset is not None:
                    self.placed[tensor.name] = (region, offset)
                    break
            else:
                return False
        return True


def _preferred(tensor: Tensor, count: int) -> int:
    wanted = PREFERENCES[count]
    return wanted.get(f"{tensor.kind}.{tensor.part}", wanted.get(tensor.kind, 0))


def _orders(schedule: Schedule) -> list[list[Tensor]]:
    tensors = list(schedule.tensors.values())
    large_first = sorted(tensors, key=lambda t: -t.bytes)
    return [
        sorted(large_first, key=lambda t: not t.persistent),
        large_first,
        sorted(large_first, key=lambda t: t.persistent),
    ]


def _allocate(schedule: Schedule, config: Config) -> Placed | None:
    """Places of all tensors, by preference where that fits, wherever there is room otherwise."""
    count = len(config.regions)
    allocator = _Allocator(
        schedule, config.regions, config.lane_bytes, 1 << (config.offset_bits - 1)
    )

    def by_preference(tensor: Tensor) -> list[int]:
        first = _preferred(tensor, count)
        return [first, *(r for r in range(count) if r != first)]

    def tightest(tensor: Tensor) -> list[int]:
        del tensor
        return sorted(range(count), key=lambda r: config.regions[r])

    for regions in (by_preference, tightest):
        for order in _orders(schedule):
            if allocator.run(order, regions):
                return allocator.placed
    return None


def footprint(schedule: Schedule, *, align: int = 1) -> int:
    """Bytes that a schedule needs in one region without end."""
    ends: list[int] = []
    for order in _orders(schedule):
        allocator = _Allocator(schedule, [1 << 62], align, 1 << 62)
        allocator.run(order, lambda tensor: (0,))
        ends.append(max(o + schedule.tensors[n].bytes for n, (_, o) in allocator.placed.items()))
    return min(ends)


def place(schedule: Schedule, config: Config) -> Plan | None:
    """A plan for any schedule; None where it does not fit."""
    placed = _allocate(schedule, config)
    if placed is None:
        return None
    spans = lifetimes(schedule)
    placements = {
        name: Placement(tensor, *placed[name], spans[name])
        for name, tensor in schedule.tensors.items()
    }
    return Plan(config, schedule, placements)


# --- networks ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """A change that makes a network fit.

    Attributes
    ----------
    text : str
        In words.
    bytes : int
        Memory needed then.
    graph : Graph
    batch : int
    """

    text: str
    bytes: int
    graph: Graph
    batch: int


class DoesNotFitError(PlanError):
    """A network that does not fit, with what is missing and what would fit.

    Attributes
    ----------
    needed, available, missing : int
        Bytes. `missing` is 0 where only the division into regions prevents a placement.
    by_kind : dict of int
        Bytes of tensors by kind.
    options : tuple of Option
        Changes that fit, as planned.
    """

    def __init__(
        self,
        message: str,
        *,
        needed: int,
        available: int,
        by_kind: dict[str, int],
        options: tuple[Option, ...],
    ) -> None:
        self.needed = needed
        self.available = available
        self.missing = max(0, needed - available)
        self.by_kind = by_kind
        self.options = options
        super().__init__(message)


def plan(graph: Graph, config: Config, batch: int) -> Plan:
    """The memory map of a network on a machine.

    Parameters
    ----------
    graph : Graph
    config : Config
    batch : int
        Samples per step.

    Raises
    ------
    DoesNotFitError
        Where it does not fit.
    PlanError
        Where the machine lacks something else: momentum, even sizes.
    """
    _check_options(graph, config)
    schedule = derive(graph, batch, lane_bytes=config.lane_bytes)
    found = place(schedule, config)
    if found is None:
        raise _refusal(graph, config, batch, schedule)
    return found


def _check_options(graph: Graph, config: Config) -> None:
    users = [layer.name for layer in graph.layers if layer.momentum and not layer.frozen]
    if users and not config.momentum:
        raise PlanError(
            f"layers {', '.join(users)} want momentum, and this machine was built without it; "
            "train without momentum, or use a Config with momentum=True"
        )


def _try(graph: Graph, config: Config, batch: int) -> tuple[int, bool]:
    """Bytes needed, and whether the network can be placed."""
    schedule = derive(graph, batch, lane_bytes=config.lane_bytes)
    return (
        footprint(schedule, align=config.lane_bytes),
        _allocate(schedule, config) is not None,
    )


def _single_options(graph: Graph, config: Config, batch: int) -> list[Option]:
    """One change at a time, the smallest of its kind that fits."""
    options: list[Option] = []
    if any(layer.momentum for layer in graph.layers):
        plain = graph.with_options(momentum=())
        size, fits = _try(plain, config, batch)
        if fits:
            options.append(Option("no momentum", size, plain, batch))
    low, high = 0, batch
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _try(graph, config, middle)[1] else (low, middle)
    if low:
        size = _try(graph, config, low)[0]
        options.append(Option(f"batch {low} instead of {batch}", size, graph, low))
    trainable = graph.trainable()
    int8 = graph.with_options(int8_weights=trainable, momentum=())
    size, fits = _try(int8, config, batch)
    if fits and int8 != graph:
        options.append(Option("int8-only weights in all layers", size, int8, batch))
    frozen = {layer.name for layer in graph.layers if layer.frozen}
    for count in range(1, len(trainable)):
        names = trainable[:count]
        less = graph.with_options(frozen=frozen.union(names))
        size, fits = _try(less, config, batch)
        if fits:
            what = "layer" if count == 1 else "layers"
            options.append(Option(f"{what} {', '.join(names)} frozen", size, less, batch))
            break
    return options


def _combined_options(graph: Graph, config: Config) -> tuple[list[Option], Option]:
    """Several changes at once; those that fit, and the smallest of all."""
    trainable = graph.trainable()
    frozen = {layer.name for layer in graph.layers if layer.frozen}
    last = graph.with_options(frozen=frozen.union(trainable[:-1]), momentum=())
    candidates = [
        ("int8-only weights and batch 1", graph.with_options(int8_weights=trainable, momentum=())),
        (f"all layers but {trainable[-1]} frozen and batch 1", last),
        (
            f"all layers but {trainable[-1]} frozen, int8-only weights and batch 1",
            last.with_options(int8_weights=trainable),
        ),
    ]
    tried = [(text, changed, *_try(changed, config, 1)) for text, changed in candidates]
    options = [Option(text, size, changed, 1) for text, changed, size, _ in tried]
    fitting = [option for option, entry in zip(options, tried, strict=True) if entry[3]]
    return fitting, min(options, key=lambda option: option.bytes)


def _refusal(graph: Graph, config: Config, batch: int, schedule: Schedule) -> DoesNotFitError:
    needed = footprint(schedule, align=config.lane_bytes)
    available = config.memory_bytes
    kinds = bytes_by_kind(schedule)
    sizes = " + ".join(str(size) for size in config.regions)
    count = len(config.regions)
    where = "one region" if count == 1 else f"{count} regions"
    lines = [
        f"{graph} at batch {batch} needs {needed} bytes; the machine has {available} "
        f"({sizes} in {where})"
    ]
    if needed > available:
        lines[0] += f": {needed - available} bytes are missing"
    else:
        lines[0] += ", but not so that every tensor finds room in one region"
    total = sum(kinds.values())
    lines += [f"  {KINDS[kind]}: {size} bytes" for kind, size in kinds.items()]
    lines.append(f"  (together {total}; {total - needed} are shared by tensors of different times)")
    limit = max(config.regions)
    lines += [
        f"{tensor.name} alone has {tensor.bytes} bytes, and no region has more than {limit}"
        for tensor in schedule.tensors.values()
        if tensor.bytes > limit
    ]
    options: list[Option] = []
    smallest: Option | None = None
    if TRAIN in schedule.programs:
        options = _single_options(graph, config, batch)
        if not options:
            options, smallest = _combined_options(graph, config)
    elif batch > 1 and _try(graph, config, 1)[1]:
        options = [Option("batch 1", _try(graph, config, 1)[0], graph, 1)]
    if options:
        lines.append("what would fit, as planned:")
        lines += [f"  {option.text}: {option.bytes} bytes" for option in options]
    else:
        lines.append("no smaller batch, frozen layers or int8-only weights make it fit")
        if smallest is not None and smallest.bytes > available:
            lines[-1] += f" ({smallest.text} would still need {smallest.bytes} bytes)"
        lines[-1] += "; use a smaller network or a machine with more memory"
        if needed <= available or (smallest is not None and smallest.bytes <= available):
            lines[-1] += " in larger regions"
    return DoesNotFitError(
        "\n".join(lines),
        needed=needed,
        available=available,
        by_kind=kinds,
        options=tuple(options),
    )


__all__ = [
    "INFER",
    "TRAIN",
    "DoesNotFitError",
    "Option",
    "Placement",
    "Plan",
    "RegionUse",
    "bytes_by_kind",
    "footprint",
    "lifetimes",
    "place",
    "plan",
    "step_name",
]
