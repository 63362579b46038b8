"""`gradiron demo` and `gradiron train`: a network learns, and is compared while it does."""

from __future__ import annotations

import argparse
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

from gradiron.cli import machines
from gradiron.cli.checking import Checker, Reference
from gradiron.cli.output import check_output, note, print_table, write_json
from gradiron.cli.planning import model_cycles
from gradiron.cli.plots import plot_accuracy
from gradiron.compiler import Program
from gradiron.data import DATASETS, Dataset, load
from gradiron.device import Device
from gradiron.engines import (
    CXXRTL,
    GOLDEN,
    engine_name,
    is_board,
    open_device,
    open_engine,
    simulation_module,
)
from gradiron.errors import DataError, MissingExtraError
from gradiron.float_twin import FloatTwin
from gradiron.graph import TRAIN, Graph
from gradiron.model import State, initial_state
from gradiron.networks import NETWORKS
from gradiron.progress import NoProgress, make_progress
from gradiron.train import (
    History,
    Recipe,
    Settings,
    Trainer,
    answers,
    default_settings,
    loss_unit,
    new_trainer,
    parse_rate,
    recipe,
    resume,
)

DEMO_MODEL, DEMO_DATASET = "digits", "digits"
DEMO_RECIPE = Recipe(16, 16, 2, (70, 85))
"""Enough to learn the digits as well as float32 does, in few cycles."""
DEMO_PLOT = "gradiron-demo-accuracy.png"
NOT_EQUAL = 1
"""Exit status where accelerator and golden model differ."""


# --- options -------------------------------------------------------------------------------------


def add_demo(commands: Any) -> None:
    """The command demo."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="train on handwritten digits, simulated cycle by cycle and compared bit by bit",
        description="Trains 64-32-10 on handwritten digits on the simulated accelerator, compares "
        "every bit with the golden model and the accuracy with float32, and writes a plot.",
    )
    _add_common(parser, engine=CXXRTL)
    parser.set_defaults(run=demo)


def add_train(commands: Any) -> None:
    """The command train."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "train",
        help="train a network on a data set",
        description="Trains a network. After every epoch its state is kept in a file, from which "
        "an interrupted run goes on to the same bits.",
        epilog="Result (--json): accuracy, accuracy_float32 (of a squared error instead: error, "
        "error_float32), bit_exact (null where not compared), "
        "mismatches, steps, cycles (of all steps; on the golden model by the cycle model), "
        "weights_sha256, engine, seconds, and more.",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="M",
        help=f"{', '.join(NETWORKS)}, NAME:CLASSES (like ds-cnn:35), mlp:SIZES (like "
        "mlp:64-32-10), or a .json file",
    )
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="D",
        help=f"{', '.join(DATASETS)}, a .npz file, or a folder of wav files",
    )
    parser.add_argument("--data", metavar="DIR", help="folder with the data sets")
    _add_common(parser, engine=GOLDEN)
    parser.add_argument("--batch", type=int, metavar="N", help="samples of a step")
    parser.add_argument(
        "--lr", metavar="RATE", help="learning rate, a power of two: 0.125, 1/8 or 2^-3"
    )
    parser.add_argument(
        "--halve-at",
        type=int,
        nargs="*",
        metavar="E",
        help="halve the learning rate after so many epochs; without a number never "
        "(default: towards the end)",
    )
    parser.add_argument("--train-samples", type=int, metavar="N", help="take the first N only")
    parser.add_argument("--test-samples", type=int, metavar="N", help="take the first N only")
    parser.add_argument(
        "--validation",
        type=int,
        metavar="N",
        help="hold back N of the training samples and measure with these instead of the test "
        "samples: for the choice of settings",
    )
    parser.add_argument(
        "--check", action="store_true", help="compare with the golden model while training"
    )
    parser.add_argument("--checkpoint", metavar="FILE", help="where the state is kept")
    parser.add_argument("--resume", metavar="FILE", help="go on where this file stands")
    parser.add_argument(
        "--momentum",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="momentum of 7/8 in all layers (default: where it suits the network)",
    )
    parser.add_argument(
        "--int8-weights", action="store_true", help="no low byte of the weights: half the memory"
    )
    parser.add_argument(
        "--no-float32", action="store_true", help="leave out the comparison with float32"
    )
    parser.set_defaults(run=train)


