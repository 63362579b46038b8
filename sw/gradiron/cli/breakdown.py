"""Where cycles go: a row's cycles divided by cause, and its place under the roofline.

Cycles of a row are the work itself at the array's peak, what partial tiles cost, and the stalls by
the counters of the hardware. `counted` takes the counters instruction by instruction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gradiron.arch.config import Config
from gradiron.arch.isa import MachineState
from gradiron.cli.output import Row, print_table
from gradiron.compiler import Program
from gradiron.device import CONTROL_RESUME, Device

BUSY = "BUSY"
STALLS = {
    "emit": "STALL_EMIT",
    "write": "STALL_WRITE",
    "load": "STALL_LOAD",
    "fill": "STALL_FILL",
    "descriptor": "DESCRIPTOR",
}
"""Causes and the counters that count them."""
CAUSES = ("work", "tiles", *STALLS, "other")
"""What the cycles of a row are divided into: `work` at the array's peak, `tiles` that have fewer
rows or columns than the array, the stalls, and what no counter tells (the loss unit's work)."""

Key = tuple[str, str]
"""Layer and pass."""


def counted(device: Device, program: Program, entry: str) -> dict[Key, dict[str, int]]:
    """Counters by layer and pass: a run in which the machine pauses after every instruction."""
    found: dict[Key, dict[str, int]] = {}
    device.write_csr("MODE", 1)
    try:
        device.clear_counters()
        before = device.counters()
        pc = program.entry(entry)
        device.start(pc)
        status = device.wait()
        while True:
            after = device.counters()
            origin = program.origins[pc]
            sums = found.setdefault((origin.layer, origin.pass_), dict.fromkeys(after, 0))
            for name, value in after.items():
                sums[name] += value - before[name]
            # A pause costs a fetch, which a program that runs on does not have.
            sums[STALLS["descriptor"]] -= 1
            if status.state != MachineState.PAUSED:
                return found
            before, pc = after, status.pc
            device.write_csr("CONTROL", CONTROL_RESUME)
            status = device.wait()
    finally:
        device.write_csr("MODE", 0)


def divide(row: Row, counters: Mapping[str, int], peak: int) -> Row:
    """A row with its cycles divided by cause, as `stalls`.

    Where only BUSY is known, as from the cycle model, all stalls are `other`.
    """
    work = -(-int(row["macs"]) // peak)
    busy = counters.get(BUSY, 0)
    parts = {name: counters.get(counter, 0) for name, counter in STALLS.items()}
    other = int(row["cycles"]) - busy - sum(parts.values())
    return {**row, "stalls": {"work": work, "tiles": busy - work, **parts, "other": other}}


def print_breakdown(title: str, rows: Iterable[Row]) -> None:
    """The division of every row as a table, in shares of its cycles."""
    body: list[list[object]] = []
    for row in rows:
        cycles = max(1, int(row["cycles"]))
        shares = [f"{row['stalls'][cause] / cycles:.1%}" for cause in CAUSES]
        body.append([row["name"], row["pass"], row["cycles"], *shares])
    print_table(title, ("name", "pass", "cycles", *CAUSES), body)


# --- roofline ------------------------------------------------------------------------------------


def traffic(program: Program, entry: str) -> dict[Key, int]:
    """Bytes that each layer and pass must at least move: every tensor once, in or out."""
    touched: dict[Key, set[tuple[str, str]]] = {}
    for step in program.schedule.programs[entry]:
        pass_ = getattr(step, "pass_", None)
        if pass_ is None:
            continue
        key = step.layer, "loss" if step.layer == "loss" else pass_.name.lower()
        ways = touched.setdefault(key, set())
        ways.update((name, "in") for name in step.reads)
        ways.update((name, "out") for name in step.writes)
    tensors = program.schedule.tensors
    return {
        key: sum(tensors[name].bytes for name, _ in sorted(ways)) for key, ways in touched.items()
    }


def bandwidth(config: Config) -> int:
    """Bytes that all memory ports together move in a cycle."""
    ports = 1 if config.single_port else 2
    return ports * config.word_bytes * len(config.regions)


def with_bytes(rows: list[Row], moved: Mapping[Key, int]) -> list[Row]:
    """Rows with the bytes they must move."""
    return [{**row, "bytes": moved.get((row["name"], row["pass"]), 0)} for row in rows]
