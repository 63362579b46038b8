"""Where the results of an MM go: element numbers, row by row."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import Config
from gradiron.arch.isa import BMode
from gradiron_hw.descriptor import bundle


class ResultAddress(wiring.Component):
    """Element number of the row that comes next, and which of its columns count.

    Rows come in the order of `docs/products.md`, all rows of a column tile before the next tile.
    One adder does: it adds a stride to the beginning of what the stride leads out of.

    Members
    -------
    d : descriptor registers and MM fields, stable while busy
    start : go to the first row, which is there two cycles later
    step : go to the next row
    offset : element number of the row's first column
    column : number of that column
    valid : columns below N_C
    fresh : the row is the first of its column tile
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "d": In(bundle(config)),
                "start": In(1),
                "step": In(1),
                "offset": Out(config.offset_bits),
                "column": Out(16),
                "valid": Out(config.cols),
                "fresh": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        cols, bits = self.config.cols, self.config.offset_bits
        r, transposed = self.d.regs, self.d.mm.transposed
        # By channel, a column tile is as wide as a word of the streamed operand.
        narrow = min(self.config.rows, cols)
        low, steps = narrow.bit_length() - 1, cols // narrow
        by_channel = Signal()
        m.d.comb += by_channel.eq(self.d.mm.b >= BMode.DIAGONAL)

        # Counts begin with 1, so that the last round is the one whose number is the limit.
        inner, middle, outer = Signal(16), Signal(12), Signal(16)
        inner_ends, middle_ends, ends = Signal(), Signal(), Signal()
        m.d.comb += [
            inner_ends.eq((inner == Mux(transposed, r.N_J, r.N_X)) | (transposed & by_channel)),
            middle_ends.eq(middle == Mux(transposed, r.N_TX, r.N_Y)),
            ends.eq(
                (outer == Mux(transposed, r.N_TY, r.N_P))
                & (~transposed | (inner_ends & middle_ends))
            ),
        ]

        following = Signal(17 - low)  # tile after this one
        following_column = Cat(Const(0, low), following)
        row, image = Signal(bits, name="row_begin"), Signal(bits, name="image_begin")
        begin = Signal()  # a column tile begins
        opening = Signal()
        m.d.sync += opening.eq(self.start)
        m.d.comb += begin.eq(opening | (self.step & ends))
        origin, stride, sum_ = Signal(bits), Signal(bits), Signal(bits)
        m.d.comb += sum_.eq(origin + stride)
        with m.If(begin):
            m.d.comb += [origin.eq(following_column), stride.eq(r.O_OFF)]
        with m.Elif(~inner_ends):
            m.d.comb += [origin.eq(self.offset), stride.eq(r.O_S0)]
        with m.Elif(~middle_ends):
            m.d.comb += [origin.eq(row), stride.eq(r.O_S1)]
        with m.Else():
            m.d.comb += [origin.eq(image), stride.eq(r.O_S2)]
        with m.If(begin | self.step):
            m.d.sync += [self.offset.eq(sum_), self.fresh.eq(begin)]
            with m.If(begin | inner_ends):
                m.d.sync += row.eq(sum_)
            with m.If(begin | (inner_ends & middle_ends)):
                m.d.sync += image.eq(sum_)
            m.d.sync += inner.eq(inner + 1)
            with m.If(inner_ends):
                m.d.sync += middle.eq(middle + 1)
            with m.If(~transposed | (inner_ends & middle_ends)):
                m.d.sync += outer.eq(outer + 1)
            with m.If(begin | inner_ends):
                m.d.sync += inner.eq(1)
            with m.If(begin | (inner_ends & middle_ends)):
                m.d.sync += middle.eq(1)
            with m.If(begin):
                m.d.sync += outer.eq(1)
        with m.If(self.start):
            m.d.sync += following.eq(0)
        with m.Elif(begin):
            m.d.sync += [
                following.eq(following + Mux(by_channel, 1, steps)),
                self.column.eq(following_column),
            ]

        # Columns are a multiple of the tile's width: in the last one, the low bits of N_C are what
        # is left.
        whole = Signal()
        left = Mux(by_channel, r.N_C[:low], r.N_C[: cols.bit_length() - 1])
        m.d.comb += [
            whole.eq(r.N_C[low:] >= following),
            self.valid.eq(
                Cat(*[(whole | (left > c)) & ((c < narrow) | ~by_channel) for c in range(cols)])
            ),
        ]
        return m
