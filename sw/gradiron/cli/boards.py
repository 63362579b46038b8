"""`gradiron boards`, `build`, `program`, `simulate-board`, `c-driver`: boards, real or not."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from gradiron import link_manual
from gradiron.arch.boards import BOARD_BY_NAME, BOARDS, Board, find_board
from gradiron.arch.config import Config
from gradiron.cli import machines
from gradiron.cli.output import check_output, note, print_table, write_file, write_json
from gradiron.cli.planning import model_cycles
from gradiron.compiler import compile_graph
from gradiron.engines import simulation_module
from gradiron.errors import DataError, MissingExtraError, PlanError, ToolError
from gradiron.graph import Graph
from gradiron.networks import NETWORKS

BOARD_PACKAGES = ("amaranth", "amaranth_boards", "jinja2")
NOT_EQUAL = 1


def _board_module(name: str) -> Any:
    """A module of `gradiron_boards`.

    Raises
    ------
    MissingExtraError
        Where what it stands on is not installed.
    """
    try:
        return import_module(f"gradiron_boards.{name}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in BOARD_PACKAGES:
            raise
        raise MissingExtraError(missing, "boards", "building for a board") from None


def _add_board(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--board", required=True, metavar="B", help=f"one of {', '.join(BOARD_BY_NAME)}"
    )
    parser.add_argument("--array", metavar="RxC", default=None, help="default: the board's")


# --- boards --------------------------------------------------------------------------------------


def add_boards(commands: Any) -> None:
    """The command boards."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "boards",
        help="the boards and what they can hold",
        description="Lists the boards, their machines, and which built-in networks train on them: "
        "milliseconds of a training step with one sample, by the cycle model, at the clock that "
        "the board's build aims for; or why a network does not fit.",
    )
    parser.add_argument("--board", metavar="B", default=None, help="only this one")
    parser.add_argument(
        "--models",
        metavar="NAMES",
        default=",".join(NETWORKS),
        help=f"networks, with commas between (default {','.join(NETWORKS)})",
    )
    parser.add_argument("--json", metavar="FILE", help="write the result there")
    parser.set_defaults(run=boards)


def _fit(graph: Graph, board: Board, config: Config) -> dict[str, Any]:
    """Whether a network trains on a machine, and how fast."""
    try:
        program = compile_graph(graph, config, 1)
    except PlanError as error:
        return {"fits": False, "cycles": None, "ms": None, "why": str(error)}
    cycles = model_cycles(program)
    ms = None if cycles is None else cycles / board.core_hz * 1e3
    return {"fits": True, "cycles": cycles, "ms": ms, "why": ""}


def boards(args: argparse.Namespace) -> int:
    """Run the command boards."""
    check_output(args.json)
    chosen = BOARDS if args.board is None else (find_board(args.board),)
    names = [name.strip() for name in args.models.split(",") if name.strip()]
    graphs = {name: machines.find_graph(name) for name in names}
    result: list[dict[str, Any]] = []
    for board in chosen:
        for array, config in board.machines.items():
            fits = {name: _fit(graph, board, config) for name, graph in graphs.items()}
            result.append(
                {
                    "board": board.name,
                    "title": board.title,
                    "fpga": board.fpga,
                    "array": array,
                    "default": array == board.array,
                    "clock_mhz": board.core_hz / 1e6,
                    "memory_bytes": config.memory_bytes,
                    "config_digest": f"{config.digest():#010x}",
                    "networks": fits,
                }
            )
    print_table(
        "boards: ms of a training step of one sample, or - where it does not fit",
        ("board", "FPGA", "array", "MHz", "memory", *names),
        [
            (
                row["board"],
                row["fpga"],
                row["array"],
                row["clock_mhz"],
                row["memory_bytes"],
                *(row["networks"][name]["ms"] for name in names),
            )
            for row in result
        ],
    )
    write_json(args.json, result)
    return 0


# --- build ---------------------------------------------------------------------------------------


def add_build(commands: Any) -> None:
    """The command build."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "build",
        help="the bitstream of a board",
        description="Synthesises the machine of a board with link and serial line, places and "
        "routes it, and packs the bitstream of the fastest seed. What was built before is found "
        "again. JSON: board, array, fmax_mhz (by seed), luts, dsps, brams, spram, bitstream, and "
        "clock_mhz, meets_timing, seconds, cached, config, config_digest. Exit status 1 where no "
        "seed meets the clock: there is no bitstream then.",
    )
    _add_board(parser)
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="placements to try (default 1)"
    )
    parser.add_argument(
        "--mhz", type=float, default=None, metavar="F", help="clock (default: the board's)"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write the bitstream there too (default: nowhere)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the result there")
    parser.set_defaults(run=build)


def build(args: argparse.Namespace) -> int:
    """Run the command build."""
    check_output(args.json, args.output)
    board = find_board(args.board)
    board.config(args.array)
    if args.mhz is not None and args.mhz <= 0:
        raise DataError(f"--mhz {args.mhz:g}; it must be positive")
    found: Any = _board_module("build").build(
        board, args.array, seeds=args.seeds, mhz=args.mhz, progress=note
    )
    write_json(args.json, found.to_dict())
    mean = sum(found.fmax_mhz) / len(found.fmax_mhz)
    print_table(
        f"{board.title}, {found.array} array",
        ("", "result"),
        [
            ("clock, MHz", found.clock_mhz),
            ("fastest, MHz", max(found.fmax_mhz)),
            ("mean of the seeds, MHz", mean),
            ("logic cells", f"{found.luts:,} of {board.luts:,}"),
            ("DSP", f"{found.dsps} of {board.dsps}"),
            ("block memories", f"{found.brams} of {board.brams}"),
            ("SPRAM", f"{found.spram} of {board.spram}"),
            ("configuration", found.config_digest),
            ("bitstream", found.bitstream or "none"),
        ],
    )
    if not found.meets_timing:
        note(
            f"gradiron: no seed reaches {found.clock_mhz:g} MHz; try more seeds, or "
            f"--mhz {max(found.fmax_mhz) * 0.98:.1f}"
        )
        return NOT_EQUAL
    if args.output is not None:
        write_file(args.output, Path(found.bitstream).read_bytes())
    return 0


# --- program -------------------------------------------------------------------------------------


def add_program(commands: Any) -> None:
    """The command program."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "program",
        help="load a bitstream into a board",
        description="Loads a bitstream with openFPGALoader or the board's own programmer; without "
        "a file, the one that gradiron build makes with the same options.",
    )
    _add_board(parser)
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="as of build")
    parser.add_argument("--mhz", type=float, default=None, metavar="F", help="as of build")
    parser.add_argument("--bitstream", metavar="FILE", help="load this file")
    parser.add_argument("--json", metavar="FILE", help="write command and bitstream there")
    parser.set_defaults(run=program)


