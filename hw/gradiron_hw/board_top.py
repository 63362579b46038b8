"""A whole machine behind two wires: core, link and serial line, without anything of a board."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import Config
from gradiron.arch.isa import MachineState
from gradiron_hw.core import Core
from gradiron_hw.link import Link
from gradiron_hw.uart import Uart

HOST_PORT = (
    "req_valid",
    "req_ready",
    "req_space",
    "req_addr",
    "req_write",
    "req_size",
    "req_data",
    "rsp_valid",
    "rsp_data",
    "rsp_error",
)


def connect_host(m: Module, link: Link, core: Any) -> None:
    """Connect a link to the host port of a core."""
    for name in HOST_PORT:
        if link.signature.members[name].flow == Out:
            m.d.comb += getattr(core, name).eq(getattr(link, name))
        else:
            m.d.comb += getattr(link, name).eq(getattr(core, name))


class StreamTop(wiring.Component):
    """A core behind the link, without a serial line.

    Parameters
    ----------
    core : Component
        With the ports of `gradiron_hw.core.Core`.

    Members
    -------
    i, o : as of `Link`
    leds : as of `BoardTop`
    """

    def __init__(self, core: Any) -> None:
        self._core = core
        self._link = Link()
        members = self._link.signature.members
        super().__init__({"i": members["i"], "o": members["o"], "leds": Out(3)})

    @property
    def core(self) -> Any:
        """The core."""
        return self._core

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.core = core = self._core
        m.submodules.link = link = self._link
        connect_host(m, link, core)
        wiring.connect(m, wiring.flipped(self.i), link.i)
        wiring.connect(m, wiring.flipped(self.o), link.o)
        m.d.comb += self.leds.eq(
            Cat(core.state == MachineState.RUNNING, core.state == MachineState.ERROR, link.busy)
        )
        return m


class BoardTop(wiring.Component):
    """A machine on a serial line.

    Parameters
    ----------
    config : Config
    divisor : int
        Clock cycles in a bit of the line; see `gradiron_hw.uart.divisor_for`.
    technology : str
        As of `Core`.
    core : Component, optional
        Another core with the same ports.

    Members
    -------
    rx, tx : the line; high when idle
    leds : bit 0: a program runs; 1: the machine is in its error state; 2: a request is being
        answered

    Raises
    ------
    ConfigError
        For a divisor that is too small.
    """

    def __init__(
        self,
        config: Config,
        *,
        divisor: int,
        technology: str = "generic",
        core: Any = None,
    ) -> None:
        self._uart = Uart(divisor=divisor)
        self._top = StreamTop(Core(config, technology=technology) if core is None else core)
        super().__init__({"rx": In(1), "tx": Out(1), "leds": Out(3)})

    @property
    def divisor(self) -> int:
        """Clock cycles in a bit of the line."""
        return self._uart.divisor

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.machine = top = self._top
        m.submodules.uart = uart = self._uart
        wiring.connect(m, uart.o, top.i)
        wiring.connect(m, top.o, uart.i)
        m.d.comb += [uart.rx.eq(self.rx), self.tx.eq(uart.tx), self.leds.eq(top.leds)]
        return m
