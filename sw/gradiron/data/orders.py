"""Seeded orders: a function of nothing but the seed.

They are built on raw generator output, which numpy keeps stable across versions.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


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
