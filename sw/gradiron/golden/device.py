"""The golden model behind the `Device` interface."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from gradiron.arch import isa
from gradiron.arch.config import Config
from gradiron.arch.isa import MachineState, Space, split_address
from gradiron.device import Device, little_words, words_of
from gradiron.errors import DeviceError
from gradiron.golden.machine import CycleModel, Machine

STATUS = isa.CSR_BY_NAME["STATUS"].number


class GoldenDevice(Device):
    """A machine in numpy: the reference for every other kind.

    Parameters
    ----------
    config : Config
    record : bool
        Whether to record `retirements`. Without a cycle model their cycles are 0.
    fast : bool
        False keeps to the general forms of everything; the results are the same.
    cycle_model : CycleModel or None
        Where the counters of cycles come from.

    Members
    -------
    machine : Machine
        The state itself.
    """

    kind: ClassVar[str] = "golden"

    def __init__(
        self,
        config: Config,
        *,
        record: bool = False,
        fast: bool = True,
        cycle_model: CycleModel | None = None,
    ) -> None:
        self.machine = Machine(config, fast=fast, cycle_model=cycle_model)
        super().__init__(config, record=record)
        self.machine.retirements = self.retirements

    def _read(self, space: Space, address: int, count: int) -> bytes:
        machine = self.machine
        match space:
            case Space.MEMORY:
                region, offset = split_address(address)
                return machine.memory[region][offset : offset + count].tobytes()
            case Space.PROGRAM:
                return machine.program[address : address + count].astype("<u4").tobytes()
            case Space.EXPONENTS:
                numbers = range(address, address + count)
                return little_words(machine.read_exponent_word(n) for n in numbers)
            case Space.CSR:
                numbers = range(address, address + count)
                if STATUS in numbers and machine.state == MachineState.RUNNING:
                    machine.execute()
                return little_words(machine.read_csr(n) for n in numbers)

    def _write(self, space: Space, address: int, data: bytes) -> None:
        machine = self.machine
        match space:
            case Space.MEMORY:
                region, offset = split_address(address)
                machine.memory[region][offset : offset + len(data)] = np.frombuffer(data, np.int8)
            case Space.PROGRAM:
                machine.write_program(address, np.frombuffer(data, "<u4").astype(np.uint32))
            case Space.EXPONENTS:
                for number, word in enumerate(words_of(data), address):
                    machine.write_exponent_word(number, word)
            case Space.CSR:
                for number, word in enumerate(words_of(data), address):
                    machine.write_csr(number, word)

    def _wait(self, timeout: float | None) -> None:
        if not self.machine.run(timeout):
            raise DeviceError(
                f"the golden model is still running after {timeout} s, at program counter "
                f"{self.machine.pc}; wait longer, or reset it"
            )

    def close(self) -> None:
        """Nothing to release: the state stays readable."""
