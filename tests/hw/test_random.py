"""The random number units against `gradiron.arch.numerics`."""

import gc
import random
import re
from collections import deque
from typing import Any

import pytest
from amaranth.sim import Simulator

from gradiron.arch import numerics
from gradiron.arch.numerics import Use
from gradiron.errors import ConfigError
from gradiron_hw.random import KeyUnit, RandomBlock

WORDS = (0, 1, 0xFFFFFFFF, 0x80000000, 0x61C88647)


def simulate(unit: Any, testbench: Any) -> None:
    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()


def test_key_is_that_of_the_formula() -> None:
    unit = KeyUnit()
    rng = random.Random(1)
    triples = [(seed, step, tensor) for seed in WORDS for step in WORDS for tensor in (0, 63)]
    triples += [(rng.getrandbits(32), rng.getrandbits(32), tensor) for tensor in range(64)]

    async def testbench(ctx: Any) -> None:
        for seed, step, tensor in triples:
            ctx.set(unit.start, 1)
            await ctx.tick()
            ctx.set(unit.start, 0)
            ctx.set(unit.tensor, tensor)
            addends = (seed, step, numerics.KEY_CONSTANTS[2], numerics.KEY_CONSTANTS[3])
            for number, addend in enumerate(addends):
                ctx.set(unit.round, 0)
                for _ in range(rng.randrange(3)):
                    ctx.set(unit.addend, rng.getrandbits(32))
                    await ctx.tick()
                ctx.set(unit.round, 1)
                ctx.set(unit.addend, addend)
                ctx.set(unit.tagged, number == 2)
                await ctx.tick()
            ctx.set(unit.round, 0)
            await ctx.tick()
            assert ctx.get(unit.key) == numerics.random_key(seed, step, tensor)

    simulate(unit, testbench)


@pytest.mark.parametrize("offset_bits", [12, 17, 20, 22])
@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16])
def test_numbers_are_those_of_the_formula(lanes: int, offset_bits: int) -> None:
    unit = RandomBlock(lanes=lanes, offset_bits=offset_bits)
    assert (unit.lanes, unit.offset_bits) == (lanes, offset_bits)
    rng = random.Random(lanes * 100 + offset_bits)
    modulus = 1 << offset_bits

    def expected(key: int, use: int, index: int, extra: int) -> list[int]:
        result = []
        for lane in range(lanes):
            element = (index + lane) % modulus
            h = int(numerics.hash16(key, use, element >> 4))
            turn = (element + extra) & 15
            if extra == 0:
                assert numerics.random16(key, use, element) == (h << turn | h >> 16 - turn) & 0xFFFF
            result.append((h << turn | h >> 16 - turn) & 0xFFFF)
        return result

    async def testbench(ctx: Any) -> None:
        pipeline: deque[list[int] | None] = deque([None, None])
        for number in range(160):
            key = rng.getrandbits(32)
            use = rng.choice(list(Use))
            places = (
                rng.randrange(modulus),
                rng.randrange(256) * 16 + rng.randrange(16 - lanes, 16),
                (rng.randrange(modulus) & ~0xFFFF) - rng.randrange(17),
                modulus - 1 - rng.randrange(16),
            )
            index = rng.choice(places) % modulus
            extra = 0 if number % 3 else rng.randrange(16)
            ctx.set(unit.key, key)
            ctx.set(unit.use, use)
            ctx.set(unit.index, index)
            ctx.set(unit.turn_extra, extra)
            enabled = rng.random() < 0.8
            ctx.set(unit.en, enabled)
            await ctx.tick()
            if enabled:
                pipeline.append(expected(key, use, index, extra))
                pipeline.popleft()
            if pipeline[0] is not None:
                assert [ctx.get(unit.r[lane]) for lane in range(lanes)] == pipeline[0]

    simulate(unit, testbench)


def refused(message: str, **parameters: int) -> None:
    """The constructor fails. What is left of the unit goes while its warning is ignored."""
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        RandomBlock(**parameters)
    gc.collect()


IGNORE_UNUSED = pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")


@IGNORE_UNUSED
@pytest.mark.parametrize("lanes", [0, 3, 32])
def test_init_wrong_lanes(lanes: int) -> None:
    refused(f"lanes is {lanes}; it must be one of (1, 2, 4, 8, 16)", lanes=lanes, offset_bits=17)


@IGNORE_UNUSED
@pytest.mark.parametrize("offset_bits", [4, 29])
def test_init_wrong_offset_bits(offset_bits: int) -> None:
    message = f"offset_bits is {offset_bits}; it must be from 5 to 28"
    refused(message, lanes=2, offset_bits=offset_bits)
