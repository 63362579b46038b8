"""`gradiron plan`: the memory map and the cycles of a network before anything runs."""

from __future__ import annotations

import argparse
import dataclasses
from importlib import import_module
from typing import Any

from gradiron.cli import machines
from gradiron.cli.output import check_output, print_table, write_json
from gradiron.compiler import Program
from gradiron.graph import TRAIN
from gradiron.networks import NETWORKS
from gradiron.train import default_settings

DEFAULT_CLOCK = 24.0


def add_plan(commands: Any) -> None:
    """The command plan."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "plan",
        help="memory map and cycles of a network on a machine",
        description="Places every tensor of a network's programs, and counts the cycles of a "
        "training step by the cycle model.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help=f"{', '.join(NETWORKS)}, mlp:SIZES, or a .json file"
    )
    machines.add_machine(parser, board=True)
    parser.add_argument("--batch", type=int, metavar="N", help="samples of a step")
    parser.add_argument(
        "--clock",
        type=float,
        default=DEFAULT_CLOCK,
        metavar="MHZ",
        help=f"clock for the milliseconds (default {DEFAULT_CLOCK:g} MHz)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the result there")
    parser.set_defaults(run=plan)


def model_cycles(program: Program, entry: str = TRAIN) -> int | None:
    """Cycles of one run by the cycle model; None where there is none."""
    count: Any = getattr(import_module("gradiron.cycles"), "program_cycles", None)
    if count is None or entry not in program.entries:
        return None
    return int(count(program.words, program.config, program.entry(entry)).total)


def plan(args: argparse.Namespace) -> int:
    """Run the command plan."""
    check_output(args.json)
    graph = machines.find_graph(args.model)
    batch = default_settings(graph).batch if args.batch is None else args.batch
    program = machines.network_program(graph, batch, args.array, args.board)
    found = program.plan
    cycles = model_cycles(program)
    macs = program.macs(TRAIN) if TRAIN in program.entries else 0
    milliseconds = None if cycles is None else cycles / (1e3 * args.clock)
    regions = [dataclasses.asdict(use) for use in found.regions()]
    tensors = found.table()
    result: dict[str, Any] = {
        "model": graph.name,
        "board": args.board,
        "array": program.config.array,
        "batch": batch,
        "config": program.config.to_dict(),
        "bytes": found.used,
        "bytes_available": program.config.memory_bytes,
        "bytes_by_kind": found.bytes_by_kind(),
        "program_words": len(program.words),
        "macs": macs,
        "cycles": cycles,
        "mac_per_cycle": None if not cycles else macs / cycles,
        "clock_mhz": args.clock,
        "milliseconds": milliseconds,
        "regions": regions,
        "tensors": tensors,
    }
    write_json(args.json, result)
    print_table(
        f"{graph} at batch {batch} on {args.board}, {program.config.array}",
        ("tensor", "kind", "region", "offset", "bytes", "first use", "last use", "in place of"),
        [list(row.values()) for row in tensors],
    )
    print_table(
        "regions (bytes)",
        ("region", "size", "tensors", "shared", "used", "gaps", "free"),
        [list(row.values()) for row in regions],
    )
    print(f"memory: {found.used:,} bytes of {program.config.memory_bytes:,}")
    print(f"program: {len(program.words):,} words of {program.config.program_words:,}")
    print(f"products of a training step: {macs:,}")
    if cycles and milliseconds is not None:
        print(
            f"cycles of a training step: {cycles:,} ({macs / cycles:.2f} MAC per cycle, "
            f"{macs / cycles / program.config.peak:.1%} of the peak), {milliseconds:.2f} ms at "
            f"{args.clock:g} MHz"
        )
    return 0
