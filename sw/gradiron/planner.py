"""Networks on machines: the memory map, to the byte, before anything runs.

`plan` places every tensor of a network's programs into the regions of a machine. What it does by
itself never changes a result: tensors whose lifetimes do not meet share bytes, results take the
place of masks and skips that nobody needs afterwards, and, where that is not enough, activations
are computed twice instead of being kept. `choose` goes further as far as it is allowed to: smaller
batches, layers that are not updated, int8-only weights. Both say what they chose. A network that
does not fit is refused with `DoesNotFitError`, which says what is missing and what would fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from gradiron.arch.config import Config
from gradiron.errors import PlanError
from gradiron.graph import INFER, KINDS, TRAIN, Graph, Schedule, derive
from gradiron.memory import Placement, Plan, RegionUse, bytes_by_kind, place, step_name
from gradiron.packing import Cost, buffers, conflicts, footprint, lifetimes, peak
from gradiron.recompute import Candidate, candidates, recompute

Costs = Callable[[Schedule, Config], Cost]
"""Makes the cost function of a schedule on a machine: `gradiron.compiler.step_costs`."""

RECOMPUTE, MOMENTUM, BATCH = "recompute", "momentum", "batch"
FREEZE, SPARSE, INT8 = "freeze", "sparse", "int8"
MEASURES: dict[str, str] = {
    RECOMPUTE: "compute activations twice instead of keeping them; no result changes",
    BATCH: "smaller batches",
    MOMENTUM: "no momentum",
    FREEZE: "leave layers alone, the first ones first",
    SPARSE: "leave layers alone, those first that save the most memory",
    INT8: "int8-only weights in as few layers as possible; long runs lose about two points",
}
"""What `choose` may do, in the order in which it prefers it."""
HARMLESS = (RECOMPUTE,)
ATTEMPTS: tuple[tuple[tuple[str, ...], ...], ...] = (
    ((BATCH,), (MOMENTUM,), (FREEZE,), (SPARSE,), (INT8,)),
    ((BATCH, MOMENTUM), (BATCH, FREEZE), (BATCH, SPARSE), (BATCH, INT8), (FREEZE, INT8)),
    ((BATCH, FREEZE, INT8),),
)
"""Measures that are tried: alone, then, where none of these fits, together (at batch 1)."""


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
    cycles : int or None
        Of a training step, by the cycle model.
    recomputed : tuple of str
        Activations that are computed twice.
    measures : tuple of str
        Keys of `MEASURES` that it takes.
    """

    text: str
    bytes: int
    graph: Graph
    batch: int
    cycles: int | None = None
    recomputed: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()

    def __str__(self) -> str:
        again = f", {_listed(self.recomputed)} computed twice" if self.recomputed else ""
        text = f"{self.text}: {self.bytes} bytes{again}"
        if self.cycles is not None:
            text += f", {self.cycles} cycles a step"
            if self.batch > 1:
                text += f" ({self.cycles // self.batch} a sample)"
        return text


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


@dataclass(frozen=True)
class Choice:
    """What `choose` decided.

    Attributes
    ----------
    graph : Graph
        With the options of its layers as chosen.
    batch : int
    plan : Plan
    text : str
        What was chosen, in words; "" where everything is as asked.
    measures : tuple of str
        Keys of `MEASURES` that were taken.
    lines : tuple of str
        What that costs.
    """

    graph: Graph
    batch: int
    plan: Plan
    text: str = ""
    measures: tuple[str, ...] = ()
    lines: tuple[str, ...] = field(default=())


def plan(
    graph: Graph,
    config: Config,
    batch: int,
    *,
    costs: Costs | None = None,
    again: bool = True,
) -> Plan:
    """The memory map of a network on a machine.

    Parameters
    ----------
    graph : Graph
    config : Config
    batch : int
        Samples per step.
    costs : Costs or None
        Cycles decide the regions; without it the kinds of tensors do.
    again : bool
        Whether activations may be computed twice.

    Raises
    ------
    DoesNotFitError
        Where it does not fit.
    PlanError
        Where the machine lacks something else: momentum, even sizes.
    """
    _check_options(graph, config)
    schedule = derive(graph, batch, lane_bytes=config.lane_bytes)
    found = _fit(schedule, config, costs, again=again)
    if found is None:
        raise _refusal(graph, config, batch, schedule, costs, again=again)
    return found


