"""`gradiron bench`: cycles by the hardware's own counters.

A row has the keys name, pass, shape, array, macs, cycles, mac_per_cycle and utilisation; rows of
layers and steps also have `bytes` (that must at least be moved) and `stalls` (cycles by cause). The
shape of a product is MxNxK, where K is the length of the reduction.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradiron.arch.isa import REGISTERS, Decoded, decode
from gradiron.cli import machines
from gradiron.cli.breakdown import (
    BUSY,
    Key,
    counted,
    divide,
    print_breakdown,
    traffic,
    with_bytes,
)
from gradiron.cli.output import Row, check_output, note, print_table, write_json
from gradiron.cli.plots import plot_roofline
from gradiron.cli.training import write_step_trace_of
from gradiron.compiler import GEMM_ENTRY, ORDERS, Program
from gradiron.cycles import instruction_cycles, program_cycles
from gradiron.data import Dataset
from gradiron.device import Device
from gradiron.engines import CXXRTL, DEFAULT_ARRAY, PYSIM, open_engine
from gradiron.errors import DataError, MismatchError
from gradiron.golden import GoldenDevice
from gradiron.graph import TRAIN, Graph
from gradiron.networks import NETWORKS
from gradiron.operations import OPERATIONS, Layer, LossStep, Product
from gradiron.reals import PADDINGS, SAME
from gradiron.single import LayerProgram
from gradiron.train import Settings, Trainer, answers, default_settings, new_trainer

SIMULATORS = (CXXRTL, PYSIM)
COLUMNS = ("name", "pass", "shape", "array", "macs", "cycles", "mac_per_cycle", "utilisation")
SAMPLES_SEED = 1
MODEL = "model"
"""Instead of a simulator: the cycle model, which predicts what the simulators count."""
LAYERS = tuple(name for name, operation in OPERATIONS.items() if not operation.view)


def add_bench(commands: Any) -> None:
    """The command bench."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="cycles of products and training steps, speed of the simulation",
        description="Measures in simulation, by the counters of the hardware itself.",
    )
    kinds: Any = parser.add_subparsers(title="what", metavar="WHAT", required=True)
    product: argparse.ArgumentParser = kinds.add_parser(
        "gemm",
        help="one product of matrices",
        description="C[M, N] = A B. The result is compared with numpy's; cycles run from the start "
        "of the program to its last write.",
    )
    for size in ("m", "n", "k"):
        product.add_argument(f"--{size}", type=int, default=64, metavar="N", help="(default 64)")
    product.add_argument(
        "--order",
        choices=(*ORDERS, "all"),
        default="all",
        help="how A and B are stored: as they are (N) or transposed (T) (default: all three)",
    )
    _add_common(product)
    product.set_defaults(run=gemm)
    layer: argparse.ArgumentParser = kinds.add_parser(
        "layer",
        help="the passes of one layer",
        description="Forward, dX and dW (with the update), each a program of its own; results are "
        "compared with the golden model's. Cycles run from the start to the last write.",
    )
    layer.add_argument(
        "--operation", choices=LAYERS, default="conv", help="kind of layer (default conv)"
    )
    layer.add_argument(
        "--input", default="16x16x16", metavar="HxWxC", help="one sample (default 16x16x16)"
    )
    layer.add_argument("--units", type=int, metavar="N", help="output channels (default 32)")
    layer.add_argument("--kernel", default="3x3", metavar="KxK", help="(default 3x3)")
    layer.add_argument("--stride", default="1x1", metavar="SxS", help="(default 1x1)")
    layer.add_argument("--padding", choices=PADDINGS, default=SAME, help="(default same)")
    layer.add_argument("--batch", type=int, default=1, metavar="N", help="samples (default 1)")
    layer.add_argument("--roofline", metavar="FILE", help="write the roofline there, a .png")
    layer.add_argument(
        "--board", choices=machines.BOARDS, default="sim", help="the machine: sim, or a board's"
    )
    _add_common(layer, model=True)
    layer.set_defaults(run=bench_layer)
    step: argparse.ArgumentParser = kinds.add_parser(
        "step",
        help="one training step of a network",
        description="A row per layer and pass, and one named total with the whole program.",
    )
    step.add_argument("--model", default="mlp", metavar="M", help=f"{', '.join(NETWORKS)}, ...")
    step.add_argument("--batch", type=int, metavar="N", help="samples of a step")
    step.add_argument(
        "--board", choices=machines.BOARDS, default="sim", help="the machine: sim, or a board's"
    )
    step.add_argument("--trace", metavar="FILE", help="write the step there, for ui.perfetto.dev")
    step.add_argument("--roofline", metavar="FILE", help="write the roofline there, a .png")
    _add_common(step, model=True)
    step.set_defaults(run=bench_step)
    speed: argparse.ArgumentParser = kinds.add_parser(
        "speed",
        help="simulated cycles per second, cxxrtl against pysim",
        description="Runs training steps of the digits' network on the whole machine in both.",
    )
    speed.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="for each, at least (default 5)"
    )
    _add_common(speed, engine=False)
    speed.set_defaults(run=bench_speed)


