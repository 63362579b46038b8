"""The device's end of the link in Python, in front of any `Device`; and carriers that go wrong."""

from __future__ import annotations

from gradiron.arch.isa import Space
from gradiron.arch.link import HEADER_BYTES, LINK_VERSION, Answer, Code, Deframer, unit_bytes
from gradiron.device import Device
from gradiron.errors import GradironError


class DeviceEnd:
    """A `Transport` whose other end does requests on a device."""

    def __init__(self, device: Device, *, version: int = LINK_VERSION) -> None:
        self.name = "the test line"
        self.device, self.version = device, version
        self.closed = False
        self._deframer = Deframer()
        self._ready = bytearray()
        self._last = 0
        self._code = Code.DONE

    def write(self, data: bytes) -> None:
        for body in self._deframer.feed(data):
            self._ready += self.answer(body)

    def answer(self, body: bytes) -> bytes:
        number, command = body[1], body[2]
        write, space = command & 1, Space(command >> 1 & 3)
        address = int.from_bytes(body[3:HEADER_BYTES], "little")
        again = number & 1 == self._last
        self._last = number & 1
        data = b""
        # What the device refuses is checked in front of `_read` and `_write`.
        device = self.device
        if command >> 4 != self.version:
            return Answer(number, b"", Code.MALFORMED, self.version).frame()
        if not (write and again):
            self._code = Code.DONE
            try:
                if space == Space.MEMORY:
                    device._check_memory(address, 1)
                elif space == Space.PROGRAM and address >= device.config.program_words:
                    raise GradironError
                if write:
                    device._write(space, address, body[HEADER_BYTES:])
                else:
                    data = device._read(space, address, body[0] or 256)
            except GradironError:
                self._code = Code.REFUSED
        assert len(data) in (0, (body[0] or 256) * unit_bytes(space))
        return Answer(number, data, self._code, self.version).frame()

    def read(self, timeout: float) -> bytes:
        data = bytes(self._ready)
        self._ready.clear()
        return data

    def close(self) -> None:
        self.closed = True


class Says:
    """A `Transport` that says the same to everything."""

    def __init__(self, *texts: bytes) -> None:
        self.name = "the test line"
        self.sent: list[bytes] = []
        self.closed = False
        self._texts = texts
        self._pending: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.sent.append(data)
        self._pending = list(self._texts)

    def read(self, timeout: float) -> bytes:
        return self._pending.pop(0) if self._pending else b""

    def close(self) -> None:
        self.closed = True
