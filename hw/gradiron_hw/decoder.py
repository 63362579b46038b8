"""The instruction decoder, generated from the tables of `gradiron.arch.isa`.

Every word is exactly one of: a SET of a register with a value in its range, another instruction
with legal fields, or an error with its cause. Combinational.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import REGION_SHIFT, Config
from gradiron.arch.isa import (
    INSTRUCTIONS,
    OPCODE_SHIFT,
    REGISTERS,
    RULES,
    SET_OPCODE,
    ErrorCause,
    Field,
    Instruction,
    Kind,
    Register,
)


class Decoder(wiring.Component):
    """One word to what it means.

    Members
    -------
    word : In(32)
    is_set : the word is a legal SET; `set_number` and the operand say of what
    is_<name> : the word is that instruction, and legal
    error : ErrorCause, 0 if the word is legal
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "word": In(32),
                "is_set": Out(1),
                "error": Out(8),
                **{f"is_{i.name.lower()}": Out(1) for i in INSTRUCTIONS},
            }
        )

    def _in_range(self, m: Module, register: Register, operand: Value) -> Value:
        """Whether a SET's operand is legal; one comparison serves all registers of a kind."""
        config = self.config
        bits = config.offset_bits
        if register.kind == Kind.TENSORS:
            return Const(1, 1)
        low, high = register.range(config)
        key = (register.kind, low, high)
        if key in self._ranges:
            return self._ranges[key]
        legal = Signal(name=f"legal_{register.kind.name.lower()}_{len(self._ranges)}")
        match register.kind:
            case Kind.ADDRESS:
                region, offset = operand[REGION_SHIFT:24], operand[:REGION_SHIFT]
                with m.Switch(region):
                    for index, size in enumerate(config.regions):
                        with m.Case(index):
                            m.d.comb += legal.eq(offset < size)
            case Kind.STRIDE:
                top = operand[bits - 1 :]
                m.d.comb += legal.eq(top.all() | ~top.any())
            case Kind.OFFSET:
                m.d.comb += legal.eq(~operand[bits - 1 :].any())
            case Kind.COUNT:
                m.d.comb += legal.eq((operand != 0) & (operand <= high))
            case _:
                number = operand.as_signed() if register.signed else operand
                m.d.comb += legal.eq((number >= low) & (number <= high))
        self._ranges[key] = legal
        return legal

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        self._ranges: dict[tuple[Kind, int, int], Value] = {}
        operand = self.word[:OPCODE_SHIFT]
        opcode = self.word[OPCODE_SHIFT:]

        def field_value(field: Field) -> Value:
            return operand[field.low : field.low + field.width]

        def check(instruction: Instruction) -> None:
            """Reserved bits, undefined values, minima, forbidden combinations, in this order."""
            flag = getattr(self, f"is_{instruction.name.lower()}")
            illegal: Value = (operand & instruction.reserved_mask).any()
            below: Value = Const(0, 1)
            for field in instruction.fields:
                if field.maximum < (1 << field.width) - 1:
                    illegal = illegal | (field_value(field) > field.maximum)
                if field.minimum:
                    below = below | (field_value(field) < field.minimum)
            with m.If(illegal):
                m.d.comb += self.error.eq(ErrorCause.ILLEGAL_FIELDS)
            with m.Elif(below):
                m.d.comb += self.error.eq(ErrorCause.OPERAND_RANGE)
            for rule in RULES:
                if rule.instruction != instruction.name or not rule.applies(config):
                    continue
                matches: Value = Const(1, 1)
                for name, values in rule.when.items():
                    value = field_value(instruction.field(name))
                    matches = matches & Cat(*[value == v for v in sorted(values)]).any()
                with m.Elif(matches):
                    m.d.comb += self.error.eq(rule.cause)
            with m.Else():
                m.d.comb += flag.eq(1)

        legal = {register.name: self._in_range(m, register, operand) for register in REGISTERS}
        with m.Switch(opcode):
            for register in REGISTERS:
                with m.Case(SET_OPCODE + register.number):
                    with m.If(legal[register.name]):
                        m.d.comb += self.is_set.eq(1)
                    with m.Else():
                        m.d.comb += self.error.eq(ErrorCause.OPERAND_RANGE)
            for instruction in INSTRUCTIONS:
                with m.Case(instruction.opcode):
                    check(instruction)
            with m.Default():
                m.d.comb += self.error.eq(ErrorCause.ILLEGAL_OPCODE)
        return m
