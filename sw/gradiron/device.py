"""One interface to every machine: the golden model, simulated RTL, a board on a serial line.

`Device` is what programs are written against. A kind implements four methods (`_read`, `_write`,
`_wait`, `close`); everything else, with all its checks, is here, so that a program that runs on one
kind runs on the others unchanged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from gradiron.arch import isa
from gradiron.arch.config import REGION_SHIFT, TENSORS, Config
from gradiron.arch.isa import (
    STATUS_CAUSE_SHIFT,
    STATUS_PC_SHIFT,
    WORD_BYTES,
    Control,
    ErrorCause,
    MachineState,
    Space,
)
from gradiron.arch.numerics import EXPONENT_MAX, EXPONENT_MIN, HYSTERESIS
from gradiron.errors import DataError, DeviceError, MachineError

WORD_MASK = 0xFFFFFFFF
SIGNED_CSRS = frozenset({"RATE", "LOSS"})
"""CSRs whose 32 bits are read as a two's complement number."""
CONTROL_START, CONTROL_RESUME, CONTROL_RESET, CONTROL_CLEAR = (1 << bit for bit in Control)
FIRST_COUNTER = isa.CSR_BY_NAME["CYCLES"].number

Data = bytes | bytearray | memoryview | npt.NDArray[np.int8] | npt.NDArray[np.uint8]


class Status(NamedTuple):
    """The STATUS register, taken apart."""

    state: MachineState
    cause: ErrorCause
    pc: int


class Entry(NamedTuple):
    """An entry of the exponent table: exponent of the stored data, tracker exponent and count."""

    exponent: int
    tracker: int
    low: int


class Retirement(NamedTuple):
    """An instruction that completed: cycles count from the last CONTROL.clear, both inclusive."""

    pc: int
    first_cycle: int
    last_cycle: int
    name: str


def _per_space() -> dict[Space, int]:
    return dict.fromkeys(Space, 0)


@dataclass
class Traffic:
    """Payload bytes that the host moved, per address space."""

    read: dict[Space, int] = field(default_factory=_per_space)
    written: dict[Space, int] = field(default_factory=_per_space)

    @property
    def total(self) -> int:
        """All bytes, in both directions."""
        return sum(self.read.values()) + sum(self.written.values())

    def reset(self) -> None:
        """Start counting at zero."""
        self.read = _per_space()
        self.written = _per_space()


def pack_status(status: Status) -> int:
    """A status to the word of the STATUS register."""
    cause, pc = status.cause << STATUS_CAUSE_SHIFT, (status.pc & 0xFFFF) << STATUS_PC_SHIFT
    return status.state | cause | pc


def unpack_status(word: int) -> Status:
    """The inverse of `pack_status`.

    Raises
    ------
    DeviceError
        For a state or an error cause that this driver does not know.
    """
    try:
        state = MachineState(word & (1 << STATUS_CAUSE_SHIFT) - 1)
        cause = ErrorCause(word >> STATUS_CAUSE_SHIFT & 0xFF)
        return Status(state, cause, word >> STATUS_PC_SHIFT & 0xFFFF)
    except ValueError as error:
        raise DeviceError(
            f"the status word {word:#010x} has a state or an error cause unknown to this driver "
            f"({error}); the device speaks another version, or the link is disturbed"
        ) from None


def csr_range(csr: isa.Csr, config: Config) -> tuple[int, int]:
    """Smallest and largest value that may be written to a writable CSR."""
    match csr.name:
        case "CONTROL":
            return 0, CONTROL_START | CONTROL_RESUME | CONTROL_RESET | CONTROL_CLEAR
        case "ENTRY":
            return 0, config.program_words - 1
        case "MODE":
            return 0, 1
        case "RATE":
            return isa.RATE_MIN, isa.RATE_MAX
        case _:
            return 0, WORD_MASK


def _counter_names() -> tuple[str, ...]:
    return tuple(csr.name for csr in isa.CSRS if csr.number >= FIRST_COUNTER)


