"""Progress of long work: one callback interface, shown with rich where it is installed.

`make_progress()` chooses: a live bar on a terminal with rich, plain lines otherwise.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from importlib import import_module
from math import isnan, nan
from typing import Any, Protocol, TextIO


@dataclass
class EpochRecord:
    """What an epoch came to.

    Attributes
    ----------
    epoch : int
        From 0.
    steps : int
    rate : int
        k of the learning rate 2**-k.
    loss : float
        Mean over the epoch, per sample: in bits, or half a squared error.
    accuracy : float
        On the test samples, 0 to 1; nan where it was not measured.
    saturation : dict of float by tensor
        Share of the elements that saturated, where there were any.
    cycles : int
        Cycles of the training steps, where the device counts them.
    seconds : float
        Time of the training steps on the host.
    state_sha256 : str
        Digest of the whole state afterwards.
    note : str
        What is wrong, in words; "" where nothing is.
    error : float
        Mean squared error on the test samples, over all values; nan where there are classes.
    """

    epoch: int
    steps: int
    rate: int
    loss: float
    accuracy: float
    saturation: dict[str, float] = field(default_factory=dict[str, float])
    cycles: int = 0
    seconds: float = 0.0
    state_sha256: str = ""
    note: str = ""
    error: float = nan

    def __str__(self) -> str:
        result = f"loss {self.loss:.3f} bits, accuracy {self.accuracy:.2%}"
        if not isnan(self.error):
            result = f"loss {self.loss:.4g}, mean squared error {self.error:.4g}"
        text = (
            f"epoch {self.epoch + 1}: {result}, learning rate 2^{-self.rate}, {self.steps} steps "
            f"in {self.seconds:.1f} s"
        )
        if self.cycles:
            text += f", {self.cycles / max(1, self.steps):.0f} cycles a step"
        return text + (f"\n  warning: {self.note}" if self.note else "")


class Progress(Protocol):
    """Called by everything that trains."""

    def begin(self, title: str, epochs: int, steps: int, first_epoch: int) -> None:
        """Training begins: `epochs` in all, of `steps` steps each."""
        ...

    def step(self, epoch: int, step: int, loss: float) -> None:
        """A step of an epoch (from 0) is done; its loss is per sample."""
        ...

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is done and measured."""
        ...

    def end(self) -> None:
        """Training is done, or was interrupted."""
        ...


class NoProgress:
    """Shows nothing."""

    def begin(self, title: str, epochs: int, steps: int, first_epoch: int) -> None:
        """See `Progress`."""

    def step(self, epoch: int, step: int, loss: float) -> None:
        """See `Progress`."""

    def epoch(self, record: EpochRecord) -> None:
        """See `Progress`."""

    def end(self) -> None:
        """See `Progress`."""


class PlainProgress(NoProgress):
    """Lines of text: one per epoch, and one every few seconds within an epoch."""

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self._stream = stream or sys.stderr
        self._every = every
        self._next = 0.0
        self._steps = 0

    def begin(self, title: str, epochs: int, steps: int, first_epoch: int) -> None:
        """See `Progress`."""
        self._steps = steps
        self._next = time.monotonic() + self._every
        where = f", from epoch {first_epoch + 1}" if first_epoch else ""
        print(f"{title}: {epochs} epochs of {steps} steps{where}", file=self._stream, flush=True)

    def step(self, epoch: int, step: int, loss: float) -> None:
        """See `Progress`."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            text = f"epoch {epoch + 1}, step {step + 1} of {self._steps}: loss {loss:.3f}"
            print(text, file=self._stream, flush=True)

    def epoch(self, record: EpochRecord) -> None:
        """See `Progress`."""
        print(record, file=self._stream, flush=True)


class RichProgress(NoProgress):
    """A live bar with the latest loss, and a line per epoch above it."""

    def __init__(self) -> None:
        rich: Any = import_module("rich.progress")
        console: Any = import_module("rich.console").Console(stderr=True)
        self._bar: Any = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TimeRemainingColumn(),
            rich.TextColumn("loss {task.fields[loss]:.3f}"),
            console=console,
        )
        self._task: Any = None
        self._steps = 0
        self._shown = 0.0

    def begin(self, title: str, epochs: int, steps: int, first_epoch: int) -> None:
        """See `Progress`."""
        self._steps = steps
        done = first_epoch * steps
        self._task = self._bar.add_task(title, total=epochs * steps, completed=done, loss=0.0)
        self._bar.start()

    def step(self, epoch: int, step: int, loss: float) -> None:
        """See `Progress`."""
        now = time.monotonic()
        if now - self._shown > 0.1 or step + 1 == self._steps:
            self._shown = now
            self._bar.update(self._task, completed=epoch * self._steps + step + 1, loss=loss)

    def epoch(self, record: EpochRecord) -> None:
        """See `Progress`."""
        self._bar.console.print(str(record), highlight=False)

    def end(self) -> None:
        """See `Progress`."""
        self._bar.stop()


def make_progress(*, quiet: bool = False) -> Progress:
    """What suits standard error: a bar on a terminal with rich, else lines, or nothing."""
    if quiet:
        return NoProgress()
    if sys.stderr.isatty():
        try:
            return RichProgress()
        except ImportError:
            pass
    return PlainProgress()
