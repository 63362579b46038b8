"""Images in IDX files: Fashion-MNIST and MNIST.

Ref: Fashion-MNIST: H. Xiao, K. Rasul, R. Vollgraf, arXiv:1708.07747, 2017 (IDX files as MNIST's).
"""

from __future__ import annotations

import gzip
import os
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradiron.data.folders import DATA_VARIABLE, data_folder
from gradiron.data.samples import Dataset, assemble, to_int8
from gradiron.errors import DataError

MAX_FILE_BYTES = 1 << 31
"""A header that promises more is taken for damage."""


def load_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An IDX file of unsigned bytes, compressed with gzip or not.

    Raises
    ------
    DataError
        For a file that cannot be read, is truncated, or is not IDX.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            return _read_idx(stream, path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({error}); it may be truncated: fetch it again"
        ) from None
    except ValueError as error:
        raise DataError(f"{path} is not a valid IDX file: {error}; fetch it again") from None


def _read_idx(stream: Any, path: Path) -> npt.NDArray[np.uint8]:
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] != 8 or not 1 <= head[3] <= 4:
        raise ValueError(f"it begins with {head.hex() or 'nothing'}")
    sizes = stream.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise ValueError("its header is cut off")
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    count = prod(shape)
    if not 0 < count < MAX_FILE_BYTES:
        raise ValueError(f"it claims the shape {shape}")
    data = stream.read(count + 1)
    if len(data) != count:
        found = len(data) if len(data) < count else f"more than {count}"
        raise ValueError(f"{path.name} must hold {count} bytes of data for {shape}, it has {found}")
    return np.frombuffer(data, np.uint8).reshape(shape)


IDX_NAMES = {
    "train images": "train-images-idx3-ubyte",
    "train labels": "train-labels-idx1-ubyte",
    "test images": "t10k-images-idx3-ubyte",
    "test labels": "t10k-labels-idx1-ubyte",
}
IDX_SETS = {
    "fashion": (
        ("", "fashion-mnist"),
        "install the Debian package dataset-fashion-mnist and give --data /usr/share/datasets, or "
        "download the four files from https://github.com/zalandoresearch/fashion-mnist",
    ),
    "mnist": (
        ("", "mnist"),
        "download the four files of MNIST, for example from "
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
}
"""Folders below the data folder, and how to get the files."""


def load_idx_set(name: str, folder: str | os.PathLike[str] | None = None) -> Dataset:
    """Fashion-MNIST ("fashion") or MNIST ("mnist") from its four IDX files.

    Parameters
    ----------
    name : str
    folder : path or None
        The folder with the files, or one above; None looks in `data_folder()`.

    Raises
    ------
    DataError
        Where files are missing or damaged.
    """
    subfolders, remedy = IDX_SETS[name]
    base = data_folder(folder)
    if not base.is_dir():
        raise DataError(
            f"the data folder {base} does not exist; {remedy}; then name the folder with "
            f"--data DIR or in the environment variable {DATA_VARIABLE}"
        )
    found: dict[str, Path] = {}
    for subfolder in subfolders:
        candidates = {
            role: [base / subfolder / f"{stem}{suffix}" for suffix in (".gz", "")]
            for role, stem in IDX_NAMES.items()
        }
        here = {
            role: path for role, paths in candidates.items() for path in paths if path.is_file()
        }
        found = max(found, here, key=len)
    missing = [f"{IDX_NAMES[role]}.gz" for role in IDX_NAMES if role not in found]
    if missing:
        places = " and ".join(str(base / subfolder) for subfolder in subfolders)
        raise DataError(f"{', '.join(missing)} not found in {places}; {remedy}")
    arrays = {role: load_idx(path) for role, path in found.items()}
    for role, array in arrays.items():
        if array.ndim != (3 if role.endswith("images") else 1):
            raise DataError(f"{found[role]} has the shape {array.shape}; fetch it again")
    train = (to_int8(arrays["train images"], 255.0), arrays["train labels"])
    test = (to_int8(arrays["test images"], 255.0), arrays["test labels"])
    return assemble(name, train, test, 10)
