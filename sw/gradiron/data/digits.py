"""Handwritten digits of 8x8 pixels, which lie in scikit-learn's package.

Ref: E. Alpaydin, C. Kaynak, UCI repository, 1998.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from gradiron.data.orders import shuffled
from gradiron.data.samples import Dataset, assemble, to_int8
from gradiron.errors import MissingExtraError

DIGITS_TRAIN = 1437
DIGITS_SPLIT_SEED = 0


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
    return assemble("digits", (x[train], y[train]), (x[test], y[test]), 10)
