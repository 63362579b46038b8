"""A component as text that the synthesiser reads, made quickly whatever its memories' size.

A memory that starts at zero is handed over without its contents: Amaranth writes initial values bit
by bit, which takes ten seconds a megabyte, and the C++ generated from them would be as long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Protocol

from amaranth.back import rtlil
from amaranth.hdl import (
    Cat,
    ClockDomain,
    ClockSignal,
    Const,
    Elaboratable,
    Instance,
    Module,
    Shape,
    Signal,
    Value,
)
from amaranth.lib.wiring import Signature

_LARGE = 4096
"""Bits; a smaller memory is handed over as it is."""

CLOCK = "clk"


class Component(Protocol):
    """What a simulation needs to know of a component: its ports (see `gradiron_hw.core.Core`)."""

    @property
    def signature(self) -> Signature:
        """The component's ports."""
        ...

    def elaborate(self, platform: object) -> Any:
        """The component's contents."""
        ...


class _FastMemories:
    """A platform that only replaces large memories which start at zero."""

    def get_memory(self, memory: Any) -> Any:
        width: int = Shape.cast(memory.shape).width
        depth: int = memory.depth
        if width * depth < _LARGE or any(memory.data.init):
            return memory.elaborate(None)
        reads = [port for port in memory.read_ports if port.domain != "comb"]
        if len(reads) != len(memory.read_ports) or not reads or not memory.write_ports:
            return memory.elaborate(None)
        address_bits = (depth - 1).bit_length()
        writes = list(memory.write_ports)
        transparent = sum(
            1 << (r * len(writes) + w)
            for r, read in enumerate(reads)
            for w, write in enumerate(writes)
            if any(write is other for other in read.transparent_for)
        )
        write_enables: list[Value] = []
        for port in writes:
            lanes = len(Value.cast(port.en))
            for lane in range(lanes):
                write_enables.append(Value.cast(port.en)[lane].replicate(width // lanes))
        n_reads, n_writes = len(reads), len(writes)
        parameters = {
            "MEMID": "",
            "SIZE": depth,
            "OFFSET": 0,
            "ABITS": address_bits,
            "WIDTH": width,
            "INIT": Const(0, 1),
            "RD_PORTS": n_reads,
            "RD_CLK_ENABLE": Const(-1, n_reads),
            "RD_CLK_POLARITY": Const(-1, n_reads),
            "RD_TRANSPARENCY_MASK": Const(transparent, n_reads * n_writes),
            "RD_COLLISION_X_MASK": Const(0, n_reads * n_writes),
            "RD_WIDE_CONTINUATION": Const(0, n_reads),
            "RD_CE_OVER_SRST": Const(0, n_reads),
            "RD_ARST_VALUE": Const(0, n_reads * width),
            "RD_SRST_VALUE": Const(0, n_reads * width),
            "RD_INIT_VALUE": Const(0, n_reads * width),
            "WR_PORTS": n_writes,
            "WR_CLK_ENABLE": Const(-1, n_writes),
            "WR_CLK_POLARITY": Const(-1, n_writes),
            "WR_PRIORITY_MASK": Const(0, n_writes * n_writes),
            "WR_WIDE_CONTINUATION": Const(0, n_writes),
        }
        inputs = {
            "RD_CLK": Cat(ClockSignal(port.domain) for port in reads),
            "RD_EN": Cat(port.en for port in reads),
            "RD_ADDR": Cat(port.addr for port in reads),
            "RD_ARST": Const(0, n_reads),
            "RD_SRST": Const(0, n_reads),
            "WR_CLK": Cat(ClockSignal(port.domain) for port in writes),
            "WR_EN": Cat(write_enables),
            "WR_ADDR": Cat(port.addr for port in writes),
            "WR_DATA": Cat(Value.cast(port.data) for port in writes),
        }
        return Instance(
            "$mem_v2",
            *(("p", name, value) for name, value in parameters.items()),
            *(("i", name, value) for name, value in inputs.items()),
            ("o", "RD_DATA", Cat(Value.cast(port.data) for port in reads)),
        )


_CELL = re.compile(r"^  cell (\S+) (\S+)$")


def _internal_memories(text: str) -> Iterator[str]:
    """Instances called $mem_v2 become the synthesiser's own cell of that name.

    The cell's name becomes the memory's, and its contents become undefined, which the simulation
    starts as zero.
    """
    name = ""
    for line in text.splitlines():
        found = _CELL.match(line)
        if found:
            name = found[2] if found[1] == "\\$mem_v2" else ""
            if name:
                line = f"  cell $mem_v2 {name}$cell"
        elif name and line.startswith("    parameter \\MEMID "):
            line = f'    parameter \\MEMID "\\{name}"'
        elif name and line.startswith("    parameter \\INIT "):
            line = "    parameter \\INIT 1'x"
        yield line


class _Top(Elaboratable):
    """The component with a clock that can be driven and a reset that is off: registers start at
    their initial values, and without a reset input the simulation is faster."""

    def __init__(self, component: Component) -> None:
        self.component = component
        self.clock = Signal(name=CLOCK)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains.sync = sync = ClockDomain("sync")
        m.d.comb += [sync.clk.eq(self.clock), sync.rst.eq(0)]
        m.submodules["core"] = self.component
        return m


def port_widths(component: Component) -> dict[str, int]:
    """Names and widths of a component's ports."""
    return {
        "__".join(str(part) for part in path): len(Value.cast(value))
        for path, _member, value in component.signature.flatten(component)
    }


def to_rtlil(component: Component, *, locations: bool = False) -> str:
    """A component as RTLIL, in a top module called "top" whose clock is "clk".

    Parameters
    ----------
    component : Component
    locations : bool
        Whether lines of the Python source are attached; without, the same hardware gives the same
        text wherever the package is installed.
    """
    top = _Top(component)
    ports: dict[str, Any] = {CLOCK: (top.clock, None)}
    for path, _member, value in component.signature.flatten(component):
        ports["__".join(str(part) for part in path)] = (Value.cast(value), None)
    text: str = rtlil.convert(
        top, name="top", platform=_FastMemories(), ports=ports, emit_src=locations
    )
    return "\n".join(_internal_memories(text)) + "\n"
