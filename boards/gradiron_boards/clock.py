"""Clocks: the PLLs of iCE40 and ECP5, and the settings that give the nearest clock below one.

Ref: iCE40 sysCLOCK PLL Design and Usage Guide (FPGA-TN-02052), ECP5 and ECP5-5G sysCLOCK PLL/DLL
Design and Usage Guide (FPGA-TN-02200).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Instance, Module, Signal

from gradiron.errors import ConfigError

_ICE40_PHASE, _ICE40_VCO, _ICE40_OUT = (10e6, 133e6), (533e6, 1066e6), (16e6, 275e6)
_ECP5_PHASE, _ECP5_VCO, _ECP5_OUT = (3.125e6, 400e6), (400e6, 800e6), (10e6, 400e6)
# Upper ends of the ranges of the phase detector's filter, from 1 on.
_ICE40_FILTERS = (17e6, 26e6, 44e6, 66e6, 101e6, 133e6)


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]


@dataclass(frozen=True)
class Ice40Pll:
    """Settings of an SB_PLL40: in * (divf + 1) / (2**divq * (divr + 1))."""

    input_hz: float
    output_hz: float
    divr: int
    divf: int
    divq: int

    @property
    def filter_range(self) -> int:
        """The setting of the loop filter."""
        phase = self.input_hz / (self.divr + 1)
        return next(n for n, end in enumerate(_ICE40_FILTERS, 1) if phase <= end)


@dataclass(frozen=True)
class Ecp5Pll:
    """Settings of an EHXPLLL: in * feedback / divider, from an oscillator `post` times that."""

    input_hz: float
    output_hz: float
    divider: int
    feedback: int
    post: int


def _impossible(kind: str, input_hz: float, wanted_hz: float) -> ConfigError:
    return ConfigError(
        f"the {kind} PLL makes no clock of {wanted_hz / 1e6:g} MHz or a little less out of "
        f"{input_hz / 1e6:g} MHz; name another with --mhz"
    )


def ice40_pll(input_hz: float, wanted_hz: float) -> Ice40Pll:
    """The fastest clock of an iCE40 that is not above the wanted one.

    Raises
    ------
    ConfigError
        Where there is none within a quarter of it.
    """
    found = [
        Ice40Pll(input_hz, vco / (1 << divq), divr, divf, divq)
        for divr in range(16)
        if _within(input_hz / (divr + 1), _ICE40_PHASE)
        for divf in range(128)
        if _within(vco := input_hz / (divr + 1) * (divf + 1), _ICE40_VCO)
        for divq in range(1, 7)
        if _within(vco / (1 << divq), _ICE40_OUT) and vco / (1 << divq) <= wanted_hz * (1 + 1e-9)
    ]
    best = max(found, key=lambda pll: (pll.output_hz, -pll.divr), default=None)
    if best is None or best.output_hz < 0.75 * wanted_hz:
        raise _impossible("iCE40", input_hz, wanted_hz)
    return best


def ecp5_pll(input_hz: float, wanted_hz: float) -> Ecp5Pll:
    """The fastest clock of an ECP5 that is not above the wanted one; otherwise as `ice40_pll`."""
    found: list[Ecp5Pll] = []
    for divider in range(1, 33):
        phase = input_hz / divider
        if not _within(phase, _ECP5_PHASE):
            continue
        feedback = int(wanted_hz * (1 + 1e-9) / phase)
        out = phase * feedback
        if not 1 <= feedback <= 80 or not _within(out, _ECP5_OUT):
            continue
        # In the middle of the oscillator's range.
        post = round(sum(_ECP5_VCO) / 2 / out)
        if 1 <= post <= 128 and _within(out * post, _ECP5_VCO):
            found.append(Ecp5Pll(input_hz, out, divider, feedback, post))
    best = max(found, key=lambda pll: (pll.output_hz, -pll.divider), default=None)
    if best is None or best.output_hz < 0.75 * wanted_hz:
        raise _impossible("ECP5", input_hz, wanted_hz)
    return best


def ice40_clock(m: Module, pll: Ice40Pll, port: Any, *, pad: bool) -> Signal:
    """The clock made of that of a pin.

    Parameters
    ----------
    m : Module
    pll : Ice40Pll
    port : IOPort
    pad : bool
        Whether the pin is the PLL's own.
    """
    clock = Signal(name="clock")
    settings: dict[str, Any] = {
        "p_FEEDBACK_PATH": "SIMPLE",
        "p_DIVR": pll.divr,
        "p_DIVF": pll.divf,
        "p_DIVQ": pll.divq,
        "p_FILTER_RANGE": pll.filter_range,
        "i_RESETB": 1,
        "i_BYPASS": 0,
        "o_PLLOUTGLOBAL": clock,
    }
    if pad:
        m.submodules.pll = Instance("SB_PLL40_PAD", i_PACKAGEPIN=port, **settings)
    else:
        source = Signal()
        m.submodules.clock_pin = Instance(
            "SB_GB_IO", io_PACKAGE_PIN=port, o_GLOBAL_BUFFER_OUTPUT=source
        )
        m.submodules.pll = Instance("SB_PLL40_CORE", i_REFERENCECLK=source, **settings)
    return clock


def ecp5_clock(m: Module, pll: Ecp5Pll, source: Any) -> Signal:
    """The clock made of another; it stands still until the PLL has settled."""
    made, locked, clock = Signal(), Signal(), Signal(name="clock")
    m.submodules.pll = Instance(
        "EHXPLLL",
        p_PLLRST_ENA="DISABLED",
        p_INTFB_WAKE="DISABLED",
        p_STDBY_ENABLE="DISABLED",
        p_DPHASE_SOURCE="DISABLED",
        p_OUTDIVIDER_MUXA="DIVA",
        p_OUTDIVIDER_MUXB="DIVB",
        p_OUTDIVIDER_MUXC="DIVC",
        p_OUTDIVIDER_MUXD="DIVD",
        p_CLKI_DIV=pll.divider,
        p_CLKFB_DIV=pll.feedback,
        p_CLKOP_ENABLE="ENABLED",
        p_CLKOP_DIV=pll.post,
        p_CLKOP_CPHASE=pll.post // 2,
        p_CLKOP_FPHASE=0,
        p_FEEDBK_PATH="CLKOP",
        a_ICP_CURRENT="12",
        a_LPF_RESISTOR="8",
        a_MFG_ENABLE_FILTEROPAMP="1",
        a_MFG_GMCREF_SEL="2",
        i_CLKI=source,
        i_CLKFB=made,
        i_RST=0,
        i_STDBY=0,
        i_PHASESEL0=0,
        i_PHASESEL1=0,
        i_PHASEDIR=1,
        i_PHASESTEP=1,
        i_PHASELOADREG=1,
        i_PLLWAKESYNC=0,
        i_ENCLKOP=0,
        o_CLKOP=made,
        o_LOCK=locked,
    )
    m.submodules.gate = Instance("DCCA", i_CLKI=made, i_CE=locked, o_CLKO=clock)
    return clock
