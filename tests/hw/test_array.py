"""The array of cells against numpy, extremes included, and the transposing buffer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from amaranth.sim import Simulator

from gradiron.arch.config import Config
from gradiron_hw.array import MacArray, Transposer, array_latency, ones

Int8 = npt.NDArray[np.int8]


def word(values: Int8) -> int:
    return int.from_bytes(values.astype(np.int8).tobytes(), "little")


def tile(rng: np.random.Generator, shape: tuple[int, int]) -> Int8:
    """Random values, or those at the edge of their range."""
    match int(rng.integers(4)):
        case 0:
            return np.full(shape, 127, np.int8)
        case 1:
            return rng.choice(np.array([-127, 127], np.int8), shape)
        case 2:
            return np.full(shape, -127, np.int8)
        case _:
            return rng.integers(-127, 128, shape, dtype=np.int64).astype(np.int8)


@pytest.mark.parametrize("by_columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize(("rows", "cols"), [(2, 2), (2, 8), (4, 4), (8, 2)])
def test_products(rows: int, cols: int, by_columns: bool) -> None:
    config = Config(rows=rows, cols=cols)
    dut = MacArray(config)
    rng = np.random.default_rng([rows, cols])
    latency = array_latency(config)

    async def testbench(ctx: Any) -> None:
        expected: list[Any] = []

        async def advance() -> None:
            # Time between two advances changes nothing.
            while rng.random() < 0.2:
                ctx.set(dut.en, 0)
                await ctx.tick()
            ctx.set(dut.en, 1)
            await ctx.tick()

        def check() -> None:
            if len(expected) > latency and expected[-1 - latency] is not None:
                sums = ctx.get(dut.sums)
                mask = (1 << dut.sum_bits) - 1
                found = [sums >> c * dut.sum_bits & mask for c in range(cols)]
                wanted = [int(v) & mask for v in expected[-1 - latency]]
                assert found == wanted

        active = tile(rng, (rows, cols))
        following = active
        ctx.set(dut.by_columns, by_columns)
        for turn in range(10):
            # The next tile is loaded while the active one works.
            lines = following.T if by_columns else following
            for line in lines:
                ctx.set(dut.load, 1)
                ctx.set(dut.b, word(line))
                x = tile(rng, (1, rows))[0]
                ctx.set(dut.x, word(x))
                await advance()
                expected.append(None if turn == 0 else x.astype(int) @ active.astype(int))
                check()
                ctx.set(dut.swap, 0)
            ctx.set(dut.load, 0)
            active, following = following, tile(rng, (rows, cols))
            # `swap` goes with the first word of the new tile.
            ctx.set(dut.swap, 1)
            for _ in range(3):
                x = tile(rng, (1, rows))[0]
                ctx.set(dut.x, word(x))
                await advance()
                ctx.set(dut.swap, 0)
                expected.append(x.astype(int) @ active.astype(int))
                check()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()


def test_ones() -> None:
    assert ones(Config(rows=4, cols=2)).value == 0x01010101


@pytest.mark.parametrize("rows", [2, 4, 8, 16])
def test_transposer(rows: int) -> None:
    dut = Transposer(Config(rows=rows, cols=2))
    rng = np.random.default_rng(rows)

    async def testbench(ctx: Any) -> None:
        for _ in range(2):
            ctx.set(dut.shift, 0)
            ctx.set(dut.restart, 1)
            await ctx.tick()
            ctx.set(dut.restart, 0)
            before: Int8 | None = None
            for _ in range(5):
                block = tile(rng, (rows, rows))
                for n in range(rows):
                    while rng.random() < 0.3:
                        ctx.set(dut.shift, 0)
                        await ctx.tick()
                    ctx.set(dut.shift, 1)
                    ctx.set(dut.i, word(block[n]))
                    if before is not None:
                        assert ctx.get(dut.o) == word(before[:, n])
                    await ctx.tick()
                before = block
            # Half a block, and another beginning.
            ctx.set(dut.i, 0)
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
