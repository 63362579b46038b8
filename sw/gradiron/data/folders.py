"""Where data sets are looked for."""

from __future__ import annotations

import os
import sys
from pathlib import Path

DATA_VARIABLE = "GRADIRON_DATA"


def data_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder with data: as given, else $GRADIRON_DATA, else the user's data folder."""
    if given:
        return Path(given)
    if os.environ.get(DATA_VARIABLE):
        return Path(os.environ[DATA_VARIABLE])
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Application Support")
    else:
        base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "gradiron"
