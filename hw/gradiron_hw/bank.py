"""Biases and momenta of a column tile: words of 32 bits per column, in slots."""

from enum import IntEnum

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import Config
from gradiron.arch.timing import bank_words


class Slot(IntEnum):
    """A word of every column. NOTHING is never written: it reads as zero."""

    BIAS = 0
    NOTHING = 1
    SKIP = 2
    MOMENTUM = 3


class Bank(wiring.Component):
    """One word per column and slot. A memory where lanes have several groups, else registers.

    A word of data memory holds several words of the bank or a part of one, as lanes and columns go:
    of `bank_words` words of data memory, number `word` is in group `word * groups // bank_words`.

    Members
    -------
    slot, group : place
    data : what is there, in the next cycle: one word per lane
    to_slot, to_group, write, result : write one word per lane
    take, word, bytes : write the part that is word number `word` of data memory
    part : that part of `data`
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        words = bank_words(config)
        self.part_bits = 32 * config.cols // words
        super().__init__(
            {
                "slot": In(2),
                "group": In(max(1, (config.groups - 1).bit_length())),
                "data": Out(32 * config.lanes),
                "to_slot": In(2),
                "to_group": In(max(1, (config.groups - 1).bit_length())),
                "write": In(1),
                "result": In(32 * config.lanes),
                "take": In(1),
                "word": In(max(1, (words - 1).bit_length())),
                "bytes": In(self.part_bits),
                "part": Out(self.part_bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        width, parts = 32 * config.lanes, 32 * config.lanes // self.part_bits
        number = self.word[: parts.bit_length() - 1] if parts > 1 else Const(0, 1)
        enable = Signal(parts)
        value = Signal(width)
        m.d.comb += [
            self.part.eq(self.data.word_select(number, self.part_bits)),
            enable.eq(Cat(*[self.write | (self.take & (number == part)) for part in range(parts)])),
            value.eq(Mux(self.take, Cat(*[self.bytes for _ in range(parts)]), self.result)),
        ]
        if config.groups > 1:
            m.submodules.memory = memory = Memory(
                shape=width, depth=len(Slot) * config.groups, init=[]
            )
            read = memory.read_port()
            write = memory.write_port(granularity=self.part_bits)
            m.d.comb += [
                read.addr.eq(Cat(self.group, self.slot)),
                write.addr.eq(Cat(self.to_group, self.to_slot)),
                write.data.eq(value),
                write.en.eq(enable),
                self.data.eq(read.data),
            ]
            return m
        slot = Signal.like(self.slot)
        m.d.sync += slot.eq(self.slot)
        for used in (Slot.BIAS, Slot.SKIP, *((Slot.MOMENTUM,) if config.momentum else ())):
            held = Signal(width, name=used.name.lower())
            with m.If(slot == used):
                m.d.comb += self.data.eq(held)
            for part in range(parts):
                bits = slice(self.part_bits * part, self.part_bits * (part + 1))
                with m.If((self.to_slot == used) & enable[part]):
                    m.d.sync += held[bits].eq(value[bits])
        return m
