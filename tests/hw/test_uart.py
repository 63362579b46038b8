"""The serial line: both directions at once, at small and odd divisors, with a slow reader."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from amaranth.sim import Simulator

from gradiron.errors import ConfigError
from gradiron_hw.uart import Uart, divisor_for

BYTES = bytes((0x00, 0xFF, 0x55, 0xAA, 0x01, 0x80, 0x7E, 0x7D, 0x33))


@pytest.mark.parametrize("divisor", [4, 5, 7, 16])
@pytest.mark.parametrize("skew", [-0.02, 0.0, 0.02])
def test_receives(divisor: int, skew: float) -> None:
    """Bytes back to back, from a sender whose clock differs by so much."""
    dut = Uart(divisor=divisor)
    bits = [1] * 12 + [b for byte in BYTES for b in (0, *(byte >> i & 1 for i in range(8)), 1)]
    got: list[int] = []

    async def sender(ctx: Any) -> None:
        time = 0.0
        cycle = 0
        for bit in [*bits, 1, 1]:
            ctx.set(dut.rx, bit)
            time += divisor * (1 + skew)
            while cycle < round(time):
                await ctx.tick()
                cycle += 1

    async def reader(ctx: Any) -> None:
        ctx.set(dut.o.ready, 1)
        while True:
            *_, valid, payload = await ctx.tick().sample(dut.o.valid, dut.o.payload)
            if valid:
                got.append(payload)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(sender)
    simulator.add_testbench(reader, background=True)
    simulator.run()
    assert bytes(got) == BYTES


@pytest.mark.parametrize("divisor", [4, 5, 16])
def test_sends(divisor: int) -> None:
    dut = Uart(divisor=divisor)
    line: list[int] = []

    async def source(ctx: Any) -> None:
        ctx.set(dut.rx, 1)
        for byte in BYTES:
            ctx.set(dut.i.payload, byte)
            ctx.set(dut.i.valid, 1)
            await ctx.tick().until(dut.i.ready)
        ctx.set(dut.i.valid, 0)
        await ctx.tick().repeat(12 * divisor)

    async def watch(ctx: Any) -> None:
        while True:
            *_, bit = await ctx.tick().sample(dut.tx)
            line.append(bit)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(source)
    simulator.add_testbench(watch, background=True)
    simulator.run()
    got: list[int] = []
    at = 0
    while 0 in line[at:]:
        at = line.index(0, at) + divisor // 2
        frame = [line[at + n * divisor] for n in range(10)]
        assert frame[0] == 0
        assert frame[9] == 1
        got.append(sum(bit << i for i, bit in enumerate(frame[1:9])))
        at += 9 * divisor
    assert bytes(got) == BYTES


def test_byte_waits_for_its_reader() -> None:
    dut = Uart(divisor=4)

    async def bench(ctx: Any) -> None:
        for bit in (1, 0, *(0x5A >> i & 1 for i in range(8)), 1):
            ctx.set(dut.rx, bit)
            await ctx.tick().repeat(4)
        await ctx.tick().repeat(30)
        assert ctx.get(dut.o.valid) == 1
        assert ctx.get(dut.o.payload) == 0x5A
        ctx.set(dut.o.ready, 1)
        await ctx.tick()
        assert ctx.get(dut.o.valid) == 0

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
def test_init_wrong_divisor() -> None:
    with pytest.raises(ConfigError, match=r"^a divisor of 3; a bit needs at least 4 clock cycles$"):
        Uart(divisor=3)
    gc.collect()


def test_divisor_for() -> None:
    assert divisor_for(12e6, 1e6) == 12
    assert divisor_for(30e6, 115200) == 260
    with pytest.raises(ConfigError, match=r"at least 4 are needed: at most 3e.06 baud"):
        divisor_for(12e6, 4e6)
    with pytest.raises(ConfigError, match=r"more than 2% off; possible are for example"):
        divisor_for(12e6, 2.7e6)
