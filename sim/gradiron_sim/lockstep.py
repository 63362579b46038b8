"""Two devices side by side, and the first place where they differ.

`Lockstep` lets both pause after every instruction and compares all architectural state;
`run_checked` lets both run to the end first. A difference is a `MismatchError` that names the
instruction, the tensor and the element, with both values.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

import numpy as np

from gradiron.arch import isa
from gradiron.arch.config import TENSORS, Config
from gradiron.arch.isa import MachineState, Space, make_address, split_address
from gradiron.assembler import disassemble
from gradiron.device import CONTROL_RESUME, Device, Status, unpack_status, words_of
from gradiron.errors import DeviceError, MachineError, MismatchError

_CSRS = ("STATUS", "ENTRY", "SEED", "STEP", "RATE", "LOSS")
_STOPPED = (MachineState.HALTED, MachineState.IDLE, MachineState.ERROR, MachineState.WAITING)


class Symbol(Protocol):
    """A tensor in data memory. A `shape`, where there is one, makes element numbers readable; an
    `exponent` is its entry of the exponent table."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def address(self) -> int:
        """Address of its first byte."""
        ...

    @property
    def bytes(self) -> int:
        """How many bytes it has."""
        ...


Symbols = Iterable[Symbol] | Mapping[str, Symbol]


@runtime_checkable
class _Peekable(Protocol):
    def peek(self, space: Space, address: int, count: int) -> bytes: ...


def _peek(device: Device, space: Space, address: int, count: int) -> bytes:
    """Read for comparison: not the host traffic of a program, and so not counted as such."""
    if isinstance(device, _Peekable):
        return device.peek(space, address, count)
    return cast(bytes, operator.methodcaller("_read", space, address, count)(device))


def _csr(device: Device, name: str) -> int:
    return int.from_bytes(_peek(device, Space.CSR, isa.CSR_BY_NAME[name].number, 1), "little")


def _listed(symbols: Symbols) -> list[Symbol]:
    if isinstance(symbols, Mapping):
        named = cast(Mapping[str, Symbol], symbols)
        return list(named.values())
    return list(symbols)


