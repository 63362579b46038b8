"""The scalar unit: exponent table, shift amounts before an instruction, trackers after it.

The table is one memory of 128 words: an entry per tensor, and its number of saturated elements.
Both sequences take a fixed number of cycles.
"""

from __future__ import annotations

from amaranth.hdl import Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import TENSORS, Config
from gradiron.arch.isa import Out as Result
from gradiron.arch.isa import Track
from gradiron.arch.numerics import (
    BIAS_EXPONENT,
    EXPONENT_MAX,
    EXPONENT_MIN,
    HYSTERESIS,
    LOGIT_EXPONENT,
    MASTER_FRACTION,
    PROBABILITY_BITS,
    SHIFT_MAX,
    SHIFT_MIN,
)
from gradiron.arch.timing import POST_CYCLES, PREPARE_CYCLES
from gradiron_hw.descriptor import bundle

ENTRY = data.StructLayout({"exponent": signed(8), "tracker": signed(8), "low": 3, "spare": 13})
"""A word of the exponent table, as `gradiron.arch.isa.pack_exponent`."""


class ScalarUnit(wiring.Component):
    """Exponents.

    Members
    -------
    d : descriptor registers and MM fields
    rate : learning rate exponent k
    prepare, post : begin a sequence (one cycle); `done` is high in its last cycle
    is_loss : the instruction is LOSS
    shift_main, shift_bias : shift amounts, valid after `prepare`
    largest, saturations, loss_shift : results of the instruction, used by `post`
    forget : the tracker's maximum has been used
    host_* : the host's access while nothing runs: data one cycle after `host_en`
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "d": In(bundle(config)),
                "rate": In(signed(6)),
                "prepare": In(1),
                "post": In(1),
                "done": Out(1),
                "clear": In(1),
                "is_loss": In(1),
                "loss_grad": In(1),
                "shift_main": Out(signed(6)),
                "shift_bias": Out(signed(6)),
                "largest": In(32),
                "saturations": In(24),
                "loss_shift": In(5),
                "forget": Out(1),
                "host_en": In(1),
                "host_write": In(1),
                "host_addr": In(7),
                "host_data": In(32),
                "host_result": Out(32),
            }
        )

    @staticmethod
    def _limit(value: Value, low: int, high: int) -> Value:
        return Mux(
            value < low, Const(low, signed(8)), Mux(value > high, Const(high, signed(8)), value)
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.table = memory = Memory(shape=32, depth=2 * TENSORS, init=[])
        read, write = memory.read_port(), memory.write_port()
        r, mm = self.d.regs, self.d.mm
        index_a, index_b, index_o = r.EXP[0:6], r.EXP[6:12], r.EXP[12:18]

        entry = data.View(ENTRY, read.data)
        kept = Signal(ENTRY)  # the result's entry
        ea, eb = Signal(signed(8)), Signal(signed(8))
        acc, used = Signal(signed(9)), Signal(signed(8))
        count = Signal(range(max(PREPARE_CYCLES, POST_CYCLES)))
        raw_main, raw_bias = Signal(signed(12)), Signal(signed(12))
        update = Signal(signed(12))

        m.d.comb += [
            self.host_result.eq(read.data),
            read.addr.eq(self.host_addr),
            read.en.eq(1),
            write.addr.eq(self.host_addr),
            write.data.eq(self.host_data),
            write.en.eq(self.host_en & self.host_write),
        ]
        higher = Signal(signed(9))
        m.d.comb += [
            higher.eq(Mux(kept.tracker > acc, kept.tracker, acc)),
            update.eq(self.rate + r.SHIFT),
        ]
        with m.Switch(mm.out):
            with m.Case(Result.INT8):
                m.d.comb += raw_main.eq(used - acc)
            with m.Case(Result.LOGITS):
                m.d.comb += raw_main.eq(LOGIT_EXPONENT - acc)
            with m.Case(Result.MASTER):
                m.d.comb += raw_main.eq(kept.exponent - MASTER_FRACTION - acc + update)
            with m.Case(Result.INT8_WEIGHTS):
                m.d.comb += raw_main.eq(kept.exponent - acc + update)
            with m.Default():
                m.d.comb += raw_main.eq(kept.exponent - MASTER_FRACTION - 4 - acc + update)
        m.d.comb += raw_bias.eq(
            Mux(mm.transposed, BIAS_EXPONENT - eb + update, acc - BIAS_EXPONENT)
        )

        # Tracker: the exponent that the largest magnitude needs.
        length = Signal(6)
        for bit in range(32):
            with m.If(self.largest[bit]):
                m.d.comb += length.eq(bit + 1)
        need, need_now = Signal(signed(8)), Signal(signed(10))
        m.d.comb += need_now.eq(acc + Mux(length > 7, length - 7, 0))
        total = Signal(33)
        m.d.comb += total.eq(read.data + self.saturations)
        after = Signal(ENTRY)
        m.d.comb += after.eq(kept)
        with m.If(self.is_loss):
            m.d.comb += after.exponent.eq(self.loss_shift - PROBABILITY_BITS)
        with m.Elif(mm.out == Result.LOGITS):
            m.d.comb += after.exponent.eq(LOGIT_EXPONENT)
        with m.Elif(mm.out == Result.INT8):
            m.d.comb += after.exponent.eq(used)
            with m.If((mm.track == Track.TRACK) & (self.largest != 0)):
                with m.If(need > kept.tracker):
                    m.d.comb += [after.tracker.eq(need), after.low.eq(0)]
                with m.Elif(need == kept.tracker):
                    m.d.comb += after.low.eq(0)
                with m.Elif(kept.low == HYSTERESIS - 1):
                    m.d.comb += [
                        after.tracker.eq(
                            Mux(kept.tracker == EXPONENT_MIN, EXPONENT_MIN, kept.tracker - 1)
                        ),
                        after.low.eq(0),
                    ]
                with m.Else():
                    m.d.comb += after.low.eq(kept.low + 1)

        with m.FSM(name="scalar"):
            with m.State("idle"):
                m.d.sync += count.eq(1)
                with m.If(self.prepare):
                    m.d.comb += read.addr.eq(index_a)
                    m.next = "prepare"
                with m.Elif(self.post):
                    m.d.comb += read.addr.eq(TENSORS + index_o)
                    m.next = "post"
            with m.State("prepare"):
                m.d.sync += count.eq(count + 1)
                with m.Switch(count):
                    with m.Case(1):
                        m.d.comb += read.addr.eq(index_b)
                        m.d.sync += ea.eq(entry.exponent)
                    with m.Case(2):
                        m.d.comb += read.addr.eq(index_o)
                        m.d.sync += eb.eq(entry.exponent)
                    with m.Case(3):
                        m.d.sync += [kept.eq(entry), acc.eq(ea + eb)]
                    with m.Case(4):
                        m.d.sync += used.eq(self._limit(higher, EXPONENT_MIN, EXPONENT_MAX))
                    with m.Case(5):
                        m.d.sync += [
                            self.shift_main.eq(self._limit(raw_main, SHIFT_MIN, SHIFT_MAX)),
                            self.shift_bias.eq(self._limit(raw_bias, SHIFT_MIN, SHIFT_MAX)),
                        ]
                with m.If(self.clear):
                    m.next = "idle"
                with m.Elif(count == PREPARE_CYCLES - 1):
                    m.d.comb += self.done.eq(1)
                    m.next = "idle"
            with m.State("post"):
                m.d.sync += count.eq(count + 1)
                with m.Switch(count):
                    with m.Case(1):
                        m.d.comb += [
                            write.addr.eq(TENSORS + index_o),
                            write.data.eq(Mux(total[32], 0xFFFFFFFF, total)),
                            write.en.eq(1),
                        ]
                        m.d.sync += need.eq(self._limit(need_now, EXPONENT_MIN, EXPONENT_MAX))
                    with m.Case(2):
                        m.d.comb += [
                            write.addr.eq(index_o),
                            write.data.eq(after),
                            write.en.eq(~self.is_loss | self.loss_grad),
                            self.forget.eq(
                                ~self.is_loss & (mm.track == Track.TRACK) & (mm.out == Result.INT8)
                            ),
                        ]
                with m.If(self.clear):
                    m.next = "idle"
                with m.Elif(count == POST_CYCLES - 1):
                    m.d.comb += self.done.eq(1)
                    m.next = "idle"
        return m
