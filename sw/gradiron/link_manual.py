"""The page about the link, its constants for C, and the driver in C, from `gradiron.arch.link`.

`python -m gradiron.link_manual [FOLDER]` writes `link.md` and `gradiron_link.h` into the folder,
`docs` unless another is named. Both are kept in the repository; a test fails while they are not
current.
"""

from __future__ import annotations

import importlib.resources
import sys
import textwrap
from collections.abc import Iterable, Sequence

from gradiron import manual
from gradiron.arch import isa, link
from gradiron.arch.isa import Space
from gradiron.arch.link import Answer, Code, Request

PAGE, HEADER = "link.md", "gradiron_link.h"
DRIVER = ("gradiron.h", "gradiron.c", "example.c")
"""Files of the driver in C, in the folder `c` of this package."""

_INTRODUCTION = f"""\
# The link

<!-- Written by `python -m gradiron.link_manual` from gradiron.arch.link: change that, not this. -->

This is version {link.LINK_VERSION} of the protocol between a host and a device. It carries accesses
to the four address spaces that [the instruction set](isa.md#what-the-host-sees) describes, over any
stream of bytes in both directions, at any rate. [`{HEADER}`]({HEADER}) has its numbers for C; both
ends in Python are made from one module, `gradiron.arch.link`.

The host asks, the device answers. There is one request at a time: the host sends the next one when
it has the answer to the last one, or has given up. So nothing can overrun: the device holds one
request of at most {link.PAGE} bytes of data, the host one answer of at most
{isa.WORD_BYTES * link.PAGE}. Identifying a device is reading the registers `ID`, `VERSION` and
`CONFIG`; the state of a program is the register `STATUS`.

## Frames

A frame is a body and its checksum between two flags.

* A flag is the byte {link.FLAG:#04x}. In body and checksum the bytes {link.FLAG:#04x} and
  {link.ESCAPE:#04x} are sent as {link.ESCAPE:#04x} and the byte with {link.ESCAPE_BIT:#04x}
  exclusive-ored.
* The checksum is the CRC-32 of the body before that replacement: polynomial
  {link.CRC_POLYNOMIAL:#010x} (reflected), the register begins with all ones, the complement is
  sent, lowest byte first. It is the one of zlib, Ethernet and RFC 1662.
* A frame begins with a flag of its own, and ends with one: none is shared with the frame before.

A receiver drops what is not a whole frame with the right checksum, without a word, and begins
afresh at every flag. It needs no time-out for that: whatever was received before, a flag and a
right frame are understood.
"""

_DEVICE = f"""\
## What the device does

* Nothing of a request takes effect before its checksum is compared.
* A request that is a write, and whose number has the same lowest bit as the request before, is a
  repetition. It is answered with the status of the first time and not done again. A read is done
  whenever it is asked for.
* The status stands behind the data, because it is known only then. A read that is refused ends with
  the unit that was refused; a write that is refused stops there.
* From the end of a request to the end of its answer the device does not listen. What comes then
  is lost, up to the next flag.
* The device never speaks unasked.

## What the host does

* It numbers its requests, each with the number of the one before plus 1, modulo 256; the first of a
  session is a read, and so is the first one after a request that got no answer. Then the device
  knows by the lowest bit what is new.
* When it has heard nothing for a while, it sends the same frame again. The time does not matter for
  correctness: too short a time only costs repetitions. Half a second is plenty for a serial port.
* It takes an answer by its number, and ignores others: those to requests that were sent twice.
* A transfer of more than a request holds is split: within a request, address and count stay within
  {link.PAGE} units from a multiple of {link.PAGE}, and a write has at most {link.PAGE} bytes. On a
  line that disturbs many long frames, shorter ones get through.

A disturbed frame passes for right once in 2^32 times. With one byte in 1,000 flipped, one lost, one
repeated and one inserted, in both directions, every transfer of a test with 10,000 frames is right.
"""


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [list(heads), ["---"] * len(heads), *[list(map(str, row)) for row in rows]]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def _parts(parts: Sequence[link.Part]) -> list[str]:
    return _table(("part", "bytes", "meaning"), [(p.name, p.bytes, p.doc) for p in parts])