def _add_common(
    parser: argparse.ArgumentParser, *, engine: bool = True, model: bool = False
) -> None:
    machines.add_machine(parser)
    if engine:
        choices = (*SIMULATORS, MODEL) if model else SIMULATORS
        predicted = "; model: predicted, without a simulation" if model else ""
        parser.add_argument(
            "--engine", choices=choices, default=CXXRTL, help=f"(default cxxrtl{predicted})"
        )
    parser.add_argument("--json", metavar="FILE", help="write a list of rows there")


def open_simulator(engine: str, program: Program, **options: Any) -> Device:
    """A simulated machine, with lines about its build."""
    if engine == CXXRTL:
        options["progress"] = note
    return open_engine(engine, program.config, **options)


def row(name: str, pass_: str, shape: str, program: Program, macs: int, cycles: int) -> Row:
    """A row of results."""
    rate = macs / cycles if cycles else 0.0
    return {
        "name": name,
        "pass": pass_,
        "shape": shape,
        "array": program.config.array,
        "macs": macs,
        "cycles": cycles,
        "mac_per_cycle": rate,
        "utilisation": rate / program.config.peak,
    }


def print_rows(title: str, rows: list[Row]) -> None:
    """Rows as a table."""
    columns = ("name", "pass", "shape", "array", "MACs", "cycles", "MAC/cycle", "of the peak")
    body = [
        [
            *(line[key] for key in COLUMNS[:6]),
            f"{line['mac_per_cycle']:.2f}",
            f"{line['utilisation']:.1%}",
        ]
        for line in rows
    ]
    print_table(title, columns, body)


# --- products ------------------------------------------------------------------------------------


def gemm(args: argparse.Namespace) -> int:
    """Run the command bench gemm."""
    check_output(args.json)
    orders = ORDERS if args.order == "all" else (args.order,)
    rows = gemm_rows(args.engine, args.array or DEFAULT_ARRAY, (args.m, args.n, args.k), orders)
    write_json(args.json, rows)
    print_rows(f"products on {args.engine}", rows)
    return 0


def gemm_rows(
    engine: str, array: str, size: tuple[int, int, int], orders: Sequence[str] = ORDERS
) -> list[Row]:
    """Rows of one product, M x K by K x N for the size (M, N, K), in several orders.

    Raises
    ------
    MismatchError
        Where a result is not numpy's.
    """
    m, n, k = size
    products = [machines.product_program(m, n, k, order, array) for order in orders]
    random = np.random.Generator(np.random.PCG64(SAMPLES_SEED))
    a = random.integers(-127, 128, (m, k)).astype(np.int8)
    b = random.integers(-127, 128, (k, n)).astype(np.int8)
    rows: list[Row] = []
    for product in products:
        with open_simulator(engine, product.program) as device:
            product.load(device, a, b)
            device.clear_counters()
            device.run(product.program.entry(GEMM_ENTRY))
            cycles = device.read_csr("CYCLES")
            if not np.array_equal(product.result(device), product.expected(a, b)):
                raise MismatchError(
                    f"the product {product.order} of {m} x {k} by {k} x {n} is not numpy's; this "
                    "is a fault of the hardware, please report it"
                )
            shape = f"{m}x{n}x{k}"
            rows.append(
                row(f"gemm {product.order}", "other", shape, product.program, product.macs, cycles)
            )
    return rows


