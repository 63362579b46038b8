"""The driver for boards against a device's end in Python: what is right, and every way to fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gradiron.arch import isa
from gradiron.arch.config import Config, simulation_config, up5k_config
from gradiron.arch.isa import Space
from gradiron.arch.link import LINK_VERSION, Answer, Code, Request, encode
from gradiron.engines import open_device
from gradiron.errors import DataError, DeviceError, LinkError, MissingExtraError
from gradiron.golden import GoldenDevice
from gradiron.serial_device import (
    FRAME_BYTES,
    LEAST_FRAME_BYTES,
    HostLink,
    NoAnswerError,
    Recorder,
    Replay,
    SerialDevice,
    SerialPort,
    known_configs,
    open_serial,
    open_transport,
    recognise,
)
from support.link_device import DeviceEnd, Says

SMALL = Config(rows=4, cols=4, regions=(1024, 2048), acc_depth=16, program_words=512)


def end(config: Config = SMALL, **options: Any) -> DeviceEnd:
    return DeviceEnd(GoldenDevice(config), **options)


# --- what is right -------------------------------------------------------------------------------


def test_reads_and_writes_everything() -> None:
    with SerialDevice(SMALL, end()) as device:
        data = bytes(range(256)) * 4
        device.write_memory(isa.make_address(1, 77), data)
        assert device.read_memory(isa.make_address(1, 77), len(data)) == data
        words = [(n * 0x9E3779B9) & 0xFFFFFFFF for n in range(500)]
        device.write_program(words, 3)
        assert device.read_program(3, 500) == words
        device.write_exponent(5, -7, 3, 2)
        assert device.read_exponent(5) == (-7, 3, 2)
        device.write_csr("RATE", -3)
        assert device.read_csr("RATE") == -3
        assert device.counters()["CYCLES"] == 0
        assert device.link.retries == 0


def test_runs() -> None:
    from gradiron.assembler import assemble

    with SerialDevice(SMALL, end()) as device:
        device.write_program(assemble("STEP\nWAIT\nSTEP\nHALT", SMALL).words)
        device.write_csr("STEP", 7)
        assert device.run(timeout=5).state == isa.MachineState.WAITING
        assert device.resume(timeout=5).state == isa.MachineState.HALTED
        assert device.read_csr("STEP") == 9


def test_close_gives_the_carrier_back() -> None:
    carrier = end()
    SerialDevice(SMALL, carrier).close()
    assert carrier.closed


@pytest.mark.parametrize("config", [up5k_config(), simulation_config("4x4")])
def test_recognised(config: Config) -> None:
    with open_transport(end(config)) as device:
        assert device.config == config


def test_known_configs_differ() -> None:
    digests = [config.digest() for config in known_configs()]
    assert len(set(digests)) == len(digests)


# --- what gets lost ------------------------------------------------------------------------------


class Loses:
    """Loses some frames, by their number in the order of sending, in one direction."""

    def __init__(
        self, inner: DeviceEnd, *, to: set[int] = frozenset(), back: set[int] = frozenset()
    ) -> None:
        self.name, self.inner, self.to, self.back = inner.name, inner, to, back
        self.count = 0

    def write(self, data: bytes) -> None:
        self.count += 1
        if self.count not in self.to:
            self.inner.write(data)

    def read(self, timeout: float) -> bytes:
        data = self.inner.read(timeout)
        return b"" if self.count in self.back else data

    def close(self) -> None:
        self.inner.close()


class Counts(GoldenDevice):
    """Counts the writes of CONTROL."""

    starts = 0

    def _write(self, space: Space, address: int, data: bytes) -> None:
        self.starts += space == Space.CSR and address == isa.CSR_BY_NAME["CONTROL"].number
        super()._write(space, address, data)


@pytest.mark.parametrize("lost", range(1, 8))
@pytest.mark.parametrize("way", ["to", "back"])
def test_a_lost_frame_is_repeated_and_nothing_done_twice(lost: int, way: str) -> None:
    counted = Counts(SMALL)
    carrier = Loses(DeviceEnd(counted), **{way: {lost}})
    with SerialDevice(SMALL, carrier) as device:
        for _ in range(3):
            device.clear_counters()
        assert device.link.retries == (lost <= carrier.count)
        assert counted.starts == 3


def test_after_giving_up_the_next_write_is_done() -> None:
    """A write that never arrived leaves the device with the number of the one before."""
    counted = Counts(SMALL)
    carrier = Loses(DeviceEnd(counted))
    device = SerialDevice(SMALL, carrier, attempts=3)
    device.clear_counters()
    carrier.to = set(range(carrier.count + 1, carrier.count + 4))
    with pytest.raises(NoAnswerError, match="stopped answering after 4 requests: 3 attempts"):
        device.clear_counters()
    device.clear_counters()
    assert counted.starts == 2


def test_answers_to_repetitions_are_ignored() -> None:
    class Doubles(DeviceEnd):
        def write(self, data: bytes) -> None:
            super().write(data + data)

        def read(self, timeout: float) -> bytes:
            # A byte at a time: the second answer comes during the next request.
            data = bytes(self._ready[:1])
            del self._ready[:1]
            return data

    counted = Counts(SMALL)
    with SerialDevice(SMALL, Doubles(counted)) as device:
        device.clear_counters()
        device.write_memory(0, bytes(range(200)))
        assert device.read_memory(0, 200) == bytes(range(200))
        assert counted.starts == 1


def test_frames_become_shorter_and_longer_again() -> None:
    class LongOnesFail(DeviceEnd):
        limit = 60

        def write(self, data: bytes) -> None:
            if len(data) <= self.limit:
                super().write(data)

    carrier = LongOnesFail(GoldenDevice(SMALL))
    with SerialDevice(SMALL, carrier) as device:
        data = bytes(1024)
        device.write_memory(0, data)
        assert LEAST_FRAME_BYTES <= device.link.frame_bytes <= 2 * LEAST_FRAME_BYTES
        carrier.limit = 1 << 20
        for _ in range(4):
            device.write_memory(0, data)
        assert device.link.frame_bytes == FRAME_BYTES


# --- what is wrong -------------------------------------------------------------------------------


def test_nobody_answers() -> None:
    carrier = Says()
    with pytest.raises(LinkError, match="no answer from the test line in 10 attempts; is it the"):
        SerialDevice(SMALL, carrier)
    assert carrier.closed
    assert len(carrier.sent) == 10


def test_something_else_answers() -> None:
    with pytest.raises(LinkError, match="is not the link: 100 bytes in 10 attempts"):
        SerialDevice(SMALL, Says(b"login: ~xx"))


def test_it_never_stops_talking() -> None:
    class Talks(Says):
        def read(self, timeout: float) -> bytes:
            return bytes(4096)

    with pytest.raises(LinkError, match="is not the link"):
        HostLink(Talks(), attempts=2).read(Space.CSR, 0, 1)


def test_another_version_of_the_link() -> None:
    message = f"speaks version {LINK_VERSION + 1} of the link, this driver version {LINK_VERSION}"
    with pytest.raises(LinkError, match=message):
        SerialDevice(SMALL, end(version=LINK_VERSION + 1))


def test_malformed() -> None:
    carrier = Says(Answer(1, b"", Code.MALFORMED, LINK_VERSION).frame())
    with pytest.raises(LinkError, match="calls a request malformed"):
        HostLink(carrier).read(Space.CSR, 0, 1)


def test_data_of_another_length_are_no_answer() -> None:
    carrier = Says(Answer(1, b"abc", Code.DONE, LINK_VERSION).frame(), encode(b"x"))
    with pytest.raises(NoAnswerError):
        HostLink(carrier).ask(Request(Space.CSR, 0, 1))


@pytest.mark.parametrize("write", [False, True])
def test_refused(write: bool) -> None:
    host = HostLink(end())
    what = bytes(4) if write else 1
    action: Any = host.write if write else host.read
    with pytest.raises(DeviceError, match=f"refused to {'write' if write else 'read'} PROGRAM"):
        action(Space.PROGRAM, SMALL.program_words, what)


def test_unknown_configuration() -> None:
    message = f"the configuration {SMALL.digest():#010x}, which is none of those known"
    with pytest.raises(DeviceError, match=message) as caught:
        open_transport(end())
    assert f"up5k {up5k_config().digest():#010x}" in str(caught.value)
    assert "config=" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("ID", "is not Gradiron"), ("VERSION", "has instruction set version 305419896, this driver")],
)
def test_another_device(name: str, message: str) -> None:
    class Other(GoldenDevice):
        def _read(self, space: Space, address: int, count: int) -> bytes:
            asked = space == Space.CSR and address == isa.CSR_BY_NAME[name].number
            if asked and hasattr(self, "lies"):
                return (0x12345678).to_bytes(4, "little")
            return super()._read(space, address, count)

    device = Other(SMALL)
    device.lies = True
    with pytest.raises(DeviceError, match=message):
        recognise(HostLink(DeviceEnd(device)))
    with pytest.raises(DeviceError, match=r"0x12345678|305419896"):
        SerialDevice(SMALL, DeviceEnd(device))


def test_cannot_record_retirements() -> None:
    carrier = end()
    with pytest.raises(DeviceError, match="does not record which instructions"):
        SerialDevice(SMALL, carrier, record=True)
    assert carrier.closed


@pytest.mark.parametrize(("timeout", "attempts"), [(0, 3), (-1, 3), (1, 0)])
def test_init_wrong_patience(timeout: float, attempts: int) -> None:
    carrier = Says()
    with pytest.raises(LinkError, match="the time-out must be positive"):
        SerialDevice(SMALL, carrier, timeout=timeout, attempts=attempts)
    assert carrier.closed


# --- ports ---------------------------------------------------------------------------------------


def test_port_missing(tmp_path: Path) -> None:
    pytest.importorskip("serial")
    with pytest.raises(LinkError, match=r"cannot be opened.*is the board connected"):
        open_device(f"serial:{tmp_path}/ttyUSB7")


def test_port_not_named() -> None:
    with pytest.raises(LinkError, match="no serial port is named"):
        open_device("serial:")
    with pytest.raises(LinkError, match="name two bit rates"):
        open_serial("/dev/ttyUSB0@9600", baud=115200)


def test_without_pyserial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gradiron\[serial\]'"):
        SerialPort("/dev/ttyUSB0")


def test_url() -> None:
    """Another carrier that pyserial knows: what is sent comes back, which is not the link."""
    pytest.importorskip("serial")
    with pytest.raises(LinkError, match="is not the link"):
        open_serial("loop://@115200", timeout=0.01, attempts=2)


# --- recorded traffic ----------------------------------------------------------------------------


def test_recorded_and_replayed(tmp_path: Path) -> None:
    path = tmp_path / "traffic"
    with SerialDevice(SMALL, Recorder(end(), path)) as device:
        device.write_memory(0, b"abc")
        expected = device.read_memory(0, 3)
    with open_device(f"replay:{path}", config=SMALL) as device:
        device.write_memory(0, b"abc")
        assert device.read_memory(0, 3) == expected
        with pytest.raises(LinkError, match="more is asked for than was recorded"):
            device.read_memory(0, 3)
    first = json.loads(path.read_text().splitlines()[0])
    assert first == {"gradiron": "traffic", "link": LINK_VERSION, "carrier": "the test line"}


def test_traffic_of_a_failure_is_in_the_file(tmp_path: Path) -> None:
    carrier, path = end(), tmp_path / "traffic"
    with pytest.raises(DeviceError, match="none of those known"):
        open_transport(carrier, log=path)
    assert carrier.closed
    assert len(path.read_text().splitlines()) == 7  # the first line, and three questions


def test_replay_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "traffic"
    with SerialDevice(SMALL, Recorder(end(), path)) as device:
        device.write_memory(0, b"abc")
    with SerialDevice(SMALL, Replay(path)) as device:
        with pytest.raises(LinkError, match=r"goes on otherwise in line \d+: sent then was 7e"):
            device.write_memory(0, b"abd")


@pytest.mark.parametrize("text", ["", "{}", "[1]", "no", '{"gradiron": "traffic"}\n{"to": 5}'])
def test_no_recorded_traffic(tmp_path: Path, text: str) -> None:
    path = tmp_path / "traffic"
    path.write_text(text)
    with pytest.raises(DataError, match="is no recorded traffic"):
        Replay(path)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Replay(tmp_path / "none")
    with pytest.raises(DataError, match="cannot be written"):
        Recorder(Says(), tmp_path / "no" / "folder")
