"""Samples in a `.npz` file, as numpy writes it."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradiron.data.orders import shuffled
from gradiron.data.samples import Dataset, assemble, to_int8
from gradiron.errors import DataError

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

    Inputs are int8 (taken as they are) or uint8 (scaled from 0..255). With x and y alone, one in
    `test_share` samples, chosen by the seed, is held back for testing.

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
    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        train = (arrays["x_train"], arrays["y_train"])
        test = (arrays["x_test"], arrays["y_test"])
    elif {"x", "y"} <= arrays.keys():
        x, y = arrays["x"], arrays["y"]
        if x.ndim == 0 or y.ndim != 1 or len(x) != len(y) or len(y) < 2:
            raise DataError(
                f"{path}: x {x.shape} and y {y.shape} must have as many samples, two at least"
            )
        order = shuffled(len(x), seed)
        held = max(1, len(x) // test_share)
        train = (x[order[held:]], y[order[held:]])
        test = (x[order[:held]], y[order[:held]])
    else:
        raise DataError(
            f"{path} has the arrays {', '.join(arrays) or 'none'}; it needs x_train, y_train, "
            "x_test and y_test, or x and y"
        )
    return assemble(path.stem, (_npz_inputs(train[0]), train[1]), (_npz_inputs(test[0]), test[1]))


def _npz_inputs(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return to_int8(x, 255.0) if x.dtype == np.uint8 else x
