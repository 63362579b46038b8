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
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import Config
from gradiron.arch.isa import BMode
from gradiron_hw.descriptor import bundle, offset_of, region_of
from gradiron_hw.memory import read_channel

HAZARD = 4
"""Advances between two visits of one accumulator row: read, register, add, write."""


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

    def __init__(self, config: Config) -> None:
        self.config = config
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
        rows, cols, size, bits = config.rows, config.cols, config.word_bytes, config.offset_bits
        row_bits = rows.bit_length() - 1
        r, mm = self.d.regs, self.d.mm
        transposed, by_columns = mm.transposed, mm.b == BMode.COLUMNS

        def offset_register(name: str) -> Signal:
            return Signal(signed(bits), name=name)

        # --- the tile nest: in a plain product one tile ahead of the streamed side ----------------
        tile_valid = Signal()
        column = Signal(16)  # first column of the tile
        remaining = Signal(16)  # pixels from this tile's group on
        b_base, b_ky, b_kx, b_tile, b_now = (
            offset_register(n) for n in ("b_base", "b_ky", "b_kx", "b_tile", "b_now")
        )
        # --- the tap nest -------------------------------------------------------------------------
        ky, kx, j = Signal(8), Signal(8), Signal(16)
        tap_y, tap_kx, tap_x = (offset_register(n) for n in ("tap_y", "tap_kx", "tap_x"))

        j_next = Signal(17)
        j_more, kx_more, ky_more = Signal(), Signal(), Signal()
        tap_first, tap_last = Signal(), Signal()
        m.d.comb += [
            j_next.eq(j + rows),
            j_more.eq(j_next < r.N_J),
            kx_more.eq((kx + 1)[:8] != r.N_TX),
            ky_more.eq((ky + 1)[:8] != r.N_TY),
            tap_last.eq(~(j_more | kx_more | ky_more)),
            tap_first.eq((j == 0) & (kx == 0) & (ky == 0)),
        ]
        group = Signal(range(max(config.acc_depth, 16) + 1))  # pixels of a full tile
        m.d.comb += group.eq(Mux(transposed, rows, r.N_G))
        group_more, column_more = Signal(), Signal()
        m.d.comb += [
            group_more.eq(remaining > group),
            column_more.eq(column + cols < r.N_C),
        ]

        # Registers move on strobes of the state machine: a register has few sources that way, and
        # few multiplexers.
        begin, tap_step, tile_step, b_strobe = Signal(), Signal(), Signal(), Signal()
        tap_x_next, tap_kx_next = offset_register("tap_x_next"), offset_register("tap_kx_next")
        m.d.comb += [
            tap_kx_next.eq(tap_kx + r.A_TX),
            tap_x_next.eq(Mux(j_more, tap_x + rows, tap_kx_next)),
        ]
        with m.If(tap_step):
            m.d.sync += [j.eq(j_next), tap_x.eq(tap_x_next)]
        with m.If(begin | (tap_step & ~j_more)):
            m.d.sync += j.eq(0)
        with m.If(begin | (tap_step & ~j_more & ~kx_more)):
            m.d.sync += tap_x.eq(0)
        with m.If(tap_step & ~j_more):
            m.d.sync += [kx.eq(kx + 1), tap_kx.eq(tap_kx_next)]
        with m.If(begin | (tap_step & ~j_more & ~kx_more)):
            m.d.sync += [kx.eq(0), tap_kx.eq(0)]
        with m.If(tap_step & ~j_more & ~kx_more):
            m.d.sync += [ky.eq(ky + 1), tap_y.eq(tap_y + r.A_TY)]
        with m.If(begin | (tap_step & tap_last)):
            m.d.sync += [ky.eq(0), tap_y.eq(0)]

        row_step = Signal(signed(bits))  # bytes of R rows, or of R elements of a column
        m.d.comb += row_step.eq(Mux(by_columns, rows, r.B_R << row_bits))
        column_step = Signal(signed(bits))
        m.d.comb += column_step.eq(Mux(by_columns, r.B_R << (cols.bit_length() - 1), cols))
        # The innermost level that moves: its register and those of the levels within take one sum.
        b_next = offset_register("b_next")
        b_from, b_step_by = offset_register("b_from"), offset_register("b_step_by")
        within_tap, within_row = Signal(), Signal()  # plain product: next tile in the same kx, ky
        within_column = Signal()  # next tile in the same columns, but not in the same group
        wrap = Signal()  # the next tile is another group
        m.d.comb += [
            within_tap.eq(~transposed & j_more),
            within_row.eq(~transposed & (j_more | kx_more)),
            wrap.eq(transposed | tap_last),
            within_column.eq(wrap & group_more),
        ]
        with m.If(within_tap):
            m.d.comb += [b_from.eq(b_tile), b_step_by.eq(row_step)]
        with m.Elif(within_row):
            m.d.comb += [b_from.eq(b_kx), b_step_by.eq(r.B_TX)]
        with m.Elif(~wrap):
            m.d.comb += [b_from.eq(b_ky), b_step_by.eq(r.B_TY)]
        with m.Else():
            m.d.comb += [b_from.eq(b_base), b_step_by.eq(Mux(within_column, 0, column_step))]
        m.d.comb += b_next.eq(Mux(begin, offset_of(config, r.B_BASE), b_from + b_step_by))
        nest_last = Signal()  # no further tile
        m.d.comb += nest_last.eq(~group_more & ~column_more & (transposed | tap_last))

        reload_b = Signal()  # the stationary words of another block begin
        with m.If(begin | tile_step):
            m.d.sync += b_tile.eq(b_next)
            with m.If(begin | ~within_tap):
                m.d.sync += b_kx.eq(b_next)
            with m.If(begin | ~within_row):
                m.d.sync += b_ky.eq(b_next)
            with m.If(begin | (wrap & ~group_more)):
                m.d.sync += b_base.eq(b_next)
            with m.If(begin | wrap):
                m.d.sync += remaining.eq(Mux(begin | ~group_more, r.N_P, remaining - group))
            m.d.sync += tile_valid.eq(begin | ~nest_last)
        with m.If(tile_step & wrap & ~group_more):
            m.d.sync += column.eq(column + cols)
        with m.If(begin):
            m.d.sync += column.eq(0)
        with m.If(b_strobe | reload_b):
            m.d.sync += b_now.eq(Mux(reload_b, b_next, b_now + r.B_R))

        # --- pixels -------------------------------------------------------------------------------
        pixel = data.StructLayout(
            {
                "x": unsigned(16),
                "y": unsigned(12),
                "column": signed(bits),
                "row": signed(bits),
                "image": signed(bits),
            }
        )
        here, mark, origin, back = (
            Signal(pixel, name=n) for n in ("here", "mark", "origin", "back")
        )
        step_pixel = Signal()  # to the next pixel
        to_mark, to_origin = Signal(), Signal()  # with priority, the latter first
        set_mark = Signal()  # the mark takes the pixel that comes now: in the next cycle
        marking = Signal()
        x_more, y_more = Signal(), Signal()
        m.d.comb += [
            origin.column.eq(r.A_X0),
            origin.row.eq(r.A_Y0),
            origin.image.eq(offset_of(config, r.A_BASE)),
            x_more.eq((here.x + 1)[:16] != r.N_X),
            y_more.eq((here.y + 1)[:12] != r.N_Y),
        ]
        go_back = Signal()
        m.d.comb += [
            go_back.eq(to_origin | to_mark),
            back.eq(Mux(to_origin, origin, mark)),
        ]
        m.d.sync += marking.eq(set_mark)
        with m.If(marking):
            m.d.sync += mark.eq(here)
        # A mark that is still on its way is the pixel itself.
        with m.If(to_origin | (to_mark & ~marking) | (step_pixel & ~to_mark)):
            row_ends = ~go_back & ~x_more
            image_ends = ~go_back & ~x_more & ~y_more
            m.d.sync += [
                here.x.eq(Mux(row_ends, 0, Mux(go_back, back.x, here.x + 1))),
                here.column.eq(
                    Mux(
                        to_origin | row_ends,
                        r.A_X0,
                        Mux(to_mark, mark.column, here.column + r.A_SX),
                    )
                ),
            ]
            with m.If(go_back | ~x_more):
                m.d.sync += [
                    here.y.eq(Mux(image_ends, 0, Mux(go_back, back.y, here.y + 1))),
                    here.row.eq(
                        Mux(
                            to_origin | image_ends,
                            r.A_Y0,
                            Mux(to_mark, mark.row, here.row + r.A_SY),
                        )
                    ),
                ]
            with m.If(go_back | image_ends):
                m.d.sync += here.image.eq(Mux(go_back, back.image, here.image + r.A_SN))

        # --- the tile that streams now ------------------------------------------------------------
        a_y, a_x = offset_register("a_y"), offset_register("a_x")
        a_bytes = Signal(range(rows + 1))  # bytes of a word that belong to the tap
        a_first, a_last = Signal(), Signal()
        a_left = Signal(range(config.acc_depth + 1))  # rows (words) still to stream
        b_left = Signal(range(size + 1))  # stationary words still to load
        b_lanes = Signal(size)
        gap_left = Signal(range(HAZARD + 1))
        swap_due = Signal()

        # Bytes of the tap at the nest's position, and valid words and lanes of its stationary
        # block.
        tap_bytes = Signal(range(rows + 1))
        m.d.comb += tap_bytes.eq(Mux(j_more, rows, (r.N_J - j)[: row_bits + 1]))
        tile_pixels = Signal(range(max(config.acc_depth, 16) + 1))
        m.d.comb += tile_pixels.eq(Mux(group_more, group, remaining))
        columns_here = Signal(range(cols + 1))
        m.d.comb += columns_here.eq(Mux(column_more, cols, (r.N_C - column)[: cols.bit_length()]))
        load_words = cols  # by columns
        lanes_c, lanes_j = Signal(size), Signal(size)
        m.d.comb += [
            lanes_c.eq(Cat(*[columns_here > i for i in range(cols)])),
            lanes_j.eq(Cat(*[tap_bytes > i for i in range(rows)])),
            b_lanes.eq(Mux(by_columns, lanes_j, lanes_c)),
        ]
        b_words = Signal(range(size + 1))  # words with data in this block
        m.d.comb += b_words.eq(
            Mux(by_columns, columns_here, Mux(transposed, tile_pixels, tap_bytes))
        )
        b_count = Signal(range(size + 1))  # words shifted in
        m.d.comb += b_count.eq(Mux(by_columns, load_words, rows))
        b_index = Signal(range(size + 1))

        # --- one advance --------------------------------------------------------------------------
        g_a, g_b, g_take = Signal(), Signal(), Signal()
        g_tag = Signal(row_tag())
        block_row = Signal(range(rows))  # word within a transposed block

        def b_step() -> None:
            """Issue one stationary word."""
            m.d.comb += g_b.eq(1)
            with m.If(self.advance):
                m.d.comb += b_strobe.eq(1)
                m.d.sync += [b_left.eq(b_left - 1), b_index.eq(b_index + 1)]

        def latch_tap() -> list[object]:
            return [a_y.eq(tap_y), a_x.eq(tap_x), a_bytes.eq(tap_bytes)]

        def leave() -> None:
            """What ends any state."""
            with m.If(self.clear):
                m.next = "idle"

        with m.FSM(name="nest") as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("idle"))
            with m.State("idle"):
                with m.If(self.start):
                    m.d.comb += [
                        begin.eq(1),
                        reload_b.eq(1),
                        to_origin.eq(1),
                        set_mark.eq(1),
                    ]
                    m.d.sync += [
                        b_index.eq(0),
                        b_left.eq(b_count),
                        a_left.eq(0),
                        gap_left.eq(0),
                        block_row.eq(0),
                    ]
                    with m.If(transposed):
                        m.next = "first block"
                    with m.Else():
                        m.next = "plain"
                leave()
            with m.State("plain"):
                do_a, do_b = Signal(), Signal()
                m.d.comb += [
                    do_a.eq(a_left != 0),
                    do_b.eq((b_left != 0) & (~self.serial | ~do_a)),
                    g_a.eq(do_a),
                    g_tag.valid.eq(do_a),
                    g_tag.swap.eq(swap_due),
                    g_tag.first.eq(a_first),
                    g_tag.last.eq(a_last),
                ]
                with m.If(do_b):
                    b_step()
                done = Signal(name="slot_done")
                m.d.comb += done.eq((a_left <= 1) & (b_left == do_b) & (gap_left <= 1))
                with m.If(self.advance):
                    with m.If(gap_left != 0):
                        m.d.sync += gap_left.eq(gap_left - 1)
                    with m.If(do_a):
                        m.d.comb += step_pixel.eq(1)
                        m.d.sync += [a_left.eq(a_left - 1), swap_due.eq(0)]
                    with m.If(done):
                        with m.If(~tile_valid):
                            m.next = "idle"
                        with m.Else():
                            # The nest's tile streams now, and its successor is loaded.
                            m.d.comb += [tap_step.eq(1), tile_step.eq(1), reload_b.eq(1)]
                            m.d.sync += [
                                *latch_tap(),
                                a_left.eq(tile_pixels),
                                a_first.eq(tap_first),
                                a_last.eq(tap_last),
                                swap_due.eq(1),
                                b_index.eq(0),
                                b_left.eq(Mux(nest_last, 0, b_count)),
                                gap_left.eq(Mux(nest_last, 0, HAZARD)),
                            ]
                            with m.If(tap_first):
                                # A new group goes on where the last one ended; a new column tile
                                # starts over.
                                m.d.comb += [to_origin.eq(remaining == r.N_P), set_mark.eq(1)]
                            with m.Else():
                                m.d.comb += to_mark.eq(1)
                leave()

            # A transposed tile: its first block of words brings the rows of the tile before it out
            # of the transposer, so the stationary block may follow at leisure.
            def block(first: bool) -> Value:
                """One word of a block; returns whether it is the last."""
                valid = Signal(name=f"pixel_valid_{int(first)}")
                m.d.comb += [
                    valid.eq(block_row < tile_pixels),
                    g_take.eq(1),
                    g_a.eq(valid),
                    g_tag.valid.eq(block_row < tap_bytes),
                    g_tag.swap.eq((block_row == 0) & tap_first & ~mm.bias),
                    g_tag.first.eq(remaining == r.N_P),
                    g_tag.last.eq(~group_more),
                    a_y_now.eq(tap_y),
                    a_x_now.eq(tap_x),
                    a_bytes_now.eq(tap_bytes),
                ]
                done = Signal(name=f"block_done_{int(first)}")
                m.d.comb += done.eq(block_row == rows - 1)
                with m.If(self.advance):
                    m.d.sync += block_row.eq(Mux(done, 0, block_row + 1))
                    m.d.comb += step_pixel.eq(valid)
                    with m.If(done):
                        m.d.comb += [
                            tap_step.eq(1),
                            set_mark.eq(tap_last),
                            to_origin.eq(tap_last & ~group_more),
                            to_mark.eq(~tap_last),
                        ]
                return done

            a_y_now, a_x_now = offset_register("a_y_now"), offset_register("a_x_now")
            a_bytes_now = Signal(range(rows + 1))
            only_block = Signal()

            def next_tile() -> None:
                """After the last block of a tile."""
                m.d.comb += [tile_step.eq(1), reload_b.eq(~group_more)]
                m.d.sync += [b_index.eq(0), b_left.eq(rows)]
                with m.If(nest_last):
                    m.next = "flush"
                with m.Else():
                    m.next = "first block"

            with m.State("first block"):
                done = block(True)
                with m.If(~self.serial):
                    b_step()
                with m.If(self.advance & done):
                    m.d.sync += only_block.eq(tap_last)
                    m.d.sync += gap_left.eq(
                        max(0, HAZARD - rows) - Mux(self.serial, rows, 0) - mm.bias
                        if rows == 2
                        else 0
                    )
                    with m.If(self.serial):
                        m.next = "load"
                    with m.Elif(mm.bias):
                        m.next = "ones"
                    with m.Elif(tap_last):
                        if rows == 2:
                            m.next = "gap"
                        else:
                            next_tile()
                    with m.Else():
                        m.next = "blocks"
                leave()
            with m.State("load"):
                b_step()
                with m.If(self.advance & (b_left == 1)):
                    with m.If(mm.bias):
                        m.next = "ones"
                    with m.Elif(only_block):
                        next_tile()
                    with m.Else():
                        m.next = "blocks"
                leave()
            with m.State("ones"):
                m.d.comb += [
                    g_tag.valid.eq(1),
                    g_tag.ones.eq(1),
                    g_tag.swap.eq(1),
                    g_tag.first.eq(remaining == r.N_P),
                    g_tag.last.eq(~group_more),
                ]
                with m.If(self.advance):
                    with m.If(only_block):
                        if rows == 2:
                            with m.If(self.serial):
                                next_tile()
                            with m.Else():
                                m.next = "gap"
                        else:
                            next_tile()
                    with m.Else():
                        m.next = "blocks"
                leave()
            if rows == 2:
                with m.State("gap"):
                    with m.If(self.advance):
                        m.d.sync += gap_left.eq(gap_left - 1)
                        with m.If(gap_left == 1):
                            next_tile()
                    leave()
            with m.State("blocks"):
                done = block(False)
                with m.If(self.advance & done & tap_last):
                    next_tile()
                leave()
            with m.State("flush"):
                m.d.comb += g_take.eq(1)
                with m.If(self.advance):
                    m.d.sync += block_row.eq(block_row + 1)
                    with m.If(block_row == rows - 1):
                        m.d.sync += block_row.eq(0)
                        m.next = "idle"
                leave()

        # --- address stage: what an advance issues ------------------------------------------------
        tap_row, tap_column, tap_width = (
            offset_register("tap_row"),
            offset_register("tap_column"),
            Signal(range(rows + 1)),
        )
        m.d.comb += [
            tap_row.eq(here.row + Mux(transposed, a_y_now, a_y)),
            tap_column.eq(here.column + Mux(transposed, a_x_now, a_x)),
            tap_width.eq(Mux(transposed, a_bytes_now, a_bytes)),
        ]
        inside = Signal(rows)
        y_inside = Signal()
        room = Signal(signed(bits + 1))  # bytes from the window's start to the right bound
        m.d.comb += [
            y_inside.eq((tap_row >= 0) & (tap_row < r.A_HB)),
            room.eq(r.A_WB - tap_column),
        ]
        near_left = Signal()
        m.d.comb += near_left.eq(tap_column[row_bits:].all())
        near_right = Signal()
        m.d.comb += near_right.eq((room >= 0) & (room < rows))
        for lane in range(rows):
            left = ~tap_column[-1] | (near_left & (tap_column[:row_bits] + lane >= rows))
            right = (room >= rows) | (near_right & (room[:row_bits] > lane))
            m.d.comb += inside[lane].eq(y_inside & left & right)
        width_mask = Signal(rows)
        m.d.comb += width_mask.eq(Cat(*[tap_width > lane for lane in range(rows)]))

        q_a, q_b, q_take = Signal(), Signal(), Signal()
        q_tag = Signal(row_tag())
        q_inside, q_a_mask, q_b_mask = Signal(rows), Signal(rows), Signal(size)
        q_a_offset, q_b_offset = Signal(bits), Signal(bits)
        with m.If(self.advance):
            m.d.sync += [
                q_a.eq(g_a),
                q_b.eq(g_b),
                q_take.eq(g_take),
                q_tag.eq(g_tag),
                q_inside.eq(inside),
                q_a_mask.eq(inside & width_mask),
                q_a_offset.eq(here.image + tap_row + tap_column),
                q_b_offset.eq(b_now),
                q_b_mask.eq(Mux(b_index < b_words, b_lanes, 0)),
            ]
        m.d.comb += [
            self.a.en.eq(q_a & self.advance),
            self.a.region.eq(region_of(config, r.A_BASE)),
            self.a.offset.eq(q_a_offset),
            self.a.mask.eq(q_a_mask),
            self.b.en.eq(q_b & q_b_mask.any() & self.advance),
            self.b.region.eq(region_of(config, r.B_BASE)),
            self.b.offset.eq(q_b_offset),
            self.b.mask.eq(q_b_mask),
            self.fault.eq(self.a.oor | self.b.oor),
        ]

        # --- memory stage and word stage ----------------------------------------------------------
        m_a, m_b, m_take = Signal(), Signal(), Signal()
        m_tag = Signal(row_tag())
        m_inside, m_b_mask = Signal(rows), Signal(size)
        w_b, w_take = Signal(), Signal()
        w_tag = Signal(row_tag())
        with m.If(self.advance):
            m.d.sync += [
                m_a.eq(q_a),
                m_b.eq(q_b),
                m_take.eq(q_take),
                m_tag.eq(q_tag),
                m_inside.eq(q_inside),
                m_b_mask.eq(q_b_mask),
            ]
        x_word, b_word = Signal(8 * rows), Signal(8 * size)
        with m.If(self.shift):
            m.d.sync += [w_b.eq(m_b), w_take.eq(m_take), w_tag.eq(m_tag)]
            for lane in range(rows):
                byte = self.a.data[8 * lane : 8 * lane + 8]
                m.d.sync += x_word[8 * lane : 8 * lane + 8].eq(Mux(m_inside[lane], byte, r.PAD))
            for lane in range(size):
                byte = self.b.data[8 * lane : 8 * lane + 8]
                m.d.sync += b_word[8 * lane : 8 * lane + 8].eq(Mux(m_b_mask[lane], byte, 0))
        m.d.comb += [
            self.x.eq(x_word),
            self.b_word.eq(b_word),
            self.load.eq(w_b),
            self.take.eq(w_take),
            self.tag.eq(w_tag),
            self.idle.eq(~(q_tag.valid | m_tag.valid | w_tag.valid | q_take | m_take | w_take)),
        ]
        with m.If(self.clear):
            m.d.sync += [
                s.eq(0)
                for s in (q_a, q_b, q_take, q_tag, m_a, m_b, m_take, m_tag, w_b, w_take, w_tag)
            ]
        return m
