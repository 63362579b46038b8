"""The core: sequencer, registers, host port, and the units around data memory.

The sequencer fetches a word per cycle. A SET and the control instructions take one cycle; MM and
LOSS prepare (exponents, shift amounts, random key), run, and finish (saturations, tracker). Any
error stops all units at once.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import TENSORS, Config
from gradiron.arch.isa import (
    BY_NAME,
    CSR_BY_NAME,
    CSRS,
    DEVICE_ID,
    ISA_VERSION,
    LOOP_DEPTH,
    REGISTERS,
    ErrorCause,
    Kind,
    MachineState,
    Pass,
    Space,
)
from gradiron.arch.isa import Out as Result
from gradiron_hw.decoder import Decoder
from gradiron_hw.descriptor import (
    descriptor_layout,
    mm_layout,
    register_shape,
)
from gradiron_hw.engine import ProductEngine
from gradiron_hw.loss import LossUnit
from gradiron_hw.memory import DataMemory
from gradiron_hw.random import KeyUnit, RandomBlock
from gradiron_hw.scalar import ScalarUnit
from gradiron_hw.vector import VectorPath

CONTROL_START, CONTROL_RESUME, CONTROL_RESET, CONTROL_CLEAR = range(4)


class Core(wiring.Component):
    """A whole machine behind its host port.

    A request is taken whenever `req_valid` is high; its response comes in the next cycle.

    Parameters
    ----------
    config : Config
    technology : str
        "generic", or "up5k".

    Members
    -------
    req_valid, req_ready, req_space, req_addr, req_write, req_size, req_data : request
        Space as `isa.Space`. Memory: byte address, a multiple of the 1, 2 or 4
        (at most S) bytes; others: word number.
    rsp_valid, rsp_data, rsp_error : response
        `rsp_error`: out of range, or an access to a memory while a program runs.
    state : MachineState
    retire, retire_pc : an instruction has been completed
    activity : one bit per unit of `ACTIVITY`
    """

    ACTIVITY: tuple[str, ...] = (
        "sequencer",
        "array",
        "stationary load",
        "vector path",
        "memory write",
        "loss",
        "scalar",
        "host wait",
    )

    def __init__(self, config: Config, *, technology: str = "generic") -> None:
        self.config, self.technology = config, technology
        super().__init__(
            {
                "req_valid": In(1),
                "req_ready": Out(1),
                "req_space": In(2),
                "req_addr": In(24),
                "req_write": In(1),
                "req_size": In(3),
                "req_data": In(32),
                "rsp_valid": Out(1),
                "rsp_data": Out(32),
                "rsp_error": Out(1),
                "state": Out(3),
                "retire": Out(1),
                "retire_pc": Out(16),
                "activity": Out(8),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        bits, size = config.offset_bits, config.word_bytes
        single = config.single_port
        m.submodules.decoder = decoder = Decoder(config)
        m.submodules.engine = engine = ProductEngine(config, technology=self.technology)
        m.submodules.vector = vector = VectorPath(config)
        m.submodules.scalar = scalar = ScalarUnit(config)
        m.submodules.loss = loss = LossUnit(config)
        m.submodules.key = key = KeyUnit()
        m.submodules.random = random = RandomBlock(
            offset_bits=config.offset_bits, lanes=config.lanes
        )
        m.submodules.memory = memory = DataMemory(
            config,
            reads=("a", "b", "u") if single else ("a", "b", "u", "v"),
            writes=("w",) if single else ("w", "x"),
            technology=self.technology,
        )
        m.submodules.program = program = Memory(shape=32, depth=config.program_words, init=[])
        fetch, store = program.read_port(), program.write_port()

        # --- state --------------------------------------------------------------------------------
        state = Signal(3)
        cause = Signal(8)
        pc = Signal(config.pc_bits)
        entry = Signal(config.pc_bits)
        mode = Signal()
        seed, step, loss_sum = Signal(32), Signal(32), Signal(32)
        rate = Signal(signed(6))
        regs = Signal(
            descriptor_layout(config), init={r.name: r.reset for r in REGISTERS if r.reset}
        )
        mm = Signal(mm_layout())
        is_loss = Signal()
        loss_grad, loss_predict = Signal(), Signal()
        counted_pass = Signal(2)
        m.d.comb += self.state.eq(state)

        fault = Signal()
        fault_cause = Signal(8)
        halt_units = Signal()
        abort = Signal()  # the host's reset
        clear_units = Signal()
        m.d.comb += halt_units.eq(fault | abort)
        m.d.sync += clear_units.eq(halt_units)

        running = state == MachineState.RUNNING

        # --- sequencer ----------------------------------------------------------------------------
        word = fetch.data
        m.d.comb += decoder.word.eq(word)
        next_pc = Signal(config.pc_bits + 1)
        target = Signal(config.pc_bits + 1)
        complete = Signal()  # the instruction at pc is done
        m.d.comb += [next_pc.eq(pc + 1), target.eq(next_pc), fetch.addr.eq(pc)]
        loops = [
            Signal(data.StructLayout({"body": config.pc_bits, "left": 16}), name=f"loop_{i}")
            for i in range(LOOP_DEPTH)
        ]
        depth = Signal(range(LOOP_DEPTH + 1))
        begin_run = Signal()
        in_run, in_prepare, in_post = Signal(), Signal(), Signal()
        executing = Signal()
        stops = Signal()  # WAIT or HALT

        operand = word[:24]
        mm_now = data.View(mm_layout(), word[: mm_layout().size])
        loss_instruction = BY_NAME["LOSS"]
        misaligned = Signal()
        if config.lane_bytes == 2:
            always = ("A_BASE", "B_BASE", "O_BASE", "A_SN", "A_SY", "A_SX", "A_TY", "A_TX", "A_Y0")
            always += ("A_X0", "B_R", "O_OFF", "O_S2", "O_S1", "O_S0")
            odd: Value = Cat(
                *[
                    regs[n].as_value()[0] if hasattr(regs[n], "as_value") else regs[n][0]
                    for n in always
                ]
            ).any()
            planes = (
                (mm.out == Result.LOGITS) | (mm.out == Result.MASTER) | (mm.out == Result.MOMENTUM)
            )
            odd = odd | (~mm.transposed & (regs.B_TY[0] | regs.B_TX[0]))
            odd = (
                odd
                | (planes & regs.O_LO[0])
                | (mm.mask & regs.M_BASE[0])
                | (mm.bias & regs.BIAS[0])
            )
            if config.momentum:
                odd = odd | (
                    (mm.out == Result.MOMENTUM)
                    & (regs.V_HI[0] | regs.V_LO[0] | (mm.bias & regs.V_BIAS[0]))
                )
            m.d.comb += misaligned.eq(odd & ~is_loss)

        def fail(reason: ErrorCause | Value) -> None:
            m.d.comb += [fault.eq(1), fault_cause.eq(reason)]

        def leave() -> None:
            """What ends any state: an error, a stop or a pause."""
            with m.If(halt_units | (complete & (stops | mode))):
                m.next = "stopped"

        with m.FSM(name="sequencer"):
            with m.State("stopped"), m.If(running):
                m.next = "execute"
            with m.State("execute"):
                m.d.comb += executing.eq(1)
                with m.If(decoder.error != 0):
                    fail(decoder.error)
                with m.If(decoder.is_set):
                    m.d.comb += complete.eq(1)
                    with m.Switch(word[24:30]):
                        for register in REGISTERS:
                            with m.Case(register.number):
                                shape = register_shape(register, config)
                                value: Value = operand[: shape.width]
                                if register.kind == Kind.ADDRESS:
                                    value = Cat(operand[: bits - 1], operand[22:24])
                                m.d.sync += regs[register.name].eq(value)
                with m.If(decoder.is_halt):
                    m.d.comb += [complete.eq(1), stops.eq(1)]
                    m.d.sync += state.eq(MachineState.HALTED)
                with m.If(decoder.is_wait):
                    m.d.comb += [complete.eq(1), stops.eq(1)]
                    m.d.sync += state.eq(MachineState.WAITING)
                with m.If(decoder.is_step):
                    m.d.comb += complete.eq(1)
                    m.d.sync += step.eq(step + 1)
                with m.If(decoder.is_loop):
                    with m.If(depth == LOOP_DEPTH):
                        fail(ErrorCause.LOOP_STACK)
                    with m.Else():
                        m.d.comb += complete.eq(1)
                        m.d.sync += depth.eq(depth + 1)
                        m.d.sync += [loops[0].body.eq(next_pc), loops[0].left.eq(operand[:16])]
                        m.d.sync += [loops[i].eq(loops[i - 1]) for i in range(1, LOOP_DEPTH)]
                with m.If(decoder.is_endloop):
                    with m.If(depth == 0):
                        fail(ErrorCause.LOOP_STACK)
                    with m.Else():
                        m.d.comb += complete.eq(1)
                        with m.If(loops[0].left != 1):
                            m.d.comb += target.eq(loops[0].body)
                            m.d.sync += loops[0].left.eq(loops[0].left - 1)
                        with m.Else():
                            m.d.sync += depth.eq(depth - 1)
                            m.d.sync += [loops[i].eq(loops[i + 1]) for i in range(LOOP_DEPTH - 1)]
                with m.If(decoder.is_mm | decoder.is_loss):
                    m.d.sync += [
                        mm.eq(mm_now),
                        is_loss.eq(decoder.is_loss),
                        counted_pass.eq(operand[0:2]),
                        loss_grad.eq(operand[loss_instruction.field("grad").low]),
                        loss_predict.eq(operand[loss_instruction.field("predict").low]),
                    ]
                    m.next = "prepare"
                    m.d.comb += [scalar.prepare.eq(1), key.start.eq(1)]
                leave()
            with m.State("prepare"):
                m.d.comb += in_prepare.eq(1)
                with m.If(misaligned):
                    fail(ErrorCause.MISALIGNED)
                with m.Elif(scalar.done):
                    m.next = "begin"
                leave()
            with m.State("begin"):
                m.d.comb += [in_run.eq(1), begin_run.eq(1)]
                m.next = "run"
                leave()
            with m.State("run"):
                m.d.comb += in_run.eq(1)
                with m.If(is_loss):
                    with m.If(loss.error):
                        fail(loss.cause)
                    with m.Elif(loss.done):
                        with m.If(loss_grad):
                            m.d.sync += loss_sum.eq(loss.loss)
                        m.d.comb += scalar.post.eq(1)
                        m.next = "post"
                with m.Else():
                    with m.If(engine.address_fault | vector.fault):
                        fail(ErrorCause.ADDRESS_RANGE)
                    with m.Elif(engine.depth_fault):
                        fail(ErrorCause.ACCUMULATOR_DEPTH)
                    with m.Elif(engine.idle & vector.idle):
                        m.d.comb += scalar.post.eq(1)
                        m.next = "post"
                leave()
            with m.State("post"):
                m.d.comb += in_post.eq(1)
                with m.If(scalar.done):
                    m.d.comb += complete.eq(1)
                    m.next = "execute"
                leave()

        halts = complete & executing & decoder.is_halt
        with m.If(complete & ~halts):
            with m.If(target[-1]):
                fail(ErrorCause.PROGRAM_END)
            with m.Else():
                m.d.sync += pc.eq(target)
                m.d.comb += fetch.addr.eq(target)
                with m.If(mode & ~stops):
                    m.d.sync += state.eq(MachineState.PAUSED)
        with m.If(fault):
            m.d.sync += [state.eq(MachineState.ERROR), cause.eq(fault_cause)]
        m.d.comb += [self.retire.eq(complete), self.retire_pc.eq(pc)]

        # --- units --------------------------------------------------------------------------------
        begin_mm = begin_run & ~is_loss
        running_mm = in_run & ~is_loss
        shift = Signal()
        m.d.sync += shift.eq(vector.advance & running_mm & ~begin_run & ~halt_units)
        for unit in (engine, vector, scalar):
            m.d.comb += [unit.d.regs.eq(regs), unit.d.mm.eq(mm), unit.clear.eq(clear_units)]
        m.d.comb += [
            engine.start.eq(begin_mm),
            engine.advance.eq(vector.advance & running_mm & ~begin_run),
            engine.shift.eq(shift),
            engine.serial.eq(vector.serial),
            vector.start.eq(begin_mm),
            vector.run.eq(running_mm),
            vector.shift.eq(shift),
            vector.arriving.eq(engine.arriving),
            vector.row.eq(engine.row),
            vector.shift_main.eq(scalar.shift_main),
            vector.shift_bias.eq(scalar.shift_bias),
            vector.rnd.eq(Cat(*[random.r[i] for i in range(config.lanes)])),
            scalar.rate.eq(rate),
            scalar.is_loss.eq(is_loss),
            scalar.loss_grad.eq(loss_grad),
            scalar.largest.eq(vector.largest),
            # Without a gradient the loss unit keeps the count of the last one.
            scalar.saturations.eq(
                Mux(is_loss, Mux(loss_grad, loss.saturations, 0), vector.saturations)
            ),
            scalar.loss_shift.eq(loss.shift),
            key.seed.eq(seed),
            key.step.eq(step),
            key.tensor.eq(regs.EXP[12:18]),
            random.en.eq(1),
            random.key.eq(key.key),
            random.use.eq(Mux(is_loss, loss.rnd_use, vector.rnd_use)),
            random.index.eq(Mux(is_loss, loss.rnd_index, vector.rnd_index)),
            random.turn_extra.eq(Mux(is_loss, 0, vector.rnd_turn)),
            loss.start.eq(begin_run & is_loss),
            loss.clear.eq(clear_units),
            loss.z_hi.eq(self._address(regs.A_BASE)),
            loss.z_lo.eq(self._address(regs.B_BASE)),
            loss.labels.eq(self._address(regs.M_BASE)),
            loss.dy.eq(self._address(regs.O_BASE)),
            loss.predictions.eq(self._address(regs.P_BASE)),
            loss.n_samples.eq(regs.N_X),
            loss.n_classes.eq(regs.N_C),
            loss.grad.eq(loss_grad),
            loss.predict.eq(loss_predict),
            loss.rnd_r.eq(random.r[0]),
        ]
        starting = Signal()
        m.d.comb += vector.forget.eq(scalar.forget | starting)

        # --- data memory --------------------------------------------------------------------------
        wiring.connect(m, engine.a, memory.r_a)
        wiring.connect(m, engine.b, memory.r_b)
        if not single:
            wiring.connect(m, vector.v, memory.r_v)
            wiring.connect(m, vector.x, memory.w_x)
        host_read, host_write = Signal(), Signal()
        host_mask = Signal(size)
        m.d.comb += host_mask.eq(Cat(*[self.req_size > i for i in range(min(4, size))]))
        u, w = memory.r_u, memory.w_w
        host_address = self.req_addr
        with m.If(running_mm):
            for name in ("en", "region", "offset", "mask"):
                m.d.comb += [
                    getattr(u, name).eq(getattr(vector.u, name)),
                    getattr(w, name).eq(getattr(vector.w, name)),
                ]
            m.d.comb += w.data.eq(vector.w.data)
        with m.Elif(in_run):
            m.d.comb += [
                u.en.eq(loss.rd_en),
                u.region.eq(loss.rd_addr[22:24]),
                u.offset.eq(loss.rd_addr[:bits]),
                u.mask.eq(1),
                w.en.eq(loss.wr_en),
                w.region.eq(loss.wr_addr[22:24]),
                w.offset.eq(loss.wr_addr[:bits]),
                w.mask.eq(1),
                w.data.eq(loss.wr_data),
            ]
        with m.Else():
            m.d.comb += [
                u.en.eq(host_read),
                u.region.eq(host_address[22:24]),
                u.offset.eq(host_address[:bits]),
                u.mask.eq(host_mask),
                w.en.eq(host_write),
                w.region.eq(host_address[22:24]),
                w.offset.eq(host_address[:bits]),
                w.mask.eq(host_mask),
                w.data.eq(self.req_data),
            ]
        bytes_read: Value = u.data
        if config.lane_bytes == 2:
            # LOSS and the host may address a byte in the upper half of a lane.
            odd, odd_q = Signal(), Signal()
            m.d.comb += odd.eq(Mux(in_run, loss.rd_addr[0], host_address[0]))
            m.d.sync += odd_q.eq(odd)
            with m.If(odd & ~running_mm):
                m.d.comb += [
                    u.offset[0].eq(0),
                    u.mask.eq(Mux(in_run, 2, host_mask << 1)),
                    w.offset[0].eq(0),
                    w.mask.eq(Mux(in_run, 2, host_mask << 1)),
                    w.data.eq(Mux(in_run, loss.wr_data, self.req_data) << 8),
                ]
            bytes_read = Mux(odd_q, u.data >> 8, u.data)
        m.d.comb += [
            vector.u.data.eq(u.data),
            vector.u.oor.eq(u.oor),
            vector.w.oor.eq(w.oor),
            loss.rd_data.eq(bytes_read),
            loss.rd_oor.eq(u.oor),
            loss.wr_oor.eq(w.oor),
        ]

        # --- counters -----------------------------------------------------------------------------
        counters = {c.name: Signal(32, name=c.name.lower()) for c in CSRS if c.number >= 16}
        waiting = (state == MachineState.WAITING) | (state == MachineState.PAUSED)
        working = running & (in_prepare | in_run | in_post)
        held, written, seen = Signal(), Signal(), Signal()
        m.d.sync += [held.eq(vector.holding), written.eq(vector.writing)]
        with m.If(begin_run):
            m.d.sync += seen.eq(0)
        with m.Elif(engine.multiplying):
            m.d.sync += seen.eq(1)
        mm_works = working & ~is_loss
        array_busy = in_run & engine.multiplying
        pausing_write = in_run & ~array_busy & written & ~is_loss
        pausing_emit = in_run & ~array_busy & ~written & held & ~is_loss
        loading = in_run & ~array_busy & ~written & ~held & seen & ~engine.finishing & ~is_loss
        events = {
            "CYCLES": running,
            "WAIT_CYCLES": waiting,
            "CYCLES_FORWARD": working & (counted_pass == Pass.FORWARD),
            "CYCLES_DX": working & (counted_pass == Pass.DX),
            "CYCLES_DW": working & (counted_pass == Pass.DW),
            "CYCLES_OTHER": working & (counted_pass == Pass.OTHER),
            "BUSY": array_busy,
            "STALL_EMIT": pausing_emit,
            "STALL_WRITE": pausing_write,
            "STALL_LOAD": loading,
            "STALL_FILL": mm_works & ~(array_busy | pausing_write | pausing_emit | loading),
            "INSTRUCTIONS": complete,
            "DESCRIPTOR": running & ~working,
        }
        clear_counters = Signal()
        for name, counter in counters.items():
            with m.If(clear_counters):
                m.d.sync += counter.eq(0)
            with m.Elif(events[name]):
                m.d.sync += counter.eq(counter + 1)
        m.d.comb += self.activity.eq(
            Cat(
                running & ~working,
                array_busy,
                in_run & engine.loading,
                in_run & ~is_loss & vector.holding,
                in_run & w.en,
                in_run & is_loss,
                in_prepare | in_post,
                waiting,
            )
        )

        # --- host port ----------------------------------------------------------------------------
        m.d.comb += self.req_ready.eq(1)
        refused = Signal()
        table = {
            "ID": Const(DEVICE_ID, 32),
            "VERSION": Const(ISA_VERSION, 32),
            "CONFIG": Const(config.digest(), 32),
            "STATUS": Cat(state, Const(0, 1), cause, Const(0, 4), pc),
            "ENTRY": entry,
            "MODE": mode,
            "SEED": seed,
            "STEP": step,
            "RATE": rate,
            "LOSS": loss_sum,
            **counters,
        }
        csr_value = Signal(32)
        with m.Switch(self.req_addr):
            for csr in CSRS:
                if csr.name in table:
                    with m.Case(csr.number):
                        value = table[csr.name]
                        m.d.comb += csr_value.eq(value)
        csr_q, space_q = Signal(32), Signal(2)
        m.d.sync += [
            self.rsp_valid.eq(self.req_valid),
            space_q.eq(self.req_space),
            csr_q.eq(csr_value),
        ]
        m.d.sync += self.rsp_error.eq(refused)
        with m.Switch(space_q):
            with m.Case(Space.CSR):
                m.d.comb += self.rsp_data.eq(csr_q)
            with m.Case(Space.MEMORY):
                m.d.comb += self.rsp_data.eq(bytes_read)
            with m.Case(Space.PROGRAM):
                m.d.comb += self.rsp_data.eq(fetch.data)
            with m.Case(Space.EXPONENTS):
                m.d.comb += self.rsp_data.eq(scalar.host_result)
        m.d.comb += [
            store.addr.eq(self.req_addr),
            store.data.eq(self.req_data),
            scalar.host_addr.eq(self.req_addr),
            scalar.host_data.eq(self.req_data),
            scalar.host_write.eq(self.req_write),
        ]
        with m.If(self.req_valid):
            with m.If((self.req_space != Space.CSR) & running):
                m.d.comb += refused.eq(1)
            with m.Else(), m.Switch(self.req_space):
                with m.Case(Space.MEMORY):
                    m.d.comb += [
                        host_read.eq(~self.req_write),
                        host_write.eq(self.req_write),
                        refused.eq(u.oor | w.oor),
                    ]
                with m.Case(Space.PROGRAM):
                    with m.If(self.req_addr >= config.program_words):
                        m.d.comb += refused.eq(1)
                    with m.Else():
                        m.d.comb += store.en.eq(self.req_write)
                        with m.If(~self.req_write):
                            m.d.comb += fetch.addr.eq(self.req_addr)
                with m.Case(Space.EXPONENTS):
                    with m.If(self.req_addr >= 2 * TENSORS):
                        m.d.comb += refused.eq(1)
                    with m.Else():
                        m.d.comb += scalar.host_en.eq(1)
        with m.If(self.req_valid & self.req_write & (self.req_space == Space.CSR)):
            written_csr = {
                "ENTRY": entry,
                "MODE": mode,
                "SEED": seed,
                "STEP": step,
                "RATE": rate,
            }
            with m.Switch(self.req_addr):
                for name, register in written_csr.items():
                    with m.Case(CSR_BY_NAME[name].number):
                        m.d.sync += register.eq(self.req_data)
                with m.Case(CSR_BY_NAME["CONTROL"].number):
                    control = self.req_data
                    idle_now = (
                        (state == MachineState.IDLE)
                        | (state == MachineState.HALTED)
                        | control[CONTROL_RESET]
                    )
                    m.d.comb += clear_counters.eq(control[CONTROL_CLEAR])
                    with m.If(control[CONTROL_RESET]):
                        m.d.comb += abort.eq(1)
                        m.d.sync += [state.eq(MachineState.IDLE), cause.eq(0)]
                    with m.If(control[CONTROL_START] & idle_now):
                        m.d.comb += starting.eq(1)
                        m.d.sync += [state.eq(MachineState.RUNNING), pc.eq(entry), depth.eq(0)]
                    with m.Elif(control[CONTROL_RESUME] & waiting):
                        m.d.sync += state.eq(MachineState.RUNNING)
        return m

    def _address(self, register: Value) -> Value:
        """An ADDRESS register as a 24-bit address."""
        bits = self.config.offset_bits
        return Cat(register[: bits - 1], Const(0, 22 - (bits - 1)), register[bits - 1 :])
