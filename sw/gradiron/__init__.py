"""Gradiron: train neural networks in int8 on a small accelerator, simulated or real.

These names are all that a program which drives a device needs; numpy is enough for them, and a
simulated device asks for its packages when it is opened. For example, a product in which the golden
model, a simulation or a board does the work:

    import gradiron

    with gradiron.open("golden:4x4") as device:  # or "sim:8x8", "pysim:4x4"
        program = gradiron.assemble("STEP\\nHALT", device.config)
        device.write_program(program.words)
        device.run()
        print(device.read_csr("STEP"), device.counters())

and training of a network:

    from gradiron.compiler import compile_graph
    from gradiron.data import load
    from gradiron.networks import network
    from gradiron.train import default_settings, new_trainer

    graph, data = network("digits"), load("digits")
    settings = default_settings(graph)
    with gradiron.open("golden") as device:
        program = compile_graph(graph, device.config, settings.batch)
        trainer = new_trainer(device, program, data, settings)
        print(trainer.fit(data, settings).accuracy)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradiron.arch.config import Config as Config
    from gradiron.arch.config import simulation_config as simulation_config
    from gradiron.arch.config import up5k_config as up5k_config
    from gradiron.assembler import assemble as assemble
    from gradiron.assembler import disassemble as disassemble
    from gradiron.device import Device as Device
    from gradiron.engines import open_device as open
    from gradiron.errors import AssemblyError as AssemblyError
    from gradiron.errors import ConfigError as ConfigError
    from gradiron.errors import DataError as DataError
    from gradiron.errors import DeviceError as DeviceError
    from gradiron.errors import GradironError as GradironError
    from gradiron.errors import MachineError as MachineError
    from gradiron.errors import MismatchError as MismatchError
    from gradiron.errors import MissingExtraError as MissingExtraError
    from gradiron.errors import ModelError as ModelError
    from gradiron.errors import PlanError as PlanError
    from gradiron.errors import ToolError as ToolError
    from gradiron.golden import GoldenDevice as GoldenDevice

# Where each name lives: imported when it is first used, so that nothing is paid for in advance, and
# modules of the ground floor do not pull in what stands on them.
_HOMES = {
    "Config": "arch.config",
    "simulation_config": "arch.config",
    "up5k_config": "arch.config",
    "assemble": "assembler",
    "disassemble": "assembler",
    "Device": "device",
    "GoldenDevice": "golden",
    "open": "engines",
    **dict.fromkeys(
        (
            "AssemblyError",
            "ConfigError",
            "DataError",
            "DeviceError",
            "GradironError",
            "MachineError",
            "MismatchError",
            "MissingExtraError",
            "ModelError",
            "PlanError",
            "ToolError",
        ),
        "errors",
    ),
}

__all__ = [
    "AssemblyError",
    "Config",
    "ConfigError",
    "DataError",
    "Device",
    "DeviceError",
    "GoldenDevice",
    "GradironError",
    "MachineError",
    "MismatchError",
    "MissingExtraError",
    "ModelError",
    "PlanError",
    "ToolError",
    "assemble",
    "disassemble",
    "open",
    "simulation_config",
    "up5k_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradiron' has no attribute {name!r}")
    module = import_module(f"gradiron.{_HOMES[name]}")
    found: Any = getattr(module, "open_device" if name == "open" else name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
