"""Builds: what the tools get for every board; the flow with tools that only pretend; for real."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("amaranth_boards", reason="amaranth-boards is not installed")

from gradiron.arch.boards import BOARD_BY_NAME, BOARDS, Board, find_board
from gradiron.arch.config import Config
from gradiron.cache import Cache
from gradiron.cli import main
from gradiron.errors import ConfigError, ToolError
from gradiron.serial_device import known_configs
from gradiron_boards import build as builds
from gradiron_boards.build import build, fmax_mhz, load, prepare, top_of
from support.link_core import LinkCore

CLOCK_PINS = {
    "icebreaker": "clk12_0__io 35",
    "hx8k": "clk12_0__io J3",
    "ulx3s-25f": '"clk25_0__io" SITE "G2"',
    "ulx3s-85f": '"clk25_0__io" SITE "G2"',
    "ecpix5-45f": '"clk100_0__io" SITE "K23"',
    "ecpix5-85f": '"clk100_0__io" SITE "K23"',
}
TINY = Config(rows=2, cols=2, regions=(64, 64), acc_depth=16, program_words=64)


def names(board: Board) -> str:
    return board.name


@pytest.mark.parametrize("board", BOARDS, ids=names)
def test_what_the_tools_get(board: Board) -> None:
    files, commands = prepare(board, top_of(board, TINY, core=LinkCore()))
    assert len(commands) == 3
    (constraints,) = (text for name, text in files.items() if name.endswith((".pcf", ".lpf")))
    text = constraints.decode()
    assert CLOCK_PINS[board.name] in text
    assert "uart_0__rx__io" in text
    assert "uart_0__tx__io" in text
    assert "COLLISION_X_MASK" in files["top.ys"].decode()
    rtlil = files["top.il"].decode()
    pll = "EHXPLLL" if board.fpga.startswith("ECP5") else "SB_PLL40_"
    assert rtlil.count(f"cell \\{pll}") == 1


@pytest.mark.parametrize("board", BOARDS, ids=names)
def test_machines_are_recognised_and_differ(board: Board) -> None:
    known = [config.digest() for config in known_configs()]
    for array, config in board.machines.items():
        assert config.array == array
        assert known.count(config.digest()) >= 1
    assert board.config() == board.machines[board.array]


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="no board is called 'x'; known are: icebreaker, "):
        find_board("x")
    with pytest.raises(ConfigError, match="iCEBreaker has no machine with the array 16x16; it has"):
        find_board("icebreaker").config("16x16")


# --- the flow ------------------------------------------------------------------------------------

FAKE = """#!{python}
import json, pathlib, sys
name, words = sys.argv[0], sys.argv[1:]
pathlib.Path(r"{log}").open("a").write(pathlib.Path(name).name + " " + " ".join(words) + chr(10))
if "yosys" in name:
    pathlib.Path("top.json").write_text("netlist")
elif "nextpnr" in name:
    seed = int(words[words.index("--seed") + 1])
    assert pathlib.Path("top.json").read_text() == "netlist"
    out = words[words.index("--asc" if "--asc" in words else "--textcfg") + 1]
    pathlib.Path(out).write_text("seed %d" % seed)
    if seed == {fails}:
        print("ERROR: Unable to place cell")
        sys.exit(1)
    report = {{
        "fmax": {{"clk": {{"achieved": {base} + seed, "constraint": 1}}}},
        "utilization": {{
            "ICESTORM_LC": {{"used": 7, "available": 9}},
            "ICESTORM_RAM": {{"used": 3, "available": 9}},
        }},
    }}
    pathlib.Path(words[words.index("--report") + 1]).write_text(json.dumps(report))
