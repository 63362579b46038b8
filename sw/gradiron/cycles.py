"""Cycles of an instruction, as formulas of its operands: what the hardware takes, to the cycle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradiron.arch import isa
from gradiron.arch.config import Config
from gradiron.arch.isa import Out
from gradiron.arch.timing import (
    HAZARD,
    LOSS_LOG_CYCLES,
    POST_CYCLES,
    PREPARE_CYCLES,
    chore_cycles,
    fetch_stages,
    loss_divider_cycles,
)
from gradiron.errors import MachineError


def loss_cycles(n_samples: int, n_classes: int, grad: bool, predict: bool, config: Config) -> int:
    """Cycles of a LOSS, from the cycle in which the unit's `start` is high, exclusive, to the one
    in which `done` is high, inclusive.

    Per element 4 for the largest logit, 4 for the sum, D for the division and 5 for the gradient;
    D = `loss_divider_cycles`. Predictions are written at the end of a row, which is there without
    them as well.

    Parameters
    ----------
    n_samples, n_classes : int
        N_X and N_C.
    grad, predict : bool
        The fields of the instruction.
    config : Config
    """
    del predict
    passes = 2 + 4 * n_classes
    if not grad:
        return n_samples * passes + 2
    check = 4 * n_samples + 1
    passes += 1 + 4 * n_classes
    passes += (n_classes + 1) * loss_divider_cycles(config) + LOSS_LOG_CYCLES
    gradient = n_samples * (1 + 5 * n_classes) + 1
    return check + n_samples * passes + gradient + 2


# --- products -------------------------------------------------------------------------------------


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _region(registers: Mapping[str, int], name: str) -> int:
    return isa.split_address(registers[name])[0]


@dataclass(frozen=True)
class Window:
    """What every finished row costs.

    Attributes
    ----------
    cycles : int
        Length e of the window; the array stands still for e - 1 of them.
    late : int
        1 where the low plane is written a cycle after the high one.
    """

    cycles: int
    late: int


def window(config: Config, fields: Mapping[str, int], registers: Mapping[str, int]) -> Window:
    """The window of an MM: as long as its lanes, reads and writes need."""
    out = fields["out"]
    planes = 2 if out in (Out.LOGITS, Out.MASTER, Out.MOMENTUM) else 1
    operands = {_region(registers, "A_BASE"), _region(registers, "B_BASE")}
    result, low = _region(registers, "O_BASE"), _region(registers, "O_LO")
    reads: list[int] = []
    if fields["mask"]:
        reads.append(_region(registers, "M_BASE"))
    elif out in (Out.MASTER, Out.INT8_WEIGHTS):
        reads.append(result)
    if out == Out.MASTER:
        reads.append(low)
    if config.single_port:
        used = {*reads, result} | ({low} if planes == 2 else set[int]())
        slots = len(reads) + planes + bool(used & operands)
        return Window(max(slots, config.groups), planes - 1)
    need = config.groups
    phase = 0
    for index, region in enumerate(reads):
        if index and region == reads[0]:
            phase = 1
        need = max(need, phase + 1 + (region in operands))
    together = planes == 2 and result == low
    if together:
        need = max(need, 2)
    return Window(need, int(together))


def _gaps_after_rows(
    config: Config, *, run: int, taps: int, serial: bool, groups: int, tiles: int, padded: bool
) -> int:
    """How often, in a transposed product, finished rows are followed by an advance without one.

    The rows of a column tile come tap by tap: J rows, then what is missing to a multiple of R.
    Nothing follows the last of all. Where all rows count, only what comes between column tiles
    does: rows of the next one, or the chore before them, if that tile has a single group and
    nothing else to wait for.
    """
    if run % config.rows:
        return taps * tiles - 1
    return 0 if groups == 1 and not serial and not padded else tiles - 1


def product_cycles(
    config: Config, fields: Mapping[str, int], registers: Mapping[str, int]
) -> tuple[int, int]:
    """Cycles of an MM, and those of them in which a streamed row is multiplied.

    Parameters
    ----------
    fields : mapping
        The fields of the instruction.
    registers : mapping
        Values of the descriptor registers, by name.

    Returns
    -------
    (cycles, busy)
        From the decoding of the instruction to its completion.
    """
    rows, cols = config.rows, config.cols
    latency = rows.bit_length()
    shape = window(config, fields, registers)
    serial = _region(registers, "A_BASE") == _region(registers, "B_BASE")
    pixels, run = registers["N_P"], registers["N_J"]
    taps = registers["N_TY"] * registers["N_TX"]
    blocks = taps * _ceil(run, rows)
    tiles = _ceil(registers["N_C"], cols)
    bias = fields["bias"]
    momentum = fields["out"] == Out.MOMENTUM
    drain = 5 + shape.late
    if fields["transposed"]:
        groups = _ceil(pixels, rows)
        tile = blocks * rows + bias + (rows if serial else 0)
        padded = tile < HAZARD
        tile = max(tile, HAZARD)
        steps = tiles * groups * tile + rows
        finished = taps * run * tiles
        busy = tiles * groups * (taps * run + bias)
        chore = chore_cycles("momentum bias" if momentum else "update bias", config.groups)
        stalls = tiles * bias * (chore - 1)
        valid = (run - 1) % rows + 1
        first = steps - (rows - valid) + 1 + fetch_stages(config) + latency
        if momentum:
            length = chore_cycles("momentum row", config.groups)
            stalls += finished * (length - 1)
            end = first + stalls + 2
        else:
            stalls += finished * (shape.cycles - 1)
            if config.single_port:
                stalls += drain * _gaps_after_rows(
                    config,
                    run=run,
                    taps=taps,
                    serial=serial,
                    groups=groups,
                    tiles=tiles,
                    padded=padded,
                )
            end = first + stalls + 6 + shape.late
        end = max(end, steps + 1 + fetch_stages(config) + stalls)
    else:
        load = cols if fields["b"] else rows
        size = registers["N_G"]
        full, rest = divmod(pixels, size)
        sizes = [(size, full)] + ([(rest, 1)] if rest else [])
        last = rest or size

        def slot(streamed: int) -> int:
            return max(streamed + load, HAZARD) if serial else max(streamed, load, HAZARD)

        steps = max(load, 3) + tiles * blocks * sum(count * slot(n) for n, count in sizes)
        steps += last - slot(last)
        finished = pixels * tiles
        busy = pixels * tiles * blocks
        stalls = finished * (shape.cycles - 1)
        stalls += tiles * bias * chore_cycles("load bias", config.groups)
        if config.single_port:
            # A finished tile is followed by rows of the next tap or a gap; with one tap by finished
            # rows, or by the chore of the next column tile.
            gaps = 0
            for n, count in sizes:
                if blocks > 1 or slot(n) != n:
                    gaps += count
            gaps *= tiles
            if blocks > 1 or slot(last) != last:
                gaps -= 1
            stalls += drain * gaps
        end = steps + fetch_stages(config) + latency + 7 + stalls + shape.late
    return 1 + (PREPARE_CYCLES - 1) + 1 + end + (POST_CYCLES - 1), busy


# --- programs -------------------------------------------------------------------------------------

START_CYCLES = 1
"""From the start of a program to the execution of its first instruction."""


@dataclass(frozen=True)
class CycleReport:
    """Predicted time of a program.

    Attributes
    ----------
    total : int
        As the counter CYCLES counts it: from the start to the HALT.
    by_pc : dict of int to int
        Cycles per program counter, over all executions.
    busy : int
        As the counter BUSY: cycles in which the array multiplied a streamed row.
    """

    total: int
    by_pc: dict[int, int]
    busy: int


def instruction_cycles(
    config: Config, decoded: isa.Decoded, registers: Mapping[str, int]
) -> tuple[int, int]:
    """(cycles, busy cycles) of one instruction with these descriptor registers."""
    match decoded.name:
        case "MM":
            return product_cycles(config, decoded.fields, registers)
        case "LOSS":
            fields = decoded.fields
            running = loss_cycles(
                registers["N_X"],
                registers["N_C"],
                bool(fields["grad"]),
                bool(fields["predict"]),
                config,
            )
            return 1 + (PREPARE_CYCLES - 1) + 1 + running + (POST_CYCLES - 1), 0
        case _:
            return 1, 0


def program_cycles(words: Sequence[int], config: Config, entry: int = 0) -> CycleReport:
    """Predict the time of a program by executing its control flow.

    Time spent waiting for the host (WAIT) is not part of it. Illegal words and what runs past the
    end raise MachineError as the machine would stop.

    Parameters
    ----------
    words : sequence of int
        Program memory from address 0.
    config : Config
    entry : int
        Program counter of the first instruction.
    """
    registers = {r.name: r.reset for r in isa.REGISTERS}
    decoded_words: dict[int, isa.Decoded] = {}
    known: dict[tuple[int, ...], tuple[int, int]] = {}
    loops: list[list[int]] = []
    by_pc: dict[int, int] = {}
    total, all_busy = START_CYCLES, 0
    pc = entry
    while True:
        if not 0 <= pc < min(len(words), config.program_words):
            raise MachineError(isa.ErrorCause.PROGRAM_END.name, pc)
        decoded = decoded_words.get(pc)
        if decoded is None:
            found = isa.decode(words[pc], config)
            if isinstance(found, isa.ErrorCause):
                raise MachineError(found.name, pc)
            decoded = decoded_words[pc] = found
        following = pc + 1
        if decoded.name in ("MM", "LOSS"):
            key = (words[pc], *registers.values())
            if key not in known:
                known[key] = instruction_cycles(config, decoded, registers)
            cycles, busy = known[key]
        else:
            cycles, busy = 1, 0
            if decoded.name == "SET" and decoded.register is not None:
                registers[decoded.register.name] = decoded.value
            elif decoded.name == "LOOP":
                if len(loops) == isa.LOOP_DEPTH:
                    raise MachineError(isa.ErrorCause.LOOP_STACK.name, pc)
                loops.append([following, decoded.fields["count"]])
            elif decoded.name == "ENDLOOP":
                if not loops:
                    raise MachineError(isa.ErrorCause.LOOP_STACK.name, pc)
                loops[-1][1] -= 1
                if loops[-1][1]:
                    following = loops[-1][0]
                else:
                    loops.pop()
            elif decoded.name == "WAIT":
                total += START_CYCLES  # the fetch after the host's resume
        total += cycles
        all_busy += busy
        by_pc[pc] = by_pc.get(pc, 0) + cycles
        if decoded.name == "HALT":
            return CycleReport(total, by_pc, all_busy)
        pc = following


CYCLES_DOC: dict[str, str] = {
    "SET": "1",
    "HALT": "1",
    "LOOP": "1",
    "ENDLOOP": "1",
    "WAIT": "1, one more to fetch after the resume, and what the host takes (counted apart)",
    "STEP": "1",
    "LOSS": f"{1 + PREPARE_CYCLES + POST_CYCLES - 1} plus `gradiron.cycles.loss_cycles(N_X, N_C, "
    "grad, predict)`: about 22 per element with two quotient bits per cycle, 30 with one",
    "MM": "the advances of the streamed side, plus (e - 1) per finished row for a window of e "
    "cycles, plus the chores (bias of a column tile), plus about 30; exactly "
    "`gradiron.cycles.product_cycles`",
}
"""What the manual says of time, by instruction."""
