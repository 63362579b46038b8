"""The vector path: from finished accumulator rows to memory.

    engine's row ---> select ---> shift ---> finish ---> planes ---> memory
                        ^                      ^  |        |
         bank of biases-+----------------------+<-+        |
                                               +-----------+  mask, masters

A finished row occupies a *window* of cycles in which the product engine stands still (all but the
last): `window`. The row's elements go through the lanes (`lane`), all at once or in groups; what is
stored of them comes from memory beforehand, and results go there afterwards (`planes`), at the
address that `result` keeps. Whole-row *chores* (loading a bias, updating it, the momentum update)
are short fixed sequences of reads, lane passes and writes, during which the engine stands still:
`chores`.
"""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import Config
from gradiron.arch.isa import Out as Result
from gradiron.arch.isa import Scale, Skip
from gradiron.arch.numerics import Rounding, Use
from gradiron.arch.timing import bank_words
from gradiron_hw.bank import Bank, Slot
from gradiron_hw.chores import Chores, chore_names
from gradiron_hw.descriptor import bundle, offset_of, region_of
from gradiron_hw.lane import Lane, Post, control_layout, control_of
from gradiron_hw.memory import read_channel, write_channel
from gradiron_hw.planes import Planes
from gradiron_hw.result import ResultAddress
from gradiron_hw.stream import row_tag
from gradiron_hw.window import Window

POSTS = {
    Result.INT8: Post.INT8,
    Result.LOGITS: Post.LOGITS,
    Result.MASTER: Post.MASTER,
    Result.INT8_WEIGHTS: Post.WEIGHTS8,
    Result.POOLED: Post.LOGITS,
    Result.MEASURE: Post.INT8,
}
"""What the lanes do with a row; momentum is a chore, and a loss is taken from the engine."""


