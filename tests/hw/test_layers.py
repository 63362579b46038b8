"""Single layers on the hardware: every pass has the golden model's bits and the predicted cycles.

What a layer computes is checked against integer convolutions in tests/sw/test_single.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from gradiron.arch import isa
from gradiron.arch.config import Config, up5k_config
from gradiron.arch.isa import BMode, MachineState, Out
from gradiron.cycles import program_cycles
from gradiron.errors import PlanError
from gradiron.single import LayerProgram, layer_program
from gradiron_sim.lockstep import run_checked
from support.layers import Case, random_case
from support.machines import QUICK, golden, name_of, simulated
from support.programs import BUILT

LARGE = tuple(
    Config(rows, cols, (1 << 16,) * 4, program_words=4096, name=f"{rows}x{cols}-large")
    for rows, cols in ((4, 4), (8, 8), (16, 16), (8, 4))
)
UP5K = up5k_config()


NEEDED = {
    "depthwise": {"b": BMode.DIAGONAL},
    "max_pool": {"b": BMode.GATE, "out": Out.INT8},
    "average_pool": {"b": BMode.IDENTITY, "scale": 1},
}
"""Fields without which there is no use in planning a layer."""


def is_built(found: LayerProgram, config: Config) -> bool:
    """Whether the hardware has all that the programs use."""
    decoded = [isa.decode(word, config) for word in found.program.words]
    return all(
        isinstance(meaning, isa.Decoded) and (meaning.name != "MM" or BUILT.has(meaning.fields))
        for meaning in decoded
    )


def check(case: Case, config: Config, found: LayerProgram, seed: int) -> None:
    """Run all passes on random data."""
    rng = np.random.default_rng(seed)
    reference, subject = golden(config), simulated(config)
    spread = int(rng.choice([3, 40, 127]))
    images = [
        rng.integers(-spread, spread + 1, size, dtype=np.int8).tobytes() for size in config.regions
    ]
    entries = [(int(rng.integers(-9, -2)), int(rng.integers(-9, 6))) for _ in range(64)]
    for device in (reference, subject):
        device.reset()
        device.clear_counters()
        for region, content in enumerate(images):
            device.write_memory(config.region_base(region), content)
        for tensor, (exponent, tracker) in enumerate(entries):
            device.write_exponent(tensor, exponent, tracker, seed % 8)
            device.write_saturations(tensor, 0)
        device.write_csr("SEED", seed)
        device.write_csr("STEP", 3)
        device.write_csr("RATE", 3)
        found.prepare(device)
    for name, entry in found.program.entries.items():
        subject.clear_counters()
        status = run_checked(reference, subject, entry, timeout=300)
        assert status.state == MachineState.HALTED, f"{name} of {case}: {status}"
        expected = program_cycles(found.program.words, config, entry)
        counters = subject.counters()
        measured = (counters["CYCLES"], counters["BUSY"])
        assert measured == (expected.total, expected.busy), f"{name} of {case}"


def run(config: Config, seed: int, count: int, *, channels: int, size: int, macs: int) -> None:
    rng = np.random.default_rng(seed)
    even = config.lane_bytes == 2
    done = 0
    for turn in range(20 * count):
        case = random_case(rng, even=even, channels_up_to=channels, size_up_to=size, batch_up_to=3)
        if not BUILT.has(NEEDED.get(case.layer.operation, {})):
            continue
        if (case.skip or case.partial) and not BUILT.skip:
            continue
        options = {"masked": case.masked, "skip": case.skip, "partial": case.partial}
        try:
            found = layer_program(config, case.layer, case.shape, case.batch, **options)
        except PlanError:
            continue
        if not is_built(found, config):
            continue
        if sum(found.macs(entry) for entry in found.program.entries) > macs:
            continue
        check(case, config, found, seed + turn)
        done += 1
        if done == count:
            return
    pytest.fail(f"only {done} layers fit {config}")


@pytest.mark.parametrize("config", QUICK, ids=name_of)
def test_random_layers(config: Config) -> None:
    run(config, 1, 10, channels=10, size=8, macs=100_000)


@pytest.mark.long
@pytest.mark.parametrize("config", [*LARGE, UP5K], ids=name_of)
def test_many_random_layers(config: Config) -> None:
    run(config, 1000, 100, channels=40, size=20, macs=4_000_000)
