"""A training run beside the golden model: every loss, every epoch's state, at the end everything.

The golden model trains in a thread of its own and is never waited for longer than it takes; what
differs is counted, and the first difference is named.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from gradiron.data import Dataset
from gradiron.engines import GOLDEN, simulation_module
from gradiron.errors import DeviceError
from gradiron.model import State, compare_states
from gradiron.progress import EpochRecord, NoProgress, Progress
from gradiron.train import Settings, Trainer


class _Stopped(Exception):
    """The run beside this one was interrupted."""


class Reference(NoProgress):
    """The golden model's run; its own progress display, to get hold of its states.

    Parameters
    ----------
    make : callable
        Gives the trainer; called in the thread.
    data : Dataset
    settings : Settings
    """

    def __init__(self, make: Callable[[], Trainer], data: Dataset, settings: Settings) -> None:
        self._make = make
        self._data = data
        self._settings = settings
        self._losses: dict[int, int] = {}
        self._states: dict[int, tuple[State, EpochRecord]] = {}
        self._trainer: Trainer | None = None
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._stop = False
        self._done = False
        self._thread = threading.Thread(target=self._run, name="golden model", daemon=True)
        self.waited = 0.0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End early; does nothing after the end."""
        self._stop = True
        if self._thread.is_alive():
            self._thread.join()

    def loss(self, step: int) -> int:
        """The loss of a step, from 1."""
        return self._await(lambda: step in self._losses, lambda: self._losses.pop(step))

    def after(self, epoch: int) -> tuple[State, EpochRecord]:
        """The state after an epoch, from 0."""
        return self._await(lambda: epoch in self._states, lambda: self._states.pop(epoch))

    def finished(self) -> Trainer:
        """The trainer at the end of the run."""
        self._await(lambda: self._done, lambda: None)
        assert self._trainer is not None
        return self._trainer

    def _run(self) -> None:
        try:
            self._trainer = trainer = self._make()
            trainer.fit(self._data, self._settings, progress=self, on_step=self._step)
        except _Stopped:
            pass
        except BaseException as error:  # raised again where it is waited for
            self._error = error
        with self._changed:
            self._done = True
            self._changed.notify_all()

    def _step(self, step: int, loss: int) -> None:
        if self._stop:
            raise _Stopped
        with self._changed:
            self._losses[step] = loss
            self._changed.notify_all()

    def epoch(self, record: EpochRecord) -> None:
        """See `Progress`."""
        assert self._trainer is not None
        state = self._trainer.state()
        with self._changed:
            self._states[record.epoch] = (state, record)
            self._changed.notify_all()

    def _await(self, ready: Callable[[], bool], value: Callable[[], Any]) -> Any:
        with self._changed:
            if not ready():
                begun = time.monotonic()
                self._changed.wait_for(lambda: ready() or self._done)
                self.waited += time.monotonic() - begun
            if not ready():
                raise self._error or DeviceError("the golden model's run ended before this one")
            return value()


class Checker:
    """Compares a run with its reference, as the run's progress display and step callback.

    Parameters
    ----------
    reference : Reference
    progress : Progress
        Where progress is shown.

    Members
    -------
    mismatches : list of str
        What differs, in words.
    compared : int
        Losses and states that were compared.
    """

    def __init__(self, reference: Reference, progress: Progress) -> None:
        self.reference = reference
        self.trainer: Trainer | None = None
        self.mismatches: list[str] = []
        self.compared = 0
        self._progress = progress

    def on_step(self, step: int, loss: int) -> None:
        """Compare a step's loss."""
        expected = self.reference.loss(step)
        self.compared += 1
        if loss != expected:
            self.mismatches.append(
                f"the loss of step {step} is {loss}, of the golden model {expected}"
            )

    def begin(self, title: str, epochs: int, steps: int, first_epoch: int) -> None:
        """See `Progress`."""
        self._progress.begin(title, epochs, steps, first_epoch)

    def step(self, epoch: int, step: int, loss: float) -> None:
        """See `Progress`."""
        self._progress.step(epoch, step, loss)

    def epoch(self, record: EpochRecord) -> None:
        """Compare the state: weights, biases, momentum, exponents, trackers; and the accuracy."""
        state, expected = self.reference.after(record.epoch)
        self.compared += 2
        if record.state_sha256 != expected.state_sha256:
            assert self.trainer is not None
            found = compare_states(self.trainer.state(), state)
            self.mismatches.append(
                f"after epoch {record.epoch + 1}: {found} (the other is the golden model)"
            )
        if str(record.error) != str(expected.error):  # nan is equal to nan as a text alone
            self.mismatches.append(
                f"after epoch {record.epoch + 1}: the squared error is {record.error}, of the "
                f"golden model {expected.error}"
            )
        if str(record.accuracy) != str(expected.accuracy):
            self.mismatches.append(
                f"after epoch {record.epoch + 1}: the accuracy is {record.accuracy}, of the golden "
                f"model {expected.accuracy}"
            )
        self._progress.epoch(record)

    def end(self) -> None:
        """See `Progress`."""
        self._progress.end()

    def compare_all(self) -> None:
        """Compare all there is: every byte of memory, every exponent, every register."""
        assert self.trainer is not None
        golden = self.reference.finished()
        self.compared += 1
        if self.trainer.device.kind == GOLDEN:
            found = compare_states(self.trainer.state(), golden.state())
            if found is not None:
                self.mismatches.append(f"at the end: {found} (the other is the golden model)")
            return
        symbols = golden.program.symbols
        differs = simulation_module("lockstep").difference(
            golden.device, self.trainer.device, symbols
        )
        if differs is not None:
            what, expected, value = differs
            self.mismatches.append(
                f"at the end: {what} differs: {value}, of the golden model {expected}"
            )
