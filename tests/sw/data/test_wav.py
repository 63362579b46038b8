"""Folders of wav files: layouts, splits, and what is said about bad files."""

from __future__ import annotations

import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradiron.data import load, load_spoken_digits, load_wav, load_wav_folder
from gradiron.errors import DataError


def write(
    path: Path,
    seed: int = 0,
    *,
    rate: int = 8000,
    width: int = 2,
    channels: int = 1,
    count: int = 900,
) -> Any:
    """A wav file of noise; returns the integers written (count, channels)."""
    limit = 1 << (8 * width - 1)
    values = np.random.default_rng(seed).integers(-limit, limit, (count, channels))
    if width == 1:
        data = (values + 128).astype(np.uint8).tobytes()
    else:
        data = b"".join(int(v).to_bytes(width, "little", signed=True) for v in values.flat)
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return values


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples(tmp_path: Path, width: int, channels: int) -> None:
    values = write(tmp_path / "a.wav", width=width, channels=channels, rate=11025)
    signal, rate = load_wav(tmp_path / "a.wav")
    assert rate == 11025
    np.testing.assert_allclose(signal, values.mean(axis=1) / (1 << (8 * width - 1)), atol=1e-12)


def damaged(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(DataError) as info:
        load_wav(path)
    return str(info.value)


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "bad.wav"
    write(path)
    good = path.read_bytes()
    assert "is not a readable wav file" in damaged(path, b"")
    assert "is not a readable wav file" in damaged(path, b"text, no sound at all, of some length")
    assert "is not a readable wav file" in damaged(path, good[:30])
    assert "must hold 1800 bytes of samples, it has 1000" in damaged(path, good[:1044])
    # Format 3 is floating point.
    real = good[:20] + struct.pack("<H", 3) + good[22:]
    assert "8- to 32-bit integer PCM is read" in damaged(path, real)
    write(path, count=0)
    assert "claims 0 samples at 8000 Hz" in damaged(path, path.read_bytes())
    with pytest.raises(DataError, match="does not exist"):
        load_wav(tmp_path / "none.wav")


def test_subfolders_are_classes(tmp_path: Path) -> None:
    for label in ("yes", "no", "_background_noise_"):
        for index in range(5):
            write(tmp_path / label / f"{index}.wav", index)
    data = load(str(tmp_path))
    assert data.names == ("no", "yes")
    assert (data.classes, data.features) == (2, 490)
    assert (data.x_train.shape, data.x_test.shape) == ((8, 49, 10, 1), (2, 49, 10, 1))
    assert load_wav_folder(tmp_path).digest() == data.digest()


def test_a_list_of_test_files(tmp_path: Path) -> None:
    for label in ("yes", "no"):
        for index in range(3):
            write(tmp_path / label / f"{index}.wav", index)
    (tmp_path / "testing_list.txt").write_text("yes/0.wav\nno/2.wav\n")
    data = load_wav_folder(tmp_path)
    assert data.y_test.tolist() == [0, 1]
    assert len(data.y_train) == 4
    (tmp_path / "testing_list.txt").write_text("0.wav\n")
    with pytest.raises(DataError, match="names 0 of the 6 wav files there"):
        load_wav_folder(tmp_path)


def test_labels_in_names_and_their_order(tmp_path: Path) -> None:
    for label in ("10", "9", "b"):
        for index in range(4):
            write(tmp_path / f"{label}_{index}.wav", index)
    assert load_wav_folder(tmp_path).names == ("9", "10", "b")
    write(tmp_path / "nolabel.wav")
    with pytest.raises(DataError, match=r"nolabel\.wav has no label in its name"):
        load_wav_folder(tmp_path)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no wav files; expected are a subfolder"):
        load_wav_folder(tmp_path)
    write(tmp_path / "a_0.wav")
    write(tmp_path / "a_1.wav")
    with pytest.raises(DataError, match="all wav files have the label 'a'"):
        load_wav_folder(tmp_path)
    write(tmp_path / "b_1.wav", rate=4000)
    with pytest.raises(DataError, match=r"b_1\.wav has 4000 samples a second; 8000 are needed"):
        load_wav_folder(tmp_path)


@pytest.mark.parametrize("below", ["", "recordings", "fsdd/recordings"])
def test_spoken_digits_have_their_official_split(tmp_path: Path, below: str) -> None:
    for digit in range(10):
        for index in (0, 4, 5, 12):
            write(tmp_path / below / f"{digit}_ann_{index}.wav", digit)
    data = load("spoken-digits", tmp_path)
    assert (data.name, data.classes) == ("spoken-digits", 10)
    assert data.y_test.tolist() == [digit for digit in range(10) for _ in (0, 4)]
    assert len(data.y_train) == 20


def test_bad_spoken_digits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no recordings like 3_george_12\.wav; get the Free"):
        load_spoken_digits(tmp_path)
    with pytest.raises(DataError, match="does not exist; get the Free Spoken Digit Dataset"):
        load_spoken_digits(tmp_path / "nowhere")
    write(tmp_path / "0_ann_0.wav")
    with pytest.raises(DataError, match=r"has 1 recordings for testing .* and 0 for training"):
        load_spoken_digits(tmp_path)
    write(tmp_path / "1_ann_x.wav")
    with pytest.raises(DataError, match="is named in another way"):
        load_spoken_digits(tmp_path)


def test_the_spoken_digits(data_folder: Path) -> None:
    try:
        data = load_spoken_digits(data_folder)
    except DataError as error:
        pytest.skip(str(error))
    # Five recordings of every digit by each speaker.
    counts = np.bincount(data.y_test)
    assert data.classes == len(counts) == 10
    assert len(set(counts.tolist())) == 1
    assert counts[0] % 5 == 0
    assert data.x_train.shape[1:] == (49, 10, 1)
