"""A board behind a serial port, or behind anything else that carries bytes both ways.

`Transport` is all that the link needs of a carrier; `SerialPort` is the usual one. `HostLink` asks
and asks again until an answer is right, or says clearly why it gives up. `SerialDevice` is the
`Device` over it. `Recorder` and `Replay` keep the traffic in a file, and play the device from it.

Ref: `gradiron.arch.link`, which describes the frames.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

from gradiron.arch import isa
from gradiron.arch.boards import BOARDS
from gradiron.arch.config import ARRAY_SIZES, Config, simulation_config, up5k_config
from gradiron.arch.isa import MachineState, Space
from gradiron.arch.link import (
    LINK_VERSION,
    PAGE,
    Answer,
    Code,
    Deframer,
    Request,
    split,
    unit_bytes,
)
from gradiron.device import Device, unpack_status
from gradiron.errors import DataError, DeviceError, LinkError, MissingExtraError

BAUD = 1_000_000
"""Bits a second of the boards' own builds."""
TIMEOUT = 0.5
"""Seconds without a byte after which a request is sent again."""
ATTEMPTS = 10
FRAME_BYTES, LEAST_FRAME_BYTES = 256, 32
"""Bytes of data in a frame: at most, and on a line that disturbs most of the longer ones."""
_FEW_ATTEMPTS = 3
"""With a frame that could be shorter."""
_CALM = 16
"""Requests without a repetition after which frames become longer again."""
_GARBAGE = 1 << 16
"""Bytes without an answer after which a request is sent again."""
_LONGEST_PAUSE = 0.02


# --- carriers ------------------------------------------------------------------------------------


class Transport(Protocol):
    """What carries bytes to a device and back, in order; some may be lost or changed.

    Members
    -------
    name : str
        For messages.
    """

    name: str

    def write(self, data: bytes) -> None:
        """Send all of it.

        Raises
        ------
        LinkError
            Where the carrier is gone.
        """
        ...

    def read(self, timeout: float) -> bytes:
        """What has arrived: at least a byte, or nothing after so many seconds without one.

        Raises
        ------
        LinkError
            Where the carrier is gone.
        """
        ...

    def close(self) -> None:
        """Give the carrier back; closing twice is harmless."""
        ...


class SerialPort:
    """A serial port, through pyserial.

    Parameters
    ----------
    port : str
        A device file or the name of a port ("/dev/ttyUSB0", "COM3"), or a URL that pyserial knows
        ("socket://host:port").
    baud : int

    Raises
    ------
    MissingExtraError
        Without pyserial.
    LinkError
        Where the port is missing, in use or not allowed: with the ports that there are.
    """

    def __init__(self, port: str, baud: int = BAUD) -> None:
        try:
            serial: Any = import_module("serial")
        except ModuleNotFoundError:
            raise MissingExtraError("pyserial", "serial", "a board at a serial port") from None
        self.name = f"{port} at {baud} baud"
        self._error: Any = (serial.SerialException, OSError, ValueError)
        # Another program at the same port would take bytes away; not everything can be locked.
        options = {} if "://" in port or os.name == "nt" else {"exclusive": True}
        try:
            self._port: Any = serial.serial_for_url(port, baudrate=baud, write_timeout=5, **options)
        except self._error as error:
            raise LinkError(_why_not(port, error)) from None
        try:
            # USB adapters collect bytes for 16 ms unless told otherwise.
            self._port.set_low_latency_mode(True)
        except (AttributeError, NotImplementedError, *self._error):
            pass
        self._port.reset_input_buffer()

    def write(self, data: bytes) -> None:
        """Send all of it."""
        try:
            self._port.write(data)
        except self._error as error:
            raise self._gone(error) from None

    def read(self, timeout: float) -> bytes:
        """What has arrived."""
        try:
            self._port.timeout = timeout
            first: bytes = self._port.read(1)
            if not first:
                return b""
            rest: bytes = self._port.read(self._port.in_waiting)
            return first + rest
        except self._error as error:
            raise self._gone(error) from None

    def close(self) -> None:
        """Give the port back."""
        self._port.close()

    def _gone(self, error: Exception) -> LinkError:
        return LinkError(
            f"the serial port {self.name} failed: {error}; was the board unplugged? Connect it and "
            "open the device again"
        )