def choose(
    graph: Graph,
    config: Config,
    batch: int,
    *,
    allow: Collection[str] = HARMLESS,
    costs: Costs | None = None,
) -> Choice:
    """A plan that fits, by the mildest of the measures that are allowed.

    Parameters
    ----------
    graph : Graph
    config : Config
    batch : int
        Samples per step, at most.
    allow : collection of str
        Keys of `MEASURES`.
    costs : Costs or None

    Raises
    ------
    DoesNotFitError
        Where nothing that is allowed makes it fit.
    PlanError
        For a measure that does not exist, and as `plan`.
    """
    for name in allow:
        if name not in MEASURES:
            raise PlanError(f"measure {name!r} is none of {', '.join(MEASURES)}")
    _check_options(graph, config)
    again = RECOMPUTE in allow
    schedule = derive(graph, batch, lane_bytes=config.lane_bytes)
    found = _fit(schedule, config, costs, again=again)
    if found is not None:
        measures = HARMLESS if found.recomputed else ()
        text = f"{_listed(found.recomputed)} computed twice" if found.recomputed else ""
        return Choice(graph, batch, found, text, measures, _account(found, costs))
    if TRAIN in schedule.programs:
        for option in _options(graph, config, batch, None, again=again, allow=allow):
            smaller = derive(option.graph, option.batch, lane_bytes=config.lane_bytes)
            found = _fit(smaller, config, costs, again=again)
            if found is None:
                continue
            text = option.text
            if found.recomputed:
                text += f"; {_listed(found.recomputed)} computed twice"
            lines = _account(found, costs)
            return Choice(option.graph, option.batch, found, text, option.measures, lines)
    raise _refusal(graph, config, batch, schedule, costs, again=again)


def _listed(names: Sequence[str], most: int = 4) -> str:
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return ", ".join(names)


def _account(found: Plan, costs: Costs | None) -> tuple[str, ...]:
    """What recomputation costs, in words."""
    if not found.recomputed or costs is None:
        return ()
    cost = costs(found.schedule, found.config)
    regions = {name: p.region for name, p in found.placements.items()}
    steps = found.schedule.programs[TRAIN]
    twice = [s for s in steps if any(name.endswith(".again") for name in s.writes)]
    extra = sum(cost(step, regions) for step in twice)
    total = sum(cost(step, regions) for step in steps)
    return (
        f"computing {_listed(found.recomputed)} twice takes {extra} of {total} cycles "
        f"({extra / total:.1%})",
    )


def _check_options(graph: Graph, config: Config) -> None:
    users = [layer.name for layer in graph.layers if layer.momentum and not layer.frozen]
    if users and not config.momentum:
        raise PlanError(
            f"layers {', '.join(users)} want momentum, and this machine was built without it; "
            "train without momentum, or use a Config with momentum=True"
        )


# --- recomputation -------------------------------------------------------------------------------


def _fit(schedule: Schedule, config: Config, costs: Costs | None, *, again: bool) -> Plan | None:
    """A plan, with as little recomputation as it takes; None where nothing fits."""

    def placed(changed: Schedule, names: tuple[str, ...] = (), *, rate: bool = True) -> Plan | None:
        cost = costs(changed, config) if costs is not None and rate else None
        return place(changed, config, cost=cost, recomputed=names)

    found = placed(schedule)
    if (
        found is not None
        or not again
        or TRAIN not in schedule.programs
        or _impossible(schedule, config)
    ):
        return found
    chosen = _drop(schedule, config, costs, lambda changed: placed(changed, rate=False) is not None)
    if chosen is None:
        return None
    changed = recompute(schedule, chosen)
    assert changed is not None
    return placed(changed, tuple(name for each in chosen for name in each.names))


