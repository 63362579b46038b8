"""The architecture as numpy: all state of a machine, and the execution of programs.

Written from docs/products.md and `gradiron.arch.isa`, never from RTL. What those leave to the
control unit is decided here:

* The program counter is that of the next instruction in IDLE, WAITING and PAUSED, and that of the
  HALT or the failing instruction in HALTED and ERROR.
* HALT, WAIT and every other instruction that does not fail count as completed.
* Where the instruction in the last program word would go on to the next one, it completes, and the
  machine stops with PROGRAM_END at that word, before any pause or wait.
* CONTROL.start works in IDLE and HALTED, CONTROL.resume in WAITING and PAUSED, and both are ignored
  elsewhere. Of several CONTROL bits, reset comes first, then clear, start, resume.
* A start clears the loop stack and m; descriptor registers, STEP, SEED, RATE, LOSS, exponents,
  memories and counters stay. A reset leaves everything but state and cause.
* Single-step mode pauses after every instruction that leaves the machine RUNNING.
* A read of a CSR number that does not exist gives 0, a write to it is ignored.

The model has no clock. `run` executes until the machine stops; a machine that was started, and
whose STATUS is read, executes one instruction per read, so that polling makes progress.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from gradiron.arch import isa
from gradiron.arch.config import TENSORS, Config
from gradiron.arch.isa import Decoded, ErrorCause, MachineState
from gradiron.arch.numerics import Tracker
from gradiron.device import (
    CONTROL_CLEAR,
    CONTROL_RESET,
    CONTROL_RESUME,
    CONTROL_START,
    WORD_MASK,
    Device,
    Retirement,
    Status,
    pack_status,
)
from gradiron.golden.addressing import Fault
from gradiron.golden.data import Data
from gradiron.golden.loss import Loss
from gradiron.golden.product import Product

CycleModel = Callable[[Config, Decoded, Mapping[str, int]], Mapping[str, int]]
"""(config, instruction, descriptor registers) to what the instruction adds to each counter, by CSR
name; CYCLES has the time of the instruction."""

MAX_PLANS = 4096
"""Products and losses that are kept; beyond it all are dropped."""


class Machine(Data):
    """All architectural state, and what changes it.

    Parameters
    ----------
    config : Config
    fast : bool
        False keeps to the general forms of everything; the results are the same.
    cycle_model : CycleModel or None
        Where the counters of cycles come from; they stay 0 without it.

    Members
    -------
    program : (program_words,) uint32
        To be written with `write_program`.
    state, cause, pc
        As in the STATUS register.
    loops : list of [int, int]
        Open loops: address of the body, and how often it is still to be executed.
    entry, mode : int
        As the CSRs, all 32 bits of them.
    counters : dict of str to int
    retirements : list of Retirement or None
        Where a list is assigned, completed instructions are appended.
    """

    def __init__(
        self, config: Config, *, fast: bool = True, cycle_model: CycleModel | None = None
    ) -> None:
        super().__init__(config, fast=fast)
        self.program: npt.NDArray[np.uint32] = np.zeros(config.program_words, np.uint32)
        self.state = MachineState.IDLE
        self.cause = ErrorCause.NONE
        self.pc = 0
        self.loops: list[list[int]] = []
        self.entry = 0
        self.mode = 0
        self.counters: dict[str, int] = dict.fromkeys(Device.counter_names, 0)
        self.retirements: list[Retirement] | None = None
        self._cycle_model = cycle_model
        self._decoded: list[Decoded | ErrorCause | None] = [None] * config.program_words
        self._plans: dict[tuple[int, ...], Product | Loss] = {}

    # --- control -------------------------------------------------------------------------------

    def start(self) -> None:
        """CONTROL.start: begin at ENTRY."""
        if self.state not in (MachineState.IDLE, MachineState.HALTED):
            return
        self.loops.clear()
        self.largest = 0
        self.pc = self.entry & (self.config.program_words - 1)
        self.state = MachineState.RUNNING

    def resume(self) -> None:
        """CONTROL.resume: go on after a WAIT or a pause."""
        if self.state in (MachineState.WAITING, MachineState.PAUSED):
            self.state = MachineState.RUNNING

    def reset(self) -> None:
        """CONTROL.reset: leave the error state or stop the program."""
        self.state = MachineState.IDLE
        self.cause = ErrorCause.NONE

    def clear_counters(self) -> None:
        """CONTROL.clear."""
        self.counters = dict.fromkeys(self.counters, 0)

    def run(self, timeout: float | None = None) -> bool:
        """Execute until the machine stops; False if it still runs after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.state == MachineState.RUNNING:
            self.execute()
            if deadline is not None and time.monotonic() > deadline:
                return self.state != MachineState.RUNNING
        return True

    # --- instructions --------------------------------------------------------------------------

    def execute(self) -> None:
        """Execute the instruction at the program counter of a machine that is RUNNING."""
        pc = self.pc
        decoded = self._decoded[pc]
        if decoded is None:
            decoded = isa.decode(int(self.program[pc]), self.config)
            self._decoded[pc] = decoded
        if isinstance(decoded, ErrorCause):
            self._fail(decoded)
            return
        try:
            target = self._perform(decoded)
        except Fault as fault:
            self._fail(fault.cause)
            return
        self._retire(pc, decoded)
        if self.state == MachineState.HALTED:
            return
        if target >= self.config.program_words:
            self._fail(ErrorCause.PROGRAM_END)
            return
        self.pc = target
        if self.mode & 1 and self.state == MachineState.RUNNING:
            self.state = MachineState.PAUSED

    def _perform(self, decoded: Decoded) -> int:
        """The effect of an instruction; returns the address of the one that follows."""
        following = self.pc + 1
        match decoded.name:
            case "SET":
                assert decoded.register is not None
                self.registers[decoded.register.name] = decoded.value
            case "MM" | "LOSS":
                self._plan(decoded).execute()
            case "LOOP":
                if len(self.loops) == isa.LOOP_DEPTH:
                    raise Fault(ErrorCause.LOOP_STACK)
                self.loops.append([following, decoded.fields["count"]])
            case "ENDLOOP":
                if not self.loops:
                    raise Fault(ErrorCause.LOOP_STACK)
                loop = self.loops[-1]
                loop[1] -= 1
                if loop[1]:
                    return loop[0]
                self.loops.pop()
            case "WAIT":
                self.state = MachineState.WAITING
            case "STEP":
                self.step = (self.step + 1) & WORD_MASK
            case "HALT":
                self.state = MachineState.HALTED
            case name:
                raise AssertionError(f"instruction {name} is not modelled")
        return following

    def _plan(self, decoded: Decoded) -> Product | Loss:
        key = (int(self.program[self.pc]), *self.registers.values())
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            plan = (Product if decoded.name == "MM" else Loss)(self, decoded.fields)
            self._plans[key] = plan
        return plan

    def _fail(self, cause: ErrorCause) -> None:
        self.state = MachineState.ERROR
        self.cause = cause

    def _retire(self, pc: int, decoded: Decoded) -> None:
        counters = self.counters
        first = counters["CYCLES"]
        counters["INSTRUCTIONS"] = (counters["INSTRUCTIONS"] + 1) & WORD_MASK
        if self._cycle_model is not None:
            for name, cycles in self._cycle_model(self.config, decoded, self.registers).items():
                counters[name] = (counters[name] + cycles) & WORD_MASK
        if self.retirements is not None:
            last = max(first, counters["CYCLES"] - 1)
            self.retirements.append(Retirement(pc, first, last, decoded.name))

    # --- what the host reads and writes --------------------------------------------------------

    def write_program(self, origin: int, words: npt.NDArray[np.uint32]) -> None:
        """Replace words of the program memory."""
        end = origin + len(words)
        self.program[origin:end] = words
        self._decoded[origin:end] = [None] * len(words)

    def read_csr(self, number: int) -> int:
        """The 32-bit word of a CSR, without side effects."""
        csr = next((c for c in isa.CSRS if c.number == number), None)
        if csr is None:
            return 0
        match csr.name:
            case "ID":
                return isa.DEVICE_ID
            case "VERSION":
                return isa.ISA_VERSION
            case "CONFIG":
                return self.config.digest()
            case "STATUS":
                return pack_status(Status(self.state, self.cause, self.pc))
            case "CONTROL":
                return 0
            case "ENTRY":
                return self.entry
            case "MODE":
                return self.mode
            case "SEED":
                return self.seed
            case "STEP":
                return self.step
            case "RATE":
                return self.rate
            case "LOSS":
                return self.loss & WORD_MASK
            case name:
                return self.counters[name]

    def write_csr(self, number: int, word: int) -> None:
        """Write a CSR; what does not exist or is read-only ignores it."""
        csr = next((c for c in isa.CSRS if c.number == number and c.writable), None)
        match csr.name if csr else "":
            case "CONTROL":
                for bit, action in (
                    (CONTROL_RESET, self.reset),
                    (CONTROL_CLEAR, self.clear_counters),
                    (CONTROL_START, self.start),
                    (CONTROL_RESUME, self.resume),
                ):
                    if word & bit:
                        action()
            case "ENTRY":
                self.entry = word
            case "MODE":
                self.mode = word
            case "SEED":
                self.seed = word
            case "STEP":
                self.step = word
            case "RATE":
                self.rate = word
            case _:
                pass

    def read_exponent_word(self, number: int) -> int:
        """A word of the exponent space."""
        if number >= TENSORS:
            return self.saturations[number - TENSORS]
        tracker = self.tracker[number]
        return isa.pack_exponent(self.exponent[number], tracker.exponent, tracker.low)

    def write_exponent_word(self, number: int, word: int) -> None:
        """Write a word of the exponent space."""
        if number >= TENSORS:
            self.saturations[number - TENSORS] = word
            return
        self.exponent[number], tracker, low = isa.unpack_exponent(word)
        self.tracker[number] = Tracker(tracker, low)
