"""Folders of wav files: words, commands, sounds, each as an image of log-mel features.

Two layouts are understood: a subfolder per class (as in Speech Commands, with its own
`testing_list.txt` where there is one), and files that are called LABEL_ANYTHING.wav (as the Free
Spoken Digit Dataset is). The features are those of `gradiron.data.features`.

Ref: Z. Jackson et al., Free Spoken Digit Dataset, https://github.com/Jakobovski/free-spoken-digit-dataset
(the official test split are the recordings 0 to 4 of every speaker and digit).
Ref: P. Warden, "Speech Commands", arXiv:1804.03209, 2018.
"""

from __future__ import annotations

import os
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gradiron.data.features import LOWEST_RATE, log_mel, to_features
from gradiron.data.folders import DATA_VARIABLE, data_folder
from gradiron.data.orders import shuffled
from gradiron.data.samples import Dataset, assemble
from gradiron.errors import DataError

FOLDER_SPLIT_SEED = 0
TEST_SHARE = 5
"""One in so many recordings is held back for testing where a folder does not say which."""
TEST_LIST = "testing_list.txt"
SPOKEN_DIGITS_FOLDERS = (
    "",
    "recordings",
    "fsdd/recordings",
    "free-spoken-digit-dataset/recordings",
)
SPOKEN_DIGITS_TEST = 5
SPOKEN_DIGITS_REMEDY = (
    "get the Free Spoken Digit Dataset, https://github.com/Jakobovski/free-spoken-digit-dataset, "
    "and name the folder above its recordings with --data DIR or in the environment variable "
    f"{DATA_VARIABLE}"
)
MAX_SECONDS = 600
"""A recording that claims more is taken for damage."""

Signal = npt.NDArray[np.float64]


