"""Pictures: accuracy or error over the steps of a run, the memory map over those of a program."""

from __future__ import annotations

from importlib import import_module
from math import isnan
from typing import Any

from gradiron.arch.config import Config
from gradiron.cli.breakdown import bandwidth
from gradiron.errors import DataError, MissingExtraError
from gradiron.graph import KINDS, TRAIN
from gradiron.planner import Plan, step_name
from gradiron.train import History


def _curve(history: History) -> tuple[list[int], list[float]]:
    steps: list[int] = []
    done = 0
    for record in history.epochs:
        done += record.steps
        steps.append(done)
    if isnan(history.accuracy):
        return steps, [record.error for record in history.epochs]
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
    figure = _figure((7, 4.2))
    axes = figure.add_subplot()
    for (name, history), style in zip(runs.items(), ("o-", "s--"), strict=False):
        axes.plot(*_curve(history), style, label=name, markersize=4)
    errors = all(isnan(history.accuracy) for history in runs.values())
    what = "mean squared error of the test samples" if errors else "test accuracy (%)"
    axes.set(title=title, xlabel="training steps", ylabel=what)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right" if errors else "lower right")
    _save(figure, path)


def _figure(size: tuple[float, float]) -> Any:
    """An empty figure; without a window, so that it works everywhere."""
    try:
        figure_class: Any = import_module("matplotlib.figure").Figure
    except ModuleNotFoundError as error:
        missing = (error.name or "matplotlib").partition(".")[0]
        raise MissingExtraError(missing, "train", "the plot") from None
    return figure_class(figsize=size, layout="constrained")


def _save(figure: Any, path: str) -> None:
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path} cannot be written: {error}; end its name in .png") from None


COLOURS = {
    "weight": "#4c72b0",
    "master": "#8fa8d3",
    "bias": "#64b5cd",
    "momentum": "#937860",
    "activation": "#55a868",
    "argmax": "#a3d2a9",
    "gradient": "#c44e52",
    "input": "#ccb974",
    "logits": "#8172b3",
}
OTHER_COLOUR = "#bbbbbb"
LEGIBLE = 0.022
"""Tensors that take less of a region than this get no name in the picture."""


def plot_map(path: str, title: str, found: Plan) -> None:
    """Write the memory map over time: a panel per region, a box per tensor, steps to the right.

    Raises
    ------
    MissingExtraError
        Without matplotlib.
    DataError
        Where the file cannot be written, or is of an unknown kind.
    """
    programs = found.schedule.programs
    program = TRAIN if TRAIN in programs else next(iter(programs))
    steps = programs[program]
    sizes = found.config.regions
    figure = _figure((max(9.0, 3 + 0.2 * len(steps)), 3.2 + 3.4 * len(sizes)))
    ratios = [1.1, *(max(0.35, size / max(sizes)) * 3 for size in sizes)]
    panels: Any = figure.subplots(
        len(ratios), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios}
    )[:, 0]
    live = found.live(program)
    panels[0].fill_between(
        [x for index in range(len(live)) for x in (index, index + 1)],
        [size / 1024 for size in live for _ in range(2)],
        color=OTHER_COLOUR,
    )
    panels[0].axhline(found.config.memory_bytes / 1024, color="black", linewidth=1)
    panels[0].set(ylabel="needed (KB)", ylim=(0, None), title=title)
    kinds: dict[str, Any] = {}
    for region, (panel, size) in enumerate(zip(panels[1:], sizes, strict=True)):
        panel.set(ylim=(0, size / 1024), ylabel=f"region {region} (KB)")
        for p in found.placements.values():
            if p.region != region or program not in p.spans:
                continue
            first, last = p.spans[program]
            left, right = max(0, first), min(len(steps), last + 1)
            tensor = p.tensor
            kinds[tensor.kind] = panel.barh(
                p.offset / 1024,
                right - left,
                tensor.bytes / 1024,
                left,
                align="edge",
                color=COLOURS.get(tensor.kind, OTHER_COLOUR),
                edgecolor="white",
                linewidth=0.6,
                alpha=0.85,
            )
            if tensor.bytes / size >= LEGIBLE:
                panel.text(
                    (left + right) / 2,
                    (p.offset + tensor.bytes / 2) / 1024,
                    tensor.name,
                    ha="center",
                    va="center",
                    fontsize=6,
                    clip_on=True,
                )
    panels[-1].set_xlim(0, len(steps))
    panels[-1].set_xticks([index + 0.5 for index in range(len(steps))])
    panels[-1].set_xticklabels([step_name(step) for step in steps], rotation=90, fontsize=6)
    figure.legend(
        kinds.values(),
        [KINDS.get(kind, kind) for kind in kinds],
        loc="outside lower center",
        ncols=5,
        fontsize=7,
        frameon=False,
    )
    _save(figure, path)


PASS_STYLES = {"forward": "o", "dx": "s", "dw": "^", "loss": "x", "other": "x"}


def plot_roofline(path: str, title: str, rows: list[dict[str, Any]], config: Config) -> None:
    """Write the roofline: MAC/cycle of each row over the MACs per byte that it must move.

    Parameters
    ----------
    path, title : str
    rows : list of dict
        With `bytes`; those without products are left out.
    config : Config

    Raises
    ------
    MissingExtraError
        Without matplotlib.
    DataError
        Where the file cannot be written, or is of an unknown kind.
    """
    figure = _figure((8, 5))
    axes = figure.add_subplot()
    shown = [row for row in rows if row["macs"] and row.get("bytes")]
    width = bandwidth(config)
    ridge = config.peak / width
    places = [row["macs"] / row["bytes"] for row in shown] or [ridge]
    low, high = min(*places, ridge) / 2, max(*places, ridge) * 2
    axes.plot(
        [low, ridge, high],
        [low * width, config.peak, config.peak],
        color="black",
        linewidth=1,
        label=f"{config.array}: {config.peak} MAC/cycle, {width} bytes/cycle",
    )
    for pass_, marker in PASS_STYLES.items():
        points = [row for row in shown if row["pass"] == pass_]
        if points:
            axes.plot(
                [row["macs"] / row["bytes"] for row in points],
                [row["mac_per_cycle"] for row in points],
                marker,
                label=pass_,
                markersize=5,
            )
    for row in shown:
        axes.annotate(
            row["name"],
            (row["macs"] / row["bytes"], row["mac_per_cycle"]),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=6,
        )
    axes.set(
        title=title,
        xlabel="MACs per byte of operands and results",
        ylabel="MAC/cycle",
        xscale="log",
        yscale="log",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")
    _save(figure, path)
