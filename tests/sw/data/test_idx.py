"""Images in IDX files."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradiron.data import (
    data_folder,
    load,
    load_idx,
    load_idx_set,
)
from gradiron.errors import DataError


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