def _impossible(schedule: Schedule, config: Config) -> bool:
    """Whether something prevents a placement that recomputation cannot change."""
    if max(tensor.bytes for tensor in schedule.tensors.values()) > max(config.regions):
        return True
    fixed = sum(tensor.bytes for tensor in schedule.tensors.values() if tensor.persistent)
    return fixed >= config.memory_bytes or bool(conflicts(schedule) and len(config.regions) == 1)


def _prices(schedule: Schedule, config: Config, costs: Costs | None) -> dict[Candidate, int]:
    """What could be computed twice, and the cycles (or products) that each takes."""
    if costs is None:
        return {c: sum(1 + step.macs for step in c.steps) for c in candidates(schedule)}
    cost = costs(schedule, config)
    regions = dict.fromkeys(schedule.tensors, 0)
    return {c: sum(cost(step, regions) for step in c.steps) for c in candidates(schedule)}


def _need(schedule: Schedule, config: Config) -> tuple[int, int]:
    """Bytes that no placement can go below, and bytes times steps."""
    items = buffers(schedule, len(config.regions))
    area = sum(item.bytes * item.duration for item in items)
    return peak(items, config.lane_bytes), area


def _dropping(
    schedule: Schedule, config: Config, prices: dict[Candidate, int]
) -> Iterator[tuple[list[Candidate], int]]:
    """More and more activations to compute twice, the most bytes for a cycle first; the peak."""
    left = dict(prices)
    chosen: list[Candidate] = []
    before = _need(schedule, config)
    yield chosen, before[0]
    while left:
        rated: list[tuple[tuple[float, float], Candidate, tuple[int, int]]] = []
        for candidate, cycles in left.items():
            changed = recompute(schedule, [*chosen, candidate])
            if changed is not None:
                after = _need(changed, config)
                saved = (before[0] - after[0]) / cycles, (before[1] - after[1]) / cycles
                rated.append((saved, candidate, after))
        if not rated:
            return
        _, best, before = max(rated, key=lambda entry: entry[0])
        chosen = [*chosen, best]
        del left[best]
        yield chosen, before[0]


def _drop(
    schedule: Schedule,
    config: Config,
    costs: Costs | None,
    fits: Callable[[Schedule], bool],
) -> list[Candidate] | None:
    """Activations to compute twice so that the rest fits, none of them in vain."""
    prices = _prices(schedule, config, costs)
    for chosen, need in _dropping(schedule, config, prices):
        if need <= config.memory_bytes and fits(_changed(schedule, chosen)):
            break
    else:
        return None
    for candidate in sorted(chosen, key=lambda c: prices[c], reverse=True):
        fewer = [other for other in chosen if other is not candidate]
        changed = _changed(schedule, fewer)
        if _need(changed, config)[0] <= config.memory_bytes and fits(changed):
            chosen = fewer
    return chosen


def _changed(schedule: Schedule, chosen: list[Candidate]) -> Schedule:
    changed = recompute(schedule, chosen)
    assert changed is not None
    return changed


# --- what would fit ------------------------------------------------------------------------------


def _option(
    text: str,
    found: Plan,
    graph: Graph,
    batch: int,
    measures: tuple[str, ...],
    costs: Costs | None,
) -> Option:
    cycles = None
    if costs is not None:
        cost = costs(found.schedule, found.config)
        regions = {name: p.region for name, p in found.placements.items()}
        cycles = sum(cost(step, regions) for step in found.schedule.programs.get(TRAIN, ()))
    if found.recomputed:
        measures = (*HARMLESS, *measures)
    return Option(text, found.used, graph, batch, cycles, found.recomputed, measures)


def _least(count: int, fits: Callable[[int], Plan | None]) -> tuple[int, Plan] | None:
    """The smallest number from 1 to `count` that fits, where larger ones fit as well."""
    found = fits(count) if count else None
    if found is None:
        return None
    low, best = 0, (count, found)
    while best[0] - low > 1:
        middle = (low + best[0]) // 2
        found = fits(middle)
        if found is None:
            low = middle
        else:
            best = (middle, found)
    return best


