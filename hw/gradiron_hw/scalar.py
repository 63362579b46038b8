"""The scalar unit: exponents, shift amounts and the random key before an instruction, saturations
and trackers after it.

It follows the sequences of `gradiron_hw.control`, one step per cycle, with one adder of ten bits
and one register. All that it needs are words of the state memory.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import Config
from gradiron.arch.isa import CSR_BY_NAME, Scale, Track
from gradiron.arch.isa import Out as Result
from gradiron.arch.numerics import (
    EXPONENT_MAX,
    EXPONENT_MIN,
    EXPONENT_SUM_BITS,
    HYSTERESIS,
    PROBABILITY_BITS,
    SHIFT_MAX,
    SHIFT_MIN,
)
from gradiron_hw.control import (
    ENTRIES,
    STORE_BITS,
    Invert,
    Load,
    Source,
    Store,
    Take,
    Where,
    step_layout,
)
from gradiron_hw.descriptor import bundle
from gradiron_hw.state import ADDRESS_BITS, EXPONENTS, FIRST_PASS

WIDTH = EXPONENT_SUM_BITS
"""Bits of the exponent adder: the sums of a few exponents of 8 bits."""
assert (EXPONENT_MIN, EXPONENT_MAX) == (-64, 63)
assert (SHIFT_MIN, SHIFT_MAX) == (-16, 31)
assert HYSTERESIS == 8
assert PROBABILITY_BITS == 15


class ScalarUnit(wiring.Component):
    """Exponents.

    Members
    -------
    d : descriptor registers and MM fields
    prepare, post, count_step : begin a sequence (one cycle); `done` is high in its last cycle
    clear : stop at once
    is_loss, loss_grad, pass_ : of the instruction
    next_step, step : the control store
    leading : the first step is still on its way, and nothing is requested
    active, address, word, store, bytes, raised, stepped, exponent : the state memory
    key_round, key_tensor : a round of the random key with `word`, and with the result's tensor
    shift_main, shift_bias, shift_skip : shift amounts, valid after `prepare`
    largest, loss_shift : results of the instruction, used by `post`
    forget : the largest magnitude has been used
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "d": In(bundle(config)),
                "prepare": In(1),
                "post": In(1),
                "count_step": In(1),
                "done": Out(1),
                "clear": In(1),
                "is_loss": In(1),
                "loss_grad": In(1),
                "pass_": In(2),
                "next_step": Out(STORE_BITS),
                "step": In(step_layout()),
                "active": Out(1),
                "leading": Out(1),
                "address": Out(ADDRESS_BITS),
                "word": In(32),
                "store": Out(3),
                "bytes": Out(2),
                "raised": Out(1),
                "stepped": Out(1),
                "exponent": Out(8),
                "key_round": Out(1),
                "key_tensor": Out(1),
                "shift_main": Out(signed(6)),
                "shift_bias": Out(signed(6)),
                "shift_skip": Out(signed(6)),
                "largest": In(32),
                "loss_shift": In(5),
                "forget": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        r, mm, step = self.d.regs, self.d.mm, self.step

        # --- sequences ----------------------------------------------------------------------------
        start = self.prepare | self.post | self.count_step
        prepare, post, count = ENTRIES
        with m.If(start):
            m.d.sync += self.next_step.eq(Mux(self.prepare, prepare, Mux(self.post, post, count)))
        with m.Elif(self.clear | step.done | ~self.active):
            m.d.sync += self.next_step.eq(0)
        with m.Else():
            m.d.sync += self.next_step.eq(self.next_step + 1)
        m.d.sync += self.active.eq(start | (self.active & ~step.done & ~self.clear))
        m.d.comb += self.done.eq(step.done)
        m.d.sync += self.leading.eq(start)

        # --- what kind of instruction it is -------------------------------------------------------
        product = ~self.is_loss
        update, follows, tracked, own = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            update.eq(
                (mm.out == Result.MASTER)
                | (mm.out == Result.INT8_WEIGHTS)
                | (mm.out == Result.MOMENTUM)
            ),
            # The exponent is that of operand A.
            follows.eq(mm.scale == Scale.OPERAND),
            tracked.eq((mm.out == Result.INT8) & (mm.scale == Scale.TRACKER)),
            # The instruction gives its result an exponent.
            own.eq(
                Mux(
                    self.is_loss,
                    self.loss_grad,
                    (mm.out == Result.INT8) | (mm.out == Result.LOGITS) | (mm.out == Result.POOLED),
                )
            ),
        ]

        # --- requests -----------------------------------------------------------------------------
        word = step.word
        table = word[5] & word[4]
        literal = Cat(word[:3] | (mm.out & table.replicate(3)), word[3:], Const(0, 2))
        index_a, index_b, index_o, index_s = (r.EXP[6 * i : 6 * i + 6] for i in range(4))

        def entry(index: Value, counts: int = 0) -> Value:
            return Cat(index, Const(counts, 1), Const(1, 1))

        with m.Switch(step.where):
            with m.Case(Where.WORD):
                m.d.comb += self.address.eq(literal)
            with m.Case(Where.A):
                m.d.comb += self.address.eq(entry(index_a))
            with m.Case(Where.B):
                m.d.comb += self.address.eq(entry(index_b))
            with m.Case(Where.RESULT):
                m.d.comb += self.address.eq(entry(index_o))
            with m.Case(Where.SKIP):
                m.d.comb += self.address.eq(entry(index_s))
            with m.Case(Where.SATURATIONS):
                m.d.comb += self.address.eq(entry(index_o, 1))
            with m.Case(Where.HEAD):
                m.d.comb += self.address.eq(
                    Mux(update, entry(index_o), Mux(follows, entry(index_a), literal))
                )
            with m.Case(Where.PASS):
                # FIRST_PASS plus the pass, without an adder.
                m.d.comb += self.address.eq(
                    Cat(self.pass_[0], ~self.pass_[1], self.pass_[1], Const(FIRST_PASS >> 3, 5))
                )

        # --- what the results ask for -------------------------------------------------------------
        # Bits of the largest magnitude above seven.
        excess = Signal(5)
        for bit in range(7, 32):
            with m.If(self.largest[bit]):
                m.d.comb += excess.eq(bit - 6)
        any_magnitude = Signal()
        m.d.comb += any_magnitude.eq(self.largest.any())
        outcome = Signal(signed(WIDTH))
        # sh - 15 is one more than the four bits of sh below ones.
        m.d.comb += outcome.eq(
            Mux(self.is_loss, Cat(self.loss_shift[:4], Const(-1, WIDTH - 4)), excess)
        )

        # --- the adder ----------------------------------------------------------------------------
        register, kept = Signal(signed(WIDTH)), Signal(signed(WIDTH))
        source, total = Signal(signed(WIDTH)), Signal(signed(WIDTH))
        with m.Switch(step.source):
            with m.Case(Source.EXPONENT):
                m.d.comb += source.eq(self.word[0:8].as_signed())
            with m.Case(Source.TRACKER):
                m.d.comb += source.eq(self.word[8:16].as_signed())
            with m.Case(Source.SHIFT):
                m.d.comb += source.eq(r.SHIFT)
            with m.Case(Source.OUTCOME):
                m.d.comb += source.eq(outcome)
        # Complements are limited to the same range: -64 to 63.
        outside = Signal()
        sign = register[-1]
        m.d.comb += outside.eq(
            step.clamp & ~follows & ~update & (register[6:-1] != sign.replicate(WIDTH - 7))
        )
        for i in range(WIDTH):
            limit = sign if i >= 6 else ~sign
            m.d.comb += kept[i].eq(~step.zero & Mux(outside, limit, register[i]))
        m.d.comb += total.eq((Cat(Const(1, 1), source) + Cat(step.one, kept))[1:])
        invert, load = Signal(), Signal()
        not_less = Signal()
        m.d.sync += not_less.eq(~total[-1])
        m.d.comb += invert.eq(
            (step.invert == Invert.YES) | ((step.invert == Invert.TRANSPOSED) & mm.transposed)
        )
        with m.Switch(step.load):
            for condition, value in (
                (Load.NEVER, 0),
                (Load.ALWAYS, 1),
                (Load.UPDATE, update),
                (Load.TRANSPOSED, mm.transposed),
                (Load.PLAIN, ~mm.transposed),
                (Load.RAISED, not_less & tracked),
                (Load.HEAD, update | follows | (mm.out == Result.LOGITS)),
                (Load.OUTCOME, self.is_loss),
            ):
                with m.Case(condition):
                    m.d.comb += load.eq(value)
        with m.If(load):
            m.d.sync += register.eq(total ^ invert.replicate(WIDTH))

        # --- shift amounts ------------------------------------------------------------------------
        limited = Signal(signed(6))
        above = register[5:-1] != sign.replicate(WIDTH - 6)
        far = above | (sign & ~register[4])
        m.d.comb += limited.eq(Mux(far, Cat((~sign).replicate(4), 1, sign), register))
        for take, shift in (
            (Take.MAIN, self.shift_main),
            (Take.BIAS, self.shift_bias),
            (Take.SKIP, self.shift_skip),
        ):
            with m.If(step.take == take):
                m.d.sync += shift.eq(limited)

        # --- results ------------------------------------------------------------------------------
        tracks = product & (mm.track != Track.NONE) & self.active & (step.store == Store.TRACKER)
        higher, equal = total[-1], total == 0
        fits = mm.track == Track.FIT
        last_low = self.word[16:19].all()
        m.d.comb += [
            # The register has the complement of the exponent.
            self.exponent.eq(~kept),
            self.raised.eq(fits | higher),
            self.stepped.eq(~fits & ~higher & ~equal & ~last_low),
            self.bytes[0].eq(tracks & any_magnitude & (fits | higher | (~equal & last_low))),
            self.bytes[1].eq(tracks & any_magnitude),
            self.forget.eq(tracks),
            self.key_round.eq(step.key),
            self.key_tensor.eq(step.tensor),
            self.store.eq(step.store),
        ]
        # While the unit rests, the step may be the word of a loop.
        with m.If(
            ~self.active
            | ((step.store == Store.EXPONENT) & ~own)
            | ((step.store == Store.LOSS) & ~(self.is_loss & self.loss_grad))
        ):
            m.d.comb += self.store.eq(Store.NOTHING)
        assert EXPONENTS == 128
        assert FIRST_PASS == 18
        assert CSR_BY_NAME["CONTROL"].number == 4
        return m
