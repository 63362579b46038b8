"""The command `gradiron`: every command has --json FILE, clear errors, and exit statuses.

0: done; 1: a comparison failed; 2: a bad input or a missing tool, with one message; 130: Ctrl-C.
The simulation is imported by the commands that simulate, and only when they do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from gradiron.cli import bench, boards, planning, programs, report, training
from gradiron.errors import GradironError

BAD_INPUT = 2
INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="gradiron", description="Train neural networks in int8 on a small accelerator."
    )
    top.add_argument("--debug", action="store_true", help="show where an error comes from")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    training.add_demo(commands)
    training.add_train(commands)
    bench.add_bench(commands)
    report.add_report(commands)
    planning.add_plan(commands)
    boards.add_boards(commands)
    boards.add_build(commands)
    boards.add_program(commands)
    boards.add_simulate_board(commands)
    boards.add_c_driver(commands)
    programs.add_asm(commands)
    programs.add_disasm(commands)
    programs.add_isa(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status.

    Parameters
    ----------
    arguments : sequence of str or None
        Without the name of the command; those of the process if not given.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(words)
    args.command_line = words
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except GradironError as error:
        if args.debug:
            raise
        print(f"gradiron: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        if args.debug:
            raise
        return INTERRUPTED
