"""Samples in a `.npz` file, as numpy writes it."""

from __future__ import annotations

import dataclasses
import os
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gradiron.data.orders import shuffled
from gradiron.data.samples import Dataset, assemble, check_inputs, quantise, to_int8
from gradiron.errors import DataError
from gradiron.graph import INPUT_EXPONENT

_Pair: TypeAlias = tuple[npt.NDArray[Any] | None, npt.NDArray[Any] | None]

_NPZ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    MemoryError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise for damaged files."""


def load_npz(path: str | os.PathLike[str], *, test_share: int = 5, seed: int = 0) -> Dataset:
    """A `.npz` file with x_train, y_train, x_test, y_test, or with x and y.

    Inputs are int8 (taken as they are, with the exponent that a number `exponent` in the file
    gives, -7 without), uint8 (scaled from 0..255), or real (quantised with the exponent that the
    largest training input asks for; larger ones for testing are cut off). Labels may be left out,
    and t_train and t_test, or t, may hold targets, for networks that learn values. With x and y
    alone, one in `test_share` samples, chosen by the seed, is held back for testing.

    Raises
    ------
    DataError
        For a file that cannot be read, arrays that are missing or of the wrong type.
    """
    path = Path(path)
    arrays: dict[str, npt.NDArray[Any]] = {}
    try:
        with path.open("rb") as stream:
            file: Any = np.load(stream, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ValueError("it holds a single array")
            arrays = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except _NPZ_ERRORS as error:
        raise DataError(
            f"{path} is not a readable .npz file ({error}); write it with numpy.savez"
        ) from None
    if {"x_train", "x_test"} <= arrays.keys():
        parts = {kind: (arrays.get(f"{kind}_train"), arrays.get(f"{kind}_test")) for kind in "xyt"}
    elif "x" in arrays:
        parts = _divided(path, arrays, test_share, seed)
    else:
        raise DataError(
            f"{path} has the arrays {', '.join(arrays) or 'none'}; it needs x_train, y_train, "
            "x_test and y_test, or x and y (without y for networks that learn values)"
        )
    x, x_test, exponent = _quantised(path, parts["x"], _exponent(path, arrays))
    t, t_test, target_exponent = None, None, INPUT_EXPONENT
    if parts["t"][0] is not None:
        t, t_test, target_exponent = _quantised(path, parts["t"], INPUT_EXPONENT)
        if len(t) != len(x) or len(t_test) != len(x_test):
            raise DataError(f"{path}: there must be as many targets as inputs")
        check_inputs(t, None, f"{path}: targets")
        check_inputs(t_test, prod(t.shape[1:]), f"{path}: test targets")
    y, y_test = (
        np.zeros(len(found), np.int64) if labels is None else labels
        for labels, found in zip(parts["y"], (x, x_test), strict=True)
    )
    found = assemble(path.stem, (x, y), (x_test, y_test))
    return dataclasses.replace(
        found, exponent=exponent, t_train=t, t_test=t_test, target_exponent=target_exponent
    )


def _divided(
    path: Path, arrays: dict[str, npt.NDArray[Any]], test_share: int, seed: int
) -> dict[str, _Pair]:
    """Some samples held back for testing."""
    x = arrays["x"]
    if x.ndim == 0 or len(x) < 2:
        raise DataError(f"{path}: x {x.shape} must have as many samples as y, two at least")
    order = shuffled(len(x), seed)
    held = max(1, len(x) // test_share)
    parts: dict[str, _Pair] = {}
    for kind in "xyt":
        found = arrays.get(kind)
        if found is None:
            parts[kind] = (None, None)
            continue
        if found.ndim == 0 or len(found) != len(x) or (kind == "y" and found.ndim != 1):
            raise DataError(
                f"{path}: x {x.shape} and {kind} {found.shape} must have as many samples, two at "
                "least"
            )
        parts[kind] = (found[order[held:]], found[order[:held]])
    return parts


def _exponent(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> int:
    found = arrays.get("exponent")
    if found is None:
        return INPUT_EXPONENT
    if found.ndim or found.dtype.kind not in "iu" or not -64 <= int(found) <= 63:
        raise DataError(f"{path}: exponent is {found!r}; it must be an integer from -64 to 63")
    return int(found)


def _quantised(
    path: Path, parts: _Pair, exponent: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8], int]:
    """Training and test arrays as int8 with one exponent."""
    train, test = parts
    if train is None or test is None:
        raise DataError(f"{path}: there are samples for training or for testing only; give both")
    if train.dtype != test.dtype:
        raise DataError(
            f"{path}: the training array is {train.dtype}, the test array {test.dtype}; save both "
            "as the same type"
        )
    if train.dtype == np.uint8:
        return to_int8(train, 255.0), to_int8(test, 255.0), INPUT_EXPONENT
    if train.dtype.kind == "f":
        return quantise(train, test)
    return train, test, exponent
