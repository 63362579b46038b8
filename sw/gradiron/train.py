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
from typing import Any, TypeAlias

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
from gradiron.operations import LABELS, LOSSES, PREDICTIONS, TARGET
from gradiron.progress import EpochRecord, NoProgress, Progress

Answers: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.int8]
"""What outputs are compared with: (N,) labels, or (N, size) int8 targets of a squared error."""

LOSS_UNIT = 256
"""LOSS counts in 2**-8 bits."""
SQUARED_UNIT = 1 << 16
"""Halves of squared errors are kept in a history in units of 2**-16."""
MOST_LOSS = (1 << 62) - 1
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


@dataclass(frozen=True)
class Recipe:
    """Settings that suit a network; chosen on held-back training samples, never by test accuracy.

    Parameters
    ----------
    epochs : int
    batch : int
    rate : int
        k of the learning rate 2**-k at that batch.
    halvings : tuple of int
        The learning rate is halved where so many percent of the epochs are done.
    momentum : bool
    """

    epochs: int
    batch: int
    rate: int
    halvings: tuple[int, ...]
    momentum: bool = False

    def settings(
        self,
        *,
        epochs: int | None = None,
        batch: int | None = None,
        rate: int | None = None,
        seed: int = 0,
    ) -> Settings:
        """Settings; what is given is kept, and the learning rate follows the batch."""
        epochs, batch = epochs or self.epochs, batch or self.batch
        if rate is None:
            rate = max(0, self.rate + _usual_rate(batch) - _usual_rate(self.batch))
        halvings = tuple(sorted({epochs * part // 100 for part in self.halvings} - {0}))
        return Settings(epochs, batch, rate, halvings, seed)


def _usual_rate(batch: int) -> int:
    """How the learning rate follows the batch: 2**-6 at 1, 2**-5 at 4, 2**-3 at 32."""
    return max(2, 6 - (3 * (batch.bit_length() - 1) + 2) // 5)


SMALL = 8192
"""Weights below which a network is trained as the one of the digits is."""
DENSE_RECIPE = Recipe(10, 32, 3, (50, 70, 90))
SMALL_RECIPE = Recipe(24, 8, 2, (50, 70, 90))
IMAGE_RECIPE = Recipe(5, 32, 4, (40, 60, 80), momentum=True)
SOUND_RECIPE = Recipe(20, 32, 4, (50, 70, 90), momentum=True)
VALUES_RECIPE = Recipe(20, 8, 11, (50, 70, 90))
"""For dense, small dense and convolutional networks, for sounds, and for squared errors."""
RECIPES = {"ds-residual": Recipe(5, 32, 3, (60, 80)), "ds-cnn": SOUND_RECIPE}
"""Of built-in networks that are not trained as others of their kind."""


def recipe(graph: Graph) -> Recipe:
    """What suits a network: its own recipe, or that of its kind."""
    if not LOSSES[graph.loss].labels:
        return VALUES_RECIPE
    if any(len(shape.weight) > 2 for shape in graph.parameters.values()):
        return RECIPES.get(graph.name.partition(":")[0], IMAGE_RECIPE)
    small = sum(shape.count for shape in graph.parameters.values()) < SMALL
    return SMALL_RECIPE if small else DENSE_RECIPE


def default_settings(
    graph: Graph,
    *,
    epochs: int | None = None,
    batch: int | None = None,
    rate: int | None = None,
    seed: int = 0,
) -> Settings:
    """Settings that suit a network; what is given is kept.

    The learning rate follows the batch and is halved towards the end; see `recipe`.
    """
    return recipe(graph).settings(epochs=epochs, batch=batch, rate=rate, seed=seed)


# --- what outputs are compared with ---------------------------------------------------------------


def loss_unit(graph: Graph) -> int:
    """Units of a history's losses in a bit, or in half a squared error."""
    return LOSS_UNIT if LOSSES[graph.loss].labels else SQUARED_UNIT


def answers(graph: Graph, data: Dataset) -> tuple[Answers, Answers]:
    """What a network's outputs are compared with in training and in testing.

    Raises
    ------
    DataError
        Where the data set has no labels, or no targets, or others than the network needs.
    """
    if LOSSES[graph.loss].labels:
        if data.classes < 2:
            raise DataError(
                f"{data.name} has no labels (or one class alone), and {graph.name!r} learns "
                "classes; give labels, or a network that learns by squared error"
            )
        if data.classes > graph.classes:
            raise DataError(
                f"{data.name} has labels up to {data.classes - 1} and the network {graph.name!r} "
                f"{graph.classes} outputs; take one with {data.classes} (of built-in networks "
                f"NAME:{data.classes}, of mlp:SIZES the last size), or other labels"
            )
        found: list[tuple[npt.NDArray[Any] | None, int]] = [
            (data.y_train, len(data.x_train)),
            (data.y_test, len(data.x_test)),
        ]
    elif graph.target == INPUT:
        found = [(data.x_train, len(data.x_train)), (data.x_test, len(data.x_test))]
    else:
        found = [(data.t_train, len(data.x_train)), (data.t_test, len(data.x_test))]
    checked: list[Answers] = []
    for part, (array, count) in zip(("training", "test"), found, strict=True):
        if array is None:
            raise DataError(
                f"{data.name} has no targets, and {graph.name!r} learns values; give int8 arrays "
                "t_train and t_test"
            )
        checked.append(check_answers(graph, array, count, f"{data.name}: {part} "))
    return checked[0], checked[1]


def check_answers(graph: Graph, y: npt.NDArray[Any], count: int, what: str = "") -> Answers:
    """Labels, or targets, as a network's loss takes them.

    Raises
    ------
    DataError
        For another type, shape or value.
    """
    if LOSSES[graph.loss].labels:
        return check_labels(y, graph.classes, count, f"{what}labels")
    found = check_inputs(y, graph.classes, f"{what}targets")
    if len(found) != count:
        raise DataError(f"{what}targets are {len(found)}, for {count} samples")
    return found


def score(graph: Graph, record: EpochRecord, result: float) -> None:
    """Enter what an evaluation gave: an accuracy, or a mean squared error."""
    if LOSSES[graph.loss].labels:
        record.accuracy = result
    else:
        record.error = result


# --- history -------------------------------------------------------------------------------------


@dataclass
class History:
    """A run so far.

    Attributes
    ----------
    losses : list of int
        LOSS of every step: summed over the batch, in units of 2**-8 bits; of a squared error half
        of the sum of all squares, in units of 2**-16.
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
    def error(self) -> float:
        """Mean squared error after the last epoch."""
        return self.epochs[-1].error if self.epochs else nan

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
        if str(one.error) != str(other.error):  # unlike itself, the text of nan is equal to itself
            found.append(
                f"the squared errors after epoch {one.epoch + 1} are {one.error} and {other.error}"
            )
        if str(one.accuracy) != str(other.accuracy):
            found.append(
                f"the accuracies after epoch {one.epoch + 1} are {one.accuracy} and "
                f"{other.accuracy}"
            )
    return found


def diagnose(record: EpochRecord, graph: Graph, losses: Sequence[float]) -> str:
    """What is wrong with an epoch, in words: "" where nothing is.

    Parameters
    ----------
    record : EpochRecord
    graph : Graph
    losses : sequence of float
        Of the epoch's steps, per sample.
    """
    quarter = max(1, len(losses) // 4)
    begin, end = float(np.mean(losses[:quarter])), float(np.mean(losses[-quarter:]))
    problems: list[str] = []
    if not isfinite(end):
        problems.append("the loss is no longer a number")
    elif LOSSES[graph.loss].labels:
        problems += _against_guessing(record.epoch, graph.classes, begin, end)
    elif end > 2 * begin:
        problems.append(f"the loss has risen from {begin:.4g} to {end:.4g}")
    problems += [
        f"{share:.1%} of {name} saturate"
        for name, share in record.saturation.items()
        if share > SATURATION_LIMIT
    ]
    if not problems:
        return ""
    return f"diverging: {'; '.join(problems)}; try another learning rate"


def _against_guessing(epoch: int, classes: int, begin: float, end: float) -> list[str]:
    guess = log2(classes)
    if end > 2 * guess:
        return [f"the loss of {end:.2f} bits is far worse than guessing ({guess:.2f})"]
    if end > 0.98 * guess and (epoch > 0 or end >= begin):
        return [f"the loss of {end:.2f} bits is no better than guessing ({guess:.2f})"]
    return []


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
        self._rule = LOSSES[self.graph.loss]
        self._train = program.entries.get(TRAIN)
        self._infer = program.entry(INFER)
        self._unit = loss_unit(self.graph)
        entries = program.schedule.exponents
        last = self.graph.layers[-1].name
        self._output = entries[f"{last}.output"]
        self._gradient = entries[f"{last}.gradient"]
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

    def step(self, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> int:
        """One training step.

        Parameters
        ----------
        x : (batch, ...) int8 array
        y : (batch,) array of int, or (batch, ...) int8 array
            Labels, or targets of a squared error.

        Returns
        -------
        int
            The loss, summed over the batch, in the units of `History.losses`.

        Raises
        ------
        DataError
            For arrays of the wrong type, shape or range.
        MachineError
            Where the machine stops in its error state.
        """
        return self._step(*self._checked(x, y))

    def write_batch(self, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
        """All that the host writes before a step, as `step` takes it; the program is not run."""
        self._write(*self._checked(x, y))

    def _checked(self, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> tuple[Any, Answers]:
        flat = check_inputs(x, self.graph.features)
        found = check_answers(self.graph, y, len(flat))
        if len(flat) != self.batch:
            raise DataError(f"{len(flat)} samples; the program takes {self.batch} at a time")
        return flat, found

    def _write(self, x: npt.NDArray[np.int8], y: Answers) -> None:
        self._put(INPUT, x)
        if self._rule.labels:
            address = self.program.plan.address(LABELS)
            self.device.write_memory(address, y.astype(np.uint8))
        elif self.graph.target != INPUT:
            self._put(TARGET, y)

    def _step(self, x: npt.NDArray[np.int8], y: Answers) -> int:
        entry = self.program.entry(TRAIN) if self._train is None else self._train
        self._write(x, y)
        self._run(entry)
        loss = self.device.read_csr("LOSS")
        if self._rule.labels:
            return loss
        # Squares of the int8 gradient, to halves of squares in a fixed unit.
        exponent = 2 * self.device.read_exponent(self._gradient)[0] - 1
        shift = exponent + self._unit.bit_length() - 1
        return min(loss << shift, MOST_LOSS) if shift >= 0 else loss >> -shift

    def _run(self, entry: int) -> None:
        try:
            self.device.run(entry)
        except MachineError as error:
            where = self.program.explain(error.pc)
            raise MachineError(error.cause, error.pc, where) from error

    def _put(self, name: str, values: npt.NDArray[Any]) -> None:
        """Write a batch of int8 values where a tensor lies, its rows at the pitch they have."""
        placement = self.program.plan.placements[name]
        tensor = placement.tensor
        rows = np.ascontiguousarray(values, np.int8).reshape(tensor.shape)
        if tensor.pitch > rows.shape[-1]:
            after = tensor.pitch - tensor.lead - rows.shape[-1]
            rows = np.pad(rows, ((0, 0), (tensor.lead, after)))
        self.device.write_memory(placement.address, rows)

    def _get(self, name: str, kind: str) -> npt.NDArray[Any]:
        """Read a tensor: (batch, ...)."""
        placement = self.program.plan.placements[name]
        tensor = placement.tensor
        data = np.frombuffer(self.device.read_memory(placement.address, tensor.bytes), kind)
        rows = data.reshape(tensor.shape[0], -1)
        return rows[:, : tensor.shape[-1]].reshape(self.batch, -1)

    def _inferred(self, x: npt.NDArray[Any], tensor: str, kind: str) -> npt.NDArray[Any]:
        """What inference leaves in a tensor, for any number of samples; trackers stay."""
        flat = check_inputs(x, self.graph.features)
        found: list[npt.NDArray[Any]] = []
        for start in range(0, len(flat), self.batch):
            part = flat[start : start + self.batch]
            count = len(part)
            if count < self.batch:
                part = np.pad(part, ((0, self.batch - count), (0, 0)))
            self._put(INPUT, part)
            self._run(self._infer)
            found.append(self._get(tensor, kind)[:count])
        return np.concatenate(found)

    def predict(self, x: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Classes of any number of samples; trackers stay as they are.

        Parameters
        ----------
        x : (N, ...) int8 array

        Raises
        ------
        DataError
            For wrong inputs, and for a network that learns values instead of classes.
        """
        if not self._rule.labels:
            raise DataError(f"{self.graph.name!r} gives values, no classes; call infer")
        return self._inferred(x, PREDICTIONS, "u1")[:, 0].astype(np.int64)

    def infer(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Values that a network with a squared error gives for any number of samples.

        Parameters
        ----------
        x : (N, ...) int8 array

        Raises
        ------
        DataError
            For wrong inputs, and for a network that learns classes.
        """
        if self._rule.labels:
            raise DataError(f"{self.graph.name!r} gives classes, no values; call predict")
        name = f"{self.graph.layers[-1].name}.output"
        values = self._inferred(x, name, "i1").astype(np.float32)
        # The exponent is that of the tracker, which inference leaves alone.
        return np.ldexp(values, self.device.read_exponent(self._output)[0])

    def evaluate(self, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
        """Share of samples whose class is right; of a squared error its mean over all values."""
        found = check_answers(self.graph, y, len(x))
        if self._rule.labels:
            return int(np.count_nonzero(self.predict(x) == found)) / len(found)
        target = np.ldexp(found.astype(np.float32), self._target_exponent())
        return float(np.mean((self.infer(x) - target) ** 2, dtype=np.float64))

    def _target_exponent(self) -> int:
        return self.device.read_exponent(self.program.schedule.exponents[self.graph.target])[0]

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
        x, y, tests = self._check(data, settings)
        steps = len(x) // self.batch
        steps = steps if max_steps is None else min(steps, max_steps)
        progress = progress or NoProgress()
        first = len(self.history.epochs)
        progress.begin(str(self.graph), settings.epochs, steps, first)
        try:
            for epoch in range(first, settings.epochs):
                record = self._epoch(epoch, x, y, settings, steps, progress, on_step)
                score(self.graph, record, self.evaluate(data.x_test, tests))
                scale = self._unit * self.batch
                losses = [loss / scale for loss in self.history.losses[-record.steps :]]
                record.note = diagnose(record, self.graph, losses)
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
    ) -> tuple[npt.NDArray[np.int8], Answers, Answers]:
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
        y, tests = answers(self.graph, data)
        if len(x) < self.batch:
            raise DataError(f"{data.name} has {len(x)} training samples; a batch is {self.batch}")
        return x, y, tests

    def _epoch(
        self,
        epoch: int,
        x: npt.NDArray[np.int8],
        y: Answers,
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
            progress.step(epoch, index, loss / self._unit / self.batch)
            if on_step is not None:
                on_step(self.history.steps + len(losses), loss)
        # A step counts once its epoch is whole: an interruption leaves the history as it was.
        self.history.losses += losses
        return EpochRecord(
            epoch,
            len(losses),
            rate,
            float(np.mean(losses)) / self._unit / self.batch,
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
        answers(program.graph, data)[0],
        input_exponent=data.exponent,
        target_exponent=data.target_exponent,
    )
    return Trainer(device, program, state, seed=settings.seed)