# --- a training step -----------------------------------------------------------------------------


def samples(graph: Graph, batch: int) -> Dataset:
    """Samples for measurements: time does not depend on data."""
    random = np.random.Generator(np.random.PCG64(SAMPLES_SEED))
    x = random.integers(0, 128, (batch, graph.features)).astype(np.int8)
    labels = random.integers(0, graph.classes, batch)
    return Dataset("samples", x, labels, x, labels, graph.classes)


def _trainer(device: Device, program: Program, graph: Graph) -> tuple[Trainer, Dataset]:
    data = samples(graph, program.batch)
    settings = Settings(1, program.batch, 4)
    trainer = new_trainer(device, program, data, settings)
    trainer.set_rate(settings.rate)
    return trainer, data


def _shapes(program: Program) -> dict[tuple[str, str], str]:
    """MxNxK of every layer and pass."""
    found: dict[tuple[str, str], str] = {}
    for step in program.schedule.programs[TRAIN]:
        if isinstance(step, Product):
            m, k = step.pixels, step.taps
            if step.transposed:
                m, k = k, m
            found[step.layer, step.pass_.name.lower()] = f"{m}x{step.columns}x{k}"
        elif isinstance(step, LossStep):
            found[step.layer, "loss"] = f"{step.batch}x{step.classes}"
    return found


def step_rows(device: Device, program: Program, trainer: Trainer, data: Dataset) -> list[Row]:
    """Rows of one training step on a device that records."""
    assert device.retirements is not None
    device.clear_counters()
    machine: Any = device
    machine.forget()
    trainer.step(data.x_train, answers(trainer.graph, data)[0])
    counters = device.counters()
    cycles: dict[tuple[str, str], int] = {}
    for retired in device.retirements:
        origin = program.origins[retired.pc]
        key = (origin.layer, origin.pass_)
        cycles[key] = cycles.get(key, 0) + retired.last_cycle - retired.first_cycle + 1
    macs = _macs(program, TRAIN)
    shapes = _shapes(program)
    # Buffers are shared: the step has to get its samples again.
    trainer.write_batch(data.x_train, answers(trainer.graph, data)[0])
    by_key = counted(device, program, TRAIN)
    rows = [
        divide(
            row(*key, shapes.get(key, ""), program, macs[key], count),
            by_key[key],
            program.config.peak,
        )
        for key, count in cycles.items()
    ]
    return [*rows, _total(program, counters)]


def measure_step(engine: str, program: Program, trace: str | None = None) -> list[Row]:
    """Rows of one training step of a compiled network; its trace where one is wanted."""
    program.entry(TRAIN)
    assert program.graph is not None
    with open_simulator(engine, program, record=True, activity=trace is not None) as device:
        trainer, data = _trainer(device, program, program.graph)
        rows = step_rows(device, program, trainer, data)
        if trace is not None:
            write_step_trace_of(trace, device, program)
    return rows


def model_step(program: Program) -> list[Row]:
    """Rows of one training step as the cycle model predicts them."""
    cycles, busy, total = _predicted(program, TRAIN)
    macs = _macs(program, TRAIN)
    shapes = _shapes(program)
    rows = [
        divide(
            row(*key, shapes.get(key, ""), program, macs.get(key, 0), count),
            {BUSY: busy[key]},
            program.config.peak,
        )
        for key, count in cycles.items()
    ]
    counters = {"CYCLES": total, BUSY: sum(busy.values())}
    return [*rows, _total(program, counters)]


def _total(program: Program, counters: dict[str, int]) -> Row:
    cycles = counters["CYCLES"]
    found = row("total", "other", f"batch {program.batch}", program, program.macs(TRAIN), cycles)
    return {**divide(found, counters, program.config.peak), "counters": counters}


