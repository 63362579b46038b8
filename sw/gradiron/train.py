"""Training on any device: the host pushes samples and labels, runs the program, reads the loss.

`Trainer` does the same on the golden model, a simulated machine and a board. Between epochs, not
within, the host reads the state back, measures the accuracy with the inference program, and may
change the learning rate. Runs are a function of network, data and settings alone.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, frexp, isfinite, log2, nan
from typing import Any

import numpy as np
import numpy.typing as npt

from gradiron.arch.isa import RATE_MAX, RATE_MIN, MachineState
from gradiron.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from gradiron.compiler import Program
from gradiron.data import Dataset, batches, check_inputs, check_labels
from gradiron.device import Device
from gradiron.errors import DataError, MachineError
from gradiron.graph import INFER, INPUT, TRAIN, Graph
from gradiron.model import Parameters, State, initial_state, read_state, write_state
from gradiron.operations import LABELS, PREDICTIONS
from gradiron.progress import EpochRecord, NoProgress, Progress

LOSS_UNIT = 256
"""LOSS counts in 2**-8 bits."""
COUNTER_MASK = 0xFFFFFFFF
SATURATION_LIMIT = 0.05
"""Share of saturated elements above which a run is called diverging."""


# --- settings ------------------------------------------------------------------------------------


def parse_rate(text: str | float) -> int:
    """A learning rate to k, where it is 2**-k: "0.125", "1/8" or "2^-3" give 3.

    Raises
    ------
    DataError
        For anything else; of other values it names the neighbours.
    """
    try:
        if isinstance(text, str) and text.startswith("2^"):
            value = 2.0 ** int(text[2:])
        elif isinstance(text, str) and "/" in text:
            above, _, below = text.partition("/")
            value = float(above) / float(below)
        else:
            value = float(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        value = nan
    if not 0 < value < float("inf"):
        raise DataError(
            f"learning rate {text!r} is not a positive number; give a power of two: 0.125, 1/8, "
            "2^-3"
        )
    if frexp(value)[0] != 0.5:
        low, high = floor(log2(value)), ceil(log2(value))
        raise DataError(
            f"learning rate {text} is not a power of two; its neighbours are {2.0**low:g} "
            f"(2^{low}) and {2.0**high:g} (2^{high})"
        )
    k = 1 - frexp(value)[1]
    if not RATE_MIN <= k <= RATE_MAX:
        raise DataError(
            f"learning rate {text} is out of range; it must be from 2^{-RATE_MAX} to 2^{-RATE_MIN}"
        )
    return k


@dataclass(frozen=True)
class Settings:
    """How to train.

    Parameters
    ----------
    epochs : int
    batch : int
    rate : int
        k of the learning rate 2**-k at the beginning.
    halvings : tuple of int
        Epochs, from 0, at whose beginning the learning rate is halved.
    seed : int
        Of weights, order of the samples and stochastic rounding; 0 to 2**32 - 1.
    """

    epochs: int
    batch: int
    rate: int
    halvings: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for what, value, low, high in (
            ("epochs", self.epochs, 1, 1 << 20),
            ("batch", self.batch, 1, 32768),
            ("rate", self.rate, RATE_MIN, RATE_MAX),
            ("seed", self.seed, 0, COUNTER_MASK),
        ):
            if not low <= value <= high:
                raise DataError(f"{what} is {value}; it must be from {low} to {high}")

    def rate_at(self, epoch: int) -> int:
        """k in an epoch, from 0."""
        return min(RATE_MAX, self.rate + sum(halving <= epoch for halving in self.halvings))


def default_settings(
    graph: Graph,
    *,
    epochs: int | None = None,
    batch: int | None = None,
    rate: int | None = None,
    seed: int = 0,
) -> Settings:
    """Settings that suit a network; what is given is kept.

    The learning rate follows the batch (2**-3 at 32, 2**-5 at 4, 2**-6 at 1), higher for the small
    network of the digits, and is halved where 50, 70 and 90 (small: 70 and 85) percent are done.
    """
    small = sum(shape.count for shape in graph.parameters.values()) < 8192
    batch = batch or (8 if small else 32)
    epochs = epochs or (24 if small else 10)
    if rate is None:
        log2_batch = batch.bit_length() - 1
        rate = max(2, 6 - (3 * log2_batch + 2) // 5) - (1 if small and batch < 32 else 0)
    parts = (70, 85) if small else (50, 70, 90)
    halvings = tuple(sorted({epochs * part // 100 for part in parts} - {0}))
    return Settings(epochs, batch, rate, halvings, seed)


# --- history -------------------------------------------------------------------------------------


@dataclass
class History:
    """A run so far.

    Attributes
    ----------
    losses : list of int
        LOSS of every step: summed over the batch, in units of 2**-8 bits.
    epochs : list of EpochRecord
    """

    losses: list[int] = field(default_factory=list[int])
    epochs: list[EpochRecord] = field(default_factory=list[EpochRecord])

    @property
    def steps(self) -> int:
        """Steps done."""
        return len(self.losses)

    @property
    def accuracy(self) -> float:
        """Accuracy after the last epoch."""
        return self.epochs[-1].accuracy if self.epochs else nan

    @property
    def cycles(self) -> int:
        """Cycles of all training steps."""
        return sum(record.cycles for record in self.epochs)

    @property
    def seconds(self) -> float:
        """Seconds of all training steps."""
        return sum(record.seconds for record in self.epochs)

    @property
    def diverged(self) -> bool:
        """Whether the last epoch was diverging."""
        return bool(self.epochs and self.epochs[-1].note)


def compare_histories(first: History, second: History) -> list[str]:
    """What differs between two runs that must be equal: losses by step, states by epoch."""
    found: list[str] = []
    if first.steps != second.steps:
        found.append(f"{first.steps} steps in one run and {second.steps} in the other")
    for step, (one, other) in enumerate(zip(first.losses, second.losses, strict=False)):
        if one != other:
            found.append(f"the loss of step {step} is {one} in one run and {other} in the other")
    for one, other in zip(first.epochs, second.epochs, strict=False):
        if one.state_sha256 != other.state_sha256:
            found.append(f"the states after epoch {one.epoch + 1} differ")
        if one.accuracy != other.accuracy:
            found.append(
                f"the accuracies after epoch {one.epoch + 1} are {one.accuracy} and "
                f"{other.accuracy}"
            )
    return found


def diagnose(record: EpochRecord, classes: int, losses: Sequence[float]) -> str:
    """What is wrong with an epoch, in words: "" where nothing is.

    Parameters
    ----------
    record : EpochRecord
    classes : int
    losses : sequence of float
        Of the epoch's steps, in bits per sample.
    """
    problems: list[str] = []
    guess = log2(classes)
    quarter = max(1, len(losses) // 4)
    begin, end = float(np.mean(losses[:quarter])), float(np.mean(losses[-quarter:]))
    if not isfinite(end):
        problems.append("the loss is no longer a number")
    elif end > 2 * guess:
        problems.append(f"the loss of {end:.2f} bits is far worse than guessing ({guess:.2f})")
    elif end > 0.98 * guess and (record.epoch > 0 or end >= begin):
        problems.append(f"the loss of {end:.2f} bits is no better than guessing ({guess:.2f})")
    problems += [
        f"{share:.1%} of {name} saturate"
        for name, share in record.saturation.items()
        if share > SATURATION_LIMIT
    ]
    if not problems:
        return ""
    return f"diverging: {'; '.join(problems)}; try another learning rate"


# --- trainer -------------------------------------------------------------------------------------


class Trainer:
    """Trains a network on a device.

    Parameters
    ----------
    device : Device
    program : Program
        Compiled for the device's configuration.
    state : State
        Where to begin: `initial_state`, or that of a checkpoint.
    seed : int
        Of stochastic rounding.

    Members
    -------
    history : History

    Raises
    ------
    DataError
        Where program and device, or program and state, do not belong together.
    """

    def __init__(self, device: Device, program: Program, state: State, *, seed: int = 0) -> None:
        if program.graph is None:
            raise DataError("the program is no network's; compile it with compile_graph")
        if program.config != device.config:
            raise DataError(
                f"the program was compiled for another machine ({program.config.to_dict()}) than "
                f"the device is ({device.config.to_dict()}); compile it for this one"
            )
        self.device = device
        self.program = program
        self.graph: Graph = program.graph
        self.history = History()
        self._seed = seed
        plan = program.plan
        self._input = plan.address(INPUT)
        self._pitch = plan.placements[INPUT].tensor.pitch
        self._predictions = plan.address(PREDICTIONS)
        self._train = program.entries.get(TRAIN)
        self._infer = program.entry(INFER)
        self._labels = plan.address(LABELS) if self._train is not None else 0
        if device.status().state not in (MachineState.IDLE, MachineState.HALTED):
            device.reset()  # an earlier run was interrupted, or failed
        device.write_program(program.words)
        self.load(state)

    @property
    def batch(self) -> int:
        """Samples of a step."""
        return self.program.batch

    # --- state ---------------------------------------------------------------------------------

    def load(self, state: State) -> None:
        """Put a state, and the seed, into the device; saturation counts begin at zero."""
        self.device.write_csr("SEED", self._seed)
        write_state(self.device, self.program, state)
        for index in self.program.schedule.exponents.values():
            self.device.write_saturations(index, 0)

    def state(self) -> State:
        """The state as the device holds it."""
        return read_state(self.device, self.program)

    def parameters(self) -> Parameters:
        """Weights and biases as the device holds them."""
        return self.state().parameters

    def state_hash(self) -> str:
        """Digest of the whole state: parameters, momentum, exponents, trackers, step."""
        return self.state().sha256()

    def weights_sha256(self) -> str:
        """Digest of masters, biases and weight exponents."""
        return self.state().weights_sha256()

    def saturations(self) -> dict[str, int]:
        """Saturated elements by tensor, since the state was loaded."""
        entries = self.program.schedule.exponents
        return {name: self.device.saturations(index) for name, index in entries.items()}

    # --- running -------------------------------------------------------------------------------

    def set_rate(self, rate: int) -> None:
        """Set the learning rate to 2**-rate."""
        self.device.write_csr("RATE", rate)

    def step(self, x: npt.NDArray[Any], labels: npt.NDArray[Any]) -> int:
        """One training step.

        Parameters
        ----------
        x : (batch, ...) int8 array
        labels : (batch,) array of int

        Returns
        -------
        int
            The loss, summed over the batch, in units of 2**-8 bits.

        Raises
        ------
        DataError
            For inputs or labels of the wrong type, shape or range.
        MachineError
            Where the machine stops in its error state.
        """
        flat = check_inputs(x, self.graph.features)
        y = check_labels(labels, self.graph.classes, len(flat))
        if len(flat) != self.batch:
            raise DataError(f"{len(flat)} samples; the program takes {self.batch} at a time")
        return self._step(flat, y)

    def _step(self, x: npt.NDArray[np.int8], labels: npt.NDArray[np.int64]) -> int:
        entry = self.program.entry(TRAIN) if self._train is None else self._train
        self.device.write_memory(self._input, self._rows(x))
        self.device.write_memory(self._labels, labels.astype(np.uint8))
        self._run(entry)
        return self.device.read_csr("LOSS")

    def _run(self, entry: int) -> None:
        try:
            self.device.run(entry)
        except MachineError as error:
            where = self.program.explain(error.pc)
            raise MachineError(error.cause, error.pc, where) from error

    def _rows(self, x: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
        """Samples at the pitch that the plan gives them."""
        if x.shape[1] == self._pitch:
            return np.ascontiguousarray(x)
        rows = np.zeros((len(x), self._pitch), np.int8)
        rows[:, : x.shape[1]] = x
        return rows

    def predict(self, x: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Classes of any number of samples; trackers stay as they are.

        Parameters
        ----------
        x : (N, ...) int8 array
        """
        flat = check_inputs(x, self.graph.features)
        found = np.empty(len(flat), np.int64)
        for start in range(0, len(flat), self.batch):
            part = flat[start : start + self.batch]
            count = len(part)
            if count < self.batch:
                part = np.pad(part, ((0, self.batch - count), (0, 0)))
            self.device.write_memory(self._input, self._rows(part))
            self._run(self._infer)
            data = self.device.read_memory(self._predictions, count)
            found[start : start + count] = np.frombuffer(data, np.uint8)
        return found

    def evaluate(self, x: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
        """Share of samples whose class is predicted right."""
        y = check_labels(labels, self.graph.classes, len(x))
        return int(np.count_nonzero(self.predict(x) == y)) / len(y)

    # --- whole runs ----------------------------------------------------------------------------

    def fit(
        self,
        data: Dataset,
        settings: Settings,
        *,
        progress: Progress | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        on_step: Callable[[int, int], None] | None = None,
        max_steps: int | None = None,
    ) -> History:
        """Train for the epochs of the settings that `history` does not have yet.

        Parameters
        ----------
        data : Dataset
        settings : Settings
        progress : Progress or None
        checkpoint : path or None
            Written after every epoch.
        on_step : callable (step, loss) or None
            Called after every step, with the number of steps so far and the LOSS.
        max_steps : int or None
            Steps per epoch at most.

        Returns
        -------
        History

        Raises
        ------
        DataError
            Where data, settings and network do not fit each other.
        """
        x, y = self._check(data, settings)
        steps = len(x) // self.batch
        steps = steps if max_steps is None else min(steps, max_steps)
        progress = progress or NoProgress()
        first = len(self.history.epochs)
        progress.begin(str(self.graph), settings.epochs, steps, first)
        try:
            for epoch in range(first, settings.epochs):
                record = self._epoch(epoch, x, y, settings, steps, progress, on_step)
                record.accuracy = self.evaluate(data.x_test, data.y_test)
                scale = LOSS_UNIT * self.batch
                losses = [loss / scale for loss in self.history.losses[-record.steps :]]
                record.note = diagnose(record, self.graph.classes, losses)
                state = self.state()
                record.state_sha256 = state.sha256()
                self.history.epochs.append(record)
                if checkpoint is not None:
                    run = run_key(data, settings, steps)
                    save_checkpoint(
                        checkpoint,
                        Checkpoint(
                            self.graph, state, run, self.history.losses, self.history.epochs
                        ),
                    )
                progress.epoch(record)
        finally:
            progress.end()
        return self.history

    def _check(
        self, data: Dataset, settings: Settings
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int64]]:
        if settings.batch != self.batch:
            raise DataError(
                f"the settings have batch {settings.batch}, the program was compiled for "
                f"{self.batch}"
            )
        if settings.seed != self._seed:
            raise DataError(
                f"the settings have seed {settings.seed}, the trainer was made with {self._seed}"
            )
        self.program.entry(TRAIN)
        x = check_inputs(data.x_train, self.graph.features, f"{data.name}: inputs")
        y = check_labels(data.y_train, self.graph.classes, len(x), f"{data.name}: labels")
        if len(x) < self.batch:
            raise DataError(f"{data.name} has {len(x)} training samples; a batch is {self.batch}")
        return x, y

    def _epoch(
        self,
        epoch: int,
        x: npt.NDArray[np.int8],
        y: npt.NDArray[np.int64],
        settings: Settings,
        steps: int,
        progress: Progress,
        on_step: Callable[[int, int], None] | None,
    ) -> EpochRecord:
        rate = settings.rate_at(epoch)
        self.set_rate(rate)
        saturated = self.saturations()
        cycles = self.device.read_csr("CYCLES")
        begun = time.monotonic()
        losses: list[int] = []
        for index, chosen in enumerate(batches(len(x), self.batch, settings.seed, epoch)):
            if index == steps:
                break
            loss = self._step(x[chosen], y[chosen])
            losses.append(loss)
            progress.step(epoch, index, loss / LOSS_UNIT / self.batch)
            if on_step is not None:
                on_step(self.history.steps + len(losses), loss)
        # A step counts once its epoch is whole: an interruption leaves the history as it was.
        self.history.losses += losses
        return EpochRecord(
            epoch,
            len(losses),
            rate,
            float(np.mean(losses)) / LOSS_UNIT / self.batch,
            nan,
            self._saturation(saturated, len(losses)),
            (self.device.read_csr("CYCLES") - cycles) & COUNTER_MASK,
            time.monotonic() - begun,
        )

    def _saturation(self, before: dict[str, int], steps: int) -> dict[str, float]:
        """Share of saturated elements since the counts `before`."""
        sizes: dict[str, int] = {}
        for tensor in self.program.schedule.tensors.values():
            if tensor.exponent:
                size = int(np.prod(tensor.shape))
                sizes[tensor.exponent] = max(sizes.get(tensor.exponent, 0), size)
        return {
            name: (count - before[name]) / (sizes[name] * steps)
            for name, count in self.saturations().items()
            if count != before[name]
        }


