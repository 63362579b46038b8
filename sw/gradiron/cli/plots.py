"""The picture of a run: accuracy over steps, accelerator against float32."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gradiron.errors import DataError, MissingExtraError
from gradiron.train import History


def _curve(history: History) -> tuple[list[int], list[float]]:
    steps: list[int] = []
    done = 0
    for record in history.epochs:
        done += record.steps
        steps.append(done)
    return steps, [100 * record.accuracy for record in history.epochs]


def plot_accuracy(path: str, title: str, runs: dict[str, History]) -> None:
    """Write the picture; its kind follows from the name of the file.

    Raises
    ------
    MissingExtraError
        Without matplotlib.
    DataError
        Where the file cannot be written, or is of an unknown kind.
    """
    try:
        figure_class: Any = import_module("matplotlib.figure").Figure
    except ModuleNotFoundError as error:
        missing = (error.name or "matplotlib").partition(".")[0]
        raise MissingExtraError(missing, "train", "the plot") from None
    figure = figure_class(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, history), style in zip(runs.items(), ("o-", "s--"), strict=False):
        axes.plot(*_curve(history), style, label=name, markersize=4)
    axes.set(title=title, xlabel="training steps", ylabel="test accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path} cannot be written: {error}; end its name in .png") from None
