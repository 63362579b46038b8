import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def dev(tmp_path: Path) -> ModuleType:
    """The script as a module, in a checkout of its own."""
    script = tmp_path / "dev.py"
    script.write_text((ROOT / "dev.py").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    spec = importlib.util.spec_from_file_location("dev", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Runs:
    """Stands in for subprocess: notes what was started; an interpreter starts if it is there."""

    def __init__(self, dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dev = dev
        self.lines: list[list[str]] = []
        self.codes: dict[str, int] = {}
        monkeypatch.setattr(dev.subprocess, "run", self.run)

    def run(self, line: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        python = self.dev.python_of(self.dev.VENV)
        if line[1] == "-c":
            return subprocess.CompletedProcess(line, 0 if python.exists() else 1)
        self.lines.append(line)
        module = line[2]
        if module == "venv" and not self.codes.get("venv"):
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()
        return subprocess.CompletedProcess(line, self.codes.get(module, 0))

    @property
    def modules(self) -> list[str]:
        return [line[2] for line in self.lines]


@pytest.fixture
def runs(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(dev, monkeypatch)


def test_first_use_installs_and_later_ones_do_not(dev: ModuleType, runs: Runs):
    assert dev.main(["demo", "--epochs", "1"]) == 0
    assert runs.modules == ["venv", "pip", "gradiron"]
    assert runs.lines[1][-1] == f"{dev.ROOT}[demo]"
    assert runs.lines[2][1:] == ["-m", "gradiron", "demo", "--epochs", "1"]
    dev.main(["demo"])
    assert runs.modules[3:] == ["gradiron"]


def test_another_command_adds_its_extras(dev: ModuleType, runs: Runs):
    dev.main(["demo"])
    dev.main(["test", "-m", "long"])
    assert runs.modules[3:] == ["pip", "pytest"]
    assert runs.lines[3][-1] == f"{dev.ROOT}[all,demo,dev]"
    assert runs.lines[4][3:] == ["-m", "long"]


def test_a_changed_project_is_installed_again(dev: ModuleType, runs: Runs):
    dev.main(["demo"])
    (dev.ROOT / "pyproject.toml").write_text("[project]\nname = 'x'\n", encoding="utf-8")
    dev.main(["demo"])
    assert runs.modules[3:] == ["pip", "gradiron"]


def test_a_broken_environment_is_made_again(dev: ModuleType, runs: Runs):
    dev.main(["demo"])
    dev.python_of(dev.VENV).unlink()
    dev.STAMP.unlink()
    dev.main(["demo"])
    assert runs.modules[3:] == ["venv", "pip", "gradiron"]


@pytest.mark.parametrize("stamp", ["", "[]", "{}", json.dumps({"digest": 1, "extras": ["demo"]})])
def test_a_damaged_stamp_counts_as_none(dev: ModuleType, runs: Runs, stamp: str):
    dev.main(["demo"])
    dev.STAMP.write_text(stamp, encoding="utf-8")
    dev.main(["demo"])
    assert runs.modules[3:] == ["pip", "gradiron"]


def test_lint_runs_every_part_and_gives_the_first_failure(dev: ModuleType, runs: Runs):
    runs.codes = {"ruff": 3, "pyright": 4}
    assert dev.main(["lint"]) == 3
    assert runs.modules == ["venv", "pip", "ruff", "ruff", "pyright"]


def test_failures_name_their_remedy(
    dev: ModuleType, runs: Runs, capsys: pytest.CaptureFixture[str]
):
    runs.codes = {"pip": 1}
    assert dev.main(["demo"]) == 1
    assert "needs the network" in capsys.readouterr().err
    assert not dev.STAMP.exists()
    runs.codes = {}
    assert dev.main(["demo"]) == 0
    assert runs.modules == ["venv", "pip", "pip", "gradiron"]


def test_environment_cannot_be_made(
    dev: ModuleType, runs: Runs, capsys: pytest.CaptureFixture[str]
):
    runs.codes = {"venv": 1}
    assert dev.main(["demo"]) == 1
    assert "is the folder writable" in capsys.readouterr().err


def test_no_venv_module(
    dev: ModuleType,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def find_spec(name: str) -> None:
        assert name in ("venv", "ensurepip")

    monkeypatch.setattr(dev.importlib.util, "find_spec", find_spec)
    assert dev.main(["demo"]) == 1
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"install the package python{version}-venv" in capsys.readouterr().err
    assert runs.lines == []


def test_old_python(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(dev.sys, "version_info", (3, 8, 1))
    assert dev.main(["demo"]) == 2
    assert capsys.readouterr().err.startswith("dev.py: this is Python 3.8; Gradiron needs 3.11")


def test_wrong_command(dev: ModuleType, capsys: pytest.CaptureFixture[str]):
    assert dev.main(["tests"]) == 2
    message = "dev.py: no command 'tests'; known: demo, test, lint, docs\n"
    assert capsys.readouterr().err == message
    assert dev.main([]) == 2
    assert dev.main(["--help"]) == 0


def test_extras_exist(dev: ModuleType):
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = set(project["optional-dependencies"])
    assert all(known >= set(extras) for extras in dev.EXTRAS.values())
