"""Which machine a command works with: a board's, or a simulated one as small as its work allows.

Small simulated memories build and start faster; what is computed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gradiron.arch.boards import BOARD_BY_NAME, find_board
from gradiron.arch.config import (
    MAX_REGION_BYTES,
    MAX_REGIONS,
    Config,
    simulation_config,
    up5k_config,
)
from gradiron.compiler import GemmProgram, Program, compile_graph, gemm_program
from gradiron.engines import DEFAULT_ARRAY, GOLDEN, is_board, open_device
from gradiron.errors import ConfigError, ModelError, PlanError
from gradiron.graph import Graph
from gradiron.networks import network
from gradiron.operations import Layer, Shape
from gradiron.single import LayerProgram, layer_program

BOARDS = ("sim", "up5k", *BOARD_BY_NAME)
LEAST_REGION = 1 << 12
GEMM_REGION = 1 << 17
"""Products up to 256 x 256 share one build."""
PROGRAM_WORDS = 1 << 10
MOST_PROGRAM_WORDS = 1 << 16


def add_machine(parser: argparse.ArgumentParser, *, board: bool = False) -> None:
    """The options that choose a machine."""
    parser.add_argument(
        "--array", metavar="RxC", default=None, help=f"size of the array (default {DEFAULT_ARRAY})"
    )
    if board:
        parser.add_argument(
            "--board",
            choices=BOARDS,
            default="sim",
            help="the machine: sim, simulated with as much memory as needed, or a board's",
        )


def _power_of_two(value: int, least: int) -> int:
    return max(least, 1 << max(0, value - 1).bit_length())


def _wide(array: str) -> Config:
    """The largest machine there can be, for a first plan."""
    wide = simulation_config(array, regions=(MAX_REGION_BYTES,) * 3)
    return wide.replace(program_words=MOST_PROGRAM_WORDS)


def _fitted(program: Program, least: int) -> Config:
    """The smallest machine on which a program of the largest one has the same plan."""
    sizes = [_power_of_two(use.size - use.free, least) for use in program.plan.regions()]
    # A tensor must be smaller than what the offsets of the largest region can span.
    largest = max(placement.tensor.bytes for placement in program.plan.placements.values())
    sizes[sizes.index(max(sizes))] = max(*sizes, _power_of_two(largest + 1, least))
    return program.config.replace(regions=tuple(sizes), program_words=program_words(program))


def program_words(program: Program) -> int:
    """The smallest program memory of a simulated machine that holds a program."""
    return _power_of_two(len(program.words), PROGRAM_WORDS)


def fitted_config(graph: Graph, batch: int, array: str = DEFAULT_ARRAY) -> Config:
    """A simulated machine whose memories are as small as a network allows: powers of two.

    Raises
    ------
    PlanError
        Where not even the largest machine has room.
    """
    return _fitted(compile_graph(graph, _wide(array), batch), LEAST_REGION)


def network_program(
    graph: Graph, batch: int, array: str | None, board: str = "sim", *, engine: str = GOLDEN
) -> Program:
    """A network, compiled for a board or for a simulated machine that fits it.

    An engine that is a board is asked which machine it has.

    Raises
    ------
    PlanError
        Where it does not fit.
    ConfigError
        For an array that the board does not have.
    """
    config = _connected(engine, array) if is_board(engine) else board_config(board, array)
    return compile_graph(
        graph, config or fitted_config(graph, batch, array or DEFAULT_ARRAY), batch
    )


def product_program(m: int, n: int, k: int, order: str, array: str) -> GemmProgram:
    """One product, compiled for a simulated machine that fits it."""
    wide = gemm_program(_wide(array), m, n, k, order)
    return gemm_program(_fitted(wide.program, GEMM_REGION), m, n, k, order)


def _connected(engine: str, array: str | None) -> Config:
    """The machine of a board that is connected."""
    with open_device(engine) as device:
        config = device.config
    if array is not None and array.lower() != config.array:
        raise ConfigError(f"the board at {engine} has the array {config.array}, not {array}")
    return config


def single_layer(
    layer: Layer,
    input_shape: Shape,
    batch: int,
    array: str | None,
    board: str = "sim",
    **options: Any,
) -> LayerProgram:
    """The passes of one layer, compiled for a board or for a simulated machine that fits it.

    Raises
    ------
    PlanError
        Where it does not fit.
    ConfigError
        For an array that the board does not have.
    """
    config = board_config(board, array)
    if config is not None:
        return layer_program(config, layer, input_shape, batch, **options)
    config = simulation_config(array or DEFAULT_ARRAY)
    try:
        return layer_program(config, layer, input_shape, batch, **options)
    except PlanError:
        regions = (MAX_REGION_BYTES,) * MAX_REGIONS
        config = config.replace(regions=regions, program_words=MOST_PROGRAM_WORDS)
        return layer_program(config, layer, input_shape, batch, **options)


def board_config(board: str, array: str | None) -> Config | None:
    """The fixed machine of a board; None for a simulated one."""
    if board == "sim":
        return None
    if board in BOARD_BY_NAME:
        return find_board(board).config(array)
    config = up5k_config()
    if array is not None and array.lower() != config.array:
        raise ConfigError(f"the machine of {board} has the array {config.array}, not {array}")
    return config


def text_config(board: str, array: str | None) -> Config:
    """The machine that program texts are for."""
    return board_config(board, array) or simulation_config(array or DEFAULT_ARRAY)


def find_graph(name: str) -> Graph:
    """A built-in network, or one from a JSON file as `Graph.to_dict` writes it.

    Raises
    ------
    ModelError
        Where there is none of that name, or the file does not describe one.
    """
    if not name.endswith(".json"):
        return network(name)
    try:
        return Graph.from_dict(json.loads(Path(name).read_text("utf-8")))
    except OSError as error:
        raise ModelError(f"the model file {name} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the model file {name} does not describe a network ({error}); write it from "
            "Graph.to_dict with json.dump"
        ) from None