def _options(
    graph: Graph,
    config: Config,
    batch: int,
    costs: Costs | None,
    *,
    again: bool,
    allow: Collection[str] = tuple(MEASURES),
) -> Iterator[Option]:
    """Changes that fit, the mildest first: one at a time, or together where that is not enough."""
    for attempts in ATTEMPTS:
        seen: list[Option] = []
        for measures in attempts:
            if set(measures) <= set(allow):
                option = _attempt(graph, config, batch, measures, costs, again=again)
                if option is not None and not any(_milder(other, option) for other in seen):
                    seen.append(option)
                    yield option
        if seen:
            return


def _milder(one: Option, other: Option) -> bool:
    """Whether an option makes another one needless: a sparse update of no more layers."""
    return (
        SPARSE in other.measures
        and FREEZE in one.measures
        and one.batch >= other.batch
        and len(one.graph.trainable()) >= len(other.graph.trainable())
    )


def _attempt(
    graph: Graph,
    config: Config,
    batch: int,
    measures: tuple[str, ...],
    costs: Costs | None,
    *,
    again: bool,
) -> Option | None:
    """The least of these measures that fits; None where even all of them are not enough."""

    def planned(changed: Graph, size: int) -> Plan | None:
        return _fit(derive(changed, size, lane_bytes=config.lane_bytes), config, None, again=again)

    texts: list[str] = []
    if MOMENTUM in measures:
        if not any(layer.momentum and not layer.frozen for layer in graph.layers):
            return None
        graph = graph.with_options(momentum=())
        texts.append("no momentum")
    if BATCH in measures:
        if batch == 1:
            return None
        if measures == (BATCH,):
            least = _least(batch - 1, lambda less: planned(graph, batch - less))
            if least is None:
                return None
            size = batch - least[0]
            text = f"batch {size} instead of {batch}"
            return _option(text, least[1], graph, size, measures, costs)
        batch = 1
        texts.append("batch 1")
    change = None
    if FREEZE in measures:
        change = _freezing(graph)
        if INT8 in measures:
            graph = _narrowing(graph).all()
            texts.append("int8-only weights")
            change = _freezing(graph)
    elif SPARSE in measures:
        change = _thinning(graph, config, batch)
    elif INT8 in measures:
        change = _narrowing(graph)
    if change is None:
        found = planned(graph, batch)
    else:
        least = _least(len(change.layers), lambda n: planned(change.first(n), batch))
        if least is None:
            return None
        graph, found = change.first(least[0]), least[1]
        texts.append(change.text(least[0]))
    if found is None:
        return None
    return _option(" and ".join(texts), found, graph, batch, measures, costs)


@dataclass(frozen=True)
class _Change:
    """An option that the first n of some layers get."""

    layers: tuple[str, ...]
    make: Callable[[tuple[str, ...]], Graph]
    words: Callable[[str], str]

    def first(self, n: int) -> Graph:
        return self.make(self.layers[:n])

    def all(self) -> Graph:
        return self.make(self.layers)

    def text(self, n: int) -> str:
        word = "layer" if n == 1 else "layers"
        return self.words(f"{word} {', '.join(self.layers[:n])}")


def _freezing(graph: Graph) -> _Change:
    """Leave layers alone, from the first to the one before the last that learns."""
    frozen = {layer.name for layer in graph.layers if layer.frozen}
    return _Change(
        graph.trainable()[:-1],
        lambda names: graph.with_options(frozen=frozen.union(names)),
        lambda layers: f"{layers} frozen",
    )


def _thinning(graph: Graph, config: Config, batch: int) -> _Change:
    """Leave layers alone, those first that save the most; never the last one."""
    frozen = {layer.name for layer in graph.layers if layer.frozen}

    def need(name: str) -> tuple[int, int]:
        less = graph.with_options(frozen={*frozen, name})
        return _need(derive(less, batch, lane_bytes=config.lane_bytes), config)

    change = _freezing(graph)
    return dataclasses.replace(change, layers=tuple(sorted(change.layers, key=need)))