def run_key(data: Dataset, settings: Settings, steps: int) -> dict[str, Any]:
    """What two parts of one run must share; the number of epochs may grow."""
    key = dataclasses.asdict(settings)
    del key["epochs"]
    return {**key, "halvings": list(settings.halvings), "steps": steps, "data": data.digest()}


def resume(
    path: str | os.PathLike[str],
    device: Device,
    program: Program,
    data: Dataset,
    settings: Settings,
    *,
    max_steps: int | None = None,
) -> Trainer:
    """A trainer that goes on where a checkpoint stands, to the same bits.

    Raises
    ------
    DataError
        Where the checkpoint is missing, damaged, or of another run.
    """
    found = load_checkpoint(path)
    if found.graph != program.graph:
        raise DataError(
            f"the checkpoint {path} is of {found.graph}, this run of {program.graph}, or their "
            "options differ; use the same network"
        )
    steps = len(data.x_train) // settings.batch
    steps = steps if max_steps is None else min(steps, max_steps)
    wanted = run_key(data, settings, steps)
    differing = [
        f"{key} ({found.run.get(key)} then, {value} now)"
        for key, value in wanted.items()
        if found.run.get(key) != value
    ]
    if differing:
        raise DataError(
            f"the checkpoint {path} is of another run: {', '.join(differing)}; use the same "
            "settings and data, or start anew"
        )
    trainer = Trainer(device, program, found.state, seed=settings.seed)
    trainer.history = History(found.losses, found.records)
    return trainer


def new_trainer(device: Device, program: Program, data: Dataset, settings: Settings) -> Trainer:
    """A trainer at the beginning of a run: weights from the seed, exponents from the data."""
    assert program.graph is not None
    state = initial_state(
        program.graph,
        settings.seed,
        check_inputs(data.x_train, program.graph.features, f"{data.name}: inputs"),
        check_labels(data.y_train, program.graph.classes, None, f"{data.name}: labels"),
        input_exponent=data.exponent,
    )
    return Trainer(device, program, state, seed=settings.seed)
