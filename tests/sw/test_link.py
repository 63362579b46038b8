"""Frames, the page about them, and the constants for C."""

from __future__ import annotations

import re
import types
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradiron import link_manual, manual
from gradiron.arch import link
from gradiron.arch.isa import Space
from gradiron.arch.link import Answer, Code, Deframer, Request, encode, split
from gradiron.errors import LinkError

DOCS = Path(__file__).parents[2] / "docs"

bodies = st.binary(min_size=1, max_size=60) | st.lists(
    st.sampled_from([link.FLAG, link.ESCAPE, 0x5D, 0x5E]), min_size=1, max_size=60
).map(bytes)


@given(st.lists(st.tuples(bodies, st.binary(max_size=5)), max_size=5), st.integers(1, 9))
def test_bodies_come_back(frames: list[tuple[bytes, bytes]], size: int) -> None:
    """Whatever stands between frames, and in whatever pieces they come."""
    text = b"".join(encode(body) + junk.replace(b"~", b"") for body, junk in frames)
    deframer = Deframer()
    got: list[bytes] = []
    for at in range(0, len(text), size):
        got += deframer.feed(text[at : at + size])
    assert got == [body for body, _junk in frames]


@given(bodies)
def test_flags_stand_only_at_the_ends(body: bytes) -> None:
    frame = encode(body)
    assert frame[0] == frame[-1] == link.FLAG
    assert link.FLAG not in frame[1:-1]
    assert zlib.crc32(body + link.checksum(body)) == 0x2144DF1C  # what RFC 1662 calls good


@given(bodies, st.data())
def test_a_changed_bit_is_noticed(body: bytes, data: st.DataObject) -> None:
    frame = bytearray(encode(body))
    at = data.draw(st.integers(1, len(frame) - 2))
    frame[at] ^= 1 << data.draw(st.integers(0, 7))
    assert Deframer().feed(bytes(frame)) == []


def test_too_long_is_dropped() -> None:
    deframer = Deframer(10)
    assert deframer.feed(encode(bytes(7))) == []
    assert deframer.dropped == 1
    assert deframer.feed(encode(bytes(6))) == [bytes(6)]
    deframer.feed(encode(bytes(5))[:-3])
    deframer.reset()
    assert deframer.feed(encode(b"abc")) == [b"abc"]


def test_answer_that_is_too_short() -> None:
    assert Answer.parse(b"\x01") is None
    assert Answer.parse(b"\x01\x10") == Answer(1, b"", Code.DONE, 1)


@given(st.sampled_from(Space), st.integers(0, 1 << 20), st.integers(1, 3000), st.booleans())
def test_split(space: Space, address: int, count: int, write: bool) -> None:
    pieces = list(split(space, address, count, write=write))
    at = address
    for first, units in pieces:
        assert first == at
        data = bytes(units * link.unit_bytes(space)) if write else None
        Request(space, first, units, data)  # which checks itself
        at += units
    assert at == address + count


@pytest.mark.parametrize(
    ("address", "count", "data"),
    [(0, 0, None), (0, 257, None), (255, 2, None), (1 << 24, 1, None), (0, 2, b"a")],
)
def test_init_wrong_request(address: int, count: int, data: bytes | None) -> None:
    with pytest.raises(LinkError, match=r"not one request of the link|bytes of data for"):
        Request(Space.MEMORY, address, count, data)


def test_init_too_many_words() -> None:
    with pytest.raises(LinkError, match="260 bytes of data for 65 units of 4 bytes"):
        Request(Space.PROGRAM, 0, 65, bytes(260))


# --- page and constants --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [(link_manual.PAGE, link_manual.page), (link_manual.HEADER, link_manual.header)],
)
def test_committed_file_is_current(name: str, text: types.FunctionType) -> None:
    found = (DOCS / name).read_text("utf-8")
    assert found == text(), f"docs/{name} is old: python -m gradiron.link_manual"


def test_examples_on_the_page_are_frames() -> None:
    frames = re.findall(r"`((?:[0-9a-f]{2} ){6,}[0-9a-f]{2})`", link_manual.page())
    assert len(frames) == 4
    for frame in frames:
        assert len(Deframer().feed(bytes.fromhex(frame))) == 1


def test_driver_has_its_files() -> None:
    files = link_manual.driver()
    assert set(files) == {*link_manual.DRIVER, link_manual.HEADER, manual.HEADER}
    included = set(re.findall(r'#include "(.*)"', "".join(files.values())))
    assert included <= set(files)
    assert f"GRADIRON_LINK_FLAG             {link.FLAG:#x}u" in files[link_manual.HEADER]