def _narrowing(graph: Graph) -> _Change:
    """Give up the low planes of masters, the largest first; momentum needs them and goes too."""
    int8 = {layer.name for layer in graph.layers if layer.int8_weights}
    momentum = {layer.name for layer in graph.layers if layer.momentum}
    wide = [name for name in graph.trainable() if name not in int8]
    wide.sort(key=lambda name: -graph.parameters[name].count)
    return _Change(
        tuple(wide),
        lambda names: graph.with_options(
            int8_weights=int8.union(names), momentum=momentum.difference(names)
        ),
        lambda layers: f"int8-only weights in {layers}",
    )


def _refusal(
    graph: Graph,
    config: Config,
    batch: int,
    schedule: Schedule,
    costs: Costs | None,
    *,
    again: bool,
) -> DoesNotFitError:
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
    elif count == 1 and conflicts(schedule):
        lines[0] += (
            ", but the backward pass of max pooling reads a gate beside what it streams, which "
            "needs two regions"
        )
    else:
        lines[0] += ", but not so that every tensor finds room in one region"
    total = sum(kinds.values())
    lines += [f"  {KINDS.get(kind, kind)}: {size} bytes" for kind, size in kinds.items()]
    lines.append(f"  (together {total}; {total - needed} are shared by tensors of different times)")
    if again and TRAIN in schedule.programs:
        prices = _prices(schedule, config, costs)
        least, twice = min(
            ((need, chosen) for chosen, need in _dropping(schedule, config, prices)),
            key=lambda entry: entry[0],
        )
        if twice:
            names = tuple(name for each in twice for name in each.names)
            lines.append(f"  (computing {_listed(names)} twice it would need {least})")
    limit = max(config.regions)
    lines += [
        f"{tensor.name} alone has {tensor.bytes} bytes, and no region has more than {limit}"
        for tensor in schedule.tensors.values()
        if tensor.bytes > limit
    ]
    span = 1 << (config.offset_bits - 1)
    lines += [
        f"{tensor.name} has {tensor.bytes} bytes, and offsets on this machine reach {span - 1}"
        for tensor in schedule.tensors.values()
        if span <= tensor.bytes <= limit
    ]
    options: list[Option] = []
    if TRAIN in schedule.programs:
        options = list(_options(graph, config, batch, costs, again=again))
    elif batch > 1:
        option = _attempt(graph, config, batch, (BATCH,), costs, again=again)
        options = [option] if option is not None else []
    if options:
        lines.append("what would fit, as planned:")
        lines += [f"  {option}" for option in options]
    else:
        lines.append(
            "no recomputation, smaller batch, frozen layers or int8-only weights make it fit"
        )
        smallest = needed
        if TRAIN in schedule.programs:
            changed = _freezing(_narrowing(graph.with_options(momentum=())).all()).all()
            least = derive(changed, 1, lane_bytes=config.lane_bytes)
            smallest = footprint(least, align=config.lane_bytes)
            if smallest > available:
                lines[-1] += (
                    f" (all layers but {graph.trainable()[-1]} frozen, int8-only weights and "
                    f"batch 1 would still need {smallest} bytes)"
                )
        lines[-1] += "; use a smaller network or a machine with more memory"
        if min(needed, smallest) <= available:
            lines[-1] += " in larger regions"
    return DoesNotFitError(
        "\n".join(lines),
        needed=needed,
        available=available,
        by_kind=kinds,
        options=tuple(options),
    )


__all__ = [
    "HARMLESS",
    "INFER",
    "MEASURES",
    "TRAIN",
    "Choice",
    "Costs",
    "DoesNotFitError",
    "Option",
    "Placement",
    "Plan",
    "RegionUse",
    "bytes_by_kind",
    "choose",
    "footprint",
    "lifetimes",
    "place",
    "plan",
    "step_name",
]
