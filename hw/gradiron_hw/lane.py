"""One lane of the vector path: an element per cycle, from its sum to what is stored.

    select   sum and bias are added, ReLU                                     -> value
    shift    shifted right, and whether rounding adds one                     -> moved, round_up
    finish   added to or subtracted from what was stored, saturated (combinational)

The shift works on the one's complement `x = v ^ sign`, which is never negative: what is shifted in
from above is zero, and all three roundings take the same form. With `s` the amount, `f` the
fraction (the s bits that leave) and everything in units of f's lowest bit,

    round(v, s) = (x >> s) + d     for v >= 0            d = carry of f + term + more
    round(v, s) = -((x >> s) + d)  for v < 0

    rn   term = half                                     more = 0
    rt   term = half              (s = 1: as rn)         more = 1
    sr   term = r                 where v < 0: ~r        more = v < 0

Only the upper 16 bits of f are added up. Below a short fraction the bits repeat `more`, so that it
arrives at f's lowest bit; of a long one the rest is zero in `term`, and passes `more` on where all
of it is ones, which only rt asks for. For s <= 0 nothing is rounded: d = sign.
"""

from enum import IntEnum

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from gradiron.arch.numerics import MASTER_MIN, PRELOAD_LIMIT, Rounding

STAGES = 3
"""Cycles from the selection of an element to the cycle after its result, which is registered."""


class Post(IntEnum):
    """What the last stage does with the rounded value q."""

    INT8 = 0
    LOGITS = 1
    MASTER = 2
    WEIGHTS8 = 3
    BIAS_LOAD = 4
    BIAS_SUB = 5
    BIAS_ADD = 6
    DECAY = 7
    MOMENTUM_ADD = 8

    @property
    def to_bank(self) -> bool:
        """Whether the result is a bias or a momentum, which stays in the path."""
        return self >= Post.BIAS_LOAD

    @property
    def subtracts(self) -> bool:
        """Whether q is taken from what was stored."""
        return self in (Post.MASTER, Post.WEIGHTS8, Post.BIAS_SUB, Post.DECAY)


def control_layout() -> data.StructLayout:
    """What all elements of a row, or of a pass of a chore, have in common."""
    return data.StructLayout(
        {
            "relu": unsigned(1),
            "round": unsigned(2),
            "amount": signed(6),
            "subtract": unsigned(1),
            "from_planes": unsigned(1),  # stored value: both planes
            "from_high": unsigned(1),  # stored value: the high plane, an int8
            "from_bank": unsigned(1),  # stored value: 32 bits
            "narrow": unsigned(1),  # int8 result
            "word": unsigned(1),  # 16 bits
            "plane": unsigned(1),  # 16 bits whose high byte is a weight
            "load": unsigned(1),  # bias as it is added
        }
    )


def control_of(post: Post) -> dict[str, int]:
    """The members of `control_layout` that follow from what is to be done."""
    return {
        "subtract": int(post.subtracts),
        "from_planes": int(post in (Post.MASTER, Post.DECAY)),
        "from_high": int(post == Post.WEIGHTS8),
        "from_bank": int(post in (Post.BIAS_SUB, Post.BIAS_ADD, Post.MOMENTUM_ADD)),
        "narrow": int(post in (Post.INT8, Post.WEIGHTS8)),
        "word": int(post in (Post.LOGITS, Post.MASTER, Post.MOMENTUM_ADD)),
        "plane": int(post == Post.MASTER),
        "load": int(post == Post.BIAS_LOAD),
    }


