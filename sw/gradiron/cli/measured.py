"""Long measurements of convolutional networks on the simulated hardware: layers, whole steps.

Every result is compared with the golden model before its cycles count.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gradiron.arch.config import Config, parse_array, simulation_config, up5k_config
from gradiron.cli.bench import layer_rows, open_simulator, samples, step_rows
from gradiron.cli.output import Row, note
from gradiron.compiler import compile_graph
from gradiron.engines import CXXRTL
from gradiron.errors import MismatchError
from gradiron.golden import GoldenDevice
from gradiron.model import compare_devices
from gradiron.networks import network
from gradiron.operations import Layer
from gradiron.single import layer_program
from gradiron.train import Settings, answers, new_trainer

ARRAYS = ("4x4", "8x8", "16x16", "4x8")
STEPS = 3
"""Training steps that are compared; one more is measured."""
_SAME: dict[str, Any] = {"relu": True, "padding": "same"}
LAYERS: tuple[tuple[str, Layer, tuple[int, ...]], ...] = (
    ("3x3 16 to 32", Layer("conv", "conv", ("input",), 32, kernel=(3, 3), **_SAME), (16, 16, 16)),
    (
        "3x3 16 to 32, stride 2",
        Layer("conv", "conv", ("input",), 32, kernel=(3, 3), stride=(2, 2), **_SAME),
        (16, 16, 16),
    ),
    ("pointwise 64 to 64", Layer("conv", "conv", ("input",), 64, **_SAME), (25, 5, 64)),
    (
        "first 3x3, 3 to 16",
        Layer("conv", "conv", ("input",), 16, kernel=(3, 3), **_SAME),
        (32, 32, 3),
    ),
    (
        "depthwise 3x3",
        Layer("depthwise", "depthwise", ("input",), kernel=(3, 3), **_SAME),
        (25, 5, 64),
    ),
)
"""Layers that are measured: title, layer, input."""
GROWTH: tuple[tuple[str, tuple[int, int, int], int, int], ...] = (
    ("3x3 16 to 16 on 16x16", (16, 16, 16), 16, 1),
    ("twice the channels", (16, 16, 32), 32, 1),
    ("twice the pixels", (32, 16, 16), 16, 1),
    ("twice the batch", (16, 16, 16), 16, 2),
)
"""What grows: title, input, output channels, batch."""


def port_config(regions: tuple[int, ...] = (1 << 19, 1 << 19)) -> Config:
    """A 4x4 array with the memory ports of an iCE40 UP5K: two single-ported regions."""
    return up5k_config().replace(
        lanes=4, regions=regions, program_words=8192, name="4x4, two single-ported regions"
    )


def _machine(array: str) -> Config:
    parse_array(array)
    return simulation_config(array).replace(program_words=4096)


def conv_layers(session: Any) -> list[Row]:
    """Layers of convolutional networks, each pass by the counter of the simulated hardware."""
    del session
    rows: list[Row] = []
    for array in ARRAYS:
        for title, layer, shape in LAYERS:
            note(f"{title} on {array}")
            found = layer_program(_machine(array), layer, shape, 1)
            rows += [{**row, "layer": title} for row in layer_rows(CXXRTL, found)]
    for title, shape, units, batch in GROWTH:
        note(f"growth: {title}")
        layer = Layer("conv", "conv", ("input",), units, kernel=(3, 3), **_SAME)
        found = layer_program(_machine("8x8"), layer, shape, batch)
        rows += [{**row, "layer": f"growth: {title}"} for row in layer_rows(CXXRTL, found)]
    return rows


def network_steps(session: Any) -> list[Row]:
    """Training steps of convolutional networks, bit for bit, by the hardware's own counter."""
    del session
    wide = simulation_config("16x16", regions=(1 << 19,) * 4).replace(program_words=8192)
    plans = [
        ("resnet8", 1, port_config()),
        ("ds-cnn", 1, port_config()),
        ("autoencoder", 8, port_config()),
        ("resnet8", 1, wide),
        ("ds-cnn", 1, wide),
        ("ds-cnn", 1, replace(up5k_config(), program_words=2048)),
        ("resnet8", 1, port_config((1 << 17, 1 << 17))),
    ]
    rows: list[Row] = []
    for name, batch, config in plans:
        note(f"{name} at batch {batch} on {config.name or config.array}")
        program = compile_graph(network(name), config, batch)
        assert program.graph is not None
        data = samples(program.graph, batch)
        settings = Settings(1, batch, 12)
        with open_simulator(CXXRTL, program, record=True) as chip, GoldenDevice(config) as golden:
            trainers = [new_trainer(each, program, data, settings) for each in (chip, golden)]
            for trainer in trainers:
                trainer.set_rate(settings.rate)
            for _ in range(STEPS):
                for trainer in trainers:
                    trainer.step(data.x_train, answers(trainer.graph, data)[0])
            difference = compare_devices(program, golden, chip)
            if difference is not None:
                raise MismatchError(f"{name}: {difference}")
            digest = trainers[0].weights_sha256()
            found = step_rows(chip, program, trainers[0], data)
        memory = program.plan.used
        rows += [
            {
                **row,
                "model": name,
                "batch": batch,
                "regions": list(config.regions),
                "single_port": config.single_port,
                "lanes": config.lanes,
                "memory_used": memory,
                "bit_exact_steps": STEPS,
                "weights_sha256": digest,
            }
            for row in found
        ]
    return rows
