"""Differences are found at the instruction that makes them; with devices made of dicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from gradiron.arch import isa
from gradiron.arch.config import REGION_SHIFT, Config
from gradiron.arch.isa import CSR_BY_NAME, ErrorCause, MachineState, Space, make_address
from gradiron.device import Device, Status, little_words, pack_status, words_of
from gradiron.errors import DeviceError, MismatchError
from gradiron_sim.lockstep import Lockstep, difference, run_checked

HALT, STEP, WAIT = (isa.encode(name) for name in ("HALT", "STEP", "WAIT"))


@dataclass
class Tensor:
    name: str
    address: int
    bytes: int
    shape: tuple[int, ...] = ()
    exponent: int = -1


@dataclass
class Fault:
    """After so many instructions, something is wrong."""

    after: int
    space: Space
    address: int
    value: int


@dataclass
class State:
    memory: dict[int, int] = field(default_factory=dict[int, int])
    words: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])


class FakeDevice(Device):
    """Knows HALT, STEP and WAIT; everything else does nothing; an undefined opcode is an error."""

    kind: ClassVar[str] = "fake"

    def __init__(self, config: Config, kind: str, *faults: Fault) -> None:
        self.faults = faults
        self.spaces: dict[Space, dict[int, int]] = {space: {} for space in Space}
        self.state, self.cause, self.pc, self.done = MachineState.IDLE, ErrorCause.NONE, 0, 0
        csr = self.spaces[Space.CSR]
        csr[CSR_BY_NAME["ID"].number] = isa.DEVICE_ID
        csr[CSR_BY_NAME["VERSION"].number] = isa.ISA_VERSION
        csr[CSR_BY_NAME["CONFIG"].number] = config.digest()
        self.kind = kind  # pyright: ignore
        super().__init__(config)

    def _read(self, space: Space, address: int, count: int) -> bytes:
        if space == Space.CSR and address == CSR_BY_NAME["STATUS"].number:
            return little_words([pack_status(Status(self.state, self.cause, self.pc))])
        values = [self.spaces[space].get(address + i, 0) for i in range(count)]
        return bytes(values) if space == Space.MEMORY else little_words(values)

    def _write(self, space: Space, address: int, data: bytes) -> None:
        if space == Space.CSR and address == CSR_BY_NAME["CONTROL"].number:
            if data[0] & 1:
                self.pc = self.spaces[Space.CSR].get(CSR_BY_NAME["ENTRY"].number, 0)
            if data[0] & 3:
                self.state = MachineState.RUNNING
            return
        values = data if space == Space.MEMORY else words_of(data)
        self.spaces[space].update(enumerate(values, address))

    def _wait(self, timeout: float | None) -> None:
        csr = self.spaces[Space.CSR]
        while self.state == MachineState.RUNNING:
            word = self.spaces[Space.PROGRAM].get(self.pc, 0)
            if word >> 24 == 0xEE:
                self.state, self.cause = MachineState.ERROR, ErrorCause.ILLEGAL_OPCODE
                return
            self.done += 1
            for fault in self.faults:
                if fault.after == self.done:
                    self.spaces[fault.space][fault.address] = fault.value
            if word == HALT:
                self.state = MachineState.HALTED
                return
            self.pc += 1
            if word == STEP:
                number = CSR_BY_NAME["STEP"].number
                csr[number] = csr.get(number, 0) + 1
            if word == WAIT:
                self.state = MachineState.WAITING
            elif csr.get(CSR_BY_NAME["MODE"].number, 0):
                self.state = MachineState.PAUSED

    def close(self) -> None:
        pass


@pytest.fixture
def config() -> Config:
    return Config(rows=4, cols=4, regions=(256, 512), acc_depth=16, program_words=64)


SET = isa.encode_set("N_J", 7, Config())
PROGRAM = [SET, STEP, SET, STEP, HALT]
SYMBOLS = [
    Tensor("fc1.w", make_address(0, 0), 64, (8, 8), 3),
    Tensor("fc1.b", make_address(1, 16), 16, (4,), 4),
    Tensor("scratch", make_address(0, 0), 128),
]


def pair(config: Config, *faults: Fault, program: list[int] = PROGRAM) -> list[FakeDevice]:
    devices = [FakeDevice(config, "golden"), FakeDevice(config, "cxxrtl", *faults)]
    for device in devices:
        device.write_program(program)
    return devices


def test_no_difference(config: Config) -> None:
    devices = pair(config)
    lockstep = Lockstep(*devices, SYMBOLS)
    assert lockstep.run() == (MachineState.HALTED, ErrorCause.NONE, 4)
    assert lockstep.instructions == 5
    assert lockstep.comparisons == 6
    assert [device.read_csr("MODE") for device in devices] == [0, 0]
    # What is only compared is no traffic: the program was written, and CSRs were accessed.
    for device in devices:
        assert device.traffic.read[Space.MEMORY] == 0
        assert device.traffic.read[Space.PROGRAM] == 0
    assert difference(*devices) is None
    assert run_checked(*devices, 0).state == MachineState.HALTED


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            Fault(3, Space.MEMORY, make_address(0, 21), 200),
            "after instruction 3 at program counter 2 (SET N_J, 7): tensor 'fc1.w' (bytes shared "
            "with 'scratch'), element (2, 5) at 0:0x15 (1 bytes differ in this region) differs: "
            "golden has 0, cxxrtl has -56",
        ),
        (
            Fault(2, Space.MEMORY, make_address(1, 25), 1),
            "after instruction 2 at program counter 1 (STEP): tensor 'fc1.b', element 2 at 1:0x18 "
            "(1 bytes differ in this region) differs: golden has 0, cxxrtl has 256",
        ),
        (
            Fault(1, Space.MEMORY, make_address(0, 100), 1),
            "after instruction 1 at program counter 0 (SET N_J, 7): tensor 'scratch', element 100 "
            "at 0:0x64 (1 bytes differ in this region) differs: golden has 0, cxxrtl has 1",
        ),
        (
            Fault(5, Space.MEMORY, make_address(1, 511), 1),
            "after instruction 5 at program counter 4 (HALT): the byte at 1:0x1ff, in no tensor "
            "(1 bytes differ in this region) differs: golden has 0, cxxrtl has 1",
        ),
        (
            Fault(4, Space.EXPONENTS, 3, isa.pack_exponent(-2, 5, 1)),
            "after instruction 4 at program counter 3 (STEP): the exponent entry of tensor 3 "
            "('fc1.w') differs: golden has exponent 0, tracker 0, low 0, cxxrtl has exponent -2, "
            "tracker 5, low 1",
        ),
        (
            Fault(4, Space.EXPONENTS, 64 + 9, 2),
            "after instruction 4 at program counter 3 (STEP): the saturation count of tensor 9 "
            "differs: golden has 0, cxxrtl has 2",
        ),
        (
            Fault(1, Space.CSR, CSR_BY_NAME["STEP"].number, 7),
            "after instruction 1 at program counter 0 (SET N_J, 7): the CSR STEP differs: "
            "golden has 0, cxxrtl has 7",
        ),
        (
            Fault(2, Space.PROGRAM, 2, 0xEE000000),
            "after instruction 3 at program counter 2 (SET N_J, 7): the status differs: golden has "
            "PAUSED at program counter 3, cxxrtl has ERROR (ILLEGAL_OPCODE) at program counter 2",
        ),
    ],
)
def test_a_difference_is_named(config: Config, fault: Fault, message: str) -> None:
    devices = pair(config, fault)
    with pytest.raises(MismatchError) as caught:
        Lockstep(*devices, {symbol.name: symbol for symbol in SYMBOLS}).run()
    assert str(caught.value) == message
    assert [device.read_csr("MODE") for device in devices] == [0, 0]


def test_comparing_now_and_then(config: Config) -> None:
    fault = Fault(2, Space.MEMORY, 5, 1)
    with pytest.raises(MismatchError, match=r"after instruction 3 .*, or one of the 2 before it: "):
        Lockstep(*pair(config, fault), watch=3).run()
    clean = Lockstep(*pair(config), watch=3)
    clean.run()
    assert (clean.instructions, clean.comparisons) == (5, 3)


def test_a_difference_at_the_end(config: Config) -> None:
    fault = Fault(2, Space.MEMORY, 5, 1)
    with pytest.raises(MismatchError, match=r"after the program at 0 \(HALTED at .*'fc1.w'"):
        run_checked(*pair(config, fault), 0, SYMBOLS)


def test_a_difference_before_the_start(config: Config) -> None:
    devices = pair(config)
    devices[1].write_memory(7, b"x")
    with pytest.raises(MismatchError, match=r"before the program: the byte at 0:0x7, in no tensor"):
        Lockstep(*devices).run()
    devices[1].write_program([HALT], 3)
    with pytest.raises(MismatchError, match="differ at 1 words, first at program counter 3"):
        Lockstep(*devices).run()


def test_waiting_and_limits(config: Config) -> None:
    lockstep = Lockstep(*pair(config, program=[STEP, WAIT, STEP, STEP, HALT]))
    assert lockstep.run().state == MachineState.WAITING
    assert lockstep.resume(limit=1) == (MachineState.PAUSED, ErrorCause.NONE, 3)
    assert lockstep.resume().state == MachineState.HALTED
    assert lockstep.instructions == 5


def test_both_in_error_is_no_difference(config: Config) -> None:
    # What a failing instruction leaves in memory is not defined.
    program = [STEP, 0xEE000000]
    devices = pair(config, program=program)
    status = Lockstep(*devices).run()
    assert status == (MachineState.ERROR, ErrorCause.ILLEGAL_OPCODE, 1)
    devices[1].spaces[Space.MEMORY][5] = 9
    assert difference(*devices) is None


def test_counters_are_compared_on_demand(config: Config) -> None:
    fault = Fault(3, Space.CSR, CSR_BY_NAME["CYCLES"].number, 17)
    assert Lockstep(*pair(config, fault)).run().state == MachineState.HALTED
    with pytest.raises(MismatchError, match=r"instruction 3 .* the CSR CYCLES differs"):
        Lockstep(*pair(config, fault), counters=["CYCLES"]).run()


def test_wrong_use(config: Config) -> None:
    devices: list[Any] = pair(config)
    with pytest.raises(DeviceError, match="watch is 0; it must be at least 1"):
        Lockstep(*devices, watch=0)
    other = FakeDevice(config.replace(regions=(512,)), "other")
    with pytest.raises(DeviceError, match="compared with one configuration"):
        Lockstep(devices[0], other)
    with pytest.raises(DeviceError, match="compared with one configuration"):
        run_checked(devices[0], other)


def test_regions_are_told_apart() -> None:
    assert make_address(1, 0) == 1 << REGION_SHIFT