def _engine(text: str) -> str:
    try:
        return engine_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_common(parser: argparse.ArgumentParser, *, engine: str) -> None:
    machines.add_machine(parser)
    parser.add_argument(
        "--engine",
        type=_engine,
        default=engine,
        metavar="ENGINE",
        help=f"what trains: golden, cxxrtl, pysim, or a board at serial:PORT (default {engine})",
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the data")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of weights, order and rounding"
    )
    parser.add_argument("--json", metavar="FILE", help="write the result there")
    parser.add_argument("--plot", metavar="FILE", help="write a plot of the accuracy there")
    parser.add_argument(
        "--trace", metavar="FILE", help="write one training step there, for ui.perfetto.dev"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")


# --- runs ----------------------------------------------------------------------------------------


@dataclass
class Run:
    """What is to be done."""

    graph: Graph
    data: Dataset
    settings: Settings
    program: Program
    engine: str
    check: bool
    checkpoint: str | None = None
    resume: str | None = None
    float32: bool = True
    quiet: bool = False

    def trainer(self, device: Device) -> Trainer:
        """A trainer at the run's beginning, or where the file to go on from stands."""
        if self.resume is None:
            return new_trainer(device, self.program, self.data, self.settings)
        return resume(self.resume, device, self.program, self.data, self.settings)

    def golden(self) -> Trainer:
        """The same trainer on the golden model."""
        return self.trainer(open_engine(GOLDEN, self.program.config))

    def beginning(self) -> State:
        """The state at the very beginning."""
        d = self.data
        return initial_state(
            self.graph,
            self.settings.seed,
            d.x_train,
            answers(self.graph, d)[0],
            input_exponent=d.exponent,
            target_exponent=d.target_exponent,
        )

    def twin(self) -> History:
        """The same training in float32, from the same weights."""
        d = self.data
        twin = FloatTwin(
            self.graph,
            self.beginning().parameters,
            input_exponent=d.exponent,
            target_exponent=d.target_exponent,
        )
        return twin.fit(d, self.settings, progress=NoProgress())


@dataclass
class Outcome:
    """What came of it."""

    history: History
    twin: History | None
    accuracy: float
    error: float
    weights_sha256: str
    mismatches: list[str] | None
    seconds: float
    build_seconds: float
    training_seconds: float
    build_cached: bool | None
    saturation: dict[str, float]


def open_for(run: Run, **options: Any) -> Device:
    """The device of a run, with lines about its build."""
    if is_board(run.engine):
        return open_device(run.engine, config=run.program.config)
    if run.engine == CXXRTL and not run.quiet:
        options["progress"] = note
    return open_engine(run.engine, run.program.config, **options)


def execute(run: Run) -> Outcome:
    """Train, in step with the golden model where that is wanted.

    Raises
    ------
    GradironError
    KeyboardInterrupt
    """
    begun = time.monotonic()
    progress = make_progress(quiet=run.quiet)
    checker: Checker | None = None
    if run.check:
        # It begins while the simulation is being built.
        checker = Checker(Reference(run.golden, run.data, run.settings), progress)
        checker.reference.start()
    try:
        twin = run.twin() if run.float32 else None
        opening = time.monotonic()
        with open_for(run) as device:
            built = time.monotonic() - opening
            trainer = run.trainer(device)
            if checker is not None:
                checker.trainer = trainer
            history = trainer.fit(
                run.data,
                run.settings,
                progress=checker or progress,
                checkpoint=run.checkpoint,
                on_step=None if checker is None else checker.on_step,
            )
            if checker is not None:
                checker.compare_all()
            accuracy, error = history.accuracy, history.error
            weights = trainer.weights_sha256()
            saturation = history.epochs[-1].saturation if history.epochs else {}
            build: Any = getattr(device, "build", None)
    finally:
        if checker is not None:
            checker.reference.stop()
    return Outcome(
        history,
        twin,
        accuracy,
        error,
        weights,
        None if checker is None else checker.mismatches,
        time.monotonic() - begun,
        built,
        max(1e-9, history.seconds - (0 if checker is None else checker.reference.waited)),
        None if build is None else bool(build.cached),
        saturation,
    )


def result_of(run: Run, outcome: Outcome) -> dict[str, Any]:
    """The machine-readable result."""
    history, settings = outcome.history, run.settings
    scale = loss_unit(run.graph) * settings.batch
    macs = run.program.macs(TRAIN) * history.steps
    # The cycle model tells what the hardware would count.
    cycles = history.cycles or history.steps * (model_cycles(run.program) or 0)
    simulated = bool(history.cycles)
    checked = outcome.mismatches is not None
    twin = outcome.twin
    return {
        "accuracy": _number(outcome.accuracy),
        "accuracy_float32": None if twin is None else _number(twin.accuracy),
        "bit_exact": not outcome.mismatches if checked else None,
        "mismatches": len(outcome.mismatches or []) if checked else None,
        "steps": history.steps,
        "cycles": cycles,
        "weights_sha256": outcome.weights_sha256,
        "engine": run.engine,
        "seconds": round(outcome.seconds, 3),
        "model": run.graph.name,
        "dataset": run.data.name,
        "array": run.program.config.array,
        "config": run.program.config.to_dict(),
        "seed": settings.seed,
        "epochs": len(history.epochs),
        "batch": settings.batch,
        "lr": 2.0**-settings.rate,
        "halve_at": list(settings.halvings),
        "train_samples": len(run.data.y_train),
        "test_samples": len(run.data.y_test),
        "build_seconds": round(outcome.build_seconds, 3),
        "build_cached": outcome.build_cached,
        "training_seconds": round(outcome.training_seconds, 3),
        "cycles_per_second": cycles / outcome.training_seconds if simulated else None,
        "mac_per_cycle": macs / cycles if cycles else None,
        "first_mismatch": outcome.mismatches[0] if outcome.mismatches else None,
        "note": history.epochs[-1].note if history.epochs else "",
        "loss": [round(loss / scale, 4) for loss in history.losses],
        "accuracies": [_number(record.accuracy) for record in history.epochs],
        "accuracies_float32": None if twin is None else [_number(r.accuracy) for r in twin.epochs],
        "momentum": any(layer.momentum for layer in run.graph.layers),
        "error": _number(outcome.error),
        "error_float32": None if twin is None else _number(twin.error),
        "errors": [_number(record.error) for record in history.epochs],
    }


def _number(value: float) -> float | None:
    """A number for JSON, which has none for what was not measured."""
    return None if isnan(value) else value


def show(run: Run, result: dict[str, Any]) -> None:
    """The same for people."""
    rows: list[tuple[str, object]] = [
        ("network", str(run.graph)),
        ("machine", f"{result['array']} array, {run.engine}"),
    ]
    if result["accuracy"] is not None:
        rows.append(("test accuracy", f"{result['accuracy']:.2%}"))
    if result["error"] is not None:
        rows.append(("mean squared error", f"{result['error']:.5g}"))
    if result["error_float32"] is not None:
        rows.append(("the same in float32", f"{result['error_float32']:.5g}"))
    if result["accuracy_float32"] is not None:
        gap = 100 * (result["accuracy"] - result["accuracy_float32"])
        rows.append(
            ("the same in float32", f"{result['accuracy_float32']:.2%} ({gap:+.2f} points)")
        )
    if result["bit_exact"] is not None:
        equal = f"NO: {result['mismatches']} differences" if result["mismatches"] else "yes"
        rows.append(("equal to the golden model, bit by bit", equal))
    rows.append(("training steps", f"{result['steps']:,} of {result['batch']} samples"))
    if result["cycles"]:
        each = result["cycles"] / max(1, result["steps"])
        share = result["mac_per_cycle"] / run.program.config.peak
        rows += [
            ("cycles", f"{result['cycles']:,} ({each:,.0f} a step)"),
            ("MAC per cycle", f"{result['mac_per_cycle']:.2f} ({share:.1%} of the peak)"),
        ]
    if result["cycles_per_second"]:
        rows.append(("simulated cycles per second", f"{result['cycles_per_second']:,.0f}"))
    if result["build_cached"] is not None:
        how = "found built" if result["build_cached"] else "built"
        rows.append(("simulation", f"{how} in {result['build_seconds']:.1f} s"))
    rows += [
        ("seconds in all", f"{result['seconds']:.1f}"),
        ("weights (SHA-256)", result["weights_sha256"]),
    ]
    print_table(f"{run.graph.name} on {run.data.name}", ("", "result"), rows)
    if result["first_mismatch"]:
        print(f"first difference: {result['first_mismatch']}")
    if result["note"]:
        print(f"warning: {result['note']}")


def write_step_trace(path: str, run: Run) -> None:
    """One training step, from the beginning's weights, as a trace."""
    with open_for(run, record=True, activity=True) as device:
        machine: Any = device
        trainer = new_trainer(device, run.program, run.data, run.settings)
        trainer.set_rate(run.settings.rate)
        device.clear_counters()
        machine.forget()
        batch = run.settings.batch
        trainer.step(run.data.x_train[:batch], answers(run.graph, run.data)[0][:batch])
        write_step_trace_of(path, device, run.program)


def write_step_trace_of(path: str, device: Device, program: Program) -> None:
    """What a device recorded of one training step, as a trace."""
    names = {pc: f"{o.layer} {o.pass_}" for pc, o in program.origins.items()}
    simulation_module("trace").write_trace(path, device, labels=names)
    note(f"trace of one step: {path} (open it in ui.perfetto.dev)")


def _finish(args: argparse.Namespace, run: Run, plot: str | None, *, needed: bool) -> int:
    outcome = execute(run)
    result = result_of(run, outcome)
    if plot is not None:
        runs = {f"{run.program.config.array}, int8": outcome.history}
        if outcome.twin is not None:
            runs["float32"] = outcome.twin
        try:
            plot_accuracy(plot, f"{run.graph} on {run.data.name}", runs)
            result["plot"] = plot
        except MissingExtraError as error:
            if needed:
                raise
            note(f"no plot: {error}")
    if args.trace is not None:
        write_step_trace(args.trace, run)
    write_json(args.json, result)
    show(run, result)
    if "plot" in result:
        print(f"plot: {result['plot']}")
    return NOT_EQUAL if result["bit_exact"] is False else 0


def _check_options(args: argparse.Namespace) -> None:
    check_output(args.json, args.plot, args.trace)
    if args.trace is not None and (args.engine == GOLDEN or is_board(args.engine)):
        raise DataError(
            "--trace shows what the units of the hardware do, which neither the golden model nor a "
            "board tells; take --engine cxxrtl"
        )


def demo(args: argparse.Namespace) -> int:
    """Run the command demo."""
    _check_options(args)
    graph = machines.find_graph(DEMO_MODEL)
    data = load(DEMO_DATASET)
    _check_positive(args, "epochs")
    settings = DEMO_RECIPE.settings(epochs=args.epochs, seed=args.seed)
    program = machines.network_program(graph, settings.batch, args.array, engine=args.engine)
    run = Run(graph, data, settings, program, args.engine, check=True, quiet=args.quiet)
    return _finish(args, run, args.plot or DEMO_PLOT, needed=args.plot is not None)


def train(args: argparse.Namespace) -> int:
    """Run the command train."""
    _check_options(args)
    checkpoint = args.checkpoint or args.resume or _checkpoint_name(args)
    check_output(checkpoint)
    graph = machines.find_graph(args.model)
    settings = _settings(graph, args)
    if args.data is not None and not Path(args.data).is_dir():
        raise DataError(
            f"the data folder {args.data} does not exist; name the folder that holds the data sets"
        )
    layers = graph.trainable()
    # Momentum needs 16-bit masters.
    suits = recipe(graph).momentum and not args.int8_weights
    if suits if args.momentum is None else args.momentum:
        graph = graph.with_options(momentum=layers)
    if args.int8_weights:
        graph = graph.with_options(int8_weights=layers)
    data = load(args.dataset, args.data).limited(args.train_samples, args.test_samples)
    if args.validation is not None:
        data = data.validation(args.validation)
    program = machines.network_program(graph, settings.batch, args.array, engine=args.engine)
    run = Run(
        graph,
        data,
        settings,
        program,
        args.engine,
        args.check,
        checkpoint,
        args.resume,
        not args.no_float32,
        args.quiet,
    )
    before = _content(checkpoint)
    try:
        return _finish(args, run, args.plot, needed=True)
    except KeyboardInterrupt:
        if _content(checkpoint) == before and args.resume is None:
            note("\ninterrupted in the first epoch; nothing is kept")
        else:
            again = shlex.join(_again(args.command_line, checkpoint))
            note(
                f"\ninterrupted; the state after the last finished epoch is kept in {checkpoint}, "
                f"go on with\n  gradiron {again}"
            )
        raise


def _check_positive(args: argparse.Namespace, *names: str) -> None:
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise DataError(f"--{name} is {value}; it must be at least 1")


def _settings(graph: Graph, args: argparse.Namespace) -> Settings:
    rate = None if args.lr is None else parse_rate(args.lr)
    _check_positive(args, "epochs", "batch")
    found = default_settings(graph, epochs=args.epochs, batch=args.batch, rate=rate, seed=args.seed)
    if args.halve_at is None:
        return found
    return Settings(found.epochs, found.batch, found.rate, tuple(args.halve_at), found.seed)


def _checkpoint_name(args: argparse.Namespace) -> str:
    name = f"{Path(args.model).stem}-{Path(args.dataset).stem}-seed{args.seed}"
    return f"gradiron-{re.sub('[^A-Za-z0-9_-]+', '-', name)}.checkpoint"


def _content(path: str) -> tuple[int, int] | None:
    """What tells an old file from a new one."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _again(command_line: Sequence[str], checkpoint: str) -> list[str]:
    """The same command, going on from a file."""
    kept: list[str] = []
    skip = False
    for word in command_line:
        if skip:
            skip = False
        elif word in ("--resume", "--checkpoint"):
            skip = True
        elif not word.startswith(("--resume=", "--checkpoint=")):
            kept.append(word)
    return [*kept, "--resume", checkpoint]