def _examples() -> list[str]:
    done = (Code.DONE, link.LINK_VERSION)
    identify = Request(Space.CSR, isa.CSR_BY_NAME["ID"].number, 1)
    identity = isa.DEVICE_ID.to_bytes(4, "little")
    write = Request(Space.MEMORY, 0x20, 3, bytes((1, link.FLAG, 3)))
    rows = [
        ("read the register ID, as request 1", identify.frame(1)),
        ("its answer", Answer(1, identity, *done).frame()),
        (f"write 01 {link.FLAG:02x} 03 to data memory at {0x20:#x}, as request 2", write.frame(2)),
        ("its answer", Answer(2, b"", *done).frame()),
    ]
    return _table(("what", "bytes"), [(what, f"`{frame.hex(' ')}`") for what, frame in rows])


def page() -> str:
    """The page about the link, in Markdown."""
    lines = [
        _INTRODUCTION,
        "## Requests",
        "",
        "The body of a request; numbers are little-endian. A *unit* is a byte in the space MEMORY, "
        f"and a word of {isa.WORD_BYTES} bytes in the others.",
        "",
        *_parts(link.REQUEST[:-1]),
        *_table(("space", "name"), [(space.value, space.name) for space in Space]),
        "## Answers",
        "",
        "The body of an answer:",
        "",
        *_parts(link.ANSWER[:-1]),
        *_table(
            ("code", "name", "meaning"),
            [(c.value, c.name, doc) for c, doc in link.CODE_DOC.items()],
        ),
        _DEVICE,
        "## Examples",
        "",
        *_examples(),
        "## Ends of the link",
        "",
        "* `gradiron_hw.link.Link` is the device's: two streams of bytes on one side, the host "
        "port of the core on the other. `gradiron_hw.uart.Uart` makes a serial line of the "
        "streams. Together they take at most 350 logic cells and one block of memory on iCE40.",
        "* `gradiron.serial_device.SerialDevice` is the host's in Python, over pyserial or any "
        "other carrier; `gradiron.open('serial:/dev/ttyUSB0')` opens one.",
        "* `gradiron c-driver FOLDER` writes the host's in C99, without dependencies: two "
        "functions that send and receive bytes are all it needs.",
        "* [How to add a link](adding-a-link.md) says what another carrier takes.",
    ]
    return "\n".join(lines).rstrip() + "\n"


def header() -> str:
    """The constants for C."""
    numbers = {
        "VERSION": link.LINK_VERSION,
        "VERSION_SHIFT": link.VERSION_SHIFT,
        "FLAG": link.FLAG,
        "ESCAPE": link.ESCAPE,
        "ESCAPE_BIT": link.ESCAPE_BIT,
        "CRC_POLYNOMIAL": link.CRC_POLYNOMIAL,
        "CRC_BYTES": link.CRC_BYTES,
        "PAGE": link.PAGE,
        "WORD_BYTES": isa.WORD_BYTES,
        "HEADER_BYTES": link.HEADER_BYTES,
        "WRITE": link.COMMAND_WRITE,
        "SPACE_SHIFT": link.COMMAND_SPACE_SHIFT,
        **{code.name: code.value for code in Code},
    }
    lines = [
        "/* The link between host and Gradiron device, for C and C++.",
        " * Written by `python -m gradiron.link_manual` from gradiron.arch.link: change that.",
        " */",
        "#ifndef GRADIRON_LINK_H",
        "#define GRADIRON_LINK_H",
        "",
        *(
            f"#define GRADIRON_LINK_{name:<16} {value:#x}u"
            if value > 9
            # Small ones are counts, or are compared with what is signed.
            else f"#define GRADIRON_LINK_{name:<16} {value}"
            for name, value in numbers.items()
        ),
        "",
        "/* A request:",
        *_comment(link.REQUEST),
        " * An answer:",
        *_comment(link.ANSWER),
        " */",
        "",
        "#endif",
        "",
    ]
    return "\n".join(lines)


def _comment(parts: Sequence[link.Part]) -> list[str]:
    lines: list[str] = []
    for part in parts:
        text = f"{part.name} ({part.bytes}): {part.doc}"
        lines += textwrap.wrap(text, 96, initial_indent=" *   ", subsequent_indent=" *       ")
    return lines


def driver() -> dict[str, str]:
    """The driver in C with all it needs: names of files and their texts."""
    folder = importlib.resources.files("gradiron").joinpath("c")
    files = {name: folder.joinpath(name).read_text("utf-8") for name in DRIVER}
    return {**files, HEADER: header(), manual.HEADER: manual.header()}


if __name__ == "__main__":
    manual.write({PAGE: page(), HEADER: header()}, sys.argv[1:])
