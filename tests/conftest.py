"""Fixtures and rules of the whole test suite.

Tests that need data ask for the fixture `data_folder` or `fashion_mnist` and thereby get the
marker `data`. Without the data they are skipped with a reason; with GRADIRON_REQUIRE_DATA=1 a skip
of such a test, for whatever reason, is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

DATA_FIXTURES = {"data_folder", "fashion_mnist"}
FASHION_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)

# The time of one example says nothing on a machine that runs other things too.
hypothesis.settings.register_profile("gradiron", deadline=None)
hypothesis.settings.load_profile("gradiron")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if DATA_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.data)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    required = os.environ.get("GRADIRON_REQUIRE_DATA") == "1"
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if required and skipped and item.get_closest_marker("data") is not None:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"GRADIRON_REQUIRE_DATA=1, but the test was skipped: {reason}"
    return report


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder named by GRADIRON_DATA."""
    name = os.environ.get("GRADIRON_DATA", "")
    if not name:
        pytest.skip("GRADIRON_DATA is not set; set it to the folder with the data sets")
    folder = Path(name)
    if not folder.is_dir():
        pytest.skip(f"GRADIRON_DATA is {name!r}, which is not a folder")
    return folder


@pytest.fixture(scope="session")
def fashion_mnist(data_folder: Path) -> Path:
    """The folder to give as --data: it, or its fashion-mnist, has the four IDX files."""
    for folder in (data_folder, data_folder / "fashion-mnist"):
        if all((folder / name).is_file() for name in FASHION_FILES):
            return data_folder
    pytest.skip(f"no Fashion-MNIST (the four IDX .gz files) in {data_folder} or its fashion-mnist")