def _why_not(port: str, error: Exception) -> str:
    number = getattr(error, "errno", None)
    text = f"the serial port {port} cannot be opened: {error}"
    if number == 13 or "ermission" in str(error):
        return f"{text}; the user needs the right to it (on Linux mostly: the group dialout)"
    if number == 11 or "lock" in str(error):
        return f"{text}; another program has it open"
    tools: Any = import_module("serial.tools.list_ports")
    found = [str(info.device) for info in tools.comports()]
    there = f"there are: {', '.join(found)}" if found else "this computer has none at present"
    return f"{text}; is the board connected? Of serial ports {there}"


class Recorder:
    """A carrier that writes all that passes into a file, one event a line.

    Parameters
    ----------
    inner : Transport
    path : path
        Is replaced.

    Raises
    ------
    DataError
        Where the file cannot be written.
    """

    def __init__(self, inner: Transport, path: str | os.PathLike[str]) -> None:
        self.name = inner.name
        self._inner = inner
        try:
            self._file = open(path, "w", encoding="utf-8")
        except OSError as error:
            raise DataError(f"{os.fspath(path)} cannot be written: {error.strerror}") from None
        self._note({"gradiron": "traffic", "link": LINK_VERSION, "carrier": inner.name})

    def _note(self, event: dict[str, object]) -> None:
        self._file.write(json.dumps(event) + "\n")

    def write(self, data: bytes) -> None:
        """Send all of it."""
        self._note({"to": data.hex()})
        self._inner.write(data)

    def read(self, timeout: float) -> bytes:
        """What has arrived."""
        data = self._inner.read(timeout)
        self._note({"from": data.hex()})
        return data

    def close(self) -> None:
        """Finish the file and give the carrier back."""
        self._file.close()
        self._inner.close()


