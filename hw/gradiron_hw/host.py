"""The host port: one access at a time to the state memory, the program memory or data memory."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import TENSORS, Config
from gradiron.arch.isa import CSR_BY_NAME, CSRS, Space
from gradiron_hw.state import ADDRESS_BITS, EXPONENTS


class HostPort(wiring.Component):
    """What the host may reach, and when.

    A request is taken in a cycle with `req_ready`, at once for data and program memory, and for
    CSRs and exponents as soon as the scalar unit and the counters leave the state memory to it.
    Its response comes in the next cycle, until the end of which `req_data` stays. A write to a CSR
    takes all 32 bits.

    Parameters
    ----------
    config : Config

    Members
    -------
    req_*, rsp_* : as in `core.Core`
    running : a program runs: memories are closed
    status : the CSR STATUS
    word_request, word_number, word_taken : the state memory
    word_write, word : in the cycle after `word_taken`; data is `req_data`
    program_read, program_write, program_data : the program memory at `req_addr`
    memory_read, memory_write, memory_outside, memory_data : data memory
    control : bits of CONTROL, written in this cycle; `word` is ENTRY
    mode_write : MODE is written in this cycle
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "req_valid": In(1),
                "req_ready": Out(1),
                "req_space": In(2),
                "req_addr": In(24),
                "req_write": In(1),
                "req_data": In(32),
                "rsp_valid": Out(1),
                "rsp_data": Out(32),
                "rsp_error": Out(1),
                "running": In(1),
                "status": In(32),
                "word_request": Out(1),
                "word_number": Out(ADDRESS_BITS),
                "word_write": Out(1),
                "word_taken": In(1),
                "word": In(32),
                "program_read": Out(1),
                "program_write": Out(1),
                "program_data": In(32),
                "memory_read": Out(1),
                "memory_write": Out(1),
                "memory_outside": In(1),
                "memory_data": In(32),
                "control": Out(4),
                "mode_write": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        number = self.req_addr
        csr, exponents = self.req_space == Space.CSR, self.req_space == Space.EXPONENTS
        program, memory = self.req_space == Space.PROGRAM, self.req_space == Space.MEMORY
        beyond_csrs, beyond_exponents, beyond_program = Signal(), Signal(), Signal()
        m.d.comb += [
            beyond_program.eq(number[config.pc_bits :].any()),
            beyond_exponents.eq(number[(2 * TENSORS - 1).bit_length() :].any()),
            beyond_csrs.eq(number[5:].any()),
        ]
        # The state memory takes the number behind the last for one of its own counters.
        with m.Switch(number[:5]), m.Case(*range(max(c.number for c in CSRS) + 1, 32)):
            m.d.comb += beyond_csrs.eq(1)

        refused = Signal()
        with m.If(~csr & self.running):
            m.d.comb += refused.eq(1)
        with m.Elif(exponents):
            m.d.comb += refused.eq(beyond_exponents)
        with m.Elif(program):
            m.d.comb += refused.eq(beyond_program)
        with m.Elif(memory):
            m.d.comb += refused.eq(self.memory_outside)

        first = Signal()
        by_word = csr | (exponents & ~beyond_exponents & ~self.running)
        m.d.comb += [
            first.eq(self.req_valid & ~by_word),
            self.req_ready.eq(first | self.word_taken),
        ]
        m.d.sync += [
            self.rsp_valid.eq(self.req_ready),
            self.rsp_error.eq(first & refused),
        ]
        opened = first & ~self.running
        m.d.comb += [
            self.word_request.eq(self.req_valid & by_word),
            self.program_read.eq(opened & program),
            self.program_write.eq(opened & program & ~beyond_program & self.req_write),
            self.memory_read.eq(opened & memory & ~self.req_write),
            self.memory_write.eq(opened & memory & self.req_write),
        ]

        # --- the state memory ---------------------------------------------------------------------
        # CONTROL reads as 0, as does a number that does not exist; a write brings ENTRY along.
        control = CSR_BY_NAME["CONTROL"].number
        entry = CSR_BY_NAME["ENTRY"].number
        is_control, is_mode, plain = Signal(), Signal(), Signal()
        csr_number = Signal(5)
        m.d.comb += [
            is_control.eq(csr & ~beyond_csrs & (number[:5] == control)),
            is_mode.eq(csr & ~beyond_csrs & (number[:5] == CSR_BY_NAME["MODE"].number)),
            csr_number.eq(Mux(beyond_csrs, control, number[:5])),
        ]
        with m.If(is_control & self.req_write):
            m.d.comb += csr_number.eq(entry)
        writable = (c.number for c in CSRS if c.writable and c.name != "CONTROL")
        with m.Switch(number[:5]), m.Case(*writable):
            m.d.comb += plain.eq(~beyond_csrs)
        m.d.comb += [
            self.word_number.eq(Mux(exponents, EXPONENTS | number[: ADDRESS_BITS - 1], csr_number)),
        ]
        # What is known of the number is needed in the next cycle.
        written = self.word_taken & self.req_write
        controls = Signal()
        m.d.sync += [
            self.word_write.eq(written & (exponents | plain)),
            self.mode_write.eq(written & is_mode),
            controls.eq(written & is_control),
        ]
        m.d.comb += self.control.eq(Mux(controls, self.req_data[:4], 0))

        # --- the response -------------------------------------------------------------------------
        is_status = csr & (number[:5] == CSR_BY_NAME["STATUS"].number) & ~beyond_csrs
        other = Signal(32)
        of_word, of_program, of_status = Signal(), Signal(), Signal()
        m.d.sync += [
            of_word.eq(by_word & ~is_status),
            of_program.eq(program),
            of_status.eq(is_status),
        ]
        with m.If(of_status):
            m.d.comb += other.eq(self.status)
        with m.Elif(of_program):
            m.d.comb += other.eq(self.program_data)
        with m.Else():
            m.d.comb += other.eq(self.memory_data)
        m.d.comb += self.rsp_data.eq(Mux(of_word, self.word, other))
        return m


__all__ = ["HostPort"]
