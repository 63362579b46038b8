"""The core: the sequencer, and all units put together.

The sequencer fetches a word per cycle. A SET, LOOP, WAIT and HALT take one cycle; MM and LOSS
prepare (exponents, shift amounts, random key), run, and finish (saturations, tracker). Any error
stops all units at once.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import Config
from gradiron.arch.isa import (
    BY_NAME,
    LOOP_DEPTH,
    STATUS_CAUSE_SHIFT,
    STATUS_PC_SHIFT,
    BMode,
    Control,
    ErrorCause,
    MachineState,
)
from gradiron.arch.isa import Out as Result
from gradiron_hw.control import ControlStore
from gradiron_hw.decoder import Decoder
from gradiron_hw.descriptor import DescriptorRegisters, mm_layout
from gradiron_hw.engine import ProductEngine
from gradiron_hw.host import HostPort
from gradiron_hw.loss import LossUnit
from gradiron_hw.memory import DataMemory
from gradiron_hw.random import KeyUnit, RandomBlock
from gradiron_hw.scalar import ScalarUnit
from gradiron_hw.state import EVENTS, StateMemory
from gradiron_hw.vector import VectorPath

INSTRUCTION = data.StructLayout({"mm": mm_layout(), "is_loss": 1})
"""An MM, or a LOSS with its fields in the same bits."""


class Core(wiring.Component):
    """A whole machine behind its host port.

    A request is held until `req_ready`; its response comes in the next cycle, until the end of
    which `req_data` stays.

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
        m.submodules.registers = registers = DescriptorRegisters(config)
        m.submodules.control = control = ControlStore(config)
        m.submodules.state_memory = words = StateMemory(config)
        m.submodules.host = host = HostPort(config)
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
            reads=("a", "b", "u") if config.stepwise else ("a", "b", "u", "v"),
            writes=("w",) if config.stepwise else ("w", "x"),
            technology=self.technology,
        )
        m.submodules.program = program = Memory(shape=32, depth=config.program_words, init=[])
        fetch, store = program.read_port(), program.write_port()

        # --- state --------------------------------------------------------------------------------
        state = Signal(3)
        cause = Signal(range(max(ErrorCause) + 1))
        pc = Signal(config.pc_bits)
        mode = Signal()
        m.d.comb += self.state.eq(state)
        running = Signal()
        waiting = (state == MachineState.WAITING) | (state == MachineState.PAUSED)
        m.d.comb += running.eq(state == MachineState.RUNNING)

        fault = Signal()
        fault_cause = Signal(range(max(ErrorCause) + 1))
        halt_units = Signal()
        abort = Signal()  # the host's reset
        clear_units = Signal()
        m.d.comb += halt_units.eq(fault | abort)
        m.d.sync += clear_units.eq(halt_units)

        # --- the instruction ----------------------------------------------------------------------
        word = fetch.data
        operand = word[:24]
        loss_instruction = BY_NAME["LOSS"]
        of_word = data.View(INSTRUCTION, Cat(operand[: mm_layout().size], decoder.of_loss))
        instruction = Signal(INSTRUCTION)
        if single:
            # The word stays where it is while the instruction is executed.
            m.d.comb += instruction.eq(of_word)
        else:
            with m.If(decoder.is_mm | decoder.is_loss):
                m.d.sync += instruction.eq(of_word)
        mm, is_loss = instruction.mm, instruction.is_loss
        fields = mm.as_value()
        counted_pass = mm["pass"]
        loss_grad = fields[loss_instruction.field("grad").low]
        loss_predict = fields[loss_instruction.field("predict").low]

        # --- sequencer ----------------------------------------------------------------------------
        m.d.comb += decoder.word.eq(word)
        complete = Signal()  # the instruction at pc is done
        following = Signal(config.pc_bits + 1)
        target = Signal(config.pc_bits)
        ends = Signal()  # beyond the program memory
        back = Signal()  # to the body of the innermost loop
        m.d.comb += [
            following.eq(pc + complete),
            target.eq(Mux(back, control.body, following)),
            ends.eq(following[-1] & ~back),
            fetch.addr.eq(Mux(host.program_read, self.req_addr, target)),
            control.next_pc.eq(following),
            control.count.eq(operand),
        ]
        begin_run = Signal()
        in_run, in_prepare, in_post = Signal(), Signal(), Signal()
        at_loop = Signal()  # the control store shows a loop
        executing, stops, halts = Signal(), Signal(), Signal()

        def fail(reason: ErrorCause | Value) -> None:
            m.d.comb += [fault.eq(1), fault_cause.eq(reason)]

        def leave() -> None:
            """What ends any state: an error, a stop or a pause."""
            with m.If(halt_units | (complete & (stops | mode))):
                m.next = "stopped"

        m.d.comb += [
            registers.number.eq(word[24:30]),
            registers.operand.eq(operand),
            registers.mm.eq(mm),
        ]
        with m.FSM(name="sequencer"):
            with m.State("stopped"), m.If(running):
                m.next = "execute"
            with m.State("execute"):
                m.d.comb += executing.eq(1)
                with m.If(decoder.error != 0):
                    fail(decoder.error)
                with m.If(decoder.is_set):
                    m.d.comb += [complete.eq(1), registers.write.eq(1)]
                with m.If(decoder.is_halt):
                    m.d.comb += [complete.eq(1), stops.eq(1), halts.eq(1)]
                    m.d.sync += state.eq(MachineState.HALTED)
                with m.If(decoder.is_wait):
                    m.d.comb += [complete.eq(1), stops.eq(1)]
                    m.d.sync += state.eq(MachineState.WAITING)
                with m.If(decoder.is_step):
                    m.d.comb += scalar.count_step.eq(1)
                    m.next = "step"
                with m.If(decoder.is_loop):
                    with m.If(control.depth == LOOP_DEPTH):
                        fail(ErrorCause.LOOP_STACK)
                    with m.Else():
                        m.d.comb += [complete.eq(1), control.push.eq(1)]
                with m.If(decoder.is_endloop):
                    m.d.comb += control.top.eq(1)
                    with m.If(control.depth == 0):
                        fail(ErrorCause.LOOP_STACK)
                    m.next = "endloop"
                with m.If(decoder.is_mm | decoder.is_loss):
                    m.next = "prepare"
                    m.d.comb += [scalar.prepare.eq(1), key.start.eq(1)]
                leave()
            with m.State("step"):
                with m.If(scalar.done):
                    m.d.comb += complete.eq(1)
                    m.next = "execute"
                leave()
            with m.State("endloop"):
                m.d.comb += [
                    at_loop.eq(1),
                    complete.eq(1),
                    control.again.eq(1),
                    back.eq(control.left),
                    control.pop.eq(~control.left),
                ]
                m.next = "execute"
                leave()
            with m.State("prepare"):
                m.d.comb += in_prepare.eq(1)
                with m.If(registers.odd & ~is_loss):
                    fail(ErrorCause.MISALIGNED)
                with m.Elif((mm.b == BMode.GATE) & vector.serial & ~is_loss):
                    fail(ErrorCause.REGION_CONFLICT)
                with m.Elif((mm.out == Result.LOSS) & ~registers.single & ~is_loss):
                    fail(ErrorCause.OPERAND_RANGE)
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

        with m.If(complete & ~halts):
            with m.If(ends):
                fail(ErrorCause.PROGRAM_END)
            with m.Else():
                m.d.sync += pc.eq(target)
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
            m.d.comb += [
                unit.d.regs.eq(registers.regs),
                unit.d.mm.eq(mm),
                unit.clear.eq(clear_units),
            ]
        regs = registers.regs
        starting = Signal()
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
            vector.shift_skip.eq(scalar.shift_skip),
            vector.rnd.eq(Cat(*[random.r[i] for i in range(config.lanes)])),
            vector.forget.eq(scalar.forget | starting),
            scalar.is_loss.eq(is_loss),
            scalar.loss_grad.eq(loss_grad),
            scalar.pass_.eq(counted_pass),
            scalar.step.eq(control.step),
            scalar.word.eq(words.word),
            scalar.largest.eq(vector.largest),
            scalar.loss_shift.eq(loss.shift),
            control.address.eq(scalar.next_step),
            key.round.eq(scalar.key_round),
            key.addend.eq(words.word),
            key.tagged.eq(scalar.key_tensor),
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
            words.active.eq(scalar.active),
            words.blind.eq(scalar.leading | at_loop),
            words.address.eq(scalar.address),
            words.store.eq(scalar.store),
            words.bytes.eq(scalar.bytes),
            words.raised.eq(scalar.raised),
            words.stepped.eq(scalar.stepped),
            words.exponent.eq(scalar.exponent),
            words.pass_.eq(counted_pass),
            words.saturated.eq(Mux(is_loss, loss.saturated, vector.saturated)),
            words.abandon.eq(clear_units),
            words.row.eq(engine.row),
            words.capture.eq(
                shift
                & running_mm
                & engine.arriving.valid
                & engine.arriving.last
                & (mm.out == Result.LOSS)
            ),
            words.loss.eq(loss.loss),
        ]

        # --- data memory --------------------------------------------------------------------------
        wiring.connect(m, engine.a, memory.r_a)
        wiring.connect(m, engine.b, memory.r_b)
        if not config.stepwise:
            wiring.connect(m, vector.v, memory.r_v)
            wiring.connect(m, vector.x, memory.w_x)
        u, w = memory.r_u, memory.w_w
        # LOSS and the host read and write single bytes, or words in the first bytes of a window.
        side = Signal(24)
        side_odd = Signal()
        side_byte = Signal()
        side_mask = Signal(size)
        side_data = Signal(32)
        m.d.comb += [
            side.eq(Mux(in_run, loss.rd_addr, self.req_addr)),
            side_byte.eq(in_run | (self.req_size == 1)),
            side_mask.eq(Mux(in_run, 1, Cat(*[self.req_size > i for i in range(min(4, size))]))),
            # Only LOSS's byte counts of its word.
            side_data.eq(Cat(Mux(in_run, loss.wr_data, self.req_data[:8]), self.req_data[8:])),
        ]
        if config.lane_bytes == 2:
            # A byte may lie in the upper half of a lane.
            m.d.comb += side_odd.eq(side[0] & side_byte)
            with m.If(side_byte):
                m.d.comb += [
                    side_mask[:2].eq(Cat(~side[0], side[0])),
                    side_data[8:16].eq(side_data[:8]),
                ]
        for channel, own, enable in (
            (u, vector.u, Mux(in_run, loss.rd_en, host.memory_read)),
            (w, vector.w, Mux(in_run, loss.wr_en, host.memory_write)),
        ):
            m.d.comb += [
                channel.en.eq(Mux(running_mm, own.en, enable)),
                channel.region.eq(Mux(running_mm, own.region, side[22:24])),
                channel.offset.eq(Mux(running_mm, own.offset, side[:bits])),
                channel.mask.eq(Mux(running_mm, own.mask, side_mask)),
            ]
            if config.lane_bytes == 2:
                m.d.comb += channel.offset[0].eq(Mux(running_mm, own.offset[0], 0))
        m.d.comb += [
            w.data.eq(Mux(running_mm, vector.w.data, side_data)),
            vector.u.data.eq(u.data),
            vector.u.oor.eq(u.oor),
            vector.w.oor.eq(w.oor),
        ]
        bytes_read = Signal(8 * size)
        odd_before = Signal()
        m.d.sync += odd_before.eq(side_odd)
        m.d.comb += bytes_read.eq(Cat(Mux(odd_before, u.data[8:16], u.data[:8]), u.data[8:]))
        m.d.comb += [
            loss.rd_data.eq(bytes_read),
            loss.rd_oor.eq(u.oor),
            loss.wr_oor.eq(w.oor),
        ]

        # --- counters -----------------------------------------------------------------------------
        working = running & (in_prepare | in_run | in_post)
        held, written, seen = Signal(), Signal(), Signal()
        m.d.sync += [held.eq(vector.holding), written.eq(vector.writing)]
        with m.If(begin_run):
            m.d.sync += seen.eq(0)
        with m.Elif(engine.multiplying):
            m.d.sync += seen.eq(1)
        array_busy = in_run & engine.multiplying
        pausing_write = running_mm & ~array_busy & written
        pausing_emit = running_mm & ~array_busy & ~written & held
        loading = running_mm & ~array_busy & ~written & ~held & seen & ~engine.finishing
        events: dict[str, Value] = {
            "CYCLES": running,
            "WAIT_CYCLES": waiting,
            # From the cycle of decoding on, so that the last cycle has nothing left to count.
            "PASS": (scalar.prepare | working) & ~complete & ~fault,
            "BUSY": array_busy,
            "STALL_EMIT": pausing_emit,
            "STALL_WRITE": pausing_write,
            "STALL_LOAD": loading,
            "STALL_FILL": working
            & ~is_loss
            & ~(array_busy | pausing_write | pausing_emit | loading),
            "INSTRUCTIONS": complete,
            "DESCRIPTOR": running & ~working,
        }
        assert events.keys() | {"SATURATIONS"} == EVENTS.keys()
        for name, event in events.items():
            m.d.comb += getattr(words, f"event_{name.lower()}").eq(event)
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

        # --- host ---------------------------------------------------------------------------------
        for name in ("req_valid", "req_space", "req_addr", "req_write", "req_data"):
            m.d.comb += getattr(host, name).eq(getattr(self, name))
        for name in ("req_ready", "rsp_valid", "rsp_data", "rsp_error"):
            m.d.comb += getattr(self, name).eq(getattr(host, name))
        command = host.control
        low = Cat(state, Const(0, STATUS_CAUSE_SHIFT - len(state)), cause)
        m.d.comb += [
            host.running.eq(running),
            host.status.eq(Cat(low, Const(0, STATUS_PC_SHIFT - len(low)), pc)),
            host.word_taken.eq(words.host_taken),
            host.word.eq(words.sum),
            host.program_data.eq(word),
            host.memory_outside.eq(u.oor | w.oor),
            host.memory_data.eq(bytes_read),
            words.host_request.eq(host.word_request),
            words.host_number.eq(host.word_number),
            words.host_write.eq(host.word_write),
            words.host_data.eq(self.req_data),
            words.clear_counters.eq(command[Control.CLEAR]),
            store.addr.eq(self.req_addr),
            store.data.eq(self.req_data),
            store.en.eq(host.program_write),
            abort.eq(command[Control.RESET]),
        ]
        with m.If(host.mode_write):
            m.d.sync += mode.eq(self.req_data[0])
        idle_now = (
            (state == MachineState.IDLE) | (state == MachineState.HALTED) | command[Control.RESET]
        )
        with m.If(command[Control.RESET]):
            m.d.sync += [state.eq(MachineState.IDLE), cause.eq(0)]
        m.d.comb += [
            starting.eq(command[Control.START] & idle_now),
            control.empty.eq(starting),
        ]
        with m.If(starting):
            m.d.sync += [state.eq(MachineState.RUNNING), pc.eq(words.word)]
        with m.Elif(command[Control.RESUME] & waiting):
            m.d.sync += state.eq(MachineState.RUNNING)
        return m

    def _address(self, register: Value) -> Value:
        """An ADDRESS register as a 24-bit address."""
        bits = self.config.offset_bits
        return Cat(register[: bits - 1], Const(0, 22 - (bits - 1)), register[bits - 1 :])
