"""Windows of data memory at every offset, with every mask, and at the ends of the regions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from gradiron.arch.config import Config
from gradiron_hw.memory import DataMemory

CONFIGS = {
    "byte lanes": Config(rows=4, cols=2, regions=(64, 128), lane_bytes=1),
    "two-byte lanes": Config(rows=2, cols=4, regions=(128, 64), lane_bytes=2),
    "word of two": Config(rows=2, cols=2, regions=(64, 66, 64), lane_bytes=2),
    "single port": Config(rows=8, cols=8, regions=(64,), single_port=True, lane_bytes=2),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_windows(name: str) -> None:
    config = CONFIGS[name]
    size, step = config.word_bytes, config.lane_bytes
    dut = DataMemory(config, reads=("a", "b"), writes=("w",))
    model = [bytearray(length) for length in config.regions]
    rng = np.random.default_rng(2)
    a, b, w = dut.r_a, dut.r_b, dut.w_w

    def needed(region: int, offset: int, mask: int) -> bool:
        """Whether all that the mask names exists."""
        there = len(model[region]) if region < len(model) else 0
        return all(offset + i < there for i in range(size) if mask >> i & 1)

    async def testbench(ctx: Any) -> None:
        async def write(region: int, offset: int, mask: int, data: bytes) -> None:
            for signal, value in (
                (w.en, 1),
                (w.region, region),
                (w.offset, offset),
                (w.mask, mask),
                (w.data, int.from_bytes(data, "little")),
            ):
                ctx.set(signal, value)
            right = needed(region, offset, mask)
            assert ctx.get(w.oor) == (not right), (region, offset, mask)
            if right:
                for i in range(size):
                    if mask >> i & 1:
                        model[region][offset + i] = data[i]
            await ctx.tick()
            ctx.set(w.en, 0)

        async def read(channel: Any, region: int, offset: int, mask: int) -> None:
            for signal, value in (
                (channel.en, 1),
                (channel.region, region),
                (channel.offset, offset),
                (channel.mask, mask),
            ):
                ctx.set(signal, value)
            right = needed(region, offset, mask)
            assert ctx.get(channel.oor) == (not right), (region, offset, mask)
            await ctx.tick()
            ctx.set(channel.en, 0)
            # The window belongs to the request, whatever the channel says now.
            ctx.set(channel.offset, 0)
            ctx.set(channel.region, 0)
            found = ctx.get(channel.data).to_bytes(size, "little")
            if right:
                for i in range(size):
                    if mask >> i & 1:
                        assert found[i] == model[region][offset + i], (region, offset, mask, i)

        full = (1 << size) - 1
        for region, length in enumerate(config.regions):
            for offset in range(0, length, size):
                await write(region, offset, full, rng.bytes(size))
        for region, length in enumerate(config.regions):
            # Every offset, over the end too; there with every mask that leaves the end out.
            for offset in range(0, length + size, step):
                await read(a if offset // step % 2 else b, region, offset, full)
                await write(region, offset, int(rng.integers(1 << size)), rng.bytes(size))
            for offset in range(length - size, length + 1, step):
                for mask in range(1 << min(size, 4)):
                    await read(a, region, offset, mask)
                    await write(region, offset, mask, rng.bytes(size))
        for _ in range(200):
            region = int(rng.integers(4))
            offset = int(rng.integers(1 << config.offset_bits)) // step * step
            if rng.random() < 0.8 and region < len(config.regions):
                offset %= config.regions[region]
            mask = int(rng.integers(1 << size))
            if rng.random() < 0.5:
                await write(region, offset, mask, rng.bytes(size))
            else:
                await read(b, region, offset, mask)
        for region, length in enumerate(config.regions):
            for offset in range(0, length, size):
                await read(a, region, offset, full)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()


def test_two_channels_in_different_regions() -> None:
    config = CONFIGS["byte lanes"]
    dut = DataMemory(config, reads=("a", "b"), writes=("w",))

    async def testbench(ctx: Any) -> None:
        ctx.set(dut.w_w.mask, 15)
        for region in range(2):
            for offset in range(0, 64, 4):
                ctx.set(dut.w_w.en, 1)
                ctx.set(dut.w_w.region, region)
                ctx.set(dut.w_w.offset, offset)
                values = bytes(64 * region + offset + i for i in range(4))
                ctx.set(dut.w_w.data, int.from_bytes(values, "little"))
                await ctx.tick()
        ctx.set(dut.w_w.en, 0)
        for channel in (dut.r_a, dut.r_b):
            ctx.set(channel.en, 1)
            ctx.set(channel.mask, 15)
        for offset in range(60):
            for turn in range(2):
                for channel, region, at in (
                    (dut.r_a, turn, offset),
                    (dut.r_b, 1 - turn, 60 - offset),
                ):
                    ctx.set(channel.region, region)
                    ctx.set(channel.offset, at)
                await ctx.tick()
                for channel, region, at in (
                    (dut.r_a, turn, offset),
                    (dut.r_b, 1 - turn, 60 - offset),
                ):
                    values = bytes(64 * region + at + i for i in range(4))
                    assert ctx.get(channel.data) == int.from_bytes(values, "little")

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
