"""Data sets: what is loaded, how it is converted, and what is said about bad files."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradiron.data import (
    Dataset,
    batches,
    check_inputs,
    check_labels,
    data_folder,
    load,
    load_digits,
    load_idx,
    load_idx_set,
    load_npz,
    shuffled,
    to_int8,
)
from gradiron.errors import DataError, MissingExtraError


def idx(array: np.ndarray[Any, Any]) -> bytes:
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


NAMES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def write_set(folder: Path, *, packed: bool = True) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    arrays = {
        NAMES[0]: rng.integers(0, 256, (12, 4, 3)),
        NAMES[1]: rng.integers(0, 10, 12),
        NAMES[2]: rng.integers(0, 256, (5, 4, 3)),
        NAMES[3]: rng.integers(0, 10, 5),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        content = idx(array)
        path = folder / f"{name}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)
    return arrays


# --- conversions and checks ----------------------------------------------------------------------


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


# --- orders --------------------------------------------------------------------------------------


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


# --- digits --------------------------------------------------------------------------------------


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


def test_limited() -> None:
    data = load_digits().limited(100, 10)
    assert (len(data.x_train), len(data.y_train), len(data.y_test)) == (100, 100, 10)
    with pytest.raises(DataError, match="101 training samples are wanted; digits has 100"):
        data.limited(101)
    with pytest.raises(DataError, match="0 test samples are wanted"):
        data.limited(test=0)


# --- IDX -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("below", ["", "fashion-mnist"])
def test_idx_set(tmp_path: Path, packed: bool, below: str) -> None:
    arrays = write_set(tmp_path / below, packed=packed)
    data = load("fashion", tmp_path)
    np.testing.assert_array_equal(data.x_train, np.rint(arrays[NAMES[0]] * 127 / 255))
    np.testing.assert_array_equal(data.y_test, arrays[NAMES[3]])
    assert data.x_train.dtype == np.int8
    assert data.features == 12


def test_missing_folder_and_files(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    with pytest.raises(DataError) as info:
        load("fashion", missing)
    assert str(info.value).startswith(f"the data folder {missing} does not exist; install the")
    assert "dataset-fashion-mnist" in str(info.value)
    assert "--data DIR" in str(info.value)
    write_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        DataError, match=r"^t10k-labels-idx1-ubyte\.gz not found in .* and .*fashion"
    ):
        load_idx_set("fashion", tmp_path)


def test_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADIRON_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    assert data_folder("elsewhere") == Path("elsewhere")
    monkeypatch.delenv("GRADIRON_DATA")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert data_folder() == tmp_path / "share" / "gradiron"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert data_folder() == tmp_path / "local" / "gradiron"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert data_folder().parts[-3:] == ("Library", "Application Support", "gradiron")


GOOD = idx(np.arange(24).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it begins with nothing"),
        (b"\0\0\x0d\x03" + GOOD[4:], "it begins with 00000d03"),
        (GOOD[:10], "its header is cut off"),
        (GOOD[:-1], r"must hold 24 bytes of data for \(2, 3, 4\), it has 23"),
        (GOOD + b"x", "it has more than 24"),
        (struct.pack(">HBBII", 0, 8, 2, 1 << 31, 1 << 31), "it claims the shape"),
        (struct.pack(">HBBI", 0, 8, 1, 0), "it claims the shape"),
        (gzip.compress(GOOD)[:-12], "it may be truncated"),
        (gzip.compress(GOOD)[:10] + b"\xff" * 20, "it may be truncated"),
        (gzip.compress(GOOD[:-4]), "it has 20"),
    ],
)
def test_damaged_idx(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_idx(path)


def test_damage_anywhere_is_an_error_or_other_pixels(tmp_path: Path) -> None:
    content = gzip.compress(GOOD)
    path = tmp_path / "file.gz"
    for position in range(len(content)):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :]
        )
        try:
            load_idx(path)
        except DataError:
            continue


def test_swapped_files(tmp_path: Path) -> None:
    write_set(tmp_path)
    images = tmp_path / f"{NAMES[0]}-ubyte.gz"
    (tmp_path / f"{NAMES[1]}-ubyte.gz").write_bytes(images.read_bytes())
    with pytest.raises(DataError, match=r"has the shape \(12, 4, 3\); fetch it again"):
        load("fashion", tmp_path)


def test_fashion_mnist(fashion_mnist: Path) -> None:
    data = load("fashion", fashion_mnist)
    assert data.x_train.shape == (60000, 28, 28)
    assert data.x_test.shape == (10000, 28, 28)
    assert np.bincount(data.y_train).tolist() == [6000] * 10


# --- npz -----------------------------------------------------------------------------------------


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
        ({"x": BYTES}, "has the arrays x; it needs x_train, y_train, x_test and y_test, or x and"),
        ({"x": BYTES.astype(np.float32), "y": FOUR}, "are float32, but int8 is expected"),
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


def test_unknown_data_set() -> None:
    with pytest.raises(DataError, match="no data set is called 'cifar'; there are digits, fashion"):
        load("cifar")


def test_a_data_set_is_plain_data() -> None:
    data = Dataset("own", BYTES, FOUR, BYTES, FOUR, 4)
    assert data.features == 3