else:
    text = pathlib.Path(words[0]).read_text()
    pathlib.Path(words[1]).write_text("packed " + text)
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tools that only pretend; gives a function to change what they say, and their log."""
    log = tmp_path / "log"
    log.write_text("")
    path = tmp_path / "fake"

    def set_up(base: float = 40.0, fails: int = 0) -> Path:
        text = FAKE.format(python=sys.executable, log=log, base=base, fails=fails)
        for name in builds._TOOLS:
            tool = path.with_name(name)
            tool.write_text(text)
            tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        return log

    monkeypatch.setattr(builds, "tool", lambda name: str(path.with_name(name)))
    # A machine is described in seconds, this one at once.
    monkeypatch.setattr(
        builds, "top_of", lambda board, config, mhz: top_of(board, config, mhz, core=LinkCore())
    )
    return set_up


@pytest.mark.skipif(sys.platform == "win32", reason="the tools that pretend are scripts")
def test_flow(tools: Any, tmp_path: Path) -> None:
    log = tools()
    cache = Cache(tmp_path / "cache")
    board = BOARD_BY_NAME["hx8k"]
    first = build(board, seeds=3, cache=cache)
    assert first.fmax_mhz == [41, 42, 43]
    assert (first.luts, first.brams, first.dsps, first.spram) == (7, 3, 0, 0)
    assert first.meets_timing
    assert not first.cached
    assert Path(str(first.bitstream)).read_text() == "packed seed 3"
    count = len(log.read_text().splitlines())
    assert count == 1 + 3 + 3
    again = build(board, seeds=3, cache=cache)
    assert again.cached
    assert again.bitstream == first.bitstream
    assert len(log.read_text().splitlines()) == count
    build(board, seeds=4, cache=cache)
    assert len(log.read_text().splitlines()) == count + 2


@pytest.mark.skipif(sys.platform == "win32", reason="the tools that pretend are scripts")
def test_too_slow_gives_no_bitstream(
    tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tools(base=20)
    monkeypatch.setenv("GRADIRON_CACHE", str(tmp_path / "cache"))
    result = tmp_path / "result.json"
    assert main(["build", "--board", "hx8k", "--seeds", "2", "--json", str(result)]) == 1
    assert "no seed reaches 39.75 MHz; try more seeds, or --mhz 21.6" in capsys.readouterr().err
    found = json.loads(result.read_text())
    assert found["bitstream"] is None
    assert found["meets_timing"] is False
    assert found["fmax_mhz"] == [21, 22]
    output = tmp_path / "out.bin"
    words = ["--mhz", "21.6", "-o", str(output)]
    assert main(["build", "--board", "hx8k", "--seeds", "2", *words]) == 0
    assert output.read_text() == "packed seed 2"


@pytest.mark.skipif(sys.platform == "win32", reason="the tools that pretend are scripts")
def test_a_machine_that_does_not_fit(tools: Any, tmp_path: Path) -> None:
    tools(fails=1)
    with pytest.raises(ToolError, match=r"nextpnr-ice40 failed.*\n.*\nERROR: Unable to place cell"):
        build(BOARD_BY_NAME["hx8k"], cache=Cache(tmp_path))


def test_report_without_a_clock() -> None:
    with pytest.raises(ToolError, match="nextpnr reports no clock"):
        fmax_mhz({"fmax": {}})


def test_missing_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ToolError, match=r"pip install 'gradiron\[boards\]'"):
        builds.tool("yosys")


# --- loading -------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="the programmer that pretends is a script")
def test_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bitstream = tmp_path / "x.bit"
    bitstream.write_bytes(b"x")
    board = BOARD_BY_NAME["ulx3s-25f"]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="ULX3S 25F is loaded with openFPGALoader or fujprog"):
        load(board, str(bitstream))
    programmer = tmp_path / "fujprog"
    programmer.write_text("#!/bin/sh\necho no board; exit 3\n")
    programmer.chmod(0o755)
    with pytest.raises(ToolError, match="failed with exit status 3; is the board"):
        load(board, str(bitstream))
    programmer.write_text("#!/bin/sh\nexit 0\n")
    assert load(board, str(bitstream)) == ["fujprog", str(bitstream)]
    with pytest.raises(ToolError, match="there is no bitstream"):
        load(board, str(tmp_path / "none"))


# --- commands ------------------------------------------------------------------------------------


def test_boards_command(tmp_path: Path) -> None:
    result = tmp_path / "boards.json"
    words = ["boards", "--board", "icebreaker", "--models", "digits,mlp", "--json", str(result)]
    assert main(words) == 0
    (row,) = json.loads(result.read_text())
    assert row["board"] == "icebreaker"
    assert row["networks"]["digits"]["fits"]
    assert 0.01 < row["networks"]["digits"]["ms"] < 10
    assert not row["networks"]["mlp"]["fits"]
    assert row["networks"]["mlp"]["why"]


@pytest.mark.parametrize(
    "words",
    [
        ("build", "--board", "nonsense"),
        ("build", "--board", "hx8k", "--array", "16x16"),
        ("build", "--board", "hx8k", "--mhz", "-1"),
        ("build", "--board", "hx8k", "--seeds", "0"),
        ("program", "--board", "hx8k", "--bitstream", "/nowhere/x.bin"),
        ("boards", "--board", "nonsense"),
    ],
)
def test_commands_refuse(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("gradiron: ")


@pytest.mark.long
def test_real_build() -> None:
    """The smallest machine, through all tools."""
    found = build(BOARD_BY_NAME["ulx3s-25f"], "2x2", mhz=25)
    assert found.meets_timing
    assert 1000 < found.luts < 24288
    assert Path(str(found.bitstream)).stat().st_size > 10_000
