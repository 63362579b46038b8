import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hw/gradiron_hw", "sw/gradiron", "sim/gradiron_sim", "boards/gradiron_boards")


def test_every_dependency_has_its_reason():
    """A comment stands over each dependency, or over the group that it is in."""
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("\n")
    project = tomllib.loads("\n".join(lines))["project"]
    wanted = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        wanted += [name for name in extra if not name.startswith("gradiron[")]
    reasoned: list[str] = []
    commented = False
    for line in (line.strip() for line in lines):
        if line.startswith("#"):
            commented = True
        elif line.startswith('"') and commented:
            reasoned.append(line.strip('",'))
        else:
            commented = False
    assert set(wanted) <= set(reasoned)


@pytest.mark.long
def test_wheel_has_the_four_packages(tmp_path: Path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), "."]
    subprocess.run(command, cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert {Path(*Path(name).parts[1:]).as_posix() for name in tracked} <= names
    assert {f"{Path(package).name}/py.typed" for package in PACKAGES} <= names
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(entry_points).decode()
    assert "gradiron = gradiron.cli:main" in text
    assert any(name.endswith("licenses/LICENSE") for name in names)
