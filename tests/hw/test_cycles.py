"""Predicted = measured: the cycle model's figures are the hardware's own counters, to the cycle."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from gradiron.arch.config import Config
from gradiron.arch.isa import MachineState
from gradiron.compiler import compile_graph, gemm_program
from gradiron.cycles import program_cycles
from gradiron.networks import network
from support.machines import QUICK, SLOW, golden, name_of, simulated
from support.programs import NoRoom, random_loss, random_product, random_sequence

MAKERS = {"product": random_product, "loss": random_loss, "sequence": random_sequence}


@pytest.fixture(autouse=True, scope="module")
def _fresh_machines() -> Iterator[None]:
    """No golden model runs along here, so that nobody may compare with these machines later."""
    yield
    simulated.cache_clear()
    golden.cache_clear()


def compare(config: Config, kind: str, first: int, count: int) -> None:
    """Run random programs; CYCLES and BUSY must be what the model says."""
    device = simulated(config)
    seed = first
    while count:
        seed += 1
        try:
            case = MAKERS[kind](config, np.random.default_rng([seed, config.rows, config.cols]))
        except NoRoom:
            continue
        case.load(device)
        device.clear_counters()
        status = device.run(0)
        assert status.state == MachineState.HALTED
        expected = program_cycles(case.words, config)
        counters = device.counters()
        found = (counters["CYCLES"], counters["BUSY"])
        assert found == (expected.total, expected.busy), f"{kind}, seed {seed}\n{case.text}"
        count -= 1


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("config", QUICK, ids=name_of)
def test_random_programs(config: Config, kind: str) -> None:
    compare(config, kind, 10_000, 60 if kind == "product" else 25)


@pytest.mark.long
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("config", SLOW, ids=name_of)
def test_many_random_programs(config: Config, kind: str) -> None:
    compare(config, kind, 20_000, 200 if kind == "product" else 40)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_training_step(batch: int) -> None:
    config = QUICK[1]
    program = compile_graph(network("mlp:24-12-6"), config, batch)
    device = simulated(config)
    device.reset()
    device.write_csr("MODE", 0)
    device.write_program(program.words)
    for region, size in enumerate(config.regions):
        device.write_memory(config.region_base(region), bytes(size))
    device.clear_counters()
    device.run(program.entries["train"])
    expected = program_cycles(program.words, config, program.entries["train"])
    assert device.read_csr("CYCLES") == expected.total


@pytest.mark.parametrize("order", ["NN", "NT", "TN"])
def test_products_run_at_the_arrays_peak(order: str) -> None:
    """By the model, which equals the counters: 64 cubed >= 95 % (16x16: 90), 256 cubed >= 99."""
    for size, bars in ((64, {"4x4": 0.95, "8x8": 0.95, "16x16": 0.9}), (256, None)):
        for array in ("4x4", "8x8", "16x16"):
            rows, cols = (int(n) for n in array.split("x"))
            config = Config(rows=rows, cols=cols)
            program = gemm_program(config, size, size, size, order=order)
            entry = program.program.entries["gemm"]
            cycles = program_cycles(program.program.words, config, entry).total
            share = program.macs / cycles / config.peak
            assert share >= (bars[array] if bars else 0.99), f"{array}, {size}: {share:.1%}"
