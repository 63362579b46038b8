"""Training that survives an interruption: the state after every finished epoch, in one file.

A file is a line with the format, a line with the SHA-256 of the rest, and a `.npz`. It is written
to a temporary file that then takes the place of the old one, so that there is a whole one at any
time. The state does not depend on the machine: a run may go on with another array or device.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradiron.errors import DataError
from gradiron.graph import Graph
from gradiron.model import LayerParameters, State
from gradiron.progress import EpochRecord

MAGIC = b"gradiron checkpoint 1\n"
DIGEST_LINE = 65


@dataclass
class Checkpoint:
    """A finished epoch.

    Attributes
    ----------
    graph : Graph
    state : State
    run : dict
        What must be equal for a run to go on: settings and digest of the data.
    losses : list of int
        LOSS of every step so far.
    records : list of EpochRecord
    """

    graph: Graph
    state: State
    run: dict[str, Any]
    losses: list[int]
    records: list[EpochRecord]


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint; an older file stays whole until the new one is complete.

    Raises
    ------
    DataError
        Where the file cannot be written.
    """
    path = Path(path)
    arrays: dict[str, npt.NDArray[Any]] = {"losses": np.array(checkpoint.losses, "<i8")}
    for name, p in checkpoint.state.parameters.items():
        arrays[f"{name}/master"] = p.master
        arrays[f"{name}/bias"] = p.bias
        if p.velocity is not None and p.velocity_bias is not None:
            arrays[f"{name}/velocity"] = p.velocity
            arrays[f"{name}/velocity_bias"] = p.velocity_bias
    meta = {
        "graph": checkpoint.graph.to_dict(),
        "weight_exponents": {n: p.exponent for n, p in checkpoint.state.parameters.items()},
        "exponents": checkpoint.state.exponents,
        "step": checkpoint.state.step,
        "run": checkpoint.run,
        "records": [dataclasses.asdict(record) for record in checkpoint.records],
    }
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    body = buffer.getvalue()
    digest = hashlib.sha256(body).hexdigest().encode() + b"\n"
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = file.name
            file.write(MAGIC + digest + body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise DataError(f"the checkpoint {path} cannot be written: {error}") from None
    except BaseException:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    DataError
        Where there is none, or it is damaged.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"there is no checkpoint to go on from at {path} ({error.strerror}); start the run "
            "without resuming"
        ) from None
    if not content.startswith(MAGIC):
        raise DataError(f"{path} is not a checkpoint of this version")
    digest = content[len(MAGIC) : len(MAGIC) + DIGEST_LINE]
    body = content[len(MAGIC) + DIGEST_LINE :]
    if digest != hashlib.sha256(body).hexdigest().encode() + b"\n":
        raise DataError(
            f"the checkpoint {path} is damaged (its checksum does not match); restore it from a "
            "copy, or start the run anew"
        )
    with np.load(io.BytesIO(body), allow_pickle=False) as file:
        arrays: dict[str, npt.NDArray[Any]] = {key: file[key] for key in file.files}
    meta: dict[str, Any] = json.loads(arrays["meta"].tobytes())
    parameters = {
        name: LayerParameters(
            arrays[f"{name}/master"],
            arrays[f"{name}/bias"],
            exponent,
            arrays.get(f"{name}/velocity"),
            arrays.get(f"{name}/velocity_bias"),
        )
        for name, exponent in meta["weight_exponents"].items()
    }
    exponents = {name: (e[0], e[1], e[2]) for name, e in meta["exponents"].items()}
    return Checkpoint(
        Graph.from_dict(meta["graph"]),
        State(parameters, exponents, meta["step"]),
        meta["run"],
        [int(loss) for loss in arrays["losses"]],
        [EpochRecord(**record) for record in meta["records"]],
    )
