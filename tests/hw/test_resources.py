"""Logic cells of every unit of the UP5K machine: a budget each, with what fills it.

A unit that grows beyond its number fails; one that shrinks should get a smaller one.
"""

from __future__ import annotations

import pytest

from gradiron.arch.config import up5k_config
from gradiron_boards.resources import DSPS, EBRS, SPRAMS, UNITS, Row, resources

BUDGETS: dict[str, tuple[int, str]] = {
    "array": (220, "tile registers and the sums of a column; the products are in the DSP"),
    "transposer and accumulators": (
        700,
        "four adders of 32 bits with the choice of their operand, the words that are turned, and "
        "the tags that travel with them",
    ),
    "operand fetch": (1050, "the loop nest: an adder and a comparison per level, the bounds"),
    "vector path": (1650, "one lane: shifter of 48 bits, rounding, two saturating sums; planes"),
    "scalar unit and control store": (
        290,
        "an adder of ten bits with its register and operands (45), three limited shift amounts "
        "(25), the bit length of the largest magnitude (45), requests (40), trackers, and the "
        "increment of a loop's rounds (40)",
    ),
    "loss": (660, "divider, sum, largest logit, addresses of five tensors"),
    "random numbers": (310, "four rounds of a hash of 16 bits, the round of the key (90)"),
    "data memory": (370, "rotation by bytes of what is read and written, the bounds"),
    "state memory": (
        355,
        "one adder of 32 bits (32) with five sources of its addend (80), eleven registers in "
        "front of the counters (60) and their choice (45), requests and turns (70)",
    ),
    "descriptor registers": (
        640,
        "557 bits with a register each, as units use them in every cycle; 42 gates choose one",
    ),
    "sequencer, decoder, host port": (
        560,
        "decoder 120, of which 60 are the rules of MM; answers to the host 80; the choice "
        "between vector path, LOSS and host as to who accesses memory 170; program counter 40",
    ),
}


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {row.unit: row for row in resources(up5k_config())}


@pytest.mark.long
@pytest.mark.parametrize("unit", UNITS)
def test_unit_keeps_to_its_budget(rows: dict[str, Row], unit: str) -> None:
    limit, reason = BUDGETS[unit]
    assert rows[unit].lc <= limit, f"{unit} has {rows[unit].lc} logic cells, not {limit}: {reason}"


@pytest.mark.long
def test_blocks_of_the_device_suffice(rows: dict[str, Row]) -> None:
    total = rows["total"]
    assert total.dsp <= DSPS
    assert total.spram <= SPRAMS
    assert total.ebr <= EBRS