def _macs(program: Program, entry: str) -> dict[Key, int]:
    """Logical products by layer and pass."""
    macs: dict[Key, int] = {}
    for origin in program.origins.values():
        if origin.entry == entry:
            key = (origin.layer, origin.pass_)
            macs[key] = macs.get(key, 0) + origin.macs
    return macs


def _predicted(program: Program, entry: str) -> tuple[dict[Key, int], dict[Key, int], int]:
    """Cycles and busy cycles by layer and pass, and the cycles of the whole program."""
    config = program.config
    cycles: dict[Key, int] = {}
    busy: dict[Key, int] = {}
    registers = {register.name: register.reset for register in REGISTERS}
    for pc in range(program.entry(entry), len(program.words)):
        decoded = decode(program.words[pc], config)
        assert isinstance(decoded, Decoded)
        if decoded.register is not None:
            registers[decoded.register.name] = decoded.value
        taken, working = instruction_cycles(config, decoded, registers)
        origin = program.origins[pc]
        key = (origin.layer, origin.pass_)
        cycles[key] = cycles.get(key, 0) + taken
        busy[key] = busy.get(key, 0) + working
        if decoded.name == "HALT":
            break
    return cycles, busy, program_cycles(program.words, config, program.entry(entry)).total


def bench_step(args: argparse.Namespace) -> int:
    """Run the command bench step."""
    check_output(args.json, args.trace, args.roofline)
    graph = machines.find_graph(args.model)
    batch = default_settings(graph).batch if args.batch is None else args.batch
    program = machines.network_program(graph, batch, args.array, args.board)
    if args.engine == MODEL:
        if args.trace is not None:
            raise DataError("--trace needs a simulator, not the model")
        rows = model_step(program)
    else:
        rows = measure_step(args.engine, program, args.trace)
    rows = with_bytes(rows, traffic(program, TRAIN))
    write_json(args.json, rows)
    title = f"a training step of {graph.name} at batch {batch} on {args.engine}"
    print_rows(title, rows)
    print_breakdown("where the cycles go", rows)
    passes = pass_rows(program, rows)
    print_rows("the three passes", passes)
    if args.roofline is not None:
        plot_roofline(args.roofline, title, rows[:-1], program.config)
    return 0


def pass_rows(program: Program, rows: list[Row]) -> list[Row]:
    """Sums of a step's rows by pass."""
    found: list[Row] = []
    for pass_ in dict.fromkeys(line["pass"] for line in rows[:-1]):
        chosen = [line for line in rows[:-1] if line["pass"] == pass_]
        macs, cycles = (sum(line[key] for line in chosen) for key in ("macs", "cycles"))
        found.append(row("all layers", pass_, "", program, macs, cycles))
    return found


# --- one layer ------------------------------------------------------------------------------------


def _sizes(text: str, what: str, counts: Sequence[int]) -> tuple[int, ...]:
    """ "16x16x3" to numbers."""
    parts = text.lower().split("x")
    if len(parts) not in counts or not all(p.isascii() and p.isdigit() for p in parts):
        form = " or ".join("x".join("N" * count) for count in counts)
        raise DataError(
            f"{what} {text!r} is not {form}; for example {'x'.join(['3'] * counts[-1])}"
        )
    return tuple(int(part) for part in parts)


def _pair(text: str, what: str) -> tuple[int, int]:
    sizes = _sizes(text, what, (1, 2))
    return sizes[0], sizes[-1]


def bench_layer(args: argparse.Namespace) -> int:
    """Run the command bench layer."""
    check_output(args.json, args.roofline)
    shape = _sizes(args.input, "--input", (1, 3))
    operation = OPERATIONS[args.operation]
    units = 0
    if args.operation in ("conv", "dense"):
        units = 32 if args.units is None else args.units
    layer = Layer(
        args.operation,
        args.operation,
        ("input",),
        units,
        relu=operation.parameters is not None,
        kernel=_pair(args.kernel, "--kernel"),
        stride=_pair(args.stride, "--stride"),
        padding=args.padding,
    )
    found = machines.single_layer(layer, shape, args.batch, args.array, args.board)
    rows = layer_rows(args.engine, found)
    write_json(args.json, rows)
    title = f"{args.operation} of {args.input} at batch {args.batch} on {args.engine}"
    print_rows(title, rows)
    print_breakdown("where the cycles go", rows)
    if args.roofline is not None:
        plot_roofline(args.roofline, title, rows, found.program.config)
    return 0


