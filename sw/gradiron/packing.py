"""Where tensors go: lifetimes, buffers that several tensors share in place, regions and offsets.

Tensors of one instruction that may lie at one address (the result, and a mask or skip that nobody
needs afterwards) form a `Buffer`. `pack` finds offsets in one region; `assign` finds the regions:
first any division that fits, then one that a cost function likes better (the cycles of the steps),
as long as everything still fits. All searches are bounded and deterministic.

Ref: Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, 2020 (greedy by
size); Apache TVM, Unified Static Memory Planner (hill climbing over orders).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import TypeAlias

from gradiron.arch.isa import BMode
from gradiron.graph import TRAIN, Schedule, Step, Tensor
from gradiron.operations import Product

Span: TypeAlias = tuple[int, int]
"""First and last step, inclusive, in which a tensor holds something that is needed."""

Cost: TypeAlias = Callable[[Step, Mapping[str, int]], int]
"""Cycles of a step with its tensors in these regions, by name."""

CLIMBS = 60
"""Orders that a search for offsets tries beyond the fixed ones."""
REPAIRS = 400
"""Orders that a search for regions tries: each begins with what found no room before."""
PASSES = 12
"""Rounds of improvement of the regions; it ends earlier where nothing gets better."""
KICKS, IN_VAIN = 12, 4
"""Regions are shaken at most so often, and so often without a gain, to find better ones."""
SHAKEN = 0.3
"""Share of the buffers that get another region then, if there is room."""
EFFORT = 40_000
"""Moves that are rated, after which regions are shaken no more."""
IMPOSSIBLE = 1 << 60
TRAIN_WEIGHT = 16
"""Cycles of the training program count this much more than those of other programs."""

PREFERENCES: dict[int, dict[str, int]] = {
    # A forward product streams A from region 0 and loads B from region 1; an update reads x from
    # region 0 and its planes from 1 and 2. The gradients dY are the stationary operand of the
    # update: in a fourth region they load for free; of three, loading them from region 0 beside x
    # (R advances a tile) costs less than disturbing the planes.
    1: {},
    2: {
        "weight": 1,
        "master": 1,
        "bias": 1,
        "logits.low": 1,
        "momentum": 1,
        "operand.b": 1,
        "argmax": 1,
    },
    3: {
        "weight": 1,
        "master": 2,
        "bias": 2,
        "logits.low": 2,
        "labels": 1,
        "momentum.low": 2,
        "operand.b": 1,
        "operand.c": 2,
        "argmax": 2,
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
        "argmax": 2,
    },
}
"""Where the search for regions begins: by number of regions and kind (or kind.part, or part)."""


def preferred(tensor: Tensor, count: int) -> int:
    """The region in which a tensor of this kind usually costs least."""
    wanted = PREFERENCES[count]
    for key in (f"{tensor.kind}.{tensor.part}", tensor.part, tensor.kind):
        if key in wanted:
            return wanted[key]
    return 0


# --- lifetimes -----------------------------------------------------------------------------------


def lifetimes(schedule: Schedule) -> dict[str, dict[str, Span]]:
    """When each tensor holds something that is needed, by program.

    -1 stands for "before the program", the number of steps for "after it". A tensor that no program
    uses has no span, unless it is persistent.
    """
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


def covered(step: Step) -> tuple[str, ...]:
    """Operands of a step that its result may overwrite, element by element: mask and skip."""
    names = (getattr(step, "mask", ""), getattr(step, "skip", ""))
    return tuple(name for name in names if name)


def _operands(step: Step) -> tuple[str, ...]:
    """What a step reads other than as mask or skip."""
    names = list(step.reads)
    for name in covered(step):
        names.remove(name)
    return tuple(names)


def in_place(
    schedule: Schedule, spans: dict[str, dict[str, Span]], result: str, operand: str
) -> bool:
    """Whether a tensor may take the bytes of another, which is a mask or skip of its producer.

    True where, from the first write of the result to the last use of the operand, steps read the
    operand only as mask or skip of that result, and write the result without reading it. Steps that
    write one tensor write different elements of it.
    """
    for program, (first, last) in spans[result].items():
        if program not in spans[operand]:
            continue
        born, dead = spans[operand][program]
        start = max(first, born)
        if start > min(last, dead):
            continue
        steps = schedule.programs[program]
        if start < 0 or dead >= len(steps):
            return False
        for step in steps[start : dead + 1]:
            other = _operands(step)
            if operand in other or result in other or operand in step.writes:
                return False
            if operand in step.reads and result not in step.writes:
                return False
            if result in step.reads:
                return False
    return True


@dataclass(frozen=True, eq=False)
class Buffer:
    """Tensors that begin at one address.

    Attributes
    ----------
    names : tuple of str
    bytes : int
        Of the largest.
    live : int
        Bit set over the steps of all programs: when it is needed.
    persistent : bool
        Needed always.
    preferred : int
        Where the search for a region begins.
    """

    names: tuple[str, ...]
    bytes: int
    live: int
    persistent: bool
    preferred: int

    @cached_property
    def duration(self) -> int:
        """Number of steps in which it is needed."""
        return self.live.bit_count()


def buffers(schedule: Schedule, count: int, *, join: bool = True) -> list[Buffer]:
    """The buffers of a schedule on a machine with `count` regions.

    Parameters
    ----------
    schedule : Schedule
    count : int
    join : bool
        Whether tensors that may share an address do.
    """
    spans = lifetimes(schedule)
    begins: dict[str, int] = {}
    length = 0
    for program, steps in schedule.programs.items():
        begins[program] = length + 1
        length += len(steps) + 2
    live: dict[str, int] = {}
    for name, by_program in spans.items():
        live[name] = 0
        for program, (first, last) in by_program.items():
            live[name] |= ((1 << (last - first + 1)) - 1) << (begins[program] + first)
    groups: dict[str, list[str]] = {name: [name] for name in schedule.tensors}
    for result, operand in _pairs(schedule) if join else ():
        one, other = groups[result], groups[operand]
        if one is other or not all(
            not live[a] & live[b]
            or ((a, b) == (result, operand) and in_place(schedule, spans, a, b))
            for a in one
            for b in other
        ):
            continue
        other += one
        for name in one:
            groups[name] = other
    found: list[Buffer] = []
    for name, names in groups.items():
        if name != names[0]:
            continue
        tensors = [schedule.tensors[each] for each in names]
        bits = 0
        for each in names:
            bits |= live[each]
        found.append(
            Buffer(
                tuple(names),
                max(tensor.bytes for tensor in tensors),
                bits,
                tensors[0].persistent,
                preferred(tensors[0], count),
            )
        )
    return found


def _pairs(schedule: Schedule) -> list[tuple[str, str]]:
    """(result, mask or skip) of every step that may overwrite it."""
    pairs: dict[tuple[str, str], None] = {}
    for steps in schedule.programs.values():
        for step in steps:
            for operand in covered(step):
                for result in step.writes:
                    tensors = schedule.tensors[result], schedule.tensors[operand]
                    if result != operand and not any(tensor.persistent for tensor in tensors):
                        pairs[result, operand] = None
    return list(pairs)


def conflicts(schedule: Schedule) -> set[frozenset[str]]:
    """Pairs of tensors that must not lie in one region: a gate, and what is streamed through it."""
    return {
        frozenset((step.a.tensor, step.b.tensor))
        for steps in schedule.programs.values()
        for step in steps
        if isinstance(step, Product) and step.b.by == BMode.GATE
    }


# --- offsets in one region -----------------------------------------------------------------------

Offsets: TypeAlias = dict[Buffer, int]


def peak(items: Iterable[Buffer], align: int = 1) -> int:
    """The most bytes that are needed in one step: no placement needs less."""
    always = 0
    changes: dict[int, int] = {}
    for item in items:
        size = -(-item.bytes // align) * align
        if item.persistent:
            always += size
            continue
        bits, position = item.live, 0
        while bits:
            skip = (bits & -bits).bit_length() - 1
            bits >>= skip
            position += skip
            run = (~bits & (bits + 1)).bit_length() - 1
            changes[position] = changes.get(position, 0) + size
            changes[position + run] = changes.get(position + run, 0) - size
            bits >>= run
            position += run
    most = now = 0
    for time in sorted(changes):
        now += changes[time]
        most = max(most, now)
    return always + most


class Shelf:
    """One region while it is being filled."""

    def __init__(self, capacity: int, align: int) -> None:
        self.capacity = capacity
        self.align = align
        self.placed: list[tuple[int, int, int]] = []
        """(offset, end, live), by offset."""

    def find(self, item: Buffer, *, best: bool) -> int | None:
        """The lowest offset at which a buffer fits, or that of the smallest hole that holds it."""
        offset, size, live, align = 0, item.bytes, item.live, self.align
        chosen, smallest = None, 1 << 62
        for start, end, other in self.placed:
            if not other & live:
                continue
            hole = start - offset
            if size <= hole < smallest:
                if not best:
                    return offset
                chosen, smallest = offset, hole
            if end > offset:
                offset = -(-end // align) * align
        if chosen is None and offset + size <= self.capacity:
            return offset
        return chosen

    def put(self, item: Buffer, offset: int) -> None:
        """Place a buffer."""
        entry = (offset, offset + item.bytes, item.live)
        low, high = 0, len(self.placed)
        while low < high:
            middle = (low + high) // 2
            if self.placed[middle][0] < offset:
                low = middle + 1
            else:
                high = middle
        self.placed.insert(low, entry)


def _orders(items: Iterable[Buffer]) -> list[list[Buffer]]:
    """Parameters first, which leave no holes; then what is needed sometimes, in several orders."""
    listed = list(items)
    always = [item for item in listed if item.persistent]
    always.sort(key=lambda item: -item.bytes)
    others = [item for item in listed if not item.persistent]
    keys: tuple[Callable[[Buffer], tuple[int, int]], ...] = (
        lambda item: (-item.bytes, -item.duration),
        lambda item: (-item.bytes * item.duration, -item.bytes),
        lambda item: (-item.duration, -item.bytes),
        lambda item: ((item.live & -item.live).bit_length(), -item.bytes),
    )
    return [always + sorted(others, key=key) for key in keys]


def _lay(order: Sequence[Buffer], align: int, best: bool) -> tuple[Offsets, int]:
    shelf = Shelf(1 << 62, align)
    offsets: Offsets = {}
    height = 0
    for item in order:
        offset = shelf.find(item, best=best)
        assert offset is not None
        shelf.put(item, offset)
        offsets[item] = offset
        height = max(height, offset + item.bytes)
    return offsets, height


def pack(
    items: Sequence[Buffer], capacity: int, align: int = 1, *, climbs: int = CLIMBS
) -> Offsets | None:
    """Offsets of buffers in one region; None where none were found.

    Tries several orders, each with the lowest and with the tightest hole, and then climbs: what
    stands highest is placed earlier.
    """
    offsets, height = lowest(items, align, enough=capacity, climbs=climbs)
    return offsets if height <= capacity else None


def lowest(
    items: Sequence[Buffer], align: int = 1, *, enough: int = 0, climbs: int = CLIMBS
) -> tuple[Offsets, int]:
    """Offsets with the smallest end that was found, and that end; stops at `enough`."""
    least = peak(items, align)
    if enough and least > enough:
        return {}, least
    target = max(least, enough)
    found: tuple[Offsets, int] = ({}, 1 << 62)
    start: list[Buffer] = []
    for order in _orders(items):
        for best in (False, True):
            attempt = _lay(order, align, best)
            if attempt[1] < found[1]:
                found, start = attempt, order
            if found[1] <= target:
                return found
    chance = random.Random(len(items))
    order, height = start, found[1]
    for _ in range(climbs):
        top = [item for item in order if found[0][item] + item.bytes == found[1]]
        candidate = list(order)
        item = chance.choice(top) if chance.random() < 0.7 else chance.choice(order)
        place = candidate.index(item)
        candidate.pop(place)
        candidate.insert(chance.randrange(place + 1), item)
        attempt = _lay(candidate, align, chance.random() < 0.5)
        if attempt[1] <= height:
            order, height = candidate, attempt[1]
        if attempt[1] < found[1]:
            found = attempt
        if found[1] <= target:
            break
    return found


# --- regions -------------------------------------------------------------------------------------

Assignment: TypeAlias = dict[Buffer, int]


def _from(first: int, count: int) -> list[int]:
    """All regions, one of them first."""
    return [first, *(region for region in range(count) if region != first)]


def _nothing(chosen: Assignment) -> tuple[()]:
    """The regions of a step without tensors."""
    del chosen
    return ()


class _Search:
    """A search for regions: any that fit, then better ones."""

    def __init__(
        self,
        schedule: Schedule,
        items: list[Buffer],
        capacities: Sequence[int],
        align: int,
        cost: Cost | None,
    ) -> None:
        self.items = items
        self.capacities = capacities
        self.align = align
        self.cost = cost
        owner = {name: item for item in items for name in item.names}
        self.apart: dict[Buffer, set[Buffer]] = {item: set() for item in items}
        for pair in conflicts(schedule):
            one, *rest = (owner[name] for name in pair)
            for other in rest:
                self.apart[one].add(other)
                self.apart[other].add(one)
        self.steps: list[tuple[Step, tuple[Buffer, ...], int]] = []
        self.users: dict[Buffer, list[int]] = {item: [] for item in items}
        for program, steps in schedule.programs.items():
            weight = TRAIN_WEIGHT if program == TRAIN else 1
            for step in steps:
                names = dict.fromkeys((*step.reads, *step.writes))
                involved = tuple(dict.fromkeys(owner[name] for name in names))
                for item in involved:
                    self.users[item].append(len(self.steps))
                self.steps.append((step, involved, weight))
        self.rated = 0
        self.current: tuple[Assignment, list[int]] = ({}, [])
        self.regions_of: list[Callable[[Assignment], object]] = [
            itemgetter(*involved) if involved else _nothing for _, involved, _ in self.steps
        ]
        self.known: list[dict[object, int]] = [{} for _ in self.steps]
        self.packed: dict[tuple[int, frozenset[Buffer]], Offsets | None] = {}

    # --- any regions that fit

    def spread(
        self, order: Sequence[Buffer], regions: Callable[[Buffer], Iterable[int]], *, best: bool
    ) -> Assignment | Buffer:
        """Regions of all, or the first buffer that finds no room."""
        shelves = [Shelf(capacity, self.align) for capacity in self.capacities]
        offsets: list[Offsets] = [{} for _ in shelves]
        chosen: Assignment = {}
        for item in order:
            closed = {chosen[other] for other in self.apart[item] if other in chosen}
            for region in regions(item):
                offset = None if region in closed else shelves[region].find(item, best=best)
                if offset is not None:
                    shelves[region].put(item, offset)
                    offsets[region][item] = offset
                    chosen[item] = region
                    break
            else:
                return item
        for region, found in enumerate(offsets):
            self.packed.setdefault((region, frozenset(found)), found)
            if self.packed[region, frozenset(found)] is None:
                self.packed[region, frozenset(found)] = found
        return chosen

    def starts(self) -> Iterable[Assignment]:
        """Assignments that fit, by and by: as kinds prefer it, then wherever there is room."""
        count = len(self.capacities)

        def by_preference(item: Buffer) -> list[int]:
            return _from(item.preferred, count)

        def tightest(item: Buffer) -> list[int]:
            del item
            return sorted(range(count), key=lambda region: self.capacities[region])

        for regions in (by_preference, tightest):
            for given in _orders(self.items):
                order = list(given)
                for attempt in range(REPAIRS // 8):
                    found = self.spread(order, regions, best=bool(attempt & 1))
                    if not isinstance(found, Buffer):
                        yield found
                        break
                    order.remove(found)
                    order.insert(0, found)

    def fits(self, region: int, items: frozenset[Buffer]) -> Offsets | None:
        """Offsets of these buffers in a region."""
        key = (region, items)
        if key not in self.packed:
            listed = [item for item in self.items if item in items]
            self.packed[key] = pack(listed, self.capacities[region], self.align)
        return self.packed[key]

    def offsets(self, chosen: Assignment) -> Offsets | None:
        """Offsets of all buffers; None where a region is too small."""
        found: Offsets = {}
        for region in range(len(self.capacities)):
            items = frozenset(item for item, where in chosen.items() if where == region)
            part = self.fits(region, items)
            if part is None:
                return None
            found |= part
        return found

    # --- better regions

    def step_cost(self, index: int, chosen: Assignment) -> int:
        """Weighted cycles of a step."""
        regions = self.regions_of[index](chosen)
        known = self.known[index]
        if regions not in known:
            assert self.cost is not None
            step, involved, weight = self.steps[index]
            where = {name: chosen[item] for item in involved for name in item.names}
            known[regions] = weight * self.cost(step, where)
        return known[regions]

    def costs(self, chosen: Assignment) -> list[int]:
        """Weighted cycles of every step; remembered for the assignment asked for last."""
        if self.current[0] is not chosen:
            steps = range(len(self.steps))
            self.current = chosen, [self.step_cost(index, chosen) for index in steps]
        return self.current[1]

    def total(self, chosen: Assignment) -> int:
        """Weighted cycles of all steps."""
        return sum(self.costs(chosen))

    def gain(self, chosen: Assignment, moves: Assignment) -> int:
        """Weighted cycles that moves save; negative where they cost."""
        self.rated += 1
        after = chosen | moves
        if any(
            after[other] == region for item, region in moves.items() for other in self.apart[item]
        ):
            return -IMPOSSIBLE
        before = self.costs(chosen)
        touched = {index for item in moves for index in self.users[item]}
        return sum([before[index] - self.step_cost(index, after) for index in touched])

    def room(self, chosen: Assignment, moves: Assignment) -> bool:
        """Whether everything fits after moves."""
        after = chosen | moves
        regions = {chosen[item] for item in moves} | set(moves.values())
        return all(
            self.fits(region, frozenset(item for item, where in after.items() if where == region))
            is not None
            for region in regions
        )

    def neighbours(self, item: Buffer) -> list[Buffer]:
        """Buffers that some step uses together with this one."""
        found: dict[Buffer, None] = {}
        for index in self.users[item]:
            found |= dict.fromkeys(self.steps[index][1])
        found.pop(item, None)
        return list(found)

    def improve(self, chosen: Assignment) -> Assignment:
        """Move single buffers, pairs that one step uses, and exchange buffers, while it helps."""
        count = len(self.capacities)
        for _ in range(PASSES):
            before = chosen
            for item in self.items:
                moves = [{item: r} for r in range(count) if r != chosen[item]]
                moves += [
                    {item: r, other: s}
                    for other in self.neighbours(item)
                    for r in range(count)
                    for s in range(count)
                    if r != chosen[item] and s != chosen[other]
                ]
                chosen = self.take(chosen, moves)
                exchanges = [
                    {item: chosen[other], other: chosen[item]}
                    for other in self.items
                    if chosen[other] != chosen[item]
                ]
                chosen = self.take(chosen, exchanges)
            if chosen == before:
                break
        return chosen

    def shake(self, chosen: Assignment) -> Assignment:
        """Improve, then move some buffers at random and improve again, as long as it helps."""
        chance = random.Random(len(self.items))
        count, vain = len(self.capacities), 0
        best, least = chosen, self.total(chosen)
        order = _orders(self.items)[0]
        for _ in range(KICKS):
            if vain == IN_VAIN or self.rated > EFFORT:
                break
            wish = {
                item: chance.randrange(count) if chance.random() < SHAKEN else best[item]
                for item in self.items
            }
            shaken = self.spread(order, lambda item, w=wish: _from(w[item], count), best=False)
            if isinstance(shaken, Buffer):
                vain += 1
                continue
            kicked = self.improve(shaken)
            cost = self.total(kicked)
            vain = 0 if cost < least else vain + 1
            if cost < least:
                best, least = kicked, cost
        return best

    def take(self, chosen: Assignment, moves: Iterable[Assignment]) -> Assignment:
        """The best of some moves for which there is room, if it saves cycles."""
        rated = [(self.gain(chosen, move), move) for move in moves]
        rated = [entry for entry in rated if entry[0] > 0]
        rated.sort(key=lambda entry: -entry[0])
        for _, move in rated[:8]:
            if self.room(chosen, move):
                return chosen | move
        return chosen


@dataclass(frozen=True)
class Packing:
    """A result: (region, offset) by tensor, and what the cost function says of it."""

    places: dict[str, tuple[int, int]]
    cost: int


def assign(
    schedule: Schedule,
    capacities: Sequence[int],
    align: int = 1,
    *,
    streamed_limit: int = 1 << 62,
    cost: Cost | None = None,
    starts: int = 3,
) -> Packing | None:
    """Regions and offsets of all tensors; None where they do not fit.

    Parameters
    ----------
    schedule : Schedule
    capacities : sequence of int
        Sizes of the regions in bytes.
    align : int
        Offsets are multiples of this.
    streamed_limit : int
        Tensors must be smaller than this: what offsets can span.
    cost : Cost or None
        Cycles of a step; without it the preferences of kinds decide.
    starts : int
        Divisions that fit, of which each is improved; the best one is taken.
    """
    if any(tensor.bytes >= streamed_limit for tensor in schedule.tensors.values()):
        return None
    best: Packing | None = None
    for join in (True, False):
        items = buffers(schedule, len(capacities), join=join)
        if peak(items, align) > sum(capacities):
            continue
        search = _Search(schedule, items, capacities, align, cost)
        tried: list[Assignment] = []
        for start in search.starts():
            if start in tried or search.offsets(start) is None:
                continue
            tried.append(start)
            chosen = start if cost is None else search.shake(search.improve(start))
            offsets = search.offsets(chosen)
            assert offsets is not None
            total = 0 if cost is None else search.total(chosen)
            if best is None or total < best.cost:
                places = {
                    name: (chosen[item], offsets[item]) for item in items for name in item.names
                }
                best = Packing(places, total)
            if cost is None or len(tried) == starts:
                break
        if best is not None:
            break
    return best


def footprint(schedule: Schedule, *, align: int = 1) -> int:
    """Bytes that a schedule needs in one region without end."""
    return lowest(buffers(schedule, 1), align)[1]


__all__ = [
    "Buffer",
    "Cost",
    "Offsets",
    "Packing",
    "Span",
    "assign",
    "buffers",
    "conflicts",
    "covered",
    "footprint",
    "in_place",
    "lifetimes",
    "lowest",
    "pack",
    "peak",
    "preferred",
]
