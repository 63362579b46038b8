"""A small machine behind the host port, so that simulations are tested apart from the real one.

It knows HALT, STEP, WAIT and SET (which does nothing), and a LOOP of its own: the operand's lowest
byte is the number of extra cycles, the next one an offset in region 0, where the number of cycles
plus STEP is stored. Anything else is an error; the opcode 0x7f breaks an assertion of the
hardware. Some outputs are registered and some combinational, as a real machine may have them.
"""

from collections.abc import Callable

import pytest
from amaranth.hdl import Array, Assert, Const, Format, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gradiron.arch import isa
from gradiron.arch.config import REGION_SHIFT, Config
from gradiron.arch.isa import CSR_BY_NAME, ErrorCause, MachineState, Space


class StubCore(wiring.Component):
    ACTIVITY = ("fetch", "execute")

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
    retire: Out(1)
    retire_pc: Out(16)
    activity: Out(8)

    def __init__(self, config: Config, *, fault: int = 0, deaf: bool = False) -> None:
        self.config, self.fault, self.deaf = config, fault, deaf
        super().__init__()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        size = config.word_bytes
        bits = size.bit_length() - 1

        m.submodules.program = program = Memory(shape=32, depth=config.program_words, init=[])
        fetch, store = program.read_port(), program.write_port()
        m.submodules.exponents = exponents = Memory(shape=32, depth=128, init=[])
        e_read, e_write = exponents.read_port(), exponents.write_port()

        # The address of the byte that is read or written, and the lanes of all regions.
        region, offset = Signal(2), Signal(REGION_SHIFT)
        write, byte = Signal(), Signal(8)
        got = Signal(8)
        chosen: list[list[Signal]] = []
        for r, length in enumerate(config.regions):
            values: list[Signal] = []
            for lane in range(size):
                memory = Memory(shape=8, depth=length // size, init=[])
                m.submodules[f"region{r}_lane{lane}"] = memory
                r_port, w_port = memory.read_port(), memory.write_port()
                m.d.comb += [
                    r_port.en.eq(1),
                    r_port.addr.eq(offset >> bits),
                    w_port.addr.eq(offset >> bits),
                    w_port.data.eq(byte),
                    w_port.en.eq(write & (region == r) & (offset[:bits] == lane)),
                ]
                values.append(r_port.data)
            chosen.append(values)
        lane_q, region_q = Signal(bits), Signal(2)
        m.d.sync += [lane_q.eq(offset[:bits]), region_q.eq(region)]
        m.d.comb += got.eq(Array(Array(values)[lane_q] for values in chosen)[region_q])

        state = Signal(3)
        cause = Signal(8)
        pc, entry = Signal(16), Signal(16)
        mode, step = Signal(), Signal(32)
        seed, rate = Signal(32), Signal(32)
        cycles = Signal(32)
        waits = Signal(32)
        instructions = Signal(32)
        stop = Signal()
        idle = Signal()
        m.d.comb += [
            self.state.eq(state),
            fetch.addr.eq(pc),
            fetch.en.eq(1),
            e_read.addr.eq(self.req_addr),
            e_read.en.eq(1),
        ]
        with m.If(state == MachineState.RUNNING):
            m.d.sync += cycles.eq(cycles + 1)

        # --- instructions ---
        word = fetch.data
        opcode, operand = word[24:], word[:24]
        left = Signal(8)
        ends = Signal()
        done = Signal(3)
        running = state == MachineState.RUNNING
        with m.FSM(name="execution"):
            with m.State("fetch"):
                m.d.comb += idle.eq(~running)
                with m.If(running):
                    m.d.comb += self.activity[0].eq(1)
                    m.next = "execute"
            with m.State("execute"):
                m.d.comb += [self.activity[1].eq(1), done.eq(MachineState.RUNNING)]
                m.d.sync += Assert(opcode != 0x7F, Format("opcode {:x} is poison", opcode))
                m.next = "fetch"
                with m.Switch(opcode):
                    with m.Case(isa.HALT.opcode):
                        m.d.comb += [ends.eq(1), done.eq(MachineState.HALTED)]
                    with m.Case(isa.WAIT.opcode):
                        m.d.comb += [ends.eq(1), done.eq(MachineState.WAITING)]
                    with m.Case(isa.STEP.opcode):
                        m.d.comb += ends.eq(1)
                        m.d.sync += step.eq(step + 1)
                    with m.Case(0x7F, "01------"):
                        m.d.comb += ends.eq(1)
                    with m.Case(isa.LOOP.opcode):
                        m.d.sync += left.eq(operand[:8])
                        m.next = "work"
                    with m.Default():
                        m.d.sync += [
                            state.eq(MachineState.ERROR),
                            cause.eq(ErrorCause.ILLEGAL_OPCODE),
                        ]
            with m.State("work"):
                m.d.comb += self.activity[1].eq(1)
                m.d.sync += left.eq(left - 1)
                with m.If(left == 0):
                    m.d.comb += [
                        ends.eq(1),
                        done.eq(MachineState.RUNNING),
                        write.eq(1),
                        offset.eq(operand[8:16]),
                        byte.eq(operand[:8] + step[:8] + self.fault),
                    ]
                    m.next = "fetch"
        m.d.comb += [self.retire.eq(ends), self.retire_pc.eq(pc)]
        with m.If(ends):
            m.d.sync += [
                pc.eq(pc + (done != MachineState.HALTED)),
                instructions.eq(instructions + 1),
                state.eq(Mux((done == MachineState.RUNNING) & mode, MachineState.PAUSED, done)),
            ]
            with m.If(stop):
                m.d.sync += [state.eq(MachineState.IDLE), stop.eq(0)]
        with m.If((state == MachineState.WAITING) | (state == MachineState.PAUSED)):
            m.d.sync += waits.eq(waits + 1)

        # --- the host port ---
        number = self.req_addr[:8]
        control = self.req_data
        index = Signal(3)
        data = Signal(32)
        with m.FSM(name="host"):
            with m.State("ready"):
                m.d.comb += self.req_ready.eq(not self.deaf)
                with m.If(self.req_valid & self.req_ready):
                    m.d.sync += [index.eq(0), data.eq(0), self.rsp_error.eq(0)]
                    with m.Switch(self.req_space):
                        with m.Case(Space.CSR):
                            m.next = "answer"
                            with m.If(self.req_write):
                                with m.Switch(number):
                                    for name, target in (
                                        ("ENTRY", entry),
                                        ("MODE", mode),
                                        ("SEED", seed),
                                        ("STEP", step),
                                        ("RATE", rate),
                                    ):
                                        with m.Case(CSR_BY_NAME[name].number):
                                            m.d.sync += target.eq(control)
                                    with m.Case(CSR_BY_NAME["CONTROL"].number):
                                        with m.If(control[3]):
                                            m.d.sync += [cycles.eq(0), waits.eq(0)]
                                            m.d.sync += instructions.eq(0)
                                        with m.If(control[0] & ~running):
                                            m.d.sync += state.eq(MachineState.RUNNING)
                                            m.d.sync += pc.eq(entry)
                                        with m.If(control[1] & ~running):
                                            m.d.sync += state.eq(MachineState.RUNNING)
                                        with m.If(control[2]):
                                            with m.If(running):
                                                m.d.sync += stop.eq(1)
                                            with m.Else():
                                                m.d.sync += state.eq(MachineState.IDLE)
                                                m.d.sync += cause.eq(ErrorCause.NONE)
                            with m.Switch(number):
                                for name, value in (
                                    ("ID", Const(isa.DEVICE_ID)),
                                    ("VERSION", Const(isa.ISA_VERSION)),
                                    ("CONFIG", Const(config.digest(), 32)),
                                    (
                                        "STATUS",
                                        state | cause << 4 | pc << 16,
                                    ),
                                    ("ENTRY", entry),
                                    ("MODE", mode),
                                    ("SEED", seed),
                                    ("STEP", step),
                                    ("RATE", rate),
                                    ("CYCLES", cycles),
                                    ("WAIT_CYCLES", waits),
                                    ("INSTRUCTIONS", instructions),
                                ):
                                    with m.Case(CSR_BY_NAME[name].number):
                                        m.d.sync += data.eq(value)
                        with m.Case(Space.MEMORY):
                            m.next = "bytes"
                            with m.Switch(self.req_addr[REGION_SHIFT:]):
                                for r, length in enumerate(config.regions):
                                    with m.Case(r):
                                        inside = self.req_addr[:REGION_SHIFT] < length
                                        m.d.sync += self.rsp_error.eq(~inside | ~idle)
                                with m.Default():
                                    m.d.sync += self.rsp_error.eq(1)
                        with m.Case(Space.PROGRAM):
                            m.d.comb += [
                                store.en.eq(self.req_write),
                                fetch.addr.eq(self.req_addr),
                            ]
                            m.next = "program"
                        with m.Case(Space.EXPONENTS):
                            m.d.comb += e_write.en.eq(self.req_write)
                            m.next = "exponents"
            m.d.comb += [
                store.addr.eq(self.req_addr),
                store.data.eq(self.req_data),
                e_write.addr.eq(self.req_addr),
                e_write.data.eq(self.req_data),
            ]
            with m.State("program"):
                m.d.sync += data.eq(fetch.data)
                m.next = "answer"
            with m.State("exponents"):
                m.d.sync += data.eq(e_read.data)
                m.next = "answer"
            with m.State("bytes"):
                with m.If(self.rsp_error | (index == self.req_size)):
                    m.next = "answer"
                with m.Else():
                    m.d.comb += [
                        region.eq(self.req_addr[REGION_SHIFT:]),
                        offset.eq(self.req_addr[:REGION_SHIFT] + index),
                        write.eq(self.req_write),
                        byte.eq(self.req_data.word_select(index[:2], 8)),
                    ]
                    m.next = "byte"
            with m.State("byte"):
                m.d.sync += [
                    data.word_select(index[:2], 8).eq(got),
                    index.eq(index + 1),
                ]
                m.next = "bytes"
            with m.State("answer"):
                m.d.comb += self.rsp_valid.eq(1)
                m.next = "ready"
        m.d.comb += self.rsp_data.eq(data)
        return m


@pytest.fixture(scope="session")
def small() -> Config:
    return Config(rows=4, cols=4, regions=(256, 512), acc_depth=16, program_words=64)


@pytest.fixture(scope="session")
def stub() -> Callable[..., StubCore]:
    return StubCore
