"""Products of every size from 1 to 40, in three orders, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from gradiron.arch.config import Config
from gradiron.compiler import GEMM_ENTRY, ORDERS, gemm_program
from gradiron.device import Device
from gradiron.errors import PlanError
from support.machines import EIGHT, QUICK, SIXTEEN, TALL, WIDE, golden, name_of, simulated


def check(config: Config, device: Device, seed: int, order: str) -> bool:
    """One product of random size; False where it does not fit."""
    rng = np.random.default_rng([seed, ORDERS.index(order)])
    m, n, k = (int(size) for size in rng.integers(1, 41, 3))
    exponent = None if rng.random() < 0.5 else int(rng.integers(0, 13))
    try:
        gemm = gemm_program(config, m, n, k, order, exponent=exponent)
    except PlanError:
        return False
    spread = 127 if rng.random() < 0.7 else 2
    a, b = (
        rng.integers(-spread, spread + 1, shape, dtype=np.int64).astype(np.int8)
        for shape in ((m, k), (k, n))
    )
    product = a.astype(np.int64) @ b.astype(np.int64)
    s = gemm.exponent
    expected = np.clip((product + ((1 << s) >> 1)) >> s, -127, 127)
    device.reset()
    gemm.load(device, a, b)
    device.run(gemm.program.entry(GEMM_ENTRY), timeout=60)
    found = gemm.result(device)
    message = f"{m} x {k} by {k} x {n}, {order}, exponent {s}, on {config}"
    np.testing.assert_array_equal(found, expected, err_msg=message)
    return True


def run(config: Config, first: int, count: int) -> None:
    device = simulated(config)
    done = sum(
        check(config, device, seed, ORDERS[seed % 3]) for seed in range(first, first + count)
    )
    assert done >= count // 2


@pytest.mark.parametrize("config", QUICK, ids=name_of)
def test_random_sizes(config: Config) -> None:
    run(config, 0, 60)


@pytest.mark.long
@pytest.mark.parametrize("config", [*QUICK, TALL, WIDE, EIGHT, SIXTEEN], ids=name_of)
def test_many_random_sizes(config: Config) -> None:
    run(config, 1000, 320)


@pytest.mark.parametrize("order", ORDERS)
def test_golden_model(order: str) -> None:
    for seed in range(40):
        check(WIDE, golden(WIDE), seed, order)
