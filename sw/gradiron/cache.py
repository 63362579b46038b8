"""A folder of build results, found again by a digest of everything that went into them.

Promises: an entry is complete or absent, whoever else builds or is killed at the same time; an
entry that was damaged is found out and made again; nothing outside the folder is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

from gradiron.errors import ToolError

UNUSED_DAYS = 60
"""Days after which an entry that nobody looked up is removed."""
VARIABLE = "GRADIRON_CACHE"
"""Environment variable that names another folder."""


def default_folder() -> Path:
    """The user's cache folder as the platform has it, or what GRADIRON_CACHE names."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "")
        return (Path(base) if base else Path.home() / "AppData/Local") / "gradiron" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/gradiron"
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "gradiron"


def digest(*parts: str | bytes) -> str:
    """A digest of several texts, each told apart from its neighbours."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def _used(place: Path) -> float:
    """When a file was last written or looked up; 0 if there is none."""
    try:
        return place.stat().st_mtime
    except OSError:
        return 0.0


class Cache:
    """Files in a folder, each found by a key.

    Parameters
    ----------
    folder : Path, optional
        `default_folder()` if not given.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = default_folder() if folder is None else folder

    def lookup(self, key: str) -> Path | None:
        """The file of a key; None where there is none or where it is not what was stored."""
        try:
            place = self.folder / f"{key}.json"
            manifest = json.loads(place.read_text("utf-8"))
            path = self.folder / str(manifest["file"])
            content = path.read_bytes()
            stored = str(manifest["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if hashlib.sha256(content).hexdigest() != stored:
            return None
        with contextlib.suppress(OSError):
            os.utime(place)
        return path

    def store(self, key: str, built: Path) -> Path:
        """Move a file into the cache and return its place there.

        The name has a digest of the content: the file that another process has loaded is never
        written to, and two builds of one key do not mix.
        """
        sha256 = hashlib.sha256(built.read_bytes()).hexdigest()
        name = f"{key}-{sha256[:16]}{built.suffix}"
        os.replace(built, self.folder / name)
        manifest = built.with_suffix(".json")
        manifest.write_text(json.dumps({"file": name, "sha256": sha256}), "utf-8")
        os.replace(manifest, self.folder / f"{key}.json")
        self._prune()
        return self.folder / name

    def _prune(self) -> None:
        """Remove what was not looked up for a long time."""
        oldest = time.time() - UNUSED_DAYS * 86400
        with contextlib.suppress(OSError):
            for place in self.folder.iterdir():
                kept = place.with_name(f"{place.name.partition('-')[0]}.json")
                if max(_used(place), _used(kept)) >= oldest:
                    continue
                if place.is_dir():  # left by a build that was killed
                    shutil.rmtree(place, ignore_errors=True)
                else:
                    place.unlink(missing_ok=True)

    def remember(self, name: str, value: dict[str, Any]) -> None:
        """Keep a few facts under a name; where that is not possible, do without."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, path = tempfile.mkstemp(prefix=".fact-", dir=self.folder)
            with open(handle, "w", encoding="utf-8") as file:
                json.dump(value, file)
            os.replace(path, self.folder / f"fact-{name}")

    def recall(self, name: str) -> dict[str, Any]:
        """The facts under a name; none where nothing was kept."""
        place = self.folder / f"fact-{name}"
        try:
            value = json.loads(place.read_text("utf-8"))
            os.utime(place)
        except (OSError, ValueError):
            return {}
        return cast(dict[str, Any], value) if isinstance(value, dict) else {}

    def discard(self, key: str) -> None:
        """Forget a key."""
        (self.folder / f"{key}.json").unlink(missing_ok=True)

    def get(self, key: str, build: Callable[[Path], Path]) -> tuple[Path, bool]:
        """The file of a key, built if need be; and whether it was there already.

        Parameters
        ----------
        key : str
        build : function of a folder
            Makes the file in that folder, which is empty and removed afterwards.

        Raises
        ------
        ToolError
            Where the folder cannot be written.
        """
        found = self.lookup(key)
        if found is not None:
            return found, True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=".build-", dir=self.folder))
        except OSError as error:
            raise ToolError(
                f"builds are kept in {self.folder}, which cannot be written: {error}; name another "
                f"folder with the environment variable {VARIABLE}"
            ) from error
        try:
            with self._alone(key):
                # Somebody else may have finished while this process waited for its turn.
                found = self.lookup(key)
                if found is not None:
                    return found, True
                return self.store(key, build(work)), False
        finally:
            shutil.rmtree(work, ignore_errors=True)

    @contextlib.contextmanager
    def _alone(self, key: str) -> Generator[None, None, None]:
        """One builder of a key at a time, where the platform has file locks.

        Only saves work: builders that run at the same time do not harm each other.
        """
        if sys.platform == "win32":
            yield
            return
        import fcntl

        with open(self.folder / f".{key}.lock", "w") as lock:
            with contextlib.suppress(OSError):  # a network folder without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
