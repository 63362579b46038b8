"""The decoder against `isa.decode`: all opcodes, all bits, all boundaries, and random words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from gradiron.arch import isa
from gradiron.arch.config import Config
from gradiron.arch.isa import ErrorCause, Kind
from gradiron_hw.decoder import Decoder

CONFIGS = {
    "two regions, no momentum": Config(
        rows=4, cols=4, regions=(4096, 1000), acc_depth=64, program_words=64, momentum=False
    ),
    "four regions": Config(rows=2, cols=2, regions=(64, 1 << 21, 4096, 66), acc_depth=4096),
    "one region": Config(rows=16, cols=2, regions=(1 << 16,), acc_depth=16),
}


def words(config: Config) -> Iterator[int]:
    rng = np.random.default_rng(4)
    for opcode in range(256):
        for operand in (0, 1, 0x7FFFFF, 0x800000, 0xFFFFFF, int(rng.integers(1 << 24))):
            yield opcode << 24 | operand
    for instruction in isa.INSTRUCTIONS:
        for bit in range(24):
            yield instruction.opcode << 24 | 1 << bit
            yield instruction.opcode << 24 | 8 | 1 << bit
    # Every MM there is, and some that are not.
    for operand in range(1 << 13):
        if operand & 3 == 0:
            yield isa.BY_NAME["MM"].opcode << 24 | operand
    for register in isa.REGISTERS:
        head = (isa.SET_OPCODE + register.number) << 24
        edges = {0, 1, (1 << 24) - 1, 1 << 23, (1 << 23) - 1}
        if register.kind == Kind.ADDRESS:
            for region in range(4):
                size = config.regions[region] if region < len(config.regions) else 64
                edges |= {isa.make_address(region, offset) for offset in (0, size - 1, size)}
        else:
            low, high = register.range(config)
            edges |= {low - 1, low, low + 1, high - 1, high, high + 1}
        for edge in sorted(edges):
            yield head | edge & isa.OPERAND_MASK
        for _ in range(20):
            yield head | int(rng.integers(1 << 24)) >> int(rng.integers(24))
    for _ in range(500):
        yield int(rng.integers(1 << 32))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_of_word(name: str) -> None:
    config = CONFIGS[name]
    dut = Decoder(config)
    flags = {i.name: f"is_{i.name.lower()}" for i in isa.INSTRUCTIONS} | {"SET": "is_set"}

    async def testbench(ctx: Any) -> None:
        for word in words(config):
            ctx.set(dut.word, word)
            found = {name for name, flag in flags.items() if ctx.get(getattr(dut, flag))}
            error = ErrorCause(ctx.get(dut.error))
            expected = isa.decode(word, config)
            if isinstance(expected, ErrorCause):
                assert (error, found) == (expected, set()), f"{word:#010x}"
            else:
                assert (error, found) == (ErrorCause.NONE, {expected.name}), f"{word:#010x}"

    simulator = Simulator(dut)
    simulator.add_testbench(testbench)
    simulator.run()