def layer_rows(engine: str, found: LayerProgram) -> list[Row]:
    """Rows of the passes of a layer.

    Raises
    ------
    MismatchError
        Where a simulated result is not the golden model's.
    """
    program = found.program
    shapes = {
        pass_: f"{'x'.join(map(str, found.input_shape))} -> "
        f"{'x'.join(map(str, found.output_shape))} batch {found.batch}"
        for pass_ in program.entries
    }
    rows: list[Row] = []
    if engine == MODEL:
        for entry in program.entries:
            _, busy, total = _predicted(program, entry)
            line = row(found.layer.name, entry, shapes[entry], program, found.macs(entry), total)
            counters = {"CYCLES": total, BUSY: sum(busy.values())}
            rows.append({**divide(line, counters, program.config.peak), "counters": counters})
    else:
        with open_simulator(engine, program) as device, GoldenDevice(program.config) as golden:
            for each in (device, golden):
                found.fill(each)
            for entry in program.entries:
                device.clear_counters()
                for each in (device, golden):
                    each.run(program.entry(entry))
                _compare(found, entry, device, golden)
                counters = device.counters()
                cycles = counters["CYCLES"]
                line = row(
                    found.layer.name, entry, shapes[entry], program, found.macs(entry), cycles
                )
                rows.append({**divide(line, counters, program.config.peak), "counters": counters})
    moved = {
        key: count for entry in program.entries for key, count in traffic(program, entry).items()
    }
    return with_bytes(rows, moved)


def _compare(found: LayerProgram, entry: str, device: Device, golden: Device) -> None:
    for name, placement in found.program.plan.placements.items():
        if device.read_memory(placement.address, placement.tensor.bytes) != golden.read_memory(
            placement.address, placement.tensor.bytes
        ):
            raise MismatchError(
                f"{found.layer.name} {entry}: the tensor {name!r} is not the golden model's; this "
                "is a fault of the hardware, please report it"
            )


# --- speed of the simulation ---------------------------------------------------------------------


def bench_speed(args: argparse.Namespace) -> int:
    """Run the command bench speed."""
    check_output(args.json)
    if not args.seconds > 0:
        raise DataError(f"--seconds is {args.seconds}; it must be positive")
    rows = speed_rows(args.array, args.seconds)
    write_json(args.json, rows)
    columns = ("engine", "array", "cycles", "seconds", "cycles/s", "times pysim")
    print_table("speed of the simulation", columns, [list(line.values()) for line in rows])
    ratio = rows[0]["ratio"]
    print(f"cxxrtl simulates {ratio:,.0f} times as many cycles a second as pysim")
    return 0


def speed_rows(array: str | None, least: float) -> list[Row]:
    """Rows of the engines: cycles they simulate in at least so many seconds each."""
    graph = machines.find_graph("digits")
    program = machines.network_program(graph, 1, array)
    rows: list[Row] = []
    for engine in SIMULATORS:
        with open_simulator(engine, program) as device:
            machine: Any = device
            _trainer(device, program, graph)
            note(f"running {engine}")
            # The program alone: what the host does in between is not what is measured.
            cycles, seconds = 0, 0.0
            while seconds < least:
                device.start(program.entry(TRAIN))
                first, begun = machine.cycles, time.perf_counter()
                device.wait()
                seconds += time.perf_counter() - begun
                cycles += machine.cycles - first
        rows.append(
            {
                "name": engine,
                "array": program.config.array,
                "cycles": cycles,
                "seconds": seconds,
                "cycles_per_second": cycles / seconds,
            }
        )
    for line in rows:
        line["ratio"] = line["cycles_per_second"] / rows[-1]["cycles_per_second"]
    return rows