def _signed(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _memory_difference(
    reference: bytes, subject: bytes, region: int, symbols: Sequence[Symbol]
) -> tuple[str, str, str] | None:
    """Where two copies of a region differ first, in words, and both values there."""
    if reference == subject:
        return None
    differ = np.flatnonzero(np.frombuffer(reference, np.uint8) != np.frombuffer(subject, np.uint8))
    offset = int(differ[0])
    more = f" ({len(differ)} bytes differ in this region)"
    inside: list[Symbol] = []
    for symbol in symbols:
        owner, start = split_address(symbol.address)
        if owner == region and start <= offset < start + symbol.bytes:
            inside.append(symbol)
    if not inside:
        values = str(_signed(reference[offset : offset + 1])), str(_signed(subject[offset:][:1]))
        return f"the byte at {region}:{offset:#x}, in no tensor{more}", *values
    # Tensors whose lifetimes do not meet share bytes: the smallest tells most, all are named.
    inside.sort(key=lambda symbol: symbol.bytes)
    symbol = inside[0]
    start = split_address(symbol.address)[1]
    shape = tuple(int(n) for n in cast(Sequence[int], getattr(symbol, "shape", ())))
    count = math.prod(shape)
    # Little-endian elements of 1, 2 or 4 bytes; anything else is shown byte by byte.
    known = bool(shape) and count > 0 and symbol.bytes in (count, 2 * count, 4 * count)
    size = symbol.bytes // count if known else 1
    element = (offset - start) // size
    index = tuple(int(i) for i in np.unravel_index(element, shape)) if known else (element,)
    begin = start + element * size
    values = _signed(reference[begin : begin + size]), _signed(subject[begin : begin + size])
    others = [f"{other.name!r}" for other in inside[1:]]
    shared = f" (bytes shared with {', '.join(others)})" if others else ""
    shown = index if len(index) > 1 else element
    where = f"tensor {symbol.name!r}{shared}, element {shown} at {region}:{begin:#x}{more}"
    return where, str(values[0]), str(values[1])


def _entry_difference(
    reference: Sequence[int], subject: Sequence[int], symbols: Sequence[Symbol]
) -> tuple[str, str, str] | None:
    for number, (left, right) in enumerate(zip(reference, subject, strict=True)):
        if left == right:
            continue
        tensor = number % TENSORS
        owners = [f"{s.name!r}" for s in symbols if getattr(s, "exponent", -1) == tensor]
        of = f"tensor {tensor}" + (f" ({', '.join(owners)})" if owners else "")
        if number >= TENSORS:
            return f"the saturation count of {of}", str(left), str(right)
        names = ("exponent", "tracker", "low")
        entries = [
            ", ".join(f"{n} {v}" for n, v in zip(names, isa.unpack_exponent(word), strict=True))
            for word in (left, right)
        ]
        return f"the exponent entry of {of}", entries[0], entries[1]
    return None


def difference(
    reference: Device,
    subject: Device,
    symbols: Symbols = (),
    *,
    counters: Sequence[str] = (),
) -> tuple[str, str, str] | None:
    """The first difference in the state of two devices that have stopped.

    Parameters
    ----------
    reference, subject : Device
    symbols : tensors, or tensors by name
    counters : names of CSRs that count
        Compared too; none by default, as not every kind counts cycles.

    Returns
    -------
    None, or (what differs, the reference's value, the subject's value).
    """
    tensors = _listed(symbols)
    for name in (*_CSRS, *counters):
        left, right = _csr(reference, name), _csr(subject, name)
        if left == right:
            continue
        if name != "STATUS":
            return f"the CSR {name}", str(left), str(right)
        a, b = unpack_status(left), unpack_status(right)
        return "the status", _shown(a), _shown(b)
    if unpack_status(_csr(reference, "STATUS")).state == MachineState.ERROR:
        # What the instruction that failed has done to its results is not defined.
        return None
    entries = [
        words_of(_peek(device, Space.EXPONENTS, 0, 2 * TENSORS)) for device in (reference, subject)
    ]
    found = _entry_difference(entries[0], entries[1], tensors)
    if found is not None:
        return found
    for region, size in enumerate(reference.config.regions):
        base = make_address(region, 0)
        copies = [_peek(device, Space.MEMORY, base, size) for device in (reference, subject)]
        found = _memory_difference(copies[0], copies[1], region, tensors)
        if found is not None:
            return found
    return None


def _shown(status: Status) -> str:
    cause = f" ({status.cause.name})" if status.state == MachineState.ERROR else ""
    return f"{status.state.name}{cause} at program counter {status.pc}"


def _mismatch(
    reference: Device, subject: Device, where: str, found: tuple[str, str, str]
) -> MismatchError:
    what, left, right = found
    names = reference.kind, subject.kind
    if names[0] == names[1]:
        names = f"{names[0]} (reference)", f"{names[1]} (subject)"
    return MismatchError(f"{where}: {what} differs: {names[0]} has {left}, {names[1]} has {right}")


def _check_same(reference: Device, subject: Device) -> None:
    if reference.config.to_dict() != subject.config.to_dict():
        raise DeviceError(
            "two devices can only be compared with one configuration; the reference has "
            f"{reference.config.to_dict()}, the subject {subject.config.to_dict()}"
        )


def _settled(device: Device, timeout: float | None) -> Status:
    """Wait; a machine that stops in its error state is something to compare, not to raise."""
    try:
        return device.wait(timeout)
    except MachineError:
        return device.status()


def _instruction(device: Device, pc: int) -> str:
    """An instruction as text."""
    config: Config = device.config
    if pc >= config.program_words:
        return "past the end"
    word = words_of(_peek(device, Space.PROGRAM, pc, 1))
    return " ".join(disassemble(word, config).split("\n")[0].split())


def run_checked(
    reference: Device,
    subject: Device,
    entry: int = 0,
    symbols: Symbols = (),
    *,
    counters: Sequence[str] = (),
    timeout: float | None = None,
) -> Status:
    """Run a program on two devices to its end, a WAIT or an error, and compare them there.

    Returns
    -------
    Status
        Of both.

    Raises
    ------
    MismatchError
        Where they differ.
    """
    _check_same(reference, subject)
    for device in (reference, subject):
        device.start(entry)
    status = _settled(reference, timeout)
    _settled(subject, timeout)
    found = difference(reference, subject, symbols, counters=counters)
    if found is not None:
        where = f"after the program at {entry} ({_shown(status)})"
        raise _mismatch(reference, subject, where, found)
    return status


class Lockstep:
    """Two devices that go from instruction to instruction together.

    Both must hold the same program and data when it begins; whether they do is the first thing that
    is compared.

    Parameters
    ----------
    reference, subject : Device
        Of one configuration.
    symbols : tensors, or tensors by name
        To name what differs: objects with `name`, `address`, `bytes`, and perhaps `shape` and
        `exponent`.
    watch : int
        Compare after every so many instructions, and at every stop; 1 compares after each.
    counters : names of CSRs that count
        Compared too.
    timeout : float, optional
        Seconds that one instruction may take.

    Members
    -------
    instructions : int
        Instructions carried out.
    comparisons : int
        How often all state was compared.
    """

    def __init__(
        self,
        reference: Device,
        subject: Device,
        symbols: Symbols = (),
        *,
        watch: int = 1,
        counters: Sequence[str] = (),
        timeout: float | None = None,
    ) -> None:
        if watch < 1:
            raise DeviceError(f"watch is {watch}; it must be at least 1")
        _check_same(reference, subject)
        self.reference, self.subject = reference, subject
        self.symbols = _listed(symbols)
        self.watch, self.counters, self.timeout = watch, tuple(counters), timeout
        self.instructions = 0
        self.comparisons = 0

    def compare(self, where: str) -> None:
        """Compare now.

        Raises
        ------
        MismatchError
            Beginning with `where`.
        """
        self.comparisons += 1
        found = difference(self.reference, self.subject, self.symbols, counters=self.counters)
        if found is not None:
            raise _mismatch(self.reference, self.subject, where, found)

    def run(self, entry: int = 0, *, limit: int | None = None) -> Status:
        """Run a program from `entry` to its end, a WAIT, an error, or for `limit` instructions.

        Returns
        -------
        Status
            Of both.

        Raises
        ------
        MismatchError
            At the first difference.
        """
        words = [
            _peek(d, Space.PROGRAM, 0, d.config.program_words)
            for d in (self.reference, self.subject)
        ]
        differ = [pc for pc, (a, b) in enumerate(zip(*map(words_of, words), strict=True)) if a != b]
        if differ:
            raise MismatchError(
                f"the program memories differ at {len(differ)} words, first at program counter "
                f"{differ[0]}; write the same program to both devices"
            )
        self.compare("before the program")
        return self._go(entry, limit, fresh=True)

    def resume(self, *, limit: int | None = None) -> Status:
        """Go on after a WAIT, or after the limit of an earlier call; otherwise as `run`."""
        return self._go(self.reference.status().pc, limit, fresh=False)

    def _go(self, pc: int, limit: int | None, *, fresh: bool) -> Status:
        devices = (self.reference, self.subject)
        for device in devices:
            device.write_csr("MODE", 1)
        try:
            for device in devices:
                if fresh:
                    device.start(pc)
                else:
                    device.write_csr("CONTROL", CONTROL_RESUME)
            done = 0
            while True:
                statuses = [_settled(device, self.timeout) for device in devices]
                self.instructions += 1
                done += 1
                status = statuses[0]
                at_end = status.state in _STOPPED or (limit is not None and done >= limit)
                if statuses[0] != statuses[1] or at_end or done % self.watch == 0:
                    self.compare(self._where(pc))
                if at_end:
                    return status
                pc = status.pc
                for device in devices:
                    device.write_csr("CONTROL", CONTROL_RESUME)
        finally:
            for device in devices:
                device.write_csr("MODE", 0)

    def _where(self, pc: int) -> str:
        text = _instruction(self.reference, pc)
        within = f", or one of the {self.watch - 1} before it" if self.watch > 1 else ""
        return f"after instruction {self.instructions} at program counter {pc} ({text}){within}"
