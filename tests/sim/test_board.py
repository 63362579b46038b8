"""The whole board, pins included, in simulation: real serial drivers, in Python and C, use it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("serial", reason="pyserial is not installed")

from gradiron import link_manual
from gradiron.arch.config import simulation_config
from gradiron.arch.isa import ErrorCause, MachineState
from gradiron.cli import main
from gradiron.compiler import Program, compile_graph
from gradiron.data import load_digits
from gradiron.device import Device
from gradiron.engines import open_device
from gradiron.errors import DeviceError, LinkError, MachineError
from gradiron.golden import GoldenDevice
from gradiron.networks import network
from gradiron.train import Settings, new_trainer
from gradiron_sim.board import Line, PseudoTerminal, simulated_board
from support.lines import SimulatedLine

MACHINE = simulation_config("2x2")
SETTINGS = Settings(epochs=1, batch=8, rate=3, seed=7)
STEPS = 20


@pytest.fixture(scope="module")
def board() -> Iterator[Line]:
    line = simulated_board(MACHINE)
    yield line
    line.close()


@pytest.fixture
def port(board: Line) -> Iterator[str]:
    with PseudoTerminal(board) as terminal:
        yield terminal.path


@pytest.fixture(scope="module")
def program() -> Program:
    return compile_graph(network("digits"), MACHINE, SETTINGS.batch)


def trained(device: Device, program: Program, steps: int = STEPS) -> tuple[str, str, list[int]]:
    """Sums of weights and state after some steps, and the losses."""
    if device.status().state:
        device.reset()
    data = load_digits()
    trainer = new_trainer(device, program, data, SETTINGS)
    trainer.set_rate(SETTINGS.rate)
    batches = range(0, steps * SETTINGS.batch, SETTINGS.batch)
    x, y = data.x_train, data.y_train
    losses = [trainer.step(x[at : at + 8], y[at : at + 8]) for at in batches]
    return trainer.weights_sha256(), trainer.state_hash(), losses


def test_trains_through_its_pins(port: str, program: Program, tmp_path: Path) -> None:
    """The digits network, by the driver for boards: the bits of the golden model; and replayed."""
    reference = trained(GoldenDevice(MACHINE), program)
    log = tmp_path / "traffic.jsonl"
    # No configuration is named: it is recognised.
    with open_device(f"serial:{port}", log=log) as device:
        assert device.config == MACHINE
        assert trained(device, program) == reference
    with open_device(f"replay:{log}", config=MACHINE) as device:
        with pytest.raises(LinkError, match="goes on otherwise in line"):
            device.write_csr("SEED", 5)
    with open_device(f"replay:{log}") as device:
        assert trained(device, program) == reference


def test_noise_on_the_pins(board: Line, program: Program) -> None:
    """One byte in a thousand flipped, lost, repeated, inserted: the same bits."""
    from gradiron.serial_device import SerialDevice

    carrier = SimulatedLine(board, seed=3, rate=1e-3)
    with SerialDevice(MACHINE, carrier) as device:
        assert trained(device, program, 3) == trained(GoldenDevice(MACHINE), program, 3)
        assert device.link.retries > 10


def test_error_state_and_running(port: str) -> None:
    from gradiron.assembler import assemble

    with open_device(f"serial:{port}", config=MACHINE) as device:
        device.reset()
        device.write_program([0xFFFFFFFF])
        with pytest.raises(MachineError) as caught:
            device.run()
        assert caught.value.cause == ErrorCause.ILLEGAL_OPCODE.name
    with open_device(f"serial:{port}", config=MACHINE) as device:
        # As somebody finds it who opens it later.
        assert device.status().state == MachineState.ERROR
        with pytest.raises(DeviceError, match="the machine is ERROR and cannot start a program"):
            device.start()
        device.reset()
        words = assemble("LOOP 60000\nLOOP 60000\nSTEP\nENDLOOP\nENDLOOP\nHALT", MACHINE).words
        device.write_program(words)
        device.start()
        with pytest.raises(DeviceError, match=r"still running after 0\.01 s at program counter"):
            device.wait(0.01)
        with pytest.raises(DeviceError, match="the machine is running; data memory"):
            device.read_memory(0, 4)
        device.reset()
        assert device.status().state == MachineState.IDLE


def test_another_configuration(port: str) -> None:
    other = MACHINE.replace(acc_depth=MACHINE.acc_depth * 2)
    with pytest.raises(DeviceError, match="was built with the configuration"):
        open_device(f"serial:{port}", config=other)


def test_port_twice(port: str) -> None:
    with open_device(f"serial:{port}", config=MACHINE):
        with pytest.raises(LinkError, match="another program has it open"):
            open_device(f"serial:{port}", config=MACHINE)


def compiler() -> list[str]:
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    pytest.importorskip("ziglang", reason="no C compiler, and the package ziglang is not installed")
    return [sys.executable, "-m", "ziglang", "cc"]


def test_driver_in_c(port: str, tmp_path: Path) -> None:
    assert main(["c-driver", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == set(link_manual.driver())
    flags = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1", "-o", "example"]
    command = [*compiler(), *flags, "example.c", "gradiron.c"]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = subprocess.run(
        [str(tmp_path / "example"), port], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[:4] == [
        f"config {MACHINE.digest():#010x}",
        "memory equal",
        "step 42",
        "refused",
    ]
    assert done.returncode == 0
    missing = subprocess.run(
        [str(tmp_path / "example"), str(tmp_path / "none")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert missing.returncode == 2


def test_command(tmp_path: Path, board: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """`gradiron simulate-board`, and `gradiron train` on what it offers."""
    monkeypatch.chdir(tmp_path)
    words = ["simulate-board", "--array", "2x2", "--json", "board.json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gradiron", *words], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        engine = process.stdout.readline().strip()
        found = json.loads(Path("board.json").read_text())
        assert found["config"] == MACHINE.to_dict()
        assert found["divisor"] == 4
        assert engine == f"serial:{found['port']}"
        train = ["train", "--model", "digits", "--dataset", "digits", "--train-samples", "16"]
        train += ["--test-samples", "16", "--epochs", "1", "--quiet", "--no-float32"]
        hashes: list[str] = []
        for name, where in (("board", engine), ("golden", "golden")):
            result = f"{name}.result"
            assert main([*train, "--engine", where, "--json", result]) == 0
            hashes.append(json.loads(Path(result).read_text())["weights_sha256"])
        assert hashes[0] == hashes[1]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(Path("board.json").read_text())["cycles"] > 10_000
