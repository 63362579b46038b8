"""Element numbers of result rows against the formulas of docs/products.md."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from amaranth.sim import Simulator

from gradiron.arch.config import Config
from gradiron.arch.isa import BMode
from gradiron_hw.result import ResultAddress

CONFIGS = {
    "4x4": Config(rows=4, cols=4, regions=(1024,)),
    "2x4": Config(rows=2, cols=4, regions=(1024,)),
    "8x2": Config(rows=8, cols=2, regions=(1024,)),
}


def rows(config: Config, r: dict[str, int], transposed: int, b: int) -> Iterator[tuple[int, ...]]:
    """Offset, column, mask of valid columns, and whether the row is the tile's first."""
    by_channel = b >= BMode.DIAGONAL
    width = min(config.rows, config.cols) if by_channel else config.cols
    for column in range(0, r["N_C"], width):
        valid = min(width, r["N_C"] - column)
        fresh = 1
        count = r["N_TY"] * r["N_TX"] * (1 if by_channel else r["N_J"])
        for i in range(count if transposed else r["N_P"]):
            inner = 1 if by_channel and transposed else r["N_J"] if transposed else r["N_X"]
            middle = r["N_TX"] if transposed else r["N_Y"]
            place = (i // inner // middle, i // inner % middle, i % inner)
            element = r["O_OFF"] + column
            element += sum(n * r[s] for n, s in zip(place, ("O_S2", "O_S1", "O_S0"), strict=True))
            yield element % (1 << config.offset_bits), column, (1 << valid) - 1, fresh
            fresh = 0


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_are_those_of_the_formulas(name: str) -> None:
    config = CONFIGS[name]
    unit: Any = ResultAddress(config)
    rng = random.Random(name)

    async def testbench(ctx: Any) -> None:
        for _ in range(60):
            transposed = rng.randrange(2)
            b = rng.choice((BMode.ROWS, BMode.DIAGONAL) if transposed else tuple(BMode))
            r = {n: rng.randrange(1, 5) for n in ("N_X", "N_Y", "N_TX", "N_TY", "N_J")}
            r |= {"N_P": rng.randrange(1, 40), "N_C": rng.randrange(1, 14)}
            r |= {"O_OFF": rng.randrange(1024)}
            r |= {n: rng.randrange(-500, 500) for n in ("O_S0", "O_S1", "O_S2")}
            for field, value in r.items():
                ctx.set(unit.d.regs[field], value)
            ctx.set(unit.d.mm.transposed, transposed)
            ctx.set(unit.d.mm.b, b)
            ctx.set(unit.start, 1)
            await ctx.tick()
            ctx.set(unit.start, 0)
            await ctx.tick()
            for expected in rows(config, r, transposed, b):
                for _ in range(rng.randrange(2)):
                    await ctx.tick()
                found = tuple(
                    ctx.get(s) for s in (unit.offset, unit.column, unit.valid, unit.fresh)
                )
                assert found == expected, (r, transposed, b)
                ctx.set(unit.step, 1)
                await ctx.tick()
                ctx.set(unit.step, 0)

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
