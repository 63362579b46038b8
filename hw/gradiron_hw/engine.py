"""The product engine: streamed words through transposer and array into the accumulators.

Stages, all moving with `shift`: word register of the stream, input register of the array, products,
adder tree, accumulator sum. The accumulator memory (one row of C int32 per streamed row of a tile)
is read a stage before the sums arrive and written when the sum has been formed; finished rows
go to the vector path instead, which holds the stages while it works.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import Config
from gradiron.arch.isa import BMode
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
        read, write = memory.read_port(), memory.write_port()
        depth_bits = config.acc_depth.bit_length() - 1
        count = Signal(depth_bits + 1)
        position = Signal(depth_bits + 1)
        ahead = tags[latency - 1]
        addresses = [Signal(depth_bits, name=f"address_{i}") for i in range(2)]
        total = Signal(32 * cols)
        m.d.comb += [
            position.eq(Mux(ahead.swap, 0, count)),
            read.addr.eq(position),
            read.en.eq(self.shift),
            self.depth_fault.eq(self.shift & ahead.valid & position[-1]),
            write.addr.eq(addresses[1]),
            write.data.eq(total),
            write.en.eq(self.shift & tags[-1].valid & ~tags[-1].last),
            self.row.eq(total),
            self.arriving.eq(tags[latency]),
        ]
        with m.If(self.shift):
            with m.If(ahead.valid):
                m.d.sync += count.eq(position + 1)
            m.d.sync += [
                addresses[0].eq(position),
                addresses[1].eq(addresses[0]),
            ]
            width = array.sum_bits
            for c in range(cols):
                part = Signal(signed(width), name=f"sum_{c}")
                m.d.comb += part.eq(array.sums[width * c : width * (c + 1)])
                # The choice fits into the LUTs of the sum.
                m.d.sync += total[32 * c : 32 * c + 32].eq(
                    Mux(
                        tags[latency].first,
                        part,
                        read.data[32 * c : 32 * c + 32].as_signed() + part,
                    )
                )
        busy = stream.busy | ~stream.idle | Cat(*[t.valid for t in tags]).any()
        m.d.comb += self.idle.eq(~busy)
        with m.If(self.clear):
            m.d.sync += [t.valid.eq(0) for t in (*tags, *waiting)]
        return m