def load_wav(path: str | os.PathLike[str]) -> tuple[Signal, int]:
    """The samples of a wav file, from -1 to 1, channels averaged, and its rate.

    Raises
    ------
    DataError
        For a file that cannot be read, is truncated, empty, or is not integer PCM.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream, wave.open(stream) as file:
            channels, width, rate, count = file.getparams()[:4]
            if not 0 < count <= MAX_SECONDS * rate:
                raise DataError(
                    f"{path} claims {count} samples at {rate} Hz; a recording has up to "
                    f"{MAX_SECONDS} seconds"
                )
            data = file.readframes(count)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, EOFError, ValueError, RuntimeError, wave.Error) as error:
        # wave's own messages may be empty.
        why = str(error) or type(error).__name__
        raise DataError(
            f"{path} is not a readable wav file ({why}); 8- to 32-bit integer PCM is read, convert "
            "other formats to that"
        ) from None
    if len(data) != count * channels * width:
        raise DataError(
            f"{path} must hold {count * channels * width} bytes of samples, it has {len(data)}; "
            "fetch it again"
        )
    return _real(data, width).reshape(count, channels).mean(axis=1), rate


def _real(data: bytes, width: int) -> Signal:
    """Bytes of PCM to numbers from -1 to 1."""
    if width == 1:  # the only unsigned kind
        return (np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128
    packed = np.frombuffer(data, np.uint8).reshape(-1, width)
    wide = np.zeros((len(packed), 4), np.uint8)
    wide[:, 4 - width :] = packed
    return wide.view("<i4")[:, 0].astype(np.float64) * 2.0**-31


def load_wav_folder(folder: str | os.PathLike[str]) -> Dataset:
    """A folder of wav files, as features of 49 x 10.

    Test samples are those that `testing_list.txt` names, else one in five, always the same.

    Raises
    ------
    DataError
        For a folder without wav files, or with fewer than two classes, and for bad files.
    """
    folder = Path(folder)
    files = sorted(
        path
        for path in folder.glob("*/*.wav")
        if not path.parent.name.startswith((".", "_"))  # _background_noise_ is no word
    )
    if files:
        labels = [path.parent.name for path in files]
    else:
        files = sorted(folder.glob("*.wav"))
        labels = [_stem_parts(path)[0] for path in files]
    if not files:
        raise DataError(
            f"{folder} has no wav files; expected are a subfolder of wav files for every class, or "
            "files that are called LABEL_ANYTHING.wav"
        )
    listed = folder / TEST_LIST
    if listed.is_file():
        held = _listed(listed, folder, files)
    else:
        held = np.zeros(len(files), bool)
        held[shuffled(len(files), FOLDER_SPLIT_SEED)[: max(1, len(files) // TEST_SHARE)]] = True
    return _recordings(folder.resolve().name, files, labels, held)


def _listed(listed: Path, folder: Path, files: Sequence[Path]) -> npt.NDArray[np.bool_]:
    try:
        names = {line.strip() for line in listed.read_text("utf-8").splitlines()}
    except (OSError, ValueError) as error:
        raise DataError(f"{listed} cannot be read ({error})") from None
    held = np.array([path.relative_to(folder).as_posix() in names for path in files])
    if not held.any() or held.all():
        raise DataError(
            f"{listed} names {np.count_nonzero(held)} of the {len(held)} wav files there; some "
            "must be for testing and some for training, as lines like yes/0a7c2a8d_nohash_0.wav"
        )
    return held


def _stem_parts(path: Path) -> list[str]:
    parts = path.stem.split("_")
    if len(parts) < 2 or not parts[0]:
        raise DataError(
            f"{path} has no label in its name; LABEL_ANYTHING.wav is expected, or a subfolder for "
            "every class"
        )
    return parts


def load_spoken_digits(folder: str | os.PathLike[str] | None = None) -> Dataset:
    """The Free Spoken Digit Dataset, with its official test split, as features of 49 x 10.

    Parameters
    ----------
    folder : path or None
        The folder with the recordings, or one above; None looks in `data_folder()`.

    Raises
    ------
    DataError
        Where recordings are missing, named in another way, or damaged.
    """
    base = data_folder(folder)
    for below in SPOKEN_DIGITS_FOLDERS:
        files = sorted((base / below).glob("[0-9]_*_*.wav"))
        if files:
            break
    else:
        why = "has no recordings like 3_george_12.wav" if base.is_dir() else "does not exist"
        raise DataError(f"the data folder {base} {why}; {SPOKEN_DIGITS_REMEDY}")
    return _spoken_digits(files)


def _spoken_digits(files: Sequence[Path]) -> Dataset:
    labels: list[str] = []
    held: list[bool] = []
    for path in files:
        parts = _stem_parts(path)
        index = parts[-1]
        if not (index.isascii() and index.isdigit()):
            raise DataError(f"{path} is named in another way than 3_george_12.wav; remove it")
        labels.append(parts[0])
        held.append(int(index) < SPOKEN_DIGITS_TEST)
    if not any(held) or all(held):
        raise DataError(
            f"{files[0].parent} has {held.count(True)} recordings for testing (numbers below "
            f"{SPOKEN_DIGITS_TEST}) and {held.count(False)} for training; both are needed: "
            f"{SPOKEN_DIGITS_REMEDY}"
        )
    return _recordings("spoken-digits", files, labels, np.array(held))


def _label_order(label: str) -> tuple[int, str]:
    """Numbers by their size, then words by the alphabet."""
    return (int(label), label) if label.isascii() and label.isdigit() else (1 << 62, label)


def _recordings(
    name: str, files: Sequence[Path], labels: Sequence[str], held: npt.NDArray[np.bool_]
) -> Dataset:
    names = sorted(set(labels), key=_label_order)
    if len(names) < 2:
        raise DataError(f"{files[0].parent}: all wav files have the label {names[0]!r}")
    x = np.stack([_features(path) for path in files])[..., None]
    y = np.array([names.index(label) for label in labels])
    return assemble(name, (x[~held], y[~held]), (x[held], y[held]), len(names), tuple(names))


def _features(path: Path) -> npt.NDArray[np.int8]:
    signal, rate = load_wav(path)
    if rate < LOWEST_RATE:
        raise DataError(
            f"{path} has {rate} samples a second; {LOWEST_RATE} are needed at least, convert it"
        )
    return to_features(log_mel(signal, rate))
