"""Data sets as the machine takes them: int8 inputs with one exponent, labels below the classes.

Loaders by kind of file: `digits` (8x8 handwritten digits, from scikit-learn), `idx` (Fashion-MNIST
and MNIST), `wav` (folders of recordings, as log-mel features), `npz` (any samples). Every file is
checked; what is wrong with it is said in a `DataError` with a remedy. Orders are seeded and depend
on nothing but the seed.
"""

from __future__ import annotations

import os
from pathlib import Path

from gradiron.data.digits import load_digits
from gradiron.data.folders import DATA_VARIABLE, data_folder
from gradiron.data.idx import IDX_SETS, load_idx, load_idx_set
from gradiron.data.npz import load_npz
from gradiron.data.orders import batches, shuffled
from gradiron.data.samples import Dataset, check_inputs, check_labels, to_int8
from gradiron.data.wav import load_spoken_digits, load_wav, load_wav_folder
from gradiron.errors import DataError

__all__ = [
    "DATASETS",
    "DATA_VARIABLE",
    "Dataset",
    "batches",
    "check_inputs",
    "check_labels",
    "data_folder",
    "load",
    "load_digits",
    "load_idx",
    "load_idx_set",
    "load_npz",
    "load_spoken_digits",
    "load_wav",
    "load_wav_folder",
    "shuffled",
    "to_int8",
]

SPOKEN_DIGITS = "spoken-digits"
DATASETS = ("digits", *IDX_SETS, SPOKEN_DIGITS)


def load(name: str, folder: str | os.PathLike[str] | None = None) -> Dataset:
    """A data set by name: one of `DATASETS`, a `.npz` file, or a folder of wav files.

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
    if name == SPOKEN_DIGITS:
        return load_spoken_digits(folder)
    if name.endswith(".npz"):
        return load_npz(name)
    if Path(name).is_dir():
        return load_wav_folder(name)
    raise DataError(
        f"no data set is called {name!r}; there are {', '.join(DATASETS)}, any file that ends in "
        ".npz, and any folder of wav files"
    )
