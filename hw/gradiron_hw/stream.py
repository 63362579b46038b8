"""Operand fetch: the loop nest of a product, its address generators, and the words they bring.

The unit walks the tiles of an MM. A tile is one stationary block (R x C) and the rows that stream
past it. In a plain product a tile is one group of pixels at one tap; while it streams, the
stationary block of the next tile is loaded behind it, unless both come from one region: then the
loads take advances of their own. In a transposed product a tile is R pixels; each block of R
streamed words (one per pixel) passes the transposer and leaves as R rows (one per tap byte), R
advances later.

Everything moves with `advance`: a read is requested in the cycle of an advance, and the stages
behind the memory move in the cycle after it (`shift`), when its data is there. No other unit may
read the two operand regions in a cycle with an advance.

What changes once per tile has time: a tile takes at least `HAZARD` advances. Two small memories
hold what would be registers with wide multiplexers:

* the *pixel table*: where the pixels of the group lie. The pixel nest runs in the first tap of a
  group only, one pixel ahead of the stream, and fills it; each tap reads it from the start.
* the *levels* of the stationary operand's address: where column tile, ky, kx and j were entered.
  The next tile is one addition away from one of them.

Stages: state machine and pixel nest | table read, tap nest; sums and bounds | request | data
memory. Offsets are kept in units of a memory lane, as all of them are multiples of it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import Config
from gradiron.arch.isa import BMode
from gradiron.arch.timing import HAZARD, word_registers
from gradiron_hw.descriptor import bundle, offset_of, region_of
from gradiron_hw.memory import read_channel


class Level(IntEnum):
    """Levels of the stationary operand's nest: where its tiles are entered from."""

    COLUMN = 0
    KY = 1
    KX = 2
    J = 3
    START = 4
    """Not a level: an entry that is always 0."""


def row_tag() -> data.StructLayout:
    """What travels with a streamed row."""
    return data.StructLayout(
        {
            "valid": unsigned(1),  # the row counts
            "swap": unsigned(1),  # first row of a tile: its stationary block becomes active
            "first": unsigned(1),  # accumulation starts
            "last": unsigned(1),  # accumulation ends: the row goes to the vector path
            "ones": unsigned(1),  # the row of ones that sums up the bias gradient
        }
    )