class Replay:
    """A carrier that plays the device from a file: what is sent must be what was sent then.

    Parameters
    ----------
    path : path
        As `Recorder` wrote it.

    Raises
    ------
    DataError
        Where the file cannot be read or is something else.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        try:
            lines = Path(path).read_text("utf-8").splitlines()
            events = [dict[str, Any](json.loads(line)) for line in lines]
            if not events or events[0].get("gradiron") != "traffic":
                raise ValueError("the first line is not that of recorded traffic")
            self._events = [
                (kind, bytes.fromhex(text)) for event in events[1:] for kind, text in event.items()
            ]
        except OSError as error:
            raise DataError(f"{self.name} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{self.name} is no recorded traffic: {error}") from None
        self._at = 0

    def write(self, data: bytes) -> None:
        """Compare with what was sent.

        Raises
        ------
        LinkError
            Where that was something else.
        """
        # What had come by then and was not looked at.
        while self._at < len(self._events) and self._events[self._at][0] == "from":
            self._at += 1
        if self._at == len(self._events):
            raise LinkError(
                f"the recorded traffic {self.name} ends here; more is asked for than was recorded"
            )
        expected = self._events[self._at][1]
        if data != expected:
            raise LinkError(
                f"the recorded traffic {self.name} goes on otherwise in line {self._at + 2}: sent "
                f"then was {expected.hex()}, now {data.hex()}"
            )
        self._at += 1

    def read(self, timeout: float) -> bytes:
        """What arrived then."""
        if self._at < len(self._events) and self._events[self._at][0] == "from":
            self._at += 1
            return self._events[self._at - 1][1]
        return b""

    def close(self) -> None:
        """Nothing to do."""


# --- the host's end of the link ------------------------------------------------------------------


class NoAnswerError(LinkError):
    """A request was sent as often as allowed, and no right answer came."""


class HostLink:
    """Requests and answers over a carrier that may lose, change, repeat and insert bytes.

    Parameters
    ----------
    transport : Transport
    timeout : float
        Seconds without a byte after which a request is sent again.
    attempts : int
        How often a request is sent at most.

    Members
    -------
    transport : Transport
    requests, retries : int
        Requests done, and frames that were sent again, so far.
    frame_bytes : int
        Bytes of data in a frame at present: fewer on a line that disturbs long ones.
    """

    def __init__(
        self, transport: Transport, *, timeout: float = TIMEOUT, attempts: int = ATTEMPTS
    ) -> None:
        if timeout <= 0 or attempts < 1:
            raise LinkError(
                f"a time-out of {timeout} s and {attempts} attempts; the time-out must be "
                "positive, and there must be an attempt"
            )
        self.transport = transport
        self.requests = self.retries = 0
        self.frame_bytes = FRAME_BYTES
        self._calm = 0
        self._timeout, self._attempts = timeout, attempts
        self._deframer = Deframer()
        self._number = 0
        # The device takes a write for a repetition by the number of the request before.
        self._in_step = False

    def ask(self, request: Request, attempts: int | None = None) -> Answer:
        """Do a request, exactly once.

        Parameters
        ----------
        request : Request
        attempts : int, optional
            Those of the link if not given.

        Raises
        ------
        LinkError
            Where no right answer comes, or the device speaks another version of the link. Whether
            the request was done is then not known.
        """
        if request.data is not None and not self._in_step:
            self.ask(Request(Space.CSR, isa.CSR_BY_NAME["ID"].number, 1))
        self._number = (self._number + 1) & 0xFF
        frame = request.frame(self._number)
        self._in_step = False
        received = 0
        attempts = self._attempts if attempts is None else min(attempts, self._attempts)
        for attempt in range(attempts):
            if attempt:
                self.retries += 1
                self._calm = 0
            self.transport.write(frame)
            heard = 0
            while heard < _GARBAGE and (data := self.transport.read(self._timeout)):
                heard += len(data)
                for body in self._deframer.feed(data):
                    answer = Answer.parse(body)
                    if answer is not None and self._fits(request, answer):
                        self._in_step = True
                        self.requests += 1
                        self._calm += 1
                        return answer
            received += heard
        self._calm = 0
        raise NoAnswerError(self._silence(received, attempts))

    def _fits(self, request: Request, answer: Answer) -> bool:
        """Whether it is the answer to this request, and not to one before.

        Raises
        ------
        LinkError
            Where the device speaks another version, or understood the request as malformed.
        """
        if answer.number != self._number:
            return False
        if answer.version != LINK_VERSION:
            if answer.frame() == request.frame(self._number):
                return False  # a line that echoes
            raise LinkError(
                f"the device at {self.transport.name} speaks version {answer.version} of the link, "
                f"this driver version {LINK_VERSION}; build the device from the version of this "
                "driver"
            )
        if answer.code == Code.DONE:
            return len(answer.data) == request.answer_bytes
        if answer.code == Code.REFUSED:
            return len(answer.data) <= request.answer_bytes
        raise LinkError(
            f"the device at {self.transport.name} calls a request malformed (code {answer.code}): "
            f"{request}; this is a fault of the driver or of the device, please report it"
        )

    def _silence(self, received: int, attempts: int) -> str:
        name, times = self.transport.name, f"{attempts} attempts"
        if self.requests:
            return (
                f"the device at {name} stopped answering after {self.requests} requests: {times}, "
                f"{received} bytes received; is it still connected and powered? Open it again to "
                "go on"
            )
        if received:
            return (
                f"what comes from {name} is not the link: {received} bytes in {times}, and no "
                "right frame; does the bit rate agree with that of the board's build, and does "
                "the board have a Gradiron bitstream?"
            )
        return (
            f"no answer from {name} in {times}; is it the right port, has the board a Gradiron "
            "bitstream (gradiron program), and does the bit rate agree with that of its build?"
        )

    def read(self, space: Space, address: int, count: int) -> bytes:
        """Units of a space, in as many requests as are needed.

        Raises
        ------
        LinkError
            As `ask`.
        DeviceError
            Where the device refuses.
        """
        data, unit = bytearray(), unit_bytes(space)
        while len(data) < count * unit:
            done = len(data) // unit
            at, units = self._piece(space, address + done, count - done, write=False)
            answer = self._try(Request(space, at, units))
            if answer is None:
                continue
            data += answer.data
            if answer.code == Code.REFUSED:
                raise self._refused(space, False, address + len(data) // unit)
        return bytes(data)

    def write(self, space: Space, address: int, data: bytes) -> None:
        """Write to a space; otherwise as `read`."""
        done, unit = 0, unit_bytes(space)
        while done < len(data):
            left = (len(data) - done) // unit
            at, units = self._piece(space, address + done // unit, left, write=True)
            answer = self._try(Request(space, at, units, data[done : done + units * unit]))
            if answer is None:
                continue
            done += units * unit
            if answer.code == Code.REFUSED:
                raise self._refused(space, True, at)

    def _piece(self, space: Space, address: int, count: int, *, write: bool) -> tuple[int, int]:
        """The next request of a transfer. Registers are read and written as they were asked for."""
        if self._calm >= _CALM and self.frame_bytes < FRAME_BYTES:
            self.frame_bytes *= 2
            self._calm = 0
        if space != Space.CSR:
            count = min(count, self.frame_bytes // unit_bytes(space))
        return next(split(space, address, count, write=write))

    def _try(self, request: Request) -> Answer | None:
        """Do a part of a transfer; or none of it, or an unknown part, with shorter frames now."""
        shortest = request.space == Space.CSR or self.frame_bytes <= LEAST_FRAME_BYTES
        try:
            return self.ask(request, None if shortest else _FEW_ATTEMPTS)
        except NoAnswerError:
            if shortest:
                raise
            self.frame_bytes //= 2
            return None

    def _refused(self, space: Space, write: bool, address: int) -> DeviceError:
        what = f"write {space.name} within {PAGE} units from" if write else f"read {space.name} at"
        return DeviceError(
            f"the serial device at {self.transport.name} refused to {what} {address:#x}: the "
            "address does not exist, or the machine is running (wait for it, or reset it)"
        )

    def close(self) -> None:
        """Give the carrier back."""
        self.transport.close()


# --- the device ----------------------------------------------------------------------------------


class SerialDevice(Device):
    """A board.

    Parameters
    ----------
    config : Config
    transport : Transport
    timeout, attempts
        As of `HostLink`.
    record : bool
        Must be False: a board does not record retirements.

    Members
    -------
    link : HostLink

    Raises
    ------
    DeviceError
        Where the board is not what the driver expects; LinkError where it does not answer.
    """

    kind: ClassVar[str] = "serial"

    def __init__(
        self,
        config: Config,
        transport: Transport,
        *,
        timeout: float = TIMEOUT,
        attempts: int = ATTEMPTS,
        record: bool = False,
    ) -> None:
        try:
            if record:
                raise DeviceError(
                    "a board does not record which instructions it completes; train on a simulated "
                    "machine to see that (engine cxxrtl)"
                )
            self.link = HostLink(transport, timeout=timeout, attempts=attempts)
            super().__init__(config)
        except BaseException:
            transport.close()
            raise

    def _read(self, space: Space, address: int, count: int) -> bytes:
        return self.link.read(space, address, count)

    def _write(self, space: Space, address: int, data: bytes) -> None:
        self.link.write(space, address, data)

    def _wait(self, timeout: float | None) -> None:
        waited = pause = 0.0
        number = isa.CSR_BY_NAME["STATUS"].number
        while True:
            status = unpack_status(int.from_bytes(self.link.read(Space.CSR, number, 1), "little"))
            if status.state != MachineState.RUNNING:
                return
            if timeout is not None and waited >= timeout:
                raise DeviceError(
                    f"the {self.kind} device is still running after {timeout} s at program "
                    f"counter {status.pc}; wait longer, or reset it (Device.reset)"
                )
            # A device does not speak unasked: this only passes the time.
            pause = min(_LONGEST_PAUSE, pause * 1.5 + 0.0005)
            self.link.transport.read(pause)
            waited += pause

    def close(self) -> None:
        """Give the port back."""
        self.link.close()


def known_configs() -> list[Config]:
    """Configurations that builds of this package have, to be recognised by their digests."""
    arrays = [f"{r}x{c}" for r in ARRAY_SIZES for c in ARRAY_SIZES]
    configs = [
        *(config for board in BOARDS for config in board.machines.values()),
        up5k_config(momentum=True),
        *(simulation_config(array) for array in arrays),
    ]
    # Some boards have equal machines.
    return list(dict.fromkeys(configs))


def recognise(link: HostLink, known: Sequence[Config] | None = None) -> Config:
    """Which of the known configurations a device has.

    Raises
    ------
    DeviceError
        Where it has another one, is not Gradiron, or has another version.
    """
    numbers = [isa.CSR_BY_NAME[name].number for name in ("ID", "VERSION", "CONFIG")]
    found = [int.from_bytes(link.read(Space.CSR, number, 1), "little") for number in numbers]
    name = link.transport.name
    if found[0] != isa.DEVICE_ID:
        raise DeviceError(
            f"the device at {name} identifies itself as {found[0]:#010x}, this driver expects "
            f"{isa.DEVICE_ID:#010x}: it speaks the link, but is not Gradiron"
        )
    if found[1] != isa.ISA_VERSION:
        raise DeviceError(
            f"the device at {name} has instruction set version {found[1]}, this driver has version "
            f"{isa.ISA_VERSION}; build the device from the version of this driver"
        )
    candidates = known_configs() if known is None else known
    for config in candidates:
        if config.digest() == found[2]:
            return config
    names = ", ".join(f"{c.name or c.array} {c.digest():#010x}" for c in candidates)
    raise DeviceError(
        f"the device at {name} was built with the configuration {found[2]:#010x}, which is none "
        f"of those known to this driver ({names}); open it with the configuration it was built "
        "with (open_device(..., config=...))"
    )


def open_transport(
    transport: Transport,
    *,
    config: Config | None = None,
    log: str | os.PathLike[str] | None = None,
    **options: Any,
) -> SerialDevice:
    """A device over a carrier.

    Parameters
    ----------
    transport : Transport
    config : Config or None
        The machine; recognised by its digest if not given.
    log : path, optional
        Record the traffic into this file.
    options
        As of `SerialDevice`.

    Raises
    ------
    DeviceError, LinkError
        As `SerialDevice` and `recognise`.
    """
    carrier = transport
    try:
        if log is not None:
            carrier = Recorder(transport, log)
        if config is None:
            given = {name: options[name] for name in ("timeout", "attempts") if name in options}
            config = recognise(HostLink(carrier, **given))
    except BaseException:
        carrier.close()
        raise
    return SerialDevice(config, carrier, **options)


def open_serial(
    port: str,
    *,
    baud: int | None = None,
    **options: Any,
) -> SerialDevice:
    """A board at a serial port.

    Parameters
    ----------
    port : str
        As of `SerialPort`; with "@" and a number behind it, that is the bit rate.
    baud : int, optional
        1,000,000 unless given.
    options
        As of `open_transport`.

    Raises
    ------
    DeviceError, LinkError, MissingExtraError
        As `SerialPort` and `open_transport`.
    """
    name, mark, rate = port.rpartition("@")
    if mark and rate.isdigit():
        if baud is not None and baud != int(rate):
            raise LinkError(f"{port!r} and baud={baud} name two bit rates; leave one of them out")
        port, baud = name, int(rate)
    if not port:
        raise LinkError("no serial port is named; give for example serial:/dev/ttyUSB0")
    return open_transport(SerialPort(port, BAUD if baud is None else baud), **options)
