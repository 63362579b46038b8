"""Data sets as the machine takes them: int8 inputs with one exponent, labels below the classes.

`Dataset` holds training and test samples, `to_int8` makes inputs of real numbers, `check_inputs`
and `check_labels` say what is wrong with arrays that do not fit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from math import ceil, log2, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from gradiron.data.orders import shuffled
from gradiron.errors import DataError
from gradiron.graph import INPUT_EXPONENT

Int8 = npt.NDArray[np.int8]
Labels = npt.NDArray[np.int64]


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
        1 where there are no labels.
    exponent : int
    names : tuple of str
        Of the classes; empty where they have none.
    t_train, t_test : (N, ...) int8 arrays or None
        Values to learn by squared error, where a network is to learn others than its inputs.
    target_exponent : int
    """

    name: str
    x_train: Int8
    y_train: Labels
    x_test: Int8
    y_test: Labels
    classes: int
    exponent: int = INPUT_EXPONENT
    names: tuple[str, ...] = ()
    t_train: Int8 | None = None
    t_test: Int8 | None = None
    target_exponent: int = INPUT_EXPONENT

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
            t_train=None if self.t_train is None else self.t_train[:train],
            x_test=self.x_test[:test],
            y_test=self.y_test[:test],
            t_test=None if self.t_test is None else self.t_test[:test],
        )

    def validation(self, count: int, seed: int = 0) -> Dataset:
        """The training samples alone: `count` of them, chosen by the seed, to test with.

        Settings are chosen with these, so that the test samples measure what they are meant to.

        Raises
        ------
        DataError
            Where no training samples would be left.
        """
        if not 1 <= count < len(self.y_train):
            raise DataError(
                f"{count} samples for validation are wanted of the {len(self.y_train)} training "
                f"samples of {self.name}; take 1 to {len(self.y_train) - 1}"
            )
        order = shuffled(len(self.y_train), seed, *b"validation")
        held, kept = np.sort(order[:count]), np.sort(order[count:])
        return replace(
            self,
            x_train=self.x_train[kept],
            y_train=self.y_train[kept],
            t_train=None if self.t_train is None else self.t_train[kept],
            x_test=self.x_train[held],
            y_test=self.y_train[held],
            t_test=None if self.t_train is None else self.t_train[held],
        )

    def digest(self) -> str:
        """SHA-256 of the training samples, their labels or targets, and the exponents."""
        h = hashlib.sha256(f"{self.x_train.shape} {self.classes} {self.exponent}".encode())
        h.update(np.ascontiguousarray(self.x_train).tobytes())
        h.update(self.y_train.astype("<i8").tobytes())
        if self.t_train is not None:
            h.update(f"{self.t_train.shape} {self.target_exponent}".encode())
            h.update(np.ascontiguousarray(self.t_train).tobytes())
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


def quantise(
    train: npt.NDArray[np.floating[Any]], test: npt.NDArray[np.floating[Any]]
) -> tuple[Int8, Int8, int]:
    """Real samples to int8 with the smallest exponent that holds all training samples.

    Test samples beyond what the training samples reach are cut off.

    Returns
    -------
    int8 arrays of both, and their exponent

    Raises
    ------
    DataError
        For values that are not numbers.
    """
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
        raise DataError("samples contain values that are not numbers, or infinite; remove them")
    largest = float(np.abs(train).max()) if train.size else 0.0
    exponent = 0 if largest == 0 else ceil(log2(largest / 127))
    if not -64 <= exponent <= 63:
        raise DataError(f"samples reach {largest:g}; scale them to magnitudes from 2^-57 to 2^69")

    def to_grid(x: npt.NDArray[np.floating[Any]]) -> Int8:
        q = np.rint(np.ldexp(x.astype(np.float64), -exponent))
        return np.clip(q, -127, 127).astype(np.int8)

    return to_grid(train), to_grid(test), exponent


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


def assemble(
    name: str,
    train: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    test: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    classes: int | None = None,
    names: tuple[str, ...] = (),
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
        names=names,
    )
