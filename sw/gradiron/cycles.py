"""Cycles of an instruction, as formulas of its operands: what the hardware takes, to the cycle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradiron.arch import isa
from gradiron.arch.config import Config
from gradiron.arch.isa import BMode, Out
from gradiron.arch.timing import (
    COUNT_STEP_CYCLES,
    ENDLOOP_CYCLES,
    HAZARD,
    LOSS_LOG_CYCLES,
    POST_CYCLES,
    PREPARE_CYCLES,
    chore_cycles,
    fetch_stages,
    loss_divider_cycles,
    skip_window,
    stepwise_windows,
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
        1 where the low plane is written a cycle after the high one, -1 where nothing is written.
    """

    cycles: int
    late: int


def window(config: Config, fields: Mapping[str, int], registers: Mapping[str, int]) -> Window:
    """The window of an MM: as long as its lanes, reads and writes need."""
    out = fields["out"]
    planes = 2 if out in (Out.LOGITS, Out.MASTER, Out.MOMENTUM, Out.POOLED) else 1
    if out in (Out.MEASURE, Out.LOSS):
        planes = 0
    operands = {_region(registers, "A_BASE"), _region(registers, "B_BASE")}
    result, low = _region(registers, "O_BASE"), _region(registers, "O_LO")
    if config.stepwise:
        lengths = stepwise_windows(config)
        kind = "int8"
        if out in (Out.LOGITS, Out.POOLED):
            kind = "logits"
        elif out == Out.MASTER:
            kind = "master"
        length = skip_window(config) if fields["skip"] else lengths[kind]
        return Window(length, planes - 1)
    reads: list[int] = []
    if fields["mask"]:
        reads.append(_region(registers, "M_BASE"))
    elif out in (Out.MASTER, Out.INT8_WEIGHTS):
        reads.append(result)
    if out == Out.MASTER:
        reads.append(low)
    together = planes == 2 and result == low
    if config.single_port:
        written = {result} if planes < 2 else {result, low}
        need = len(set(reads)) and 1 + (len(reads) > len(set(reads)))
        need = need + 1 + together + bool(written & operands) if planes else 1
        if fields["skip"]:
            need = skip_window(config)
        return Window(need, planes - 1 if planes < 2 else int(together))
    need, phase = 1, 0
    for index, region in enumerate(reads):
        if index and region == reads[0]:
            phase = 1
        need = max(need, phase + 1 + (region in operands))
    if together:
        need = max(need, 2)
    if fields["skip"]:
        need = skip_window(config)
    return Window(need, planes - 1 if planes < 2 else int(together))


def _gaps_after_rows(
    config: Config,
    *,
    run: int,
    taps: int,
    by_channel: bool,
    bias: int,
    serial: bool,
    groups: int,
    tiles: int,
    padded: bool,
) -> int:
    """How often, in a transposed product, finished rows are followed by an advance without one.

    The rows of a column tile come tap by tap: J rows, then what is missing to a multiple of R; by
    channel, one row at the end of a tap, so that only the bias row of the next tile can follow it.
    Nothing follows the last of all. Where all rows count, only what comes between column tiles
    does: rows of the next one, or the chore before them, if that tile has a single group and
    nothing else to wait for.
    """
    if run % config.rows and not by_channel:
        return taps * tiles - 1
    within = (taps - 1) * tiles if by_channel else 0
    direct = groups == 1 and not serial and not padded and (bias or not by_channel)
    return within + (0 if direct else tiles - 1)


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
    mode = BMode(fields["b"])
    serial = _region(registers, "A_BASE") == _region(registers, "B_BASE")
    serial = serial and mode not in (BMode.IDENTITY, BMode.GATE)
    # By channel a column tile is as wide as a word of either side, and a tap is one such word.
    pixels, run = registers["N_P"], registers["N_J"]
    if mode.by_channel:
        run = cols = min(rows, cols)
    taps = registers["N_TY"] * registers["N_TX"]
    blocks = taps * _ceil(run, rows)
    tiles = _ceil(registers["N_C"], cols)
    bias = fields["bias"]
    momentum = fields["out"] == Out.MOMENTUM
    drain = 4 + shape.late
    if fields["transposed"]:
        groups = _ceil(pixels, rows)
        tile = blocks * rows + bias + (rows if serial else 0)
        # With a bias, the row of ones comes before the gap, and its chore waits for the writes.
        padded = tile < HAZARD and not bias
        tile = max(tile, HAZARD)
        steps = tiles * groups * tile + rows
        finished = taps * tiles * (1 if mode.by_channel else run)
        busy = tiles * groups * (taps * run + bias)
        chore = chore_cycles("momentum bias" if momentum else "update bias", config)
        stalls = tiles * bias * (chore - 1)
        valid = (run - 1) % rows + 1
        first = steps - (rows - valid) + 1 + fetch_stages(config) + latency
        if momentum:
            length = chore_cycles("momentum row", config)
            stalls += finished * (length - 1)
            end = first + stalls + 2
        else:
            stalls += finished * (shape.cycles - 1)
            if config.drains:
                stalls += drain * _gaps_after_rows(
                    config,
                    run=run,
                    taps=taps,
                    by_channel=mode.by_channel,
                    bias=bias,
                    serial=serial,
                    groups=groups,
                    tiles=tiles,
                    padded=padded,
                )
            end = first + stalls + 5 + shape.late
        # Steps may be left when the last row arrives, and wait until it has been written.
        if config.drains and not momentum and rows - valid >= latency + 3:
            stalls += drain
        end = max(end, steps + 1 + fetch_stages(config) + stalls)
    else:
        load = cols if mode == BMode.COLUMNS else rows
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
        stalls += tiles * bias * chore_cycles("load bias", config)
        if config.drains:
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
        end = steps + fetch_stages(config) + latency + 6 + stalls + shape.late
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


_CONTROL_CYCLES = {"ENDLOOP": ENDLOOP_CYCLES, "STEP": COUNT_STEP_CYCLES}
"""Of the instructions that take more than one."""


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
        case name:
            return _CONTROL_CYCLES.get(name, 1), 0


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
            cycles, busy = instruction_cycles(config, decoded, registers)
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
    "ENDLOOP": f"{ENDLOOP_CYCLES}",
    "WAIT": "1, one more to fetch after the resume, and what the host takes (counted apart)",
    "STEP": f"{COUNT_STEP_CYCLES}",
    "LOSS": f"{1 + PREPARE_CYCLES + POST_CYCLES - 1} plus `gradiron.cycles.loss_cycles(N_X, N_C, "
    "grad, predict)`: about 22 per element with two quotient bits per cycle, 30 with one",
    "MM": "the advances of the streamed side, plus (e - 1) per finished row for a window of e "
    "cycles, plus the chores (bias of a column tile), plus about 30; exactly "
    "`gradiron.cycles.product_cycles`",
}
"""What the manual says of time, by instruction."""
