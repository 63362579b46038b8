"""Cycle counts that hardware and cycle model share: fixed lengths, no behaviour."""

from __future__ import annotations

from gradiron.arch.config import Config

HAZARD = 4
"""Advances between two visits of one accumulator row: read, add, write, and one to spare."""


def word_registers(config: Config) -> int:
    """Registers between data memory and array: none on single-ported SPRAM, with its slow clock."""
    return int(not config.single_port)


def fetch_stages(config: Config) -> int:
    """Stages from the state machine of a product to its array: table, request, memory, word."""
    return 3 + word_registers(config)


STEP_CYCLES: dict[str, tuple[int, int]] = {
    "wait": (6, 0),
    "read": (5, 0),
    "write": (4, 0),
    "read planes": (3, 0),
    "write planes": (2, 0),
    "copy": (1, 0),
    "pass": (4, 1),
    "settle": (3, 0),
    "release": (1, 0),
}
"""Length of a step of a chore: cycles, and further cycles per group of lanes."""

CHORE_STEPS: dict[str, tuple[str, ...]] = {
    "load bias": ("wait", "read", "pass"),
    "update bias": ("wait", "read", "pass", "write", "release"),
    "momentum bias": (
        *("wait", "read", "pass", "pass", "write"),
        *("copy", "read", "pass", "write", "release"),
    ),
    "momentum row": (
        *("wait", "read planes", "pass", "pass", "write planes"),
        *("read planes", "pass", "settle"),
    ),
}
"""The steps of the vector path's whole-row chores."""


def step_cycles(kind: str, groups: int) -> int:
    """Cycles of one step of a chore."""
    fixed, per_group = STEP_CYCLES[kind]
    return fixed + per_group * groups


def chore_cycles(name: str, groups: int) -> int:
    """Cycles of a whole chore."""
    return sum(step_cycles(kind, groups) for kind in CHORE_STEPS[name])


PREPARE_CYCLES = 6
"""Before an MM or LOSS: exponents are read, shift amounts and the random key computed."""
POST_CYCLES = 3
"""After an MM or LOSS: saturations are counted, the exponent and its tracker written."""

LOSS_QUOTIENT_BITS = 16
LOSS_LOG_CYCLES = 13
"""Cycles of a loss between the last probability of a sample and the end of its row."""


def loss_divider_bits(config: Config) -> int:
    """Quotient bits per cycle of the divider: small machines have the small one."""
    return 1 if config.lanes <= 2 else 2


def loss_divider_cycles(config: Config) -> int:
    """Cycles per division: one to load, then the quotient."""
    return 1 + LOSS_QUOTIENT_BITS // loss_divider_bits(config)
