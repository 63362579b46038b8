"""`gradiron simulate-board` and `c-driver`: a board in simulation, and a driver without Python."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from gradiron import link_manual
from gradiron.cli import machines
from gradiron.cli.output import check_output, note, write_file, write_json
from gradiron.engines import simulation_module
from gradiron.errors import DataError


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
