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


PASS_CYCLES = 4
"""Of a pass of a chore: cycles per group of lanes, from its selection to its result."""

STEP_CYCLES: dict[str, int] = {
    "wait": 5,
    "read": 1,
    "write": 1,
    "read planes": 3,
    "write planes": 2,
    "pass": 0,
    "settle": 3,
    "release": 1,
}
"""Length of a step of a chore, without what depends on the machine."""

CHORE_STEPS: dict[str, tuple[str, ...]] = {
    "load bias": ("wait", "read", "pass"),
    "update bias": ("wait", "read", "pass", "write", "release"),
    "momentum bias": (
        *("wait", "read", "pass", "pass", "write"),
        *("read", "pass", "write", "release"),
    ),
    "momentum row": (
        *("wait", "read planes", "pass", "pass", "write planes"),
        *("read planes", "pass", "settle"),
    ),
}
"""The steps of the vector path's whole-row chores."""


def bank_words(config: Config) -> int:
    """Words of data memory in which the biases of a column tile are read and written.

    A word has at most C bytes, and belongs to a single group of lanes.
    """
    return max(4, config.groups)


def step_cycles(kind: str, config: Config) -> int:
    """Cycles of one step of a chore."""
    further = {"read": bank_words(config), "write": bank_words(config)}
    further["pass"] = PASS_CYCLES * config.groups
    return STEP_CYCLES[kind] + further.get(kind, 0)


def chore_cycles(name: str, config: Config) -> int:
    """Cycles of a whole chore."""
    return sum(step_cycles(kind, config) for kind in CHORE_STEPS[name])


READ_HIGH, WRITE_HIGH, WRITE_LOW, READ_LOW = 2, 3, 4, 5
"""Phases of a window in steps: what is stored of its row is read, the row before is written."""


def stepwise_windows(config: Config) -> dict[str, int]:
    """Lengths of the windows of a machine whose rows are handled in steps, by kind of result.

    What is read must have come before the first group's last stage, and nothing is read or written
    in the last cycle.
    """
    return {
        "int8": max(config.groups + 1, WRITE_HIGH + 2),
        "logits": max(config.groups + 1, WRITE_LOW + 2),
        "master": max(config.groups + READ_LOW - 1, READ_LOW + 2),
    }


def skip_window(config: Config) -> int:
    """Length of a window with a skip operand, whose elements go through the lanes beforehand.

    They are selected from the third cycle on. The sums wait for the last of them to be added to its
    bias, and for the first to be stored.
    """
    return config.groups + max(5, config.groups + 3)


PREPARE_CYCLES = 25
"""Before an MM or LOSS: exponents are read, shift amounts and the random key computed."""
POST_CYCLES = 10
"""After an MM or LOSS: saturations are counted, the exponent and its tracker written."""
COUNT_STEP_CYCLES = 4
"""Of STEP: the training step is a word of a memory."""
ENDLOOP_CYCLES = 2
"""Of ENDLOOP: the innermost loop is a word of a memory."""

LOSS_QUOTIENT_BITS = 16
LOSS_LOG_CYCLES = 13
"""Cycles of a loss between the last probability of a sample and the end of its row."""


def loss_divider_bits(config: Config) -> int:
    """Quotient bits per cycle of the divider: small machines have the small one."""
    return 1 if config.lanes <= 2 else 2


def loss_divider_cycles(config: Config) -> int:
    """Cycles per division: one to load, then the quotient."""
    return 1 + LOSS_QUOTIENT_BITS // loss_divider_bits(config)
