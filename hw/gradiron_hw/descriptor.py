"""The descriptor registers: their widths, their bundle as one signature, and themselves."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import REGION_SHIFT, Config
from gradiron.arch.isa import BY_NAME, OPCODE_SHIFT, REGISTERS, Kind, Register, Skip
from gradiron.arch.isa import Out as Result

OF_MOMENTUM = ("V_HI", "V_LO", "V_BIAS")
"""Registers that a machine without momentum does without: a SET of one has no effect."""


def register_shape(register: Register, config: Config) -> Shape:
    """What a register needs on this machine; an address keeps its region above the offset."""
    low, high = register.range(config)
    match register.kind:
        case Kind.ADDRESS:
            return unsigned(2 + config.offset_bits - 1)
        case Kind.TENSORS:
            return unsigned(24)
        case _ if register.signed:
            return signed(max(high.bit_length(), (-low - 1).bit_length()) + 1)
        case _:
            return unsigned(high.bit_length())


def descriptor_layout(config: Config) -> data.StructLayout:
    """All descriptor registers."""
    return data.StructLayout({r.name: register_shape(r, config) for r in REGISTERS})


def mm_layout() -> data.StructLayout:
    """The fields of MM, each a member of its width."""
    fields = sorted(BY_NAME["MM"].fields, key=lambda f: f.low)
    assert [f.low for f in fields] == [sum(g.width for g in fields[:i]) for i in range(len(fields))]
    return data.StructLayout({f.name: unsigned(f.width) for f in fields})


def region_of(config: Config, address: Any) -> Value:
    """Region bits of an ADDRESS register."""
    return address[config.offset_bits - 1 :]


def offset_of(config: Config, address: Any) -> Value:
    """Offset bits of an ADDRESS register."""
    return address[: config.offset_bits - 1]


def bundle(config: Config) -> wiring.Signature:
    """Descriptor registers and MM fields as they go to the units."""
    return wiring.Signature({"regs": Out(descriptor_layout(config)), "mm": Out(mm_layout())})


class DescriptorRegisters(wiring.Component):
    """The descriptor registers, which SET writes.

    Members
    -------
    write, number, operand : from the word
    mm : fields of the instruction that `odd` is about
    regs : their values
    single : N_P and N_C are 1
    odd : an offset at which a window of that MM starts is odd (two-byte lanes only)
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        start: Any = {r.name: r.reset for r in REGISTERS if r.reset}
        held: Any = Out
        super().__init__(
            {
                "write": In(1),
                "number": In(6),
                "operand": In(24),
                "mm": In(mm_layout()),
                # The stubs do not know the initial value of a port.
                "regs": held(descriptor_layout(config), init=start),
                "odd": Out(1),
                "single": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        operand = self.operand
        # One line per group of eight registers and one per register in a group, so that a
        # register's enable is a single gate.
        groups = Signal(8)
        members = Signal(8)
        m.d.comb += [
            groups.eq(Mux(self.write, Const(1, 8) << self.number[3:], 0)),
            members.eq(Const(1, 8) << self.number[:3]),
        ]
        one = Signal()
        ones = {name: Signal(name=f"one_{name.lower()}", init=1) for name in ("N_P", "N_C")}
        m.d.comb += [one.eq(operand[:16] == 1), self.single.eq(Cat(*ones.values()).all())]
        for register in REGISTERS:
            value: Value = operand[: register_shape(register, config).width]
            if register.kind == Kind.ADDRESS:
                value = Cat(offset_of(config, operand), operand[REGION_SHIFT:OPCODE_SHIFT])
            if register.name in OF_MOMENTUM and not config.momentum:
                continue
            group, member = divmod(register.number, 8)
            with m.If(groups[group] & members[member]):
                m.d.sync += self.regs[register.name].eq(value)
                if register.name in ones:
                    m.d.sync += ones[register.name].eq(one)
        if config.lane_bytes == 2:
            m.d.comb += self.odd.eq(self._odd())
        return m

    def _odd(self) -> Value:
        regs, mm = self.regs, self.mm

        def low(*names: str) -> Value:
            fields = (regs[name] for name in names)
            return Cat(*[f.as_value()[0] if hasattr(f, "as_value") else f[0] for f in fields]).any()

        always = ("A_BASE", "B_BASE", "O_BASE", "A_SN", "A_SY", "A_SX", "A_TY", "A_TX", "A_Y0")
        always += ("A_X0", "B_R", "O_OFF", "O_S2", "O_S1", "O_S0")
        momentum = mm.out == Result.MOMENTUM
        planes = (
            (mm.out == Result.LOGITS) | (mm.out == Result.MASTER) | (mm.out == Result.POOLED)
        ) | momentum
        odd = (
            low(*always)
            | (~mm.transposed & low("B_TY", "B_TX"))
            | (planes & low("O_LO"))
            | (mm.mask & low("M_BASE"))
            | (mm.bias & low("BIAS"))
            | ((mm.skip != Skip.NONE) & low("S_BASE"))
        )
        if self.config.momentum:
            odd = odd | (momentum & (low("V_HI", "V_LO") | (mm.bias & low("V_BIAS"))))
        return odd
