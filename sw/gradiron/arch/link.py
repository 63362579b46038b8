"""The link between host and device, described once: frames, checksum, commands, answers.

Both ends, the page `docs/link.md` and the constants for C derive from this module. The link runs
over any stream of bytes in both directions, and needs neither a clock nor time-outs in the device:

* A frame stands between two bytes `FLAG`; within it `FLAG` and `ESCAPE` are replaced by `ESCAPE`
  and the byte with `ESCAPE_BIT` changed. Whatever came before, a `FLAG` begins afresh.
* A frame ends with a CRC-32. The device drops whatever is not a whole, right frame, without a
  word; nothing takes effect before the checksum has been compared.
* The host asks and the device answers, one request at a time, each of at most `PAGE` units: neither
  end ever has to hold more than that.
* Requests are numbered. A write whose number has the same lowest bit as the request before is a
  repetition: it is answered as the first time, and not done again. A read is done again.

Ref: RFC 1662 (HDLC-like framing; the octet-stuffed transparency and the 32-bit FCS are those).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from gradiron.arch.isa import WORD_BYTES, Space
from gradiron.errors import LinkError

LINK_VERSION = 1
FLAG, ESCAPE, ESCAPE_BIT = 0x7E, 0x7D, 0x20
CRC_POLYNOMIAL = 0xEDB88320
"""Reflected; the register starts with ones, the checksum is its complement, lowest byte first."""
CRC_BYTES = 4
PAGE = 256
"""Units of a request at most; a request stays within so many, counted from a multiple of them."""
VERSION_SHIFT = 4
"""Bits 7:4 of a command and of a status are the version of the link."""
COMMAND_WRITE, COMMAND_SPACE_SHIFT, COMMAND_RESERVED = 1, 1, 8


@dataclass(frozen=True)
class Part:
    """A part of a frame, in the order of transmission; numbers are little-endian.

    Parameters
    ----------
    name : str
    bytes : str
        How many.
    doc : str
    """

    name: str
    bytes: str
    doc: str


REQUEST: tuple[Part, ...] = (
    Part(
        "count",
        "1",
        "of a read: units to read; of a write: bytes of data that follow, in whole units. 0 is 256",
    ),
    Part("number", "1", "of the request: that of the one before plus 1, the same when repeated"),
    Part(
        "command",
        "1",
        "bit 0: 1 write, 0 read; bits 2:1: address space; bit 3: 0; bits 7:4: version of the link",
    ),
    Part(
        "address", "3", "of the first unit: in MEMORY region << 22 | offset, else a number of words"
    ),
    Part("data", "1 to 256", "of a write; a read has none"),
    Part("checksum", "4", "CRC-32 of all before"),
)
ANSWER: tuple[Part, ...] = (
    Part("number", "1", "of the request"),
    Part("data", "0 to 1024", "of a read: the units up to the first that was refused"),
    Part("status", "1", "bits 3:0: code; bits 7:4: version of the link in the device"),
    Part("checksum", "4", "CRC-32 of all before"),
)
HEADER_BYTES = 6
"""Of a request, before its data."""


class Code(IntEnum):
    """What an answer says of its request."""

    DONE = 0
    REFUSED = 1
    MALFORMED = 2


CODE_DOC: dict[Code, str] = {
    Code.DONE: "done",
    Code.REFUSED: "a unit was refused, because its address does not exist or the machine is "
    "running; those before it were transferred, none after it",
    Code.MALFORMED: "not done: the version is another, the reserved bit is set, or the data are "
    "not whole units",
}

MAX_REQUEST = 2 * (HEADER_BYTES + PAGE + CRC_BYTES) + 2
MAX_ANSWER = 2 * (2 + WORD_BYTES * PAGE + CRC_BYTES) + 2
"""Bytes on the line at most, with every byte replaced by two."""


@dataclass(frozen=True)
class Request:
    """A read of `count` units, or a write of `data`.

    Raises
    ------
    LinkError
        For a request that the link cannot carry.
    """

    space: Space
    address: int
    count: int
    data: bytes | None = None

    def __post_init__(self) -> None:
        unit = unit_bytes(self.space)
        within = self.address % PAGE + self.count <= PAGE
        if not (0 <= self.address < 1 << 24 and self.count >= 1 and within):
            raise LinkError(
                f"{self.count} units at {self.address:#x} are not one request of the link; it has "
                f"1 to {PAGE} units within {PAGE} from a multiple of {PAGE}"
            )
        if self.data is not None and not (len(self.data) == self.count * unit <= PAGE):
            raise LinkError(
                f"{len(self.data)} bytes of data for {self.count} units of {unit} bytes; a write "
                f"has at most {PAGE} bytes"
            )

    @property
    def answer_bytes(self) -> int:
        """Bytes of data in its answer."""
        return 0 if self.data is not None else self.count * unit_bytes(self.space)

    def frame(self, number: int) -> bytes:
        """The request as it goes over the line."""
        write = self.data is not None
        command = LINK_VERSION << VERSION_SHIFT | self.space << COMMAND_SPACE_SHIFT | write
        count = self.count if self.data is None else len(self.data)
        head = bytes((count & 0xFF, number & 0xFF, command))
        return encode(head + self.address.to_bytes(3, "little") + (self.data or b""))


@dataclass(frozen=True)
class Answer:
    """What the device answers."""

    number: int
    data: bytes
    code: int
    version: int

    @classmethod
    def parse(cls, body: bytes) -> Answer | None:
        """An answer from a frame's body; None for what is too short to be one."""
        if len(body) < 2:
            return None
        status = body[-1]
        return cls(body[0], body[1:-1], status & 0xF, status >> VERSION_SHIFT)

    def frame(self) -> bytes:
        """The answer as it goes over the line."""
        status = self.version << VERSION_SHIFT | self.code
        return encode(bytes((self.number,)) + self.data + bytes((status,)))


