"""`gradiron plan`: the memory map and the cycles of a network before anything runs."""

from __future__ import annotations

import argparse
import dataclasses
from importlib import import_module
from typing import Any

from gradiron.arch.boards import BOARD_BY_NAME
from gradiron.arch.config import MAX_REGIONS, Config, simulation_config
from gradiron.cli import machines
from gradiron.cli.output import check_output, print_table, write_json
from gradiron.cli.plots import plot_map
from gradiron.compiler import Program, lower, step_costs
from gradiron.engines import DEFAULT_ARRAY
from gradiron.errors import ConfigError, ModelError
from gradiron.graph import TRAIN, Graph
from gradiron.networks import NETWORKS
from gradiron.planner import HARMLESS, MEASURES, Choice, Plan, choose, step_name
from gradiron.train import default_settings

DEFAULT_CLOCK = 24.0
UNITS = {"": 1, "B": 1, "K": 1 << 10, "KB": 1 << 10, "M": 1 << 20, "MB": 1 << 20}
DEFAULT_REGIONS = 2
"""Regions into which a simulated machine's memory is divided where only its size is given."""


def add_plan(commands: Any) -> None:
    """The command plan."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "plan",
        help="memory map and cycles of a network on a machine",
        description="Places every tensor of a network's programs, and counts the cycles of a "
        "training step by the cycle model. Where the memory is too small, it takes the mildest of "
        "the measures that --allow names, and says which and what that costs.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help=f"{', '.join(NETWORKS)}, mlp:SIZES, or a .json file"
    )
    machines.add_machine(parser, board=True)
    parser.add_argument("--batch", type=int, metavar="N", help="samples of a step")
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="plan for this much data memory: 128K (divided equally), or by regions, 64K+32K+32K",
    )
    parser.add_argument(
        "--allow",
        metavar="MEASURES",
        default=",".join(HARMLESS),
        help="what may be done to make it fit, with commas between: "
        + "; ".join(f"{name} ({text})" for name, text in MEASURES.items())
        + f"; or none. Default {', '.join(HARMLESS)}",
    )
    parser.add_argument(
        "--freeze", metavar="LAYERS", default="", help="leave these layers alone, with commas"
    )
    parser.add_argument(
        "--update",
        metavar="LAYERS",
        default="",
        help="update these layers only, with commas; conv2:0-15 for some output channels only",
    )
    parser.add_argument(
        "--int8", metavar="LAYERS", default="", help="int8-only weights in these layers"
    )
    parser.add_argument(
        "--clock",
        type=float,
        default=None,
        metavar="MHZ",
        help=f"clock for the milliseconds (default: the board's, else {DEFAULT_CLOCK:g} MHz)",
    )
    parser.add_argument("--plot", metavar="FILE", help="write a picture of the map over time there")
    parser.add_argument("--json", metavar="FILE", help="write the result there")
    parser.set_defaults(run=plan)


def model_cycles(program: Program, entry: str = TRAIN) -> int | None:
    """Cycles of one run by the cycle model; None where there is none."""
    count: Any = getattr(import_module("gradiron.cycles"), "program_cycles", None)
    if count is None or entry not in program.entries:
        return None
    return int(count(program.words, program.config, program.entry(entry)).total)


# --- what is asked for ---------------------------------------------------------------------------


def parse_size(text: str) -> int:
    """Bytes: "1000", "64K", "1M".

    Raises
    ------
    ConfigError
        For any other text.
    """
    given = text.strip().upper()
    digits = given.rstrip("KMB")
    unit = given[len(digits) :]
    if not digits.isascii() or not digits.isdigit() or unit not in UNITS:
        raise ConfigError(f"{text!r} is not a size of memory; write 131072, 128K or 1M")
    return int(digits) * UNITS[unit]


def parse_memory(text: str, count: int) -> tuple[int, ...]:
    """Sizes of regions: "128K" divided into `count`, or one by one, "64K+64K".

    Raises
    ------
    ConfigError
        For other texts, or more regions than there may be.
    """
    sizes = [parse_size(part) for part in text.split("+")]
    if len(sizes) == 1:
        if sizes[0] % count:
            raise ConfigError(
                f"{sizes[0]} bytes cannot be divided equally into {count} regions; "
                "name the regions, as in 64K+64K"
            )
        sizes = [sizes[0] // count] * count
    if len(sizes) > MAX_REGIONS:
        raise ConfigError(f"{len(sizes)} regions; there must be 1 to {MAX_REGIONS}")
    return tuple(sizes)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def parse_update(text: str) -> dict[str, tuple[tuple[int, int], ...]]:
    """Layers, and ranges (first, number) of output channels where only some are meant.

    "conv2:0-15+32-47,dense" is {"conv2": ((0, 16), (32, 16)), "dense": ()}.

    Raises
    ------
    ModelError
        For ranges that are none.
    """
    found: dict[str, tuple[tuple[int, int], ...]] = {}
    for part in _names(text):
        name, colon, given = part.partition(":")
        ranges: list[tuple[int, int]] = []
        for piece in given.split("+") if colon else ():
            first, _, last = piece.partition("-")
            if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
                raise ModelError(
                    f"{part!r}: channels are ranges, as in conv2:0-15 or conv2:0-7+16-23"
                )
            ranges.append((int(first), int(last) - int(first) + 1))
        found[name] = tuple(ranges)
    return found


def _wanted(args: argparse.Namespace) -> Graph:
    """The network, with the layers as the options have them."""
    graph = machines.find_graph(args.model)
    frozen = set(_names(args.freeze)) | {x.name for x in graph.layers if x.frozen}
    update = parse_update(args.update)
    for name in (*frozen, *update, *_names(args.int8)):
        if name not in graph.parameters:
            raise ModelError(
                f"{graph.layer(name).name!r} has no weights; layers that have some: "
                f"{', '.join(graph.parameters)}"
            )
    if update:
        frozen = frozen.difference(update).union(set(graph.parameters) - set(update))
        columns = {x.name: x.columns for x in graph.layers if x.columns}
        graph = graph.with_options(columns=columns | {n: r for n, r in update.items() if r})
    int8 = {x.name for x in graph.layers if x.int8_weights} | set(_names(args.int8))
    return graph.with_options(frozen=frozen, int8_weights=int8)


def _machine(args: argparse.Namespace) -> Config | None:
    """The machine to plan for; None for a simulated one with as much memory as it takes."""
    if args.board == "sim":
        if args.memory is None:
            return None
        regions = parse_memory(args.memory, DEFAULT_REGIONS)
        config = simulation_config(args.array or DEFAULT_ARRAY, regions=regions)
        return config.replace(program_words=machines.MOST_PROGRAM_WORDS)
    config = machines.board_config(args.board, args.array)
    if config is not None and args.memory is not None:
        config = config.replace(regions=parse_memory(args.memory, len(config.regions)))
    return config


def _clock(args: argparse.Namespace) -> float:
    """MHz for the milliseconds: as given, or what the board's builds aim for."""
    if args.clock is None:
        board = BOARD_BY_NAME.get(args.board)
        return DEFAULT_CLOCK if board is None else board.core_hz / 1e6
    if args.clock <= 0:
        raise ConfigError(f"--clock {args.clock:g}; give a positive number of MHz")
    return args.clock


