"""Data sets as the machine takes them: int8 inputs with one exponent, labels below the classes.

Loaders: `digits` (8x8 handwritten digits, from scikit-learn), `fashion` (Fashion-MNIST) and
`mnist` from IDX files, and any `.npz`. Every file is checked; what is wrong with it is said in a
`DataError` with a remedy. Orders are seeded and depend on nothing but the seed: they are built on
raw generator output, which numpy keeps stable across versions.

Ref: handwritten digits: E. Alpaydin, C. Kaynak, UCI repository, 1998.
Ref: Fashion-MNIST: H. Xiao, K. Rasul, R. Vollgraf, arXiv:1708.07747, 2017 (IDX files as MNIST's).
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradiron.errors import DataError, MissingExtraError
from gradiron.graph import INPUT_EXPONENT

Int8 = npt.NDArray[np.int8]
Labels = npt.NDArray[np.int64]

DATA_VARIABLE = "GRADIRON_DATA"
DIGITS_TRAIN = 1437
DIGITS_SPLIT_SEED = 0
MAX_FILE_BYTES = 1 << 31
"""A header that promises more is taken for damage."""


@dataclass(frozen=True)
class Dataset:
    """Training and test samples.

    Parameters
    ----------
    name : str
    x_train, x_test : (N, ...) int8 arrays
        Values from -127 to 127, exponent `exponent`.
    y_train, y_test : (N,) int64 arrays
        Labels from 0 to `classes` - 1.
    classes : int
    exponent : int
    """

    name: str
    x_train: Int8
    y_train: Labels
    x_test: Int8
    y_test: Labels
    classes: int
    exponent: int = INPUT_EXPONENT

    @property
    def features(self) -> int:
        """Elements of one sample."""
        return prod(self.x_train.shape[1:])

    def limited(self, train: int | None = None, test: int | None = None) -> Dataset:
        """The first `train` training and `test` test samples; None takes all.

        Raises
        ------
        DataError
            Where there are fewer.
        """
        for what, wanted, have in (
            ("training", train, len(self.y_train)),
            ("test", test, len(self.y_test)),
        ):
            if wanted is not None and not 1 <= wanted <= have:
                raise DataError(
                    f"{wanted} {what} samples are wanted; {self.name} has {have}, take 1 to {have}"
                )
        return replace(
            self,
            x_train=self.x_train[:train],
            y_train=self.y_train[:train],
            x_test=self.x_test[:test],
            y_test=self.y_test[:test],
        )

    def digest(self) -> str:
        """SHA-256 of the training samples, their labels and the exponent."""
        h = hashlib.sha256(f"{self.x_train.shape} {self.classes} {self.exponent}".encode())
        h.update(np.ascontiguousarray(self.x_train).tobytes())
        h.update(self.y_train.astype("<i8").tobytes())
        return h.hexdigest()


# --- checks and conversions ----------------------------------------------------------------------


def to_int8(x: npt.ArrayLike, maximum: float) -> Int8:
    """Real or unsigned samples to int8 with exponent -7: q = round(x * 127 / maximum).

    Parameters
    ----------
    x : array
        Values from -maximum to maximum.
    maximum : float
        The value that becomes 127; the same for training, test and use.

    Raises
    ------
    DataError
        For values beyond the maximum, or that are not numbers.
    """
    values = np.asarray(x)
    if values.dtype.kind not in "iuf" or not maximum > 0:
        raise DataError(f"samples of {values.dtype} with maximum {maximum} cannot be converted")
    if values.dtype == np.uint8 and maximum >= 255:
        return to_int8(np.arange(256), maximum)[values]  # a table: images are large
    q = np.rint(values * 127.0 / maximum)
    if not bool(np.all(np.abs(q) <= 127)):
        raise DataError(
            f"samples reach beyond +-{maximum} (or are not numbers); give the largest magnitude"
        )
    return q.astype(np.int8)


def check_inputs(x: npt.NDArray[Any], features: int | None = None, what: str = "inputs") -> Int8:
    """Samples as the machine takes them: (N, features) int8 in [-127, 127].

    Raises
    ------
    DataError
        For another type, shape or value.
    """
    if x.dtype != np.int8:
        raise DataError(
            f"{what} are {x.dtype}, but int8 is expected; convert them with "
            "gradiron.data.to_int8(x, maximum), the same maximum for all samples"
        )
    if x.ndim < 2 or len(x) == 0:
        raise DataError(f"{what} have the shape {x.shape}; a batch of samples is expected")
    flat = x.reshape(len(x), -1)
    if features is not None and flat.shape[1] != features:
        raise DataError(
            f"{what} have {flat.shape[1]} values per sample, the network takes {features}"
        )
    if flat.min() == -128:
        raise DataError(f"{what} contain -128; int8 tensors go from -127 to 127")
    return flat


def check_labels(
    y: npt.NDArray[Any], classes: int, count: int | None = None, what: str = "labels"
) -> Labels:
    """Labels as int64, each in [0, classes).

    Raises
    ------
    DataError
        For another type, shape or value.
    """
    if y.dtype.kind not in "iu":
        raise DataError(f"{what} are {y.dtype}; integers from 0 to {classes - 1} are expected")
    if y.ndim != 1 or (count is not None and len(y) != count):
        raise DataError(
            f"{what} have the shape {y.shape}; one label per sample is expected"
            + ("" if count is None else f", for {count} samples")
        )
    bad = np.flatnonzero((y < 0) | (y >= classes))
    if len(bad):
        raise DataError(
            f"{what}: sample {bad[0]} has the label {y[bad[0]]}; labels must be from 0 to "
            f"{classes - 1}"
        )
    return y.astype(np.int64)


def _dataset(
    name: str,
    train: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    test: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    classes: int | None = None,
) -> Dataset:
    """Check and assemble; without `classes` they are counted."""
    (x, y), (x_test, y_test) = train, test
    for labels in (y, y_test):
        if labels.dtype.kind not in "iu" or labels.ndim != 1 or not len(labels):
            raise DataError(
                f"{name}: labels are {labels.dtype} {labels.shape}; one integer per sample is "
                "expected"
            )
    classes = classes or int(max(y.max(), y_test.max())) + 1
    for part, inputs in (("training", x), ("test", x_test)):
        check_inputs(inputs, prod(x.shape[1:]), f"{name}: {part} inputs")
    return Dataset(
        name,
        x.astype(np.int8, copy=False),
        check_labels(y, classes, len(x), f"{name}: training labels"),
        x_test.astype(np.int8, copy=False),
        check_labels(y_test, classes, len(x_test), f"{name}: test labels"),
        classes,
    )


# --- seeded orders -------------------------------------------------------------------------------


def shuffled(count: int, *seed: int) -> npt.NDArray[np.int64]:
    """A permutation of 0 .. count-1 that is a function of the seed numbers alone."""
    keys = np.random.PCG64(list(seed)).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)


def batches(count: int, batch: int, seed: int, epoch: int) -> Iterator[npt.NDArray[np.int64]]:
    """Indices of the batches of an epoch, in a new order for every epoch.

    The last, partial batch is dropped.
    """
    order = shuffled(count, seed, epoch)
    for start in range(0, count - batch + 1, batch):
        yield order[start : start + batch]


# --- digits --------------------------------------------------------------------------------------


def load_digits() -> Dataset:
    """The 1,797 handwritten digits of 8x8 pixels: 1,437 to train, 360 to test, always the same.

    Raises
    ------
    MissingExtraError
        Without scikit-learn, whose package contains them.
    """
    try:
        datasets: Any = import_module("sklearn.datasets")
    except ImportError:
        raise MissingExtraError("scikit-learn", "demo", "the digits data set") from None
    loaded = datasets.load_digits()
    x = to_int8(np.asarray(loaded.data), 16.0)
    y = np.asarray(loaded.target, np.int64)
    order = shuffled(len(x), DIGITS_SPLIT_SEED)
    train, test = order[:DIGITS_TRAIN], order[DIGITS_TRAIN:]
    return _dataset("digits", (x[train], y[train]), (x[test], y[test]), 10)


# --- IDX -----------------------------------------------------------------------------------------


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


def data_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder with data: as given, else $GRADIRON_DATA, else the user's data folder."""
    if given:
        return Path(given)
    if os.environ.get(DATA_VARIABLE):
        return Path(os.environ[DATA_VARIABLE])
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Application Support")
    else:
        base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "gradiron"


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
    return _dataset(name, train, test, 10)


# --- npz -----------------------------------------------------------------------------------------


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
    return _dataset(path.stem, (_npz_inputs(train[0]), train[1]), (_npz_inputs(test[0]), test[1]))


def _npz_inputs(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return to_int8(x, 255.0) if x.dtype == np.uint8 else x


DATASETS = ("digits", *IDX_SETS)


def load(name: str, folder: str | os.PathLike[str] | None = None) -> Dataset:
    """A data set by name: "digits", "fashion", "mnist", or the path of a `.npz` file.

    Parameters
    ----------
    name : str
    folder : path or None
        Where the files of a data set are; None looks in `data_folder()`.

    Raises
    ------
    DataError
        For an unknown name, or files that are missing or damaged.
    """
    if name == "digits":
        return load_digits()
    if name in ("fashion", "fashion-mnist"):
        return load_idx_set("fashion", folder)
    if name in IDX_SETS:
        return load_idx_set(name, folder)
    if name.endswith(".npz"):
        return load_npz(name)
    raise DataError(
        f"no data set is called {name!r}; there are {', '.join(DATASETS)}, and any file that ends "
        "in .npz"
    )