def program(args: argparse.Namespace) -> int:
    """Run the command program."""
    check_output(args.json)
    board = find_board(args.board)
    module = _board_module("build")
    bitstream = args.bitstream
    if bitstream is None:
        found = module.build(board, args.array, seeds=args.seeds, mhz=args.mhz, progress=note)
        if found.bitstream is None:
            raise ToolError(
                f"no seed reaches {found.clock_mhz:g} MHz, so there is no bitstream; try more "
                f"seeds, or --mhz {max(found.fmax_mhz) * 0.98:.1f}"
            )
        bitstream = found.bitstream
    command = module.load(board, bitstream)
    write_json(args.json, {"board": board.name, "command": command, "bitstream": bitstream})
    print(f"loaded {bitstream}; open it with: serial:PORT@{board.baud}")
    return 0


# --- simulate-board ------------------------------------------------------------------------------


def add_simulate_board(commands: Any) -> None:
    """The command simulate-board."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "simulate-board",
        help="a simulated board that programs open as a serial port",
        description="Simulates a whole board cycle by cycle, the pins of its serial line included, "
        "and offers it as a pseudo-terminal, whose name is printed. Whatever drives a board at a "
        "serial port drives it: open it as serial:NAME. Ends with Ctrl-C. JSON: port, array, "
        "config, divisor, cycles, seconds; written when the port is ready, and again at the end.",
    )
    machines.add_machine(parser, board=True)
    parser.add_argument(
        "--divisor",
        type=int,
        default=None,
        metavar="N",
        help="clock cycles in a bit of the serial line (default 4, the fewest)",
    )
    parser.add_argument(
        "--seconds", type=float, default=None, metavar="S", help="end after so many seconds"
    )
    parser.add_argument("--json", metavar="FILE", help="write the result there")
    parser.set_defaults(run=simulate_board)


def add_c_driver(commands: Any) -> None:
    """The command c-driver."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "c-driver",
        help="a host driver in C, as source files",
        description="Writes the host driver in C99 into a folder: gradiron.c and gradiron.h, "
        "which need nothing but two functions to send and receive bytes, the two headers with the "
        "numbers of link and instruction set, and an example for POSIX. JSON: files.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="is made if there is none")
    parser.add_argument("--json", metavar="FILE", help="write the names of the files there")
    parser.set_defaults(run=c_driver)


def c_driver(args: argparse.Namespace) -> int:
    """Run the command c-driver."""
    check_output(args.json)
    folder = Path(args.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be made: {error.strerror}") from None
    names: list[str] = []
    for name, text in link_manual.driver().items():
        names.append(str(folder / name))
        write_file(names[-1], text)
        print(names[-1])
    write_json(args.json, {"files": names})
    return 0


def simulate_board(args: argparse.Namespace) -> int:
    """Run the command simulate-board."""
    check_output(args.json)
    if args.seconds is not None and args.seconds <= 0:
        raise DataError(f"--seconds {args.seconds:g}; it must be positive")
    board = simulation_module("board")
    config = machines.text_config(args.board, args.array)
    divisor = board.SIMULATED_DIVISOR if args.divisor is None else args.divisor
    line = board.simulated_board(config, divisor=divisor, progress=note)
    terminal = board.PseudoTerminal(line)
    begin = time.monotonic()

    def result() -> dict[str, object]:
        return {
            "port": terminal.path,
            "array": config.array,
            "config": config.to_dict(),
            "divisor": divisor,
            "cycles": line.cycles,
            "seconds": time.monotonic() - begin,
        }

    def stop(number: int, frame: FrameType | None) -> None:
        terminal.stop()

    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread()
    }
    try:
        write_json(args.json, result())
        print(f"serial:{terminal.path}", flush=True)
        note(f"{config.array} machine of {config.name or 'a simulated board'}; Ctrl-C ends it")
        terminal.serve(args.seconds)
        write_json(args.json, result())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        terminal.close()
    print(f"{line.cycles:,} cycles simulated", file=sys.stderr)
    line.close()
    return 0
