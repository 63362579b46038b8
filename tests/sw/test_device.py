"""The Device interface: its checks, its messages, and what it promises of every kind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradiron.arch import isa
from gradiron.arch.config import Config
from gradiron.arch.isa import ErrorCause, MachineState, Space, encode, make_address
from gradiron.device import (
    Device,
    Entry,
    Retirement,
    Status,
    little_words,
    pack_status,
    unpack_status,
    words_of,
)
from gradiron.errors import DataError, DeviceError, MachineError
from gradiron.golden import GoldenDevice

CONFIG = Config(
    rows=4, cols=4, regions=(256, 512), acc_depth=16, program_words=64, name="the test machine"
)
STEP, HALT, WAIT = encode("STEP"), encode("HALT"), encode("WAIT")


@pytest.fixture
def device() -> GoldenDevice:
    return GoldenDevice(CONFIG)


# --- opening -------------------------------------------------------------------------------------


class Odd(GoldenDevice):
    """A device with one CSR that is not what the driver expects."""

    replaced = ("", 0)

    def _read(self, space: Space, address: int, count: int) -> bytes:
        name, value = self.replaced
        if space == Space.CSR and address == isa.CSR_BY_NAME[name].number:
            return little_words([value])
        return super()._read(space, address, count)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ID", 0x12345678, r"identifies itself as 0x12345678, this driver expects 0x47524431"),
        ("VERSION", 77, r"instruction set version 77, this driver has version 2; build the"),
        ("CONFIG", 0xABC, r"configuration 0x00000abc, this driver expects 0x[0-9a-f]{8} \(the t"),
    ],
)
def test_a_device_that_does_not_match_is_refused(name: str, value: int, message: str):
    class Wrong(Odd):
        replaced = (name, value)

    with pytest.raises(DeviceError, match=message):
        Wrong(CONFIG)


def test_the_message_of_another_configuration_shows_what_was_expected():
    class Wrong(Odd):
        replaced = ("CONFIG", 0)

    with pytest.raises(DeviceError, match=r"'acc_depth': 16"):
        Wrong(CONFIG)


def test_a_device_is_a_context_manager():
    closed: list[bool] = []

    class Closing(GoldenDevice):
        def close(self) -> None:
            closed.append(True)

    with Closing(CONFIG) as device:
        assert device.config == CONFIG
        assert not closed
    assert closed == [True]


def test_the_abstract_device_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        Device(CONFIG)  # type: ignore[abstract]


# --- control and status registers ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("SEED", (0, 1, 2**32 - 1)),
        ("STEP", (0, 12345, 2**32 - 1)),
        ("RATE", (-32, -1, 0, 5, 31)),
        ("ENTRY", (0, 63)),
        ("MODE", (0, 1)),
    ],
)
def test_writable_registers_read_back(device: GoldenDevice, name: str, values: tuple[int, ...]):
    for value in values:
        device.write_csr(name, value)
        assert device.read_csr(name) == value


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("SEED", -1, "0 to 4294967295"),
        ("STEP", 2**32, "0 to 4294967295"),
        ("RATE", 32, "-32 to 31"),
        ("RATE", -33, "-32 to 31"),
        ("ENTRY", 64, "0 to 63"),
        ("MODE", 2, "0 to 1"),
        ("CONTROL", 16, "0 to 15"),
    ],
)
def test_registers_refuse_values_out_of_range(
    device: GoldenDevice, name: str, value: int, allowed: str
):
    message = f"^CSR {name}: {value} is out of range; it must be {allowed}$"
    with pytest.raises(DeviceError, match=message):
        device.write_csr(name, value)


def test_unknown_and_read_only_registers_are_refused(device: GoldenDevice):
    with pytest.raises(DeviceError, match="no CSR is called 'SPEED'; known are: ID, VERSION"):
        device.read_csr("SPEED")
    with pytest.raises(DeviceError, match="no CSR is called 'SPEED'"):
        device.write_csr("SPEED", 1)
    with pytest.raises(DeviceError, match="LOSS is read-only; writable are: CONTROL, ENTRY"):
        device.write_csr("LOSS", 1)


@given(
    st.sampled_from(list(MachineState)), st.sampled_from(list(ErrorCause)), st.integers(0, 65535)
)
def test_status_words_have_an_inverse(state: MachineState, cause: ErrorCause, pc: int):
    status = Status(state, cause, pc)
    assert unpack_status(pack_status(status)) == status


@pytest.mark.parametrize("word", [15, 0xFF << 4])
def test_an_unknown_status_is_refused(word: int):
    with pytest.raises(DeviceError, match="unknown to this driver"):
        unpack_status(word)


def test_words_have_an_inverse():
    assert words_of(little_words([0, 1, 2**32 - 1])) == [0, 1, 2**32 - 1]
    assert little_words([1, -1]) == b"\1\0\0\0\xff\xff\xff\xff"


def test_a_fresh_device_is_idle_with_its_counters_at_zero(device: GoldenDevice):
    assert device.status() == Status(MachineState.IDLE, ErrorCause.NONE, 0)
    counters = device.counters()
    assert set(counters) == {c.name for c in isa.CSRS if c.number >= 16}
    assert not any(counters.values())


def test_counters_are_cleared_alone(device: GoldenDevice):
    device.write_program([STEP, HALT])
    device.run()
    assert device.counters()["INSTRUCTIONS"] == 2
    assert device.read_csr("INSTRUCTIONS") == 2
    device.clear_counters()
    assert not any(device.counters().values())
    assert device.read_csr("STEP") == 1
    assert device.status().state == MachineState.HALTED


# --- memories ------------------------------------------------------------------------------------


def test_memory_takes_bytes_and_arrays(device: GoldenDevice):
    address = make_address(1, 17)
    for data in (
        b"\1\2\xff",
        bytearray(b"\1\2\xff"),
        memoryview(b"\1\2\xff"),
        np.array([1, 2, -1], np.int8),
        np.array([[1], [2], [255]], np.uint8),
        np.array([[1, 9], [2, 9], [-1, 9]], np.int8)[:, 0],
    ):
        device.write_memory(address, bytes(3))
        device.write_memory(address, data)
        assert device.read_memory(address, 3) == b"\1\2\xff"
    assert device.read_memory(address - 1, 1) == b"\0"
    assert device.read_memory(address + 3, 1) == b"\0"


@pytest.mark.parametrize(("region", "size"), [(0, 256), (1, 512)])
def test_memory_ends_where_its_region_ends(device: GoldenDevice, region: int, size: int):
    device.write_memory(make_address(region, 0), bytes(size))
    device.write_memory(make_address(region, size - 1), b"\5")
    assert device.read_memory(make_address(region, size - 1), 1) == b"\5"
    assert device.read_memory(make_address(region, size), 0) == b""
    message = f"2 bytes at offset {size - 1} are not within region {region}, which has {size}"
    with pytest.raises(DeviceError, match=message):
        device.write_memory(make_address(region, size - 1), b"\0\0")
    with pytest.raises(DeviceError, match=message):
        device.read_memory(make_address(region, size - 1), 2)


def test_memory_has_only_its_regions(device: GoldenDevice):
    for address in (make_address(2, 0), 1 << 24, -1):
        with pytest.raises(DeviceError, match="this machine has 2 regions"):
            device.read_memory(address, 1)
    with pytest.raises(DeviceError, match="-1 bytes"):
        device.read_memory(0, -1)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.bool_])
def test_memory_refuses_other_arrays(device: GoldenDevice, dtype: type[np.generic]):
    with pytest.raises(DataError, match="takes arrays of int8 or uint8, not"):
        device.write_memory(0, np.zeros(3, dtype))  # type: ignore[arg-type]


def test_programs_read_back(device: GoldenDevice):
    device.write_program([STEP, 2**32 - 1], origin=62)
    assert device.read_program(61, 3) == [0, STEP, 2**32 - 1]
    device.write_program(np.array([HALT], np.uint32))
    assert device.read_program(0, 1) == [HALT]
    device.write_program([])
    assert device.read_program(64, 0) == []


def test_programs_must_fit(device: GoldenDevice):
    for origin, words in ((63, [STEP, HALT]), (-1, [STEP]), (0, [STEP] * 65)):
        with pytest.raises(DeviceError, match="do not fit the program memory of 64 words"):
            device.write_program(words, origin)
    with pytest.raises(DeviceError, match="not within the program memory of 64 words"):
        device.read_program(60, 5)
    for word in (-1, 2**32):
        with pytest.raises(DeviceError, match=f"the word {word} at 5 does not have 32"):
            device.write_program([word], 5)


def test_exponents_read_back(device: GoldenDevice):
    device.write_exponent(0, -64, 63, 7)
    device.write_exponent(63, 5)
    assert device.read_exponent(0) == Entry(exponent=-64, tracker=63, low=7)
    assert device.read_exponent(63) == (5, 5, 0)
    assert device.read_exponent(1) == (0, 0, 0)
    device.write_saturations(63, 2**32 - 1)
    assert device.saturations(63) == 2**32 - 1
    assert device.read_exponent(63) == (5, 5, 0)
    device.write_saturations(63)
    assert device.saturations(63) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.write_exponent(64, 0), "tensor 64; it must be 0 to 63"),
        (lambda d: d.read_exponent(-1), "tensor -1; it must be 0 to 63"),
        (lambda d: d.saturations(64), "tensor 64; it must be 0 to 63"),
        (lambda d: d.write_exponent(3, 64), "tensor 3: exponent is 64; it must be -64 to 63"),
        (lambda d: d.write_exponent(3, 0, -65), "tensor 3: tracker is -65; it must be -64 to 63"),
        (lambda d: d.write_exponent(3, 0, 0, 8), "tensor 3: low is 8; it must be 0 to 7"),
        (lambda d: d.write_saturations(3, -1), "a saturation count of -1"),
    ],
)
def test_exponents_refuse_what_is_out_of_range(
    device: GoldenDevice, call: Callable[[Device], object], message: str
):
    with pytest.raises(DeviceError, match=message):
        call(device)


def test_traffic_is_counted_per_space(device: GoldenDevice):
    device.traffic.reset()
    device.write_memory(0, bytes(10))
    device.read_memory(0, 7)
    device.write_program([STEP, HALT])
    device.read_exponent(1)
    device.write_csr("SEED", 1)
    assert device.traffic.written == {
        Space.CSR: 4,
        Space.MEMORY: 10,
        Space.PROGRAM: 8,
        Space.EXPONENTS: 0,
    }
    assert device.traffic.read == {
        Space.CSR: 0,
        Space.MEMORY: 7,
        Space.PROGRAM: 0,
        Space.EXPONENTS: 4,
    }
    assert device.traffic.total == 33
    device.traffic.reset()
    assert device.traffic.total == 0


def test_traffic_has_the_handshake():
    assert GoldenDevice(CONFIG).traffic.read[Space.CSR] == 12


# --- running -------------------------------------------------------------------------------------


def long_program(device: Device) -> None:
    device.write_program(
        [
            encode("LOOP", count=65535),
            encode("LOOP", count=65535),
            STEP,
            encode("ENDLOOP"),
            encode("ENDLOOP"),
            HALT,
        ]
    )


ACCESSES: list[Callable[[Device], object]] = [
    lambda d: d.read_memory(0, 1),
    lambda d: d.write_memory(0, b"\1"),
    lambda d: d.read_program(0, 1),
    lambda d: d.write_program([HALT]),
    lambda d: d.read_exponent(0),
    lambda d: d.write_exponent(0, 1),
    lambda d: d.saturations(0),
    lambda d: d.write_saturations(0, 1),
]


@pytest.mark.parametrize("access", ACCESSES)
def test_a_running_machine_refuses_memory_access(
    device: GoldenDevice, access: Callable[[Device], object]
):
    long_program(device)
    device.start()
    with pytest.raises(DeviceError, match="the machine is running"):
        access(device)
    device.reset()
    assert device.status().state == MachineState.IDLE
    access(device)


@pytest.mark.parametrize("access", ACCESSES)
@pytest.mark.parametrize("state", ["IDLE", "WAITING", "PAUSED", "HALTED", "ERROR"])
def test_every_other_state_allows_memory_access(
    device: GoldenDevice, access: Callable[[Device], object], state: str
):
    device.write_program([WAIT, HALT])
    match state:
        case "WAITING":
            device.run()
        case "PAUSED":
            device.write_program([STEP])
            device.write_csr("MODE", 1)
            device.run()
        case "HALTED":
            device.run(1)
        case "ERROR":
            with pytest.raises(MachineError):
                device.run(2)
        case _:
            pass
    assert device.status().state.name == state
    access(device)


def test_a_running_machine_refuses_a_start(device: GoldenDevice):
    long_program(device)
    device.start()
    with pytest.raises(DeviceError, match="the machine is RUNNING and cannot start a program"):
        device.run()


def test_waiting_has_a_limit(device: GoldenDevice):
    long_program(device)
    with pytest.raises(DeviceError, match=r"still running after 0\.01 s"):
        device.run(timeout=0.01)
    assert device.status().state == MachineState.RUNNING
    device.reset()
    assert 0 < device.read_csr("STEP") < 65535**2


def test_polling_makes_progress(device: GoldenDevice):
    device.write_program([STEP, STEP, HALT])
    device.start()
    states = [device.status().state for _ in range(4)]
    running, halted = MachineState.RUNNING, MachineState.HALTED
    assert states == [running, running, halted, halted]
    assert device.wait() == Status(halted, ErrorCause.NONE, 2)
    assert device.read_csr("STEP") == 2


def test_only_a_waiting_or_paused_machine_resumes(device: GoldenDevice):
    with pytest.raises(DeviceError, match="IDLE; only a WAITING or PAUSED machine can resume"):
        device.resume()
    device.write_program([WAIT, STEP, WAIT, HALT])
    assert device.run() == Status(MachineState.WAITING, ErrorCause.NONE, 1)
    with pytest.raises(DeviceError, match="WAITING and cannot start a program"):
        device.start()
    assert device.resume() == Status(MachineState.WAITING, ErrorCause.NONE, 3)
    assert device.read_csr("STEP") == 1
    assert device.resume().state == MachineState.HALTED
    with pytest.raises(DeviceError, match="HALTED; only"):
        device.resume()


def test_an_error_names_its_cause_and_needs_a_reset(device: GoldenDevice):
    device.write_program([STEP, 0, HALT])
    message = (
        r"^the machine stopped with 'ILLEGAL_OPCODE' at program counter 1: No instruction has this "
        r"opcode, or no register this number; correct the program, then reset"
    )
    with pytest.raises(MachineError, match=message) as error:
        device.run()
    assert (error.value.cause, error.value.pc) == ("ILLEGAL_OPCODE", 1)
    with pytest.raises(DeviceError, match="ERROR and cannot start a program; reset the device"):
        device.run()
    with pytest.raises(MachineError):
        device.wait()
    device.reset()
    assert device.status()[:2] == (MachineState.IDLE, ErrorCause.NONE)
    assert device.run(2).state == MachineState.HALTED


def test_a_reset_keeps_memories_exponents_and_registers(device: GoldenDevice):
    device.write_memory(0, b"\7")
    device.write_exponent(3, 4, 5, 6)
    device.write_csr("SEED", 9)
    device.write_program([STEP, WAIT])
    device.run()
    device.reset()
    assert device.status().state == MachineState.IDLE
    assert device.read_memory(0, 1) == b"\7"
    assert device.read_exponent(3) == (4, 5, 6)
    assert (device.read_csr("SEED"), device.read_csr("STEP")) == (9, 1)
    assert device.counters()["INSTRUCTIONS"] == 2


def test_retirements_are_recorded_on_demand(device: GoldenDevice):
    program = [encode("LOOP", count=2), STEP, encode("ENDLOOP"), HALT]
    device.write_program(program)
    device.run()
    assert device.retirements is None
    device = GoldenDevice(CONFIG, record=True)
    device.write_program(program)
    device.run()
    assert device.retirements is not None
    assert device.retirements[0] == Retirement(0, 0, 0, "LOOP")
    trail = [(r.pc, r.name) for r in device.retirements]
    body = [(1, "STEP"), (2, "ENDLOOP")]
    assert trail == [(0, "LOOP"), *body, *body, (3, "HALT")]
