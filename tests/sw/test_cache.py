"""The folder of builds: complete or absent, whoever builds, and damage is found out."""

from __future__ import annotations

import concurrent.futures
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from gradiron import cache
from gradiron.cache import Cache, digest
from gradiron.errors import ToolError


def writer(content: bytes, log: list[bytes]) -> object:
    def build(work: Path) -> Path:
        log.append(content)
        assert not list(work.iterdir())
        (work / "intermediate").write_text("x")
        (work / "result.so").write_bytes(content)
        return work / "result.so"

    return build


def test_built_once_and_found_again(tmp_path: Path) -> None:
    log: list[bytes] = []
    store = Cache(tmp_path / "deep" / "folder")
    first, cached = store.get("key", writer(b"one", log))
    assert not cached
    assert first.read_bytes() == b"one"
    assert store.get("key", writer(b"two", log)) == (first, True)
    assert store.get("other", writer(b"three", log))[0].read_bytes() == b"three"
    assert log == [b"one", b"three"]
    left = {path.suffix for path in store.folder.iterdir()}
    assert left <= {".so", ".json", ".lock"}


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest", "garbage"])
def test_damage_is_found_and_mended(tmp_path: Path, damage: str) -> None:
    log: list[bytes] = []
    store = Cache(tmp_path)
    path, _ = store.get("key", writer(b"content", log))
    match damage:
        case "cut":
            path.write_bytes(b"cont")
        case "gone":
            path.unlink()
        case "manifest":
            (tmp_path / "key.json").write_text("{}")
        case _:
            (tmp_path / "key.json").write_bytes(b"\xff\x00")
    assert store.lookup("key") is None
    path, cached = store.get("key", writer(b"content", log))
    assert not cached
    assert path.read_bytes() == b"content"
    assert len(log) == 2


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(work: Path) -> Path:
        (work / "half").write_text("x")
        raise ToolError("no")

    store = Cache(tmp_path)
    with pytest.raises(ToolError, match="no"):
        store.get("key", build)
    assert store.lookup("key") is None
    assert {path.name for path in tmp_path.iterdir()} <= {".key.lock"}


def test_builders_at_the_same_time(tmp_path: Path) -> None:
    count = 8
    together = threading.Barrier(count)
    log: list[bytes] = []

    def work(index: int) -> bytes:
        together.wait()
        # Every builder makes something else: no mixture of two may come out.
        path, _ = Cache(tmp_path).get("key", writer(bytes([index]) * 100_000, log))
        return path.read_bytes()

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        found = list(pool.map(work, range(count)))
    assert all(len(set(content)) == 1 and len(content) == 100_000 for content in found)
    if sys.platform != "win32":
        assert len(log) == 1
        assert len(set(found)) == 1


def test_without_locks_builders_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.sys, "platform", "win32")
    first, second = Cache(tmp_path), Cache(tmp_path)

    def outer(work: Path) -> Path:
        second.get("key", writer(b"inner", []))
        (work / "result.so").write_bytes(b"outer")
        return work / "result.so"

    path, cached = first.get("key", outer)
    assert not cached
    assert path.read_bytes() == b"outer"
    found = first.lookup("key")
    assert found is not None
    assert found.read_bytes() == b"outer"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ToolError, match="GRADIRON_CACHE"):
        Cache(tmp_path / "sub").get("key", writer(b"", []))


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ToolError, match=r"cannot be written.*GRADIRON_CACHE"):
        Cache(tmp_path / "file").get("key", writer(b"", []))


def test_where_builds_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIRON_CACHE", str(tmp_path))
    assert cache.default_folder() == tmp_path
    monkeypatch.setenv("GRADIRON_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(cache.sys, "platform", "linux")
    assert cache.default_folder() == tmp_path / "xdg" / "gradiron"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert cache.default_folder() == tmp_path / ".cache" / "gradiron"
    monkeypatch.setattr(cache.sys, "platform", "darwin")
    assert cache.default_folder() == tmp_path / "Library/Caches/gradiron"
    monkeypatch.setattr(cache.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache.default_folder() == tmp_path / "local" / "gradiron" / "Cache"


def test_what_nobody_looks_up_is_removed_in_time(tmp_path: Path) -> None:
    store = Cache(tmp_path)
    for key in ("old", "used"):
        store.get(key, writer(b"content", []))
    store.remember("facts", {"a": 1})
    (tmp_path / ".build-killed").mkdir()
    past = time.time() - (cache.UNUSED_DAYS + 1) * 86400
    for place in tmp_path.iterdir():
        os.utime(place, (past, past))
    assert store.lookup("used") is not None
    store.get("new", writer(b"content", []))
    assert store.lookup("old") is None
    assert store.lookup("used") is not None
    assert store.recall("facts") == {}
    names = {place.name.partition("-")[0] for place in tmp_path.iterdir()}
    assert names == {"used", "used.json", "new", "new.json", ".new.lock"} - (
        {".new.lock"} if sys.platform == "win32" else set()
    )


def test_facts(tmp_path: Path) -> None:
    store = Cache(tmp_path / "folder")
    assert store.recall("name") == {}
    store.remember("name", {"key": "abc", "units": ["a", "b"]})
    assert store.recall("name") == {"key": "abc", "units": ["a", "b"]}
    (tmp_path / "folder" / "fact-name").write_text("[1]")
    assert store.recall("name") == {}
    (tmp_path / "file").write_text("x")
    Cache(tmp_path / "file").remember("name", {})


def test_the_digest_tells_parts_apart() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("ab") != digest("ab", "")
    assert digest(b"ab") == digest("ab")