class Device(ABC):
    """A machine that the host can drive.

    A kind's constructor makes its transport ready and then calls this one, which compares both
    ends (`handshake`).

    Parameters
    ----------
    config : Config
        What the driver expects the machine to be.
    record : bool
        Whether to record `retirements`, where the kind can.

    Members
    -------
    config : Config
    traffic : Traffic
        Payload bytes moved since the device was opened or `traffic.reset()`.
    retirements : list of Retirement or None
        Completed instructions in order, if asked for and if the kind can record them.

    Raises
    ------
    DeviceError
        Where the device is not what the driver expects.
    """

    kind: ClassVar[str] = "abstract"
    """Name of the kind, for messages."""
    counter_names: ClassVar[tuple[str, ...]] = _counter_names()
    """Names of the counters among the CSRs."""

    def __init__(self, config: Config, *, record: bool = False) -> None:
        self._config = config
        self.traffic = Traffic()
        self.retirements: list[Retirement] | None = [] if record else None
        self._running = False
        self.handshake()

    # --- what a kind implements ----------------------------------------------------------------

    @abstractmethod
    def _read(self, space: Space, address: int, count: int) -> bytes:
        """Read `count` units from `address` on.

        MEMORY: units are bytes, the address is region << 22 | offset, and the range never crosses
        a region. CSR, PROGRAM, EXPONENTS: units are words, the address is a word number, and each
        word gives four bytes, little-endian. The arguments are checked already.
        """

    @abstractmethod
    def _write(self, space: Space, address: int, data: bytes) -> None:
        """Write `data` from `address` on; units, addresses and byte order as in `_read`."""

    @abstractmethod
    def _wait(self, timeout: float | None) -> None:
        """Return when the state is not RUNNING.

        Parameters
        ----------
        timeout : float or None
            Seconds; None waits without limit.

        Raises
        ------
        DeviceError
            When the machine is still running after `timeout`.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the device; closing twice is harmless."""

    # --- opening and closing -------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The machine's configuration."""
        return self._config

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def handshake(self) -> None:
        """Compare identity, instruction set version and configuration of device and driver.

        Raises
        ------
        DeviceError
            Naming both sides, where they differ.
        """
        found = self.read_csr("ID")
        if found != isa.DEVICE_ID:
            raise DeviceError(
                f"the {self.kind} device identifies itself as {found:#010x}, this driver expects "
                f"{isa.DEVICE_ID:#010x}: it is not Gradiron, or the link is disturbed"
            )
        found = self.read_csr("VERSION")
        if found != isa.ISA_VERSION:
            raise DeviceError(
                f"the {self.kind} device has instruction set version {found}, this driver has "
                f"version {isa.ISA_VERSION}; build the device from the version of this driver"
            )
        found, expected = self.read_csr("CONFIG"), self._config.digest()
        if found != expected:
            raise DeviceError(
                f"the {self.kind} device was built with the configuration {found:#010x}, this "
                f"driver expects {expected:#010x} ({self._config.name or self._config.array}: "
                f"{self._config.to_dict()}); open the device with the configuration it was built "
                "with"
            )

    # --- control and status registers ----------------------------------------------------------

    def read_csr(self, name: str) -> int:
        """A control or status register; RATE and LOSS are signed."""
        word = int.from_bytes(self._get(Space.CSR, self._csr(name).number, 1), "little")
        return word - (1 << 32) if name in SIGNED_CSRS and word >> 31 else word

    def write_csr(self, name: str, value: int) -> None:
        """Write a control register.

        Raises
        ------
        DeviceError
            For an unknown or read-only register, or a value out of its range.
        """
        csr = self._csr(name)
        if not csr.writable:
            writable = ", ".join(c.name for c in isa.CSRS if c.writable)
            raise DeviceError(f"CSR {name} is read-only; writable are: {writable}")
        low, high = csr_range(csr, self._config)
        if not low <= value <= high:
            raise DeviceError(f"CSR {name}: {value} is out of range; it must be {low} to {high}")
        self._put(Space.CSR, csr.number, (value & WORD_MASK).to_bytes(WORD_BYTES, "little"))
        if name == "CONTROL" and value & (CONTROL_START | CONTROL_RESUME | CONTROL_RESET):
            self._running = True

    def status(self) -> Status:
        """State, error cause and program counter."""
        status = unpack_status(self.read_csr("STATUS"))
        self._running = status.state == MachineState.RUNNING
        return status

    def counters(self) -> dict[str, int]:
        """All counters by name, in one read."""
        numbers = [isa.CSR_BY_NAME[name].number for name in self.counter_names]
        first = min(numbers)
        data = self._get(Space.CSR, first, max(numbers) - first + 1)
        words = np.frombuffer(data, "<u4")
        return {
            name: int(words[number - first])
            for name, number in zip(self.counter_names, numbers, strict=True)
        }

    def clear_counters(self) -> None:
        """Set all counters to zero."""
        self.write_csr("CONTROL", CONTROL_CLEAR)

    # --- memories ------------------------------------------------------------------------------

    def write_memory(self, address: int, data: Data) -> None:
        """Write bytes to data memory.

        Parameters
        ----------
        address : int
            region << 22 | offset (`isa.make_address`).
        data : bytes or array of int8 or uint8
            Arrays are written in C order.

        Raises
        ------
        DataError
            For an array of another type.
        DeviceError
            For a range outside one region, or while the machine is running.
        """
        if isinstance(data, np.ndarray):
            if data.dtype not in (np.dtype(np.int8), np.dtype(np.uint8)):
                raise DataError(
                    f"memory takes arrays of int8 or uint8, not {data.dtype}; convert it first, "
                    "for example with ndarray.astype or ndarray.view"
                )
            data = data.tobytes()
        self._check_memory(address, len(data))
        self._check_stopped("data memory")
        if data:
            self._put(Space.MEMORY, address, bytes(data))

    def read_memory(self, address: int, count: int) -> bytes:
        """Read `count` bytes of data memory.

        Raises
        ------
        DeviceError
            For a range outside one region, or while the machine is running.
        """
        self._check_memory(address, count)
        self._check_stopped("data memory")
        return self._get(Space.MEMORY, address, count) if count else b""

    def write_program(self, words: Sequence[int] | npt.NDArray[np.uint32], origin: int = 0) -> None:
        """Write instruction words to program memory from word `origin` on.

        Raises
        ------
        DeviceError
            Where the words do not fit, are not 32-bit words, or while the machine is running.
        """
        room = self._config.program_words
        if origin < 0 or origin + len(words) > room:
            raise DeviceError(
                f"{len(words)} words at {origin} do not fit the program memory of {room} words"
            )
        for pc, word in enumerate(words, origin):
            if not 0 <= int(word) <= WORD_MASK:
                raise DeviceError(f"the word {word} at {pc} does not have 32 unsigned bits")
        self._check_stopped("program memory")
        if len(words):
            self._put(Space.PROGRAM, origin, np.asarray(words, "<u4").tobytes())

    def read_program(self, origin: int, count: int) -> list[int]:
        """Read `count` instruction words from word `origin` on."""
        room = self._config.program_words
        if origin < 0 or count < 0 or origin + count > room:
            raise DeviceError(
                f"{count} words at {origin} are not within the program memory of {room} words"
            )
        self._check_stopped("program memory")
        data = self._get(Space.PROGRAM, origin, count) if count else b""
        return [int(word) for word in np.frombuffer(data, "<u4")]

    def read_exponent(self, tensor: int) -> Entry:
        """The entry of a tensor: (exponent, tracker exponent, tracker count)."""
        return Entry(*isa.unpack_exponent(self._exponent_word(self._tensor(tensor))))

    def write_exponent(
        self, tensor: int, exponent: int, tracker: int | None = None, low: int = 0
    ) -> None:
        """Set the entry of a tensor; the tracker starts at the exponent unless it is given.

        Raises
        ------
        DeviceError
            For a value out of range, or while the machine is running.
        """
        tracker = exponent if tracker is None else tracker
        for what, value, least, most in (
            ("exponent", exponent, EXPONENT_MIN, EXPONENT_MAX),
            ("tracker", tracker, EXPONENT_MIN, EXPONENT_MAX),
            ("low", low, 0, HYSTERESIS - 1),
        ):
            if not least <= value <= most:
                raise DeviceError(
                    f"tensor {tensor}: {what} is {value}; it must be {least} to {most}"
                )
        word = isa.pack_exponent(exponent, tracker, low)
        self._write_exponent_word(self._tensor(tensor), word)

    def saturations(self, tensor: int) -> int:
        """Elements of a tensor that saturated since the count was last written."""
        return self._exponent_word(TENSORS + self._tensor(tensor))

    def write_saturations(self, tensor: int, count: int = 0) -> None:
        """Set the saturation count of a tensor."""
        if not 0 <= count <= WORD_MASK:
            raise DeviceError(f"a saturation count of {count}; it must be 0 to {WORD_MASK}")
        self._write_exponent_word(TENSORS + self._tensor(tensor), count)

    # --- running -------------------------------------------------------------------------------

    def start(self, entry: int = 0) -> None:
        """Start a program, and do not wait for it.

        Raises
        ------
        DeviceError
            Where the machine cannot start (it is running, waiting, paused or in error).
        """
        state = self.status().state
        if state not in (MachineState.IDLE, MachineState.HALTED):
            raise DeviceError(
                f"the machine is {state.name} and cannot start a program; "
                "reset the device first (Device.reset)"
            )
        self.write_csr("ENTRY", entry)
        self.write_csr("CONTROL", CONTROL_START)

    def wait(self, timeout: float | None = None) -> Status:
        """Wait until the machine is not running.

        Returns
        -------
        Status
            HALTED, WAITING, PAUSED or IDLE.

        Raises
        ------
        MachineError
            When it stopped in its error state.
        DeviceError
            When it still runs after `timeout` seconds.
        """
        if self._running:
            self._wait(timeout)
        status = self.status()
        if status.state == MachineState.ERROR:
            reason = isa.ERROR_DOC[status.cause].rstrip(".")
            raise MachineError(status.cause.name, status.pc, reason)
        return status

    def run(self, entry: int = 0, timeout: float | None = None) -> Status:
        """Start a program and wait for it; returns and raises as `start` and `wait`."""
        self.start(entry)
        return self.wait(timeout)

    def resume(self, timeout: float | None = None) -> Status:
        """Go on after a WAIT or a pause, and wait again; returns and raises as `wait`."""
        state = self.status().state
        if state not in (MachineState.WAITING, MachineState.PAUSED):
            raise DeviceError(
                f"the machine is {state.name}; only a WAITING or PAUSED machine can resume, "
                "start a program with Device.run"
            )
        self.write_csr("CONTROL", CONTROL_RESUME)
        return self.wait(timeout)

    def reset(self, timeout: float | None = None) -> None:
        """Stop a program at its next instruction, or leave the error state; IDLE afterwards.

        Memories, exponents, counters and the other control registers stay as they are.
        """
        self.write_csr("CONTROL", CONTROL_RESET)
        self._wait(timeout)
        self.status()

    # --- internals -----------------------------------------------------------------------------

    def _get(self, space: Space, address: int, count: int) -> bytes:
        data = self._read(space, address, count)
        self.traffic.read[space] += len(data)
        return data

    def _put(self, space: Space, address: int, data: bytes) -> None:
        self._write(space, address, data)
        self.traffic.written[space] += len(data)

    @staticmethod
    def _csr(name: str) -> isa.Csr:
        if name not in isa.CSR_BY_NAME:
            known = ", ".join(isa.CSR_BY_NAME)
            raise DeviceError(f"no CSR is called {name!r}; known are: {known}")
        return isa.CSR_BY_NAME[name]

    @staticmethod
    def _tensor(tensor: int) -> int:
        if not 0 <= tensor < TENSORS:
            raise DeviceError(f"tensor {tensor}; it must be 0 to {TENSORS - 1}")
        return tensor

    def _check_memory(self, address: int, count: int) -> None:
        regions = self._config.regions
        region, offset = address >> REGION_SHIFT, address & ((1 << REGION_SHIFT) - 1)
        if not 0 <= region < len(regions):
            raise DeviceError(
                f"the address {address:#x} lies in region {region}; "
                f"this machine has {len(regions)} regions"
            )
        if count < 0 or offset + count > regions[region]:
            raise DeviceError(
                f"{count} bytes at offset {offset} are not within region {region}, "
                f"which has {regions[region]} bytes"
            )

    def _check_stopped(self, what: str) -> None:
        if self._running and self.status().state == MachineState.RUNNING:
            raise DeviceError(
                f"the machine is running; {what} can be accessed once it has stopped or waits "
                "(Device.wait, or Device.reset to stop it)"
            )

    def _exponent_word(self, number: int) -> int:
        self._check_stopped("the exponent table")
        return int.from_bytes(self._get(Space.EXPONENTS, number, 1), "little")

    def _write_exponent_word(self, number: int, word: int) -> None:
        self._check_stopped("the exponent table")
        self._put(Space.EXPONENTS, number, word.to_bytes(WORD_BYTES, "little"))


def little_words(values: Iterable[int]) -> bytes:
    """Words to their bytes, for kinds of devices."""
    return np.array([value & WORD_MASK for value in values], "<u4").tobytes()


def words_of(data: bytes) -> list[int]:
    """The inverse of `little_words`."""
    words: npt.NDArray[Any] = np.frombuffer(data, "<u4")
    return [int(word) for word in words]
