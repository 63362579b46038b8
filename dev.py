#!/usr/bin/env python3
"""Run Gradiron from a checkout: needs Python 3.11 or newer, and nothing else.

    python3 dev.py demo [ARGUMENTS]    train on the simulated accelerator
    python3 dev.py test [ARGUMENTS]    run the tests; arguments go to pytest
    python3 dev.py lint                ruff check, ruff format --check, pyright
    python3 dev.py docs                build the documentation into docs/_build/html

The first use makes a virtual environment in the folder .venv of the checkout and installs the
package there, editable, with what the command needs; later uses take it as it is until
pyproject.toml changes. Remove the folder to start afresh.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "gradiron-installed.json"
OLDEST = (3, 11)

# The extras of pyproject.toml that each command needs.
EXTRAS = {
    "demo": ("demo",),
    "test": ("all", "dev"),
    "lint": ("all", "dev"),
    "docs": ("docs",),
}


class SetupError(Exception):
    """Something the user has to mend; the message says how."""


def python_of(venv: Path) -> Path:
    """The interpreter of a virtual environment."""
    if os.name == "nt":
        return venv / "Scripts" / "python.exe"
    return venv / "bin" / "python"


def digest() -> str:
    """What the installed packages depend on: pyproject.toml and where the checkout lies."""
    content = (ROOT / "pyproject.toml").read_bytes()
    return hashlib.sha256(content + str(ROOT).encode()).hexdigest()


def installed() -> set[str]:
    """The extras that .venv has for the present pyproject.toml."""
    try:
        stamp = json.loads(STAMP.read_text())
        return set(stamp["extras"]) if stamp["digest"] == digest() else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def works(python: Path) -> bool:
    """Whether an interpreter starts, is new enough, and has pip."""
    check = "import sys, pip; sys.exit(sys.version_info < %r)" % (OLDEST,)
    try:
        return subprocess.run([str(python), "-c", check], capture_output=True).returncode == 0
    except OSError:
        return False


def create() -> None:
    """Make .venv, or make it anew where it is broken."""
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            "%s has no complete venv module, which makes the virtual environment; on Debian and "
            "Ubuntu install the package python%d.%d-venv, or use a Python from python.org, uv or "
            "conda" % (sys.executable, sys.version_info[0], sys.version_info[1])
        )
    print("dev.py: making a virtual environment in %s" % VENV, flush=True)
    result = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)])
    if result.returncode:
        raise SetupError(
            "the virtual environment could not be made in %s (see above); is the folder writable "
            "and the disk not full?" % VENV
        )


def ensure(extras: tuple[str, ...]) -> Path:
    """A virtual environment with the package and these extras; returns its interpreter.

    Raises
    ------
    SetupError
        Where it cannot be made, or a package cannot be installed.
    """
    python = python_of(VENV)
    if not works(python):
        create()
    have = installed()
    if have >= set(extras):
        return python
    wanted = sorted(have | set(extras))
    target = "%s[%s]" % (ROOT, ",".join(wanted))
    print(
        "dev.py: installing gradiron[%s]: some hundred MB, once only" % ",".join(wanted), flush=True
    )
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    result = subprocess.run([*command, "--editable", target], cwd=ROOT)
    if result.returncode:
        raise SetupError(
            "pip could not install the packages (its own message is above). The first use needs "
            "the network, or a folder of wheels named by PIP_FIND_LINKS; behind a proxy set "
            "HTTPS_PROXY. Then give the same command again"
        )
    STAMP.write_text(json.dumps({"digest": digest(), "extras": wanted}))
    return python


def run(line: list[str], cwd: Path) -> int:
    """Run a command to its end; an interrupt from the keyboard is the command's to handle."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.run(line, cwd=cwd).returncode
    finally:
        signal.signal(signal.SIGINT, before)


def commands(name: str, python: Path, arguments: list[str]) -> list[list[str]]:
    """The command lines behind a command of this script."""
    module = [str(python), "-m"]
    if name == "demo":
        return [[*module, "gradiron", "demo", *arguments]]
    if name == "test":
        return [[*module, "pytest", *arguments]]
    if name == "lint":
        return [
            [*module, "ruff", "check", *arguments],
            [*module, "ruff", "format", "--check", *arguments],
            [*module, "pyright", "--pythonpath", str(python), *arguments],
        ]
    html = ROOT / "docs" / "_build" / "html"
    return [[*module, "sphinx", "-W", "--keep-going", "-q", *arguments, "docs", str(html)]]


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    if sys.version_info < OLDEST:
        print(
            "dev.py: this is Python %d.%d; Gradiron needs %d.%d or newer: start dev.py with that, "
            "for example python3.11 dev.py demo" % (*sys.version_info[:2], *OLDEST),
            file=sys.stderr,
        )
        return 2
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name not in EXTRAS:
        print("dev.py: no command %r; known: %s" % (name, ", ".join(EXTRAS)), file=sys.stderr)
        return 2
    try:
        python = ensure(EXTRAS[name])
    except SetupError as error:
        print("dev.py: %s." % error, file=sys.stderr)
        return 1
    # Every part runs, so that one use shows all there is to mend; the first failure is returned.
    cwd = Path.cwd() if name == "demo" else ROOT
    codes = [run(line, cwd) for line in commands(name, python, rest)]
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
