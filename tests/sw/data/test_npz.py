"""Samples in a .npz file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradiron.data import (
    load,
    load_npz,
    to_int8,
)
from gradiron.errors import DataError


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_npz_with_its_own_split(tmp_path: Path) -> None:
    x = np.arange(-10, 10, dtype=np.int8).reshape(5, 4)
    y = np.array([0, 1, 2, 0, 1])
    path = save(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    data = load(str(path))
    assert (data.name, data.classes) == ("own", 3)
    np.testing.assert_array_equal(data.x_train, x)


def test_npz_without_a_split(tmp_path: Path) -> None:
    x = np.arange(200, dtype=np.uint8).reshape(50, 4)
    path = save(tmp_path / "own.npz", x=x, y=np.arange(50) % 4)
    data = load_npz(path)
    assert (len(data.x_train), len(data.x_test)) == (40, 10)
    everything = np.concatenate([data.x_train, data.x_test])
    assert sorted(map(tuple, everything)) == sorted(map(tuple, to_int8(x, 255.0)))
    assert load_npz(path).digest() == data.digest()
    assert load_npz(path, seed=1).digest() != data.digest()


BYTES = np.zeros((4, 3), np.int8)
FOUR = np.array([0, 1, 2, 3])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": FOUR}, "has the arrays y; it needs x_train, y_train, x_test and y_test, or x and"),
        ({"x": BYTES.astype(np.int16), "y": FOUR}, "are int16, but int8 is expected"),
        ({"x": np.full((4, 3), np.inf), "y": FOUR}, "are not numbers, or infinite"),
        ({"x": np.full((4, 3), 1e30), "y": FOUR}, "samples reach 1e.30; scale them"),
        ({"x": BYTES, "y": FOUR, "t": BYTES[:3]}, r"x \(4, 3\) and t \(3, 3\) must have as many"),
        ({"x": BYTES, "y": FOUR, "t": FOUR / 2}, "targets have the shape"),
        ({"x": BYTES, "exponent": 64}, "must be an integer from -64 to 63"),
        ({"x": BYTES, "exponent": 0.5}, "must be an integer from -64 to 63"),
        ({"x_train": BYTES, "x_test": BYTES.astype(np.uint8)}, "save both as the same type"),
        ({"x_train": BYTES, "x_test": BYTES, "t_train": BYTES}, "for training or for testing only"),
        (
            {"x_train": BYTES, "x_test": BYTES, "t_train": BYTES, "t_test": BYTES[:2]},
            "as many targets as inputs",
        ),
        ({"x_train": BYTES, "x_test": BYTES[:, :2]}, "have 2 values per sample"),
        ({"x": np.full((4, 3), -128, np.int8), "y": FOUR}, "contain -128"),
        ({"x": BYTES, "y": FOUR - 1}, "has the label -1"),
        ({"x": BYTES, "y": FOUR[:3]}, "must have as many samples"),
        ({"x": BYTES, "y": FOUR.astype(float)}, "labels are float64"),
        ({"x": np.array(3), "y": FOUR}, "must have as many samples"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_npz(save(tmp_path / "bad.npz", **arrays))


def test_unreadable_npz(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load(str(tmp_path / "none.npz"))
    good = save(tmp_path / "good.npz", x=BYTES, y=FOUR).read_bytes()
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, x=np.array([{}], object), y=FOUR)
    for name, content in (
        ("cut", good[: len(good) // 2]),
        ("text", b"not a zip file"),
        ("empty", b""),
        ("damaged", good[:60] + b"\xff" * 40 + good[100:]),
        ("pickle", pickled.read_bytes()),
    ):
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"is not a readable \.npz file"):
            load_npz(path)
    single = tmp_path / "single.npz"
    with single.open("wb") as file:
        np.save(file, BYTES)
    with pytest.raises(DataError, match="it holds a single array"):
        load_npz(single)


def test_real_numbers_get_the_exponent_that_they_need(tmp_path: Path) -> None:
    x = np.linspace(-3, 3, 20).reshape(10, 2)
    path = save(tmp_path / "real.npz", x_train=x, x_test=x * 2, y_train=[0, 1] * 5, y_test=[1] * 10)
    data = load(str(path))
    # 3 = 96 * 2**-5; at 2**-6 it would need 192.
    assert data.exponent == -5
    assert data.x_train.max() == 96
    assert data.x_test.max() == 127
    np.testing.assert_allclose(data.x_train * 2.0**-5, x, atol=2.0**-6)
    exact = save(
        tmp_path / "exact.npz", x_train=x * 0 + 127, x_test=x, y_train=[0] * 10, y_test=[1] * 10
    )
    assert load(str(exact)).exponent == 0
    assert load(str(exact)).x_train.max() == 127
    nothing = save(tmp_path / "nothing.npz", x=x * 0, y=[0, 1] * 5)
    assert load(str(nothing)).exponent == 0


def test_an_exponent_in_the_file(tmp_path: Path) -> None:
    data = load(str(save(tmp_path / "own.npz", x=BYTES, y=FOUR, exponent=3)))
    assert data.exponent == 3


def test_targets_and_no_labels(tmp_path: Path) -> None:
    x = np.arange(40, dtype=np.int8).reshape(10, 4)
    t = np.arange(10).reshape(10, 1) / 8
    data = load(str(save(tmp_path / "values.npz", x=x, t=t)))
    assert data.classes == 1
    assert data.t_train is not None
    assert data.t_test is not None
    assert (data.t_train.shape, data.t_test.shape) == ((8, 1), (2, 1))
    # Samples and targets stay together.
    scale = 2.0**data.target_exponent
    np.testing.assert_allclose(data.t_train[:, 0] * scale * 32, data.x_train[:, 0], atol=32 * scale)
    assert data.limited(3).t_train is not None
    held = data.validation(2)
    assert held.t_train is not None
    assert held.t_test is not None
    assert (len(held.t_train), len(held.t_test)) == (6, 2)
    assert data.digest() != dataclasses.replace(data, t_train=data.t_train[::-1]).digest()
