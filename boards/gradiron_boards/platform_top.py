"""The top of a board: clock from the PLL, the machine, its serial line on the pins, LEDs."""

from __future__ import annotations

from typing import Any

from amaranth.build import ResourceError
from amaranth.hdl import ClockDomain, Elaboratable, Module
from amaranth.lib import io

from gradiron.arch.config import Config
from gradiron_boards.clock import Ecp5Pll, Ice40Pll, ecp5_clock, ecp5_pll, ice40_clock, ice40_pll
from gradiron_hw.board_top import BoardTop
from gradiron_hw.uart import divisor_for

LEDS = 3


class PlatformTop(Elaboratable):
    """A machine on a platform of amaranth-boards that has the resource `uart`.

    LEDs, as far as there are any: a program runs; the machine is in its error state; a request is
    being answered. Registers start from the configuration; there is no reset.

    Parameters
    ----------
    config : Config
    family : str
        "ice40" or "ecp5".
    oscillator_hz, wanted_hz : float
        The platform's clock, and the machine's, at most.
    baud : int
    technology : str
        As of `gradiron_hw.core.Core`.
    own_pin : bool
        On iCE40: whether the clock comes in at the PLL's own pin.
    core : Component, optional
        As of `gradiron_hw.board_top.BoardTop`.

    Members
    -------
    pll : Ice40Pll or Ecp5Pll

    Raises
    ------
    ConfigError
        For a clock or a bit rate that cannot be made.
    """

    def __init__(
        self,
        config: Config,
        *,
        family: str,
        oscillator_hz: float,
        wanted_hz: float,
        baud: int,
        technology: str = "generic",
        own_pin: bool = False,
        core: Any = None,
    ) -> None:
        self.pll: Ice40Pll | Ecp5Pll = (
            ice40_pll(oscillator_hz, wanted_hz)
            if family == "ice40"
            else ecp5_pll(oscillator_hz, wanted_hz)
        )
        self._own_pin = own_pin
        divisor = divisor_for(self.pll.output_hz, baud)
        self._top = BoardTop(config, divisor=divisor, technology=technology, core=core)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.domains.sync = sync = ClockDomain("sync", reset_less=True)
        port = platform.request(platform.default_clk, dir="-")
        if isinstance(self.pll, Ice40Pll):
            clock = ice40_clock(m, self.pll, port.io, pad=self._own_pin)
        else:
            m.submodules.clock_in = clock_in = io.Buffer(io.Direction.Input, port)
            clock = ecp5_clock(m, self.pll, clock_in.i)
        m.d.comb += sync.clk.eq(clock)
        m.submodules.board = top = self._top
        uart = platform.request("uart", 0, dir={"rx": "-", "tx": "-"} | _others(platform))
        m.submodules.rx = rx = io.Buffer(io.Direction.Input, uart.rx)
        m.submodules.tx = tx = io.Buffer(io.Direction.Output, uart.tx)
        m.d.comb += [top.rx.eq(rx.i), tx.o.eq(top.tx)]
        for number in range(LEDS):
            try:
                led = platform.request("led", number, dir="-")
            except ResourceError:
                continue
            m.submodules[f"led{number}"] = buffer = io.Buffer(io.Direction.Output, led)
            m.d.comb += buffer.o.eq(top.leds[number])
        return m


def _others(platform: Any) -> dict[str, str]:
    """The other pins of the resource `uart`, which stay as they are."""
    subsignals = platform.lookup("uart", 0).ios
    return {s.name: "-" for s in subsignals if hasattr(s, "ios") and s.name not in ("rx", "tx")}
