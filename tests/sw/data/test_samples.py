"""Samples: how they are converted, and what is said about those that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from gradiron.data import (
    Dataset,
    check_inputs,
    check_labels,
    load,
    load_digits,
    to_int8,
)
from gradiron.errors import DataError

BYTES = np.zeros((4, 3), np.int8)
FOUR = np.array([0, 1, 2, 3])


def test_to_int8_is_the_rounded_share_of_the_maximum() -> None:
    pixels = np.arange(256, dtype=np.uint8)
    q = to_int8(pixels, 255.0)
    assert q.dtype == np.int8
    assert (q[0], q[255]) == (0, 127)
    assert all(int(q[p]) == round(p * 127 / 255) for p in range(256))
    assert to_int8(np.array([-1.0, 0.5, 1.0]), 1.0).tolist() == [-127, 64, 127]
    np.testing.assert_array_equal(to_int8(pixels.astype(float), 255.0), q)


@pytest.mark.parametrize("bad", [[1.5], [float("nan")], [float("inf")], [-2]])
def test_to_int8_refuses_what_does_not_fit(bad: list[float]) -> None:
    with pytest.raises(DataError, match=r"samples reach beyond \+-1.0 \(or are not numbers\)"):
        to_int8(np.array(bad), 1.0)


def test_to_int8_refuses_other_types() -> None:
    with pytest.raises(DataError, match="cannot be converted"):
        to_int8(np.array(["a"]), 1.0)
    with pytest.raises(DataError, match="cannot be converted"):
        to_int8(np.array([1.0]), 0.0)


def test_inputs() -> None:
    x = np.zeros((3, 4, 2), np.int8)
    assert check_inputs(x, 8).shape == (3, 8)
    with pytest.raises(DataError, match=r"are float32, but int8 is expected.*to_int8\(x, maximum"):
        check_inputs(x.astype(np.float32))
    with pytest.raises(DataError, match="have 8 values per sample, the network takes 9"):
        check_inputs(x, 9)
    with pytest.raises(DataError, match="contain -128; int8 tensors go from -127 to 127"):
        check_inputs(np.full((3, 8), -128, np.int8))
    with pytest.raises(DataError, match="a batch of samples is expected"):
        check_inputs(x[0, 0])
    with pytest.raises(DataError, match="a batch of samples is expected"):
        check_inputs(x[:0])


def test_labels() -> None:
    assert check_labels(np.array([0, 9], np.uint8), 10).tolist() == [0, 9]
    with pytest.raises(DataError, match="sample 1 has the label 10; labels must be from 0 to 9"):
        check_labels(np.array([0, 10]), 10)
    with pytest.raises(DataError, match="sample 0 has the label -1"):
        check_labels(np.array([-1, 10]), 10)
    with pytest.raises(DataError, match="are float64; integers from 0 to 9 are expected"):
        check_labels(np.array([0.0]), 10)
    with pytest.raises(DataError, match="one label per sample is expected, for 3 samples"):
        check_labels(np.array([0, 1]), 10, 3)


def test_limited() -> None:
    data = load_digits().limited(100, 10)
    assert (len(data.x_train), len(data.y_train), len(data.y_test)) == (100, 100, 10)
    with pytest.raises(DataError, match="101 training samples are wanted; digits has 100"):
        data.limited(101)
    with pytest.raises(DataError, match="0 test samples are wanted"):
        data.limited(test=0)


def test_unknown_data_set() -> None:
    with pytest.raises(DataError, match="no data set is called 'cifar'; there are digits, fashion"):
        load("cifar")


def test_a_data_set_is_plain_data() -> None:
    data = Dataset("own", BYTES, FOUR, BYTES, FOUR, 4)
    assert data.features == 3


def test_validation_holds_back_training_samples_alone() -> None:
    data = load_digits()
    held = data.validation(137, seed=1)
    assert (len(held.x_train), len(held.x_test)) == (1300, 137)
    together = np.concatenate([held.x_train, held.x_test])
    assert sorted(map(bytes, together)) == sorted(map(bytes, data.x_train))
    assert data.validation(137, seed=1).digest() == held.digest()
    assert data.validation(137, seed=2).digest() != held.digest()
    for count in (0, 1437):
        with pytest.raises(
            DataError, match=f"{count} samples for validation are wanted of the 1437"
        ):
            data.validation(count)
