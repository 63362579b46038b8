"""Machines that the tests run on: few, as each has to be compiled, and opened only once."""

from __future__ import annotations

import functools

from gradiron.arch.config import Config
from gradiron.golden import GoldenDevice
from gradiron_sim.cxxrtl import CxxrtlDevice

_REGIONS = (8192, 8192, 4096)

TWO = Config(rows=2, cols=2, regions=_REGIONS, acc_depth=64, program_words=512, name="2x2")
FOUR = Config(rows=4, cols=4, regions=_REGIONS, acc_depth=64, program_words=512, name="4x4")
SINGLE = Config(
    rows=4,
    cols=4,
    regions=(8192, 8192),
    acc_depth=64,
    program_words=512,
    lanes=1,
    single_port=True,
    lane_bytes=2,
    momentum=False,
    name="4x4-single-port",
)
WIDE = FOUR.replace(cols=8, name="4x8")
NARROW_LANES = FOUR.replace(cols=8, lanes=4, name="4x8-lanes4")
TALL = Config(rows=8, cols=4, regions=_REGIONS, acc_depth=64, program_words=512, name="8x4")
ONE_REGION = FOUR.replace(regions=(16384,), name="4x4-one-region")
SINGLE_MOMENTUM = SINGLE.replace(momentum=True, lanes=2, name="4x4-single-port-momentum")
SINGLE_FULL = SINGLE.replace(momentum=True, lanes=4, name="4x4-single-port-lanes4")
EIGHT = FOUR.replace(rows=8, cols=8, name="8x8")
SIXTEEN = FOUR.replace(rows=16, cols=16, name="16x16")

QUICK = (TWO, FOUR, SINGLE)
"""Compiled within a minute each: the default tier."""
SLOW = (WIDE, NARROW_LANES, TALL, ONE_REGION, SINGLE_MOMENTUM, SINGLE_FULL, EIGHT, SIXTEEN)
"""The long tier."""


@functools.cache
def golden(config: Config) -> GoldenDevice:
    """The reference of a configuration."""
    return GoldenDevice(config)


@functools.cache
def simulated(config: Config) -> CxxrtlDevice:
    """The compiled machine of a configuration, to be reset before use."""
    return CxxrtlDevice(config)


def name_of(config: Config) -> str:
    """For test ids."""
    return config.name
