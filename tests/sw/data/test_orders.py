"""Seeded orders."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gradiron.data import (
    batches,
    shuffled,
)


def test_orders_never_change() -> None:
    # These numbers are part of what makes a run repeatable elsewhere.
    assert shuffled(10, 0, 0).tolist() == shuffled(10, 0, 0).tolist()
    assert shuffled(8, 5).tolist() == [7, 4, 3, 5, 6, 2, 0, 1]
    assert shuffled(100, 0, 1).tolist() != shuffled(100, 0, 2).tolist()
    assert shuffled(100, 1, 0).tolist() != shuffled(100, 0, 1).tolist()


@given(
    count=st.integers(1, 200),
    batch=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 50),
)
def test_batches(count: int, batch: int, seed: int, epoch: int) -> None:
    found = list(batches(count, batch, seed, epoch))
    assert len(found) == count // batch
    seen = [int(i) for part in found for i in part]
    assert len(set(seen)) == len(seen) == count // batch * batch
    assert all(len(part) == batch for part in found)
    assert all(0 <= i < count for i in seen)
