"""The vector path: from finished accumulator rows to memory.

A finished row occupies a *window* of cycles in which the product engine stands still (all but the
last). In the window's phases the path reads what the result needs (mask, master planes), sends the
row through the lanes in one or two groups, and, where memory has a single port, writes earlier
results. The window's length is fixed by the instruction's operands:

    lanes       C / lanes groups
    reads       one phase per read of a region; a region that an operand comes from is free in all
                phases but the last, in which the engine advances
    writes      two planes in one region need one phase more than the groups

A lane: select, add bias, ReLU | add the rounding term | shift and saturate | subtract, saturate,
mask. Whole-row chores (loading a bias, updating it, the momentum update) are short fixed sequences
of reads, lane passes and writes, during which the engine stands still.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from amaranth.hdl import (
    Array,
    Cat,
    Const,
    Module,
    Mux,
    Signal,
    Value,
    signed,
    unsigned,
)
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import Config
from gradiron.arch.isa import Out as Result
from gradiron.arch.numerics import MASTER_MIN, PRELOAD_LIMIT, Rounding, Use
from gradiron.arch.timing import CHORE_STEPS, step_cycles
from gradiron_hw.descriptor import bundle, offset_of, region_of
from gradiron_hw.memory import read_channel, write_channel
from gradiron_hw.stream import row_tag


class Post(IntEnum):
    """What the last lane stage does with the shifted value q."""

    INT8 = 0
    LOGITS = 1
    MASTER = 2
    WEIGHTS8 = 3
    BIAS_LOAD = 4
    BIAS_SUB = 5
    BIAS_ADD = 6
    MOMENTUM_ADD = 7


@dataclass(frozen=True)
class Chore:
    """A step of a chore.

    Parameters
    ----------
    kind : str
        "wait", "read", "write" (biases), "read planes", "write planes", "copy" or "pass".
    base : str
        Register with the address.
    """

    kind: str
    base: str = ""
    low: str = ""
    source: str = ""
    shift: str | int = 0
    round: Rounding = Rounding.NEAREST
    use: Use = Use.DX
    post: Post = Post.INT8
    count: bool = False


_SR = Rounding.STOCHASTIC
CHORES: dict[str, tuple[Chore, ...]] = {
    "load bias": (
        Chore("wait"),
        Chore("read", "BIAS"),
        Chore("pass", source="bias", shift="bias", post=Post.BIAS_LOAD),
    ),
    "update bias": (
        Chore("wait"),
        Chore("read", "BIAS"),
        Chore(
            "pass",
            source="row",
            shift="bias",
            round=_SR,
            use=Use.DB,
            post=Post.BIAS_SUB,
            count=True,
        ),
        Chore("write", "BIAS"),
        Chore("release"),
    ),
    "momentum bias": (
        Chore("wait"),
        Chore("read", "V_BIAS"),
        Chore("pass", source="bias", shift=3, round=_SR, use=Use.BIAS_DECAY, post=Post.BIAS_SUB),
        Chore("pass", source="row", shift="bias", round=_SR, use=Use.DB, post=Post.BIAS_ADD),
        Chore("write", "V_BIAS"),
        Chore("copy"),
        Chore("read", "BIAS"),
        Chore("pass", source="row", shift=0, post=Post.BIAS_SUB, count=True),
        Chore("write", "BIAS"),
        Chore("release"),
    ),
    "momentum row": (
        Chore("wait"),
        Chore("read planes", "V_HI", "V_LO"),
        Chore(
            "pass", source="bias", shift=3, round=_SR, use=Use.MOMENTUM_DECAY, post=Post.BIAS_SUB
        ),
        Chore("pass", source="row", shift="main", round=_SR, use=Use.DW, post=Post.MOMENTUM_ADD),
        Chore("write planes", "V_HI", "V_LO"),
        Chore("read planes", "O_BASE", "O_LO"),
        Chore(
            "pass",
            source="bias",
            shift=4,
            round=_SR,
            use=Use.MOMENTUM_STEP,
            post=Post.MASTER,
            count=True,
        ),
        Chore("settle"),
    ),
}
"""The chores, step by step; their lengths are in `gradiron.arch.timing`."""
assert {name: tuple(s.kind for s in steps) for name, steps in CHORES.items()} == CHORE_STEPS


class VectorPath(wiring.Component):
    """Windows, lanes, chores and the result's address generator.

    Members
    -------
    d : descriptor registers and MM fields, stable while busy
    start : begin an MM (one cycle); settles the window's length
    clear : stop at once and forget everything
    shift_main, shift_bias : signed shift amounts, stable while busy
    arriving, row, shift : from the product engine
    advance : the engine may move
    serial : out: both operands come from one region
    idle : no result is on its way
    rnd_index, rnd_use, rnd_turn : to the random number unit; `rnd` comes two cycles later
    u, v : read channels (v only where memory has two ports)
    w, x : write channels (likewise)
    fault : a needed byte is out of range
    largest : OR of all magnitudes since `forget`; its bit length is that of the largest
    saturations : elements clipped since `start`
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
            "saturations": Out(24),
            "holding": Out(1),
            "writing": Out(1),
        }
        if not config.single_port:
            members |= {"v": Out(read_channel(config)), "x": Out(write_channel(config))}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        cols, size, bits = config.cols, config.word_bytes, config.offset_bits
        lanes, groups = config.lanes, config.groups
        single = config.single_port
        r, mm = self.d.regs, self.d.mm
        transposed = mm.transposed
        out = mm.out
        is_master = out == Result.MASTER
        is_momentum = out == Result.MOMENTUM
        is_logits = out == Result.LOGITS
        two_planes = Signal()
        m.d.comb += two_planes.eq(is_master | is_momentum | is_logits)

        # --- the window's shape, settled at the start of an instruction ---------------------------
        region_a, region_b = region_of(config, r.A_BASE), region_of(config, r.B_BASE)
        first_base = Mux(mm.mask, r.M_BASE, r.O_BASE)
        region_1, region_2 = region_of(config, first_base), region_of(config, r.O_LO)
        region_o = region_of(config, r.O_BASE)
        reads_1, reads_2 = Signal(), Signal()  # mask or high plane; low plane
        m.d.comb += [
            reads_1.eq(mm.mask | is_master | (out == Result.INT8_WEIGHTS)),
            reads_2.eq(is_master),
        ]

        def operand(region: Value) -> Value:
            return (region == region_a) | (region == region_b)

        window = Signal(4)  # cycles
        phase_2 = Signal()  # phase of the second read
        write_phase = Signal(2)  # single port: first write phase
        same_plane = Signal()  # both planes are written to one region
        settled = Signal(4)
        if single:
            count_reads, count_writes = Signal(2), Signal(2)
            clash = Signal()
            slots = Signal(4)
            m.d.comb += [
                count_reads.eq(reads_1 + reads_2),
                count_writes.eq(1 + two_planes),
                clash.eq(
                    (reads_1 & operand(region_1))
                    | operand(region_o)
                    | (two_planes & operand(region_2))
                ),
                slots.eq(count_reads + count_writes + clash),
                settled.eq(Mux(slots < groups, groups, slots)),
            ]
            with m.If(self.start):
                m.d.sync += [phase_2.eq(1), write_phase.eq(count_reads)]
        else:
            clash_1, clash_2 = Signal(), Signal()
            later = Signal()
            m.d.comb += [
                clash_1.eq(reads_1 & operand(region_1)),
                clash_2.eq(reads_2 & operand(region_2)),
                later.eq(reads_2 & (region_1 == region_2)),
            ]
            need_1, need_2, need_w = Signal(4), Signal(4), Signal(4)
            most = Signal(4)
            m.d.comb += [
                need_1.eq(1 + clash_1),
                need_2.eq(Mux(reads_2, 1 + later + clash_2, 1)),
                need_w.eq(Mux(two_planes & (region_o == region_2), 2, groups)),
                most.eq(Mux(need_1 > need_2, need_1, need_2)),
                settled.eq(Mux(most > need_w, most, need_w)),
            ]
            with m.If(self.start):
                m.d.sync += phase_2.eq(later)
        with m.If(self.start):
            m.d.sync += [window.eq(settled), same_plane.eq(region_o == region_2)]
            m.d.sync += self.serial.eq(region_a == region_b)

        # --- the result's address generator -------------------------------------------------------
        offset, offset_1, offset_2, base = (
            Signal(bits, name=f"result_{n}") for n in ("offset", "row", "image", "column_base")
        )
        column = Signal(16)
        inner, middle, outer = Signal(16), Signal(12), Signal(16)
        inner_more, middle_more, ended = Signal(), Signal(), Signal()
        fresh = Signal()  # the next row is the first of its columns
        step_row = Signal()
        m.d.comb += [
            inner_more.eq(inner + 1 < Mux(transposed, r.N_J, r.N_X)),
            middle_more.eq(middle + 1 < Mux(transposed, r.N_TX, r.N_Y)),
            ended.eq(
                Mux(
                    transposed,
                    ~inner_more & ~middle_more & (outer + 1 == r.N_TY),
                    outer + 1 == r.N_P,
                )
            ),
        ]
        column_valid = Signal(cols)
        m.d.comb += column_valid.eq(Cat(*[column + c < r.N_C for c in range(cols)]))
        next_1, next_2, next_base = Signal(bits), Signal(bits), Signal(bits)
        m.d.comb += [
            next_1.eq(offset_1 + r.O_S1),
            next_2.eq(offset_2 + r.O_S2),
            next_base.eq(base + cols),
        ]
        with m.If(self.start):
            m.d.sync += [
                offset.eq(r.O_OFF),
                offset_1.eq(r.O_OFF),
                offset_2.eq(r.O_OFF),
                base.eq(r.O_OFF),
                column.eq(0),
                inner.eq(0),
                middle.eq(0),
                outer.eq(0),
                fresh.eq(1),
            ]
        with m.Elif(step_row):
            m.d.sync += fresh.eq(ended)
            with m.If(ended):
                m.d.sync += [
                    offset.eq(next_base),
                    offset_1.eq(next_base),
                    offset_2.eq(next_base),
                    base.eq(next_base),
                    column.eq(column + cols),
                    inner.eq(0),
                    middle.eq(0),
                    outer.eq(0),
                ]
            with m.Else():
                with m.If(~transposed | (~inner_more & ~middle_more)):
                    m.d.sync += outer.eq(outer + 1)
                with m.If(inner_more):
                    m.d.sync += [inner.eq(inner + 1), offset.eq(offset + r.O_S0)]
                with m.Elif(middle_more):
                    m.d.sync += [
                        inner.eq(0),
                        middle.eq(middle + 1),
                        offset.eq(next_1),
                        offset_1.eq(next_1),
                    ]
                with m.Else():
                    m.d.sync += [
                        inner.eq(0),
                        middle.eq(0),
                        offset.eq(next_2),
                        offset_1.eq(next_2),
                        offset_2.eq(next_2),
                    ]

        # --- windows and chores -------------------------------------------------------------------
        chore_names = [n for n in CHORES if config.momentum or not n.startswith("momentum")]
        opening = Signal()
        arrives = Signal()  # a finished row arrives in this cycle
        m.d.comb += arrives.eq(self.run & self.shift & self.arriving.valid & self.arriving.last)
        phase = Signal(4)  # of the window in progress; 0: none
        now = Signal(4)
        in_window, ends = Signal(), Signal()
        chore_ends = Signal()
        reopen = Signal()  # the bias is loaded: the row's window begins
        released = Signal()  # a chore ends, and with it its row
        m.d.comb += [
            in_window.eq(opening | (phase != 0)),
            now.eq(Mux(opening, 0, phase)),
            ends.eq(in_window & (now == window - 1)),
        ]
        m.d.sync += phase.eq(Mux(in_window & ~ends, now + 1, 0))

        busy_items = Signal()
        drain = Signal()
        held = Signal()  # a chore is in progress
        starts_chore = Signal()
        m.d.comb += self.advance.eq(
            Mux(in_window, ends, ~(held & ~released) & ~starts_chore & ~drain)
        )
        m.d.comb += [
            self.holding.eq((in_window & ~ends) | held | starts_chore),
            self.writing.eq(drain),
        ]
        if single:
            m.d.comb += drain.eq(~in_window & ~held & ~starts_chore & busy_items)

        chore = Signal(range(len(chore_names)))
        chosen = Signal(range(len(chore_names)))
        tick = Signal(4)
        step = Signal(4)
        wants_bias = mm.bias & ~transposed & fresh
        is_ones = self.arriving.ones
        with m.If(arrives):
            with m.If(is_ones):
                m.d.comb += [starts_chore.eq(1), chosen.eq(chore_names.index("update bias"))]
                if config.momentum:
                    with m.If(is_momentum):
                        m.d.comb += chosen.eq(chore_names.index("momentum bias"))
            with m.Elif(wants_bias):
                m.d.comb += [starts_chore.eq(1), chosen.eq(chore_names.index("load bias"))]
            with m.Else():
                if config.momentum:
                    with m.If(is_momentum):
                        m.d.comb += [
                            starts_chore.eq(1),
                            chosen.eq(chore_names.index("momentum row")),
                        ]
                    with m.Else():
                        m.d.comb += opening.eq(1)
                else:
                    m.d.comb += opening.eq(1)
        with m.If(reopen):
            m.d.comb += opening.eq(1)
        with m.If(starts_chore):
            m.d.sync += [held.eq(1), chore.eq(chosen), step.eq(0), tick.eq(1)]

        # --- lanes --------------------------------------------------------------------------------
        bias = Signal(32 * cols)
        row = Signal(32 * cols)
        copied = Signal()  # the bias register stands in for the row (momentum of the biases)
        m.d.comb += row.eq(Mux(copied, self._copy(m), self.row))
        item = data.StructLayout(
            {
                "valid": unsigned(1),
                "group": unsigned(1),
                "from_bias": unsigned(1),
                "add_bias": unsigned(1),
                "relu": unsigned(1),
                "track": unsigned(1),
                "count": unsigned(1),
                "masked": unsigned(1),
                "final": unsigned(1),
                "round": unsigned(2),
                "post": unsigned(3),
                "columns": unsigned(cols),
                "offset": unsigned(bits),
            }
        )
        issue, e0, e1, e2, e3 = (
            Signal(item, name=n) for n in ("issue", "select", "add", "move", "finish")
        )
        m.d.sync += [e0.eq(issue), e1.eq(e0), e2.eq(e1), e3.eq(e2)]
        pending = Signal(2)  # planes of a finished row still to be written
        m.d.comb += busy_items.eq(
            issue.valid | e0.valid | e1.valid | e2.valid | e3.valid | pending.any()
        )
        m.d.comb += self.idle.eq(~busy_items & ~held & ~in_window & ~starts_chore)

        amount = Signal(signed(6))
        m.d.comb += amount.eq(self.shift_main)
        use = Signal(3)
        result_use = Signal(3)
        m.d.comb += result_use.eq(Mux(out == Result.INT8, Use.DX, Use.DW))

        group_now = Signal()
        first_phase = window - groups
        with m.If(in_window & (now >= first_phase)):
            m.d.comb += [
                group_now.eq((now - first_phase)[0] if groups == 2 else 0),
                issue.valid.eq(1),
                issue.group.eq(group_now),
                issue.add_bias.eq(mm.bias & ~transposed),
                issue.relu.eq(mm.relu),
                issue.track.eq(out == Result.INT8),
                issue.count.eq(1),
                issue.masked.eq(mm.mask),
                issue.final.eq(ends),
                issue.round.eq(mm.round),
                issue.columns.eq(column_valid),
                issue.offset.eq(offset),
                use.eq(result_use),
            ]
            with m.Switch(out):
                with m.Case(Result.INT8):
                    m.d.comb += issue.post.eq(Post.INT8)
                with m.Case(Result.LOGITS):
                    m.d.comb += issue.post.eq(Post.LOGITS)
                with m.Case(Result.INT8_WEIGHTS):
                    m.d.comb += issue.post.eq(Post.WEIGHTS8)
                with m.Default():
                    m.d.comb += issue.post.eq(Post.MASTER)
        m.d.comb += step_row.eq(ends | (chore_ends & self._is_row_chore(chore, chore_names)))

        # --- chores, step by step
        bias_first = Signal(bits)  # bytes before this column tile's biases
        m.d.comb += bias_first.eq(column << 2)
        u_chore, w_chore = Signal(), Signal()
        u_chore_address = Signal(2 + bits - 1)
        chore_offset = Signal(bits)
        chore_mask = Signal(size)
        bias_word = Signal(2)  # which quarter of the bias register a read or write is about
        bias_take = Signal()
        plane_take = Signal(2)
        to_aux = Signal()
        chore_shift = Signal(signed(6))
        in_pass = Signal()
        byte_mask = Array(
            [Cat(*[column_valid[(k * cols + i) // 4] for i in range(cols)]) for k in range(4)]
        )
        with m.If(held):
            m.d.sync += tick.eq(tick + 1)
            with m.Switch(chore):
                for index, name in enumerate(chore_names):
                    with m.Case(index):
                        steps = CHORES[name]
                        with m.Switch(step):
                            for number, action in enumerate(steps):
                                length = step_cycles(action.kind, groups)
                                with m.Case(number):
                                    with m.If(tick == length - 1):
                                        m.d.sync += [tick.eq(0), step.eq(step + 1)]
                                        if number == len(steps) - 1:
                                            m.d.comb += chore_ends.eq(1)
                                            m.d.sync += held.eq(0)
                                            if name == "load bias":
                                                m.d.sync += reopen.eq(1)
                                            else:
                                                m.d.comb += released.eq(1)
                                    self._action(
                                        m,
                                        action,
                                        {
                                            "r": r,
                                            "tick": tick,
                                            "bits": bits,
                                            "cols": cols,
                                            "groups": groups,
                                            "u_chore": u_chore,
                                            "w_chore": w_chore,
                                            "address": u_chore_address,
                                            "chore_offset": chore_offset,
                                            "chore_mask": chore_mask,
                                            "bias_first": bias_first,
                                            "bias_word": bias_word,
                                            "bias_take": bias_take,
                                            "plane_take": plane_take,
                                            "to_aux": to_aux,
                                            "byte_mask": byte_mask,
                                            "column_valid": column_valid,
                                            "offset": offset,
                                            "issue": issue,
                                            "use": use,
                                            "in_pass": in_pass,
                                            "chore_shift": chore_shift,
                                            "column": column,
                                        },
                                    )
        with m.If(reopen):
            m.d.sync += reopen.eq(0)
        with m.If(in_pass):
            m.d.comb += amount.eq(chore_shift)
        bias_use = Signal()
        m.d.comb += bias_use.eq((use == Use.DB) | (use == Use.BIAS_DECAY))
        # `amount` is used two and three cycles after the item was issued.
        amount_1, amount_2, amount_3 = (Signal(signed(6), name=f"amount_{i}") for i in (1, 2, 3))
        m.d.sync += [amount_1.eq(amount), amount_2.eq(amount_1), amount_3.eq(amount_2)]
        m.d.comb += [
            self.rnd_index.eq(
                Mux(bias_use, column, offset) + (issue.group << (lanes - 1).bit_length())
            ),
            self.rnd_use.eq(use),
            self.rnd_turn.eq(Mux(amount > 16, (amount - 16)[:4], 0)),
        ]

        # Select, bias, ReLU.
        value_1 = [Signal(signed(32), name=f"value1_{i}") for i in range(lanes)]
        for i in range(lanes):
            picked, added, own = (
                Signal(signed(32), name=f"{n}_{i}") for n in ("picked", "added", "own")
            )
            # One LUT per bit for each of the operands: choice of the group, and zero where unused.
            with m.If(~e0.from_bias):
                m.d.comb += picked.eq(self._pick(row, e0.group, i, lanes, groups))
            with m.If(e0.from_bias | e0.add_bias):
                m.d.comb += own.eq(self._pick(bias, e0.group, i, lanes, groups))
            m.d.comb += added.eq(picked + own)
            m.d.sync += value_1[i].eq(Mux(e0.relu & added[-1], 0, added))

        # Magnitudes, rounding term.
        # Everything about rounding comes from a thermometer: bit k says amount > k.
        above = Signal(33)
        far, stochastic, tflite = Signal(), Signal(), Signal()
        m.d.sync += above.eq(
            Mux(amount_1[-1], 0, Cat(*[amount_1[:5] > k for k in range(31)], Const(0, 2)))
        )
        m.d.comb += [
            far.eq(above[16]),
            stochastic.eq((e1.round != Rounding.NEAREST) & (e1.round != Rounding.TFLITE)),
            tflite.eq((e1.round == Rounding.TFLITE) & above[0]),
        ]
        half = above[:32] & ~above[1:33]
        random_mask = Cat(*[Mux(far, ~above[16 + k], above[k]) for k in range(16)], above[16:32])
        term_up, term_down = Signal(32), Signal(32)
        m.d.comb += [
            term_up.eq(Mux(stochastic, random_mask, half | tflite)),
            term_down.eq(Mux(stochastic, random_mask, above[1:33] | tflite)),
        ]
        value_2 = [Signal(signed(34), name=f"value2_{i}") for i in range(lanes)]
        magnitudes: list[Value] = []
        for i in range(lanes):
            v = value_1[i]
            random = self.rnd[16 * i : 16 * i + 16]
            term = Signal(32, name=f"term_{i}")
            noise, down = Signal(16, name=f"noise_{i}"), Signal(name=f"down_{i}")
            m.d.comb += [
                noise.eq(random | (~stochastic).replicate(16)),
                down.eq(tflite & v[-1] & ~v.all()),
                term.eq(Mux(down, term_down, term_up) & Cat(noise, noise)),
            ]
            m.d.sync += value_2[i].eq(v + term)
            tracked = Signal(name=f"tracked_{i}")
            m.d.comb += tracked.eq(
                self._pick(e1.columns, e1.group, i, lanes, groups, 1) & e1.valid & e1.track
            )
            size_of = Signal(32, name=f"magnitude_{i}")
            flipped = Signal(32, name=f"flipped_{i}")
            m.d.comb += [
                flipped.eq((v ^ v[-1].replicate(32)) & tracked.replicate(32)),
                size_of.eq(flipped + (v[-1] & tracked)),
            ]
            magnitudes.append(size_of)
        largest: Value = magnitudes[0]
        for value in magnitudes[1:]:
            largest = largest | value
        with m.If(self.forget):
            m.d.sync += self.largest.eq(0)
        with m.Else():
            m.d.sync += self.largest.eq(self.largest | largest)

        # Shift by amount + 16 to the right, from 16 bits further left.
        moved = [Signal(signed(34), name=f"moved_{i}") for i in range(lanes)]
        right = Signal(6)
        m.d.comb += right.eq(amount_3 + 16)
        for i in range(lanes):
            wide: Value = Cat(Const(0, 16), value_2[i]).as_signed()
            for stage in reversed(range(6)):
                shifted = Signal(signed(50), name=f"shift_{i}_{stage}")
                m.d.comb += shifted.eq(Mux(right[stage], wide >> (1 << stage), wide))
                wide = shifted
            fits = Signal(name=f"fits_{i}")
            m.d.comb += fits.eq(wide[33:].all() | ~wide[33:].any())
            m.d.sync += moved[i].eq(
                Mux(
                    fits,
                    wide[:34].as_signed(),
                    Cat((~wide[-1]).replicate(33), wide[-1]).as_signed(),
                )
            )

        # Subtract, saturate, mask, collect.
        aux_high, aux_low = self._auxiliary(
            m,
            ends=ends,
            in_window=in_window,
            now=now,
            phase_2=phase_2,
            reads_1=reads_1,
            reads_2=reads_2,
            first_base=first_base,
            offset=offset,
            column_valid=column_valid,
            to_aux=to_aux,
            plane_take=plane_take,
            u_chore=u_chore,
            chore_address=u_chore_address,
            chore_offset=chore_offset,
            chore_mask=chore_mask,
        )
        high, low = Signal(8 * cols), Signal(8 * cols)
        clipped: list[Value] = []
        results: list[Signal] = []
        # Limits are +-(2**n - 1), but the high byte of a master must not be -128 either, and a
        # loaded bias may be +-2**30: what is 2**30 already counts as outside and stays what it is.
        assert (-MASTER_MIN - 128, PRELOAD_LIMIT) == (127 << 8, 2**30)
        is_narrow, is_word, is_load, is_plane = Signal(), Signal(), Signal(), Signal()
        subtract = Signal()
        m.d.comb += [
            subtract.eq(
                (e3.post == Post.MASTER) | (e3.post == Post.WEIGHTS8) | (e3.post == Post.BIAS_SUB)
            ),
            is_narrow.eq((e3.post == Post.INT8) | (e3.post == Post.WEIGHTS8)),
            is_plane.eq(e3.post == Post.MASTER),
            is_word.eq((e3.post == Post.LOGITS) | (e3.post == Post.MOMENTUM_ADD) | is_plane),
            is_load.eq(e3.post == Post.BIAS_LOAD),
        ]
        to_bias = Signal()
        m.d.comb += to_bias.eq(e3.post >= Post.BIAS_LOAD)
        for i in range(lanes):
            a_high = self._pick(aux_high, e3.group, i, lanes, groups, 8)
            a_low = self._pick(aux_low, e3.group, i, lanes, groups, 8)
            start_value = Signal(signed(32), name=f"base_{i}")
            with m.Switch(e3.post):
                with m.Case(Post.MASTER):
                    m.d.comb += start_value.eq(Cat(a_low, a_high).as_signed())
                with m.Case(Post.WEIGHTS8):
                    m.d.comb += start_value.eq(a_high.as_signed())
                with m.Case(Post.BIAS_SUB, Post.BIAS_ADD, Post.MOMENTUM_ADD):
                    m.d.comb += start_value.eq(
                        self._pick(bias, e3.group, i, lanes, groups).as_signed()
                    )
            total, result = (
                Signal(signed(36), name=f"total_{i}"),
                Signal(signed(32), name=f"result_{i}"),
            )
            over, under = Signal(name=f"over_{i}"), Signal(name=f"under_{i}")
            sign = total[-1]
            wild = Signal(name=f"wild_{i}")  # a bit above the format's sign differs from it
            least = Signal(name=f"least_{i}")  # below the smallest, though it has the format's bits
            differs = total.as_unsigned() ^ sign.replicate(36)
            empty_7, empty_15 = ~total[:7].any(), ~total[8:15].any()
            m.d.comb += [
                total.eq(start_value + Mux(subtract, ~moved[i], moved[i]) + subtract),
                wild.eq(
                    differs[31:].any()
                    | (differs[30] & (is_narrow | is_word | is_load))
                    | (differs[15:30].any() & (is_narrow | is_word))
                    | (differs[7:15].any() & is_narrow)
                ),
                least.eq(
                    sign
                    & Mux(
                        is_narrow,
                        empty_7,
                        Mux(
                            is_word,
                            empty_15 & (is_plane | (empty_7 & ~total[7])),
                            ~is_load & ~total[:31].any(),
                        ),
                    )
                ),
                over.eq(wild & ~sign),
                under.eq((wild & sign) | least),
            ]
            for k in range(32):
                # What is left of the largest and of the smallest number of the format.
                outside: Value = Const(0, 1)
                if k >= 7:
                    outside = outside | is_narrow
                if k >= 15:
                    outside = outside | is_word
                if k >= 30:
                    outside = outside | is_load
                if k == 31:
                    outside = Const(1, 1)
                lowest, highest = outside, ~(outside | is_load)
                if k == 0:
                    lowest = ~(is_plane | is_load)
                if k == 30:
                    highest = ~(is_narrow | is_word)
                if k == 8:
                    lowest = is_narrow | is_plane
                m.d.comb += result[k].eq(Mux(over, highest, Mux(under, lowest, total[k])))
            kept = Signal(name=f"kept_{i}")
            m.d.comb += kept.eq(~e3.masked | (~a_high[-1] & a_high.any()))
            valid = self._pick(e3.columns, e3.group, i, lanes, groups, 1)
            clipped.append(e3.valid & e3.count & valid & (over | under))
            results.append(result)
            wide_result = (e3.post == Post.LOGITS) | (e3.post == Post.MASTER)
            result_high, result_low = Signal(8, name=f"high_{i}"), Signal(8, name=f"low_{i}")
            m.d.comb += [
                result_high.eq(Mux(wide_result, result[8:16], Mux(kept, result[:8], 0))),
                result_low.eq(result[:8]),
            ]
            # The first group waits for the second, so that a word stays whole for a window.
            last = lanes * (groups - 1) + i
            with m.If(e3.valid & ~to_bias & e3.final):
                m.d.sync += [
                    high[8 * last : 8 * last + 8].eq(result_high),
                    low[8 * last : 8 * last + 8].eq(result_low),
                ]
            if groups == 2:
                early_high = Signal(8, name=f"early_high_{i}")
                early_low = Signal(8, name=f"early_low_{i}")
                with m.If(e3.valid & ~to_bias & (e3.group == 0)):
                    m.d.sync += [early_high.eq(result_high), early_low.eq(result_low)]
                with m.If(e3.valid & ~to_bias & e3.final):
                    m.d.sync += [
                        high[8 * i : 8 * i + 8].eq(early_high),
                        low[8 * i : 8 * i + 8].eq(early_low),
                    ]
        with m.If(self.start):
            m.d.sync += self.saturations.eq(0)
        with m.Else():
            m.d.sync += self.saturations.eq(self.saturations + sum(clipped))

        # Words that reads of a chore bring into the bias register.
        taken_word, taken, taken_planes = Signal(2), Signal(), Signal(2)
        m.d.sync += [taken.eq(bias_take), taken_word.eq(bias_word)]
        m.d.sync += taken_planes.eq(Mux(to_aux | ~u_chore, 0, plane_take))
        for c in range(cols):
            passed = e3.valid & to_bias & (e3.group == c // lanes)
            for k in range(4 * c, 4 * c + 4):
                comes = taken & (taken_word == k // cols)
                with m.If(comes | passed):
                    m.d.sync += bias[8 * k : 8 * k + 8].eq(
                        Mux(
                            comes,
                            self.u.data[8 * (k % cols) : 8 * (k % cols) + 8],
                            results[c % lanes][8 * (k % 4) : 8 * (k % 4) + 8],
                        )
                    )
        for c in range(cols):
            byte = self.u.data[8 * c : 8 * c + 8]
            with m.If(taken_planes[0]):
                m.d.sync += bias[32 * c + 8 : 32 * c + 32].eq(byte.as_signed())
            with m.If(taken_planes[1]):
                m.d.sync += bias[32 * c : 32 * c + 8].eq(byte)
        if config.momentum:
            copying = Signal()
            with m.If(held), m.Switch(Cat(chore, step)):
                for index, name in enumerate(chore_names):
                    for number, action in enumerate(CHORES[name]):
                        if action.kind == "copy":
                            with m.Case(index | number << len(chore)):
                                m.d.comb += copying.eq(1)
            with m.If(copying):
                m.d.sync += [self._copied.eq(bias), copied.eq(1)]
            with m.Elif(chore_ends):
                m.d.sync += copied.eq(0)

        # --- writes -------------------------------------------------------------------------------
        write_offset, write_columns = Signal(bits), Signal(cols)
        with m.If(e3.valid & e3.final & ~to_bias):
            m.d.sync += [
                write_offset.eq(e3.offset),
                write_columns.eq(e3.columns),
                pending.eq(Cat(Const(1, 1), two_planes)),
            ]
        w = self.w
        high_now, low_now = Signal(), Signal()
        low_target = offset_of(config, r.O_LO) + write_offset
        high_target = offset_of(config, r.O_BASE) + write_offset
        m.d.comb += [
            w.region.eq(region_o),
            w.offset.eq(high_target),
            w.mask.eq(write_columns),
            w.data.eq(high),
        ]
        finished = e3.valid & e3.final & ~to_bias
        if single:
            m.d.comb += [
                high_now.eq(pending[0] & (~in_window | (now == write_phase))),
                low_now.eq(pending[1] & Mux(in_window, now == write_phase + 1, ~pending[0])),
                w.en.eq(high_now | low_now | w_chore),
            ]
            with m.If(low_now):
                m.d.comb += [w.region.eq(region_2), w.offset.eq(low_target), w.data.eq(low)]
            with m.If(high_now & ~finished):
                m.d.sync += pending[0].eq(0)
            with m.If(low_now & ~finished):
                m.d.sync += pending[1].eq(0)
        else:
            x = self.x
            m.d.comb += [
                high_now.eq(pending[0]),
                low_now.eq(pending[1] & ~(pending[0] & same_plane)),
                w.en.eq(high_now | w_chore),
                x.en.eq(low_now),
                x.region.eq(region_2),
                x.offset.eq(low_target),
                x.mask.eq(write_columns),
                x.data.eq(low),
            ]
            with m.If(~finished):
                m.d.sync += [
                    pending[0].eq(0),
                    pending[1].eq(pending[1] & ~low_now),
                ]
        with m.If(w_chore):
            m.d.comb += [
                w.region.eq(region_of(config, u_chore_address)),
                w.offset.eq(chore_offset),
                w.mask.eq(chore_mask),
            ]
            words = Array([bias[8 * cols * k : 8 * cols * (k + 1)] for k in range(4)])
            with m.If(plane_take.any()):
                m.d.comb += w.data.eq(
                    Mux(
                        plane_take[0],
                        Cat(*[bias[32 * c + 8 : 32 * c + 16] for c in range(cols)]),
                        Cat(*[bias[32 * c : 32 * c + 8] for c in range(cols)]),
                    )
                )
            with m.Else():
                m.d.comb += w.data.eq(words[bias_word])
        faults = self.u.oor | self.w.oor
        if not single:
            faults = faults | self.v.oor | self.x.oor
        m.d.comb += self.fault.eq(faults)
        with m.If(self.clear):
            m.d.sync += [
                phase.eq(0),
                held.eq(0),
                reopen.eq(0),
                pending.eq(0),
                copied.eq(0),
                e0.valid.eq(0),
                e1.valid.eq(0),
                e2.valid.eq(0),
                e3.valid.eq(0),
            ]
        return m

    def _copy(self, m: Module) -> Signal:
        """Register that keeps a bias momentum while the bias itself is read."""
        self._copied = Signal(32 * self.config.cols, name="copied_row")
        return self._copied

    @staticmethod
    def _is_row_chore(chore: Signal, names: list[str]) -> Value:
        """Whether the chore handled a row of the result."""
        return chore == names.index("momentum row") if "momentum row" in names else Const(0)

    @staticmethod
    def _pick(
        word: Value, group: Value, lane: int, lanes: int, groups: int, width: int = 32
    ) -> Value:
        """Element `lane` of the group of a word of `lanes * groups` elements."""
        parts = [
            word[width * (g * lanes + lane) : width * (g * lanes + lane + 1)] for g in range(groups)
        ]
        return parts[0] if groups == 1 else Mux(group, parts[1], parts[0])

    def _action(self, m: Module, action: Chore, s: dict[str, Any]) -> None:
        """Signals of one step of a chore."""
        config = self.config
        r, tick, cols = s["r"], s["tick"], config.cols
        comb = m.d.comb
        match action.kind:
            case "read" | "write":
                address = r[action.base]
                word = tick[:2]
                comb += [
                    s["address"].eq(address),
                    s["chore_offset"].eq(
                        offset_of(config, address) + s["bias_first"] + word * cols
                    ),
                    s["chore_mask"].eq(s["byte_mask"][word]),
                    s["bias_word"].eq(word),
                ]
                if action.kind == "read":
                    with m.If(tick < 4):
                        comb += [s["u_chore"].eq(1), s["bias_take"].eq(1)]
                else:
                    comb += s["w_chore"].eq(1)
            case "read planes" | "write planes":
                writing = action.kind == "write planes"
                planes = Mux(tick[0], r[action.low], r[action.base])
                comb += [
                    s["address"].eq(planes),
                    s["chore_offset"].eq(offset_of(config, planes) + s["offset"]),
                    s["chore_mask"].eq(s["column_valid"]),
                    s["to_aux"].eq(action.base == "O_BASE"),
                ]
                with m.If(tick < 2):
                    comb += [
                        s["w_chore" if writing else "u_chore"].eq(1),
                        s["plane_take"].eq(Mux(tick[0], 2, 1)),
                    ]
            case "pass":
                groups = config.groups
                shifts: dict[str | int, Any] = {"main": self.shift_main, "bias": self.shift_bias}
                shift = shifts.get(action.shift, action.shift)
                comb += [s["in_pass"].eq(1), s["chore_shift"].eq(shift)]
                issue = s["issue"]
                with m.If(tick < groups):
                    comb += [
                        issue.valid.eq(1),
                        issue.group.eq(tick[0] if groups == 2 else 0),
                        issue.from_bias.eq(action.source == "bias"),
                        issue.count.eq(action.count),
                        issue.final.eq(tick == groups - 1),
                        issue.round.eq(action.round),
                        issue.post.eq(action.post),
                        issue.columns.eq(s["column_valid"]),
                        issue.offset.eq(s["offset"]),
                    ]
                comb += s["use"].eq(action.use)
            case _:
                pass

    def _auxiliary(self, m: Module, **s: Value) -> tuple[Signal, Signal]:
        """Reads of mask and planes, and their words as the last lane stage needs them.

        A word read in a window is captured when it comes, moved on two cycles after the window's
        end (the next window's word cannot have come yet), and with it arrives at the lanes' last
        stage.
        """
        config = self.config
        cols = config.cols
        r = self.d.regs
        u = self.u
        ends, now, in_window = s["ends"], s["now"], s["in_window"]
        first_base, offset = s["first_base"], s["offset"]
        first_now, second_now = Signal(), Signal()
        m.d.comb += [
            first_now.eq(in_window & s["reads_1"] & (now == 0)),
            second_now.eq(in_window & s["reads_2"] & (now == s["phase_2"])),
            u.en.eq(first_now | s["u_chore"]),
            u.region.eq(region_of(config, first_base)),
            u.offset.eq(offset_of(config, first_base) + offset),
            u.mask.eq(s["column_valid"]),
        ]
        low_target = offset_of(config, r.O_LO) + offset
        if config.single_port:
            with m.If(second_now):
                m.d.comb += [
                    u.en.eq(1),
                    u.region.eq(region_of(config, r.O_LO)),
                    u.offset.eq(low_target),
                ]
            low_data = u.data
        else:
            m.d.comb += [
                self.v.en.eq(second_now),
                self.v.region.eq(region_of(config, r.O_LO)),
                self.v.offset.eq(low_target),
                self.v.mask.eq(s["column_valid"]),
            ]
            low_data = self.v.data
        with m.If(s["u_chore"]):
            m.d.comb += [
                u.region.eq(region_of(config, s["chore_address"])),
                u.offset.eq(s["chore_offset"]),
                u.mask.eq(s["chore_mask"]),
            ]
        comes_1, comes_2, move, moving = Signal(), Signal(), Signal(), Signal()
        m.d.sync += [
            comes_1.eq(first_now),
            comes_2.eq(second_now),
            moving.eq(ends),
            move.eq(moving),
        ]
        width = 8 * cols
        caught_high, caught_low, aux_high, aux_low = (
            Signal(width, name=n) for n in ("caught_high", "caught_low", "aux_high", "aux_low")
        )
        with m.If(comes_1):
            m.d.sync += caught_high.eq(u.data[:width])
        with m.If(comes_2):
            m.d.sync += caught_low.eq(low_data[:width])
        with m.If(move):
            m.d.sync += [aux_high.eq(caught_high), aux_low.eq(caught_low)]
        if config.groups == 1:
            late_high, late_low = Signal(width, name="late_high"), Signal(width, name="late_low")
            m.d.sync += [late_high.eq(aux_high), late_low.eq(aux_low)]
        else:
            late_high, late_low = aux_high, aux_low
        if config.momentum:
            taken, direct = Signal(2), Signal()
            m.d.sync += [taken.eq(s["plane_take"]), direct.eq(s["to_aux"] & s["u_chore"])]
            with m.If(direct & taken[0]):
                m.d.sync += aux_high.eq(u.data[:width])
            with m.If(direct & taken[1]):
                m.d.sync += aux_low.eq(u.data[:width])
        return late_high, late_low
