"""The handwritten digits."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from gradiron.data import (
    load,
    load_digits,
)
from gradiron.errors import MissingExtraError


def test_digits() -> None:
    data = load("digits")
    assert data.x_train.shape == (1437, 64)
    assert data.x_test.shape == (360, 64)
    assert (data.features, data.classes, data.exponent) == (64, 10, -7)
    assert (data.x_train.min(), data.x_train.max()) == (0, 127)
    assert set(np.unique(data.y_test)) == set(range(10))
    assert load_digits().digest() == data.digest()
    assert data.limited(train=100).digest() != data.digest()


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gradiron\[demo\]'"):
        load_digits()
