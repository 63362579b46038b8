"""Cells that a device has ready-made, each with a behavioural twin.

The twin is what is simulated; the primitive takes its place where `technology` names the device.

Ref: Lattice TN1295, "DSP Function Usage Guide for iCE40 Devices", section "sysDSP architecture".
"""

from __future__ import annotations

from amaranth.hdl import ClockSignal, Const, Instance, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


class DotPair(wiring.Component):
    """Two int8 products and their sum: `x0 * w0 + x1 * w1`, three advances after `x`.

    Registers: `x` with every advance; the stationary values with an advance and `swap`; both
    products; their sum. The sum fits 16 bits because -128 never occurs.

    On UP5K this is one SB_MAC16 in its dual 8x8 mode. It has all of the registers: the lower half
    delivers its product, and the upper half adds that to its own.

    Parameters
    ----------
    technology : str
        "generic", or "up5k".

    Members
    -------
    en : all registers advance
    swap : with `en`: take the stationary values
    x, w : two int8 each, the first one lowest
    o : sum of the products
    """

    def __init__(self, *, technology: str = "generic") -> None:
        self.technology = technology
        super().__init__(
            {"en": In(1), "swap": In(1), "x": In(16), "w": In(16), "o": Out(signed(16))}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if self.technology == "up5k":
            out = Signal(32)
            m.submodules.mac = Instance(
                "SB_MAC16",
                p_MODE_8x8=Const(1, 1),
                p_A_SIGNED=Const(1, 1),
                p_B_SIGNED=Const(1, 1),
                p_A_REG=Const(1, 1),
                p_B_REG=Const(1, 1),
                p_TOP_8x8_MULT_REG=Const(1, 1),
                p_BOT_8x8_MULT_REG=Const(1, 1),
                # Upper half: register of (C + upper product). Lower half: register of the product.
                p_TOPADDSUB_UPPERINPUT=Const(1, 1),
                p_TOPADDSUB_LOWERINPUT=Const(1, 2),
                p_TOPOUTPUT_SELECT=Const(1, 2),
                p_BOTOUTPUT_SELECT=Const(2, 2),
                i_CLK=ClockSignal(),
                i_CE=self.en,
                i_A=self.w,
                i_AHOLD=~self.swap,
                i_B=self.x,
                i_C=out[:16],
                o_O=out,
            )
            m.d.comb += self.o.eq(out[16:])
            return m
        pairs = []
        for i in range(2):
            x, active = Signal(signed(8), name=f"x_{i}"), Signal(signed(8), name=f"active_{i}")
            product = Signal(signed(15), name=f"product_{i}")
            with m.If(self.en):
                m.d.sync += [x.eq(self.x[8 * i : 8 * i + 8]), product.eq(x * active)]
            with m.If(self.en & self.swap):
                m.d.sync += active.eq(self.w[8 * i : 8 * i + 8])
            pairs.append(product)
        with m.If(self.en):
            m.d.sync += self.o.eq(pairs[0] + pairs[1])
        return m
