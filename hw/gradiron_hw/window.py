"""Windows: the cycles that a finished row has the path for itself.

The engine stands still in all cycles of a window but the last, in which it advances and fetches
operands. A window's length is fixed by the instruction.

*In steps* (`Config.stepwise`) the groups of a row go through the lanes one after the other in the
last cycles of the window. A row's planes pass through one pair of registers: what is stored comes
in, results take its place element by element, and leave in the next row's window. So reads and
writes have fixed phases:

    phase   0           1   2           3            4           5
            read skip       read high   write high   write low   read low

The elements of a skip operand go through the lanes before the sums do, from phase 1 on.

*At full speed* (C lanes) both planes are handled at once, if they lie in different regions. With
two ports a window has a single cycle then; a region that an operand comes from is not read in the
last cycle. With a single port reads come first, then the writes of an earlier row, and then, unless
no operand comes from the regions that are written, a cycle in which the engine advances.
"""

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import Config
from gradiron.arch.isa import Out as Result
from gradiron.arch.isa import Skip
from gradiron.arch.timing import (
    READ_HIGH,
    READ_LOW,
    WRITE_HIGH,
    WRITE_LOW,
    skip_window,
    stepwise_windows,
)
from gradiron_hw.descriptor import bundle, region_of


class Window(wiring.Component):
    """Phases of the windows.

    Members
    -------
    d : descriptor registers and MM fields
    start : begin an MM: settles the length
    clear : stop at once
    opens : a window begins in this cycle, phase 0
    inside, ends : a window is in progress; its last cycle
    issue, group : a group of elements is selected in the next cycle
    issue_skip : a group of the skip operand is
    read_high, read_low, read_skip : the row's planes (or mask), or its skip operand, are read
    write_high, write_low : time for the planes of a row before
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "d": In(bundle(config)),
                "start": In(1),
                "clear": In(1),
                "opens": In(1),
                "inside": Out(1),
                "ends": Out(1),
                "issue": Out(1),
                "issue_skip": Out(1),
                "group": Out(max(1, (config.groups - 1).bit_length())),
                "read_high": Out(1),
                "read_low": Out(1),
                "read_skip": Out(1),
                "write_high": Out(1),
                "write_low": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        out = self.d.mm.out
        reads_high, reads_low = Signal(), Signal()
        m.d.comb += [
            reads_high.eq(self.d.mm.mask | (out == Result.MASTER) | (out == Result.INT8_WEIGHTS)),
            reads_low.eq(out == Result.MASTER),
        ]
        phase = Signal(range(32))  # of the next cycle; 0: no window is in progress
        last = Signal(range(32))
        m.d.comb += [
            self.inside.eq(self.opens | (phase != 0)),
            self.ends.eq(self.inside & (phase == last)),
        ]
        with m.If(self.inside):
            m.d.sync += phase.eq(phase + 1)
        with m.If(self.ends | self.clear):
            m.d.sync += phase.eq(0)

        skips = self.d.mm.skip != Skip.NONE
        m.d.comb += self.read_skip.eq(self.opens & skips)
        if config.stepwise:
            lengths = stepwise_windows(config)
            m.d.comb += last.eq(lengths["int8"] - 1)
            with m.If(skips):
                m.d.comb += last.eq(skip_window(config) - 1)
            with m.Elif((out == Result.LOGITS) | (out == Result.POOLED)):
                m.d.comb += last.eq(lengths["logits"] - 1)
            with m.Elif(reads_low):
                m.d.comb += last.eq(lengths["master"] - 1)
            m.d.comb += [
                self.read_high.eq(reads_high & (phase == READ_HIGH)),
                self.read_low.eq(reads_low & (phase == READ_LOW)),
                self.write_high.eq(phase == WRITE_HIGH),
                self.write_low.eq(phase == WRITE_LOW),
            ]
            first = last - (config.groups - 1)
            m.d.comb += [
                self.issue.eq(self.inside & (phase >= first)),
                self.issue_skip.eq(skips & (phase != 0) & (phase <= config.groups)),
            ]
            # Groups are a power of two: the count of a round ends where the next one's begins.
            with m.If(self.issue | self.issue_skip):
                m.d.sync += self.group.eq(self.group + 1)
            with m.If(self.clear):
                m.d.sync += self.group.eq(0)
            return m

        later, settled, reads = self._settle(m, reads_high, reads_low)
        second = Signal()
        with m.If(self.start):
            m.d.sync += [
                last.eq(Mux(skips, skip_window(config), settled) - 1),
                second.eq(later),
            ]
        m.d.comb += [
            self.issue.eq(self.ends),
            self.issue_skip.eq(skips & (phase == 1)),
            self.read_high.eq(self.inside & reads_high & (phase == skips)),
            self.read_low.eq(self.inside & reads_low & (phase == second)),
        ]
        r = self.d.regs
        together = region_of(config, r.O_BASE) == region_of(config, r.O_LO)
        if config.single_port:
            write = Signal(2)
            second_write = Signal(3)
            with m.If(self.start):
                m.d.sync += [
                    write.eq(Mux(skips, 2, reads)),
                    second_write.eq(reads + together),
                ]
            m.d.comb += [
                self.write_high.eq(~self.inside | (phase == write)),
                self.write_low.eq(phase == second_write),
            ]
        return m

    def _settle(self, m: Module, reads_high: Value, reads_low: Value) -> tuple[Signal, ...]:
        """Whether the low plane is read a cycle later, the length of a window, cycles of reads."""
        config = self.config
        r, mm = self.d.regs, self.d.mm
        region_a, region_b = region_of(config, r.A_BASE), region_of(config, r.B_BASE)
        region_high = region_of(config, Mux(mm.mask, r.M_BASE, r.O_BASE))
        region_low = region_of(config, r.O_LO)
        two_planes = (
            (mm.out == Result.MASTER)
            | (mm.out == Result.MOMENTUM)
            | (mm.out == Result.LOGITS)
            | (mm.out == Result.POOLED)
        )

        def of_operand(region: Value) -> Value:
            return (region == region_a) | (region == region_b)

        later, settled, reads = Signal(), Signal(4), Signal(2)
        together = two_planes & (region_of(config, r.O_BASE) == region_low)
        if config.single_port:
            writes = (mm.out != Result.MEASURE) & (mm.out != Result.LOSS)
            shared = of_operand(region_of(config, r.O_BASE)) | (two_planes & of_operand(region_low))
            m.d.comb += [
                later.eq(reads_low & (region_high == region_low)),
                reads.eq(reads_high + later),
                settled.eq(Mux(writes, reads + 1 + together + shared, 1)),
            ]
            return later, settled, reads
        need_high, need_low, need_write, most = (Signal(4) for _ in range(4))
        m.d.comb += [
            later.eq(reads_low & (region_high == region_low)),
            need_high.eq(1 + (reads_high & of_operand(region_high))),
            need_low.eq(Mux(reads_low, 1 + later + of_operand(region_low), 1)),
            need_write.eq(Mux(together, 2, 1)),
            most.eq(Mux(need_high > need_low, need_high, need_low)),
            settled.eq(Mux(most > need_write, most, need_write)),
        ]
        return later, settled, reads
