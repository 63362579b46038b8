"""A serial line: bytes with one start bit, eight data bits, no parity and one stop bit.

The bit time is a whole number of clock cycles, fixed when the hardware is built.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from gradiron.errors import ConfigError

MIN_DIVISOR = 4
TOLERANCE = 0.02
"""Deviation of the bit rate that both ends together survive, halved."""


def divisor_for(clock_hz: float, baud: float) -> int:
    """Clock cycles in a bit.

    Raises
    ------
    ConfigError
        Where no whole number of cycles is near enough to the bit time.
    """
    divisor = round(clock_hz / baud)
    if divisor < MIN_DIVISOR:
        raise ConfigError(
            f"{baud:g} baud from a clock of {clock_hz:g} Hz gives {clock_hz / baud:.3g} cycles a "
            f"bit; at least {MIN_DIVISOR} are needed: at most {clock_hz / MIN_DIVISOR:g} baud"
        )
    real = clock_hz / divisor
    if abs(real / baud - 1) > TOLERANCE:
        near = sorted((clock_hz / d for d in (divisor - 1, divisor, divisor + 1)), reverse=True)
        raise ConfigError(
            f"{baud:g} baud from a clock of {clock_hz:g} Hz would be {real:.6g} baud, more than "
            f"{TOLERANCE:.0%} off; possible are for example "
            + ", ".join(f"{rate:.6g}" for rate in near)
        )
    return divisor


class Uart(wiring.Component):
    """Both directions of a serial line.

    A received byte is valid from the middle of its stop bit on. There is no queue: it must be taken
    before the middle of the next byte's start bit, or it is lost or changed.

    Parameters
    ----------
    divisor : int
        Clock cycles in a bit, at least 4.

    Members
    -------
    rx, tx : the line; high when idle
    i : In(stream) of bytes to send
    o : Out(stream) of bytes received

    Raises
    ------
    ConfigError
        For a smaller divisor.
    """

    def __init__(self, *, divisor: int) -> None:
        if divisor < MIN_DIVISOR:
            raise ConfigError(
                f"a divisor of {divisor}; a bit needs at least {MIN_DIVISOR} clock cycles"
            )
        self._divisor = divisor
        super().__init__(
            {
                "rx": In(1),
                "tx": Out(1),
                "i": In(stream.Signature(8)),
                "o": Out(stream.Signature(8)),
            }
        )

    @property
    def divisor(self) -> int:
        """Clock cycles in a bit."""
        return self._divisor

    def elaborate(self, platform: object) -> Module:
        m = Module()

        # --- sending ------------------------------------------------------------------------------
        # A free-running time: a byte begins with the next tick. Inverted, so that what follows a
        # byte is zero; the highest one marks the end and never reaches the line.
        time = Signal(range(self._divisor))
        tick = time == 0
        m.d.sync += time.eq(time - 1)
        with m.If(tick):
            m.d.sync += time.eq(self._divisor - 1)
        out = Signal(10)
        ends = Signal()
        m.d.comb += [
            self.tx.eq(~out[0]),
            ends.eq(out[2:] == 0),
            self.i.ready.eq(tick & ends & ~out[1]),
        ]
        with m.If(tick):
            m.d.sync += out.eq(Mux(ends, 0, out[1:]))
            with m.If(self.i.ready & self.i.valid):
                m.d.sync += out.eq(Cat(Const(1, 1), ~self.i.payload, Const(1, 1)))

        # --- receiving ----------------------------------------------------------------------------
        line = Signal(init=1)
        m.submodules.sync_rx = FFSynchronizer(self.rx, line, init=1)
        # A mark comes down in front of what is received: when it is out, the next bit is the stop
        # bit. What follows a spike instead of a start bit is a wrong byte, for others to find out.
        into = Signal(9)
        due = Signal(range(self._divisor))
        active, started = Signal(), Signal()
        m.d.comb += self.o.payload.eq(into[1:])
        m.d.sync += due.eq(due - 1)
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(~active):
            m.d.sync += [due.eq((self._divisor - 1) // 2), active.eq(~line), started.eq(0)]
        with m.Elif(due == 0):
            m.d.sync += [due.eq(self._divisor - 1), started.eq(1)]
            with m.If(~started):
                m.d.sync += into.eq(1 << 8)
            with m.Elif(into[0]):
                m.d.sync += [active.eq(0), self.o.valid.eq(1)]
            with m.Else():
                m.d.sync += into.eq(Cat(into[1:], line))
        return m
