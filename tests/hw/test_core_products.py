"""Random programs: the hardware computes what the golden model computes, to the bit.

A program that fails is run again instruction by instruction, so that the message names its seed,
the first instruction with another outcome, and the element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from gradiron.arch.config import Config
from gradiron.arch.isa import MachineState, Out
from gradiron.device import Device
from gradiron.errors import MismatchError
from gradiron.golden import GoldenDevice
from gradiron_sim.lockstep import Lockstep, run_checked
from gradiron_sim.pysim import PysimDevice
from support.machines import QUICK, SLOW, golden, name_of, simulated
from support.programs import (
    BUILT,
    Case,
    NoRoom,
    random_loss,
    random_product,
    random_sequence,
)

Make = Callable[[Config, np.random.Generator], Case]
KINDS: dict[str, Make] = {
    "product": random_product,
    "loss": random_loss,
    "sequence": random_sequence,
}


def cases(config: Config, make: Make, first: int, count: int) -> Iterator[tuple[int, Case]]:
    """Programs that fit, with their seeds."""
    seed = first
    while count:
        try:
            case = make(config, np.random.default_rng([seed, config.rows, config.cols]))
        except NoRoom:
            pass
        else:
            yield seed, case
            count -= 1
        seed += 1


def check(reference: Device, subject: Device, case: Case, seed: int, *, fill: bool = True) -> None:
    """Run a program on both, and compare all state after it."""
    for device in (reference, subject):
        case.load(device, fill=fill)
    try:
        status = run_checked(reference, subject, counters=("INSTRUCTIONS",), timeout=60)
    except MismatchError as error:
        for device in (reference, subject):
            case.load(device, fill=fill)
        found = str(error)
        try:
            Lockstep(reference, subject, counters=("INSTRUCTIONS",), timeout=60).run()
        except MismatchError as precise:
            found = str(precise)
        # The machines differ for good; the next test begins with new ones.
        golden.cache_clear()
        simulated.cache_clear()
        pytest.fail(f"seed {seed} on {reference.config}: {found}\n{case.text}", pytrace=False)
    assert status.state == MachineState.HALTED, f"seed {seed}: {status}\n{case.text}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", QUICK, ids=name_of)
def test_random_programs(config: Config, kind: str) -> None:
    for seed, case in cases(config, KINDS[kind], 0, 60 if kind == "product" else 30):
        check(golden(config), simulated(config), case, seed)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [*QUICK, *SLOW], ids=name_of)
def test_many_random_programs(config: Config, kind: str) -> None:
    for seed, case in cases(config, KINDS[kind], 1000, 400 if kind == "product" else 200):
        check(golden(config), simulated(config), case, seed)


@pytest.mark.parametrize("out", BUILT.results, ids=lambda out: out.name.lower())
@pytest.mark.parametrize("config", QUICK, ids=name_of)
def test_every_kind_of_result(config: Config, out: Out) -> None:
    if out == Out.MOMENTUM and not config.momentum:
        pytest.skip("the machine has no momentum")

    def make(config: Config, rng: np.random.Generator) -> Case:
        return random_product(config, rng, kind=out)

    for seed, case in cases(config, make, 500, 12):
        check(golden(config), simulated(config), case, seed)


SMALL = (
    Config(rows=2, cols=4, regions=(1024, 512), acc_depth=32, program_words=512),
    Config(
        rows=4,
        cols=2,
        regions=(1024,),
        acc_depth=32,
        program_words=512,
        lanes=1,
        single_port=True,
        lane_bytes=2,
    ),
)


@pytest.mark.parametrize("config", SMALL, ids=["2x4", "4x2-single-port"])
def test_amaranths_own_simulator(config: Config) -> None:
    reference = GoldenDevice(config)

    def make(config: Config, rng: np.random.Generator) -> Case:
        if rng.random() < 0.3:
            return random_loss(config, rng)
        return random_product(config, rng, largest=6)

    with PysimDevice(config) as subject:
        for seed, case in cases(config, make, 0, 3):
            check(reference, subject, case, seed, fill=False)


@pytest.mark.long
@pytest.mark.parametrize("config", SMALL, ids=["2x4", "4x2-single-port"])
def test_amaranths_own_simulator_at_length(config: Config) -> None:
    reference = GoldenDevice(config)

    def make(config: Config, rng: np.random.Generator) -> Case:
        return random_sequence(config, rng, largest=6)

    with PysimDevice(config) as subject:
        for seed, case in cases(config, make, 100, 8):
            check(reference, subject, case, seed, fill=False)
