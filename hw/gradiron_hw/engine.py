"""The product engine: streamed words through transposer and array into the accumulators.

Stages, all moving with `shift`: word register of the stream, input register of the array, products,
adder tree, accumulator sum. The accumulator memory (one row of C int32 per streamed row of a tile)
is read a stage before the sums arrive and written when the sum has been formed; finished rows
go to the vector path instead, which holds the stages while it works.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import Config
from gradiron.arch.isa import BMode
from gradiron.arch.isa import Out as Result
from gradiron_hw.array import MacArray, Transposer, array_latency, ones
from gradiron_hw.descriptor import bundle
from gradiron_hw.memory import read_channel
from gradiron_hw.stream import Stream, row_tag


class ProductEngine(wiring.Component):
    """Stream, transposer, array and accumulators.

    Parameters
    ----------
    config : Config
    technology : str
        As for `cells.DotPair`.

    Members
    -------
    d, start, clear, advance, shift, serial, a, b : as in `Stream`
    address_fault : a needed operand byte is out of range
    depth_fault : more rows than the accumulator memory has
    idle : nothing is left between the nest and the finished rows
    multiplying : a row enters the products in this cycle
    loading : a word of the next stationary tile is shifted in
    finishing : all operands have been fetched
    arriving : tag of the row whose sum is formed with this `shift`
    row : C int32 of the row whose sum was formed last
    """

    def __init__(self, config: Config, *, technology: str = "generic") -> None:
        self.config, self.technology = config, technology
        super().__init__(
            {
                "d": In(bundle(config)),
                "start": In(1),
                "clear": In(1),
                "advance": In(1),
                "shift": In(1),
                "serial": In(1),
                "a": Out(read_channel(config)),
                "b": Out(read_channel(config)),
                "address_fault": Out(1),
                "depth_fault": Out(1),
                "idle": Out(1),
                "multiplying": Out(1),
                "loading": Out(1),
                "finishing": Out(1),
                "arriving": Out(row_tag()),
                "row": Out(32 * config.cols),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        rows, cols = config.rows, config.cols
        m.submodules.stream = stream = Stream(config, technology=self.technology)
        m.submodules.transposer = transposer = Transposer(config)
        m.submodules.array = array = MacArray(config, technology=self.technology)
        wiring.connect(m, wiring.flipped(self.a), stream.a)
        wiring.connect(m, wiring.flipped(self.b), stream.b)
        transposed = self.d.mm.transposed
        m.d.comb += [
            stream.d.regs.eq(self.d.regs),
            stream.d.mm.eq(self.d.mm),
            stream.start.eq(self.start),
            stream.clear.eq(self.clear),
            stream.advance.eq(self.advance),
            stream.shift.eq(self.shift),
            stream.serial.eq(self.serial),
            self.address_fault.eq(stream.fault),
            self.loading.eq(stream.load & self.shift),
            self.finishing.eq(~stream.busy),
        ]

        # Rows leave the transposer R words after the words they came with: their tags wait as long.
        waiting = [Signal(row_tag(), name=f"waiting_{i}") for i in range(rows)]
        turn = Signal()
        m.d.comb += [
            turn.eq(self.shift & stream.take),
            transposer.i.eq(stream.x),
            transposer.shift.eq(turn),
            transposer.restart.eq(self.start),
        ]
        with m.If(turn):
            m.d.sync += [waiting[0].eq(stream.tag)]
            m.d.sync += [waiting[i].eq(waiting[i - 1]) for i in range(1, rows)]

        entering = Signal(row_tag())
        with m.If(~transposed | stream.tag.ones):
            m.d.comb += entering.eq(stream.tag)
        with m.Elif(stream.take):
            m.d.comb += entering.eq(waiting[-1])
        m.d.comb += [
            array.en.eq(self.shift),
            array.x.eq(Mux(stream.tag.ones, ones(config), Mux(transposed, transposer.o, stream.x))),
            array.swap.eq(entering.valid & entering.swap),
            array.load.eq(stream.load),
            array.by_columns.eq(self.d.mm.b == BMode.COLUMNS),
            array.b.eq(stream.b_word),
        ]

        latency = array_latency(config)
        tags = [Signal(row_tag(), name=f"tag_{i}") for i in range(latency + 2)]
        with m.If(self.shift):
            m.d.sync += tags[0].eq(entering)
            m.d.sync += [tags[i].eq(tags[i - 1]) for i in range(1, len(tags))]
        m.d.comb += self.multiplying.eq(self.shift & tags[0].valid)

        m.submodules.accumulators = memory = Memory(
            shape=32 * cols, depth=config.acc_depth, init=[]
        )
        read, write = memory.read_port(), memory.write_port(granularity=32)
        depth_bits = config.acc_depth.bit_length() - 1
        count = Signal(depth_bits + 1)
        position = Signal(depth_bits + 1)
        ahead, summed = tags[latency - 1], tags[latency]
        addresses = [Signal(depth_bits, name=f"address_{i}") for i in range(2)]
        total = Signal(32 * cols)
        # The weight gradient by channel: of the rows of a tap, row c sums up column c alone. They
        # share a row of the memory, and leave with the last one.
        by_channel = transposed & (self.d.mm.b == BMode.DIAGONAL)
        narrow = min(rows, cols)
        lane_ahead, lane, lane_written = (
            Signal(range(narrow), name=f"lane_{n}") for n in ("ahead", "summed", "written")
        )
        single_ahead, single_lane, single_written = (
            Signal(name=f"single_{n}") for n in ("ahead", "summed", "written")
        )
        m.d.comb += single_ahead.eq(by_channel & ~ahead.ones)
        with m.If(self.start):
            m.d.sync += lane_ahead.eq(0)
        with m.Elif(self.shift & ahead.valid & single_ahead):
            m.d.sync += lane_ahead.eq(lane_ahead + 1)
        with m.If(self.shift):
            m.d.sync += [
                lane.eq(lane_ahead),
                single_lane.eq(single_ahead),
                lane_written.eq(lane),
                single_written.eq(single_lane),
            ]
        m.d.comb += [
            position.eq(Mux(ahead.swap, 0, count)),
            read.addr.eq(position),
            read.en.eq(self.shift),
            self.depth_fault.eq(self.shift & ahead.valid & position[-1]),
            write.addr.eq(addresses[1]),
            write.data.eq(total),
            self.row.eq(total),
            self.arriving.eq(summed),
            self.arriving.last.eq(summed.last & ~(single_lane & (lane != narrow - 1))),
        ]
        with m.If(self.shift):
            with m.If(ahead.valid):
                m.d.sync += count.eq(position + ~(single_ahead & (lane_ahead != narrow - 1)))
            m.d.sync += [addresses[0].eq(position), addresses[1].eq(addresses[0])]

        # Pooling: the accumulator is the largest of 256 * byte + 255 - (tap mod 16). Comparing the
        # bytes is enough, as of equal ones the first stays.
        pooled = self.d.mm.out == Result.POOLED
        tap = Signal(4)
        first_tap = Signal()
        with m.If(self.shift & ahead.valid & ahead.swap):
            m.d.sync += [tap.eq(Mux(ahead.first, 0, tap + 1)), first_tap.eq(ahead.first)]
        width = array.sum_bits
        for c in range(cols):
            part = array.sums[width * c : width * (c + 1)].as_signed()
            held = read.data[32 * c : 32 * c + 32].as_signed()
            takes, chosen = Signal(name=f"takes_{c}"), Signal(name=f"chosen_{c}")
            fresh = Signal(name=f"fresh_{c}")
            added = Signal(signed(width), name=f"added_{c}")
            larger = part[:8].as_signed() > held[8:16].as_signed()
            m.d.comb += takes.eq(first_tap | larger)
            key = Cat(~tap, Const(15, 4), part[:8]).as_signed()
            m.d.comb += [
                chosen.eq(Mux(pooled, takes, summed.first)),
                # Out of a carry, which logic optimisation does not see through: it would find that
                # `chosen` implies `takes`, and need further LUTs behind those of the sum.
                fresh.eq((chosen + self.shift)[1]),
                added.eq(Mux(pooled, Mux(takes, key, 0), part)),
                write.en[c].eq(
                    self.shift
                    & tags[-1].valid
                    & ~tags[-1].last
                    & (~single_written | (lane_written == c))
                ),
            ]
            with m.If(self.shift & (~single_lane | (lane == c))):
                m.d.sync += total[32 * c : 32 * c + 32].eq(Mux(fresh, added, held + added))
        busy = stream.busy | ~stream.idle | Cat(*[t.valid for t in tags]).any()
        m.d.comb += self.idle.eq(~busy)
        with m.If(self.clear):
            m.d.sync += [t.valid.eq(0) for t in (*tags, *waiting)]
        return m
