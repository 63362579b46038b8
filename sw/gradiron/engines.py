"""Devices by name: the golden model, and the simulated machines, which are imported when asked for.

A name is ENGINE or ENGINE:RxC, for example "golden", "golden:4x4", "cxxrtl:8x8" or "pysim:4x4";
"sim" is another name of "cxxrtl". A board is "serial:PORT" or "serial:PORT@BAUD", for example
"serial:/dev/ttyUSB0"; "replay:FILE" plays one from recorded traffic.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gradiron.arch.config import Config, simulation_config
from gradiron.device import Device
from gradiron.errors import ConfigError, DeviceError, MissingExtraError

GOLDEN, CXXRTL, PYSIM = "golden", "cxxrtl", "pysim"
ENGINES = (GOLDEN, CXXRTL, PYSIM)
SERIAL, REPLAY = "serial", "replay"
ALIASES = {"sim": CXXRTL}
DEFAULT_ARRAY = "8x8"
SIMULATION_EXTRA = "sim"
SIMULATION_PACKAGES = ("amaranth", "jinja2")


def simulation_module(name: str) -> Any:
    """A module of `gradiron_sim`.

    Raises
    ------
    MissingExtraError
        Where what it stands on is not installed.
    """
    try:
        return import_module(f"gradiron_sim.{name}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in SIMULATION_PACKAGES:
            raise
        raise MissingExtraError(missing, SIMULATION_EXTRA, "simulating the hardware") from None


def is_board(engine: str) -> bool:
    """Whether a name is that of a board, whose machine is what it is."""
    return engine.partition(":")[0] in (SERIAL, REPLAY)


def engine_name(text: str) -> str:
    """A name for `open_engine`, or of a board for `open_device`.

    Raises
    ------
    ValueError
        For anything else.
    """
    if text in ENGINES or is_board(text):
        return text
    raise ValueError(f"{text!r} is none of {', '.join(ENGINES)}, {SERIAL}:PORT, {REPLAY}:FILE")


def open_engine(engine: str, config: Config, **options: Any) -> Device:
    """A device of a kind.

    Parameters
    ----------
    engine : str
        "golden", "cxxrtl" or "pysim".
    config : Config
    options
        For the constructor of the kind: `record`, and what it has of its own.

    Raises
    ------
    DeviceError
        For another engine.
    MissingExtraError
        Where a package of the engine is not installed.
    ToolError
        Where an engine cannot be built: no C++ compiler.
    """
    engine = ALIASES.get(engine, engine)
    if engine == GOLDEN:
        from gradiron.golden import GoldenDevice

        return GoldenDevice(config, **options)
    if engine == CXXRTL:
        return simulation_module("cxxrtl").CxxrtlDevice(config, **options)
    if engine == PYSIM:
        return simulation_module("pysim").PysimDevice(config, **options)
    raise DeviceError(
        f"no engine is called {engine!r}; there are {', '.join(ENGINES)}, and boards at "
        f"{SERIAL}:PORT"
    )


def open_device(spec: str = GOLDEN, *, config: Config | None = None, **options: Any) -> Device:
    """Open a device by its name.

    Parameters
    ----------
    spec : str
        ENGINE or ENGINE:RxC; the array is 8x8 unless it is given. Or serial:PORT, or replay:FILE.
    config : Config or None
        The whole machine, instead of the generous one for simulations; a board's is recognised.
    options
        As in `open_engine`; of boards as in `gradiron.serial_device.open_serial`.

    Raises
    ------
    DeviceError, MissingExtraError, ToolError
        As `open_engine`.
    ConfigError
        For an array that cannot exist, or one that is given twice and differs.
    """
    engine, _, array = spec.partition(":")
    if is_board(spec):
        from gradiron.serial_device import Replay, open_serial, open_transport

        if engine == SERIAL:
            return open_serial(array, config=config, **options)
        return open_transport(Replay(array), config=config, **options)
    if config is None:
        config = simulation_config(array or DEFAULT_ARRAY)
    elif array and array != config.array:
        raise ConfigError(
            f"{spec!r} asks for the array {array}, the configuration has {config.array}; leave one "
            "of them out"
        )
    return open_engine(engine, config, **options)
