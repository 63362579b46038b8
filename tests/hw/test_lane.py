"""A lane of the vector path against `gradiron.arch.numerics`."""

import random
from typing import Any

from amaranth.sim import Simulator

from gradiron.arch import numerics
from gradiron.arch.numerics import Rounding
from gradiron_hw.lane import Lane, Post, control_of

LIMITS = {
    Post.INT8: (-127, 127),
    Post.WEIGHTS8: (-127, 127),
    Post.LOGITS: (-32767, 32767),
    Post.MOMENTUM_ADD: (-32767, 32767),
    Post.MASTER: (-32512, 32767),
    Post.BIAS_LOAD: (-(2**30), 2**30),
    Post.BIAS_SUB: (-(2**31 - 1), 2**31 - 1),
    Post.BIAS_ADD: (-(2**31 - 1), 2**31 - 1),
    Post.DECAY: (-(2**31 - 1), 2**31 - 1),
}


def signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def rounded(v: int, amount: int, rule: int, r: int) -> int:
    if rule == Rounding.STOCHASTIC:
        return int(numerics.sr(v, amount, r))
    return int((numerics.rt if rule == Rounding.TFLITE else numerics.rn)(v, amount))


def test_results_are_those_of_the_formulas() -> None:
    rng = random.Random(5)
    lane = Lane()

    def number(bits: int) -> int:
        """Of any magnitude, often beside a power of two."""
        size = rng.randrange(bits)
        value = rng.choice([rng.getrandbits(size), (1 << size) + rng.randrange(-2, 3)])
        return signed(rng.choice([value, -value]), bits)

    async def testbench(ctx: Any) -> None:
        for _ in range(6000):
            post = rng.choice(list(Post))
            rule = rng.choice(list(Rounding))
            amount = rng.randrange(-16, 32)
            relu = rng.randrange(4) == 0
            v, own = number(31), number(30)
            if rng.random() < 0.5:
                own = 0
            r = rng.getrandbits(16)
            high, low, bank = rng.getrandbits(8), rng.getrandbits(8), number(32) & 0xFFFFFFFF
            fields = {**control_of(post), "relu": int(relu), "round": rule, "amount": amount}
            ctx.set(lane.control, fields)
            ctx.set(lane.sum, v)
            ctx.set(lane.own, own)
            await ctx.tick()
            # The random number comes turned, with all of its bits.
            turn = 16 - amount if 0 < amount < 16 else 0
            ctx.set(lane.random, ((r << turn) | (r >> (16 - turn))) & 0xFFFF)
            value = signed(v + own, 32)
            if relu:
                value = max(value, 0)
            assert ctx.get(lane.value) == value
            await ctx.tick()
            ctx.set(lane.high, high)
            ctx.set(lane.low, low)
            ctx.set(lane.bank, bank)
            q = rounded(value, amount, rule, r)
            stored = 0
            if fields["from_planes"]:
                stored = signed(high << 8 | low, 16)
            elif fields["from_high"]:
                stored = signed(high, 8)
            elif fields["from_bank"]:
                stored = signed(bank, 32)
            total = stored - q if post.subtracts else stored + q
            result = int(numerics.saturate(total, *LIMITS[post]))
            found = (signed(ctx.get(lane.result), 32), bool(ctx.get(lane.clipped)))
            assert found == (result, result != total), (post, rule, amount, value, r, stored)

    simulator = Simulator(lane)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
