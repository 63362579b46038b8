"""What the host moves for a training step: inputs and labels in, the loss and a status word out.

Starting a step takes three accesses to control registers, all of one word: STATUS is read before
the start, ENTRY and CONTROL are written. They are counted apart, and nothing else is left.
"""

from __future__ import annotations

import pytest

from gradiron.arch.isa import Space
from gradiron.compiler import compile_graph
from gradiron.data import load_digits
from gradiron.device import Device
from gradiron.golden import GoldenDevice
from gradiron.networks import network
from gradiron.train import Settings, new_trainer
from support.machines import FOUR, simulated

BATCH, STEPS = 8, 5
WORD = 4
START_READ, START_WRITTEN = WORD, 2 * WORD
"""STATUS; ENTRY and CONTROL."""


def device_of(kind: str) -> Device:
    if kind == "golden":
        return GoldenDevice(FOUR)
    simulated.cache_clear()
    return simulated(FOUR)


@pytest.mark.parametrize("kind", ["golden", "cxxrtl"])
def test_traffic_of_training_steps(kind: str) -> None:
    data = load_digits()
    device = device_of(kind)
    program = compile_graph(network("digits"), FOUR, BATCH)
    trainer = new_trainer(device, program, data, Settings(epochs=1, batch=BATCH, rate=3))
    trainer.set_rate(3)
    for step in range(STEPS):
        device.traffic.reset()
        at = step * BATCH
        trainer.step(data.x_train[at : at + BATCH], data.y_train[at : at + BATCH])
        inputs, labels = BATCH * 64, BATCH
        status, loss = WORD, WORD
        assert device.traffic.written == {
            Space.MEMORY: inputs + labels,
            Space.CSR: START_WRITTEN,
            Space.PROGRAM: 0,
            Space.EXPONENTS: 0,
        }
        assert device.traffic.read == {
            Space.MEMORY: 0,
            Space.CSR: START_READ + status + loss,
            Space.PROGRAM: 0,
            Space.EXPONENTS: 0,
        }
    simulated.cache_clear()
