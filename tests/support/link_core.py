"""A host port with memories behind it, made to show what a link does wrong.

Word 11 of the CSR space is a sum: what is written there is added to it, so that a write that is
done twice, or not at all, shows. Word 12 counts accesses. Answers take a varying time.
"""

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gradiron.arch import isa
from gradiron.arch.isa import Space

SUM, ACCESSES = 11, 12
BYTES, WORDS = 1 << 12, 1 << 8
DIGEST = 0x12345678


class LinkCore(wiring.Component):
    req_valid: In(1)
    req_ready: Out(1)
    req_space: In(2)
    req_addr: In(24)
    req_write: In(1)
    req_size: In(3)
    req_data: In(32)
    rsp_valid: Out(1)
    rsp_data: Out(32)
    rsp_error: Out(1)
    state: Out(3)

    def __init__(self, *, held: bool = False) -> None:
        self.held = held
        super().__init__()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.bytes = in_bytes = Memory(shape=8, depth=BYTES, init=[])
        m.submodules.words = words = Memory(shape=32, depth=WORDS, init=[])
        m.submodules.others = others = Memory(shape=32, depth=WORDS, init=[])
        ports: list[tuple[Any, Any]] = [
            (memory.read_port(), memory.write_port()) for memory in (in_bytes, words, others)
        ]
        total, accesses = Signal(32), Signal(32)
        delay, random = Signal(3), Signal(7, init=1)
        waiting, error = Signal(), Signal()
        m.d.sync += random.eq((random << 1) | (random[6] ^ random[5]))
        begins = ~waiting & random[0]
        taken = self.req_valid & begins
        m.d.comb += self.req_ready.eq(self.rsp_valid if self.held else begins)
        csr = Signal(32)
        for read, write in ports:
            m.d.comb += [
                read.en.eq(taken),
                read.addr.eq(self.req_addr),
                write.addr.eq(self.req_addr),
                write.data.eq(self.req_data),
            ]
        space = Signal(2)
        with m.If(taken):
            m.d.sync += [
                waiting.eq(1),
                delay.eq(random[:2]),
                space.eq(self.req_space),
                accesses.eq(accesses + 1),
                error.eq(0),
            ]
            with m.Switch(self.req_space):
                with m.Case(Space.MEMORY):
                    m.d.sync += error.eq((self.req_addr >= BYTES) | (self.req_size != 1))
                    m.d.comb += ports[0][1].en.eq(self.req_write & (self.req_addr < BYTES))
                with m.Case(Space.PROGRAM):
                    m.d.sync += error.eq((self.req_addr >= WORDS) | (self.req_size != 4))
                    m.d.comb += ports[1][1].en.eq(self.req_write & (self.req_addr < WORDS))
                with m.Case(Space.EXPONENTS):
                    m.d.sync += error.eq(self.req_addr >= WORDS)
                    m.d.comb += ports[2][1].en.eq(self.req_write & (self.req_addr < WORDS))
                with m.Case(Space.CSR):
                    with m.Switch(self.req_addr):
                        with m.Case(isa.CSR_BY_NAME["ID"].number):
                            m.d.sync += csr.eq(isa.DEVICE_ID)
                        with m.Case(isa.CSR_BY_NAME["VERSION"].number):
                            m.d.sync += csr.eq(isa.ISA_VERSION)
                        with m.Case(isa.CSR_BY_NAME["CONFIG"].number):
                            m.d.sync += csr.eq(DIGEST)
                        with m.Case(SUM):
                            m.d.sync += csr.eq(total)
                            with m.If(self.req_write):
                                m.d.sync += total.eq(total + self.req_data)
                        with m.Case(ACCESSES):
                            m.d.sync += csr.eq(accesses)
                        with m.Default():
                            m.d.sync += csr.eq(0)
        with m.Elif(waiting):
            m.d.sync += delay.eq(delay - 1)
            with m.If(delay == 0):
                m.d.sync += waiting.eq(0)
                m.d.comb += self.rsp_valid.eq(1)
        m.d.comb += self.rsp_error.eq(error)
        with m.Switch(space):
            with m.Case(Space.CSR):
                m.d.comb += self.rsp_data.eq(csr)
            with m.Case(Space.MEMORY):
                m.d.comb += self.rsp_data.eq(ports[0][0].data)
            with m.Case(Space.PROGRAM):
                m.d.comb += self.rsp_data.eq(ports[1][0].data)
            with m.Case(Space.EXPONENTS):
                m.d.comb += self.rsp_data.eq(ports[2][0].data)
        return m