# --- the command ---------------------------------------------------------------------------------


def _steps(found: Plan) -> list[dict[str, Any]]:
    """A row per step of the training program: bytes that are needed, and cycles."""
    if TRAIN not in found.schedule.programs:
        return []
    cost = step_costs(found.schedule, found.config)
    regions = {name: p.region for name, p in found.placements.items()}
    live = found.live(TRAIN)
    return [
        {
            "step": index,
            "name": step_name(step),
            "live_bytes": live[index],
            "cycles": cost(step, regions),
        }
        for index, step in enumerate(found.schedule.programs[TRAIN])
    ]


def plan(args: argparse.Namespace) -> int:
    """Run the command plan."""
    check_output(args.json, args.plot)
    args.clock = _clock(args)
    graph = _wanted(args)
    batch = default_settings(graph).batch if args.batch is None else args.batch
    allow = () if args.allow == "none" else _names(args.allow)
    config = _machine(args)
    if config is None:
        config = machines.fitted_config(graph, batch, args.array or DEFAULT_ARRAY)
    choice = choose(graph, config, batch, allow=allow, costs=step_costs)
    program = lower(choice.plan, choice.graph)
    if args.board == "sim":
        words = machines.program_words(program)
        found = dataclasses.replace(choice.plan, config=config.replace(program_words=words))
        choice = dataclasses.replace(choice, plan=found)
        program = lower(found, choice.graph)
    _report(args, choice, program)
    return 0


def _report(args: argparse.Namespace, choice: Choice, program: Program) -> None:
    found, graph, batch = choice.plan, choice.graph, choice.batch
    cycles = model_cycles(program)
    macs = program.macs(TRAIN) if TRAIN in program.entries else 0
    milliseconds = None if cycles is None else cycles / (1e3 * args.clock)
    regions = [dataclasses.asdict(use) for use in found.regions()]
    tensors, steps = found.table(), _steps(found)
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
        "choice": {
            "text": choice.text,
            "measures": list(choice.measures),
            "recomputed": list(found.recomputed),
            "costs": list(choice.lines),
        },
        "regions": regions,
        "tensors": tensors,
        "steps": steps,
    }
    write_json(args.json, result)
    title = f"{graph} at batch {batch} on {args.board}, {program.config.array}"
    if args.plot is not None:
        where = f"{graph.name} at batch {batch} on {args.board}, {program.config.array}"
        plot_map(args.plot, where, found)
    print_table(
        title,
        ("tensor", "kind", "region", "offset", "bytes", "first use", "last use", "in place of"),
        [list(row.values()) for row in tensors],
    )
    if steps:
        print_table(
            "over time (bytes needed in each step, cycles without the SETs)",
            ("step", "name", "bytes", "cycles"),
            [list(row.values()) for row in steps],
        )
    print_table(
        "regions (bytes)",
        ("region", "size", "tensors", "shared", "used", "gaps", "free"),
        [list(row.values()) for row in regions],
    )
    print(f"memory: {found.used:,} bytes of {program.config.memory_bytes:,}")
    if choice.text:
        print(f"chosen to make it fit: {choice.text}")
    for line in choice.lines:
        print(line)
    print(f"program: {len(program.words):,} words of {program.config.program_words:,}")
    print(f"products of a training step: {macs:,}")
    if cycles and milliseconds is not None:
        print(
            f"cycles of a training step: {cycles:,} ({macs / cycles:.2f} MAC per cycle, "
            f"{macs / cycles / program.config.peak:.1%} of the peak), {milliseconds:.2f} ms at "
            f"{args.clock:g} MHz"
        )
