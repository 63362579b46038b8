"""The digits network is trained to the same bits on every engine and every array."""

from __future__ import annotations

from functools import cache

import pytest

from gradiron.arch.config import Config
from gradiron.compiler import Program, compile_graph
from gradiron.data import Dataset, load_digits
from gradiron.device import Device
from gradiron.golden import GoldenDevice
from gradiron.networks import network
from gradiron.train import Settings, Trainer, new_trainer
from gradiron_sim.pysim import PysimDevice
from support.machines import EIGHT, FOUR, SINGLE, SIXTEEN, TALL, TWO, WIDE, name_of, simulated

BATCH = 8
SETTINGS = Settings(epochs=1, batch=BATCH, rate=3, seed=7)


@cache
def digits() -> Dataset:
    return load_digits()


@cache
def compiled(config: Config) -> Program:
    return compile_graph(network("digits"), config, BATCH)


def trained(device: Device, steps: int) -> tuple[str, str, list[int]]:
    """Sums of the weights and of all state after some steps, and their losses."""
    if device.status().state:
        device.reset()
    trainer: Trainer = new_trainer(device, compiled(device.config), digits(), SETTINGS)
    trainer.set_rate(SETTINGS.rate)
    x, y = digits().x_train, digits().y_train
    losses = [
        trainer.step(x[at : at + BATCH], y[at : at + BATCH])
        for at in range(0, steps * BATCH, BATCH)
    ]
    return trainer.weights_sha256(), trainer.state_hash(), losses


@cache
def reference(steps: int) -> tuple[str, str, list[int]]:
    """What the golden model of the smallest array makes of it."""
    return trained(GoldenDevice(FOUR), steps)


@pytest.mark.parametrize("config", [TWO, SINGLE, WIDE, EIGHT, SIXTEEN], ids=name_of)
def test_golden(config: Config) -> None:
    assert trained(GoldenDevice(config), 12) == reference(12)


@pytest.mark.parametrize("config", [TWO, FOUR, SINGLE], ids=name_of)
def test_compiled(config: Config) -> None:
    assert trained(simulated(config), 12) == reference(12)
    simulated.cache_clear()


def test_pysim() -> None:
    with PysimDevice(FOUR) as device:
        assert trained(device, 2) == reference(2)


@pytest.mark.long
@pytest.mark.parametrize("config", [TWO, FOUR, SINGLE, TALL, WIDE, EIGHT, SIXTEEN], ids=name_of)
def test_compiled_at_length(config: Config) -> None:
    assert trained(simulated(config), 170) == reference(170)
    simulated.cache_clear()