class Lane(wiring.Component):
    """Select, shift, finish.

    Members
    -------
    control : stable while an element is in the lane
    sum, own : select stage: the two numbers that are added
    value : shift stage: their sum, after ReLU
    random : shift stage: 16 bits, turned so that its top bits belong to the top of the fraction
    high, low, bank : finish stage: what is stored
    result : finish stage
    clipped : finish stage: the result was saturated
    """

    control: In(control_layout())
    sum: In(signed(32))
    own: In(signed(32))
    value: Out(signed(32))
    random: In(16)
    high: In(8)
    low: In(8)
    bank: In(32)
    result: Out(32)
    clipped: Out(1)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        added = Signal(signed(32))
        m.d.comb += added.eq(self.sum + self.own)
        m.d.sync += self.value.eq(Mux(self.control.relu & added[-1], 0, added))
        moved, too_far, negate, up = self._shift(m)
        self._finish(m, moved, too_far, negate, up)
        return m

    def _shift(self, m: Module) -> tuple[Signal, Signal, Signal, Signal]:
        """The shift stage.

        Returns
        -------
        moved : 32 bits of x >> s, inverted if they are to be subtracted
        too_far : more than 32 bits
        negate : whether `moved` is inverted
        up : whether the rounded value is larger by one
        """
        control = self.control
        amount = control.amount
        sign = self.value[-1]
        stochastic = control.round == Rounding.STOCHASTIC
        whole = Signal()  # nothing is shifted out
        twice = Signal()  # rt with its two roundings
        m.d.comb += [
            whole.eq(amount <= 0),
            twice.eq((control.round == Rounding.TFLITE) & ~whole & (amount != 1)),
        ]
        # x stands 16 bits to the left of what the largest left shift makes of it; below the point
        # there are 16 bits of fraction.
        right = Signal(6)
        fill = Signal()
        m.d.comb += [right.eq(amount + 16), fill.eq(sign | twice)]
        x = Signal(32)
        m.d.comb += x.eq(self.value ^ sign.replicate(32))
        wide: Value = Cat(fill.replicate(32), x)
        rest: Value = Const(1, 1)  # all bits that leave the fraction are ones
        # Small steps first: until the large ones, most bits have a single source. Only the step by
        # 32 loses bits of x, at most 15; the others let go of what was filled in.
        for stage in range(6):
            step = 1 << stage
            shifted = Signal(64, name=f"shifted_{stage}")
            if step == 32:
                rest = ~right[stage] | wide[17:step].all()
            m.d.comb += shifted.eq(Mux(right[stage], wide >> step, wide))
            wide = shifted
        negate = Signal()
        m.d.comb += negate.eq(sign ^ control.subtract)
        half = Const(1 << 15, 16)
        term = Signal(16)
        more, carry = Signal(), Signal()
        m.d.comb += [
            term.eq(Mux(stochastic, self.random ^ sign.replicate(16), half)),
            more.eq(Mux(stochastic, sign, twice & rest)),
            carry.eq((wide[:16] + term + more)[16]),
        ]
        moved, too_far, negated, up = (
            Signal(32, name="moved"),
            Signal(name="too_far"),
            Signal(name="negated"),
            Signal(name="round_up"),
        )
        m.d.sync += [
            moved.eq(wide[16:48] ^ negate.replicate(32)),
            too_far.eq(wide[48:].any()),
            negated.eq(negate),
            up.eq(Mux(whole, sign, carry)),
        ]
        return moved, too_far, negated, up

    def _finish(
        self, m: Module, moved: Signal, too_far: Signal, negate: Signal, up: Signal
    ) -> None:
        """The finish stage."""
        # Limits are +-(2**n - 1), but the high byte of a master must not be -128 either, and a
        # loaded bias may be +-2**30: what is 2**30 already counts as outside and stays what it is.
        assert (-MASTER_MIN - 128, PRELOAD_LIMIT) == (127 << 8, 2**30)
        control = self.control
        stored = Signal(signed(32))
        with m.If(control.from_planes):
            m.d.comb += stored.eq(Cat(self.low, self.high).as_signed())
        with m.Elif(control.from_high):
            m.d.comb += stored.eq(self.high.as_signed())
        with m.Elif(control.from_bank):
            m.d.comb += stored.eq(self.bank.as_signed())
        total = Signal(signed(34))
        m.d.comb += total.eq(stored + Cat(moved, negate).as_signed() + (up ^ negate))
        is_narrow, is_word = control.narrow, control.word
        is_plane, is_load = control.plane, control.load
        sign = total[-1]
        wild = Signal()  # a bit above the format's sign differs from it
        least = Signal()  # below the smallest, though it has the format's bits
        over, under = Signal(), Signal()
        differs = Signal(34)
        empty_7, empty_15, empty_31 = Signal(), Signal(), Signal()
        m.d.comb += [
            empty_7.eq(~total[:7].any()),
            empty_15.eq(~total[8:15].any()),
            empty_31.eq(empty_7 & ~total[7] & empty_15 & ~total[15:31].any()),
            differs.eq(total.as_unsigned() ^ sign.replicate(34)),
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
                        ~is_load & empty_31,
                    ),
                )
            ),
            over.eq(Mux(too_far, ~negate, wild & ~sign)),
            under.eq(Mux(too_far, negate, (wild & sign) | least)),
            self.clipped.eq(over | under),
        ]
        # Bits of the largest and of the smallest number of the format: a few kinds of bits.
        kinds: dict[tuple[int, ...], tuple[Value, Value]] = {
            (0,): (~is_load, ~(is_plane | is_load)),
            tuple(range(1, 7)): (~is_load, Const(0, 1)),
            (7, *range(9, 15)): (~(is_narrow | is_load), is_narrow),
            (8,): (~(is_narrow | is_load), is_narrow | is_plane),
            tuple(range(15, 30)): (~(is_narrow | is_word | is_load), is_narrow | is_word),
            (30,): (~(is_narrow | is_word), is_narrow | is_word | is_load),
            (31,): (Const(0, 1), Const(1, 1)),
        }
        for places, (highest, lowest) in kinds.items():
            limit = Signal(name=f"limit_{places[0]}")
            m.d.comb += limit.eq(Mux(under, lowest, highest))
            for k in places:
                m.d.comb += self.result[k].eq(Mux(self.clipped, limit, total[k]))