class VectorPath(wiring.Component):
    """Windows, lanes, chores and the result's address.

    Members
    -------
    d : descriptor registers and MM fields, stable while busy
    start : begin an MM (one cycle); settles the window's length
    clear : stop at once and forget everything
    run : an MM is in progress
    shift_main, shift_bias, shift_skip : signed shift amounts, stable while busy
    arriving, row, shift : from the product engine
    advance : the engine may move
    serial : out: both operands come from one region
    idle : no result is on its way
    rnd_index, rnd_use, rnd_turn : to the random number unit; `rnd` comes two cycles later
    u, v : read channels (v only where both planes are handled at once)
    w, x : write channels (likewise)
    fault : a needed byte is out of range
    largest : OR of all magnitudes since `forget`; its bit length is that of the largest
    saturated : elements clipped in this cycle
    holding, writing : the engine stands still for the path, or for a write
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        members = {
            "d": In(bundle(config)),
            "start": In(1),
            "clear": In(1),
            "run": In(1),
            "shift_main": In(signed(6)),
            "shift_bias": In(signed(6)),
            "shift_skip": In(signed(6)),
            "arriving": In(row_tag()),
            "row": In(32 * config.cols),
            "shift": In(1),
            "advance": Out(1),
            "serial": Out(1),
            "idle": Out(1),
            "rnd_index": Out(config.offset_bits),
            "rnd_use": Out(3),
            "rnd_turn": Out(4),
            "rnd": In(16 * config.lanes),
            "u": Out(read_channel(config)),
            "w": Out(write_channel(config)),
            "fault": Out(1),
            "forget": In(1),
            "largest": Out(32),
            "saturated": Out(range(config.lanes + 1)),
            "holding": Out(1),
            "writing": Out(1),
        }
        if not config.stepwise:
            members |= {"v": Out(read_channel(config)), "x": Out(write_channel(config))}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        r, mm = self.d.regs, self.d.mm
        m.submodules.result = result = ResultAddress(config)
        m.submodules.window = window = Window(config)
        m.submodules.chores = chores = Chores(config)
        m.submodules.bank = bank = Bank(config)
        m.submodules.planes = planes = Planes(config)
        for unit in (result, window, chores):
            m.d.comb += [unit.d.regs.eq(r), unit.d.mm.eq(mm)]
        m.d.comb += [
            result.start.eq(self.start),
            window.start.eq(self.start),
            window.clear.eq(self.clear),
            chores.clear.eq(self.clear),
            chores.shift_main.eq(self.shift_main),
            chores.shift_bias.eq(self.shift_bias),
            result.step.eq(window.ends | chores.row_done),
            self.serial.eq(region_of(config, r.A_BASE) == region_of(config, r.B_BASE)),
        ]

        # --- what an arriving row brings about ----------------------------------------------------
        arrives = Signal()  # a finished row is formed in this cycle
        m.d.comb += arrives.eq(self.run & self.shift & self.arriving.valid & self.arriving.last)
        names = chore_names(config)
        m.d.comb += window.opens.eq(chores.reopens)
        with m.If(arrives):
            m.d.comb += chores.start.eq(1)
            with m.If(self.arriving.ones):
                m.d.comb += chores.which.eq(names.index("update bias"))
                if config.momentum:
                    with m.If(mm.out == Result.MOMENTUM):
                        m.d.comb += chores.which.eq(names.index("momentum bias"))
            with m.Elif(mm.bias & ~mm.transposed & result.fresh):
                m.d.comb += chores.which.eq(names.index("load bias"))
            with m.Elif((mm.out == Result.MOMENTUM) if config.momentum else 0):
                m.d.comb += chores.which.eq(names.index("momentum row") if config.momentum else 0)
            with m.Else():
                m.d.comb += [chores.start.eq(0), window.opens.eq(1)]
        standing = Signal()  # for a chore
        drain = Signal()  # for results that are still to be written
        busy = Signal()
        m.d.comb += [
            standing.eq(chores.held | chores.start),
            self.advance.eq(
                Mux(window.inside, window.ends, (~standing | chores.released) & ~drain)
            ),
            self.holding.eq((window.inside & ~window.ends) | standing),
            self.writing.eq(drain),
            self.idle.eq(~busy & ~standing & ~window.inside),
        ]
        if config.drains:
            m.d.comb += drain.eq(~window.inside & ~standing & busy)

        # --- elements on their way through the lanes ----------------------------------------------
        element = data.StructLayout(
            {
                "valid": unsigned(1),
                "group": unsigned(len(window.group)),
                "live": unsigned(config.lanes),  # columns of the group that count
                "last": unsigned(1),  # last group of a row that goes to memory
                "skip": unsigned(1),  # of the skip operand
            }
        )
        issue, select, move, finish = (
            Signal(element, name=n) for n in ("issue", "select", "move", "finish")
        )
        m.d.sync += [select.eq(issue), move.eq(select), finish.eq(move)]
        with m.If(self.clear):
            m.d.sync += [select.valid.eq(0), move.valid.eq(0), finish.valid.eq(0)]
        group = Signal.like(window.group)
        writes = (mm.out != Result.MEASURE) & (mm.out != Result.LOSS)
        m.d.comb += [
            group.eq(Mux(chores.passes, chores.group, window.group)),
            issue.valid.eq(window.issue | window.issue_skip | chores.issue),
            issue.skip.eq(window.issue_skip),
            issue.group.eq(group),
            issue.live.eq(result.valid.word_select(group, config.lanes)),
            issue.last.eq(Mux(chores.passes, chores.last & ~chores.to_bank, window.ends & writes)),
        ]
        self._lanes(m, chores, bank, planes, group, select, move, finish, result)
        written = Signal()  # results of a whole row are in the planes from the next cycle on
        m.d.comb += written.eq(finish.valid & finish.last)
        pending = self._memory(m, window, chores, bank, planes, result, issue, written)
        m.d.comb += busy.eq(issue.valid | select.valid | move.valid | finish.valid | pending.any())
        return m

    def _lanes(
        self,
        m: Module,
        chores: Chores,
        bank: Bank,
        planes: Planes,
        group: Value,
        select: Any,
        move: Any,
        finish: Any,
        result: ResultAddress,
    ) -> None:
        """Lanes with all that goes in and out, the largest magnitude, the saturations."""
        config, mm = self.config, self.d.mm
        lanes = config.lanes
        control = Signal(control_layout())
        use = Signal(3)
        counts = Signal()
        m.d.comb += [
            control.eq(chores.control),
            use.eq(chores.use),
            counts.eq(chores.counts),
        ]
        with m.If(~chores.passes):
            m.d.comb += [
                control.relu.eq(mm.relu & ~select.skip),
                control.round.eq(mm.round),
                control.amount.eq(self.shift_main),
                use.eq(Mux(mm.out == Result.INT8, Use.DX, Use.DW)),
                counts.eq((mm.out != Result.MEASURE) & ~finish.skip),
            ]
            with m.Switch(mm.out):
                for out, post in POSTS.items():
                    with m.Case(out):
                        for name, value in control_of(post).items():
                            m.d.comb += getattr(control, name).eq(value)
            with m.If(mm.out == Result.POOLED):
                m.d.comb += control.amount.eq(0)
            # Of the skip operand the stages see different elements at different times.
            with m.If(move.skip):
                m.d.comb += [
                    control.round.eq(Rounding.NEAREST),
                    control.amount.eq(self.shift_skip),
                    control.subtract.eq(mm.skip == Skip.SUBTRACT),
                ]
            with m.If(finish.skip):
                m.d.comb += [control.narrow.eq(0), control.from_bank.eq(1)]

        # Bits of a random number are turned so that those that count lie at the top.
        amount = control.amount
        by_column = (use == Use.DB) | (use == Use.BIAS_DECAY)
        m.d.comb += [
            self.rnd_index.eq(
                Mux(by_column, result.column, result.offset) + (group << (lanes - 1).bit_length())
            ),
            self.rnd_use.eq(use),
            self.rnd_turn.eq(Mux(amount >= 16, 0, -amount)),
        ]

        # A skip operand is added to the bias in the bank; the sum of both is added to the row.
        skips = mm.skip != Skip.NONE
        push = finish.valid & ~finish.skip
        m.d.comb += [
            bank.slot.eq(Mux(mm.bias & ~mm.transposed, Slot.BIAS, Slot.NOTHING)),
            bank.group.eq(group),
            bank.to_slot.eq(Slot.SKIP),
            bank.to_group.eq(finish.group),
            bank.write.eq(finish.valid & finish.skip),
            planes.push_high.eq(push),
            planes.push_low.eq(push),
            planes.approach.eq(move.valid & ~chores.passes),
        ]
        with m.If(move.skip):
            m.d.comb += bank.group.eq(move.group)
        with m.Elif(skips):
            m.d.comb += bank.slot.eq(Slot.SKIP)
        if config.stepwise:
            with m.If(skips):
                m.d.comb += planes.push_low.eq(select.skip)
        with m.If(chores.held):
            m.d.comb += [
                bank.slot.eq(chores.slot),
                bank.group.eq(chores.group),
                bank.to_slot.eq(chores.slot),
                bank.to_group.eq(chores.group),
                bank.write.eq(finish.valid & chores.passes & chores.to_bank),
            ]
        row = Signal(32 * lanes)
        # A pass selects its row or planes in the cycle after the issue.
        m.d.comb += row.eq(self.row.word_select(select.group, 32 * lanes))
        magnitudes: list[Value] = []
        clipped: list[Value] = []
        tracked = Signal()
        m.d.comb += tracked.eq(
            move.valid
            & ~move.skip
            & ~chores.passes
            & (((mm.out == Result.INT8) & (mm.scale == Scale.TRACKER)) | (mm.out == Result.MEASURE))
        )
        for i in range(lanes):
            lane = Lane()
            m.submodules[f"lane_{i}"] = lane
            word, byte, half = slice(32 * i, 32 * i + 32), slice(8 * i, 8 * i + 8), 16 * i
            high = planes.high[byte]
            own: Value = bank.data[word].as_signed()
            own = Mux(select.skip, planes.low[byte].as_signed(), own)
            if config.momentum:
                stored = Cat(planes.low[byte], high).as_signed()
                own = Mux(chores.passes & chores.source_planes, stored, own)
            from_row = ~select.skip & (~chores.passes | chores.source_row)
            m.d.comb += [
                lane.control.eq(control),
                lane.sum.eq(Mux(from_row, row[word], 0)),
                lane.own.eq(own),
                lane.random.eq(self.rnd[half : half + 16]),
                lane.high.eq(high),
                lane.low.eq(planes.low[byte]),
                lane.bank.eq(bank.data[word]),
                bank.result[word].eq(lane.result),
                planes.result_low[byte].eq(lane.result[:8]),
            ]
            hidden = mm.mask & ~chores.passes & (high[-1] | ~high.any())
            with m.If(control.word):
                m.d.comb += planes.result_high[byte].eq(lane.result[8:16])
            with m.Elif(~hidden):
                m.d.comb += planes.result_high[byte].eq(lane.result[:8])
            # -v is ~(v - 1): one chain of carries, whose last use is the OR.
            v = lane.value
            sign = v[-1].replicate(32)
            magnitude = (v + sign)[:32] ^ sign
            live = move.live[i].replicate(32) if lanes > 1 else -1
            magnitudes.append(magnitude & live)
            clipped.append(finish.live[i] & lane.clipped)
        largest: Value = magnitudes[0]
        for value in magnitudes[1:]:
            largest = largest | value
        with m.If(tracked & move.live.any()):
            m.d.sync += self.largest.eq(self.largest | largest)
        with m.If(self.forget):
            m.d.sync += self.largest.eq(0)
        with m.If(finish.valid & counts):
            m.d.comb += self.saturated.eq(sum(clipped))

    def _memory(
        self,
        m: Module,
        window: Window,
        chores: Chores,
        bank: Bank,
        planes: Planes,
        result: ResultAddress,
        issue: Any,
        written: Signal,
    ) -> Signal:
        """Reads and writes of data memory.

        Returns
        -------
        pending : planes of a finished row that are still to be written
        """
        config, r, mm = self.config, self.d.regs, self.d.mm
        u, w = self.u, self.w
        two_planes = (
            (mm.out == Result.MASTER)
            | (mm.out == Result.MOMENTUM)
            | (mm.out == Result.LOGITS)
            | (mm.out == Result.POOLED)
        )
        first = Mux(mm.mask, r.M_BASE, r.O_BASE)  # the word that a row's result needs

        # Where the finished row goes: its address has moved on by then.
        offset, columns = Signal.like(result.offset), Signal.like(result.valid)
        if config.stepwise:
            with m.If(issue.last & issue.valid):
                m.d.sync += [offset.eq(result.offset), columns.eq(result.valid)]
        else:
            way: Value = Cat(result.offset, result.valid)
            for stage in ("select", "move", "finish"):
                register = Signal(len(way), name=f"way_{stage}")
                m.d.sync += register.eq(way)
                way = register
            with m.If(written):
                m.d.sync += Cat(offset, columns).eq(way)
        pending = Signal(2)
        with m.If(written):
            m.d.sync += pending.eq(Cat(1, two_planes))
        with m.If(self.clear):
            m.d.sync += pending.eq(0)

        # Words of a chore: a row's plane, or biases of the column tile.
        words = bank_words(config)
        part = 4 * config.cols // words
        per_byte = [
            Cat(*[result.valid[(k * part + i) // 4] for i in range(part)]) for k in range(words)
        ]
        bias_mask = Cat(*per_byte).word_select(chores.word, part)
        bias_offset = Cat(chores.word << part.bit_length() - 1, 0)[
            : (4 * config.cols - 1).bit_length()
        ]
        bias_offset = (result.column << 2) | bias_offset
        chore_offset = Mux(chores.planes, result.offset, bias_offset)
        chore_mask = Mux(chores.planes, result.valid, bias_mask)
        chore_write = chores.write
        chore_data = Mux(
            chores.planes,
            Mux(chores.low, planes.out_low, planes.out_high),
            bank.part,
        )

        high_now, low_now = Signal(), Signal()
        came_high, came_low, came_words = Signal(), Signal(), Signal()
        came_word = Signal.like(chores.word)
        came_skip, from_chore = Signal(), Signal()
        m.d.sync += [
            came_high.eq(window.read_high | (chores.read & chores.planes & ~chores.low)),
            came_low.eq(
                window.read_low | window.read_skip | (chores.read & chores.planes & chores.low)
            ),
            from_chore.eq(chores.read),
            came_skip.eq(window.read_skip),
            came_words.eq(chores.read & ~chores.planes),
            came_word.eq(chores.word),
        ]
        m.d.comb += [
            # A chore that has been stopped leaves the slot NOTHING as it is.
            bank.take.eq(came_words & chores.held),
            bank.word.eq(Mux(came_words, came_word, chores.word)),
            bank.bytes.eq(u.data),
            planes.load_high.eq(came_high),
            planes.load_low.eq(came_low),
            planes.new_high.eq(u.data),
            planes.new_low.eq(u.data),
            planes.direct.eq(from_chore | came_skip),
        ]

        if config.stepwise:
            # One access at a time: one adder makes all addresses.
            address = Signal(len(first))
            index, mask = Signal.like(offset), Signal(config.word_bytes)
            m.d.comb += [
                high_now.eq(pending[0] & (~window.inside | window.write_high)),
                low_now.eq(pending[1] & Mux(window.inside, window.write_low, ~pending[0])),
                u.en.eq(window.read_high | window.read_low | window.read_skip | chores.read),
                w.en.eq(high_now | low_now | chore_write),
                w.data.eq(planes.out_high),
                mask.eq(result.valid),
                index.eq(result.offset),
            ]
            with m.If(chores.read | chores.write):
                m.d.comb += [
                    address.eq(chores.address),
                    index.eq(chore_offset),
                    mask.eq(chore_mask),
                    w.data.eq(chore_data),
                ]
            with m.Else():
                with m.If(high_now | low_now):
                    m.d.comb += [index.eq(offset), mask.eq(columns)]
                with m.If(window.read_skip):
                    m.d.comb += address.eq(r.S_BASE)
                with m.Elif(low_now | window.read_low):
                    m.d.comb += [address.eq(r.O_LO), w.data.eq(planes.out_low)]
                with m.Elif(mm.mask & ~high_now):
                    m.d.comb += address.eq(r.M_BASE)
                with m.Else():
                    m.d.comb += address.eq(r.O_BASE)
            target = Signal.like(offset)
            m.d.comb += target.eq(offset_of(config, address) + index)
            for channel in (u, w):
                m.d.comb += [
                    channel.region.eq(region_of(config, address)),
                    channel.offset.eq(target),
                    channel.mask.eq(mask),
                ]
            with m.If(high_now):
                m.d.sync += pending[0].eq(0)
            with m.If(low_now):
                m.d.sync += pending[1].eq(0)
            m.d.comb += self.fault.eq(u.oor | w.oor)
            return pending

        v, x = self.v, self.x
        same_region = region_of(config, r.O_BASE) == region_of(config, r.O_LO)
        turns = config.single_port  # reads, writes and the engine take turns
        m.d.comb += [
            high_now.eq(pending[0] & (window.write_high if turns else 1)),
            low_now.eq(
                pending[1]
                & Mux(window.inside & turns, window.write_low, ~(pending[0] & same_region))
            ),
            u.en.eq(window.read_high | chores.read),
            u.region.eq(region_of(config, first)),
            u.offset.eq(offset_of(config, first) + result.offset),
            u.mask.eq(result.valid),
            v.en.eq(window.read_low | window.read_skip),
            v.region.eq(region_of(config, r.O_LO)),
            v.offset.eq(offset_of(config, r.O_LO) + result.offset),
            v.mask.eq(result.valid),
            w.en.eq(high_now | chores.write),
            w.region.eq(region_of(config, r.O_BASE)),
            w.offset.eq(offset_of(config, r.O_BASE) + offset),
            w.mask.eq(columns),
            w.data.eq(planes.out_high),
            x.en.eq(low_now),
            x.region.eq(region_of(config, r.O_LO)),
            x.offset.eq(offset_of(config, r.O_LO) + offset),
            x.mask.eq(columns),
            x.data.eq(planes.out_low),
            self.fault.eq(u.oor | w.oor | v.oor | x.oor),
        ]
        with m.If(window.read_skip):
            m.d.comb += [
                v.region.eq(region_of(config, r.S_BASE)),
                v.offset.eq(offset_of(config, r.S_BASE) + result.offset),
            ]
        with m.If(~from_chore):
            m.d.comb += planes.new_low.eq(v.data)
        with m.If(chores.read | chores.write):
            for channel in (u, w):
                m.d.comb += [
                    channel.region.eq(region_of(config, chores.address)),
                    channel.offset.eq(offset_of(config, chores.address) + chore_offset),
                    channel.mask.eq(chore_mask),
                ]
            m.d.comb += w.data.eq(chore_data)
        with m.If(~written):
            m.d.sync += pending.eq(pending & ~Cat(high_now, low_now))
        return pending
