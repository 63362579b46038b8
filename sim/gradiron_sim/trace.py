"""A run as a trace that Perfetto and chrome://tracing show: who was busy when, and with what.

One track per unit, a track of instructions, and, where program counters have labels, a track of the
layers and passes they belong to.

Ref: Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradiron.device import Retirement
from gradiron.errors import DeviceError
from gradiron_sim.rtl import ActivityChange, RtlDevice

_PROCESS = 1
_LAYERS, _INSTRUCTIONS, _UNITS = 1, 2, 3


def _intervals(activity: Sequence[ActivityChange], bit: int, end: int) -> Iterable[tuple[int, int]]:
    """First and one-past-last cycles in which a unit was busy."""
    begin: int | None = None
    for change in activity:
        busy = change.units >> bit & 1
        if busy and begin is None:
            begin = change.cycle
        elif not busy and begin is not None:
            yield begin, change.cycle
            begin = None
    if begin is not None and end > begin:
        yield begin, end


def trace_events(
    retirements: Sequence[Retirement],
    activity: Sequence[ActivityChange] = (),
    units: Sequence[str] = (),
    *,
    labels: Mapping[int, str] | None = None,
    clock_hz: float = 1e6,
    end: int | None = None,
) -> list[dict[str, Any]]:
    """The events of a trace, in the format of the viewers.

    Parameters
    ----------
    retirements : sequence of Retirement
        Completed instructions.
    activity : sequence of ActivityChange
        Changes in the busy units.
    units : sequence of str
        Names of the units, from bit 0 on; a unit that was never busy gets no track.
    labels : mapping of program counter to str
        Layer and pass that an instruction belongs to.
    clock_hz : float
        Cycles per second; by default a cycle is a microsecond.
    end : int, optional
        One past the last cycle; by default that of the last instruction.
    """
    if clock_hz <= 0:
        raise DeviceError(f"a clock of {clock_hz} Hz; it must be positive")
    scale = 1e6 / clock_hz
    events: list[dict[str, Any]] = []

    def name_track(kind: str, track: int, name: str) -> None:
        events.append(
            {"ph": "M", "pid": _PROCESS, "tid": track, "name": kind, "args": {"name": name}}
        )
        if kind == "thread_name":
            order = {"sort_index": track}
            events.append(
                {
                    "ph": "M",
                    "pid": _PROCESS,
                    "tid": track,
                    "name": "thread_sort_index",
                    "args": order,
                }
            )

    def slice_of(track: int, name: str, first: int, after: int, **arguments: Any) -> None:
        events.append(
            {
                "ph": "X",
                "pid": _PROCESS,
                "tid": track,
                "name": name,
                "ts": first * scale,
                "dur": (after - first) * scale,
                "args": {"first_cycle": first, "cycles": after - first, **arguments},
            }
        )

    name_track("process_name", 0, "gradiron")
    if labels:
        name_track("thread_name", _LAYERS, "layers")
        current: tuple[str, int, int] | None = None
        for retired in retirements:
            label = labels.get(retired.pc, "")
            if current is not None and label == current[0]:
                current = (label, current[1], retired.last_cycle + 1)
                continue
            if current is not None and current[0]:
                slice_of(_LAYERS, *current)
            current = (label, retired.first_cycle, retired.last_cycle + 1)
        if current is not None and current[0]:
            slice_of(_LAYERS, *current)
    name_track("thread_name", _INSTRUCTIONS, "instructions")
    for retired in retirements:
        about = {"label": labels[retired.pc]} if labels and retired.pc in labels else {}
        after = retired.last_cycle + 1
        slice_of(_INSTRUCTIONS, retired.name, retired.first_cycle, after, pc=retired.pc, **about)
    last = end if end is not None else max((r.last_cycle + 1 for r in retirements), default=0)
    for bit, name in enumerate(units):
        intervals = list(_intervals(activity, bit, last))
        if intervals:
            name_track("thread_name", _UNITS + bit, name)
            for first, after in intervals:
                slice_of(_UNITS + bit, name, first, after)
    return events


def write_trace(
    path: str | os.PathLike[str],
    device: RtlDevice,
    *,
    labels: Mapping[int, str] | None = None,
    clock_hz: float = 1e6,
) -> int:
    """Write what a device recorded since its counters were cleared; returns the number of events.

    Clear the counters and what was recorded (`clear_counters`, `forget`) before the part of
    interest: cycles count from there.

    Raises
    ------
    DeviceError
        Where the device did not record, or the file cannot be written.
    """
    if device.retirements is None or device.activity is None:
        raise DeviceError(
            f"the {device.kind} device recorded nothing; open it with record=True and activity=True"
        )
    events = trace_events(
        device.retirements,
        device.activity,
        device.units,
        labels=labels,
        clock_hz=clock_hz,
        end=device.running_cycles,
    )
    document = {"traceEvents": events, "displayTimeUnit": "ns"}
    try:
        Path(path).write_text(json.dumps(document), "utf-8")
    except OSError as error:
        message = f"the trace cannot be written to {os.fspath(path)!r}: {error}"
        raise DeviceError(message) from error
    return len(events)