def unit_bytes(space: Space) -> int:
    """Bytes of a unit."""
    return 1 if space == Space.MEMORY else WORD_BYTES


def split(space: Space, address: int, count: int, *, write: bool) -> Iterator[tuple[int, int]]:
    """A transfer as requests: (address, units) of each, in order."""
    most = PAGE // unit_bytes(space) if write else PAGE
    while count:
        units = min(count, PAGE - address % PAGE, most)
        yield address, units
        address, count = address + units, count - units


# --- frames --------------------------------------------------------------------------------------


def checksum(body: bytes) -> bytes:
    """The bytes that end a frame."""
    return zlib.crc32(body).to_bytes(CRC_BYTES, "little")


def encode(body: bytes) -> bytes:
    """A body as a frame: flags, escapes, checksum."""
    text = (body + checksum(body)).replace(bytes((ESCAPE,)), bytes((ESCAPE, ESCAPE ^ ESCAPE_BIT)))
    text = text.replace(bytes((FLAG,)), bytes((ESCAPE, FLAG ^ ESCAPE_BIT)))
    return bytes((FLAG,)) + text + bytes((FLAG,))


class Deframer:
    """Bodies of the right frames in a stream of bytes; all else is dropped.

    Parameters
    ----------
    most : int
        Bytes of a frame at most, with its checksum; a longer one is dropped.

    Members
    -------
    dropped : int
        Frames that were not right, so far.
    """

    def __init__(self, most: int = MAX_ANSWER) -> None:
        self._most = most
        self._text = bytearray()
        self._escaped = False
        self._inside = False
        self.dropped = 0

    def reset(self) -> None:
        """Forget what came, up to the next flag."""
        self._text.clear()
        self._escaped = self._inside = False

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that these bytes complete."""
        bodies: list[bytes] = []
        for byte in data:
            if byte == FLAG:
                body, sum_ = bytes(self._text[:-CRC_BYTES]), bytes(self._text[-CRC_BYTES:])
                if self._inside and body and not self._escaped and sum_ == checksum(body):
                    bodies.append(body)
                elif self._text:
                    self.dropped += 1
                self.reset()
                self._inside = True
            elif byte == ESCAPE:
                self._escaped = True
            elif self._inside:
                self._text.append(byte ^ (ESCAPE_BIT if self._escaped else 0))
                self._escaped = False
                if len(self._text) > self._most:
                    self.reset()
                    self.dropped += 1
        return bodies
