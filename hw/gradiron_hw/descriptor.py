"""Widths of the descriptor registers in hardware, and their bundle as one signature."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Shape, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import Out

from gradiron.arch.config import Config
from gradiron.arch.isa import BY_NAME, REGISTERS, Kind, Register


def register_shape(register: Register, config: Config) -> Shape:
    """What a register needs on this machine; an address keeps its region above the offset."""
    low, high = register.range(config)
    match register.kind:
        case Kind.ADDRESS:
            return unsigned(2 + config.offset_bits - 1)
        case Kind.TENSORS:
            return unsigned(18)
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
