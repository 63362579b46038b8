"""The instruction decoder, generated from the tables of `gradiron.arch.isa`.

Every word is exactly one of: a SET of a register with a value in its range, another instruction
with legal fields, or an error with its cause. Combinational.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import REGION_SHIFT, Config
from gradiron.arch.isa import (
    INSTRUCTIONS,
    LOSS,
    MM,
    OPCODE_SHIFT,
    REGISTERS,
    RULES,
    SET_OPCODE,
    ErrorCause,
    Field,
    Instruction,
    Kind,
)


class Decoder(wiring.Component):
    """One word to what it means.

    Members
    -------
    word : In(32)
    is_set : the word is a legal SET; `set_number` and the operand say of what
    is_<name> : the word is that instruction, and legal
    of_loss : the word is a LOSS, legal or not, and no MM
    error : ErrorCause, 0 if the word is legal
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "word": In(32),
                "is_set": Out(1),
                "of_loss": Out(1),
                "error": Out(range(max(ErrorCause) + 1)),
                **{f"is_{i.name.lower()}": Out(1) for i in INSTRUCTIONS},
            }
        )

    def _legal_set(self, m: Module, number: Value, operand: Value) -> Value:
        """Whether the operand is in the range of the register of this number.

        Nearly all ranges are those of a number of bits, with or without a sign: one chain of gates
        says which bits differ from the ones above them, and the register picks the place where
        nothing may differ any more.
        """
        config = self.config
        signed, sign = Signal(), Signal()
        m.d.comb += sign.eq(signed & operand[-1])
        places: dict[
            int, Signal
        ] = {}  # by number of bits: some bit above them differs from the sign

        def fits(width: int) -> Value:
            places.setdefault(width, Signal(name=f"beyond_{width}"))
            return ~places[width]

        legal = Signal()
        zero = Signal()
        m.d.comb += zero.eq(~operand[:16].any())
        is_address, not_zero = Signal(), Signal()
        in_region = Signal()
        offset_bits = config.offset_bits - 1
        if len(set(config.regions)) == 1 and config.regions[0] == 1 << offset_bits:
            regions = len(config.regions)
            m.d.comb += in_region.eq(
                (operand[REGION_SHIFT:] < regions) & ~operand[offset_bits:REGION_SHIFT].any()
            )
        else:
            with m.Switch(operand[REGION_SHIFT:]):
                for index, size in enumerate(config.regions):
                    with m.Case(index):
                        m.d.comb += in_region.eq(operand[:REGION_SHIFT] < size)
        bounded = Signal()
        with m.Switch(number):
            for register in REGISTERS:
                low, high = register.range(config)
                with m.Case(register.number):
                    if register.kind == Kind.ADDRESS:
                        m.d.comb += is_address.eq(1)
                    elif register.kind == Kind.TENSORS:
                        m.d.comb += bounded.eq(1)
                    elif register.signed:
                        width = high.bit_length()
                        m.d.comb += [signed.eq(1), bounded.eq(fits(width))]
                        if low != -(1 << width):
                            assert low == -high
                            m.d.comb += bounded.eq(fits(width) & ~(sign & ~operand[:width].any()))
                    else:
                        width = high.bit_length()
                        m.d.comb += not_zero.eq(low)
                        if high == (1 << width) - 1:
                            m.d.comb += bounded.eq(fits(width))
                        else:
                            # A power of two, which is legal itself.
                            assert high == 1 << (width - 1)
                            m.d.comb += bounded.eq(
                                fits(width - 1) | (fits(width) & ~operand[: width - 1].any())
                            )
        above: Value = Const(0, 1)
        end = 24
        for width in sorted(places, reverse=True):
            above = (operand[width:end] ^ sign.replicate(end - width)).any() | above
            m.d.comb += places[width].eq(above)
            above, end = places[width], width
        m.d.comb += legal.eq(Mux(is_address, in_region, bounded & ~(not_zero & zero)))
        return legal

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        operand = self.word[:OPCODE_SHIFT]
        opcode = self.word[OPCODE_SHIFT:]

        def field_value(field: Field) -> Value:
            return operand[field.low : field.low + field.width]

        def check(instruction: Instruction) -> None:
            """Reserved bits, undefined values, minima, forbidden combinations, in this order."""
            illegal: Value = (operand & instruction.reserved_mask).any()
            below: Value = Const(0, 1)
            for field in instruction.fields:
                value = field_value(field)
                undefined = range(field.maximum + 1, 1 << field.width)
                illegal = illegal | Cat(*[value == v for v in undefined]).any()
                if field.minimum:
                    assert field.minimum == 1
                    below = below | ~value.any()
            # Neighbours in the order of the checks that have one cause are one check.
            checks: list[tuple[ErrorCause, Value]] = [(ErrorCause.ILLEGAL_FIELDS, illegal)]
            if any(field.minimum for field in instruction.fields):
                checks.append((ErrorCause.OPERAND_RANGE, below))
            for rule in RULES:
                if rule.instruction != instruction.name or not rule.applies(config):
                    continue
                matches: Value = Const(1, 1)
                for name, values in rule.when.items():
                    value = field_value(instruction.field(name))
                    matches = matches & Cat(*[value == v for v in sorted(values)]).any()
                if checks[-1][0] == rule.cause:
                    checks[-1] = (rule.cause, checks[-1][1] | matches)
                else:
                    checks.append((rule.cause, matches))
            wrong: Value = Const(0, 1)
            for cause, found in checks:
                with m.If(~wrong & found):
                    m.d.comb += self.error.eq(cause)
                wrong = wrong | found
            m.d.comb += getattr(self, f"is_{instruction.name.lower()}").eq(~wrong)

        m.d.comb += self.of_loss.eq(opcode[0])
        assert LOSS.opcode & 1 == 1
        assert MM.opcode & 1 == 0

        legal_set = self._legal_set(m, opcode[:6], operand)
        with m.Switch(opcode):
            with m.Case(*(SET_OPCODE + register.number for register in REGISTERS)):
                m.d.comb += self.is_set.eq(legal_set)
                with m.If(~legal_set):
                    m.d.comb += self.error.eq(ErrorCause.OPERAND_RANGE)
            for instruction in INSTRUCTIONS:
                with m.Case(instruction.opcode):
                    check(instruction)
            with m.Default():
                m.d.comb += self.error.eq(ErrorCause.ILLEGAL_OPCODE)
        return m