class Stream(wiring.Component):
    """Loop nest, address generators and the first pipeline stages.

    Parameters
    ----------
    config : Config
    technology : str
        "generic", or "up5k" to have even the small memories in block RAM.

    Members
    -------
    d : descriptor registers and MM fields, stable while busy
    start : begin (one cycle); `busy` until the last row has been handed over
    clear : stop at once and forget everything
    advance : in; requests are issued and the nest moves
    shift : in; `advance` of the cycle before
    serial : in, constant while busy: both operands come from one region
    a, b : read channels
    fault : a needed byte is out of range (with the request)
    x, b_word : streamed word and stationary word of the current stage
    tag : what goes with `x`, to be used in a cycle with `shift`
    take : `x` is a word for the transposer
    load : `b_word` is to be shifted in
    idle : nothing is in the stages of this unit
    """

    def __init__(self, config: Config, *, technology: str = "generic") -> None:
        self.config, self.technology = config, technology
        super().__init__(
            {
                "d": In(bundle(config)),
                "start": In(1),
                "clear": In(1),
                "busy": Out(1),
                "advance": In(1),
                "shift": In(1),
                "serial": In(1),
                "a": Out(read_channel(config)),
                "b": Out(read_channel(config)),
                "fault": Out(1),
                "x": Out(8 * config.rows),
                "b_word": Out(8 * config.word_bytes),
                "tag": Out(row_tag()),
                "take": Out(1),
                "load": Out(1),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        rows, cols, size = config.rows, config.cols, config.word_bytes
        row_bits, col_bits = rows.bit_length() - 1, cols.bit_length() - 1
        # By channel, a column tile is as wide as a streamed word.
        narrow = min(rows, cols)
        narrow_bits = narrow.bit_length() - 1
        low = config.lane_bytes.bit_length() - 1
        bits = config.offset_bits - low
        index_bits = config.acc_depth.bit_length() - 1
        small = {"ram_style": "block"} if self.technology == "up5k" else {}
        r, mm = self.d.regs, self.d.mm
        transposed, by_columns = mm.transposed, mm.b == BMode.COLUMNS
        by_channel = (mm.b == BMode.DIAGONAL) | (mm.b == BMode.IDENTITY) | (mm.b == BMode.GATE)
        gated = mm.b == BMode.GATE
        unit = (mm.b == BMode.IDENTITY) | gated  # the stationary operand is not in memory
        spread = by_channel & ~transposed  # a word of it becomes a diagonal
        serial = Signal()
        m.d.comb += serial.eq(self.serial & ~unit)
        advance = self.advance

        def lanes_of(register: Value) -> Value:
            """A distance in bytes, in lanes."""
            return register[low:].as_signed()

        # Strobes of the state machine. Registers move on few of them, and so have few sources.
        resting = Signal()  # nothing runs: all counters are where an instruction begins
        begin = Signal()
        tap_step = Signal()  # rows of the next tap begin with the next advance
        tile_step = Signal()  # the tile nest moves on
        open_group = Signal()  # and with it a group: its first pixel goes to the table
        step_pixel = Signal()  # another pixel goes to the table
        last_pixel = Signal()  # that is the last of all: the next one is the first again

        tile_valid = Signal()  # the nest has a tile

        # --- tile nest: groups of pixels, columns -------------------------------------------------
        # A carry chain takes its operands as they are: what is subtracted is kept as complement.
        before_n = Signal(16)  # pixels before the group
        group = Signal(range(max(config.acc_depth, 16) + 1))
        next_group_n = Signal(16)
        rest = Signal(index_bits)  # of the last group: its last pixel
        group_more, column_more, tap_last = Signal(), Signal(), Signal()
        first_group = Signal()
        m.d.comb += [
            group.eq(Mux(transposed, rows, r.N_G)),
            next_group_n.eq(before_n + Cat(~group, Const(-1, 16 - len(group))) + 1),
            group_more.eq((r.N_P + next_group_n)[16]),
            rest.eq(r.N_P + before_n),
        ]
        wrap, nest_last = Signal(), Signal()  # the next tile is another group; there is none
        m.d.comb += [
            wrap.eq(transposed | tap_last),
            nest_last.eq(wrap & ~group_more & ~column_more),
        ]
        with m.If(tile_step & wrap):
            m.d.sync += [before_n.eq(next_group_n), first_group.eq(~group_more)]
        with m.If(resting | (tile_step & wrap & ~group_more)):
            m.d.sync += [before_n.eq(-1), first_group.eq(1)]
        # Full column tiles count up to those in N_C; what is left over is one more.
        next_columns = Signal()
        column = Signal(16 - narrow_bits)
        spare_columns, full_columns = Signal(col_bits), Signal(16 - narrow_bits)  # of N_C
        m.d.comb += [
            spare_columns.eq(r.N_C[:col_bits]),
            full_columns.eq(r.N_C[col_bits:]),
            column_more.eq(column != full_columns),
        ]
        if narrow < cols:
            with m.If(by_channel):
                m.d.comb += [
                    spare_columns.eq(r.N_C[:narrow_bits]),
                    full_columns.eq(r.N_C[narrow_bits:]),
                ]
        with m.If(advance | begin):
            m.d.sync += next_columns.eq(tile_step & wrap & ~group_more)
        with m.If(resting):
            m.d.sync += column.eq(spare_columns == 0)
        with m.Elif(advance & next_columns):
            m.d.sync += column.eq(column + 1)

        # --- tap nest: it moves one advance after its rows have begun -----------------------------
        opened = Signal()
        with m.If(advance | begin):
            m.d.sync += opened.eq(tap_step)
        tap_now = advance & opened
        # Counters with an end count from 1, so that they are compared as they are.
        # By channel, a tap has one word, and j is the number of the column tile.
        ky, kx, j = Signal(8), Signal(8), Signal(16 - narrow_bits)
        tap_kx = Signal(signed(bits))
        a_y, a_x = Signal(signed(bits)), Signal(signed(bits))  # of the rows that stream
        j_more, kx_more, ky_more, tap_first = Signal(), Signal(), Signal(), Signal()
        last_byte = Signal(16)
        last_word, last_spare, a_offset = Signal.like(j), Signal(row_bits), Signal(16)
        whole_word = Signal()  # all of its bytes belong to the tap
        m.d.comb += [
            last_byte.eq(Mux(by_channel, r.N_C, r.N_J) - 1),
            last_word.eq(last_byte[row_bits:]),
            last_spare.eq(last_byte[:row_bits]),
            a_offset.eq(Cat(Const(0, row_bits), j)),
        ]
        if narrow < rows:
            with m.If(by_channel):
                m.d.comb += [
                    last_word.eq(last_byte[narrow_bits:]),
                    last_spare.eq(last_byte[:narrow_bits]),
                    a_offset.eq(Cat(Const(0, narrow_bits), j)),
                ]
        m.d.comb += [
            whole_word.eq(j != last_word),
            j_more.eq(whole_word & ~by_channel),
            kx_more.eq(kx != r.N_TX),
            ky_more.eq(ky != r.N_TY),
            tap_last.eq(~(j_more | kx_more | ky_more)),
        ]
        with m.If(tap_now):
            m.d.sync += [j.eq(j + 1), tap_first.eq(tap_last)]
            m.d.sync += a_x.eq(tap_kx + a_offset[low:])
        with m.If(resting):
            m.d.sync += tap_first.eq(1)
        new_columns = Mux(transposed, tap_last & ~group_more, next_columns)
        with m.If(tap_now & by_channel & ~new_columns):
            m.d.sync += j.eq(j)
        with m.If(resting | (tap_now & ~j_more & ~by_channel)):
            m.d.sync += j.eq(0)
        with m.If(tap_now & ~j_more):
            m.d.sync += [kx.eq(kx + 1), tap_kx.eq(tap_kx + lanes_of(r.A_TX))]
        with m.If(resting | (tap_now & ~j_more & ~kx_more)):
            m.d.sync += [kx.eq(1), tap_kx.eq(lanes_of(r.A_X0))]
        with m.If(tap_now & ~j_more & ~kx_more):
            m.d.sync += ky.eq(ky + 1)
        with m.If(resting | (tap_now & tap_last)):
            m.d.sync += ky.eq(1)
        # The row offset moves with the rows, and not ahead like the counters.
        next_row, first_row = Signal(), Signal()
        with m.If(tap_now):
            m.d.sync += [next_row.eq(~j_more & ~kx_more), first_row.eq(tap_last)]
        with m.If(tap_now & next_row):
            m.d.sync += a_y.eq(a_y + lanes_of(r.A_TY))
        with m.If(tap_now & first_row):
            m.d.sync += a_y.eq(lanes_of(r.A_Y0))
        with m.If(resting):
            m.d.sync += first_row.eq(1)
        # Bytes of a word that belong to the nest's tap.

        def up_to(whole: Value, last: Value, count: int) -> Value:
            """A bit for each that counts: all, or those up to the last."""
            return Cat(*[whole | (last >= i) for i in range(count)])

        # --- the streamed operand's pixels --------------------------------------------------------
        place = data.StructLayout(
            {"column": signed(bits), "row": signed(bits), "image": unsigned(bits)}
        )
        here = Signal(place)  # of the next pixel for the table
        x, y = Signal(16), Signal(12)
        x_more, y_more = Signal(), Signal()
        write_pixel, home = Signal(), Signal()
        m.d.comb += [
            x_more.eq(x != r.N_X),
            y_more.eq(y != r.N_Y),
            write_pixel.eq(open_group | step_pixel),
            home.eq(Mux(write_pixel, last_pixel, resting)),
        ]
        with m.If(write_pixel):
            m.d.sync += [x.eq(x + 1), here.column.eq(here.column + lanes_of(r.A_SX))]
        with m.If(home | (write_pixel & ~x_more)):
            m.d.sync += [x.eq(1), here.column.eq(0)]
        with m.If(write_pixel & ~x_more):
            m.d.sync += [y.eq(y + 1), here.row.eq(here.row + lanes_of(r.A_SY))]
        with m.If(home | (write_pixel & ~x_more & ~y_more)):
            m.d.sync += [y.eq(1), here.row.eq(0)]
        with m.If(write_pixel & ~x_more & ~y_more):
            m.d.sync += here.image.eq(here.image + lanes_of(r.A_SN))
        with m.If(home):
            m.d.sync += here.image.eq(0)

        m.submodules.table = table = Memory(shape=place, depth=config.acc_depth, init=[])
        pixel_write, pixel_read = table.write_port(), table.read_port()
        index = Signal(index_bits)  # of the pixel that streams, or word of a transposed block
        next_index = Signal(index_bits + 1)
        next_pixel, index_ends = Signal(), Signal()
        m.d.comb += [
            next_index.eq(index + 1),
            pixel_write.en.eq(write_pixel),
            pixel_write.addr.eq(Mux(open_group, 0, next_index)),
            pixel_write.data.eq(here),
            pixel_read.en.eq(advance),
            pixel_read.addr.eq(index),
        ]
        with m.If(next_pixel):
            m.d.sync += index.eq(next_index)
        with m.If(resting | (next_pixel & index_ends)):
            m.d.sync += index.eq(0)
        block_row = index[:row_bits]
        pixel_there = Signal()  # of a transposed block
        m.d.comb += pixel_there.eq(group_more | (block_row <= rest[:row_bits]))

        # --- the streamed tile --------------------------------------------------------------------
        streaming = Signal()
        a_first, a_last, a_more = Signal(), Signal(), Signal()  # taps; more groups follow
        # The index that follows the last one in a full group, and is the last one in the last.
        a_end = Signal(index_bits + 1)
        final = Signal()  # last group: this is the last pixel
        at_end, ends = Signal(), Signal()
        m.d.comb += [
            at_end.eq(next_index == a_end),
            ends.eq(Mux(a_more, at_end, final)),
        ]
        gap_left = Signal(range(HAZARD))
        swap_due = Signal()
        block_last = Signal()  # a transposed block is the last of its tile

        # --- the stationary operand ---------------------------------------------------------------
        loading = Signal()
        b_index = Signal(range(size))
        b_ends = Signal()
        m.d.comb += b_ends.eq(b_index == Mux(by_columns, cols - 1, rows - 1))
        level, from_level = Signal(Level), Signal(Level)
        inner, inner_kx, inner_ky = Signal(2), Signal(2), Signal(1)  # entered last: at all, within
        with m.If(begin):
            m.d.comb += [level.eq(Level.START), from_level.eq(Level.START)]
        with m.Elif(wrap):
            m.d.comb += [level.eq(Level.COLUMN), from_level.eq(Level.COLUMN)]
        with m.Elif(j_more):
            m.d.comb += [level.eq(Level.J), from_level.eq(inner)]
        with m.Elif(kx_more):
            m.d.comb += [level.eq(Level.KX), from_level.eq(inner_kx)]
        with m.Else():
            m.d.comb += [level.eq(Level.KY), from_level.eq(inner_ky)]
        reload = Signal(3)  # now, at the table, at the request
        entered = Signal(2)
        # What is added, decoded beforehand: a stride, or a tile of neighbouring words or bytes.
        by_base, by_ky, by_kx, by_words, by_bytes = (
            Signal(name=f"by_{n}") for n in ("base", "ky", "kx", "words", "bytes")
        )
        m.d.comb += reload[0].eq(begin | (tile_step & ~(transposed & group_more)))
        with m.If(advance | begin):
            m.d.sync += reload[1].eq(reload[0])
        with m.If(advance):
            m.d.sync += reload[2].eq(reload[1])
        with m.If(reload[0]):
            along, across = level == Level.J, (level == Level.COLUMN) & ~group_more & ~gated
            m.d.sync += [
                entered.eq(level),
                inner.eq(level),
                by_base.eq(begin | gated),
                by_ky.eq((level == Level.KY) & ~gated),
                by_kx.eq((level == Level.KX) & ~gated),
                by_words.eq(Mux(by_columns, across, along & ~by_channel)),
                by_bytes.eq(Mux(by_columns, along, across)),
            ]
            with m.If(level != Level.J):
                m.d.sync += inner_kx.eq(level)
            with m.If((level != Level.J) & (level != Level.KX)):
                m.d.sync += inner_ky.eq(level)

        m.submodules.levels = levels = Memory(
            shape=unsigned(bits), depth=len(Level), init=[], attrs=small
        )
        level_write, level_read = levels.write_port(), levels.read_port()
        b_now, b_next, b_step_by = Signal(bits), Signal(bits), Signal(bits)
        address = Signal(bits)  # of the streamed word, from A_BASE on
        words = Mux(by_columns, r.B_R << col_bits, r.B_R << row_bits)
        m.d.comb += b_step_by.eq(
            (lanes_of(words)[:bits] & by_words.replicate(bits))
            | (offset_of(config, r.B_BASE)[low:] & by_base.replicate(bits))
            | (lanes_of(r.B_TY)[:bits] & by_ky.replicate(bits))
            | (lanes_of(r.B_TX)[:bits] & by_kx.replicate(bits))
            | Mux(by_bytes, Mux(by_columns, rows, Mux(by_channel, narrow, cols)) >> low, 0)
        )
        m.d.comb += [
            level_read.en.eq(reload[0]),
            level_read.addr.eq(from_level),
            # A gate lies beside the streamed byte.
            b_next.eq(Mux(gated, address, level_read.data) + b_step_by),
            level_write.en.eq(reload[2] & advance),
            level_write.addr.eq(entered),
            level_write.data.eq(b_next),
        ]

        # --- one advance --------------------------------------------------------------------------
        g_a, g_b, g_take = Signal(), Signal(), Signal()
        g_tag = Signal(row_tag())

        def b_step() -> None:
            """Issue one stationary word."""
            m.d.comb += g_b.eq(1)
            with m.If(advance):
                m.d.sync += b_index.eq(b_index + 1)
                with m.If(b_ends):
                    m.d.sync += [b_index.eq(0), loading.eq(0)]

        def leave() -> None:
            """What ends any state."""
            with m.If(self.clear):
                m.next = "idle"

        with m.FSM(name="nest") as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("idle"))

            # A transposed tile: its first block of words brings the rows of the tile before it out
            # of the transposer, so the stationary block may follow at leisure.
            def next_block(state: str) -> None:
                m.d.comb += tap_step.eq(1)
                m.d.sync += block_last.eq(tap_last)
                m.next = state

            def block(*, first: bool) -> Value:
                """One word of a block; returns whether it is the last."""
                done = Signal(name=f"block_done_{int(first)}")
                m.d.comb += [
                    done.eq(block_row == rows - 1),
                    index_ends.eq(done),
                    next_pixel.eq(advance),
                    g_take.eq(1),
                    g_a.eq(pixel_there),
                    g_tag.valid.eq(1),
                    g_tag.swap.eq((block_row == 0) & first & ~mm.bias),
                    g_tag.first.eq(first_group),
                    g_tag.last.eq(~group_more),
                ]
                if first:
                    m.d.comb += [
                        step_pixel.eq(advance & ~done),
                        last_pixel.eq((block_row == rows - 2) & ~group_more),
                    ]
                return done

            def next_tile() -> None:
                """After the last block of a tile."""
                m.d.comb += tile_step.eq(1)
                with m.If(nest_last):
                    m.next = "flush"
                with m.Else():
                    m.d.comb += open_group.eq(1)
                    next_block("first block")

            with m.State("idle"):
                m.d.comb += resting.eq(1)
                m.d.sync += [
                    b_index.eq(0),
                    loading.eq(1),
                    streaming.eq(0),
                    tile_valid.eq(1),
                    # Time for the first entry of the levels.
                    gap_left.eq(2),
                ]
                with m.If(self.start):
                    m.d.comb += begin.eq(1)
                    with m.If(transposed):
                        m.d.comb += open_group.eq(1)
                        next_block("first block")
                    with m.Else():
                        m.next = "plain"
                leave()
            with m.State("plain"):
                do_b = Signal()
                done = Signal(name="slot_done")
                m.d.comb += [
                    do_b.eq(loading & ~(serial & streaming)),
                    g_a.eq(streaming),
                    g_tag.valid.eq(streaming),
                    g_tag.swap.eq(swap_due),
                    g_tag.first.eq(a_first),
                    g_tag.last.eq(a_last),
                    index_ends.eq(ends),
                    done.eq((~streaming | ends) & (~loading | (do_b & b_ends)) & (gap_left == 0)),
                ]
                with m.If(do_b):
                    b_step()
                with m.If(advance):
                    with m.If(gap_left != 0):
                        m.d.sync += gap_left.eq(gap_left - 1)
                    with m.If(streaming):
                        m.d.comb += [
                            next_pixel.eq(1),
                            step_pixel.eq(a_first & ~ends),
                            last_pixel.eq(at_end & ~a_more),
                        ]
                        m.d.sync += [swap_due.eq(0), final.eq(at_end), streaming.eq(~ends)]
                    with m.If(done):
                        with m.If(~tile_valid):
                            m.next = "idle"
                        with m.Else():
                            # The nest's tile streams now, and its successor is loaded. A new group
                            # goes on where the last one ended.
                            m.d.comb += [
                                tap_step.eq(1),
                                tile_step.eq(1),
                                open_group.eq(tap_first),
                            ]
                            with m.If(tap_first):
                                m.d.comb += last_pixel.eq(~group_more & (rest == 0))
                            m.d.sync += [
                                tile_valid.eq(~nest_last),
                                streaming.eq(1),
                                a_first.eq(tap_first),
                                a_last.eq(tap_last),
                                a_more.eq(group_more),
                                a_end.eq(Mux(group_more, group, rest)),
                                final.eq(rest == 0),
                                swap_due.eq(1),
                                loading.eq(~nest_last),
                                gap_left.eq(Mux(nest_last, 0, HAZARD - 1)),
                            ]
                leave()
            with m.State("first block"):
                done = block(first=True)
                with m.If(~serial):
                    b_step()
                with m.If(advance & done):
                    if rows == 2:
                        m.d.sync += gap_left.eq(HAZARD - 1 - rows - mm.bias)
                    with m.If(serial):
                        m.next = "load"
                    with m.Elif(mm.bias):
                        m.next = "ones"
                    with m.Elif(block_last):
                        if rows == 2:
                            m.next = "gap"
                        else:
                            next_tile()
                    with m.Else():
                        next_block("blocks")
                leave()
            with m.State("load"):
                b_step()
                with m.If(advance & b_ends):
                    with m.If(mm.bias):
                        m.next = "ones"
                    with m.Elif(block_last):
                        next_tile()
                    with m.Else():
                        next_block("blocks")
                leave()
            with m.State("ones"):
                m.d.comb += [
                    g_tag.valid.eq(1),
                    g_tag.ones.eq(1),
                    g_tag.swap.eq(1),
                    g_tag.first.eq(first_group),
                    g_tag.last.eq(~group_more),
                ]
                with m.If(advance):
                    with m.If(~block_last):
                        next_block("blocks")
                    with m.Else():
                        if rows == 2:
                            with m.If(serial):
                                next_tile()
                            with m.Else():
                                m.next = "gap"
                        else:
                            next_tile()
                leave()
            if rows == 2:
                with m.State("gap"):
                    with m.If(advance):
                        m.d.sync += gap_left.eq(gap_left - 1)
                        with m.If(gap_left == 0):
                            next_tile()
                    leave()
            with m.State("blocks"):
                done = block(first=False)
                with m.If(advance & done):
                    with m.If(block_last):
                        next_tile()
                    with m.Else():
                        next_block("blocks")
                leave()
            with m.State("flush"):
                m.d.comb += [g_take.eq(1), next_pixel.eq(advance), index_ends.eq(0)]
                with m.If(advance & (block_row == rows - 1)):
                    m.next = "idle"
                leave()

        # --- table stage: sums and bounds ---------------------------------------------------------
        n_a, n_b, n_take = Signal(), Signal(), Signal()
        n_tag = Signal(row_tag())
        n_row, n_b_index = Signal(row_bits), Signal.like(b_index)
        n_b_pixel = Signal()
        with m.If(advance):
            m.d.sync += [
                n_a.eq(g_a),
                n_b.eq(g_b),
                n_take.eq(g_take),
                n_tag.eq(g_tag),
                n_row.eq(block_row),
                n_b_index.eq(b_index),
                n_b_pixel.eq(group_more | (b_index <= rest[:row_bits])),
            ]
        a_whole = Signal()
        with m.If(tap_now):
            m.d.sync += a_whole.eq(whole_word)
        width = up_to(a_whole, last_spare, rows)
        width = Cat(width[:narrow], width[narrow:] & ~by_channel.replicate(rows - narrow))
        pixel = pixel_read.data
        # Complements again, so that one sum goes into the next and into the bounds as it is.
        row_n, column_n = Signal(signed(bits)), Signal(signed(bits))
        to_bottom, to_right = Signal(signed(bits + 1)), Signal(signed(bits + 1))
        room = Signal(signed(bits + 1 + low))  # bytes from the window's start to the right bound
        y_inside, near_left, near_right = Signal(), Signal(), Signal()
        inside, width_mask = Signal(rows), Signal(rows)
        m.d.comb += [
            row_n.eq(~(pixel.row + a_y)),
            column_n.eq(~(pixel.column + a_x)),
            address.eq(pixel.image + ~(row_n + column_n + 1)[:bits]),
            to_bottom.eq(r.A_HB[low:] + row_n + r.A_HB[:low].any()),
            to_right.eq(r.A_WB[low:] + column_n + 1),
            room.eq(Cat(r.A_WB[:low], to_right)),
            y_inside.eq(row_n[-1] & ~to_bottom[-1]),
            near_left.eq(~column_n[row_bits - low :].any()),
            near_right.eq(~room[row_bits:].any()),
            width_mask.eq(width),
        ]
        first_byte = Cat(Const(0, low), ~column_n[: row_bits - low])
        for lane in range(rows):
            left = column_n[-1] | (near_left & (first_byte + lane >= rows))
            right = ~room[-1] & (~near_right | (room[:row_bits] > lane))
            m.d.comb += inside[lane].eq(y_inside & left & right)
        lanes_c = up_to(column_more | (spare_columns == 0), (spare_columns - 1)[:col_bits], cols)
        lanes_c = Cat(lanes_c[:narrow], lanes_c[narrow:] & ~by_channel.replicate(cols - narrow))
        lanes_j = up_to(j_more, last_spare, rows)
        b_lanes, b_there = Signal(size), Signal()
        with m.If(spread):
            m.d.comb += [b_lanes.eq(lanes_c & (1 << n_b_index)), b_there.eq(1)]
        with m.Elif(by_columns):
            m.d.comb += [b_lanes.eq(lanes_j), b_there.eq(lanes_c.bit_select(n_b_index, 1))]
        with m.Else():
            m.d.comb += [
                b_lanes.eq(lanes_c),
                b_there.eq(Mux(transposed, n_b_pixel, lanes_j.bit_select(n_b_index, 1))),
            ]

        # --- request ------------------------------------------------------------------------------
        q_a, q_b, q_take = Signal(), Signal(), Signal()
        q_tag = Signal(row_tag())
        q_inside, q_a_mask, q_b_mask = Signal(rows), Signal(rows), Signal(size)
        q_unit = Signal(size)  # bytes of the stationary word that are 1
        q_a_offset = Signal(bits)
        row_mask = Mux(by_channel, (1 << narrow) - 1, width_mask)
        with m.If(advance):
            m.d.sync += [
                q_a.eq(n_a),
                q_b.eq(n_b),
                q_take.eq(n_take),
                q_tag.eq(n_tag),
                # A transposed block has a row for each byte; by channel, for each column.
                q_tag.valid.eq(n_tag.valid & (~n_take | row_mask.bit_select(n_row, 1))),
                q_inside.eq(inside),
                q_a_mask.eq(inside & width_mask),
                q_a_offset.eq(address),
                q_b_mask.eq(
                    Mux(gated, inside & width_mask, b_lanes & (b_there & ~unit).replicate(size))
                ),
                q_unit.eq(b_lanes & unit.replicate(size)),
            ]
            with m.If(reload[2] | gated):
                m.d.sync += b_now.eq(b_next)
            with m.Elif(q_b & ~spread):
                m.d.sync += b_now.eq(b_now + lanes_of(r.B_R))
        m.d.comb += [
            self.a.en.eq(q_a & advance),
            self.a.region.eq(region_of(config, r.A_BASE)),
            self.a.offset.eq(Cat(Const(0, low), q_a_offset + offset_of(config, r.A_BASE)[low:])),
            self.a.mask.eq(q_a_mask),
            self.b.en.eq(Mux(gated, q_a, q_b) & q_b_mask.any() & advance),
            self.b.region.eq(region_of(config, r.B_BASE)),
            self.b.offset.eq(Cat(Const(0, low), b_now)),
            self.b.mask.eq(q_b_mask),
            self.fault.eq(self.a.oor | self.b.oor),
        ]

        # --- data memory, and a word register where the clock is fast -----------------------------
        m_b, m_take = Signal(), Signal()
        m_tag = Signal(row_tag())
        m_inside, m_b_mask, m_unit = Signal(rows), Signal(size), Signal(size)
        with m.If(advance):
            m.d.sync += [
                m_b.eq(q_b),
                m_take.eq(q_take),
                m_tag.eq(q_tag),
                m_inside.eq(q_inside),
                m_b_mask.eq(Mux(gated, 0, q_b_mask)),
                m_unit.eq(q_unit),
            ]
        x_word, b_word = Signal(8 * rows), Signal(8 * size)
        for lane in range(rows):
            byte = self.a.data[8 * lane : 8 * lane + 8]
            gate = self.b.data[8 * lane : 8 * lane + 4]
            passes = m_inside[lane] & (~gated | (gate == r.GATE))
            outside = r.PAD.as_unsigned() & ~gated.replicate(8)
            m.d.comb += x_word[8 * lane : 8 * lane + 8].eq(Mux(passes, byte, outside))
        for lane in range(size):
            byte = self.b.data[8 * lane : 8 * lane + 8]
            one = Cat(m_unit[lane], Const(0, 7))
            m.d.comb += b_word[8 * lane : 8 * lane + 8].eq(Mux(m_b_mask[lane], byte, 0) | one)
        stage: list[tuple[Any, Value]] = [
            (self.x, x_word),
            (self.b_word, b_word),
            (self.load, m_b),
            (self.take, m_take),
            (self.tag, m_tag.as_value()),
        ]
        flags = [n_tag.valid, n_take, q_tag.valid, q_take, m_tag.valid, m_take]
        others = [n_a, n_b, q_a, q_b, m_b]
        if word_registers(config):
            with m.If(self.shift):
                m.d.sync += [output.eq(value) for output, value in stage]
            flags += [self.tag.valid, self.take]
            others += [self.load]
        else:
            m.d.comb += [output.eq(value) for output, value in stage]
        m.d.comb += self.idle.eq(~Cat(*flags).any())
        with m.If(self.clear):
            m.d.sync += [flag.eq(0) for flag in (*flags, *others)]
        return m
