"""Traces: tracks, names and times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradiron.arch import isa
from gradiron.arch.config import Config
from gradiron.device import Retirement
from gradiron.errors import DeviceError
from gradiron_sim.pysim import PysimDevice
from gradiron_sim.rtl import ActivityChange
from gradiron_sim.trace import trace_events, write_trace

RETIREMENTS = [
    Retirement(0, 0, 0, "SET"),
    Retirement(1, 1, 10, "MM"),
    Retirement(2, 11, 30, "MM"),
    Retirement(3, 31, 31, "HALT"),
]
ACTIVITY = [
    ActivityChange(0, 0b001),
    ActivityChange(3, 0b011),
    ActivityChange(8, 0b001),
    ActivityChange(20, 0b010),
]
LABELS = {0: "fc1 forward", 1: "fc1 forward", 2: "fc2 forward"}


def tracks(events: list[dict[str, Any]]) -> dict[str, list[tuple[str, float, float]]]:
    names = {
        event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"
    }
    found: dict[str, list[tuple[str, float, float]]] = {name: [] for name in names.values()}
    for event in events:
        if event["ph"] == "X":
            found[names[event["tid"]]].append((event["name"], event["ts"], event["dur"]))
    return found


def test_tracks() -> None:
    found = tracks(trace_events(RETIREMENTS, ACTIVITY, ("array", "vector", "loss"), labels=LABELS))
    assert found == {
        "layers": [("fc1 forward", 0, 11), ("fc2 forward", 11, 20)],
        "instructions": [("SET", 0, 1), ("MM", 1, 10), ("MM", 11, 20), ("HALT", 31, 1)],
        "array": [("array", 0, 20)],
        "vector": [("vector", 3, 5), ("vector", 20, 12)],
    }


def test_a_clock_scales_time() -> None:
    found = tracks(trace_events(RETIREMENTS, clock_hz=50e6))
    assert list(found) == ["instructions"]
    assert found["instructions"][1] == ("MM", pytest.approx(0.02), pytest.approx(0.2))
    with pytest.raises(DeviceError, match="a clock of 0 Hz"):
        trace_events(RETIREMENTS, clock_hz=0)


def test_what_an_event_tells() -> None:
    events = trace_events(RETIREMENTS, labels=LABELS)
    (event,) = (e for e in events if e["name"] == "MM" and e["ts"] == 1)
    assert event["args"] == {"first_cycle": 1, "cycles": 10, "pc": 1, "label": "fc1 forward"}


def test_a_file_of_a_run(small: Config, stub: Callable[..., Any], tmp_path: Path) -> None:
    program = [isa.LOOP.opcode << 24 | 9, isa.encode("STEP"), isa.encode("HALT")]
    path = tmp_path / "trace.json"
    with PysimDevice(small, record=True, activity=True, component=stub(small)) as device:
        device.write_program(program)
        device.clear_counters()
        device.run()
        count = write_trace(path, device, labels={1: "end of step"})
        with pytest.raises(DeviceError, match="the trace cannot be written to"):
            write_trace(tmp_path, device)
    document = json.loads(path.read_text())
    assert len(document["traceEvents"]) == count
    assert tracks(document["traceEvents"]) == {
        "layers": [("end of step", 12, 2)],
        "instructions": [("LOOP", 0, 12), ("STEP", 12, 2), ("HALT", 14, 2)],
        "fetch": [("fetch", 0, 1), ("fetch", 12, 1), ("fetch", 14, 1)],
        "execute": [("execute", 1, 11), ("execute", 13, 1), ("execute", 15, 1)],
    }


def test_a_device_that_recorded_nothing(
    small: Config, stub: Callable[..., Any], tmp_path: Path
) -> None:
    with PysimDevice(small, record=True, component=stub(small)) as device:
        with pytest.raises(DeviceError, match="open it with record=True and activity=True"):
            write_trace(tmp_path / "trace.json", device)
